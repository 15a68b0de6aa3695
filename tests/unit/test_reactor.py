"""reactor.py: ranks, members that go while others are served, and time-outs."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from modelsupervisor.runtime.reactor import Rank, Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """An open reactor."""
    made = Reactor()
    made.open()
    yield made
    made.close()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Three socket pairs."""
    made = [socket.socketpair() for _ in range(3)]
    yield made
    for pair in made:
        for end in pair:
            end.close()


def test_the_order_of_ranks(
    reactor: Reactor, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """What is ready is served by rank: lives before operators before output."""
    served: list[str] = []
    for (ours, theirs), rank in zip(pairs, (Rank.OUTPUT, Rank.LIFE, Rank.OPERATOR)):
        reactor.add(ours.fileno(), rank, lambda _, rank=rank: served.append(rank.name))
        theirs.send(b"x")
    for watch, events in reactor.wait(1):
        watch.callback(events)
    assert served == ["LIFE", "OPERATOR", "OUTPUT"]


def test_a_member_that_another_removed(
    reactor: Reactor, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """A member removed, or replaced under the same number, within the turn is not served any more."""
    (first, wake_first), (second, wake_second), _ = pairs
    reactor.add(first.fileno(), Rank.LIFE, lambda _: None)
    reactor.add(second.fileno(), Rank.OUTPUT, lambda _: None)
    wake_first.send(b"x")
    wake_second.send(b"x")
    ready = [watch for watch, _ in reactor.wait(1)]
    reactor.remove(second.fileno())
    assert [reactor.still(watch) for watch in ready] == [True, False]
    reactor.add(second.fileno(), Rank.OUTPUT, lambda _: None)
    assert [reactor.still(watch) for watch in ready] == [True, False]


def test_removing_twice(reactor: Reactor, pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Removing what is not watched does nothing; a closed reactor's members are their owners'."""
    ours = pairs[0][0]
    reactor.add(ours.fileno(), Rank.LIFE, lambda _: None)
    reactor.remove(ours.fileno())
    reactor.remove(ours.fileno())
    assert reactor.wait(0) == []


def test_watching_for_room(
    reactor: Reactor, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """`change` asks for other events."""
    ours = pairs[0][0]
    reactor.add(ours.fileno(), Rank.OPERATOR, lambda _: None)
    assert reactor.wait(0) == []
    reactor.change(ours.fileno(), select.EPOLLOUT)
    ((_, events),) = reactor.wait(1)
    assert events & select.EPOLLOUT


@pytest.mark.parametrize("seconds", [0.0, -5.0, 0.0004, 0.02])
def test_the_time_is_never_cut_short(reactor: Reactor, seconds: float) -> None:
    """The wait ends at the time or after it: cut to whole milliseconds, the last one before a deadline would spin."""
    begun = time.monotonic()
    assert reactor.wait(seconds) == []
    assert seconds <= time.monotonic() - begun < 5


def test_a_file_cannot_be_watched(reactor: Reactor) -> None:
    """The kernel's EPERM is the caller's to know."""
    with open(__file__, "rb") as file, pytest.raises(PermissionError):
        reactor.add(file.fileno(), Rank.OUTPUT, lambda _: None)


_STOPPED = """
import os, sys
from modelsupervisor.runtime.reactor import Rank, Reactor
reactor = Reactor()
reactor.open()
reactor.add(0, Rank.LIFE, lambda _: None)
print("waiting", flush=True)
print(len(reactor.wait(0.3)), flush=True)
"""


def test_a_wait_that_was_stopped_past_its_time() -> None:
    """After SIGSTOP and CONT, the time being over, what became ready meanwhile is seen and not taken for a time-out."""
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", _STOPPED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        process.stdin.write(b"x")
        process.stdin.flush()
        time.sleep(0.4)  # longer than its wait: that is what is tested
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == b"1\n"


class Refusing:
    """An epoll set whose next change or removal is refused."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.refusals = 1

    def __getattr__(self, name: str) -> object:
        if name in ("modify", "unregister") and self.refusals:
            self.refusals -= 1
            return self._refuse
        return getattr(self._epoll, name)

    @staticmethod
    def _refuse(*_: int) -> None:
        raise OSError(errno.ENOMEM, "told to")


def test_a_change_or_removal_that_is_refused_is_made_up_for(
    reactor: Reactor, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    """By the next wait at the latest; nobody is woken by what was removed, and it can join again."""
    ours, theirs = pairs[0]
    theirs.send(b"x")
    reactor.add(ours.fileno(), Rank.OPERATOR, lambda _: None)
    kernel = Refusing(reactor._epoll)  # type: ignore[arg-type]
    reactor._epoll = kernel  # type: ignore[assignment]
    reactor.change(ours.fileno(), select.EPOLLOUT)
    ((_, events),) = reactor.wait(0)
    assert (events, kernel.refusals) == (select.EPOLLOUT, 0)
    kernel.refusals = 1
    reactor.remove(ours.fileno())
    reactor.add(ours.fileno(), Rank.OPERATOR, lambda _: None)
    assert [events for _, events in reactor.wait(0)] == [select.EPOLLIN]
    kernel.refusals = 1
    reactor.remove(ours.fileno())
    assert reactor.wait(0) == []
    assert not reactor._owed
