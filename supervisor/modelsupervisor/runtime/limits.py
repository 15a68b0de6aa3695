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
DESCRIPTORS_BESIDE = 64 + 64  # the supervisor's own, operators, templates, births under way
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
    """Raise the soft limit of descriptors to what is needed; that the hard one allows it was seen before."""
    needed = _descriptors(settings).needed
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _finite(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _descriptors(settings: Settings) -> Limit:
    slots = sum(model.workers for model in settings.models)
    # Where a model keeps none, one is born for a worker that is worn out
    spares = sum(max(1, model.spares) for model in settings.models)
    needed = slots * DESCRIPTORS_A_SLOT + spares * DESCRIPTORS_A_SPARE + DESCRIPTORS_BESIDE
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
    needed = slots * RECORD_SIZE
    yield Limit("run_dir", "bytes", needed, room.f_bavail * room.f_frsize, remedy)
    inodes = room.f_favail if room.f_files else None  # none is counted on btrfs
    needed = slots * FILES_A_SLOT + FILES_BESIDE
    yield Limit("run_dir", "inodes", needed, inodes, remedy)


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
