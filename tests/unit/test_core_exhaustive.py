"""Every phase × every event has an answer (DESIGN §3), from states written down literally, reachable or not.

A state is put together from one slot, what is there of its model's template, the run and a restart. `reduce` must answer all of
them with all events without raising, as a function, and without touching its input. From those that are sound in themselves it
must come to a state that is sound again, and a stop must end. `test_core_exhaustive_spares` has the tables of spares.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple, get_args

import pytest
from unit.history import unsound
from unit.spare_soundness import check_spares

from modelsupervisor.core import actions as act
from modelsupervisor.core import events as ev
from modelsupervisor.core import next_deadline, reduce
from modelsupervisor.core.states import (
    Blame,
    Model,
    Phase,
    Policy,
    Restart,
    Run,
    Slot,
    SlotKey,
    SpareKey,
    State,
    Template,
    TemplateKey,
    TemplatePhase,
    Wanted,
    Watch,
    Wear,
)
from support.notes import check_note

NOW = 1000.0
PAST, SOON = NOW - 1.0, NOW + 5.0
KEY = SlotKey("m", 0)
OTHER = SlotKey("m", 1)
POLICY = Policy(workers=2, max_failures=2)

SLOTS: dict[str, Slot] = {
    name: replace(slot, generation=3, births=(PAST - 50.0,))
    for name, slot in {
        "empty": Slot(KEY),
        "starting, unborn": Slot(
            KEY, phase=Phase.STARTING, template=1, deadline=SOON, birth_deadline=SOON
        ),
        "starting, unborn, late": Slot(
            KEY, phase=Phase.STARTING, template=1, deadline=SOON, birth_deadline=PAST
        ),
        "starting, born": Slot(KEY, phase=Phase.STARTING, template=1, born=True, deadline=SOON),
        "starting, born, late": Slot(
            KEY, phase=Phase.STARTING, template=1, born=True, deadline=PAST
        ),
        "ready": Slot(KEY, phase=Phase.READY, template=1, born=True, ready_at=PAST),
        "ready, unborn": Slot(
            KEY, phase=Phase.READY, template=1, ready_at=PAST, birth_deadline=SOON
        ),
        "ready, unborn, late": Slot(
            KEY, phase=Phase.READY, template=1, ready_at=PAST, birth_deadline=PAST
        ),
        "draining, unborn, late": Slot(
            KEY, phase=Phase.DRAINING, template=1, ready_at=PAST, deadline=PAST
        ),
        "ready, failed before": Slot(
            KEY, phase=Phase.READY, template=1, born=True, ready_at=PAST, failures=1, charged=5
        ),
        "ready, seen busy": Slot(
            KEY,
            phase=Phase.READY,
            template=1,
            born=True,
            ready_at=PAST,
            watch=Watch(marker=(PAST, 1, 1), seen=PAST, stuck=1.0, due=SOON),
        ),
        "ready, its time is up": Slot(
            KEY,
            phase=Phase.READY,
            template=1,
            born=True,
            ready_at=PAST,
            watch=Watch(marker=(0.0, 1, 1), seen=PAST, stuck=POLICY.response_timeout, due=PAST),
        ),
        "hung": Slot(
            KEY,
            phase=Phase.STOPPING,
            template=1,
            born=True,
            ready_at=PAST,
            deadline=SOON,
            blame=Blame.HUNG,
            watch=Watch(marker=(0.0, 1, 1), seen=PAST, stuck=POLICY.response_timeout),
        ),
        "draining": Slot(
            KEY, phase=Phase.DRAINING, template=1, born=True, ready_at=PAST, deadline=SOON
        ),
        "draining, late": Slot(
            KEY, phase=Phase.DRAINING, template=1, born=True, ready_at=PAST, deadline=PAST
        ),
        "stopping": Slot(KEY, phase=Phase.STOPPING, template=1, born=True, deadline=SOON),
        "stopping, late": Slot(KEY, phase=Phase.STOPPING, template=1, born=True, deadline=PAST),
        "stopping, unborn": Slot(KEY, phase=Phase.STOPPING, template=1, deadline=SOON),
        "stopping, unborn, late": Slot(KEY, phase=Phase.STOPPING, template=1, deadline=PAST),
        "stopping, killed": Slot(KEY, phase=Phase.STOPPING, template=1, born=True, killed=True),
        "stopping, blamed": Slot(
            KEY,
            phase=Phase.STOPPING,
            template=1,
            born=True,
            killed=True,
            blame=Blame.START_TIMEOUT,
        ),
        "backing off": Slot(KEY, phase=Phase.BACKING_OFF, deadline=SOON, failures=1),
        "backing off, due": Slot(KEY, phase=Phase.BACKING_OFF, deadline=PAST, failures=1),
        "backing off, waiting": Slot(KEY, phase=Phase.BACKING_OFF),
        "failed": Slot(KEY, phase=Phase.FAILED, deadline=SOON, failures=2),
        "failed, due": Slot(KEY, phase=Phase.FAILED, deadline=PAST, failures=2),
        "failed, waiting": Slot(KEY, phase=Phase.FAILED),
    }.items()
}


class Loading(NamedTuple):
    """What is there of a model's templates."""

    model: Model
    templates: tuple[Template, ...]


