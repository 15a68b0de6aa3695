"""What happens: facts from the kernel, the processes, the clock and the operator, as frozen values.

Every event carries `now`, the monotonic time in seconds at which the edge took note of it; the core has no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsupervisor.core.states import SlotKey, SpareKey, TemplateKey, Wear


@dataclass(frozen=True)
class Started:
    """The run directory, the sockets and the FIFOs are made: births may begin."""

    now: float


@dataclass(frozen=True)
class Tick:
    """The clock passed a deadline, or might have."""

    now: float


@dataclass(frozen=True)
class StopRequested:
    """TERM, INT, or an operator's stop. The second one means at once."""

    now: float
    why: str


@dataclass(frozen=True)
class TemplateLoaded:
    """A template has loaded and warmed its model."""

    key: TemplateKey
    now: float


@dataclass(frozen=True)
class TemplateExited:
    """A template is gone (or could not be started); `reason` is one sentence."""

    key: TemplateKey
    now: float
    reason: str


@dataclass(frozen=True)
class WorkerBorn:
    """The process of a generation is known to the edge and can be signalled."""

    key: SlotKey
    generation: int
    now: float


@dataclass(frozen=True)
class BirthFailed:
    """A birth came to nothing: the template could not fork, or died while it did. `reason` is one sentence."""

    key: SlotKey
    generation: int
    now: float
    reason: str


@dataclass(frozen=True)
class WorkerReady:
    """The worker said, on its descriptor, that it serves."""

    key: SlotKey
    generation: int
    now: float


@dataclass(frozen=True)
class WorkerExited:
    """A worker is dead and its last output is read.

    `answered` counts the requests that this generation answered, `in_hand` those it had when it died (both from the scoreboard,
    already bounded by the edge); `declined` says that it reported a failed start of its own; `reason` is one sentence.
    """

    key: SlotKey
    generation: int
    now: float
    reason: str
    answered: int = 0
    in_hand: int = 0
    declined: bool = False


@dataclass(frozen=True)
class RestartModelRequested:
    """An operator wants a model loaded anew and all its workers replaced."""

    model: str
    command: int
    now: float


@dataclass(frozen=True)
class RestartSlotRequested:
    """An operator wants one worker replaced."""

    key: SlotKey
    command: int
    now: float


@dataclass(frozen=True)
class WorkerWorn:
    """A worker has served as much, or holds as much memory, as its model's settings allow; `reason` is one sentence."""

    key: SlotKey
    generation: int
    now: float
    wear: Wear
    reason: str


@dataclass(frozen=True)
class SpareBorn:
    """The process of a spare is known to the edge and can be signalled."""

    key: SpareKey
    now: float


@dataclass(frozen=True)
class SpareParked:
    """A spare said, on its descriptor, that it lacks nothing but a slot."""

    key: SpareKey
    now: float


@dataclass(frozen=True)
class SpareExited:
    """A spare is gone, or never was: `spawned` says which. `reason` is one sentence."""

    key: SpareKey
    now: float
    reason: str
    spawned: bool = True


@dataclass(frozen=True)
class Sighting:
    """What a worker's record says, and how many pings it has answered. `busy_since` is 0.0 for idle.

    The record is written by a process that runs a model's code: only that a number has changed since the last look is to be
    relied on, and even that only as far as the worker is concerned.
    """

    key: SlotKey
    generation: int
    busy_since: float
    answered: int
    echoes: int


@dataclass(frozen=True)
class WorkersSeen:
    """The answer to `LookAtWorkers`; a worker that is gone meanwhile is not in it."""

    now: float
    sightings: tuple[Sighting, ...]


WorkerEvent = WorkerBorn | BirthFailed | WorkerReady | WorkerExited | WorkerWorn
SpareEvent = SpareBorn | SpareParked | SpareExited
Event = (
    Started
    | Tick
    | StopRequested
    | TemplateLoaded
    | TemplateExited
    | WorkersSeen
    | WorkerEvent
    | SpareEvent
    | RestartModelRequested
    | RestartSlotRequested
)
