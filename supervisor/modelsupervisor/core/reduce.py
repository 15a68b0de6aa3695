"""The one door of the core: `reduce(state, event) -> (state, actions)`.

Every event has an answer in every phase; news that comes too late (of an older generation, of a template that is gone, after the
end) is answered by changing nothing. `next_deadline` tells the edge how long it may wait; a `Tick` at or after that time moves
the state on, so that the edge never waits for a time that has passed twice running.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from modelsupervisor.core import hangs, recycling, restarts, runs, slots, spares, templates
from modelsupervisor.core.actions import Action
from modelsupervisor.core.events import (
    BirthFailed,
    Event,
    RestartModelRequested,
    RestartSlotRequested,
    SpareBorn,
    SpareEvent,
    SpareExited,
    SpareParked,
    Started,
    StopRequested,
    TemplateExited,
    TemplateLoaded,
    Tick,
    WorkerBorn,
    WorkerEvent,
    WorkerExited,
    WorkerReady,
    WorkersSeen,
    WorkerWorn,
)
from modelsupervisor.core.states import Model, Policy, Run, Slot, SlotKey, State
from modelsupervisor.core.step import Step


def assert_never(value: NoReturn) -> NoReturn:
    """What typing offers from Python 3.11 on: the type checker proves that a match is complete."""
    raise AssertionError(f"no answer for {value!r}")


def initial_state(
    policies: Mapping[str, Policy],
    *,
    exit_on_start_failure: bool = True,
    stop_timeout: float = 30.0,
    luck: int = 1,
) -> State:
    """The state before anything was started: every slot EMPTY and wanted."""
    keys = [SlotKey(name, i) for name, policy in policies.items() for i in range(policy.workers)]
    return State(
        models={name: Model(name, policy) for name, policy in policies.items()},
        slots={key: Slot(key) for key in keys},
        exit_on_start_failure=exit_on_start_failure,
        stop_timeout=stop_timeout,
        luck=luck,
    )


def reduce(state: State, event: Event) -> tuple[State, tuple[Action, ...]]:
    """The next state and what is to be done, in order. Never raises for anything that the world can do."""
    if state.run is Run.DONE:
        return state, ()
    step = Step(state, event.now)
    _apply(step, event)
    for name in step.models:
        restarts.advance(step, name)
        recycling.advance(step, name)
        spares.refill(step, name)
    runs.settle(step)
    for name in step.models:
        hangs.settle(step, name)
    return step.finish()


def _apply(step: Step, event: Event) -> None:
    match event:
        case Started():
            runs.begin(step)
        case Tick():
            _tick(step)
        case StopRequested():
            runs.stop_requested(step, event)
        case TemplateLoaded():
            templates.loaded(step, event)
        case TemplateExited():
            templates.exited(step, event)
        case RestartModelRequested():
            restarts.model_requested(step, event)
        case RestartSlotRequested():
            restarts.slot_requested(step, event)
        case WorkersSeen():
            hangs.seen(step, event)
        case SpareBorn() | SpareParked() | SpareExited():
            _apply_to_spare(step, event)
        case _:
            _apply_to_worker(step, event)


def _apply_to_worker(step: Step, event: WorkerEvent) -> None:
    match event:
        case WorkerBorn():
            slots.born(step, event)
        case BirthFailed():
            slots.birth_failed(step, event)
        case WorkerReady():
            slots.ready(step, event)
        case WorkerExited():
            slots.exited(step, event)
        case WorkerWorn():
            recycling.worn(step, event)
        case _:
            assert_never(event)


def _apply_to_spare(step: Step, event: SpareEvent) -> None:
    match event:
        case SpareBorn():
            spares.born(step, event)
        case SpareParked():
            spares.parked(step, event)
        case SpareExited():
            spares.exited(step, event)
        case _:
            assert_never(event)


def _tick(step: Step) -> None:
    """Serve every deadline that has passed; the draft is read anew each time, since one may settle another."""
    for key in list(step.slots):
        slots.tick(step, step.slots[key])
    for spare in list(step.spares.values()):
        spares.tick(step, spare)
    for template_key in list(step.templates):
        templates.tick(step, step.templates[template_key])
    for name in list(step.models):
        templates.retry(step, step.models[name])
        spares.try_again(step, step.models[name])
        hangs.tick(step, name)
    runs.tick(step)


def next_deadline(state: State) -> float | None:
    """The earliest time at which a Tick has something to do, or None while only events can move the state."""
    if state.run is Run.DONE:
        return None
    return min((time for time in _deadlines(state) if time is not None), default=None)


def _deadlines(state: State) -> Iterable[float | None]:
    for slot in state.slots.values():
        yield slot.deadline
        yield slot.birth_deadline
        yield hangs.due(slot)
    for template in state.templates.values():
        yield template.deadline
    for spare in state.spares.values():
        yield spare.deadline
        yield spare.birth_deadline
    for model in state.models.values():
        yield model.retry_at
        yield model.spare_at
        yield model.look_at
    yield state.stop_deadline
    yield state.lost_deadline
