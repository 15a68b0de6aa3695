"""A core and a clock for table tests: each method is one thing that happens, and returns what the core asks for.

`History` keeps no kernel (`property.simulation` does): a test says what happens, in the order in which it matters, and looks at
the actions and at the state. After every event the state has to be sound, and the same event has to give the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from unit.spare_soundness import unsound_spares

from modelsupervisor.core import actions as act
from modelsupervisor.core import events as ev
from modelsupervisor.core import initial_state, next_deadline, reduce
from modelsupervisor.core.states import (
    Model,
    Phase,
    Policy,
    Run,
    Slot,
    SlotKey,
    Spare,
    SpareKey,
    State,
    Template,
    TemplateKey,
    TemplatePhase,
    Wanted,
    Wear,
)

A = TypeVar("A", bound=act.Action)
Actions = tuple[act.Action, ...]


def only(actions: Iterable[act.Action], kind: type[A]) -> list[A]:
    """The actions of one kind, in their order."""
    return [action for action in actions if isinstance(action, kind)]


def one(actions: Iterable[act.Action], kind: type[A]) -> A:
    """The one action of its kind."""
    found = only(actions, kind)
    assert len(found) == 1, found
    return found[0]


def notes(actions: Iterable[act.Action]) -> list[str]:
    """The names of the log events, in their order."""
    return [note.event for note in only(actions, act.Note)]


def effects(actions: Iterable[act.Action]) -> list[act.Action]:
    """What is done to processes, without reports, notes and answers."""
    reports = (act.ReportWorkerExit, act.ReportTemplateExit, act.ReportSpareExit)
    words = (act.Note, act.Answer, *reports)
    return [action for action in actions if not isinstance(action, words)]


class History:
    """One supervisor's life. `now` is seconds of the monotonic clock; model `m` where a test has but one.

    `whole_stop` is the supervisor's own stop_timeout in seconds; what else is named are fields of every model's policy. Looks at
    workers are hours apart, unless `response_timeout` is named.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        models: tuple[str, ...] = ("m",),
        exit_on_start_failure: bool = True,
        whole_stop: float = 30.0,
        luck: int = 1,
        **policy: float,
    ) -> None:
        policy.setdefault("response_timeout", 86400.0)
        policies = {name: Policy(workers=workers, **policy) for name in models}  # type: ignore[arg-type]
        self.now = 100.0
        self.state: State = initial_state(
            policies,
            exit_on_start_failure=exit_on_start_failure,
            stop_timeout=whole_stop,
            luck=luck,
        )

    @classmethod
    def running(cls, workers: int = 1, **settings: float) -> History:
        """One model with all its workers READY, some time ago."""
        history = cls(workers, **settings)  # type: ignore[arg-type]
        history.start()
        history.loaded()
        for index in range(workers):
            history.serve(index)
        assert history.state.run is Run.RUNNING
        return history

    def feed(self, event: ev.Event) -> Actions:
        """Tell the core; hold it to what it promises of any answer."""
        before = self.state
        copied = repr(before)
        self.state, actions = reduce(before, event)
        assert repr(before) == copied, "reduce changed the state that it was given"
        assert reduce(before, event) == (self.state, actions), "reduce is not a function"
        problem = unsound(self.state)
        assert problem is None, problem
        return actions

    def seen(self, *sightings: ev.Sighting) -> Actions:
        """The edge has looked at workers."""
        return self.feed(ev.WorkersSeen(self.now, sightings))

    # What there is

    def slot(self, index: int = 0, model: str = "m") -> Slot:
        """A slot as it is now."""
        return self.state.slots[SlotKey(model, index)]

    def phase(self, index: int = 0, model: str = "m") -> Phase:
        """The phase of a slot as it is now."""
        return self.slot(index, model).phase

    def template(self, generation: int, model: str = "m") -> Template | None:
        """A template, or None where it is gone."""
        return self.state.templates.get(TemplateKey(model, generation))

    def spare(self, number: int = 1, model: str = "m") -> Spare | None:
        """A spare, or None where it is gone or was seated."""
        return self.state.spares.get(SpareKey(model, number))

    @property
    def due(self) -> float | None:
        """Seconds until the next deadline; a look at workers is none of these."""
        unseen = {name: replace(model, look_at=None) for name, model in self.state.models.items()}
        deadline = next_deadline(replace(self.state, models=unseen))
        return None if deadline is None else deadline - self.now

    # What happens

    def start(self) -> Actions:
        """The edge is prepared."""
        return self.feed(ev.Started(self.now))

    def after(self, seconds: float) -> Actions:
        """So much time passes, and the edge wakes once."""
        self.now += seconds
        return self.feed(ev.Tick(self.now))

    def wake(self) -> Actions:
        """The next deadline comes."""
        deadline = next_deadline(self.state)
        assert deadline is not None, "nothing is due"
        self.now = deadline
        return self.feed(ev.Tick(deadline))

    def loaded(self, generation: int = 1, model: str = "m") -> Actions:
        """A template has loaded."""
        return self.feed(ev.TemplateLoaded(TemplateKey(model, generation), self.now))

    def template_exited(self, generation: int = 1, model: str = "m") -> Actions:
        """A template is gone."""
        return self.feed(ev.TemplateExited(TemplateKey(model, generation), self.now, "exit code 1"))

    def born(self, index: int = 0, generation: int | None = None, model: str = "m") -> Actions:
        """A birth succeeded."""
        generation = generation or self.slot(index, model).generation
        return self.feed(ev.WorkerBorn(SlotKey(model, index), generation, self.now))

    def birth_failed(self, index: int = 0, generation: int | None = None) -> Actions:
        """A birth failed."""
        generation = generation or self.slot(index).generation
        return self.feed(ev.BirthFailed(SlotKey("m", index), generation, self.now, "EAGAIN"))

    def ready(self, index: int = 0, generation: int | None = None, model: str = "m") -> Actions:
        """A worker says ready."""
        generation = generation or self.slot(index, model).generation
        return self.feed(ev.WorkerReady(SlotKey(model, index), generation, self.now))

    def serve(self, index: int = 0, model: str = "m") -> Actions:
        """A birth succeeded and the worker says ready, at once."""
        return self.born(index, model=model) + self.ready(index, model=model)

    def exited(
        self,
        index: int = 0,
        generation: int | None = None,
        *,
        model: str = "m",
        answered: int = 0,
        in_hand: int = 0,
        declined: bool = False,
    ) -> Actions:
        """A worker is dead."""
        key = SlotKey(model, index)
        generation = generation or self.slot(index, model).generation
        return self.feed(
            ev.WorkerExited(
                key,
                generation,
                self.now,
                "signal 9",
                answered=answered,
                in_hand=in_hand,
                declined=declined,
            )
        )

    def worn(
        self,
        index: int = 0,
        generation: int | None = None,
        wear: Wear = Wear.REQUESTS,
        model: str = "m",
    ) -> Actions:
        """A worker is found to be worn."""
        key = SlotKey(model, index)
        generation = generation or self.slot(index, model).generation
        return self.feed(ev.WorkerWorn(key, generation, self.now, wear, "1,000 requests"))

    def spare_born(self, number: int = 1, model: str = "m") -> Actions:
        """The birth of a spare succeeded."""
        return self.feed(ev.SpareBorn(SpareKey(model, number), self.now))

    def parked(self, number: int = 1, model: str = "m") -> Actions:
        """A spare says that it lacks nothing but a slot."""
        return self.feed(ev.SpareParked(SpareKey(model, number), self.now))

    def park(self, number: int = 1, model: str = "m") -> Actions:
        """The birth of a spare succeeded, and it lacks nothing but a slot, at once."""
        return self.spare_born(number, model) + self.parked(number, model)

    def spare_exited(self, number: int = 1, model: str = "m", *, spawned: bool = True) -> Actions:
        """A spare is gone, or never was."""
        return self.feed(ev.SpareExited(SpareKey(model, number), self.now, "signal 9", spawned))

    def stop(self) -> Actions:
        """TERM."""
        return self.feed(ev.StopRequested(self.now, "SIGTERM"))

    def restart_model(self, command: int = 1, model: str = "m") -> Actions:
        """`restart MODEL`."""
        return self.feed(ev.RestartModelRequested(model, command, self.now))

    def restart_slot(self, index: int = 0, command: int = 1, model: str = "m") -> Actions:
        """`restart MODEL/N`."""
        return self.feed(ev.RestartSlotRequested(SlotKey(model, index), command, self.now))


