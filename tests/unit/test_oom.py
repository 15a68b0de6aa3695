"""Kills for want of memory: the kernel's counter in trees that are written down, and which deaths it is evidence of."""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelsupervisor.core.states import Blame
from modelsupervisor.runtime import processes
from modelsupervisor.runtime.cgroup import kill_counters
from modelsupervisor.runtime.evidence import Evidence, Remains, bury, evidence_of
from modelsupervisor.runtime.kernel_text import counted_in
from modelsupervisor.runtime.oom import FRESH, OomKills
from modelsupervisor.runtime.processes import ExitStatus

V2 = "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = (
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
OWN_V1 = "sys/fs/cgroup/memory/jobs/a/memory.oom_control"
OWN_V2 = "sys/fs/cgroup/jobs/a/memory.events"
VMSTAT = "proc/vmstat"
KILLED = ExitStatus(signal=signal.SIGKILL)


@dataclass(frozen=True)
class _End:
    """What the core says of an end."""

    asked: bool = False
    blame: Blame | None = None


UNASKED = _End()


def write(root: Path, files: dict[str, str]) -> None:
    """Write or overwrite files of the tree."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def control(kills: int) -> str:
    """A memory.oom_control."""
    return f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}"


def events(kills: int) -> str:
    """A memory.events."""
    return f"low 0\nhigh 0\nmax 17\noom 5\noom_kill {kills}\noom_group_kill 0"


def version_1(root: Path, kills: int = 0) -> None:
    """A machine whose controllers are of version 1, with a group of ours."""
    write(
        root,
        {
            "proc/self/mountinfo": V1,
            "proc/self/cgroup": "4:memory:/jobs/a\n1:cpu:/\n0::/",
            OWN_V1: control(kills),
            VMSTAT: "pgfault 5\noom_kill 70",
        },
    )


def version_2(root: Path, kills: int = 0) -> None:
    """The same of version 2."""
    write(
        root,
        {
            "proc/self/mountinfo": V2,
            "proc/self/cgroup": "0::/jobs/a",
            OWN_V2: events(kills),
            "sys/fs/cgroup/jobs/memory.events": events(40),
            VMSTAT: "pgfault 5\noom_kill 70",
        },
    )


def opened(root: Path) -> OomKills:
    """A counter that was found at time 0."""
    kills = OomKills(str(root))
    assert kills.open(0.0) is None
    return kills


# -- where the kernel counts ---------------------------------------------------------------------------------------------


def test_version_1(tmp_path: Path) -> None:
    """The group's own memory.oom_control; a rise is one claim, with the file and both numbers."""
    version_1(tmp_path, kills=3)
    kills = opened(tmp_path)
    assert kills.claim(1.0) is None
    write(tmp_path, {OWN_V1: control(4)})
    assert kills.claim(2.5) == (
        "oom_kill in /sys/fs/cgroup/memory/jobs/a/memory.oom_control rose from 3 to 4 within 1.5 s; "
        "it counts the kernel's kills in this control group"
    )
    assert kills.claim(2.6) is None


def test_version_2(tmp_path: Path) -> None:
    """memory.events of the group, which counts those below it too; where there is one, memory.events.local, which does not."""
    version_2(tmp_path)
    kills = opened(tmp_path)
    write(tmp_path, {OWN_V2: events(1)})
    assert "in this control group and those below it" in str(kills.claim(1.0))
    write(tmp_path, {OWN_V2 + ".local": events(1)})
    kills = opened(tmp_path)
    write(tmp_path, {OWN_V2: events(2)})
    assert kills.claim(1.0) is None
    write(tmp_path, {OWN_V2 + ".local": events(2)})
    assert str(kills.claim(1.0)).endswith(
        "memory.events.local rose from 1 to 2 within 0.0 s; it counts the kernel's kills in this control group"
    )


def test_version_2_without_the_controller(tmp_path: Path) -> None:
    """The nearest group above that has one: its memory is what ours uses."""
    version_2(tmp_path)
    (tmp_path / OWN_V2).unlink()
    kills = opened(tmp_path)
    write(tmp_path, {"sys/fs/cgroup/jobs/memory.events": events(41)})
    assert "/sys/fs/cgroup/jobs/memory.events rose from 40 to 41" in str(kills.claim(1.0))


