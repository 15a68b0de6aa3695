"""The one wait of the supervisor: an epoll set whose members have ranks.

Life-cycle descriptors (signals, exits, channels) are served before the operator's, and those before output, so that a worker that
floods its stdout cannot put off the news that another one died. A turn serves each ready descriptor once, with bounded work.

A callback may remove other members, and the kernel may give a closed number to a new file within the same turn; so what is served
is the member that was ready, and only while it still is one.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from enum import IntEnum


class Rank(IntEnum):
    """The order in which ready descriptors are served."""

    LIFE = 0
    OPERATOR = 1
    OUTPUT = 2


class Watch:
    """A descriptor in the set, its rank and what to call with the epoll event mask."""

    __slots__ = ("callback", "fd", "rank")

    def __init__(self, fd: int, rank: Rank, callback: Callable[[int], None]) -> None:
        self.fd = fd
        self.rank = rank
        self.callback = callback


class Reactor:
    """The epoll set. `open` before use, `close` after."""

    def __init__(self) -> None:
        self._watches: dict[int, Watch] = {}
        self._epoll: select.epoll | None = None

    def open(self) -> None:
        """Make the kernel's side of it."""
        self._epoll = select.epoll()

    def close(self) -> None:
        """Let the kernel's side go; the descriptors stay their owners'."""
        self._watches.clear()
        if self._epoll is not None:
            self._epoll.close()

    def add(
        self, fd: int, rank: Rank, callback: Callable[[int], None], events: int = select.EPOLLIN
    ) -> None:
        """Watch a descriptor. Raises OSError (EPERM) for a regular file."""
        assert self._epoll is not None
        self._epoll.register(fd, events)
        self._watches[fd] = Watch(fd, rank, callback)

    def change(self, fd: int, events: int) -> None:
        """Watch for other events."""
        assert self._epoll is not None
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed. Removing one that is not watched does nothing."""
        if self._watches.pop(fd, None) is not None:
            assert self._epoll is not None
            self._epoll.unregister(fd)

    def wait(self, timeout: float | None) -> list[tuple[Watch, int]]:
        """Wait for ready descriptors (None: for ever, else seconds), in the order of their ranks."""
        assert self._epoll is not None
        # Rounded up to the millisecond that epoll counts in: rounded down, the last millisecond before a deadline would spin.
        wait = -1.0 if timeout is None else math.ceil(max(0.0, timeout) * 1000) / 1000
        most = max(64, len(self._watches))
        found = self._epoll.poll(wait, maxevents=most)
        if not found:
            # A process that was stopped comes out of its wait with EINTR, and the interpreter, seeing the time over, says that
            # nothing is ready without having looked. So look: what others said meanwhile comes before any deadline.
            found = self._epoll.poll(0, maxevents=most)
        ready = [(self._watches[fd], events) for fd, events in found if fd in self._watches]
        ready.sort(key=lambda entry: entry[0].rank)
        return ready

    def still(self, watch: Watch) -> bool:
        """True while this very member is in the set."""
        return self._watches.get(watch.fd) is watch
