"""What the second book keeps of spares: each as a process, the counts of each model's, and what the next report has to say."""

from __future__ import annotations

from dataclasses import dataclass

from property.books import Stage, Temper

from modelsupervisor.core.slots import SPARE_PAUSE
from modelsupervisor.core.states import Policy, SlotKey, SpareKey, TemplateKey


@dataclass
class Reserve:
    """A spare, from the moment its birth was asked for until it is seated or gone."""

    key: SpareKey
    template: TemplateKey
    asked_at: float
    temper: Temper
    stage: Stage = Stage.ASKED
    known: bool = False
    parked_at: float | None = None
    unwanted_at: float | None = None  # since when the core says so of one that cannot be signalled
    termed_at: float | None = None
    aborted_at: float | None = None
    killed_at: float | None = None
    failed: bool = False  # it was killed because it did not park in time
    abandoned: bool = False
    seated: bool = False
    reports: int = 0

    @property
    def there(self) -> bool:
        """It is alive, or may still come to life, as a spare."""
        return self.stage is not Stage.GONE and not self.abandoned and not self.seated

    @property
    def unborn(self) -> bool:
        """For all that the edge knows it has no process yet."""
        return self.there and not self.known

    @property
    def leaves(self) -> bool:
        """It is on its way out."""
        times = (self.unwanted_at, self.termed_at, self.aborted_at, self.killed_at)
        return any(time is not None for time in times)

    @property
    def going(self) -> bool:
        """It was made to go in a way that its temper minds."""
        asked = self.termed_at or self.aborted_at
        patience = (asked, asked, self.killed_at, None)
        return any(time is not None for time in patience[self.temper : 3])


@dataclass
class SpareCounts:
    """The second book on a model's spares."""

    version: int = 1  # the template that an operator had loaded last, or the first
    asked_for: frozenset[int] = frozenset({1})  # the templates that operators asked for
    newest: int = 0
    failures: int = 0
    floor: int = 0  # the newest spare when a failure was counted last: up to it all are one burst
    not_before: float = 0.0  # the time that the last report promised
    quiet_until: float = 0.0  # a slot has just become READY
    recycled: SlotKey | None = None  # who was told to go last because it is worn


@dataclass(frozen=True)
class Expected:
    """What the next report of a spare has to say."""

    asked: bool
    spawned: bool
    failures: int
    delay: tuple[float, float] | None  # between these


def back_off(policy: Policy, failures: int, *, stable: bool) -> tuple[float, float]:
    """The shortest and the longest wait after so many failures of spares in a row, in seconds."""
    if failures >= policy.max_failures:
        given_up = max(policy.retry_failed_after, SPARE_PAUSE)
        return given_up, given_up
    if stable:
        return SPARE_PAUSE, SPARE_PAUSE
    plain = 0.0 if failures <= 1 else 0.5 * 2.0 ** (failures - 2)
    return min(30.0, plain * 0.8), min(30.0, plain * 1.2)
