"""Processes by descriptor: what became of one, how to end it, and what it left behind.

Only pidfds are signalled and waited on, never a pid from memory and never `waitpid(-1)`: a pid can be somebody else by then, and
another reader of exits would steal ours. An exit is looked at twice: first without reaping (`WNOWAIT`), so that the zombie keeps
its pid, its session and its /proc entry while its last words are read, and then for good.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass


def signal_name(number: int) -> str:
    """`SIGKILL` and so on; real-time signals by number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended: `code` for an exit, `signal` (a number) for a death by signal, neither where somebody else reaped it."""

    code: int | None = None
    signal: int | None = None
    core: bool = False

    @property
    def signal_name(self) -> str | None:
        """The name of the signal that ended it, if one did."""
        return None if self.signal is None else signal_name(self.signal)

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by {self.signal_name}" + (" (core dumped)" if self.core else "")
        if self.code is not None:
            return f"exited with code {self.code}"
        return "gone, its status was taken by somebody else"


def _decode(found: os.waitid_result) -> ExitStatus:
    if found.si_code == os.CLD_EXITED:
        return ExitStatus(code=found.si_status)
    return ExitStatus(signal=found.si_status, core=found.si_code == os.CLD_DUMPED)


def peek_exit(pidfd: int) -> ExitStatus | None:
    """The exit status of our child without reaping it; None while it lives."""
    try:
        found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return ExitStatus()
    return None if found is None else _decode(found)


def reap(pidfd: int) -> None:
    """Take a dead child out of the process table."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)


def reap_measured(pid: int) -> int | None:
    """Take a dead child, which was looked at before, out of the process table; the peak of its resident memory in bytes.

    By its number, because only wait4 tells the usage; until it is reaped the number is nobody else's. None where somebody else
    took it.
    """
    try:
        _, _, usage = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return int(usage.ru_maxrss) * 1024 or None


def send_signal(pidfd: int, number: signal.Signals) -> bool:
    """Signal a process by its descriptor; False where it is gone."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def end(pidfd: int, number: signal.Signals) -> None:
    """Send a signal that ends a process; one that is to write its stacks first is woken, should it have been stopped."""
    send_signal(pidfd, number)
    if number is signal.SIGABRT:
        send_signal(pidfd, signal.SIGCONT)


def _others() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def kill_session(session: int) -> list[int]:
    """SIGKILL every process of a session whose leader is dead but not yet reaped; returns their pids.

    The unreaped leader pins the number, so that no new session can have it. A member is opened first and asked again for its
    session, since its pid may have changed hands between the listing and the signal. Asking is a system call of a microsecond;
    reading every /proc/PID/stat instead costs milliseconds on the restart path. Whom it cannot find, or open, for want of a
    descriptor, becomes our child, is reported as an orphan and ends with us.
    """
    killed = []
    for pid in _others():
        if pid == session or session_of(pid) != session:
            continue
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if session_of(pid) == session and send_signal(pidfd, signal.SIGKILL):
                killed.append(pid)
        finally:
            os.close(pidfd)
    return killed


def session_of(pid: int) -> int:
    """The session of a process, -1 where it is gone."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return -1


def peek_any_child() -> tuple[int, ExitStatus] | None:
    """The pid and status of some dead child of ours, not reaped; None where there is none."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if found is None else (found.si_pid, _decode(found))


def is_child(pid: int) -> bool:
    """True for a child of ours, dead or alive; asked of the kernel, since the number may be anybody's word."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (OSError, OverflowError):
        return False
    return True


def kill_child(pid: int) -> None:
    """SIGKILL a child of ours that has no descriptor here; its number is its own until we reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reap_pid(pid: int) -> None:
    """Reap a child that has no descriptor here: an orphan that was reparented to us."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def children() -> list[int]:
    """The pids of our children, the zombies among them."""
    try:
        # No codec that the interpreter would have to load first: that takes a descriptor of its own
        with open("/proc/thread-self/children", encoding="utf-8") as listing:
            return [int(pid) for pid in listing.read().split()]
    except OSError:
        return []  # a kernel without CONFIG_PROC_CHILDREN: living orphans then go unreported


def command_of(pid: int) -> str:
    """The command name of a process, for people."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "unknown"


def is_zombie(pid: int) -> bool:
    """True for a process that is dead and not reaped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def await_exit(pidfd: int, seconds: float) -> bool:
    """Wait for a killed process to be gone; only for the supervisor's own end, when nothing else is left to serve."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def own_time() -> float:
    """Seconds that this thread has computed, or was ready to and waited for a CPU; 0.0 where the kernel does not count them."""
    try:
        with open("/proc/thread-self/schedstat", encoding="utf-8") as counted:
            running, waiting, _ = counted.read().split()
        return (int(running) + int(waiting)) / 1e9
    except (OSError, ValueError):
        return 0.0
