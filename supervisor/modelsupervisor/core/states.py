"""The values that the core keeps: slots, templates, models, and the run as a whole.

Theory of operation
-------------------
A *slot* is a place, `(model, index)`; its socket, its FIFOs and its CPUs belong to the place and outlive every process in it.
Each process that fills it has a *generation*, and news of an older generation changes nothing. What is wanted of a slot
(`wanted`) and what it is (`phase`) are two fields, so that a stop that is under way is never confused with a stop that is asked.

A *template* is the process of a model that has everything loaded and only forks; it has generations of its own. A model has one
`current` template that births come from, and, while an operator's restart is under way, a `candidate` that replaces it once it
has loaded. A template that is neither is retired: nothing is forked from it, and its exit is only waited for.

    slot      EMPTY ─birth→ STARTING ─ready→ READY ─stop→ DRAINING ─deadline→ STOPPING ─exit→ EMPTY
                               └──── exit, not asked for ────┴→ BACKING_OFF ─retry→ STARTING, or FAILED ─slow retry→ STARTING
    template  LOADING ─loaded→ READY ─stop→ STOPPING ─exit→ (gone)
    spare     STARTING ─parked→ PARKED ─seated→ (the process of a slot), or ─stop→ STOPPING ─exit→ (gone)

A *spare* is a worker without a slot: born ahead of time, and ready but for its place. When it is seated it becomes the next
generation of a slot; until then it has a number of its own, and nothing waits for it.

All times are seconds of one monotonic clock, given in with the events; a deadline that is None is not set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Phase(str, Enum):
    """Where a slot is in its life."""

    EMPTY = "EMPTY"  # no process, none due: not wanted, or waiting for a template that loads
    STARTING = "STARTING"  # a birth was asked of the template; the worker has not said ready
    READY = "READY"
    DRAINING = "DRAINING"  # was told to stop: it finishes the batch in hand
    STOPPING = "STOPPING"  # was sent a signal that ends it
    BACKING_OFF = "BACKING_OFF"  # no process; the next birth has a time, or its template has
    FAILED = "FAILED"  # no process; gave up, tries again at a slow pace


LIVE_PHASES = frozenset({Phase.STARTING, Phase.READY, Phase.DRAINING, Phase.STOPPING})
"""The phases in which a slot has a process, or a birth of it is under way."""


class TemplatePhase(str, Enum):
    """Where a template is in its life."""

    LOADING = "LOADING"
    READY = "READY"
    STOPPING = "STOPPING"


class SparePhase(str, Enum):
    """Where a spare is in its life, until it is seated."""

    STARTING = "STARTING"
    PARKED = "PARKED"
    STOPPING = "STOPPING"


class Wear(str, Enum):
    """Why a worker that serves well is to be replaced."""

    REQUESTS = "max_requests"
    MEMORY = "memory_limit"


class Wanted(str, Enum):
    """What the operator wants of a slot."""

    UP = "up"
    DOWN = "down"


class Run(str, Enum):
    """Where the supervisor itself is."""

    STARTING = "STARTING"  # until every slot is READY (or, under `continue`, READY or FAILED)
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    DONE = "DONE"


class Blame(str, Enum):
    """Why we ended a process that nobody asked to stop."""

    START_TIMEOUT = "start_timeout"  # not READY within startup_timeout
    HUNG = "hung"  # a worker past response_timeout, or a template that did not fork when asked


@dataclass(frozen=True, order=True)
class SlotKey:
    """The identity of a slot."""

    model: str
    index: int

    def __str__(self) -> str:
        return f"{self.model}/{self.index}"


@dataclass(frozen=True, order=True)
class TemplateKey:
    """The identity of a template process."""

    model: str
    generation: int


@dataclass(frozen=True, order=True)
class SpareKey:
    """The identity of a spare: `number` counts the spares that a model ever had, from 1."""

    model: str
    number: int


@dataclass(frozen=True)
class Policy:
    """The settings of a model that the core decides by; durations in seconds."""

    workers: int
    startup_timeout: float = 120.0
    stop_timeout: float = 10.0
    stable_after: float = 10.0
    max_failures: int = 5
    retry_failed_after: float = 60.0
    response_timeout: float = 120.0
    spares: int = 0


@dataclass(frozen=True)
class Watch:
    """What was seen of a READY worker at the last look, after which it was pinged."""

    # Busy since, requests answered, pings answered: whatever it gets done changes it
    marker: tuple[float, int, int]
    seen: float
    stuck: float = (
        0.0  # seconds for which the marker was seen not to change while it had something to do
    )
    due: float | None = None  # when to look again without waiting for the others

    @property
    def busy(self) -> bool:
        """A batch is in hand, and not only a ping."""
        return self.marker[0] > 0.0


@dataclass(frozen=True)
class Slot:
    """One slot. `deadline` is that of the present phase: start, stop, kill or retry."""

    key: SlotKey
    wanted: Wanted = Wanted.UP
    phase: Phase = Phase.EMPTY
    generation: int = 0
    template: int = 0  # the generation of the template that the present process was asked from
    born: bool = False  # the edge knows the process, so that it can be signalled
    killed: bool = False  # SIGKILL was sent to the present process
    blame: Blame | None = None
    deadline: float | None = None
    birth_deadline: float | None = None  # by when the template must have forked
    ready_at: float | None = None
    failures: int = 0  # generations in a row that failed (DESIGN §3)
    charged: int = 0  # deaths in a row with a request in hand and without one answer
    births: tuple[float, ...] = ()  # the times of the newest births, at most BIRTHS_KEPT
    seated: bool = False  # the present process was a spare
    worn: Wear | None = None  # the present process is to be replaced, when its turn comes
    watch: Watch | None = None  # of the present process, from the first look at it on

    @property
    def live(self) -> bool:
        """A process is there, or its birth is under way."""
        return self.phase in LIVE_PHASES


@dataclass(frozen=True)
class Template:
    """One template process."""

    key: TemplateKey
    phase: TemplatePhase = TemplatePhase.LOADING
    deadline: float | None = None
    ready_at: float | None = None
    # When it last bore a worker: while it does, births that wait for their turn are not late
    forked_at: float | None = None
    killed: bool = False
    blame: Blame | None = None


@dataclass(frozen=True)
class Spare:
    """One spare. `deadline` is that of the present phase: start or kill."""

    key: SpareKey
    template: int  # the generation of the template that it was asked from
    phase: SparePhase = SparePhase.STARTING
    born: bool = False  # the edge knows the process, so that it can be signalled
    killed: bool = False
    blame: Blame | None = None
    deadline: float | None = None
    birth_deadline: float | None = None
    parked_at: float | None = None


@dataclass(frozen=True)
class Restart:
    """An operator's restart of a model or of one slot, while it is under way.

    `pending` are the indexes still to do, `waiting` is the one being done and must get past `floor`, its generation at the time;
    `done` are those that have come back READY.
    `template` is the generation of the new template, which has to be `loaded` first; None where the present one serves.
    """

    command: int
    pending: tuple[int, ...]
    template: int | None = None
    loaded: bool = False
    waiting: int | None = None
    floor: int = 0
    done: tuple[int, ...] = ()


@dataclass(frozen=True)
class Model:
    """A model: its policy, which template is which, and how its loading goes."""

    name: str
    policy: Policy
    current: int | None = None
    candidate: int | None = None
    generation: int = 0  # of the newest template
    failures: int = 0
    retry_at: float | None = None
    failed: bool = False  # loading failed max_failures times in a row
    restart: Restart | None = None
    # The oldest template of the version that is served: what an older one bore is no spare any more
    version: int = 1
    spares_born: int = 0  # ever
    spare_failures: int = 0  # in a row
    spare_floor: int = 0  # how many had been born when the last failure was counted
    spare_at: float | None = None  # when the next spare may be asked for, where that is not now
    recycling: int | None = None  # the index of the one worn worker that is being replaced
    look_at: float | None = None  # when to look at its READY workers, while there are any


@dataclass(frozen=True)
class State:
    """Everything the core knows. `luck` is the seed of the next jitter."""

    models: Mapping[str, Model]
    slots: Mapping[SlotKey, Slot]
    templates: Mapping[TemplateKey, Template] = field(default_factory=dict)
    spares: Mapping[SpareKey, Spare] = field(default_factory=dict)
    run: Run = Run.STARTING
    exit_on_start_failure: bool = True
    stop_timeout: float = 30.0
    stop_deadline: float | None = None
    lost_deadline: float | None = None  # after SIGKILL to all: when to give up what is left
    exit_code: int = 0
    luck: int = 1
