"""The pure core, a fake kernel that carries its actions out, and a virtual clock: histories without a process.

Theory of operation
-------------------
`Simulation` owns one core state and, beside it, what a kernel would know: which births were asked for, which processes are
alive, which signals they got and when. A move of the world (a fork that succeeds, a death, a jump of the clock) is a method; it
changes the kernel first and then tells the core, as the edge does. Every action that the core answers with is carried out
against the kernel and has to be *justified* there: the rules of DESIGN §3 are written a second time, from the point of view of
the processes, so that a mistake in the core and the same mistake here would have to be made twice.

Processes have a `Temper`: they obey the stop message, or only SIGTERM, or only SIGKILL, or are stuck in the kernel for ever.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from modelsupervisor.core import actions as act
from modelsupervisor.core import events as ev
from modelsupervisor.core import initial_state, next_deadline, reduce
from modelsupervisor.core.runs import LOST_AFTER
from modelsupervisor.core.slots import FORK_TIMEOUT, TERM_GRACE
from modelsupervisor.core.states import (
    Phase,
    Policy,
    Run,
    SlotKey,
    State,
    TemplateKey,
    TemplatePhase,
)

CLOSE = 1e-6  # seconds; sums of floating point times


class Temper(IntEnum):
    """What it takes to end a process."""

    OBEDIENT = 0  # the stop message
    DEAF = 1  # SIGTERM
    STUBBORN = 2  # SIGKILL
    STUCK = 3  # nothing


class Stage(Enum):
    """How far a process has come. ASKED is a fork or exec that did not happen yet."""

    ASKED = "asked"
    BORN = "born"
    READY = "ready"
    GONE = "gone"


@dataclass
class Process:
    """A worker, from the moment its birth was asked for."""

    key: SlotKey
    generation: int
    template: TemplateKey
    asked_at: float
    temper: Temper
    stage: Stage = Stage.ASKED
    ready_at: float | None = None
    told_at: float | None = None
    termed_at: float | None = None
    killed_at: float | None = None
    abandoned: bool = False
    reports: int = 0

    @property
    def there(self) -> bool:
        """It is alive, or may still come to life as the process of its slot."""
        return self.stage is not Stage.GONE and not self.abandoned

    @property
    def going(self) -> bool:
        """It was made to go in a way that its temper minds."""
        patience = (self.told_at, self.termed_at, self.killed_at, None)
        return any(time is not None for time in patience[self.temper : 3])


@dataclass
class Mould:
    """A template process."""

    key: TemplateKey
    started_at: float
    temper: Temper
    stage: Stage = Stage.BORN
    hung: bool = False
    termed_at: float | None = None
    killed_at: float | None = None
    reports: int = 0

    @property
    def going(self) -> bool:
        """It was made to go in a way that its temper minds."""
        patience = (self.termed_at, self.termed_at, self.killed_at, None)
        return any(time is not None for time in patience[self.temper : 3])


@dataclass
class Counts:
    """The second book on a slot: what DESIGN §3 counts, until an operator's restart wipes it."""

    failures: int = 0
    charged: int = 0
    births: list[float] = field(default_factory=list)
    wiped: bool = False


