"""What a kernel knows of the supervisor's children, and the rules of DESIGN §3 as seen from there.

`Kernel` keeps, beside the core's state, which births were asked for, which processes are alive, and which signals they got and
when. It carries the core's actions out, and each of them has to be *justified*: the rules are written here a second time, from
the point of view of the processes, so that a mistake in the core would have to be made twice to pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from property.books import CLOSE, Birth, Counts, Mould, Process, Stage, Temper

from modelsupervisor.core import actions as act
from modelsupervisor.core import events as ev
from modelsupervisor.core import initial_state, next_deadline, reduce
from modelsupervisor.core.hangs import GRAIN, interval
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
from support.notes import check_note


class Kernel:
    """The children of one supervisor, and the state that its core is in."""

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
        self.looks: list[act.LookAtWorkers] = []  # asked for, and not carried out yet
        self.leaps: list[tuple[float, float]] = []  # when the supervisor went on, after how long

    def perform(self, before: State, action: act.Action) -> None:
        match action:
            case act.ForkWorker():
                self._fork(action)
            case act.StartTemplate():
                self._start(action)
            case act.TellWorker():
                process = self.processes[action.key, action.generation]
                assert process.stage is Stage.READY and process.told_at is None
                if not self.wanted_gone(action.key):
                    self.check_recycling(process)
                process.told_at = self.now
            case act.LookAtWorkers():
                assert action.keys, "a look at nobody"
                self.looks.append(action)
            case act.AskWorker():
                process = self.processes[action.key, action.generation]
                assert process.known and process.stage is Stage.READY, "a ping to nobody"
                if process.pinged_at is None:
                    process.pinged_at = self.now
            case act.SignalWorker():
                self._signal_worker(before, action)
            case act.SignalTemplate():
                self._signal_template(action)
            case act.AbandonBirth():
                process = self.processes[action.key, action.generation]
                assert process.unborn
                process.abandoned = True
                self.expected = (self.asked(before, process), self.counts[action.key].failures)
            case act.ReportWorkerExit():
                self._report_worker(action)
            case act.ReportTemplateExit():
                mould = self.moulds[action.key]
                assert mould.stage is Stage.GONE and mould.reports == 0
                mould.reports += 1
            case act.Answer():
                assert action.command in self.pending, "an answer nobody waits for"
                del self.pending[action.command]
            case act.Note():
                check_note(action)
            case act.Exit():
                self.exits.append(action.code)

    def check_recycling(self, process: Process) -> None:
        """Nobody but those who stop or restart it may tell a worker to go; unless there is more to know of it."""
        raise AssertionError("a serving worker was told to go for nothing")

    def _fork(self, action: act.ForkWorker) -> None:
        mould = self.moulds[action.template]
        assert not mould.sent_away, "a birth from a retired template"
        self.begin(Process(action.key, action.generation, action.template, self.now, self.temper))

    def begin(self, process: Process) -> None:
        """A slot gets a process, within every limit on its births."""
        assert self.stopping_at is None, "a birth after the stop"
        rivals = [p for (key, _), p in self.processes.items() if key == process.key and p.there]
        assert not rivals, f"two live generations in {process.key}"
        newest = max((g for key, g in self.processes if key == process.key), default=0)
        assert process.generation == newest + 1
        book = self.counts[process.key]
        if len(book.births) >= 20:
            assert book.births[-20] + 1.0 <= self.now + CLOSE, "more than 20 births in a second"
        assert book.wiped or self.now >= book.not_before - CLOSE, (
            "a birth before its back-off is over"
        )
        if book.charged >= 5 and not book.wiped:
            assert book.births[-1] + 1.0 <= self.now + CLOSE, "births do not slow down"
        book.births.append(self.now)
        self.processes[process.key, process.generation] = process

    def _start(self, action: act.StartTemplate) -> None:
        assert self.stopping_at is None, "a template after the stop"
        assert action.key not in self.moulds
        alive = [
            mould
            for mould in self.moulds.values()
            if mould.key.model == action.key.model
            and mould.stage is not Stage.GONE
            and not mould.sent_away
        ]
        assert len(alive) <= 1, "more templates than a present one and its replacement"
        self.moulds[action.key] = Mould(action.key, self.now, self.temper)

    def _signal_worker(self, before: State, action: act.SignalWorker) -> None:
        process = self.processes[action.key, action.generation]
        assert process.known and process.stage is not Stage.GONE, "a signal to nobody"
        policy = self.state.models[action.key.model].policy
        if action.ending is act.Ending.TERM:
            assert process.termed_at is None and process.killed_at is None
            patience = policy.stop_timeout
            if process.recycled and not self.wanted_gone(action.key):
                patience = max(patience, policy.response_timeout)
            overdue = process.told_at is not None and (
                self.now >= process.told_at + patience - CLOSE
            )
            early = process.ready_at is None and (
                self.wanted_gone(action.key) or before.slots[action.key].phase is Phase.STOPPING
            )
            assert overdue or early, "SIGTERM before its time"
            process.termed_at = self.now
        elif action.ending is act.Ending.ABORT:
            others = (process.termed_at, process.aborted_at, process.killed_at)
            assert others == (None, None, None), "SIGABRT to what was ended"
            too_slow = process.ready_at is None and (
                self.now >= process.asked_at + policy.startup_timeout - CLOSE
            )
            assert too_slow or self._hangs(process, policy), "SIGABRT before its time"
            process.aborted_at = self.now
        else:
            assert process.killed_at is None, "SIGKILL twice"
            asked = process.termed_at or process.aborted_at
            overdue = asked is not None and self.now >= asked + TERM_GRACE - CLOSE
            assert overdue or self.kill_all, "SIGKILL before its time"
            process.killed_at = self.now

    def _hangs(self, process: Process, policy: Policy) -> bool:
        """It has had something to do for response_timeout and got nothing done, and the supervisor was there to see it."""
        if process.busy_since is not None:
            since = process.busy_since
        elif process.still_at is not None and process.pinged_at is not None:
            since = max(process.pinged_at, process.done_at)
        else:
            return False
        longest = 2 * interval(policy)  # from look to look
        unseen = sum(gap for end, gap in self.leaps if end > since and gap > longest)
        return self.now - since - unseen >= policy.response_timeout - CLOSE

    def _overlooked(self, process: Process) -> bool:
        """It is stuck, serves for all that the core knows, and should have been ended long ago."""
        slot, policy = self.state.slots[process.key], self.state.models[process.key.model].policy
        since = process.still_at if process.busy_since is None else process.busy_since
        if since is None or not process.known or slot.phase is not Phase.READY:
            return False
        patience = policy.response_timeout + GRAIN
        if process.busy_since is None or not process.echoes:
            patience += interval(policy)  # to the ping, or to the first look ever
        patience += sum(gap + 2 * interval(policy) for end, gap in self.leaps if end > since)
        return self.now > since + patience + CLOSE

    def _signal_template(self, action: act.SignalTemplate) -> None:
        mould = self.moulds[action.key]
        model = self.state.models[action.key.model]
        assert mould.stage is not Stage.GONE, "a signal to nobody"
        if action.ending is act.Ending.TERM:
            assert mould.termed_at is None and mould.killed_at is None
            replaced = model.current != action.key.generation
            assert replaced or self.stopping_at is not None, "SIGTERM to the present template"
            mould.termed_at = self.now
            return
        if action.ending is act.Ending.KILL:
            assert mould.killed_at is None, "SIGKILL twice"
            asked = mould.termed_at or mould.aborted_at
            overdue = asked is not None and self.now >= asked + TERM_GRACE - CLOSE
            assert overdue or self.kill_all, "SIGKILL before its time"
            mould.killed_at = self.now
            return
        assert not mould.sent_away, "SIGABRT to what was ended"
        timeout = model.policy.startup_timeout
        too_slow = mould.stage is Stage.BORN and self.now >= mould.started_at + timeout - CLOSE
        patience = min(FORK_TIMEOUT, timeout)
        no_birth = any(
            process.template == action.key
            and not process.known
            and self.now >= process.asked_at + patience - CLOSE
            for process in self.births()
        )
        assert too_slow or no_birth, "SIGABRT before its time"
        mould.aborted_at = self.now

    def births(self) -> Iterable[Birth]:
        """Everything that templates were ever asked for."""
        return self.processes.values()

    def _report_worker(self, action: act.ReportWorkerExit) -> None:
        process = self.processes[action.key, action.generation]
        assert not process.there and process.reports == 0
        process.reports += 1
        assert self.expected is not None, "a report without a death"
        asked, failures = self.expected
        self.expected = None
        assert action.asked == asked
        if process.recycled and self.stopping_at is None:
            assert action.worn is process.worn, "nobody says why it was replaced"
        assert action.worn in (None, process.worn), "replaced for something else"
        if self.counts[action.key].wiped:
            return
        assert action.failures == failures
        self.counts[action.key].not_before = self.now + (action.delay or 0.0)
        policy = self.state.models[action.key.model].policy
        if action.next is act.Next.FAILED:
            assert failures >= policy.max_failures
            assert action.delay == policy.retry_failed_after
        elif action.next is act.Next.BACK_OFF:
            assert action.delay is not None and 0.0 < action.delay <= 30.0

    def wanted_gone(self, key: SlotKey) -> bool:
        """Somebody wants the present process of this slot away: a stop, or a restart of the slot or of its model."""
        covered = {(key.model, None), (key.model, key.index)}
        return self.stopping_at is not None or not covered.isdisjoint(self.pending.values())

    def asked(self, before: State, process: Process) -> bool:
        """It had been told or signalled to go, or was to be as soon as it is born."""
        slot = before.slots[process.key]
        unborn = slot.phase is Phase.STOPPING and not process.known
        return (
            unborn
            or process.told_at is not None
            or process.termed_at is not None
            or (process.killed_at is not None and slot.blame is None)
        )

    def check(self) -> None:
        """What holds between any two events."""
        state = self.state
        for key, slot in state.slots.items():
            there = [p for (other, _), p in self.processes.items() if other == key and p.there]
            if slot.live:
                assert [p.generation for p in there] == [slot.generation]
                bounded = slot.deadline is not None or slot.birth_deadline is not None
                assert there[0].known or bounded, "nobody would see its end"
                assert not self._overlooked(there[0]), "a worker hangs and nobody ends it"
                continue
            assert not there or state.run is Run.DONE, "a process that the core forgot"
            if state.run in (Run.STOPPING, Run.DONE):
                assert slot.phase is Phase.EMPTY
                continue
            model = state.models[key.model]
            # Of one that is gone already, the core has not been told: that is still to come
            loading = any(k.model == key.model for k in state.templates)
            waits = model.generation == 0 or loading or model.retry_at is not None
            assert slot.deadline is not None or waits, f"{key} waits for ever"
            assert slot.phase is not Phase.FAILED or slot.deadline or model.retry_at or loading
            assert not (slot.deadline is None and self._forkable(key.model)), f"{key} is forgotten"
        for model in state.models.values():
            assert model.current is None or model.retry_at is None, "a try that nobody needs"
        for name, mould in self.moulds.items():
            model = state.models[name.model]
            wanted = name.generation in (model.current, model.candidate)
            assert mould.stage is Stage.GONE or wanted or mould.sent_away, f"{name} is forgotten"
        due = next_deadline(state)
        if state.run is not Run.DONE and (due is None or due > self.now):
            assert reduce(state, ev.Tick(self.now)) == (state, ()), (
                "an early tick changed something"
            )

    def _forkable(self, model: str) -> bool:
        return any(
            k.model == model and t.phase is TemplatePhase.READY
            for k, t in self.state.templates.items()
        )

    def check_books(self) -> None:
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