def unsound(state: State) -> str | None:
    """What is wrong with a state by itself, or None: the invariants that need no history."""
    for slot in state.slots.values():
        problem = _unsound_slot(state, slot)
        if problem is not None:
            return f"{slot.key} {slot.phase.value}: {problem}"
    for template in state.templates.values():
        problem = _unsound_template(state, template)
        if problem is not None:
            return f"{template.key} {template.phase.value}: {problem}"
    for model in state.models.values():
        problem = _unsound_model(state, model) or _unsound_watch(state, model)
        if problem is not None:
            return f"{model.name}: {problem}"
    if state.run is Run.STOPPING and (state.stop_deadline is None) == (state.lost_deadline is None):
        return "a stop has one deadline"
    return unsound_spares(state)


def _unsound_slot(state: State, slot: Slot) -> str | None:
    stopping = state.run in (Run.STOPPING, Run.DONE)
    if len(slot.births) > 20 or list(slot.births) != sorted(slot.births):
        return "its births are not the newest 20 in order"
    if stopping and slot.wanted is Wanted.UP:
        return "wanted although the supervisor stops"
    if slot.live:
        if state.models[slot.key.model].generation == 0:
            return "born before the start"
        return _unsound_live(slot, stopping=stopping)
    left = (slot.born, slot.killed, slot.blame, slot.ready_at, slot.watch)
    if left != (False, False, None, None, None):
        return "something of its last process is left"
    if slot.birth_deadline is not None:
        return "a birth is due that nobody asked for"
    if slot.wanted is Wanted.DOWN or stopping:
        at_rest = slot.phase is Phase.EMPTY and slot.deadline is None
        return None if at_rest else "not wanted, and not at rest"
    return _unsound_wait(state, slot)