def template(generation: int, phase: TemplatePhase, **fields: object) -> Template:
    """A template of model `m`."""
    return Template(TemplateKey("m", generation), phase=phase, **fields)  # type: ignore[arg-type]


M = Model("m", POLICY, generation=2)
READY_1 = template(1, TemplatePhase.READY, ready_at=PAST)
LOADINGS: dict[str, Loading] = {
    "before the start": Loading(replace(M, generation=0), ()),
    "loading": Loading(replace(M, current=1), (template(1, TemplatePhase.LOADING, deadline=SOON),)),
    "loading, late": Loading(
        replace(M, current=1), (template(1, TemplatePhase.LOADING, deadline=PAST),)
    ),
    "ready": Loading(replace(M, current=1), (READY_1,)),
    "ready, another loading": Loading(
        replace(M, current=1, candidate=2),
        (READY_1, template(2, TemplatePhase.LOADING, deadline=SOON)),
    ),
    "ready, another retired": Loading(
        replace(M, current=2),
        (
            template(1, TemplatePhase.STOPPING, ready_at=PAST, deadline=SOON),
            template(2, TemplatePhase.READY, ready_at=PAST),
        ),
    ),
    "hung": Loading(
        replace(M, current=1),
        (template(1, TemplatePhase.STOPPING, ready_at=PAST, killed=True, blame=Blame.HUNG),),
    ),
    "retired, late": Loading(
        replace(M, current=2),
        (
            template(1, TemplatePhase.STOPPING, deadline=PAST),
            template(2, TemplatePhase.LOADING, deadline=SOON),
        ),
    ),
    "backing off": Loading(replace(M, failures=1, retry_at=SOON), ()),
    "backing off, due": Loading(replace(M, failures=1, retry_at=PAST), ()),
    "backing off, another loading": Loading(
        replace(M, failures=1, retry_at=SOON, candidate=2),
        (template(2, TemplatePhase.LOADING, deadline=SOON),),
    ),
    "failed": Loading(replace(M, failures=2, retry_at=SOON, failed=True), ()),
    "leaving": Loading(
        replace(M, current=1), (template(1, TemplatePhase.STOPPING, deadline=SOON),)
    ),
    "gone": Loading(M, ()),
}

RESTARTS: dict[str, Restart | None] = {
    "none": None,
    "model, loading": Restart(9, pending=(0, 1), template=2),
    "model, replacing": Restart(9, pending=(1,), template=2, loaded=True, waiting=0, floor=3),
    "slot": Restart(9, pending=(), waiting=0, floor=3),
}

LOOKS_AT = {Phase.READY: PAST}
"""When the next look at a model is due whose first slot is in such a phase; else soon."""

