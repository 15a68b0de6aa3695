"""What is to be done, as frozen values; their order is meaning, and the edge keeps it.

Effects that can fail come back as events (`ForkWorker` as `WorkerBorn` or `BirthFailed`), never as exceptions into the core.
Log events are actions too, so that one assertion covers the decision and its words.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from modelsupervisor.core.states import Blame, SlotKey, SpareKey, TemplateKey, Watch, Wear


class Ending(str, Enum):
    """The signals that the core ends a process with."""

    TERM = "SIGTERM"
    ABORT = "SIGABRT"  # of one that hangs: it dies of it, and its stacks are written before
    KILL = "SIGKILL"


class Next(str, Enum):
    """What happens to a slot or template after an exit."""

    RESTART = "restart"  # a successor was asked for at once
    BACK_OFF = "back_off"  # a successor at a later time
    FAILED = "failed"  # gave up; slow retries
    WAIT = "wait_for_template"
    STOP = "stop"  # the failure ends the supervisor's start
    NONE = "none"  # it was to go


@dataclass(frozen=True)
class StartTemplate:
    """Exec a fresh interpreter for a model's template."""

    key: TemplateKey


@dataclass(frozen=True)
class ForkWorker:
    """Ask a template for the next process of a slot."""

    key: SlotKey
    generation: int
    template: TemplateKey


@dataclass(frozen=True)
class ForkSpare:
    """Ask a template for a worker without a slot."""

    key: SpareKey
    template: TemplateKey


@dataclass(frozen=True)
class SeatSpare:
    """Hand a slot to a parked spare: from here on it is the slot's process, and its news is that of the generation."""

    spare: SpareKey
    key: SlotKey
    generation: int


@dataclass(frozen=True)
class SignalSpare:
    """End a spare by a signal."""

    key: SpareKey
    ending: Ending


@dataclass(frozen=True)
class AbandonSpare:
    """Forget a spare's birth that never came: whatever comes of it must end itself when its channel closes."""

    key: SpareKey


@dataclass(frozen=True)
class TellWorker:
    """Send the stop message: finish the batch in hand, take no more, exit 0."""

    key: SlotKey
    generation: int


@dataclass(frozen=True)
class SignalWorker:
    """End a worker by a signal."""

    key: SlotKey
    generation: int
    ending: Ending


@dataclass(frozen=True)
class LookAtWorkers:
    """Read what these workers' records say, and answer with `WorkersSeen`. All are of one model.

    `whole`: these are all that serve of it, and this is its periodic look; otherwise the time of some of them is up.
    """

    model: str
    keys: tuple[SlotKey, ...]
    whole: bool


@dataclass(frozen=True)
class AskWorker:
    """Send a ping, which the worker answers between two batches."""

    key: SlotKey
    generation: int


@dataclass(frozen=True)
class SignalTemplate:
    """End a template by a signal."""

    key: TemplateKey
    ending: Ending


@dataclass(frozen=True)
class AbandonBirth:
    """Forget a birth that never came: whatever comes of it must end itself when its channel closes."""

    key: SlotKey
    generation: int


@dataclass(frozen=True)
class ReportWorkerExit:
    """Write the one `worker.exited` event (`worker.spawn_failed` where there never was a process)."""

    key: SlotKey
    generation: int
    reason: str
    asked: bool  # it was told to stop
    blame: Blame | None
    next: Next
    delay: float | None = None  # seconds until the next try, where there is one
    failures: int = 0
    spawned: bool = True
    worn: Wear | None = None  # it was to be replaced for this
    watch: Watch | None = None  # what was last seen of it


@dataclass(frozen=True)
class ReportSpareExit:
    """Write the one `spare.exited` event; `delay` is seconds until the next birth of one, where that waits."""

    key: SpareKey
    reason: str
    asked: bool
    blame: Blame | None
    delay: float | None
    failures: int
    spawned: bool


@dataclass(frozen=True)
class ReportTemplateExit:
    """Write the one `template.exited` event."""

    key: TemplateKey
    reason: str
    asked: bool
    blame: Blame | None
    loaded: bool
    next: Next
    delay: float | None = None
    failures: int = 0


@dataclass(frozen=True)
class Note:
    """Write a log event; the edge adds time, seq and the pid that it knows for the slot, template or spare."""

    level: str
    event: str
    slot: SlotKey | None = None
    template: TemplateKey | None = None
    generation: int | None = None
    spare: SpareKey | None = None
    # A model whose section of the configuration file is to be named: whoever reads this has to mend it
    config_of: str | None = None
    fields: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Answer:
    """Answer an operator's restart; `code` is the control protocol's error code where `ok` is false."""

    command: int
    ok: bool
    code: str = ""
    message: str = ""
    keys: tuple[SlotKey, ...] = field(default=())


@dataclass(frozen=True)
class Exit:
    """Nothing is left: clean up and end the supervisor."""

    code: int


WorkerAction = ForkWorker | SeatSpare | TellWorker | SignalWorker | AbandonBirth | ReportWorkerExit
WatchAction = LookAtWorkers | AskWorker
SpareAction = ForkSpare | SignalSpare | AbandonSpare | ReportSpareExit
TemplateAction = StartTemplate | SignalTemplate | ReportTemplateExit
Action = WorkerAction | WatchAction | SpareAction | TemplateAction | Note | Answer | Exit
