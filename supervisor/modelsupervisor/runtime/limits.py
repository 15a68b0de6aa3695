"""What a start needs of the machine, held against what may be had, before anything is made.

A thousand workers run into limits that nobody sees beforehand: of descriptors, of processes, of shared memory. Each of them would
end the start at some worker in the middle with an errno; so all are looked at first, and one error names every limit that does not
hold, what is needed, what is there, and what helps. `plan` shows the same table.

What is needed is counted low (a process has one thread, a helper of the handler's is none) and what is there is counted high, so
that nothing is refused that could have run. A limit that cannot be read is none.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass

from modelworker.scoreboard import RECORD_SIZE

from modelsupervisor.config import Settings
from modelsupervisor.errors import StartError
from modelsupervisor.runtime.cgroup import read_pids_room
from modelsupervisor.runtime.kernel_text import read_text, whole_number
from modelsupervisor.runtime.planning import plan_fifos

DESCRIPTORS_A_SLOT = 5  # listener, two FIFOs, pidfd, channel
DESCRIPTORS_A_SPARE = 2  # pidfd, channel
DESCRIPTORS_A_TEMPLATE = 6  # two pipes with both ends, pidfd, channel
DESCRIPTORS_BESIDE = (
    32  # the supervisor's own, 18 of them with one sink [measured], and those of a moment
)
# Nobody waits for these: the connections of operators; a model's next template, and the spare that is born for a worn worker
DESCRIPTORS_TO_SPARE = 64
DESCRIPTORS_TO_SPARE_A_MODEL = DESCRIPTORS_A_TEMPLATE + DESCRIPTORS_A_SPARE
PROCESSES_A_MODEL = 3  # its template, an heir, and the intermediate of a birth
FILES_A_SLOT = 3  # its socket and two FIFOs
FILES_BESIDE = 4  # lock, control socket, scoreboard, and the name a socket is bound under first
_CAPABILITIES = (1 << 21) | (1 << 24)  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE: no RLIMIT_NPROC holds


@dataclass(frozen=True)
class Limit:
    """One limit: how many of `what` are needed, and how many may be had (None: any number); `remedy` is what helps."""

    name: str
    what: str
    needed: int
    found: int | None
    remedy: str

    @property
    def holds(self) -> bool:
        """There is enough."""
        return self.found is None or self.needed <= self.found

    def __str__(self) -> str:
        had = "any number" if self.found is None else str(max(0, self.found))
        words = f"{self.name}: {self.needed} {self.what} needed, {had} to be had"
        return words if self.holds else f"{words}; {self.remedy}"


def require_limits(limits: tuple[Limit, ...]) -> None:
    """Raise StartError naming every limit that does not hold."""
    broken = [limit for limit in limits if not limit.holds]
    if broken:
        few = "or run fewer workers; nothing was started"
        raise StartError("\n".join(["the machine has no room for this:", *map(str, broken), few]))


def read_limits(
    settings: Settings, run_dir: str | None = None, root: str = "/"
) -> tuple[Limit, ...]:
    """The limits of a start by this process, as they are now; /proc and /sys are those under `root`.

    Without a `run_dir` nothing is said of its file system.
    """
    slots = sum(model.workers for model in settings.models)
    processes = slots + sum(model.spares + PROCESSES_A_MODEL for model in settings.models)
    return (
        _descriptors(settings),
        *_processes(processes, root),
        *_memory(slots, root),
        *(() if run_dir is None else _files(slots, run_dir)),
    )


def claim_descriptors(settings: Settings) -> None:
    """Raise the soft limit of descriptors to what is needed, and to what is good to have as far as the hard one allows that."""
    wanted = _descriptors(settings).needed + DESCRIPTORS_TO_SPARE
    wanted += len(settings.models) * DESCRIPTORS_TO_SPARE_A_MODEL
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _descriptors(settings: Settings) -> Limit:
    needed = DESCRIPTORS_BESIDE + len(settings.models) * DESCRIPTORS_A_TEMPLATE
    for model in settings.models:
        needed += model.workers * DESCRIPTORS_A_SLOT + model.spares * DESCRIPTORS_A_SPARE
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    remedy = "raise the hard limit (ulimit -Hn, LimitNOFILE=)"
    return Limit("RLIMIT_NOFILE", "descriptors", needed, _finite(hard), remedy)


def _processes(needed: int, root: str) -> Iterator[Limit]:
    what = "processes"
    soft = _finite(resource.getrlimit(resource.RLIMIT_NPROC)[0])
    if soft is not None:
        soft = None if _is_above_nproc(root) else soft - _tasks_of(os.getuid(), root)
    remedy = "raise the limit of this user's processes and threads (ulimit -u, LimitNPROC=)"
    yield Limit("RLIMIT_NPROC", what, needed, soft, remedy)
    most = _number(root, "proc/sys/kernel/pid_max")
    found = None if most is None else most - sum(1 for _ in _pids(root))
    yield Limit("kernel.pid_max", what, needed, found, "raise it (sysctl kernel.pid_max)")
    most, there = _number(root, "proc/sys/kernel/threads-max"), _all_tasks(root)
    found = None if most is None or there is None else most - there
    yield Limit("kernel.threads-max", what, needed, found, "raise it (sysctl kernel.threads-max)")
    found, source = read_pids_room(root)
    remedy = "raise the control group's (TasksMax=, docker run --pids-limit)"
    yield Limit(source or "pids.max", what, needed, found, remedy)


def _memory(slots: int, root: str) -> Iterator[Limit]:
    """A FIFO takes memory when somebody writes and nobody reads: where no sink takes the log, all may be full."""
    fifos = plan_fifos(slots)
    needed = fifos.size * fifos.count + slots * RECORD_SIZE
    remedy = "free some (it is what all FIFOs hold when they are full, and the scoreboard)"
    yield Limit("MemAvailable", "bytes", needed, _available(root), remedy)


def _files(slots: int, run_dir: str) -> Iterator[Limit]:
    place = os.path.abspath(run_dir)
    while not os.path.isdir(place) and place != "/":
        place = os.path.dirname(place)
    try:
        room = os.statvfs(place)
    except OSError:
        return
    remedy = f"make room in the file system of {run_dir}, or set another run_dir"
    # None are counted where there is no bound: ramfs and a tmpfs without a size, and of inodes btrfs
    left_bytes, left_files = _left_in(run_dir)
    found = room.f_bavail * room.f_frsize + left_bytes if room.f_blocks else None
    yield Limit("run_dir", "bytes", slots * RECORD_SIZE, found, remedy)
    inodes = room.f_favail + left_files if room.f_files else None
    needed = slots * FILES_A_SLOT + FILES_BESIDE
    yield Limit("run_dir", "inodes", needed, inodes, remedy)


def _left_in(run_dir: str) -> tuple[int, int]:
    """Bytes and files that a start may find there, of a supervisor that was killed: it removes them before it makes its own."""
    try:
        with os.scandir(run_dir) as names:
            found = [name.stat(follow_symlinks=False) for name in names]
    except OSError:
        return 0, 0
    return sum(status.st_blocks for status in found) * 512, len(found)


# -- what is there ------------------------------------------------------------------------------------------------------


def _number(root: str, path: str) -> int | None:
    return whole_number(read_text(os.path.join(root, path)))


def _pids(root: str) -> Iterator[str]:
    """The processes that are seen from here: in a namespace, those that take up its numbers."""
    try:
        names = os.listdir(os.path.join(root, "proc"))
    except OSError:
        return
    yield from (name for name in names if name.isdigit())


def _status(root: str, pid: str) -> dict[str, str]:
    lines = (read_text(os.path.join(root, "proc", pid, "status")) or "").splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def _tasks_of(uid: int, root: str) -> int:
    """The threads of all processes of a real user id."""
    total = 0
    for pid in _pids(root):
        status = _status(root, pid)
        if status.get("Uid", "").split()[:1] == [str(uid)]:
            total += whole_number(status.get("Threads")) or 1
    return total


def _is_above_nproc(root: str) -> bool:
    if os.getuid() == 0:
        return True
    try:
        return bool(int(_status(root, "self").get("CapEff", "0"), 16) & _CAPABILITIES)
    except ValueError:
        return False


def _all_tasks(root: str) -> int | None:
    """Every thread of the machine: `0.1 0.2 0.3 2/345 6789` says 345."""
    columns = (read_text(os.path.join(root, "proc/loadavg")) or "").split()
    return whole_number(columns[3].partition("/")[2]) if len(columns) > 3 else None


def _available(root: str) -> int | None:
    for line in (read_text(os.path.join(root, "proc/meminfo")) or "").splitlines():
        name, _, text = line.partition(":")
        if name == "MemAvailable":
            kib = whole_number(text.split()[0] if text.split() else None)
            return None if kib is None else kib * 1024
    return None
