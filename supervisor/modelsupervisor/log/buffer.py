"""What waits for a sink, and the account of what became of every event. Pure.

For every stream and sink, at every moment, events made = logged + dropped + buffered. A payload counts as buffered until its last
byte is taken. Output may fill `limit` bytes; life-cycle events have `reserved` bytes of their own beyond that, so that a flood
which is being dropped cannot take along the event that tells of a worker's end. A block of output that finds half of the limit
free is taken whatever its size: a line may be longer than the limit, and nothing is dropped for a sink that keeps up.

When the limit is reached the sink is *stalled*: output for it is dropped and counted until half of the buffer is free again.
Without that gap a sink at its limit would take one block and drop the next, and the log would be neither whole nor quiet.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

MOST_PAYLOADS = 256  # of one write: a writev takes 1024 (IOV_MAX)


@dataclass
class Tally:
    """Events of one stream (or life-cycle events) for one sink."""

    logged: int = 0
    dropped: int = 0
    buffered: int = 0


class Dropped(NamedTuple):
    """Events that a sink is missing: in all, and by stream where they came from one."""

    events: int
    streams: dict[str, int]


class SinkBuffer:
    """The queue of one sink."""

    def __init__(self, limit: int, reserved: int) -> None:
        self.limit = limit
        self.reserved = reserved
        self.size = 0  # bytes that wait
        self.stalled = False
        self.tallies: dict[str | None, Tally] = {}
        self._queue: deque[tuple[bytes, str | None, int]] = deque()
        self._life = 0  # bytes of life-cycle events among them
        self._sent = 0  # bytes of the first payload that were taken
        self._untold = 0
        self._untold_streams: dict[str, int] = {}

    def _tally(self, source: str | None) -> Tally:
        tally = self.tallies.get(source)
        if tally is None:
            tally = self.tallies[source] = Tally()
        return tally

    def has_room(self, source: str | None, size: int) -> bool:
        """Whether a payload of `size` bytes would be taken; False for output while stalled."""
        if source is None:
            whole = self.limit + self.reserved
            return self._life + size <= self.reserved or self.size + size <= whole
        return not self.stalled and (self.size + size <= self.limit or self.size <= self.limit // 2)

    def put(self, source: str | None, count: int, payload: bytes) -> None:
        """Queue `count` events. The caller has asked for room."""
        self._queue.append((payload, source, count))
        self.size += len(payload)
        self._life += len(payload) if source is None else 0
        self._tally(source).buffered += count

    def drop(self, source: str | None, count: int) -> None:
        """Count events that were not taken."""
        self._tally(source).dropped += count
        self._miss(source, count)

    def _miss(self, source: str | None, count: int) -> None:
        self._untold += count
        if source is not None:
            self._untold_streams[source] = self._untold_streams.get(source, 0) + count

    def next_payloads(self, most: int) -> list[memoryview]:
        """The bytes to be written next, at most `most`, but at least something of what waits."""
        found: list[memoryview] = []
        skip = self._sent
        left = most
        for payload, _, _ in self._queue:
            view = memoryview(payload)[skip : skip + left]
            found.append(view)
            left -= len(view)
            skip = 0
            if left <= 0 or len(found) == MOST_PAYLOADS:
                break
        return found

    def took(self, size: int) -> None:
        """So many bytes were taken; a payload whose last byte was counts as logged."""
        self.size -= size
        size += self._sent
        while self._queue and size >= len(self._queue[0][0]):
            payload, source, count = self._queue.popleft()
            size -= len(payload)
            self._life -= len(payload) if source is None else 0
            tally = self._tally(source)
            tally.buffered -= count
            tally.logged += count
        self._sent = size
        if self.size <= self.limit // 2:
            self.stalled = False

    @property
    def begun(self) -> int:
        """Bytes that are left of a payload whose beginning was taken: until they are, the sink stands in the middle of a line."""
        return len(self._queue[0][0]) - self._sent if self._sent else 0

    def abandon(self) -> None:
        """Nothing of what waits will be taken: count it as dropped."""
        for _, source, count in self._queue:
            tally = self._tally(source)
            tally.buffered -= count
            tally.dropped += count
            self._miss(source, count)
        self._queue.clear()
        self.size = self._life = self._sent = 0

    @property
    def untold(self) -> int:
        """Events that were dropped since `take_dropped`."""
        return self._untold

    def take_dropped(self) -> Dropped:
        """What was dropped since the last call."""
        dropped = Dropped(self._untold, self._untold_streams)
        self._untold, self._untold_streams = 0, {}
        return dropped