class Simulation:
    """One history. `now` only grows; `feed` is the only way to the core."""

    def __init__(
        self,
        policies: dict[str, Policy],
        *,
        exit_on_start_failure: bool = True,
        stop_timeout: float = 30.0,
        luck: int = 1,
    ) -> None:
        self.state: State = initial_state(
            policies,
            exit_on_start_failure=exit_on_start_failure,
            stop_timeout=stop_timeout,
            luck=luck,
        )
        self.now = 1000.0
        self.temper = Temper.OBEDIENT
        self.processes: dict[tuple[SlotKey, int], Process] = {}
        self.moulds: dict[TemplateKey, Mould] = {}
        self.counts = {key: Counts() for key in self.state.slots}
        self.pending: dict[int, tuple[str, int | None]] = {}
        self.commands = 0
        self.stopping_at: float | None = None
        self.kill_all = False
        self.exits: list[int] = []
        self.expected: tuple[bool, int] | None = None  # (asked, failures) of the next worker report

    def copy(self) -> Simulation:
        """A second world that goes on from here on its own. The core's state is immutable and shared."""
        twin = copy.copy(self)
        twin.processes = {key: copy.copy(process) for key, process in self.processes.items()}
        twin.moulds = {key: copy.copy(mould) for key, mould in self.moulds.items()}
        twin.counts = {
            key: Counts(book.failures, book.charged, list(book.births), book.wiped)
            for key, book in self.counts.items()
        }
        twin.pending, twin.exits = dict(self.pending), list(self.exits)
        return twin

    # The core --------------------------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> tuple[act.Action, ...]:
        """Tell the core, carry out what it wants, and hold it to its invariants."""
        before = self.state
        self.state, actions = reduce(before, event)
        if before.run is not Run.STOPPING and self.state.run in (Run.STOPPING, Run.DONE):
            self.stopping_at = self.stopping_at or self.now
        if self.stopping_at is not None and self.now >= self.stopping_at + before.stop_timeout:
            self.kill_all = True
        for action in actions:
            self._perform(before, action)
        assert self.expected is None, "a death without its report"
        self._check()
        return actions

    def feed_stale(self, event: ev.Event) -> None:
        """News of what is no more: nothing changes and nothing is done."""
        before = self.state
        assert self.feed(event) == ()
        assert self.state == before

    def _perform(self, before: State, action: act.Action) -> None:
        match action:
            case act.ForkWorker():
                self._fork(action)
            case act.StartTemplate():
                self._start(action)
            case act.TellWorker():
                process = self.processes[action.key, action.generation]
                assert process.stage is Stage.READY and process.told_at is None
                assert self._wanted_gone(action.key), "a serving worker was told to go for nothing"
                process.told_at = self.now
            case act.SignalWorker():
                self._signal_worker(before, action)
            case act.SignalTemplate():
                self._signal_template(action)
            case act.AbandonBirth():
                process = self.processes[action.key, action.generation]
                assert process.stage is Stage.ASKED and not process.abandoned
                process.abandoned = True
                self.expected = (self._asked(before, process), self.counts[action.key].failures)
            case act.ReportWorkerExit():
                self._report_worker(action)
            case act.ReportTemplateExit():
                mould = self.moulds[action.key]
                assert mould.stage is Stage.GONE and mould.reports == 0
                mould.reports += 1
            case act.Answer():
                assert action.command in self.pending, "an answer nobody waits for"
                del self.pending[action.command]
            case act.Exit():
                self.exits.append(action.code)

    def _fork(self, action: act.ForkWorker) -> None:
        assert self.stopping_at is None, "a birth after the stop"
        rivals = [p for (key, _), p in self.processes.items() if key == action.key and p.there]
        assert not rivals, f"two live generations in {action.key}"
        newest = max((g for key, g in self.processes if key == action.key), default=0)
        assert action.generation == newest + 1
        mould = self.moulds[action.template]
        assert mould.termed_at is None and mould.killed_at is None, "a birth from a retired template"
        book = self.counts[action.key]
        if len(book.births) >= 20:
            assert book.births[-20] + 1.0 <= self.now + CLOSE, "more than 20 births in a second"
        if book.charged >= 5 and not book.wiped:
            assert book.births[-1] + 1.0 <= self.now + CLOSE, "births do not slow down"
        book.births.append(self.now)
        self.processes[action.key, action.generation] = Process(
            action.key, action.generation, action.template, self.now, self.temper
        )

    def _start(self, action: act.StartTemplate) -> None:
        assert self.stopping_at is None, "a template after the stop"
        assert action.key not in self.moulds
        alive = [
            mould
            for mould in self.moulds.values()
            if mould.key.model == action.key.model
            and mould.stage is not Stage.GONE
            and mould.termed_at is None
            and mould.killed_at is None
        ]
        assert len(alive) <= 1, "more templates than a present one and its replacement"
        self.moulds[action.key] = Mould(action.key, self.now, self.temper)

    def _signal_worker(self, before: State, action: act.SignalWorker) -> None:
        process = self.processes[action.key, action.generation]
        assert process.stage in (Stage.BORN, Stage.READY), "a signal to nobody"
        policy = self.state.models[action.key.model].policy
        if action.ending is act.Ending.TERM:
            assert process.termed_at is None and process.killed_at is None
            overdue = process.told_at is not None and (
                self.now >= process.told_at + policy.stop_timeout - CLOSE
            )
            early = process.ready_at is None and (
                self._wanted_gone(action.key) or before.slots[action.key].phase is Phase.STOPPING
            )
            assert overdue or early, "SIGTERM before its time"
            process.termed_at = self.now
        else:
            assert process.killed_at is None, "SIGKILL twice"
            overdue = process.termed_at is not None and (
                self.now >= process.termed_at + TERM_GRACE - CLOSE
            )
            too_slow = process.ready_at is None and (
                self.now >= process.asked_at + policy.startup_timeout - CLOSE
            )
            assert overdue or too_slow or self.kill_all, "SIGKILL before its time"
            process.killed_at = self.now

    def _signal_template(self, action: act.SignalTemplate) -> None:
        mould = self.moulds[action.key]
        model = self.state.models[action.key.model]
        assert mould.stage is not Stage.GONE, "a signal to nobody"
        if action.ending is act.Ending.TERM:
            assert mould.termed_at is None and mould.killed_at is None
            newer = model.current is not None and model.current > action.key.generation
            assert newer or self.stopping_at is not None, "SIGTERM to the present template"
            mould.termed_at = self.now
            return
        assert mould.killed_at is None, "SIGKILL twice"
        timeout = model.policy.startup_timeout
        overdue = mould.termed_at is not None and self.now >= mould.termed_at + TERM_GRACE - CLOSE
        too_slow = mould.stage is Stage.BORN and self.now >= mould.started_at + timeout - CLOSE
        patience = min(FORK_TIMEOUT, timeout)
        no_birth = any(
            process.template == action.key
            and process.stage is Stage.ASKED
            and self.now >= process.asked_at + patience - CLOSE
            for process in self.processes.values()
        )
        assert overdue or too_slow or no_birth or self.kill_all, "SIGKILL before its time"
        mould.killed_at = self.now

    def _report_worker(self, action: act.ReportWorkerExit) -> None:
        process = self.processes[action.key, action.generation]
        assert not process.there and process.reports == 0
        process.reports += 1
        assert self.expected is not None, "a report without a death"
        asked, failures = self.expected
        self.expected = None
        assert action.asked == asked
        if self.counts[action.key].wiped:
            return
        assert action.failures == failures
        policy = self.state.models[action.key.model].policy
        if action.next is act.Next.FAILED:
            assert failures >= policy.max_failures
            assert action.delay == policy.retry_failed_after
        elif action.next is act.Next.BACK_OFF:
            assert action.delay is not None and 0.0 < action.delay <= 30.0

    def _wanted_gone(self, key: SlotKey) -> bool:
        """Somebody wants the present process of this slot away: a stop, or a restart of the slot or of its model."""
        covered = {(key.model, None), (key.model, key.index)}
        return self.stopping_at is not None or not covered.isdisjoint(self.pending.values())

    def _asked(self, before: State, process: Process) -> bool:
        """It had been told or signalled to go, or was to be as soon as it is born."""
        slot = before.slots[process.key]
        unborn = slot.phase is Phase.STOPPING and process.stage is Stage.ASKED
        return unborn or process.told_at is not None or process.termed_at is not None or (
            process.killed_at is not None and slot.blame is None
        )

    def _check(self) -> None:
        """What holds between any two events."""
        state = self.state
        for key, slot in state.slots.items():
            there = [p for (other, _), p in self.processes.items() if other == key and p.there]
            if slot.live:
                assert [p.generation for p in there] == [slot.generation]
                continue
            assert not there or state.run is Run.DONE, "a process that the core forgot"
            if state.run in (Run.STOPPING, Run.DONE):
                assert slot.phase is Phase.EMPTY
                continue
            model = state.models[key.model]
            loading = any(
                k.model == key.model and m.stage is not Stage.GONE for k, m in self.moulds.items()
            )
            waits = model.generation == 0 or loading or model.retry_at is not None
            assert slot.deadline is not None or waits, f"{key} waits for ever"
            assert slot.phase is not Phase.FAILED or slot.deadline or model.retry_at or loading
            assert not (slot.deadline is None and self._forkable(key.model)), f"{key} is forgotten"
        due = next_deadline(state)
        if state.run is not Run.DONE and (due is None or due > self.now):
            assert reduce(state, ev.Tick(self.now)) == (state, ()), "an early tick changed something"

    def _forkable(self, model: str) -> bool:
        return any(
            k.model == model and t.phase is TemplatePhase.READY
            for k, t in self.state.templates.items()
        )

    # The world -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The edge is prepared."""
        self.feed(ev.Started(self.now))

    def advance(self, seconds: float) -> None:
        """Time passes, and the edge wakes at every deadline."""
        end = self.now + seconds
        while (due := next_deadline(self.state)) is not None and due <= end:
            self.now = max(self.now, due)
            self.feed(ev.Tick(self.now))
            due = next_deadline(self.state)
            assert due is None or due > self.now, "a deadline in the past twice running"
        self.now = end

    def leap(self, seconds: float) -> None:
        """The supervisor itself was stopped meanwhile: one tick, late for everything."""
        self.now += seconds
        self.feed(ev.Tick(self.now))

    def wake(self) -> None:
        """The next deadline comes, where there is one."""
        due = next_deadline(self.state)
        if due is not None:
            self.advance(max(0.0, due - self.now))

    def mark(self) -> object:
        """What two worlds have in common that go on alike: the core's state and the kernel's, as a hashable value."""
        return repr((self.now, self.state, self.processes, self.moulds, self.pending))

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
        self.feed(ev.TemplateLoaded(mould.key, self.now))

    def end_template(self, mould: Mould, reason: str, *, births_first: bool = False) -> None:
        """A template is gone, and with it the births that it had not begun."""
        mould.stage = Stage.GONE
        if not births_first:
            self.feed(ev.TemplateExited(mould.key, self.now, reason))
        for process in list(self.processes.values()):
            if process.template == mould.key and process.stage is Stage.ASKED and process.there:
                self.fail_birth(process)
        if births_first:
            self.feed(ev.TemplateExited(mould.key, self.now, reason))

    def bear(self, process: Process) -> None:
        """The template forks."""
        process.stage = Stage.BORN
        self.feed(ev.WorkerBorn(process.key, process.generation, self.now))

    def fail_birth(self, process: Process) -> None:
        """The template could not fork."""
        asked = self._asked(self.state, process)
        template = self.state.templates.get(process.template)
        serves = template is not None and template.phase is TemplatePhase.READY
        book = self.counts[process.key]
        book.failures += not asked and serves
        self.expected = (asked, book.failures)
        process.stage = Stage.GONE
        self.feed(ev.BirthFailed(process.key, process.generation, self.now, "EAGAIN"))

    def ready(self, process: Process) -> None:
        """A worker says that it serves."""
        process.stage = Stage.READY
        if process.termed_at is None and process.killed_at is None:
            process.ready_at = self.now
        self.feed(ev.WorkerReady(process.key, process.generation, self.now))

    def die(
        self, process: Process, *, answered: int = 0, in_hand: int = 0, declined: bool = False
    ) -> None:
        """A worker is dead, for whatever reason."""
        asked = self._asked(self.state, process)
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

    # Endings ---------------------------------------------------------------------------------------------------------

    def obey(self, *, stuck_too: bool = False) -> bool:
        """Whatever was made to go, and minds it, goes. True if anything did."""
        moved = False
        for process in list(self.processes.values()):
            killed = stuck_too and process.killed_at is not None
            if process.stage in (Stage.BORN, Stage.READY) and (process.going or killed):
                self.die(process)
                moved = True
        for mould in list(self.moulds.values()):
            killed = stuck_too and mould.killed_at is not None
            if mould.stage is not Stage.GONE and (mould.going or killed):
                self.end_template(mould, "went")
                moved = True
        return moved

    def serve_well(self) -> bool:
        """Everything that can succeed succeeds. True if anything did."""
        for mould in self._moulds(Stage.BORN):
            if mould.termed_at is None and mould.killed_at is None and not mould.hung:
                self.load(mould)
                return True
        for process in list(self.processes.values()):
            mould = self.moulds[process.template]
            if process.stage is Stage.ASKED and process.there and mould.stage is Stage.READY:
                if mould.hung:
                    continue
                self.bear(process)
                return True
            if process.stage is Stage.BORN and process.termed_at is None and not process.killed_at:
                self.ready(process)
                return True
        return False

    def recover(self) -> None:
        """In a world that does everything right every slot comes to READY and every command is answered, in bounded time."""
        policies = [model.policy for model in self.state.models.values()]
        patience = sum(
            6 * (30.0 + p.startup_timeout + p.stop_timeout + p.retry_failed_after + FORK_TIMEOUT)
            for p in policies
        )
        end = self.now + patience
        for _ in range(2000):
            if self.state.run in (Run.STOPPING, Run.DONE):
                return
            if self.obey(stuck_too=True) or self.serve_well():
                continue
            ready = all(slot.phase is Phase.READY for slot in self.state.slots.values())
            if ready and not self.pending:
                assert self.state.run is Run.RUNNING
                return
            self._tick(end)
        raise AssertionError("the world is well and the supervisor does not come to rest")

    def finish(self) -> None:
        """A stop, run to its end: bounded in steps and in time, whatever the tempers."""
        if self.stopping_at is None:
            self.stop()
        assert self.stopping_at is not None
        end = self.stopping_at + self.state.stop_timeout + TERM_GRACE + LOST_AFTER + CLOSE
        for _ in range(20 + 10 * (len(self.processes) + len(self.moulds))):
            if self.state.run is Run.DONE:
                break
            if not self.obey():
                self._tick(end)
        assert self.state.run is Run.DONE, "the stop does not end"
        self._check_books()

    def _tick(self, end: float) -> None:
        due = next_deadline(self.state)
        assert due is not None, "nothing more will happen"
        assert due <= end, "too late"
        self.advance(max(0.0, due - self.now))

    def _check_books(self) -> None:
        """After the end: one report for each process that is gone, an answer to every command, one exit."""
        assert self.pending == {}
        assert len(self.exits) == 1
        left: list[object] = [m.key for m in self.moulds.values() if m.stage is not Stage.GONE]
        left += [p.key for p in self.processes.values() if p.there]
        assert not left or self.exits == [1], "something is left and nobody says so"
        for process in self.processes.values():
            assert process.reports == (0 if process.there else 1)
        for mould in self.moulds.values():
            assert mould.reports == (1 if mould.stage is Stage.GONE else 0)
        assert reduce(self.state, ev.Tick(self.now + 1e6)) == (self.state, ())

    # Who there is ----------------------------------------------------------------------------------------------------

    def unborn(self) -> list[Process]:
        """Births that were asked for and may come, from templates that are still there and can."""
        return [
            process
            for process in self.processes.values()
            if process.stage is Stage.ASKED
            and process.there
            and self.moulds[process.template].stage is Stage.READY
            and not self.moulds[process.template].hung
        ]

    def alive(self, *stages: Stage) -> list[Process]:
        """The workers in these stages, oldest first."""
        return [process for process in self.processes.values() if process.stage in stages]

    def _moulds(self, *stages: Stage) -> Iterable[Mould]:
        return [mould for mould in self.moulds.values() if mould.stage in stages]

    def templates(self, *stages: Stage) -> list[Mould]:
        """The templates in these stages, oldest first."""
        return list(self._moulds(*stages))
