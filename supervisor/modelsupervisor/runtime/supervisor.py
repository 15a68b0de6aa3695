"""The loop: wait, turn what happened into events, let the core decide, carry out what it said.

There is one blocking call, the reactor's wait, and its time-out is the core's next deadline. Descriptors come before deadlines, so
that a supervisor which was itself stopped for a while first hears what its workers have said meanwhile and only then looks at the
clock. Effects that fail become events of the same queue; the queue is empty before the next descriptor is served, so that between
a worker's death and its successor's birth lies no other work.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections import Counter, deque
from typing import Any

from modelsupervisor.control import (
    ControlRequest,
    LogsArguments,
    NoArguments,
    RestartArguments,
    decode_arguments,
)
from modelsupervisor.core import next_deadline, reduce
from modelsupervisor.core.actions import (
    AbandonBirth,
    Action,
    Answer,
    Exit,
    ForkWorker,
    Note,
    ReportTemplateExit,
    ReportWorkerExit,
    SignalTemplate,
    SignalWorker,
    StartTemplate,
    TellWorker,
)
from modelsupervisor.core.events import (
    Event,
    RestartModelRequested,
    RestartSlotRequested,
    Started,
    StopRequested,
    Tick,
)
from modelsupervisor.core.reduce import assert_never
from modelsupervisor.core.states import Phase, Run, SlotKey, State, TemplateKey, Wanted
from modelsupervisor.errors import ControlError
from modelsupervisor.runtime import processes
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.followers import Followers
from modelsupervisor.runtime.operators import Operator, Operators
from modelsupervisor.runtime.reactor import Rank, Watch
from modelsupervisor.runtime.report import Reporter
from modelsupervisor.runtime.signals import STOP_SIGNALS, Signals
from modelsupervisor.runtime.streams import Voice
from modelsupervisor.runtime.templates import Templates
from modelsupervisor.runtime.workers import Workers

ORPHAN_ROUNDS = 8  # generations of a fork bomb that the end still follows
ORPHAN_PATIENCE = 1.0  # seconds for one killed process to be gone
FAULTS_BORNE = 10  # of one descriptor
LAST_WORDS = 0.2  # seconds at the end for operators that read the log, but not at once
PROGRESS_STEP = 0.2  # seconds between two looks of the progress line on a terminal


class Supervisor:
    """The running supervisor. The constructor assigns; `run` is its life from the first template to the last reap."""

    def __init__(self, edge: Edge, state: State, signals: Signals) -> None:
        self._edge = edge
        self._state = state
        self._signals = signals
        self._queue: deque[Event] = deque()
        self._templates = Templates(edge)
        self.workers = Workers(edge, self._templates)
        self._operators: Operators | None = None
        self._reporter: Reporter | None = None
        self._waiting: dict[int, tuple[Operator, int | str, str]] = {}
        self._commands = 0
        self._exit: int | None = None
        self._followers = Followers(edge.journal, edge.settings.supervisor.log_buffer)
        self._orphans: set[int] = set()
        self._orphans_due = False
        self._faults: Counter[Watch] = Counter()

    def post(self, event: Event) -> None:
        """Queue an event for the core."""
        self._queue.append(event)

    def voice(self, key: SlotKey) -> Voice | None:
        """Whose output comes out of a slot's FIFOs now; None where that is not known yet."""
        return self.workers.voice(key, self._state.slots[key].generation)

    def serve_operators(self, operators: Operators, reporter: Reporter) -> None:
        """Take commands from here on."""
        self._operators = operators
        self._reporter = reporter

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until nothing is left to run; returns the exit code. From here on, we do not die of what others do."""
        reactor = self._edge.reactor
        reactor.add(self._signals.fileno(), Rank.LIFE, self._on_signals)
        self.post(Started(self._edge.now()))
        self._settle()
        while self._exit is None:
            self._write_log()
            for watch, events in reactor.wait(self._timeout()):
                if reactor.still(watch):
                    self._serve(watch, events)
            self._tick()
        self._edge.outlets.progress("")
        reactor.remove(self._signals.fileno())
        return self._exit

    def _serve(self, watch: Watch, events: int) -> None:
        """Serve one descriptor. A fault in there is ours, and is no reason to take every worker down: it is told and borne.

        A descriptor that faults again and again is no longer served; where lives hang on it, the supervisor ends in order.
        """
        try:
            watch.callback(events)
            self._settle()
        except Exception:
            self._faults[watch] += 1
            self._edge.journal.emit(
                "error", "supervisor.fault", pid=self._edge.pid, traceback=traceback.format_exc()
            )
            if self._faults[watch] >= FAULTS_BORNE:
                if watch.rank is Rank.LIFE:
                    raise
                self._edge.reactor.remove(watch.fd)
        self._settle()  # what was queued behind a fault

    def _timeout(self) -> float | None:
        deadline = next_deadline(self._state)
        due = (deadline, self._edge.intake.deadline(), self._edge.outlets.deadline())
        soonest = min((each for each in due if each is not None), default=None)
        timeout = None if soonest is None else soonest - self._edge.now()
        if self._state.run is Run.STARTING and self._show_progress():
            timeout = PROGRESS_STEP if timeout is None else min(timeout, PROGRESS_STEP)
        return timeout

    def _tick(self) -> None:
        deadline = next_deadline(self._state)
        if deadline is not None and deadline <= self._edge.now():
            self.post(Tick(self._edge.now()))
            self._settle()
        now = self._edge.now()
        self._edge.outlets.tick(now)
        self._edge.intake.tick(now)

    def _settle(self) -> None:
        """Answer every queued event, and what its effects bring, in order."""
        while self._queue and self._exit is None:
            before = self._state
            self._state, actions = reduce(before, self._queue.popleft())
            for action in actions:
                self._perform(action)
            if before.slots is not self._state.slots:
                self._show_refusals(before)
        if self._orphans_due:
            self._reap_orphans()

    def _perform(self, action: Action) -> None:
        match action:
            case ForkWorker():
                self.workers.fork(action)
            case StartTemplate(key):
                self._templates.start(key)
            case TellWorker(slot, generation):
                self.workers.tell(slot, generation)
            case SignalWorker(slot, generation, ending):
                self.workers.signal(slot, generation, ending)
            case SignalTemplate(key, ending):
                self._templates.signal(key, ending)
            case AbandonBirth(slot, generation):
                self.workers.abandon(slot, generation)
            case ReportWorkerExit():
                self.workers.report_exit(action)
            case ReportTemplateExit():
                self._templates.report_exit(action)
            case Note():
                self._note(action)
            case Answer():
                self._answer(action)
            case Exit(code):
                self._exit = code
            case _:
                assert_never(action)

    # -- words ----------------------------------------------------------------------------------------------------

    def _note(self, note: Note) -> None:
        facts: dict[str, Any] = {"generation": note.generation}
        if note.slot is not None:
            worker = self.workers.present(note.slot)
            facts["model"], facts["worker"] = note.slot.model, note.slot.index
            facts["pid"] = worker.pid if worker is not None else None
            if note.event == "worker.ready":
                self.workers.recovered(note.slot, dict(note.fields))
        elif note.template is not None:
            facts["model"] = note.template.model
            facts["pid"] = self._templates.pid_of(note.template)
            if note.event == "template.ready":
                facts = {**self._templates.facts(note.template), **facts}
        else:
            facts["pid"] = self._edge.pid
        self._edge.journal.emit(note.level, note.event, **facts, **dict(note.fields))

    def _show_progress(self) -> bool:
        if not self._edge.outlets.terminal:
            return False
        slots = list(self._state.slots.values())
        ready = sum(slot.phase is Phase.READY for slot in slots)
        loading = sorted({slot.key.model for slot in slots if not slot.live})
        what = f", loading {', '.join(loading)}" if loading else ""
        self._edge.outlets.progress(f"starting: {ready} of {len(slots)} workers ready{what} …")
        return True

    def _write_log(self) -> None:
        if self._state.run is not Run.STARTING:
            self._edge.outlets.progress("")
        self._edge.outlets.flush(pid=self._edge.pid)
        if self._operators is not None:
            self._followers.flush(self._operators, self._edge.now())

    def end_followers(self) -> None:
        """At the very end: the last events go to who still follows."""
        self._followers.end(self._edge.now, LAST_WORDS)

    def _show_refusals(self, before: State) -> None:
        for key, slot in self._state.slots.items():
            if slot is not before.slots.get(key):
                refusing = slot.phase is Phase.FAILED or slot.wanted is Wanted.DOWN
                self._edge.places[key].refuse(refusing)

    # -- signals and orphans --------------------------------------------------------------------------------------

    def _on_signals(self, _: int) -> None:
        taken = self._signals.take()
        hung_up = taken.pop(signal.SIGHUP, 0) > 0
        for number, count in taken.items():
            name = processes.signal_name(number)
            if number == signal.SIGCHLD:
                self._orphans_due = True
            elif number == signal.SIGUSR1 and self._edge.outlets.reopen("SIGUSR1"):
                continue
            elif number in STOP_SIGNALS:
                hung_up = False
                # Two that arrived before the first was seen are two: the operator means now.
                for _time in range(min(count, 2)):
                    self.post(StopRequested(self._edge.now(), name))
            else:
                self._edge.journal.emit(
                    "info", "signal.ignored", pid=self._edge.pid, signal=name, count=count
                )
        # Never the second request: of one terminal that goes away, the kernel and the shell tell us both.
        if hung_up and self._state.run is not Run.STOPPING:
            self.post(StopRequested(self._edge.now(), "SIGHUP"))

    def _reap_orphans(self) -> None:
        """Reap the unknown dead and report the unknown living that were reparented to us.

        Never a wait for just any child: the statuses of our own belong to their pidfds. While a birth is open, an unknown child
        may be the newborn, so that nothing unknown is touched until its pid is told.
        """
        if self.workers.births_open:
            return
        self._orphans_due = False
        own = self.workers.pids() | self._templates.pids() | self._edge.servants
        while (found := processes.peek_any_child()) is not None:
            pid, status = found
            if pid in own:
                # Its own descriptor tells of it; what is behind it, after that
                self._orphans_due = True
                return
            processes.reap_pid(pid)
            self._edge.doomed.discard(pid)
            if pid in self._orphans:
                self._orphans.discard(pid)
                self._edge.journal.emit("info", "orphan.exited", pid=pid, reason=str(status))
        known = self._orphans | self._edge.doomed
        for pid in processes.children():
            stranger = pid not in known and self.workers.is_stranger(pid)
            if stranger and not processes.is_zombie(pid):
                self._orphans.add(pid)
                command = processes.command_of(pid)
                self._edge.journal.emit("warning", "orphan.adopted", pid=pid, command=command)

    def take_rest(self) -> None:
        """At the very end: what processes that outlived their worker left in the FIFOs, and lines that nobody ended."""
        for key, place in self._edge.places.items():
            voice = self.voice(key)
            if voice is not None and place.made:
                words = [stream.read_what_is_there() for stream in place.streams]
                self._edge.intake.finish(place.streams, words, voice, lambda: None)

    def end_orphans(self) -> None:
        """At the very end: whatever still lives below us was left by a worker, and goes, and so do its own children."""
        for _ in range(ORPHAN_ROUNDS):
            left = [pid for pid in processes.children() if pid not in self._edge.servants]
            if not left:
                return
            for pid in left:
                self._end_orphan(pid)

    def _end_orphan(self, pid: int) -> None:
        command = processes.command_of(pid)
        expected = pid in self._edge.doomed or processes.is_zombie(pid)
        pidfd = os.pidfd_open(pid)
        try:
            processes.send_signal(pidfd, signal.SIGKILL)
            if not expected:
                fields = {"pid": pid, "command": command}
                self._edge.journal.emit("warning", "orphan.killed", **fields)
            processes.await_exit(pidfd, ORPHAN_PATIENCE)
            processes.reap(pidfd)
        finally:
            os.close(pidfd)

    # -- operators ------------------------------------------------------------------------------------------------

    def command(self, operator: Operator, request: ControlRequest) -> None:
        """Carry out a command of the control socket. Raises ControlError for one that is not."""
        assert self._operators is not None
        assert self._reporter is not None
        if request.command == "status":
            decode_arguments(request, NoArguments)
            self._operators.reply(operator, request.id, self._reporter.status(self._state))
        elif request.command == "stop":
            decode_arguments(request, NoArguments)
            self._operators.reply(operator, request.id, {"stopping": True})
            if self._state.run is not Run.STOPPING:
                self.post(StopRequested(self._edge.now(), "stop command"))
        elif request.command == "restart":
            self._restart(operator, request)
        elif request.command == "logs":
            self._logs(operator, request)
        else:
            known = "logs, restart, status, stop"
            raise ControlError(
                "bad_request", f"unknown command {request.command!r}; there are: {known}"
            )

    def _logs(self, operator: Operator, request: ControlRequest) -> None:
        assert self._operators is not None
        asked = decode_arguments(request, LogsArguments)
        keys = [key for key in self._state.slots if key.model == asked.model]
        if asked.model is None and asked.index is not None:
            raise ControlError("bad_request", "logs: an index without a model")
        if asked.model is not None and not keys:
            models = ", ".join(sorted({key.model for key in self._state.slots}))
            raise ControlError("not_found", f"no model {asked.model!r}; there are: {models}")
        if asked.index is not None and SlotKey(asked.model or "", asked.index) not in keys:
            raise ControlError(
                "not_found", f"no worker {asked.model}/{asked.index}; there are {len(keys)}"
            )
        self._operators.reply(operator, request.id, {"streaming": True})
        self._followers.add(self._operators, operator, asked)

    def _restart(self, operator: Operator, request: ControlRequest) -> None:
        asked = decode_arguments(request, RestartArguments)
        self._commands += 1
        self._waiting[self._commands] = (operator, request.id, asked.model)
        now = self._edge.now()
        if asked.index is None:
            self.post(RestartModelRequested(asked.model, self._commands, now))
        else:
            key = SlotKey(asked.model, asked.index)
            self.post(RestartSlotRequested(key, self._commands, now))

    def _answer(self, answer: Answer) -> None:
        assert self._operators is not None
        operator, id_, model = self._waiting.pop(answer.command)
        if not answer.ok:
            self._operators.fail(operator, id_, answer.code, answer.message)
            return
        workers = []
        for key in answer.keys:
            worker = self.workers.present(key)
            if worker is not None:
                found = {"index": key.index, "generation": worker.generation, "pid": worker.pid}
                workers.append(found)
        self._operators.reply(operator, id_, {"model": model, "workers": workers})
        current = self._state.models[model].current
        if self._edge.plans[model].model_cache is not None and current is not None:
            self._templates.sweep(TemplateKey(model, current))  # of what the old workers used