def _unsound_live(slot: Slot, *, stopping: bool) -> str | None:
    if stopping and slot.phase not in (Phase.DRAINING, Phase.STOPPING):
        return "not told to go although the supervisor stops"
    if slot.phase in (Phase.READY, Phase.DRAINING) and slot.ready_at is None:
        return "serves without having said so"
    if slot.phase is Phase.READY and not slot.born and slot.birth_deadline is None:
        return "serves, and nobody would see its end"
    if slot.phase is Phase.READY and slot.deadline is not None:
        return "serves with a deadline"
    if slot.phase in (Phase.STARTING, Phase.DRAINING) and slot.deadline is None:
        return "waits for ever"
    if slot.phase is Phase.STOPPING and (slot.deadline is None) != slot.killed:
        return "is not on its way to SIGKILL"
    early = slot.phase in (Phase.STARTING, Phase.READY)
    if slot.birth_deadline is not None and (slot.born or not early):
        return "its birth is over and still due"
    return None


def _unsound_wait(state: State, slot: Slot) -> str | None:
    model = state.models[slot.key.model]
    if slot.phase is Phase.EMPTY and slot.deadline is not None:
        return "nothing is due of an empty slot"
    if slot.deadline is not None or model.generation == 0:
        return None
    template = state.templates.get(TemplateKey(model.name, model.current or 0))
    forks = template is not None and template.phase is TemplatePhase.READY
    return "could be born" if forks else None


def _unsound_model(state: State, model: Model) -> str | None:
    for generation in (model.current, model.candidate):
        if generation is not None and TemplateKey(model.name, generation) not in state.templates:
            return f"its template {generation} is not there"
    restart = model.restart
    if state.run in (Run.STOPPING, Run.DONE):
        at_rest = restart is None and model.retry_at is None
        return None if at_rest else "a restart or a next try is due in a stop"
    served = model.current is not None
    if model.generation > 0 and served == (model.retry_at is not None):
        return "it needs a template or the time of the next try, and not both"
    loading = None if restart is None or restart.loaded else restart.template
    candidate = state.templates.get(TemplateKey(model.name, model.candidate or 0))
    if candidate is not None and candidate.phase is TemplatePhase.LOADING:
        return None if loading == model.candidate else "nobody waits for its candidate"
    if loading is not None:
        template = state.templates.get(TemplateKey(model.name, loading))
        waits = template is not None and template.phase is TemplatePhase.LOADING
        return None if waits else "its restart waits for a template that does not load"
    if restart is None or restart.waiting is None:
        return None if restart is None else "its restart waits for nothing"
    slot = state.slots[SlotKey(model.name, restart.waiting)]
    came = slot.phase is Phase.READY and slot.generation > restart.floor
    return "its restart waits for what has come" if came else None


def _unsound_watch(state: State, model: Model) -> str | None:
    slots = [slot for key, slot in state.slots.items() if key.model == model.name]
    serving = any(slot.phase is Phase.READY for slot in slots)
    if serving != (model.look_at is not None):
        return "a look is due while nobody serves, or none while somebody does"
    return None


def _unsound_template(state: State, template: Template) -> str | None:
    model = state.models[template.key.model]
    serves = template.key.generation in (model.current, model.candidate)
    stopping = state.run in (Run.STOPPING, Run.DONE)
    if template.phase is TemplatePhase.STOPPING:
        on_its_way = (template.deadline is None) == template.killed
        return None if on_its_way else "is not on its way to SIGKILL"
    if template.killed:
        return "killed and not STOPPING"
    if stopping or not serves:
        return "nobody needs it and nobody sent it away"
    if template.phase is TemplatePhase.LOADING and template.deadline is None:
        return "loads for ever"
    if template.phase is TemplatePhase.READY and (template.ready_at is None or template.deadline):
        return "READY with a deadline, or without a time"
    return None