SERVING = Slot(OTHER, phase=Phase.READY, generation=1, template=1, born=True, ready_at=PAST)
OTHERS_UP = (
    SERVING,
    Slot(OTHER, phase=Phase.BACKING_OFF, generation=1, deadline=PAST, failures=1),
)
OTHERS_DOWN = (
    replace(SERVING, phase=Phase.DRAINING, deadline=PAST),
    Slot(OTHER, generation=1),
)

EVENTS: tuple[ev.Event, ...] = (
    ev.Started(NOW),
    ev.Tick(NOW),
    ev.StopRequested(NOW, "test"),
    *(ev.TemplateLoaded(TemplateKey("m", g), NOW) for g in (1, 2, 7)),
    *(ev.TemplateExited(TemplateKey("m", g), NOW, "died") for g in (1, 2, 7)),
    *(ev.WorkerBorn(KEY, g, NOW) for g in (2, 3, 4)),
    *(ev.BirthFailed(KEY, g, NOW, "EAGAIN") for g in (2, 3, 4)),
    *(ev.WorkerReady(KEY, g, NOW) for g in (2, 3, 4)),
    *(ev.WorkerExited(KEY, g, NOW, "died") for g in (2, 3, 4)),
    ev.WorkerExited(KEY, 3, NOW, "died", in_hand=1),
    ev.WorkerExited(KEY, 3, NOW, "died", answered=4),
    ev.WorkerExited(KEY, 3, NOW, "died", declined=True),
    *(ev.WorkerWorn(KEY, g, NOW, Wear.MEMORY, "300 MiB") for g in (2, 3)),
    ev.SpareBorn(SpareKey("m", 6), NOW),
    ev.SpareParked(SpareKey("m", 6), NOW),
    ev.SpareExited(SpareKey("m", 6), NOW, "died"),
    *(
        ev.WorkersSeen(NOW, (ev.Sighting(KEY, g, busy, answered=1, echoes=1),))
        for g, busy in ((2, 0.0), (3, 0.0), (3, PAST))
    ),
    ev.WorkersSeen(NOW, ()),
    ev.RestartModelRequested("m", 5, NOW),
    ev.RestartModelRequested("?", 6, NOW),
    ev.RestartSlotRequested(KEY, 7, NOW),
    ev.RestartSlotRequested(SlotKey("m", 2), 8, NOW),
)


def states(run: Run, *, exits: bool) -> Iterator[State]:
    """Every slot × every loading × every restart, in a run; another slot of the model stands beside."""
    down = run in (Run.STOPPING, Run.DONE)
    others = OTHERS_DOWN if down else OTHERS_UP
    for slot, loading, restart, other in itertools.product(
        SLOTS.values(), LOADINGS.values(), RESTARTS.values(), others
    ):
        wanted = Wanted.DOWN if down else Wanted.UP
        serving = Phase.READY in (slot.phase, other.phase)
        looks = LOOKS_AT.get(slot.phase, SOON) if serving else None
        yield State(
            models={"m": replace(loading.model, restart=restart, look_at=looks)},
            slots={s.key: replace(s, wanted=wanted) for s in (slot, other)},
            templates={t.key: t for t in loading.templates},
            run=run,
            exit_on_start_failure=exits,
            stop_deadline=SOON if down else None,
        )


def stop_ends(state: State) -> None:
    """Two stops and then only the clock: DONE, in a bounded number of steps."""
    now = NOW
    for _ in range(2):
        state, _ = reduce(state, ev.StopRequested(now, "test"))
    for _ in range(12):
        if state.run is Run.DONE:
            return
        due = next_deadline(state)
        assert due is not None, "a stop that waits for ever"
        now = max(now, due)
        state, _ = reduce(state, ev.Tick(now))
    raise AssertionError("a stop that does not end")


