"""Thousands of histories of the pure core against its invariants (DESIGN §3).

`Histories` draws what the world does: the moves of `Simulation`, in any order, with processes of every temper. The invariants
that hold between two events are asserted by the simulation itself; at the end of each history two more questions are asked of
two copies of the world: does everything come back when nothing fails any more, and does a stop end in bounded time.
`test_every_interleaving` walks the same moves exhaustively for a small world.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from property.simulation import Simulation, Stage, Temper
from property.spare_rules import PICK, SpareRules, spare_moves

from modelsupervisor.core import events as ev
from modelsupervisor.core.states import Policy, Run, SlotKey, TemplateKey

SHORT = st.sampled_from([0.0, 0.004, 0.05, 0.3, 0.5, 0.999, 1.0, 2.5])
LONG = st.sampled_from([4.0, 9.9, 10.0, 31.0, 61.0, 125.0])

POLICIES = st.builds(
    Policy,
    workers=st.integers(1, 3),
    startup_timeout=st.sampled_from([0.001, 2.0, 30.0, 120.0]),
    stop_timeout=st.sampled_from([0.001, 2.0, 10.0, 50.0]),
    stable_after=st.sampled_from([0.001, 1.0, 10.0]),
    max_failures=st.sampled_from([1, 2, 5, 5, 50]),
    retry_failed_after=st.sampled_from([0.001, 5.0, 60.0]),
    response_timeout=st.sampled_from([0.3, 10.0, 120.0, 120.0]),
    spares=st.integers(0, 2),
)


class Histories(SpareRules):
    """Rules are what can happen; a rule whose subject is not there is not drawn."""

    @initialize(
        models=st.lists(POLICIES, min_size=1, max_size=2),
        exits=st.booleans(),
        stop_timeout=st.sampled_from([0.5, 30.0]),
        luck=st.integers(0, 1 << 64),
        warm=st.sampled_from([True, True, False]),
    )
    def open(
        self, models: list[Policy], exits: bool, stop_timeout: float, luck: int, warm: bool
    ) -> None:
        """A supervisor with one or two models; most histories begin when all is READY."""
        self.world = Simulation(
            dict(zip("ab", models, strict=False)),
            exit_on_start_failure=exits,
            stop_timeout=stop_timeout,
            luck=luck,
        )
        if warm:
            self.world.start()
            self.world.recover()

    def teardown(self) -> None:
        """All comes back in a good world; a stop ends in any."""
        if not hasattr(self, "world"):
            return
        well = self.world.copy()
        if well.state.run in (Run.STARTING, Run.RUNNING):
            well.start()
            well.recover()
        well.finish()
        self.world.finish()

    def there(self, *stages: Stage) -> bool:
        """There is a worker in one of these stages."""
        return bool(self.world.alive(*stages))

    def moulded(self, *stages: Stage) -> bool:
        """There is a template in one of these stages."""
        return any(mould.stage in stages for mould in self.world.moulds.values())

    # Time and operators

    @rule()
    def start(self) -> None:
        self.world.start()

    @rule(seconds=SHORT)
    def moment(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(seconds=LONG)
    def while_(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(seconds=st.one_of(SHORT, LONG))
    def leap(self, seconds: float) -> None:
        self.world.leap(seconds)

    @rule(seconds=SHORT)
    def leap_after_a_look(self, seconds: float) -> None:
        self.world.wake()
        self.world.leap(seconds)

    @precondition(lambda self: self.world.state.run is Run.RUNNING or self.world.stopping_at)
    @rule(dice=st.integers(0, 9))
    def stop(self, dice: int) -> None:
        # Rare, because a history after its stop is a short one.
        if dice == 9 and self.world.state.run is not Run.DONE:
            self.world.stop()

    @precondition(lambda self: self.world.state.run is not Run.DONE)
    @rule(model=st.sampled_from("aab?"))
    def restart_model(self, model: str) -> None:
        self.world.restart_model(model)

    @precondition(lambda self: self.world.state.run is not Run.DONE)
    @rule(model=st.sampled_from("aab?"), index=st.integers(-1, 3))
    def restart_slot(self, model: str, index: int) -> None:
        self.world.restart_slot(SlotKey(model, index))

    @rule(temper=st.sampled_from(Temper))
    def temper(self, temper: Temper) -> None:
        self.world.temper = temper

    @rule(rounds=st.integers(1, 12))
    def serve_well(self, rounds: int) -> None:
        for _ in range(rounds):
            self.world.serve_well()

    @rule()
    def obey(self) -> None:
        self.world.obey()

    # Templates

    @precondition(lambda self: self.moulded(Stage.BORN))
    @rule(pick=PICK)
    def load(self, pick: int) -> None:
        moulds = self.world.templates(Stage.BORN)
        self.world.load(moulds[pick % len(moulds)])

    @precondition(lambda self: self.moulded(Stage.BORN, Stage.READY))
    @rule(pick=PICK, births_first=st.booleans())
    def end_template(self, pick: int, births_first: bool) -> None:
        moulds = self.world.templates(Stage.BORN, Stage.READY)
        mould = moulds[pick % len(moulds)]
        self.world.end_template(mould, "died", births_first=births_first)

    @precondition(lambda self: self.moulded(Stage.READY))
    @rule(pick=PICK)
    def hang(self, pick: int) -> None:
        moulds = self.world.templates(Stage.READY)
        moulds[pick % len(moulds)].hung = True

    # Workers

    @precondition(lambda self: self.world.unborn())
    @rule(pick=PICK)
    def bear(self, pick: int) -> None:
        processes = self.world.unborn()
        self.world.bear(processes[pick % len(processes)])

    @precondition(lambda self: self.world.unborn())
    @rule(pick=PICK)
    def fail_birth(self, pick: int) -> None:
        processes = self.world.unborn()
        self.world.fail_birth(processes[pick % len(processes)])

    @precondition(lambda self: self.world.speechless())
    @rule(pick=PICK)
    def ready(self, pick: int) -> None:
        processes = self.world.speechless()
        self.world.ready(processes[pick % len(processes)])

    @precondition(lambda self: self.there(Stage.BORN, Stage.READY))
    @rule(pick=PICK, answered=st.sampled_from([0, 0, 7]), in_hand=st.sampled_from([0, 0, 3]))
    def die(self, pick: int, answered: int, in_hand: int) -> None:
        processes = self.world.alive(Stage.BORN, Stage.READY)
        process = processes[pick % len(processes)]
        served = process.stage is Stage.READY
        self.world.die(process, answered=answered * served, in_hand=in_hand * served)

    @precondition(lambda self: self.there(Stage.BORN))
    @rule(pick=PICK)
    def decline(self, pick: int) -> None:
        processes = self.world.alive(Stage.BORN)
        self.world.die(processes[pick % len(processes)], declined=True)

    @precondition(lambda self: self.there(Stage.BORN, Stage.READY))
    @rule(deaths=st.integers(2, 25), way=st.sampled_from([(0, 0), (0, 1), (3, 0)]))
    def crash_loop(self, deaths: int, way: tuple[int, int]) -> None:
        """The newest worker dies, and each successor that is born at once does the same."""
        answered, in_hand = way
        key = self.world.alive(Stage.BORN, Stage.READY)[-1].key
        for _ in range(deaths):
            there = [p for p in self.world.unborn() if p.key == key]
            there = there or [p for p in self.world.alive(Stage.BORN, Stage.READY) if p.key == key]
            if not there:
                return
            if not there[0].known:
                self.world.bear(there[0])
            if there[0].stage is Stage.BORN and way != (0, 0):
                self.world.ready(there[0])
            self.world.die(there[0], answered=answered, in_hand=in_hand)

    # Batches, and workers that hang

    @precondition(lambda self: self.world.serving(busy=False))
    @rule(pick=PICK)
    def begin(self, pick: int) -> None:
        processes = self.world.serving(busy=False)
        self.world.begin_batch(processes[pick % len(processes)])

    @precondition(lambda self: self.world.serving(busy=True))
    @rule(pick=PICK)
    def end(self, pick: int) -> None:
        processes = self.world.serving(busy=True)
        self.world.end_batch(processes[pick % len(processes)])

    @precondition(lambda self: self.world.serving(busy=True))
    @rule(pick=PICK, part=st.sampled_from([0.1, 0.5, 0.99]))
    def long_batch(self, pick: int, part: float) -> None:
        """One that takes nearly as long as it may."""
        processes = self.world.serving(busy=True)
        process = processes[pick % len(processes)]
        policy = self.world.state.models[process.key.model].policy
        assert process.busy_since is not None
        left = process.busy_since + part * policy.response_timeout - self.world.now
        if left > 0.0:
            self.world.advance(left)
            if process.stage is Stage.READY and process.aborted_at is None:
                self.world.end_batch(process)

    @precondition(lambda self: self.world.serving(busy=False) or self.world.serving(busy=True))
    @rule(pick=PICK)
    def stand_still(self, pick: int) -> None:
        processes = self.world.serving(busy=False) + self.world.serving(busy=True)
        self.world.stand_still(processes[pick % len(processes)])

    # News of what is no more

    @precondition(lambda self: self.world.forgotten())
    @rule(pick=PICK, kind=st.sampled_from(["born", "ready", "exited", "failed"]))
    def old_worker(self, pick: int, kind: str) -> None:
        processes = self.world.forgotten()
        process = processes[pick % len(processes)]
        self.world.feed_stale(worker_news(kind, process.key, process.generation, self.world.now))

    @rule(kind=st.sampled_from(["born", "ready", "exited", "failed"]), model=st.sampled_from("a?"))
    def unknown_worker(self, kind: str, model: str) -> None:
        self.world.feed_stale(worker_news(kind, SlotKey(model, 0), 10**9, self.world.now))

    @precondition(lambda self: self.moulded(Stage.GONE))
    @rule(pick=PICK)
    def old_template(self, pick: int) -> None:
        moulds = self.world.templates(Stage.GONE)
        key = moulds[pick % len(moulds)].key
        self.world.feed_stale(ev.TemplateLoaded(key, self.world.now))
        self.world.feed_stale(ev.TemplateExited(key, self.world.now, "again"))

    @rule(model=st.sampled_from("a?"))
    def unknown_template(self, model: str) -> None:
        key = TemplateKey(model, 10**9)
        self.world.feed_stale(ev.TemplateLoaded(key, self.world.now))
        self.world.feed_stale(ev.TemplateExited(key, self.world.now, "never was"))


def worker_news(kind: str, key: SlotKey, generation: int, now: float) -> ev.Event:
    """One of the four things that can be said of a generation."""
    news: dict[str, ev.Event] = {
        "born": ev.WorkerBorn(key, generation, now),
        "ready": ev.WorkerReady(key, generation, now),
        "exited": ev.WorkerExited(key, generation, now, "late", answered=3, declined=True),
        "failed": ev.BirthFailed(key, generation, now, "late"),
    }
    return news[kind]


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=330,
    stateful_step_count=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    # Shrinking a history of 60 steps takes minutes; what is printed can be replayed as it is.
    phases=[Phase.generate],
)


Moves = Callable[[Simulation], list[Callable[[Simulation], None]]]


def every_move(world: Simulation) -> list[Callable[[Simulation], None]]:
    """Everything that can happen next in a small world, each as a function on a copy of it."""
    found: list[Callable[[Simulation], None]] = []
    for mould in world.templates(Stage.BORN, Stage.READY):
        key = mould.key
        if mould.stage is Stage.BORN:
            found.append(lambda w, k=key: w.load(w.moulds[k]))  # type: ignore[misc]
        found.append(lambda w, k=key: w.end_template(w.moulds[k], "died"))  # type: ignore[misc]
    for process in world.unborn():
        name = (process.key, process.generation)
        found.append(lambda w, n=name: w.bear(w.processes[n]))  # type: ignore[misc]
        found.append(lambda w, n=name: w.fail_birth(w.processes[n]))  # type: ignore[misc]
        if process.stage is Stage.ASKED:
            found.append(lambda w, n=name: w.ready(w.processes[n]))  # type: ignore[misc]
    for process in world.alive(Stage.BORN, Stage.READY):
        name = (process.key, process.generation)
        found.append(lambda w, n=name: w.die(w.processes[n]))  # type: ignore[misc]
        if process.stage is Stage.BORN:
            found.append(lambda w, n=name: w.ready(w.processes[n]))  # type: ignore[misc]
        else:
            found.append(lambda w, n=name: w.die(w.processes[n], in_hand=1))  # type: ignore[misc]
    found += spare_moves(world)
    found.append(Simulation.stop)
    found.append(lambda w: w.restart_model("a"))
    found.append(lambda w: w.restart_slot(SlotKey("a", 0)))
    found.append(lambda w: w.wake())
    return found


def batches_and_looks(world: Simulation) -> list[Callable[[Simulation], None]]:
    """Everything that matters to who hangs: batches, a standstill of the worker or of the supervisor, and time."""
    found: list[Callable[[Simulation], None]] = [Simulation.wake, lambda w: w.leap(7.0)]
    for process in world.alive(Stage.READY):
        name = (process.key, process.generation)
        if process.still_at is not None:
            continue
        if process.busy_since is None:
            found.append(lambda w, n=name: w.begin_batch(w.processes[n]))  # type: ignore[misc]
        else:
            found.append(lambda w, n=name: w.end_batch(w.processes[n]))  # type: ignore[misc]
        found.append(lambda w, n=name: w.stand_still(w.processes[n]))  # type: ignore[misc]
    found.append(lambda w: w.advance(1.0))
    return found


def walk(world: Simulation, depth: int, seen: dict[object, int], moves: Moves = every_move) -> None:
    """Every history of so many moves; a world that was seen with as much depth left is not walked again."""
    if world.state.run is Run.DONE:
        return
    mark = world.mark()
    if seen.get(mark, -1) >= depth:
        return
    seen[mark] = depth
    if depth == 0:
        world.copy().finish()
        return
    for move in moves(world):
        then = world.copy()
        move(then)
        walk(then, depth - 1, seen, moves)


@pytest.mark.parametrize(
    ("workers", "spares", "depth", "warm"),
    [
        (1, 0, 6, False),
        pytest.param(1, 0, 6, True, marks=pytest.mark.slow),
        (1, 0, 5, True),
        pytest.param(2, 0, 5, True, marks=pytest.mark.slow),
        (2, 0, 4, True),
        (1, 1, 5, True),
    ],
    ids=str,
)
def test_every_interleaving(workers: int, spares: int, depth: int, warm: bool) -> None:
    """No order of deaths, births, commands and deadlines breaks an invariant, and from each a stop ends."""
    policy = Policy(workers=workers, spares=spares, max_failures=2)
    world = Simulation({"a": policy}, exit_on_start_failure=False)
    world.start()
    if warm:
        world.recover()
    seen: dict[object, int] = {}
    walk(world, depth, seen)
    assert len(seen) > 300


@pytest.mark.parametrize("timeout", [0.3, 10.0])
def test_every_interleaving_of_batches_and_looks(timeout: float) -> None:
    """No order of batches, looks and standstills ends a worker before its time, or lets one hang."""
    world = Simulation({"a": Policy(workers=1, response_timeout=timeout)})
    world.start()
    world.recover()
    seen: dict[object, int] = {}
    walk(world, 6, seen, batches_and_looks)
    assert len(seen) > 500
