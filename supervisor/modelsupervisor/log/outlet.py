"""One sink of the log: its buffer, whether it takes, and what is to be said when that changes.

A sink that takes sets the pace: while it accepts at least PACE bytes a second, nothing is dropped for it; once half of its buffer
is full, output is not read any further (`holds`) and a worker that is too fast is slowed by its own FIFO. A sink that does not take
sets nobody's pace: after PATIENCE seconds below that rate output is read on, the buffer fills, and what does not fit is dropped for
this sink alone and counted. So a stopped reader costs inference PATIENCE seconds at most, once, and only where a worker prints
more than its FIFO holds. Time in which this process computed, or waited for a CPU, is not the sink's: on a machine with too much to
do a pipe is emptied long before we come to fill it again [measured: 64 KiB a turn, and turns of 100 ms, look like 0.6 MiB/s].

The bytes go out by a `Port`, which never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from modelsupervisor.log.buffer import SinkBuffer
from modelsupervisor.log.render import Block

RESERVED = 1024 * 1024  # bytes for life-cycle events beyond the limit
WRITE = 1024 * 1024  # bytes of one write: what the largest pipe holds
WRITES = 16  # of one flush: who reads as fast as we write may not keep us here
PATIENCE = 0.25  # seconds
PACE = 1024 * 1024  # bytes a second: below the slowest disk, above a person who reads
TELL_EVERY = 10.0  # seconds between two `log.dropped` of a sink that stays stalled


class PortClosed(Exception):
    """Nobody will ever take what is written here; the argument is the reason."""


class PortFailing(Exception):
    """Nothing can be written now, which may pass; the argument is the reason."""


class Port(Protocol):
    """Where the bytes of a sink go."""

    def write(self, payloads: list[memoryview]) -> int:
        """Take some of these bytes without waiting; 0 for none now. Raises PortFailing, PortClosed."""


class Said(NamedTuple):
    """An event about the sink itself, to be made when the sink is not in the middle of something."""

    level: str
    event: str
    facts: dict[str, Any]


def as_json(block: Block) -> bytes:
    """The form of files and pipes."""
    return block.json


class Outlet:
    """A sink by name. `encode` gives a block the sink's form; a sink that is not `patient` never slows a worker; a flush is at most
    `writes` writes of at most `most` bytes; `own_time` tells the seconds that this process has computed or waited for a CPU."""

    def __init__(
        self,
        name: str,
        port: Port,
        limit: int,
        encode: Callable[[Block], bytes] = as_json,
        *,
        wants: Callable[[Block], bool] | None = None,
        patient: bool = True,
        most: int = WRITE,
        writes: int = WRITES,
        own_time: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.name = name
        self._own_time = own_time
        self.port = port
        self.buffer = SinkBuffer(limit, RESERVED)
        self.closed = ""  # why nothing is taken any more
        self.trouble = ""  # what its owner knows of why it does not take
        self.said: list[Said] = []
        self._encode = encode
        self._wants = wants
        self._patient = patient
        self._most = most
        self._writes = writes
        self._high = limit // 2
        self._since: float | None = None  # begin of the present look at its pace
        self._taken = 0  # bytes since then
        self._own = 0.0  # what `own_time` said then
        self._takes = True  # what the look before that one showed
        self._told_at: float | None = None
        self._count_due = False  # how many were dropped is to be said
        self.stall_told = False  # and its end was not yet
        self._why = ""
        self._failing = False  # the port said so; `trouble` is its

    def put(self, block: Block) -> None:
        """Take a block, or drop and count it; one that it does not want is neither."""
        if self._wants is not None and not self._wants(block):
            return
        if self.closed:
            self.buffer.drop(block.source, block.events)
            return
        if self.buffer.stalled and block.source is not None:
            self.buffer.drop(block.source, block.events)
            return
        payload = self._encode(block)
        if self.buffer.has_room(block.source, len(payload)):
            self.buffer.put(block.source, block.events, payload)
            return
        self.buffer.drop(block.source, block.events)
        if not self.buffer.stalled:
            self.buffer.stalled = True
            self._tell_stall()

    @property
    def reason(self) -> str:
        """Why it takes nothing, as far as is known here."""
        return self.trouble or self.closed or "it does not take what is written"

    def _tell_stall(self) -> None:
        if not self.stall_told:
            self.stall_told = True
            self._why = self.reason
            waiting = self.buffer.size
            self._say("warning", "log.stalled", reason=self._why, buffered_bytes=waiting)
            self._told_at = None

    def _say(self, level: str, event: str, **facts: Any) -> None:
        self.said.append(Said(level, event, {"sink": self.name, **facts}))

    def flush(self, now: float) -> None:
        """Write what is taken without waiting."""
        for _ in range(self._writes):
            if not self.buffer.size:
                break
            try:
                size = self.port.write(self.buffer.next_payloads(self._most))
            except PortFailing as error:
                self._fail(str(error))
                break
            except PortClosed as error:
                self.close(str(error))
                break
            if not size:
                break
            self._taken += size
            self.buffer.took(size)
            self._recover()
        # With trouble left, what was taken only went some way, and that is no end of the stall.
        if self.stall_told and not (self.buffer.stalled or self.trouble or self.closed):
            self.stall_told = False
            self._say("info", "log.resumed", reason=self._why)
            self.tell_dropped()
        elif self.buffer.untold and not self.closed:
            if self._told_at is None:
                self._told_at = now
            elif now - self._told_at > TELL_EVERY:
                self._told_at = now
                self.tell_dropped()

    def _fail(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            self.trouble = f"it cannot be written: {reason}"
            again = "it is tried again with the next event"
            self._say("error", "log.failed", path=None, reason=self.trouble, next=again)

    def _recover(self) -> None:
        if self._failing:
            self._failing = False
            reason, self.trouble = self.trouble, ""
            if not self.stall_told:  # else it is said when half of the buffer is free
                self._say("info", "log.resumed", reason=reason)

    def tell_dropped(self) -> None:
        """Have it said how many events this sink is missing since it was last said."""
        self._count_due = self.buffer.untold > 0

    def take_said(self) -> list[Said]:
        """What there is to say, each once.

        A count waits while more than half of the reserve is used up: dropped itself, it would be missing in every sum.
        """
        room = self.buffer.has_room(None, self.buffer.reserved // 2)
        if self._count_due and room:
            self._count_due = False
            dropped = self.buffer.take_dropped()
            facts = {"lines": dropped.events, "reason": self._why or self.reason}
            self._say("warning", "log.dropped", **facts, streams=dropped.streams)
        said, self.said = self.said, []
        return said

    def close(self, reason: str) -> None:
        """Nothing will be taken any more; everything from here on is counted."""
        if not self.closed:
            self.closed = self._why = reason
            self.buffer.abandon()
            self.buffer.stalled = False
            self._say("error", "log.closed", reason=reason)

    @property
    def backlog(self) -> bool:
        """Something waits."""
        return self.buffer.size > 0

    def holds(self, now: float) -> bool:
        """Whether output should wait for this sink: it is behind, but it takes."""
        if not self._patient or self.closed or self.buffer.size < self._high:
            self._since = None
            return False
        if self._since is None:
            self._since, self._taken, self._takes = now, 0, True
            self._own = self._own_time()
        passed = now - self._since
        if passed >= PATIENCE:
            own = self._own_time()
            waited = max(0.0, passed - (own - self._own))
            self._takes = self._taken > 0 and self._taken >= PACE * waited
            self._since, self._taken, self._own = now, 0, own
        return self._takes and not self.buffer.stalled

    @property
    def brimming(self) -> bool:
        """Whether a sink that takes has a quarter of its buffer left, or less."""
        takes = self._patient and self._takes and not self.closed and not self.buffer.stalled
        return takes and self.buffer.size > self.buffer.limit * 3 // 4

    def hold_ends(self) -> float | None:
        """When `holds` is to be asked again though nothing was taken."""
        holding = self._since is not None and self._takes and not self.buffer.stalled
        return self._since + PATIENCE if holding and self._since is not None else None
