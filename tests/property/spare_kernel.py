"""The second book on spares and worn workers: the rules of their births, seats and ends, as seen from the processes.

`SpareKernel` adds to `Kernel` the processes that wait for a slot, and the moves of the world that have to do with them. A spare
that is seated is a `Process` of its slot from there on. As in `Kernel` the rules are written a second time: what a spare may be
born for, who may be seated, how failures count, and when a worn worker may go.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from itertools import chain

from property.books import CLOSE, Birth, Mould, Process, Stage
from property.kernel import Kernel
from property.spare_books import Expected, Reserve, SpareCounts, back_off

from modelsupervisor.core import actions as act
from modelsupervisor.core import events as ev
from modelsupervisor.core.slots import FORK_TIMEOUT, SPARE_PAUSE, TERM_GRACE
from modelsupervisor.core.states import (
    Model,
    Phase,
    Policy,
    Run,
    SlotKey,
    SpareKey,
    SparePhase,
    State,
    TemplateKey,
    TemplatePhase,
    Wanted,
    Wear,
)


def wanted(model: Model) -> int:
    """How many spares a model is to have: one at least while a worker is to be replaced."""
    return max(model.policy.spares, 0 if model.recycling is None else 1)


class SpareKernel(Kernel):
    """The children of one supervisor, spares among them."""

    def __init__(self, policies: dict[str, Policy], **settings: float) -> None:
        super().__init__(policies, **settings)  # type: ignore[arg-type]
        self.spares: dict[SpareKey, Reserve] = {}
        self.spare_counts = {name: SpareCounts() for name in policies}
        self.expected_spare: Expected | None = None
        self.concerned = any(policy.spares for policy in policies.values())  # or somebody is worn

    @abstractmethod
    def feed(self, event: ev.Event) -> tuple[act.Action, ...]:
        """Tell the core, carry out what it wants, and hold it to its invariants."""

    def note_unwanted(self) -> None:
        """See which spares the core has sent away that cannot be signalled yet."""
        for key, kept in self.state.spares.items():
            spare = self.spares.get(key)  # what is asked for by this very answer is not there yet
            if spare is None or not spare.unborn or spare.unwanted_at is not None:
                continue
            if kept.phase is SparePhase.STOPPING:
                spare.unwanted_at = self.now

    # What the core wants ---------------------------------------------------------------------------------------------

    def perform(self, before: State, action: act.Action) -> None:
        match action:
            case act.ForkSpare():
                self._fork_spare(action)
            case act.SeatSpare():
                self._seat(action)
            case act.SignalSpare():
                self._signal_spare(before, action)
            case act.AbandonSpare():
                self._abandon_spare(before, action)
            case act.ReportSpareExit():
                self._report_spare(action)
            case _:
                if isinstance(action, act.ForkWorker):
                    usable = self.usable(action.key.model)
                    assert not usable, "a slot waits for a fork beside a parked spare"
                super().perform(before, action)
                if isinstance(action, act.StartTemplate):
                    self._note_version(action.key)

    def _note_version(self, key: TemplateKey) -> None:
        restart = self.state.models[key.model].restart
        if restart is not None and restart.template == key.generation:
            book = self.spare_counts[key.model]
            book.asked_for = book.asked_for | {key.generation}

    def _fork_spare(self, action: act.ForkSpare) -> None:
        model, book = self.state.models[action.key.model], self.spare_counts[action.key.model]
        assert self.stopping_at is None, "a birth after the stop"
        book.newest += 1
        assert action.key.number == book.newest
        mould = self.moulds[action.template]
        template = self.state.templates[action.template]
        assert template.phase is TemplatePhase.READY, "a birth from a template that cannot fork"
        assert not mould.sent_away, "a retired template"
        assert mould.key.generation >= book.version, "a spare of an old version"
        starts = [p for p in self.processes.values() if p.key.model == model.name and p.there]
        starts = [p for p in starts if p.ready_at is None and not self._sent_away(p)]
        assert not starts, "a spare comes before a slot that starts"
        assert self.now >= book.not_before - CLOSE, "a birth before its back-off is over"
        assert self.now >= book.quiet_until - CLOSE, "a birth beside a first answer"
        here = [s for s in self.spares_of(model.name) if s.failed or not s.leaves]
        assert len(here) < wanted(model), "more spares than are wanted"
        self.spares[action.key] = Reserve(action.key, action.template, self.now, self.temper)

    def _sent_away(self, process: Process) -> bool:
        times = (process.told_at, process.termed_at, process.aborted_at, process.killed_at)
        signalled = any(time is not None for time in times)
        return signalled or self.state.slots[process.key].phase is Phase.STOPPING

    def usable(self, model: str) -> list[Reserve]:
        """The spares that a slot can be given to."""
        version = self.spare_counts[model].version
        return [
            spare
            for spare in self.spares_of(model)
            if spare.stage is Stage.PARKED
            and spare.known
            and not spare.leaves
            and spare.template.generation >= version
        ]

    def spares_of(self, model: str) -> list[Reserve]:
        """The spares of a model that are there."""
        return [s for s in self.spares.values() if s.there and s.key.model == model]

    def _seat(self, action: act.SeatSpare) -> None:
        spare = self.spares[action.spare]
        assert spare in self.usable(action.key.model), "a slot was given to what cannot have it"
        spare.seated = True
        key, generation = action.key, action.generation
        process = Process(key, generation, spare.template, self.now, spare.temper)
        process.stage, process.known, process.seated = Stage.BORN, True, True
        self.begin(process)

    def _signal_spare(self, before: State, action: act.SignalSpare) -> None:
        spare = self.spares[action.key]
        model, book = self.state.models[action.key.model], self.spare_counts[action.key.model]
        assert spare.there and spare.known, "a signal to nobody"
        assert spare.killed_at is None, "a signal after SIGKILL"
        if action.ending is act.Ending.TERM:
            assert spare.termed_at is None, "SIGTERM twice"
            outdated = spare.template.generation < book.version
            too_many = model.policy.spares == 0 and model.recycling is None
            assert outdated or too_many or self.stopping_at is not None, "a spare sent for nothing"
            spare.termed_at = self.now
            return
        if action.ending is act.Ending.ABORT:
            timeout = model.policy.startup_timeout
            too_slow = spare.parked_at is None and self.now >= spare.asked_at + timeout - CLOSE
            assert too_slow and not spare.leaves, "SIGABRT before its time"
            spare.aborted_at, spare.failed = self.now, True
            return
        asked = spare.termed_at or spare.aborted_at
        overdue = asked is not None and self.now >= asked + TERM_GRACE - CLOSE
        just_born = spare.unwanted_at is not None and not before.spares[spare.key].born
        assert overdue or just_born or self.kill_all, "SIGKILL before its time"
        spare.killed_at = self.now

    def _abandon_spare(self, before: State, action: act.AbandonSpare) -> None:
        spare = self.spares[action.key]
        assert spare.unborn, "a process was forgotten"
        timeout = min(FORK_TIMEOUT, self.state.models[action.key.model].policy.startup_timeout)
        late = self.now >= spare.asked_at + timeout - CLOSE
        unwanted = spare.unwanted_at
        gone = unwanted is not None and self.now >= unwanted + TERM_GRACE - CLOSE
        assert late or gone or self.kill_all, "a birth was given up before its time"
        self._expect_spare(before, spare, spawned=False)
        spare.abandoned = True

    def _expect_spare(self, before: State, spare: Reserve, *, spawned: bool) -> None:
        """Work out what its report has to say; `before` is the core's state as it was while the spare was there."""
        policy, book = before.models[spare.key.model].policy, self.spare_counts[spare.key.model]
        asked = spare.leaves and before.spares[spare.key].blame is None
        if asked or self.stopping_at is not None:
            self.expected_spare = Expected(asked, spawned, book.failures, None)
            return
        remaining = max(0.0, book.not_before - self.now, book.quiet_until - self.now)
        low = high = 0.0
        template = self.state.templates.get(spare.template)
        forks = template is not None and template.phase is TemplatePhase.READY
        if spare.key.number > book.floor and (spawned or forks):
            lived = 0.0 if spare.parked_at is None else self.now - spare.parked_at
            stable = spare.parked_at is not None and lived >= policy.stable_after
            book.failures = 1 if stable else book.failures + 1
            book.floor = book.newest
            low, high = back_off(policy, book.failures, stable=stable)
        delay = (max(low, remaining) - CLOSE, max(high, remaining) + CLOSE)
        self.expected_spare = Expected(asked, spawned, book.failures, delay)

    def _report_spare(self, action: act.ReportSpareExit) -> None:
        spare, expected = self.spares[action.key], self.expected_spare
        assert not spare.there and not spare.seated and spare.reports == 0
        spare.reports += 1
        assert expected is not None, "a report without a death"
        self.expected_spare = None
        said = (action.asked, action.spawned, action.failures)
        assert said == (expected.asked, expected.spawned, expected.failures)
        assert (action.delay is None) == (expected.delay is None)
        if action.delay is not None and expected.delay is not None:
            assert expected.delay[0] <= action.delay <= expected.delay[1]
            book = self.spare_counts[action.key.model]
            book.not_before = max(book.not_before, self.now + action.delay)

    def check_recycling(self, process: Process) -> None:
        """A worn worker goes when its replacement is parked, one of a model at a time."""
        model, book = process.key.model, self.spare_counts[process.key.model]
        assert process.worn is not None, "a serving worker was told to go for nothing"
        assert self.usable(model), "a worn worker goes before its replacement is there"
        if book.recycled is not None:
            last = [p for (key, _), p in self.processes.items() if key == book.recycled]
            assert not last[-1].there or not last[-1].recycled, "two go at a time"
            assert not last[-1].there or last[-1].ready_at is not None, "the last one is not back"
        process.recycled, book.recycled = True, process.key

    def births(self) -> Iterable[Birth]:
        return chain(super().births(), self.spares.values())

    # What happens ----------------------------------------------------------------------------------------------------

    def serve_version(self, mould: Mould) -> None:
        """A template is about to say that it has loaded; one that an operator asked for is a new version."""
        book = self.spare_counts[mould.key.model]
        if mould.key.generation in book.asked_for - {book.version} and not mould.sent_away:
            book.version, book.failures = mould.key.generation, 0
            book.not_before = book.quiet_until = 0.0

    def seat_is_warm(self, process: Process) -> None:
        """A worker is about to say ready, in time: it has a moment to itself, and one that was a spare proves them good."""
        model, book = self.state.models[process.key.model], self.spare_counts[process.key.model]
        if process.seated:
            book.failures = 0
        if model.policy.spares or model.recycling is not None:
            book.quiet_until = self.now + SPARE_PAUSE

    def spare_news(self, event: ev.SpareEvent) -> None:
        """Tell of a spare; whatever it is, no slot, no template and no start is held to account for it."""
        before = self.state
        self.feed(event)
        slots = zip(before.slots.values(), self.state.slots.values(), strict=True)
        assert all((a.failures, a.charged) == (b.failures, b.charged) for a, b in slots)
        models = zip(before.models.values(), self.state.models.values(), strict=True)
        assert all((a.failures, a.failed) == (b.failures, b.failed) for a, b in models)
        assert self.state.run is before.run or before.run is Run.STOPPING

    def bear_spare(self, spare: Reserve) -> None:
        """The template forks."""
        if spare.stage is Stage.ASKED:
            spare.stage = Stage.BORN
        spare.known = True
        self.spare_news(ev.SpareBorn(spare.key, self.now))

    def park(self, spare: Reserve) -> None:
        """A spare says that it lacks nothing but a slot, be it before its template has told of it."""
        spare.stage = Stage.PARKED
        if self.state.spares[spare.key].phase is SparePhase.STARTING:  # else it comes too late
            spare.parked_at = self.now
        self.spare_news(ev.SpareParked(spare.key, self.now))

    def end_spare(self, spare: Reserve) -> None:
        """A spare is dead, or its template could not fork it."""
        self._expect_spare(self.state, spare, spawned=spare.known)
        spare.stage = Stage.GONE
        self.spare_news(ev.SpareExited(spare.key, self.now, "died", spare.known))

    def wear(self, process: Process, wear: Wear) -> None:
        """A worker has served as much as it may."""
        slot, self.concerned = self.state.slots[process.key], True
        if slot.phase is Phase.READY and process.worn is None:
            process.worn = wear
        self.feed(ev.WorkerWorn(process.key, process.generation, self.now, wear, "enough"))

    # What holds between any two events -------------------------------------------------------------------------------

    def check(self) -> None:
        super().check()
        if self.state.run is Run.DONE:
            return
        if not self.concerned:
            assert not self.state.spares, "a spare that nobody needs"
            return
        there = {spare.key for spare in self.spares.values() if spare.there}
        assert there == set(self.state.spares), "a spare was forgotten, or made up"
        for key in there:
            self._check_spare(self.spares[key])
        if self.state.run is not Run.STOPPING:
            for model in self.state.models.values():
                self._check_number(model)
                self._check_wear(model)

    def _check_spare(self, spare: Reserve) -> None:
        kept = self.state.spares[spare.key]
        assert spare.leaves == (kept.phase is SparePhase.STOPPING)
        outdated = spare.template.generation < self.spare_counts[spare.key.model].version
        unwanted = outdated or self.stopping_at is not None
        assert spare.leaves or not unwanted, f"{spare.key} is kept for nothing"
        ends = kept.deadline is not None or kept.birth_deadline is not None
        assert spare.known or ends, "nobody would see its end"
        assert spare.parked_at is not None or spare.killed_at is not None or ends, (
            "it may start for ever"
        )

    def _check_number(self, model: Model) -> None:
        book, slots = self.spare_counts[model.name], self.state.slots.items()
        staying = [spare for spare in self.spares_of(model.name) if not spare.leaves]
        failed = [spare for spare in self.spares_of(model.name) if spare.failed]
        assert len(staying) <= wanted(model), "more spares than are wanted"
        mine = [slot for key, slot in slots if key.model == model.name]
        waits = [s for s in mine if not s.live and s.deadline is None and s.wanted is Wanted.UP]
        assert not (waits and self.usable(model.name)), "a slot waits beside a parked spare"
        template = self.state.templates.get(TemplateKey(model.name, model.current or 0))
        forks = template is not None and template.phase is TemplatePhase.READY
        starts = any(slot.phase is Phase.STARTING for slot in mine)
        later = max(book.not_before, book.quiet_until) > self.now - CLOSE
        if forks and not starts and not later:
            enough = len(staying) + len(failed) >= wanted(model)
            assert enough, "a spare is missing and nobody asked for it"

    def _check_wear(self, model: Model) -> None:
        serving = [
            process
            for process in self.processes.values()
            if process.there
            and process.key.model == model.name
            and self.state.slots[process.key].phase is Phase.READY
        ]
        worn = [process for process in serving if process.worn is not None]
        if model.recycling is None:
            assert not worn or model.restart is not None, "nobody minds a worn worker"
            return
        slot = self.state.slots[SlotKey(model.name, model.recycling)]
        process = self.processes[slot.key, slot.generation]
        assert slot.live and (process.worn or process.ready_at is None), "it is long over"
        free = model.restart is None and self.usable(model.name)
        assert not (process in worn and free), "its replacement is there and it is not told"

    def check_books(self) -> None:
        super().check_books()
        left = [spare.key for spare in self.spares.values() if spare.there]
        assert not left or self.exits == [1], "something is left and nobody says so"
        for spare in self.spares.values():
            gone = not spare.there and not spare.seated
            assert spare.reports == int(gone), "one report for each spare that is gone"

    def spares_rest(self) -> bool:
        """All spares are parked, as many as are wanted, and no worker waits for a replacement."""
        for model in self.state.models.values():
            there = self.spares_of(model.name)
            if len(there) != model.policy.spares or len(self.usable(model.name)) != len(there):
                return False
        worn = any(slot.worn is not None for slot in self.state.slots.values())
        return not worn and all(m.recycling is None for m in self.state.models.values())

    # Who there is ----------------------------------------------------------------------------------------------------

    def unborn_spares(self) -> list[Reserve]:
        """Births whose news may come, from templates that are still there and can."""
        moulds = self.moulds
        able = {key for key, m in moulds.items() if m.stage is Stage.READY and not m.hung}
        return [s for s in self.spares.values() if s.unborn and s.template in able]

    def living_spares(self, *stages: Stage) -> list[Reserve]:
        """The spares in these stages whose pid is known, oldest first."""
        return [s for s in self.spares.values() if s.there and s.known and s.stage in stages]

    def silent_spares(self) -> list[Reserve]:
        """The spares that have not said anything yet, their pid known or not."""
        early = (Stage.ASKED, Stage.BORN)
        return [s for s in self.spares.values() if s.there and s.stage in early]

    def forgotten_spares(self) -> list[Reserve]:
        """What is no spare any more: the core knows none of it."""
        return [spare for spare in self.spares.values() if not spare.there]
