"""What the kernel of the simulation keeps: each worker and template as a process, and the second book on each slot."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from modelsupervisor.core.states import SlotKey, TemplateKey, Wear

CLOSE = 1e-6  # seconds; sums of floating point times


class Temper(IntEnum):
    """What it takes to end a process."""

    OBEDIENT = 0  # the stop message
    DEAF = 1  # SIGTERM
    STUBBORN = 2  # SIGKILL
    STUCK = 3  # nothing


class Stage(Enum):
    """How far a process has come. ASKED is a fork or exec that did not happen yet."""

    ASKED = "asked"
    BORN = "born"
    READY = "ready"
    PARKED = "parked"  # a spare's: ready but for a slot
    GONE = "gone"


@dataclass
class Process:
    """A worker, from the moment its birth was asked for."""

    key: SlotKey
    generation: int
    template: TemplateKey
    asked_at: float
    temper: Temper
    stage: Stage = Stage.ASKED
    known: bool = False  # its pid: before its template has told of it, it cannot be signalled
    ready_at: float | None = None
    told_at: float | None = None
    termed_at: float | None = None
    aborted_at: float | None = None
    killed_at: float | None = None
    busy_since: float | None = None
    answered: int = 0
    still_at: float | None = None  # it stands still for ever, with a batch in hand or without
    pinged_at: float | None = None  # the oldest ping that it has not answered
    echoes: int = 0
    done_at: float = 0.0  # when it last began or ended a batch, or answered a ping
    abandoned: bool = False
    reports: int = 0
    seated: bool = False  # it was a spare
    worn: Wear | None = None
    recycled: bool = False  # it was told to go for that

    @property
    def unborn(self) -> bool:
        """For all that the edge knows it has no process yet."""
        return self.there and not self.known

    @property
    def there(self) -> bool:
        """It is alive, or may still come to life as the process of its slot."""
        return self.stage is not Stage.GONE and not self.abandoned

    @property
    def going(self) -> bool:
        """It was made to go in a way that its temper minds."""
        patience = (self.told_at, self.termed_at or self.aborted_at, self.killed_at, None)
        temper = self.temper if self.still_at is None else max(self.temper, Temper.DEAF)
        return any(time is not None for time in patience[temper:3])

    def hear(self, now: float) -> None:
        """Answer the ping, between two batches."""
        if self.pinged_at is not None and self.busy_since is None and self.still_at is None:
            self.pinged_at, self.done_at = None, now
            self.echoes += 1


class Birth(Protocol):
    """What was asked of a template."""

    template: TemplateKey
    asked_at: float
    known: bool


@dataclass
class Mould:
    """A template process."""

    key: TemplateKey
    started_at: float
    temper: Temper
    stage: Stage = Stage.BORN
    hung: bool = False
    termed_at: float | None = None
    aborted_at: float | None = None
    killed_at: float | None = None
    reports: int = 0

    @property
    def going(self) -> bool:
        """It was made to go in a way that its temper minds."""
        asked = self.termed_at or self.aborted_at
        patience = (asked, asked, self.killed_at, None)
        return any(time is not None for time in patience[self.temper : 3])

    @property
    def sent_away(self) -> bool:
        """It was sent a signal that ends it."""
        return (self.termed_at, self.aborted_at, self.killed_at) != (None, None, None)


@dataclass
class Counts:
    """The second book on a slot: what DESIGN §3 counts, until an operator's restart wipes it."""

    failures: int = 0
    charged: int = 0
    births: list[float] = field(default_factory=list)
    not_before: float = 0.0  # the time that the last report promised
    wiped: bool = False
