"""processes.py against real children: looked at, reaped, and never mistaken for somebody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from modelsupervisor.runtime import processes
from modelsupervisor.runtime.processes import ExitStatus
from support.instance import state_of, wait_for

Spawn = Callable[..., int]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Forks a child that runs a shell command; the test reaps it, or it is killed and reaped afterwards."""
    pids: list[int] = []

    def make(command: str, *, session: bool = False) -> int:
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", command], dict(os.environ), setsid=session)
        pids.append(pid)
        return pid

    yield make
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def ended(pid: int) -> int:
    """Wait for a child's end without reaping it; its pidfd."""
    pidfd = os.pidfd_open(pid)
    wait_for(lambda: state_of(pid) == "Z", "the child to end")
    return pidfd


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("exit 0", ExitStatus(code=0), "exited with code 0"),
        ("exit 7", ExitStatus(code=7), "exited with code 7"),
        ("kill -TERM $$", ExitStatus(signal=15), "killed by SIGTERM"),
        ("kill -35 $$", ExitStatus(signal=35), "killed by signal 35"),
    ],
)
def test_an_end_is_looked_at_before_it_is_reaped(
    spawn: Spawn, command: str, status: ExitStatus, words: str
) -> None:
    """Peeking tells all and leaves the zombie; reaping takes it away; after that nobody knows."""
    pid = spawn(command)
    pidfd = ended(pid)
    assert processes.peek_exit(pidfd) == processes.peek_exit(pidfd) == status
    assert str(status) == words
    assert processes.is_zombie(pid) and processes.is_child(pid)
    processes.reap(pidfd)
    assert processes.peek_exit(pidfd) == ExitStatus()
    assert not processes.is_child(pid)
    processes.reap(pidfd)
    os.close(pidfd)


def test_a_living_child(spawn: Spawn) -> None:
    """It has no end yet, can be signalled, and is among our children."""
    pid = spawn("exec sleep 1000")
    pidfd = os.pidfd_open(pid)
    assert processes.peek_exit(pidfd) is None
    assert pid in processes.children() and processes.is_child(pid) and not processes.is_zombie(pid)
    assert not processes.await_exit(pidfd, 0)
    assert processes.send_signal(pidfd, signal.SIGKILL)
    assert processes.await_exit(pidfd, 30)
    processes.reap(pidfd)
    assert not processes.send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


def test_a_stopped_process_is_woken_for_its_last_words(spawn: Spawn) -> None:
    """SIGABRT alone would wait for SIGCONT; no other signal wakes it, and SIGABRT is what it finds when it wakes."""
    pid = spawn("kill -STOP $$; exit 3")
    wait_for(lambda: state_of(pid) == "T", "the child to be stopped")
    pidfd = os.pidfd_open(pid)
    processes.end(pidfd, signal.SIGTERM)
    assert state_of(pid) == "T"
    os.close(pidfd)
    other = spawn("kill -STOP $$; exit 3")
    wait_for(lambda: state_of(other) == "T", "the child to be stopped")
    pidfd = os.pidfd_open(other)
    processes.end(pidfd, signal.SIGABRT)
    assert processes.await_exit(pidfd, 10.0)
    assert processes.peek_exit(pidfd) == ExitStatus(signal=signal.SIGABRT, core=False)
    os.close(pidfd)


@pytest.mark.parametrize("pid", [0, -1, 1, 2**31, 2**70])
def test_numbers_that_are_no_child_of_ours(pid: int) -> None:
    """Whatever number a process names, asking is safe."""
    assert not processes.is_child(pid)


def test_no_other_child_is_reaped(spawn: Spawn) -> None:
    """The unknown dead are seen one at a time and taken by pid: a subprocess of somebody else keeps its status."""
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as other:
        wait_for(lambda: state_of(other.pid) == "Z", "the other child to end")
        found = processes.peek_any_child()
        assert found == (other.pid, ExitStatus(code=3))
        assert other.wait() == 3
    pid = spawn("exit 1")
    os.close(ended(pid))
    processes.reap_pid(pid)
    assert processes.peek_any_child() is None
    processes.reap_pid(pid)


def test_a_session_goes_with_its_leader(spawn: Spawn) -> None:
    """All members of the dead leader's session are killed, those in a process group of their own too; nobody else."""
    script = "sleep 1000 & setsid sleep 1001 & sh -c 'set -m; sleep 1002 & wait' & exec sleep 1003"
    neighbour = spawn("exec sleep 1000")
    leader = spawn(script, session=True)

    def members() -> list[int]:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [pid for pid in pids if session_of(pid) == leader]

    wait_for(lambda: len(members()) >= 4, "the session to be there")
    wait_for(lambda: sleeper(1001), "the one that left")
    left = sleeper(1001)
    os.kill(leader, signal.SIGKILL)
    pidfd = ended(leader)
    expected = set(members()) - {leader}
    assert set(processes.kill_session(leader)) == expected
    processes.reap(pidfd)
    os.close(pidfd)
    wait_for(
        lambda: not [pid for pid in expected if state_of(pid) not in (None, "Z")], "them to die"
    )
    assert state_of(neighbour) != "Z"
    assert left is not None and state_of(left) not in (None, "Z")
    os.kill(left, signal.SIGKILL)


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def sleeper(seconds: int) -> int | None:
    """The pid of `sleep SECONDS`."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as cmdline:
                    if cmdline.read() == b"sleep\0%d\0" % seconds:
                        return int(name)
            except OSError:
                continue
    return None


def test_the_name_of_a_process(spawn: Spawn) -> None:
    """For people; a process that is gone has none."""
    pid = spawn("exec sleep 1000")
    wait_for(lambda: processes.command_of(pid) == "sleep", "the exec")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert processes.command_of(pid) == "unknown"
    assert processes.is_zombie(pid)


def test_waiting_has_a_limit(spawn: Spawn) -> None:
    """`await_exit` gives up in time."""
    pidfd = os.pidfd_open(spawn("exec sleep 1000"))
    begun = time.monotonic()
    assert not processes.await_exit(pidfd, 0.05)
    assert 0.04 < time.monotonic() - begun < 5
    os.close(pidfd)