def test_another_groups_kill_is_not_ours(tmp_path: Path) -> None:
    """The group above and the machine may count what they like while our own counter stands."""
    version_2(tmp_path)
    kills = opened(tmp_path)
    write(tmp_path, {"sys/fs/cgroup/jobs/memory.events": events(41), VMSTAT: "oom_kill 71"})
    assert kills.claim(1.0) is None


def test_controllers_of_both_versions(tmp_path: Path) -> None:
    """The controller is of version 1, whatever version 2 has beside it: that is asked later."""
    version_1(tmp_path)
    write(tmp_path, {"sys/fs/cgroup/unified/memory.events": events(0)})
    assert [counter.path.rpartition("/")[0] for counter in kill_counters(str(tmp_path))][-3:] == [
        "/sys/fs/cgroup/unified",
        "/sys/fs/cgroup/unified",
        "/proc",
    ]
    kills = opened(tmp_path)
    write(tmp_path, {OWN_V1: control(1)})
    assert "memory.oom_control" in str(kills.claim(1.0))


@pytest.mark.parametrize("files", [{}, {OWN_V1: "oom_kill_disable 0\nunder_oom 0"}])
def test_the_whole_machine(tmp_path: Path, files: dict[str, str]) -> None:
    """Where the group has no counter (kernels before 4.13, no controller) the machine's is read, and the words say so."""
    if files:
        version_1(tmp_path)
    write(tmp_path, {**files, VMSTAT: "nr_free_pages 1\noom_kill 70"})
    kills = opened(tmp_path)
    write(tmp_path, {VMSTAT: "oom_kill 71"})
    assert kills.claim(3.0) == (
        "oom_kill in /proc/vmstat rose from 70 to 71 within 3.0 s; "
        "it counts the kernel's kills of anybody's processes on the whole machine"
    )


@pytest.mark.parametrize("name", ["/../other", "/elsewhere"])
def test_a_group_that_is_not_to_be_seen(tmp_path: Path, name: str) -> None:
    """What is mounted counts others: it is not read."""
    mounts = "29 23 0:26 /mine /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    write(
        tmp_path,
        {
            "proc/self/mountinfo": mounts,
            "proc/self/cgroup": f"0::{name}",
            "sys/fs/cgroup/memory.events": events(0),
        },
    )
    assert [counter.path for counter in kill_counters(str(tmp_path))] == ["/proc/vmstat"]


def test_no_counter_at_all(tmp_path: Path) -> None:
    """It is said at the start, and no death is ever claimed."""
    kills = OomKills(str(tmp_path))
    assert "never said to be one" in str(kills.open(0.0))
    assert kills.claim(1.0) is None


def test_a_counter_that_goes_away(tmp_path: Path) -> None:
    """Nothing is claimed meanwhile, and what it counts when it is back is known to be later than the last look."""
    version_1(tmp_path)
    kills = opened(tmp_path)
    (tmp_path / OWN_V1).unlink()
    assert kills.claim(1.0) is None
    write(tmp_path, {OWN_V1: control(1)})
    assert "rose from 0 to 1 within 2.0 s" in str(kills.claim(2.0))


def test_a_counter_that_falls(tmp_path: Path) -> None:
    """The process was moved to another group of that name: counting starts anew."""
    version_1(tmp_path, kills=9)
    kills = opened(tmp_path)
    write(tmp_path, {OWN_V1: control(1)})
    assert kills.claim(1.0) is None
    write(tmp_path, {OWN_V1: control(2)})
    assert "from 1 to 2" in str(kills.claim(2.0))


# -- which death it was --------------------------------------------------------------------------------------------------


def test_one_rise_is_one_death(tmp_path: Path) -> None:
    """Of two deaths with one rise one is claimed; of three with a rise of two, two."""
    version_1(tmp_path)
    kills = opened(tmp_path)
    write(tmp_path, {OWN_V1: control(1)})
    assert [kills.claim(1.0) is None for _ in range(2)] == [False, True]
    write(tmp_path, {OWN_V1: control(3)})
    assert [kills.claim(1.0) is None for _ in range(3)] == [False, False, True]


