"""Worker processes, from the request for a birth to the one event that tells of the end.

A birth is asked of a template and answered by it (`forked` with a pid) or by the worker itself (`ready`, whose pid is looked at):
whichever comes first makes the process known. From then on its pidfd tells of its end, and the end is read in two phases: what it
was, without reaping; its channel, its last output and its scoreboard record; then its session is killed and it is reaped. Only
then does the core hear of it, and its answer is the successor's birth; the words follow after that.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any

from modelsupervisor.core.actions import (
    AbandonBirth,
    Ending,
    ForkWorker,
    ReportWorkerExit,
    SeatSpare,
    SignalWorker,
    TellWorker,
    WorkerAction,
)
from modelsupervisor.core.events import (
    BirthFailed,
    WorkerBorn,
    WorkerExited,
    WorkerReady,
    WorkerWorn,
)
from modelsupervisor.core.reduce import assert_never
from modelsupervisor.core.states import SlotKey, TemplateKey, Wear
from modelsupervisor.log.catalogue import known_facts
from modelsupervisor.runtime import processes
from modelsupervisor.runtime.births import (
    NotOurs,
    adopt,
    close_channel,
    end_unwanted,
    let_go,
    slot_descriptors,
    slot_message,
)
from modelsupervisor.runtime.board import NOTHING
from modelsupervisor.runtime.drift import Drift
from modelsupervisor.runtime.edge import Edge, told_event
from modelsupervisor.runtime.endings import Corpse, worker_exit_fields
from modelsupervisor.runtime.evidence import bury, evidence_of
from modelsupervisor.runtime.kinship import Kinship
from modelsupervisor.runtime.messages import (
    Message,
    SupervisorEnd,
    channel_pair,
    take_messages,
)
from modelsupervisor.runtime.reactor import Rank
from modelsupervisor.runtime.spares import Spares
from modelsupervisor.runtime.streams import LastLines, Voice
from modelsupervisor.runtime.templates import Templates


@dataclass
class Worker:
    """The process of one generation, or the birth of it."""

    key: SlotKey
    generation: int
    template: TemplateKey
    asked_at: float
    channel: SupervisorEnd | None = None
    pid: int | None = None
    pidfd: int = -1
    complaint: Message | None = None  # its start_failed
    facts: dict[str, Any] = field(default_factory=dict)  # what it said with its ready
    echoes: int = 0  # the pings that it has answered


class Workers:
    """All worker processes by slot."""

    def __init__(self, edge: Edge, templates: Templates) -> None:
        self._edge = edge
        self._templates = templates
        self._present: dict[SlotKey, Worker] = {}
        self._dead: dict[tuple[SlotKey, int], tuple[Worker, Corpse]] = {}
        self.spares = Spares(edge, templates, lambda: self.pids() | templates.pids())
        self.kinship = Kinship(edge, templates, self.pids)
        self.drift = Drift(edge, templates)
        templates.on_birth = self._on_template_answer
        templates.on_gone = self._on_template_gone

    def pids(self) -> set[int]:
        """The pids of the living ones, spares among them."""
        present = {worker.pid for worker in self._present.values() if worker.pid is not None}
        return present | self.spares.pids()

    def present(self, key: SlotKey) -> Worker | None:
        """The process, or birth, of a slot."""
        return self._present.get(key)

    @property
    def births_open(self) -> bool:
        """A birth is under way whose pid is not known yet: an unknown child may be it."""
        unknown = any(worker.pid is None for worker in self._present.values())
        return unknown or self.spares.births_open

    def perform(self, action: WorkerAction) -> None:
        """Carry out what the core wants of a worker."""
        match action:
            case ForkWorker():
                self.fork(action)
            case SeatSpare():
                self.seat(action)
            case TellWorker(key, generation):
                self.tell(key, generation)
            case SignalWorker(key, generation, ending):
                self.signal(key, generation, ending)
            case AbandonBirth(key, generation):
                self.abandon(key, generation)
            case ReportWorkerExit():
                self.report_exit(action)
            case _:
                assert_never(action)

    # -- birth ----------------------------------------------------------------------------------------------------

    def fork(self, action: ForkWorker) -> None:
        """Ask the template for a worker."""
        worker = Worker(action.key, action.generation, action.template, self._edge.now())
        self._present[action.key] = worker
        if not self._templates.request_fork(
            action.template, lambda channel: self._send_fork(worker, channel)
        ):
            self._fail_birth(worker, "its template is gone")

    def _send_fork(self, worker: Worker, template: SupervisorEnd) -> bool:
        """Make the descriptors of a birth and send them; False where nothing was sent."""
        if self._present.get(worker.key) is not worker:
            return False  # abandoned while it waited
        try:
            worker.channel, theirs = channel_pair()
            with theirs, slot_descriptors(self._edge, worker.key) as descriptors:
                self._edge.reactor.add(
                    worker.channel.fileno(), Rank.LIFE, lambda _: self._on_channel(worker)
                )
                message = slot_message(self._edge, "fork", worker.key, worker.generation)
                template.send(message, [theirs.fileno(), *descriptors])
        except OSError as error:
            self._fail_birth(worker, f"cannot ask the template: {error.strerror}")
            return False
        return True

    def seat(self, action: SeatSpare) -> None:
        """Hand a slot to a spare. One that is dead by now is seen to be, like any worker."""
        spare = self.spares.take(action.spare)
        worker = Worker(action.key, action.generation, spare.template, self._edge.now())
        worker.channel, worker.pid, worker.pidfd = spare.channel, spare.pid, spare.pidfd
        self._present[action.key] = worker
        self._watch(worker)
        assert worker.channel is not None
        try:
            with slot_descriptors(self._edge, action.key) as descriptors:
                message = slot_message(self._edge, "seat", action.key, action.generation)
                worker.channel.send(message, descriptors)
        except OSError as error:
            # Dead, and its exit follows; or we could not make the descriptors, and it is of no use
            self._note(worker, "warning", "worker.deaf", reason=error.strerror)
            processes.send_signal(worker.pidfd, signal.SIGKILL)

    def _watch(self, worker: Worker) -> None:
        reactor = self._edge.reactor
        if worker.channel is not None and not worker.channel.closed:
            reactor.pass_on(worker.channel.fileno(), lambda _: self._on_channel(worker))
        reactor.pass_on(worker.pidfd, lambda _: self._on_exit(worker))

    def _on_template_answer(self, template: TemplateKey, message: Message) -> None:
        """`forked` or `fork_failed`. An answer for a birth that was given up means a process nobody wants."""
        if "spare" in message:
            self.spares.on_template_answer(template, message)
            return
        index, pid = message.get("index"), message.get("pid")
        worker = self._present.get(SlotKey(template.model, index if isinstance(index, int) else -1))
        mine = (
            worker is not None
            and worker.template == template
            and worker.generation == message.get("generation")
        )
        if message["kind"] == "forked" and isinstance(pid, int):
            if mine and worker is not None:
                self._adopt(worker, pid)
            elif pid not in self.pids() | self._templates.pids():
                end_unwanted(self._edge, pid)
        elif mine and worker is not None and worker.pid is None:
            self._fail_birth(worker, f"the template could not fork: {message.get('error')}")

    def _adopt(self, worker: Worker, pid: int) -> None:
        """Make a child known."""
        if worker.pid is not None:
            return
        try:
            taken = self.pids() | self._templates.pids()
            worker.pidfd = adopt(self._edge, pid, taken, lambda: self._on_exit(worker))
        except NotOurs as error:
            self._fail_birth(worker, str(error))
            return
        worker.pid = pid
        self._edge.post(WorkerBorn(worker.key, worker.generation, self._edge.now()))

    def _on_template_gone(self, template: TemplateKey) -> None:
        """No answer will come: births whose worker is gone as well have failed; one that lives will say ready itself."""
        self.spares.on_template_gone(template)
        for worker in list(self._present.values()):
            if worker.template == template and worker.pid is None:
                if worker.channel is None or worker.channel.closed:
                    self._fail_birth(worker, "its template died before it forked")

    def _fail_birth(self, worker: Worker, reason: str) -> None:
        self._forget(worker)
        self._keep_unborn(worker)
        self._edge.post(BirthFailed(worker.key, worker.generation, self._edge.now(), reason))

    def abandon(self, key: SlotKey, generation: int) -> None:
        """Forget a birth. Closing its channel is what ends a process that comes of it after all."""
        worker = self._present.get(key)
        if worker is not None and worker.generation == generation and worker.pid is None:
            self._forget(worker)
            self._keep_unborn(worker)

    def _keep_unborn(self, worker: Worker) -> None:
        """Keep what there is to say of a birth that nothing came of, until it is reported."""
        streams = self._edge.places[worker.key].streams
        words = tuple(stream.read_what_is_there() for stream in streams)
        uptime = self._edge.now() - worker.asked_at
        corpse = Corpse(processes.ExitStatus(), uptime, NOTHING, last_words=words)
        self._dead[worker.key, worker.generation] = worker, corpse

    # -- life -----------------------------------------------------------------------------------------------------

    def _on_channel(self, worker: Worker) -> None:
        def refuse(reason: str) -> None:
            self._note(worker, "warning", "worker.bad_message", reason=reason)

        if not take_messages(worker.channel, lambda said: self._on_message(worker, said), refuse):
            close_channel(self._edge, worker)
            if worker.pid is None and not self._templates.alive(worker.template):
                self._fail_birth(worker, "it died while its template did")

    def _on_message(self, worker: Worker, message: Message) -> None:
        kind = message["kind"]
        if kind == "event":
            told_event(self._edge, message, **self._identity(worker))
        elif kind == "start_failed":
            worker.complaint = message
        elif kind == "echo":
            worker.echoes += 1
        elif kind == "worn":
            self._worn(worker)
        elif kind == "ready":
            facts = message.get("facts")
            pid = facts.get("pid") if isinstance(facts, dict) else None
            if worker.pid is None and isinstance(pid, int) and pid in processes.children():
                self._adopt(worker, pid)
            worker.facts = known_facts("worker.ready", facts)
            self._edge.post(WorkerReady(worker.key, worker.generation, self._edge.now()))
        elif kind == "attested":
            self.drift.attested(worker, message)
        else:
            self._note(worker, "warning", "worker.bad_message", reason=f"unknown kind {kind!r}")

    def _worn(self, worker: Worker) -> None:
        """It says that it has answered as much as it may; how much that is, the scoreboard says."""
        number = self._edge.places[worker.key].number
        answered = self._edge.board.read(number, worker.generation).requests
        limit = self._edge.plans[worker.key.model].settings.max_requests
        reason = f"{answered} requests answered, max_requests {limit}"
        now = self._edge.now()
        self._edge.post(WorkerWorn(worker.key, worker.generation, now, Wear.REQUESTS, reason))

    def voice(self, key: SlotKey, generation: int) -> Voice | None:
        """Whose output comes out of a slot's FIFOs now: the process there, or the last that was (`generation`).

        None while a birth is under way whose pid is not known: a newborn with clients in its backlog prints within a millisecond,
        and its lines wait in the FIFO until it has a name.
        """
        worker = self._present.get(key)
        if worker is not None and worker.pid is None:
            return None
        if worker is None:
            return self._voice_of(Worker(key, generation, TemplateKey(key.model, 0), 0.0), ())
        place = self._edge.places[key]
        return self._voice_of(worker, self._edge.board.read(place.number, worker.generation).ids)

    def _voice_of(self, worker: Worker, ids: tuple[str, ...]) -> Voice:
        place = self._edge.places[worker.key]
        ring = worker.key.model, worker.key.index
        return Voice("worker.output", ring, self._identity(worker), place.last_lines, ids)

    @staticmethod
    def _identity(worker: Worker) -> dict[str, Any]:
        return {
            "model": worker.key.model,
            "worker": worker.key.index,
            "pid": worker.pid,
            "generation": worker.generation,
        }

    def _note(self, worker: Worker, level: str, event: str, **fields: Any) -> None:
        self._edge.journal.emit(level, event, **self._identity(worker), **fields)

    def tell(self, key: SlotKey, generation: int) -> None:
        """Send the stop message; if it cannot be sent, the stop deadline ends the worker."""
        worker = self._present.get(key)
        if worker is None or worker.generation != generation or worker.channel is None:
            return
        try:
            worker.channel.send({"kind": "stop"})
        except OSError as error:
            self._note(worker, "warning", "worker.deaf", reason=error.strerror)

    def signal(self, key: SlotKey, generation: int, ending: Ending) -> None:
        """Send a signal that ends it."""
        worker = self._present.get(key)
        if worker is not None and worker.generation == generation and worker.pidfd >= 0:
            processes.end(worker.pidfd, signal.Signals[ending.value])

    # -- the end --------------------------------------------------------------------------------------------------

    def _on_exit(self, worker: Worker) -> None:
        status = processes.peek_exit(worker.pidfd)
        if status is None:
            return
        assert worker.pid is not None
        now = self._edge.now()
        self._on_channel(worker)
        place = self._edge.places[worker.key]
        words = tuple(stream.read_what_is_there() for stream in place.streams)
        reading = self._edge.board.read(place.number, worker.generation)
        helpers = processes.kill_session(worker.pid) if self.kinship.strangers() else []
        if helpers:  # they may have written between the reading and the killing
            more = (stream.read_what_is_there() for stream in place.streams)
            words = tuple(a + b for a, b in zip(words, more, strict=True))
        self._edge.doomed.update(helpers)
        remains = bury(worker.pid, status)
        self._forget(worker)
        place.answered_before += reading.requests
        age, complaint = now - worker.asked_at, worker.complaint
        corpse = Corpse(status, age, reading, complaint, words, len(helpers), remains)
        self._dead[worker.key, worker.generation] = worker, corpse
        self._edge.post(
            WorkerExited(
                worker.key,
                worker.generation,
                now,
                reason=str(status),
                answered=reading.requests,
                in_hand=reading.in_hand,
                declined=worker.complaint is not None,
            )
        )

    def _forget(self, worker: Worker) -> None:
        let_go(self._edge, worker)
        if self._present.get(worker.key) is worker:
            del self._present[worker.key]

    def report_exit(self, action: ReportWorkerExit) -> None:
        """The one event of a generation's end, its last output before it."""
        worker, corpse = self._dead.pop((action.key, action.generation))
        place = self._edge.places[action.key]
        # The successor may be known by now; these lines are still the dead one's, and its last lines are its own.
        voice = self._voice_of(worker, corpse.reading.ids)
        place.last_lines = LastLines()
        last_lines: list[str] = []
        known = (corpse.status, corpse.remains, self._edge.oom, self._edge.now())
        evidence = evidence_of(action, *known)
        level, event, facts = worker_exit_fields(action, corpse, last_lines, evidence)
        if action.spawned:
            place.last_exit = dict(facts, generation=action.generation)
            if not action.asked:
                place.restarts += 1
        if not action.asked:
            place.last_crash = dict(facts, generation=action.generation, pid=worker.pid)

        def done() -> None:
            last_lines.extend(voice.last_lines.take())
            self._note(worker, level, event, **facts)

        self._edge.intake.finish(place.streams, corpse.last_words, voice, done)
