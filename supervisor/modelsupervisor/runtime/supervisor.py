"""The loop: wait, turn what happened into events, let the core decide, carry out what it said.

There is one blocking call, the reactor's wait, and its time-out is the core's next deadline. Descriptors come before deadlines, so
that a supervisor which was itself stopped for a while first hears what its workers have said meanwhile and only then looks at the
clock. Effects that fail become events of the same queue; the queue is empty before the next descriptor is served, so that between
a worker's death and its successor's birth lies no other work.
"""

from __future__ import annotations

import signal
import traceback
from collections import Counter, deque
from itertools import zip_longest
from typing import Any

from modelsupervisor.control import ControlRequest
from modelsupervisor.core import next_deadline, reduce
from modelsupervisor.core.actions import (
    AbandonSpare,
    Action,
    Answer,
    AskWorker,
    Exit,
    ForkSpare,
    LookAtWorkers,
    Note,
    ReportSpareExit,
    ReportTemplateExit,
    SignalSpare,
    SignalTemplate,
    StartTemplate,
)
from modelsupervisor.core.events import Event, Started, StopRequested, Tick
from modelsupervisor.core.states import Phase, Run, SlotKey, State, Wanted
from modelsupervisor.runtime import processes
from modelsupervisor.runtime.commands import Commands
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.followers import Followers
from modelsupervisor.runtime.operators import Operator, Operators
from modelsupervisor.runtime.orphans import Orphans
from modelsupervisor.runtime.reactor import Rank, Watch
from modelsupervisor.runtime.report import Reporter
from modelsupervisor.runtime.signals import STOP_SIGNALS, Signals
from modelsupervisor.runtime.streams import Voice
from modelsupervisor.runtime.templates import Templates
from modelsupervisor.runtime.watch import Lookout
from modelsupervisor.runtime.wear import MemoryWatch
from modelsupervisor.runtime.workers import Worker, Workers

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
        self._commands: Commands | None = None
        self._exit: int | None = None
        self._followers = Followers(edge.journal, edge.settings.supervisor.log_buffer)
        self._memory = MemoryWatch(edge, self.workers)
        self._lookout = Lookout(edge, self.workers, (self._glance,))
        self._orphans = Orphans(edge, self.workers, self._templates)
        self._faults: Counter[Watch | None] = Counter()
        self._timed: State | None = None  # the state that `_deadline` is of
        self._deadline: float | None = None

    def post(self, event: Event) -> None:
        """Queue an event for the core."""
        self._queue.append(event)

    def voice(self, key: SlotKey) -> Voice | None:
        """Whose output comes out of a slot's FIFOs now; None where that is not known yet."""
        return self.workers.voice(key, self._state.slots[key].generation)

    def take_signals(self) -> None:
        """Answer signals from here on. Raises OSError."""
        self._edge.reactor.add(self._signals.fileno(), Rank.LIFE, self._on_signals)

    def serve_operators(self, operators: Operators, reporter: Reporter) -> None:
        """Take commands from here on."""
        self._operators = operators
        parts = (reporter, self._followers, self._templates, self.workers)
        self._commands = Commands(self._edge, operators, *parts)

    def command(self, operator: Operator, request: ControlRequest) -> None:
        """Carry out a command of the control socket. Raises ControlError for one that is not."""
        assert self._commands is not None
        self._commands.command(operator, request, self._state)

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until nothing is left to run; returns the exit code. From here on, we do not die of what others do."""
        reactor = self._edge.reactor
        self.post(Started(self._edge.now()))
        self._settle()
        while self._exit is None:
            self._write_log()
            looked = self._edge.now()
            for watch, events in reactor.wait(self._timeout()):
                if reactor.still(watch):
                    self._serve(watch, events)
            self._tick(looked)
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
            if self._borne(watch) >= FAULTS_BORNE:
                if watch.rank is Rank.LIFE:
                    raise
                self._edge.reactor.remove(watch.fd)
        self._settle()  # what was queued behind a fault

    def _borne(self, source: Watch | None) -> int:
        """Tell of the fault that is being handled; how many there were from this source, None for the clock."""
        self._faults[source] += 1
        words = traceback.format_exc()
        self._edge.journal.emit("error", "supervisor.fault", pid=self._edge.pid, traceback=words)
        return self._faults[source]

    def _next_deadline(self) -> float | None:
        """The core's; looked for once a state, since a loop that reads output turns often and every slot is looked at."""
        if self._timed is not self._state:
            self._timed, self._deadline = self._state, next_deadline(self._state)
        return self._deadline

    def _timeout(self) -> float | None:
        deadline = self._next_deadline()
        edge = self._edge
        due = (
            *(deadline, edge.intake.deadline(), edge.outlets.deadline()),
            self._memory.deadline(),
        )
        soonest = min((each for each in due if each is not None), default=None)
        timeout = None if soonest is None else soonest - self._edge.now()
        if self._state.run is Run.STARTING and self._show_progress():
            timeout = PROGRESS_STEP if timeout is None else min(timeout, PROGRESS_STEP)
        return timeout

    def _tick(self, looked: float) -> None:
        """Serve the deadlines that had passed when the descriptors were looked at for this turn.

        No later ones: in a turn that is long, of a thousand exits on a busy machine, others say what they are waited for, and are
        only heard in the next one. A template that had borne all it was asked for was taken for hung that way.
        """
        try:
            deadline = self._next_deadline()
            if deadline is not None and deadline <= looked:
                self.post(Tick(looked))
                self._settle()
            now = self._edge.now()
            self._edge.outlets.tick(now)
            self._edge.intake.tick(now)
            self._memory.tick(now)
            self._settle()
        except Exception:
            if self._borne(None) >= FAULTS_BORNE:
                raise

    def _settle(self) -> None:
        """Answer every queued event, and what its effects bring, in order."""
        while self._queue and self._exit is None:
            before = self._state
            self._state, actions = reduce(before, self._queue.popleft())
            for action in actions:
                self._perform(action)
            if before.slots is not self._state.slots:
                self._show_refusals(before)
        self._orphans.reap()

    def _perform(self, action: Action) -> None:
        match action:
            case Note():
                self._note(action)
            case Answer():
                assert self._commands is not None
                self._commands.answer(action, self._state)
            case Exit(code):
                self._exit = code
            case StartTemplate() | SignalTemplate() | ReportTemplateExit():
                self._templates.perform(action)
            case ForkSpare() | SignalSpare() | AbandonSpare() | ReportSpareExit():
                self.workers.spares.perform(action)
            case LookAtWorkers() | AskWorker():
                self._lookout.perform(action)
            case _:
                self.workers.perform(action)

    def _glance(self, worker: Worker) -> None:
        """While a worker is looked at anyhow: is it as planned, and did the kernel kill somebody for want of memory meanwhile."""
        self.workers.drift.refresh([worker])
        self._edge.oom.refresh(self._edge.now())

    # -- words ----------------------------------------------------------------------------------------------------

    def _note(self, note: Note) -> None:
        facts: dict[str, Any] = {"generation": note.generation}
        if note.slot is not None:
            worker = self.workers.present(note.slot)
            facts["model"], facts["worker"] = note.slot.model, note.slot.index
            facts["pid"] = worker.pid if worker is not None else None
            if note.event == "worker.ready" and worker is not None:
                place = self._edge.places[note.slot]
                place.recovered(worker.generation, worker.pid, dict(note.fields))
                facts = {**worker.facts, **facts}
            elif note.event == "worker.hung":
                facts.update(self._lookout.evidence(note.slot))
        elif note.spare is not None:
            key, spares = note.spare, self.workers.spares
            facts = {"model": key.model, "spare": key.number, "pid": spares.pid_of(key)}
            facts["start_s"] = spares.started_in(key)
        elif note.template is not None:
            facts["model"] = note.template.model
            facts["pid"] = self._templates.pid_of(note.template)
            if note.event == "template.ready":
                facts = {**self._templates.facts(note.template), **facts}
        else:
            facts["pid"] = self._edge.pid
        if note.config_of is not None:
            facts["config"] = self._edge.config_line(note.config_of)
        self._edge.journal.emit(note.level, note.event, **{**facts, **dict(note.fields)})
        if note.slot is not None and note.event == "worker.ready":
            self.workers.drift.expect(self.workers.present(note.slot))

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
        # Slots are compared in their order, which a step keeps; one that had only changed its place would be told what it knows.
        pairs = zip_longest(self._state.slots.values(), before.slots.values())
        for slot in [new for new, old in pairs if new is not old and new is not None]:
            refusing = slot.phase is Phase.FAILED or slot.wanted is Wanted.DOWN
            self._edge.places[slot.key].refuse(refusing)

    # -- signals and orphans --------------------------------------------------------------------------------------

    def _on_signals(self, _: int) -> None:
        taken = self._signals.take()
        hung_up = taken.pop(signal.SIGHUP, 0) > 0
        for number, count in taken.items():
            name = processes.signal_name(number)
            if number == signal.SIGCHLD:
                self._orphans.due = True
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

    def end_orphans(self) -> None:
        """At the very end: what workers left behind goes."""
        self._orphans.end()

    def take_rest(self) -> None:
        """At the very end: what processes that outlived their worker left in the FIFOs, and lines that nobody ended."""
        for key, place in self._edge.places.items():
            voice = self.voice(key)
            if voice is not None and place.made:
                words = [stream.read_what_is_there() for stream in place.streams]
                self._edge.intake.finish(place.streams, words, voice, lambda: None)