def test_the_tables_are_complete() -> None:
    """Each phase of a slot and of a template, each run and each event type stands in them."""
    assert {slot.phase for slot in SLOTS.values()} == set(Phase)
    moulds = [t for loading in LOADINGS.values() for t in loading.templates]
    assert {t.phase for t in moulds} == set(TemplatePhase)
    assert {type(event) for event in EVENTS} == set(get_args(ev.Event))


SOUND_PHASES = {
    Run.STARTING: set(Phase),
    Run.RUNNING: set(Phase),
    Run.STOPPING: {Phase.EMPTY, Phase.DRAINING, Phase.STOPPING},
    Run.DONE: {Phase.EMPTY, Phase.DRAINING, Phase.STOPPING},
}
"""Which phases a sound state has in each run: the proof that the tables below hold what they should."""


@pytest.mark.parametrize("exits", [True, False], ids=["exit", "continue"])
@pytest.mark.parametrize("run", list(Run), ids=lambda run: run.value)
def test_every_state_answers_every_event(run: Run, exits: bool) -> None:
    """No cell of the table raises, lies about its input, or leads from a sound state to an unsound one."""
    sound_phases = set()
    for state in states(run, exits=exits):
        if answers(state, EVENTS):
            sound_phases |= {slot.phase for slot in state.slots.values()}
    assert sound_phases == SOUND_PHASES[run]


def answers(state: State, events: Iterable[ev.Event]) -> bool:
    """Ask for the answer to each event, and say whether the state is a sound one."""
    sound = unsound(state) is None
    for event in events:
        then, actions = reduce(state, event)
        if state.run is Run.DONE:
            assert (then, actions) == (state, ())
        if not sound:
            continue
        problem = unsound(then)
        assert problem is None, f"{problem}\nafter {event}\nin {state}"
        check_answer(state, event, then, actions)
    return sound


def check_answer(
    state: State, event: ev.Event, then: State, actions: tuple[act.Action, ...]
) -> None:
    """What holds for any single answer from a sound state."""
    stopping = then.run in (Run.STOPPING, Run.DONE) and state.run in (Run.STOPPING, Run.DONE)
    beginnings = (act.ForkWorker, act.SeatSpare, act.ForkSpare, act.StartTemplate)
    births = [a for a in actions if isinstance(a, beginnings)]
    assert not (stopping and births), "something is born in a stop"
    for key, slot in state.slots.items():
        forks = [a for a in births if isinstance(a, beginnings[:2]) and a.key == key]
        reports = [a for a in actions if isinstance(a, act.ReportWorkerExit) and a.key == key]
        assert len(forks) <= 1
        if forks and slot.live:
            assert [r.generation for r in reports] == [slot.generation], "two live generations"
        assert then.slots[key].generation == slot.generation + len(forks)
    if isinstance(event, ev.Tick):
        due = next_deadline(then)
        assert due is None or due > event.now, "a deadline in the past twice running"
    for note in actions:
        if isinstance(note, act.Note):
            check_note(note)
    check_spares(state, then, actions)
    answers = [a.command for a in actions if isinstance(a, act.Answer)]
    assert len(answers) == len(set(answers))
    if isinstance(event, (ev.RestartModelRequested, ev.RestartSlotRequested)):
        kept = [m.restart.command for m in then.models.values() if m.restart is not None]
        if then.run is not Run.DONE:
            assert (event.command in answers) != (event.command in kept), "a command is lost"


@pytest.mark.parametrize(
    "run", [Run.STARTING, Run.RUNNING, Run.STOPPING], ids=lambda run: run.value
)
def test_a_stop_ends_from_every_state(run: Run) -> None:
    """After a second stop only the clock is needed."""
    sound = [state for state in states(run, exits=True) if unsound(state) is None]
    assert len(sound) > 25
    for state in sound:
        stop_ends(state)


def test_reduce_is_pure() -> None:
    """The same input gives the same output, and the input is as it was."""
    for state in itertools.islice(states(Run.RUNNING, exits=False), 0, None, 5):
        before = repr(state)
        for event in EVENTS:
            assert reduce(state, event) == reduce(state, event)
        assert repr(state) == before
