"""Spare processes: workers that have everything but a slot, until they are handed one.

A spare is born like any worker, of its template's heir, with one descriptor, its channel. It says `parked` there when all is done
but for what a slot brings; `seat` hands it that, and from then on the process belongs to `workers`, under the slot's name. What it
prints before that is its template's output. Its end is seen like that of a worker: peeked, its session killed, reaped.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from modelsupervisor.core.actions import (
    AbandonSpare,
    Ending,
    ForkSpare,
    ReportSpareExit,
    SignalSpare,
    SpareAction,
)
from modelsupervisor.core.events import SpareBorn, SpareExited, SpareParked
from modelsupervisor.core.reduce import assert_never
from modelsupervisor.core.states import Blame, SpareKey, TemplateKey
from modelsupervisor.runtime import processes
from modelsupervisor.runtime.births import NotOurs, adopt, close_channel, end_unwanted, let_go
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.endings import complained_cause
from modelsupervisor.runtime.evidence import Evidence, Remains, bury, evidence_of
from modelsupervisor.runtime.messages import (
    Message,
    SupervisorEnd,
    channel_pair,
    take_messages,
    text_or_none,
)
from modelsupervisor.runtime.reactor import Rank
from modelsupervisor.runtime.templates import Templates


@dataclass
class SpareProcess:
    """One spare, or the birth of it."""

    key: SpareKey
    template: TemplateKey
    asked_at: float
    channel: SupervisorEnd | None = None
    pid: int | None = None
    pidfd: int = -1
    complaint: Message | None = None  # its start_failed
    status: processes.ExitStatus | None = None
    remains: Remains = field(default_factory=Remains)
    ended_at: float = 0.0


class Spares:
    """All spare processes by key, until they are seated or gone. `taken` tells the pids that are somebody of ours already."""

    def __init__(self, edge: Edge, templates: Templates, taken: Callable[[], set[int]]) -> None:
        self._edge = edge
        self._templates = templates
        self._taken = taken
        self._all: dict[SpareKey, SpareProcess] = {}
        self._dead: dict[SpareKey, SpareProcess] = {}

    def pids(self) -> set[int]:
        """The pids of the living ones."""
        return {spare.pid for spare in self._all.values() if spare.pid is not None}

    def pid_of(self, key: SpareKey) -> int | None:
        """The pid of a living spare."""
        spare = self._all.get(key)
        return None if spare is None else spare.pid

    def started_in(self, key: SpareKey) -> float:
        """Seconds since a spare was asked for."""
        spare = self._all.get(key)
        return 0.0 if spare is None else round(self._edge.now() - spare.asked_at, 4)

    def of(self, model: str) -> list[SpareProcess]:
        """The spares of a model in the order of their births."""
        return [spare for spare in self._all.values() if spare.key.model == model]

    @property
    def births_open(self) -> bool:
        """A birth is under way whose pid is not known yet."""
        return any(spare.pid is None for spare in self._all.values())

    def perform(self, action: SpareAction) -> None:
        """Carry out what the core wants of a spare."""
        match action:
            case ForkSpare():
                self.fork(action)
            case SignalSpare(key, ending):
                self.signal(key, ending)
            case AbandonSpare(key):
                self.abandon(key)
            case ReportSpareExit():
                self.report_exit(action)
            case _:
                assert_never(action)

    # -- birth ----------------------------------------------------------------------------------------------------

    def fork(self, action: ForkSpare) -> None:
        """Ask the template for a spare."""
        spare = SpareProcess(action.key, action.template, self._edge.now())
        self._all[action.key] = spare
        if not self._templates.request_fork(
            action.template, lambda channel: self._send_fork(spare, channel)
        ):
            self._fail_birth(spare, "its template is gone")

    def _send_fork(self, spare: SpareProcess, template: SupervisorEnd) -> bool:
        """Make the channel of a spare and send it; False where nothing was sent."""
        if self._all.get(spare.key) is not spare:
            return False  # abandoned while it waited
        plan = self._edge.plans[spare.key.model]
        message = {
            "kind": "fork",
            "model": spare.key.model,
            "spare": spare.key.number,
            "threads": plan.threads,
        }
        try:
            spare.channel, theirs = channel_pair()
            with theirs:
                self._edge.reactor.add(
                    spare.channel.fileno(), Rank.LIFE, lambda _: self._on_channel(spare)
                )
                template.send(message, [theirs.fileno()])
        except OSError as error:
            self._fail_birth(spare, f"cannot ask the template: {error.strerror}")
            return False
        return True

    def on_template_answer(self, template: TemplateKey, message: Message) -> None:
        """`forked` or `fork_failed` for a spare."""
        number, pid = message.get("spare"), message.get("pid")
        key = SpareKey(template.model, number if isinstance(number, int) else -1)
        spare = self._all.get(key)
        if spare is not None and (spare.template != template or spare.pid is not None):
            return
        if message["kind"] == "forked" and isinstance(pid, int):
            if spare is not None:
                self._adopt(spare, pid)
            elif pid not in self._taken():
                end_unwanted(self._edge, pid)
        elif spare is not None:
            self._fail_birth(spare, f"the template could not fork: {message.get('error')}")

    def _adopt(self, spare: SpareProcess, pid: int) -> None:
        try:
            spare.pidfd = adopt(self._edge, pid, self._taken(), lambda: self._on_exit(spare))
        except NotOurs as error:
            self._fail_birth(spare, str(error))
            return
        spare.pid = pid
        self._edge.post(SpareBorn(spare.key, self._edge.now()))

    def on_template_gone(self, template: TemplateKey) -> None:
        """No answer will come: what is not known by now will not be."""
        for spare in list(self._all.values()):
            if spare.template == template and spare.pid is None:
                self._fail_birth(spare, "its template died before it forked")

    def _fail_birth(self, spare: SpareProcess, reason: str) -> None:
        self._forget(spare)
        self._edge.post(SpareExited(spare.key, self._edge.now(), reason, spawned=False))

    def abandon(self, key: SpareKey) -> None:
        """Forget a birth. Closing its channel is what ends a process that comes of it after all."""
        spare = self._all.get(key)
        if spare is not None and spare.pid is None:
            self._forget(spare)

    # -- life -----------------------------------------------------------------------------------------------------

    def _on_channel(self, spare: SpareProcess) -> None:
        def refuse(reason: str) -> None:
            self._note(spare, "warning", "spare.bad_message", reason=reason)

        if not take_messages(spare.channel, lambda said: self._on_message(spare, said), refuse):
            close_channel(self._edge, spare)

    def _on_message(self, spare: SpareProcess, message: Message) -> None:
        kind = message["kind"]
        if kind == "parked":
            if spare.status is not None:
                return  # and died: no slot may be given to it any more
            facts = message.get("facts")
            pid = facts.get("pid") if isinstance(facts, dict) else None
            # It is often faster than its template, which tells of it too
            if spare.pid is None and isinstance(pid, int) and pid in processes.children():
                self._adopt(spare, pid)
            self._edge.post(SpareParked(spare.key, self._edge.now()))
        elif kind == "start_failed":
            spare.complaint = message
        else:
            self._note(spare, "warning", "spare.bad_message", reason=f"unknown kind {kind!r}")

    def _note(self, spare: SpareProcess, level: str, event: str, **fields: Any) -> None:
        key = spare.key
        self._edge.journal.emit(
            level, event, model=key.model, spare=key.number, pid=spare.pid, **fields
        )

    def take(self, key: SpareKey) -> SpareProcess:
        """Let go of a spare that is to be seated: from here on it is somebody else's to look after, and to be called for."""
        return self._all.pop(key)

    def signal(self, key: SpareKey, ending: Ending) -> None:
        """Send SIGTERM or SIGKILL."""
        spare = self._all.get(key)
        if spare is not None and spare.pidfd >= 0:
            processes.end(spare.pidfd, signal.Signals[ending.value])

    # -- the end --------------------------------------------------------------------------------------------------

    def _on_exit(self, spare: SpareProcess) -> None:
        status = processes.peek_exit(spare.pidfd)
        if status is None:
            return
        assert spare.pid is not None
        spare.status = status
        self._on_channel(spare)
        self._edge.doomed.update(processes.kill_session(spare.pid))
        spare.remains = bury(spare.pid, status)
        self._forget(spare)
        self._edge.post(SpareExited(spare.key, self._edge.now(), str(status)))

    def _forget(self, spare: SpareProcess) -> None:
        let_go(self._edge, spare)
        spare.ended_at = self._edge.now()
        self._dead[spare.key] = spare
        self._all.pop(spare.key, None)

    def report_exit(self, action: ReportSpareExit) -> None:
        """The one event of a spare's end."""
        spare = self._dead.pop(action.key)
        status = spare.status or processes.ExitStatus()
        complaint = spare.complaint or {}
        reason = action.reason
        if complaint:
            reason = f"could not start: {complaint.get('error')}"
        elif action.blame is Blame.START_TIMEOUT:
            reason = f"not ready within startup_timeout; {reason}"
        known = (spare.status, spare.remains, self._edge.oom, self._edge.now())
        evidence = evidence_of(action, *known)
        self._note(
            spare,
            "info" if action.asked else "warning",
            "spare.exited",
            cause=_cause(action, spare, evidence),
            reason=reason,
            **evidence.fields,
            code=status.code,
            signal=status.signal_name,
            uptime_s=round(spare.ended_at - spare.asked_at, 3),
            retry_in_s=None if action.delay is None else round(action.delay, 3),
            failures=action.failures,
            traceback=text_or_none(complaint.get("traceback")),
        )


def _cause(action: ReportSpareExit, spare: SpareProcess, evidence: Evidence) -> str:
    """One word for why a spare is gone, as for a worker."""
    if not action.spawned:
        return "spawn_failed"
    if action.blame is not None:
        return action.blame.value
    if spare.complaint is not None:
        return complained_cause(spare.complaint, "start_failed")
    if action.asked:
        return "stopped"
    died = "exit" if spare.status is None or spare.status.signal is None else "signal"
    return evidence.cause or died
