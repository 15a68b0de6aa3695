"""Who is read, whose batch runs next, who waited too long: decisions without socket or clock.

A connection is in one of four conditions, and the order of its life is read → wait → run → (write)
→ read:

    reading   its peer may send; half a frame may be here, with a clock on it
    waiting   a complete command is here; it is in the queue, and no more of it is read
    running   its batch was taken out of the queue; until `answered` nothing else may run
    writing   the kernel did not take all of its reply; the rest is kept here, with a clock on it,
              and no more is read

Fairness is the queue: a connection has at most one command in it and goes to its end again only
after its reply, so that a peer that sends a hundred frames at once gets one batch for each batch of
every other.

The clock of half a frame starts with its first byte and is not moved by further bytes, so that
trickling buys no time; but what a batch took is given back to a peer whose bytes were lying here
meanwhile. The clock of a stalled reader starts anew with each byte that it takes.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Generic, List, Optional, Set, TypeVar

from modelworker.wire import Command, CommandReader


class Connection:
    """One peer. `since` is when its clock was started (CLOCK_MONOTONIC), 0.0 without one."""

    __slots__ = ("closing", "command", "output", "reader", "since")

    def __init__(self) -> None:
        self.reader = CommandReader()
        self.command: Optional[Command] = None
        self.output: Optional[memoryview] = None
        self.since = 0.0
        self.closing = False  # the reply is the last, and nothing more is read


C = TypeVar("C", bound=Connection)


class Session(Generic[C]):
    """The connections of one worker. Times are CLOCK_MONOTONIC seconds.

    `queue` holds those whose command is complete, the left one's turn first: the caller takes it
    out, runs it, and says `answered` or `stalled` or `gone`. `timed` holds those on which a clock
    is running. Both are there to be tested for being empty, which they are on the way of most
    requests.
    """

    __slots__ = ("_frame_timeout", "queue", "timed")

    def __init__(self, frame_timeout: float) -> None:
        self._frame_timeout = frame_timeout
        self.queue: Deque[C] = deque()
        self.timed: Set[C] = set()

    def received(self, connection: C, chunk: bytes, now: float, busy: float) -> None:
        """Take in bytes of a reading connection.

        `busy` is how long the batch ran that kept us from reading them, in seconds. Raises
        WireError where they are not the protocol.
        """
        connection.reader.feed(chunk)
        if connection.since:
            connection.since += busy
        self._advance(connection, now)

    def _advance(self, connection: C, now: float) -> None:
        """Queue a connection whose next command is here; start its clock where only half of it is."""
        reader = connection.reader
        command = reader.next_command()
        if command is not None:
            connection.command = command
            self.queue.append(connection)
            if connection.since:
                self._stop_clock(connection)
        elif not connection.since and reader.pending:
            self._start_clock(connection, now)

    def answered(self, connection: C, now: float) -> None:
        """Go on reading after a reply that the kernel took whole; a frame that is here queues up.

        Raises WireError where what is here is not the protocol.
        """
        connection.command = None
        if connection.output is not None:
            connection.output = None
            self._stop_clock(connection)
        if connection.reader.pending:
            self._advance(connection, now)

    def stalled(self, connection: C, rest: memoryview, now: float) -> None:
        """Keep the rest of a reply that the kernel did not take."""
        connection.output = rest
        connection.since = 0.0
        self._start_clock(connection, now)

    def gone(self, connection: C) -> None:
        """Forget a connection; a command of it that waits is not run."""
        self.timed.discard(connection)
        if connection.command is not None and connection in self.queue:
            self.queue.remove(connection)

    def expired(self, now: float) -> List[C]:
        """Return the connections whose clock ran out."""
        latest = now - self._frame_timeout
        return [connection for connection in self.timed if connection.since <= latest]

    def patience(self, now: float) -> Optional[float]:
        """Return for how long to wait: 0.0 when a command waits, None when nothing is due."""
        if self.queue:
            return 0.0
        if not self.timed:
            return None
        first = min(connection.since for connection in self.timed)
        return max(0.0, first + self._frame_timeout - now)

    def _start_clock(self, connection: C, now: float) -> None:
        connection.since = now
        self.timed.add(connection)

    def _stop_clock(self, connection: C) -> None:
        connection.since = 0.0
        self.timed.discard(connection)
