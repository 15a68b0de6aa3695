"""What can happen to spares and worn workers: rules for the histories of `test_core`, and moves for its walk."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from property.simulation import Simulation, Stage

from modelsupervisor.core import events as ev
from modelsupervisor.core.states import Phase, SlotKey, SpareKey, Wear

PICK = st.integers(0, 5)


def spare_news(key: SpareKey, now: float) -> list[ev.SpareEvent]:
    """Everything that can be said of a spare."""
    return [
        ev.SpareBorn(key, now),
        ev.SpareParked(key, now),
        ev.SpareExited(key, now, "late"),
        ev.SpareExited(key, now, "late", spawned=False),
    ]


class SpareRules(RuleBasedStateMachine):
    """Rules are what can happen; a rule whose subject is not there is not drawn."""

    world: Simulation

    @precondition(lambda self: self.world.unborn_spares())
    @rule(pick=PICK)
    def bear_spare(self, pick: int) -> None:
        spares = self.world.unborn_spares()
        self.world.bear_spare(spares[pick % len(spares)])

    @precondition(lambda self: self.world.unborn_spares())
    @rule(pick=PICK)
    def fail_birth_of_spare(self, pick: int) -> None:
        spares = self.world.unborn_spares()
        self.world.end_spare(spares[pick % len(spares)])

    @precondition(lambda self: self.world.silent_spares())
    @rule(pick=PICK)
    def park(self, pick: int) -> None:
        spares = self.world.silent_spares()
        self.world.park(spares[pick % len(spares)])

    @precondition(lambda self: self.world.living_spares(Stage.BORN, Stage.PARKED))
    @rule(pick=PICK)
    def end_spare(self, pick: int) -> None:
        spares = self.world.living_spares(Stage.BORN, Stage.PARKED)
        self.world.end_spare(spares[pick % len(spares)])

    @precondition(lambda self: self.world.living_spares(Stage.BORN, Stage.PARKED))
    @rule(deaths=st.integers(2, 12), parked=st.booleans(), waits=st.booleans())
    def spares_crash(self, deaths: int, parked: bool, waits: bool) -> None:
        """The newest spare dies, and so does each that is born after it, at once or as soon as it may be."""
        for _ in range(deaths):
            for spare in self.world.unborn_spares():
                self.world.bear_spare(spare)
            spares = self.world.living_spares(Stage.BORN, Stage.PARKED)
            if spares and spares[-1].stage is Stage.BORN and parked:
                self.world.park(spares[-1])
            if spares and spares[-1].there:
                self.world.end_spare(spares[-1])
            elif waits:
                self.world.wake()

    @precondition(lambda self: self.world.alive(Stage.READY))
    @rule(pick=PICK, wear=st.sampled_from(Wear))
    def wear(self, pick: int, wear: Wear) -> None:
        processes = self.world.alive(Stage.READY)
        self.world.wear(processes[pick % len(processes)], wear)

    # News of what is no more

    @precondition(lambda self: self.world.forgotten_spares())
    @rule(pick=PICK)
    def old_spare(self, pick: int) -> None:
        spares = self.world.forgotten_spares()
        for news in spare_news(spares[pick % len(spares)].key, self.world.now):
            self.world.feed_stale(news)

    @rule(model=st.sampled_from("a?"))
    def unknown_spare(self, model: str) -> None:
        for news in spare_news(SpareKey(model, 10**9), self.world.now):
            self.world.feed_stale(news)

    @precondition(lambda self: self.world.forgotten())
    @rule(pick=PICK)
    def old_wear(self, pick: int) -> None:
        processes = self.world.forgotten()
        process, now = processes[pick % len(processes)], self.world.now
        for key in (process.key, SlotKey("?", 0)):
            worn = ev.WorkerWorn(key, process.generation, now, Wear.REQUESTS, "late")
            self.world.feed_stale(worn)


def spare_moves(world: Simulation) -> list[Callable[[Simulation], None]]:
    """What can happen next to the spares of a small world that has some, each as a function on a copy of it."""
    found: list[Callable[[Simulation], None]] = []
    for spare in world.unborn_spares():
        key = spare.key
        found.append(lambda w, k=key: w.bear_spare(w.spares[k]))  # type: ignore[misc]
        found.append(lambda w, k=key: w.end_spare(w.spares[k]))  # type: ignore[misc]
        if spare.stage is Stage.ASKED:
            found.append(lambda w, k=key: w.park(w.spares[k]))  # type: ignore[misc]
    for spare in world.living_spares(Stage.BORN, Stage.PARKED):
        key = spare.key
        found.append(lambda w, k=key: w.end_spare(w.spares[k]))  # type: ignore[misc]
        if spare.stage is Stage.BORN:
            found.append(lambda w, k=key: w.park(w.spares[k]))  # type: ignore[misc]
    if any(model.policy.spares for model in world.state.models.values()):
        for slot in world.state.slots.values():
            if slot.phase is Phase.READY and slot.worn is None:
                name = (slot.key, slot.generation)
                found.append(lambda w, n=name: w.wear(w.processes[n], Wear.MEMORY))  # type: ignore[misc]
    return found
