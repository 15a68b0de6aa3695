"""The one wait of the supervisor: an epoll set whose members have ranks.

Life-cycle descriptors (signals, exits, channels) are served before the operator's, and those before output, so that a worker that
floods its stdout cannot put off the news that another one died. A turn serves each ready descriptor once, with bounded work.

A callback may remove other members, and the kernel may give a closed number to a new file within the same turn; so what is served
is the member that was ready, and only while it still is one.

Only `add` can fail for a reason, a limit or a lack of memory, and then nothing is watched. A change or a removal needs nothing
more than the set has; should the kernel refuse one all the same, it is owed and asked again before the next wait, so that no
caller has a second way to go, and what is no member any more wakes nobody for ever.
"""

from __future__ import annotations

import errno
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
    """A descriptor in the set, its rank, what to call with the epoll event mask, and the events that it waits for."""

    __slots__ = ("callback", "events", "fd", "rank")

    def __init__(self, fd: int, rank: Rank, callback: Callable[[int], None], events: int) -> None:
        self.fd = fd
        self.rank = rank
        self.callback = callback
        self.events = events


class Reactor:
    """The epoll set. `open` before use, `close` after."""

    def __init__(self) -> None:
        self._watches: dict[int, Watch] = {}
        self._owed: set[int] = set()  # descriptors whose change or removal the kernel refused
        self._epoll: select.epoll | None = None

    def open(self) -> None:
        """Make the kernel's side of it."""
        self._epoll = select.epoll()

    def close(self) -> None:
        """Let the kernel's side go; the descriptors stay their owners'."""
        self._watches.clear()
        self._owed.clear()
        if self._epoll is not None:
            self._epoll.close()

    def add(
        self, fd: int, rank: Rank, callback: Callable[[int], None], events: int = select.EPOLLIN
    ) -> None:
        """Watch a descriptor. Raises OSError: EPERM for a regular file, ENOSPC or ENOMEM where no more may be watched."""
        assert self._epoll is not None
        try:
            self._epoll.register(fd, events)
        except FileExistsError:  # its removal is owed
            self._epoll.modify(fd, events)
        self._owed.discard(fd)
        self._watches[fd] = Watch(fd, rank, callback, events)

    def change(self, fd: int, events: int) -> None:
        """Watch for other events."""
        watch = self._watches[fd]
        if watch.events != events:
            watch.events = events
            self._bring_up_to_date(fd)

    def pass_on(self, fd: int, callback: Callable[[int], None]) -> None:
        """Call somebody else for a descriptor from now on. It does not leave the set for that: it might not be let in again."""
        self._watches[fd].callback = callback

    def remove(self, fd: int) -> None:
        """Stop watching; to be called before the descriptor is closed. Removing one that is not watched does nothing."""
        if self._watches.pop(fd, None) is not None:
            self._bring_up_to_date(fd)

    def _bring_up_to_date(self, fd: int) -> None:
        assert self._epoll is not None
        watch = self._watches.get(fd)
        self._owed.discard(fd)
        try:
            if watch is not None:
                self._epoll.modify(fd, watch.events)
            else:
                self._epoll.unregister(fd)
        except OSError as error:
            # Closed in the meantime, and so out of the set
            if error.errno not in (errno.ENOENT, errno.EBADF):
                self._owed.add(fd)

    def wait(self, timeout: float | None) -> list[tuple[Watch, int]]:
        """Wait for ready descriptors (None: for ever, else seconds), in the order of their ranks."""
        assert self._epoll is not None
        for fd in list(self._owed):
            self._bring_up_to_date(fd)
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