def test_a_rise_that_nobody_claimed_gets_old(tmp_path: Path) -> None:
    """A look that saw it starts its clock: within FRESH seconds it is some death's, after that nobody's."""
    version_1(tmp_path)
    kills = opened(tmp_path)
    write(tmp_path, {OWN_V1: control(2)})
    kills.refresh(1.0)
    kills.refresh(1.1)
    assert kills.claim(1.0 + FRESH) is not None
    assert kills.claim(1.1 + FRESH) is None


def test_only_a_sigkill_is_held_against_the_counter(tmp_path: Path) -> None:
    """Another end leaves the rise for the death that it belongs to."""
    version_1(tmp_path)
    kills = opened(tmp_path)
    write(tmp_path, {OWN_V1: control(1)})
    for status in (ExitStatus(code=1), ExitStatus(signal=signal.SIGTERM), ExitStatus()):
        assert evidence_of(UNASKED, status, Remains(), kills, 1.0) == Evidence()
    found = evidence_of(UNASKED, KILLED, Remains(), kills, 1.0)
    assert (found.cause, "rose from 0 to 1" in str(found.words)) == ("oom_suspected", True)
    assert evidence_of(UNASKED, KILLED, Remains(), kills, 1.0) == Evidence()


@pytest.mark.parametrize("end", [_End(asked=True), _End(blame=Blame.START_TIMEOUT)])
def test_what_we_ended_ourselves_was_not_the_kernel(tmp_path: Path, end: _End) -> None:
    """The rise stays for the death that it belongs to; where there never was a process there is nothing to explain."""
    version_1(tmp_path)
    kills = opened(tmp_path)
    write(tmp_path, {OWN_V1: control(1)})
    assert evidence_of(end, KILLED, Remains("RLIMIT_AS was 1 B"), kills, 1.0) == Evidence()
    assert evidence_of(UNASKED, None, Remains(), kills, 1.0) == Evidence()
    assert evidence_of(UNASKED, KILLED, Remains(), kills, 1.0).cause == "oom_suspected"


# -- limits --------------------------------------------------------------------------------------------------------------


_DYING = """
import os, resource, sys
kept = bytearray(20 << 20)
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), resource.RLIM_INFINITY))
os.kill(os.getpid(), int(sys.argv[2]))
"""


def died(limit: int, number: signal.Signals) -> tuple[ExitStatus, Remains]:
    """The end of a child that had 20 MiB and this limit of address space when this signal came."""
    line = [sys.executable, "-S", "-c", _DYING, str(limit), str(int(number))]
    pid = os.posix_spawn(sys.executable, line, {})
    pidfd = os.pidfd_open(pid)
    try:
        assert processes.await_exit(pidfd, 30)
        status = processes.peek_exit(pidfd)
    finally:
        os.close(pidfd)
    assert status is not None
    return status, bury(pid, status)


def test_a_crash_below_a_limit_is_told_with_it() -> None:
    """The limit of the zombie and its peak are facts; the cause stays the signal."""
    status, remains = died(64 << 30, signal.SIGABRT)
    assert remains.limits == "RLIMIT_AS was 64.00 GiB"
    assert remains.peak is not None and remains.peak >= 20 << 20
    found = evidence_of(UNASKED, status, remains, OomKills(), 0.0)
    assert found.cause is None
    assert str(found.words).startswith("RLIMIT_AS was 64.00 GiB; at most ")


@pytest.mark.parametrize(
    ("limit", "number"), [(resource.RLIM_INFINITY, signal.SIGABRT), (64 << 30, signal.SIGTERM)]
)
def test_no_limit_or_no_crash(limit: int, number: signal.Signals) -> None:
    """There is nothing to tell."""
    status, remains = died(limit, number)
    assert remains.limits is None
    assert evidence_of(UNASKED, status, remains, OomKills(), 0.0) == Evidence()


def test_the_dead_that_somebody_else_took() -> None:
    """Nothing is known of their memory."""
    assert bury(2**22 + 1, ExitStatus()) == Remains()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("oom_kill 12", 12),
        ("oom 1\noom_kill 0", 0),
        ("oom_kill x", None),
        ("oom_kill", None),
        ("", None),
        (None, None),
    ],
)
def test_lines_of_counters(text: str | None, count: int | None) -> None:
    """Exactly the name, and a number."""
    assert counted_in(text, "oom_kill") == count
