"""The pure core, a fake kernel that carries its actions out, and a virtual clock: histories without a process.

A move of the world (a fork that succeeds, a death, a jump of the clock) is a method; it changes the kernel first and then tells
the core, as the edge does. Processes have a `Temper`: they obey the stop message, or only SIGTERM, or only SIGKILL, or are stuck
in the kernel for ever. Two endings ask the last questions of a history: `recover` (when nothing fails any more, is all READY in
bounded time) and `finish` (does a stop end, in bounded time, whatever the tempers).
"""

from __future__ import annotations

import copy
from dataclasses import replace

from property.books import CLOSE, Mould, Process, Stage, Temper
from property.spare_kernel import SpareKernel

from modelsupervisor.core import actions as act
from modelsupervisor.core import events as ev
from modelsupervisor.core import next_deadline, reduce
from modelsupervisor.core.runs import LOST_AFTER
from modelsupervisor.core.slots import FORK_TIMEOUT, TERM_GRACE
from modelsupervisor.core.states import Phase, Run, SlotKey, TemplatePhase

__all__ = ["Simulation", "Stage", "Temper"]


class Simulation(SpareKernel):
    """One history. `now` only grows; `feed` is the only way to the core."""

    def copy(self) -> Simulation:
        """A second world that goes on from here on its own. The core's state is immutable and shared."""
        twin = copy.copy(self)
        twin.processes = {key: copy.copy(process) for key, process in self.processes.items()}
        twin.moulds = {key: copy.copy(mould) for key, mould in self.moulds.items()}
        twin.counts = {
            key: replace(book, births=list(book.births)) for key, book in self.counts.items()
        }
        twin.spares = {key: copy.copy(spare) for key, spare in self.spares.items()}
        twin.spare_counts = {name: replace(book) for name, book in self.spare_counts.items()}
        twin.pending, twin.exits, twin.looks = dict(self.pending), list(self.exits), []
        twin.leaps = list(self.leaps)
        return twin

    # The core --------------------------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> tuple[act.Action, ...]:
        """Tell the core, carry out what it wants, and hold it to its invariants."""
        before = self.state
        self.state, actions = reduce(before, event)
        if before.run is Run.DONE:
            assert (self.state, actions) == (before, ()), "something happened after the end"
            self.expected = self.expected_spare = None
            return ()
        if before.run is not Run.STOPPING and self.state.run in (Run.STOPPING, Run.DONE):
            self.stopping_at = self.stopping_at or self.now
        if self.stopping_at is not None and self.now >= self.stopping_at + before.stop_timeout:
            self.kill_all = True
        self.note_unwanted()
        for action in actions:
            self.perform(before, action)
        assert self.expected is None and self.expected_spare is None, "a death without its report"
        self.check()
        if self.state.run is Run.DONE:
            self.check_books()
        looks, self.looks = self.looks, []
        for look in looks:
            self.feed(ev.WorkersSeen(self.now, tuple(map(self._sighting, look.keys))))
        return actions

    def _sighting(self, key: SlotKey) -> ev.Sighting:
        process = self.processes[key, self.state.slots[key].generation]
        busy_since = process.busy_since or 0.0
        return ev.Sighting(key, process.generation, busy_since, process.answered, process.echoes)

    def feed_stale(self, event: ev.Event) -> None:
        """News of what is no more: nothing changes and nothing is done."""
        before = self.state
        assert self.feed(event) == ()
        assert self.state == before

    # The world -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The edge is prepared."""
        self.feed(ev.Started(self.now))

    def advance(self, seconds: float) -> None:
        """Time passes, and the edge wakes at every deadline."""
        self.advance_to(self.now + seconds)

    def advance_to(self, end: float) -> None:
        """The same, until a given time."""
        while (due := next_deadline(self.state)) is not None and due <= end:
            self.now = max(self.now, due)
            self._hear()
            self.feed(ev.Tick(self.now))
            due = next_deadline(self.state)
            assert due is None or due > self.now, "a deadline in the past twice running"
        if end > self.now:
            self._hear()
        self.now = end

    def _hear(self) -> None:
        """As soon as any time passes, what workers can say is said and heard; before any deadline."""
        for process in self.processes.values():
            process.hear(self.now)

    def leap(self, seconds: float) -> None:
        """The supervisor itself was stopped meanwhile, or the whole machine: one tick, late for everything.

        It comes before anything is heard, as when the stop was between the two; what the workers did meanwhile counts for nothing
        where it was longer than two looks are apart.
        """
        self.now += seconds
        self.leaps.append((self.now, seconds))
        self.feed(ev.Tick(self.now))
        self._hear()

    def wake(self) -> None:
        """The next deadline comes, where there is one."""
        due = next_deadline(self.state)
        if due is not None:
            self.advance_to(max(self.now, due))

    def mark(self) -> object:
        """What two worlds have in common that go on alike: the core's state and the kernel's, as a hashable value."""
        state = self.state
        return (
            self.now,
            *(state.run, state.stop_deadline, state.lost_deadline, state.exit_code, state.luck),
            *(*state.models.values(), *state.slots.values(), *state.templates.values()),
            tuple(state.spares.values()),
            tuple(tuple(vars(process).values()) for process in self.processes.values()),
            tuple(tuple(vars(spare).values()) for spare in self.spares.values()),
            tuple(tuple(vars(mould).values()) for mould in self.moulds.values()),
            tuple(self.pending.values()),
        )

    def stop(self) -> None:
        """TERM, or an operator's stop."""
        if self.stopping_at is not None:
            self.kill_all = True
        else:
            self.stopping_at = self.now
        self.feed(ev.StopRequested(self.now, "test"))

    def restart_model(self, model: str) -> None:
        """An operator's `restart MODEL`."""
        self._command(model, None)
        self.feed(ev.RestartModelRequested(model, self.commands, self.now))

    def restart_slot(self, key: SlotKey) -> None:
        """An operator's `restart MODEL/N`."""
        self._command(key.model, key.index)
        self.feed(ev.RestartSlotRequested(key, self.commands, self.now))

    def _command(self, model: str, index: int | None) -> None:
        self.commands += 1
        self.pending[self.commands] = (model, index)
        for key, book in self.counts.items():
            if key.model == model:
                book.wiped = True

    def load(self, mould: Mould) -> None:
        """A template says that it has loaded."""
        mould.stage = Stage.READY
        self.serve_version(mould)
        self.feed(ev.TemplateLoaded(mould.key, self.now))

    def end_template(self, mould: Mould, reason: str, *, births_first: bool = False) -> None:
        """A template is gone, and with it the births that it had not begun."""
        mould.stage = Stage.GONE
        if births_first:
            self._fail_births(mould)
        self.feed(ev.TemplateExited(mould.key, self.now, reason))
        self._fail_births(mould)

    def _fail_births(self, mould: Mould) -> None:
        for process in list(self.processes.values()):
            if process.template == mould.key and process.stage is Stage.ASKED and process.unborn:
                self.fail_birth(process)
        for spare in list(self.spares.values()):
            if spare.template == mould.key and spare.stage is Stage.ASKED and spare.unborn:
                self.end_spare(spare)

    def bear(self, process: Process) -> None:
        """The template forks."""
        if process.stage is Stage.ASKED:
            process.stage = Stage.BORN
        process.known = True
        self.feed(ev.WorkerBorn(process.key, process.generation, self.now))

    def fail_birth(self, process: Process) -> None:
        """The template could not fork."""
        asked = self.asked(self.state, process)
        template = self.state.templates.get(process.template)
        serves = template is not None and template.phase is TemplatePhase.READY
        book = self.counts[process.key]
        book.failures += not asked and serves
        self.expected = (asked, book.failures)
        process.stage = Stage.GONE
        self.feed(ev.BirthFailed(process.key, process.generation, self.now, "EAGAIN"))

    def ready(self, process: Process) -> None:
        """A worker says that it serves, be it before its template has told of it."""
        process.stage = Stage.READY
        if self.state.slots[process.key].phase is Phase.STARTING:  # else it comes too late to count
            process.ready_at = self.now
            self.seat_is_warm(process)
        self.feed(ev.WorkerReady(process.key, process.generation, self.now))

    def die(
        self, process: Process, *, answered: int = 0, in_hand: int = 0, declined: bool = False
    ) -> None:
        """A worker is dead, for whatever reason."""
        asked = self.asked(self.state, process)
        policy = self.state.models[process.key.model].policy
        book = self.counts[process.key]
        served = process.ready_at is not None
        stable = served and self.now - (process.ready_at or 0.0) >= policy.stable_after
        charged = served and in_hand > 0 and not asked
        row = 0 if answered else book.charged
        if answered or stable:
            book.failures, book.charged = 0, 0
        elif not asked and not charged:
            book.failures += 1
        if charged:
            book.charged = row + 1
        self.expected = (asked, book.failures)
        process.stage = Stage.GONE
        self.feed(
            ev.WorkerExited(
                process.key,
                process.generation,
                self.now,
                "died",
                answered=answered,
                in_hand=in_hand,
                declined=declined,
            )
        )

    def begin_batch(self, process: Process) -> None:
        """A worker is given a batch."""
        process.busy_since = process.done_at = self.now

    def end_batch(self, process: Process) -> None:
        """It has answered the batch."""
        process.busy_since, process.done_at = None, self.now
        process.answered += 1

    def stand_still(self, process: Process) -> None:
        """It stands still for ever: stopped, or its interpreter is held."""
        process.still_at = self.now

    # Endings ---------------------------------------------------------------------------------------------------------

    def obey(self, *, stuck_too: bool = False) -> bool:
        """Whatever was made to go, and minds it, goes. True if anything did."""
        moved = False
        for process in list(self.processes.values()):
            killed = stuck_too and process.killed_at is not None
            alive = process.there and process.stage is not Stage.ASKED
            if alive and (process.going or killed):
                if process.known:
                    self.die(process)
                else:
                    self.fail_birth(process)
                moved = True
        for spare in list(self.spares.values()):
            killed = stuck_too and spare.killed_at is not None
            alive = spare.there and spare.stage is not Stage.ASKED
            if alive and (spare.going or killed):
                self.end_spare(spare)
                moved = True
        for mould in list(self.moulds.values()):
            killed = stuck_too and mould.killed_at is not None
            if mould.stage is not Stage.GONE and (mould.going or killed):
                self.end_template(mould, "went")
                moved = True
        return moved

    def serve_well(self) -> bool:
        """Everything that can succeed succeeds. True if anything did."""
        for mould in self.templates(Stage.BORN):
            if not mould.sent_away and not mould.hung:
                self.load(mould)
                return True
        for process in list(self.processes.values()):
            mould = self.moulds[process.template]
            if process.unborn and mould.stage is Stage.READY and not mould.hung:
                self.bear(process)
                return True
            ended = process.termed_at or process.aborted_at or process.killed_at
            if process.stage is Stage.BORN and not ended:
                self.ready(process)
                return True
        for spare in self.unborn_spares():
            self.bear_spare(spare)
            return True
        for spare in self.living_spares(Stage.BORN):
            if not spare.leaves:
                self.park(spare)
                return True
        return False

    def recover(self) -> None:
        """In a world that does everything right all comes to rest in bounded time: every slot is READY, with a worker that is not
        worn, every spare is parked, and every command is answered.
        """
        policies = [model.policy for model in self.state.models.values()]
        patience = sum(
            6 * (30.0 + p.startup_timeout + p.stop_timeout + p.retry_failed_after + FORK_TIMEOUT)
            + p.workers * (p.response_timeout + p.startup_timeout + TERM_GRACE)
            for p in policies
        )
        end = self.now + patience
        for _ in range(2000):
            if self.state.run in (Run.STOPPING, Run.DONE):
                return
            if self.obey(stuck_too=True) or self.serve_well():
                continue
            ready = all(slot.phase is Phase.READY for slot in self.state.slots.values())
            if ready and not self.pending and self.spares_rest():
                assert self.state.run is Run.RUNNING
                return
            self._tick(end)
        raise AssertionError("the world is well and the supervisor does not come to rest")

    def finish(self) -> None:
        """A stop, run to its end: bounded in steps and in time, whatever the tempers."""
        if self.stopping_at is None:
            self.stop()
        assert self.stopping_at is not None
        # A leap may have passed the deadline of the stop before anybody woke.
        due = max(self.now, self.stopping_at + self.state.stop_timeout)
        end = due + TERM_GRACE + LOST_AFTER + CLOSE
        for _ in range(20 + 10 * (len(self.processes) + len(self.moulds) + len(self.spares))):
            if self.state.run is Run.DONE:
                break
            if not self.obey():
                self._tick(end)
        assert self.state.run is Run.DONE, "the stop does not end"

    def _tick(self, end: float) -> None:
        due = next_deadline(self.state)
        assert due is not None, "nothing more will happen"
        assert due <= end, "too late"
        self.advance_to(max(self.now, due))

    # Who there is ----------------------------------------------------------------------------------------------------

    def unborn(self) -> list[Process]:
        """Births whose news may come, from templates that are still there and can."""
        return [
            process
            for process in self.processes.values()
            if process.unborn
            and self.moulds[process.template].stage is Stage.READY
            and not self.moulds[process.template].hung
        ]

    def alive(self, *stages: Stage) -> list[Process]:
        """The workers in these stages whose pid is known, oldest first."""
        return [p for p in self.processes.values() if p.stage in stages and p.known]

    def serving(self, *, busy: bool) -> list[Process]:
        """The workers that serve, and go on doing it, with a batch in hand or without."""
        ready = self.alive(Stage.READY)
        return [p for p in ready if p.still_at is None and busy == (p.busy_since is not None)]

    def speechless(self) -> list[Process]:
        """The workers that have not said anything yet, their pid known or not."""
        early = (Stage.ASKED, Stage.BORN)
        return [p for p in self.processes.values() if p.stage in early and p.there]

    def forgotten(self) -> list[Process]:
        """What is no more, or was given up: the core knows none of it."""
        return [process for process in self.processes.values() if not process.there]

    def templates(self, *stages: Stage) -> list[Mould]:
        """The templates in these stages, oldest first."""
        return [mould for mould in self.moulds.values() if mould.stage in stages]
