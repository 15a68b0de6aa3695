"""Template processes: started by exec, spoken to over their channel, ended and reaped like any child.

A template is exec'd by posix_spawn (the child runs no Python of ours in between) in a session of its own, with an environment of
its own and four descriptors: nothing, two pipes that this process holds both ends of, and its channel. Fork requests wait here and
go out a few at a time: the template forks one after another anyway, each request carries five descriptors, and an unprivileged
user may have no more of those in flight than RLIMIT_NOFILE.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Any

import modelworker

from modelsupervisor import __version__
from modelsupervisor.core.actions import (
    Ending,
    ReportTemplateExit,
    SignalTemplate,
    StartTemplate,
    TemplateAction,
)
from modelsupervisor.core.events import TemplateExited, TemplateLoaded
from modelsupervisor.core.reduce import assert_never
from modelsupervisor.core.states import TemplateKey
from modelsupervisor.log.catalogue import known_facts
from modelsupervisor.runtime import processes
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.endings import template_cause
from modelsupervisor.runtime.evidence import Evidence, Remains, bury, evidence_of
from modelsupervisor.runtime.messages import (
    Message,
    SupervisorEnd,
    channel_pair,
    take_messages,
    text_or_none,
)
from modelsupervisor.runtime.reactor import Rank
from modelsupervisor.runtime.streams import LastLines, Stream, Voice

FORKS_IN_FLIGHT = 8
CHANNEL_NUMBER = 3  # the template's descriptor of its channel

ForkRequest = Callable[[SupervisorEnd], bool]
"""Sends one fork message; False where the request is not wanted any more."""


class TemplateProcess:
    """One template: its descriptors, the births asked of it, and what it said."""

    def __init__(self, key: TemplateKey, begun: float) -> None:
        self.key = key
        self.begun = begun
        self.pid = 0
        self.pidfd = -1
        self.channel: SupervisorEnd | None = None
        self.streams: tuple[Stream, ...] = ()
        self.writing_ends: tuple[int, ...] = ()
        self.last_lines = LastLines()
        self.queue: deque[ForkRequest] = deque()
        self.in_flight = 0
        self.facts: dict[str, Any] = {}
        self.complaint: Message | None = None  # its load_failed
        self.status: processes.ExitStatus | None = None
        self.last_words: tuple[bytes, ...] = ()
        self.remains = Remains()


class Templates:
    """All template processes by key."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._all: dict[TemplateKey, TemplateProcess] = {}
        self._dead: dict[TemplateKey, TemplateProcess] = {}
        self.on_birth: Callable[[TemplateKey, Message], None]
        self.on_gone: Callable[[TemplateKey], None]

    def pids(self) -> set[int]:
        """The pids of the living ones."""
        return {template.pid for template in self._all.values()}

    def pid_of(self, key: TemplateKey) -> int | None:
        """The pid of a living template."""
        template = self._all.get(key)
        return template.pid if template else None

    def alive(self, key: TemplateKey) -> bool:
        """True until its exit was seen."""
        return key in self._all

    def perform(self, action: TemplateAction) -> None:
        """Carry out what the core wants of a template."""
        match action:
            case StartTemplate(key):
                self.start(key)
            case SignalTemplate(key, ending):
                self.signal(key, ending)
            case ReportTemplateExit():
                self.report_exit(action)
            case _:
                assert_never(action)

    # -- starting -------------------------------------------------------------------------------------------------

    def start(self, key: TemplateKey) -> None:
        """Exec a template and tell it what to load; a failure comes back as its exit."""
        template = TemplateProcess(key, self._edge.now())
        try:
            self._spawn(template)
        except OSError as error:
            self._give_up(template)
            reason = f"cannot start an interpreter: {error.strerror}"
            self._dead[key] = template
            self._edge.post(TemplateExited(key, self._edge.now(), reason))

    def _give_up(self, template: TemplateProcess) -> None:
        """Undo a start that failed on its way; a process that there is already ends, and is reaped like an orphan."""
        if template.pid:
            self._edge.doomed.add(template.pid)
            processes.kill_child(template.pid)
        self._all.pop(template.key, None)
        self._discard(template)

    def _spawn(self, template: TemplateProcess) -> None:
        model = template.key.model
        plan = self._edge.plans[model]
        ends = []
        streams = []
        for name in ("stdout", "stderr"):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reading, False)
            streams.append(self._stream(template, name, reading))
            ends.append(writing)
            template.streams, template.writing_ends = tuple(streams), tuple(ends)
        template.channel, theirs = channel_pair()
        try:
            program = os.path.join(os.path.dirname(modelworker.__file__), "__main__.py")
            python = plan.interpreter.path
            arguments = [python, program, "--supervisor", str(self._edge.pid)]
            template.pid = os.posix_spawn(
                python,
                [*arguments, "--channel", str(CHANNEL_NUMBER)],
                dict(plan.environment),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, ends[0], 1),
                    (os.POSIX_SPAWN_DUP2, ends[1], 2),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), CHANNEL_NUMBER),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        finally:
            theirs.close()
        template.pidfd = os.pidfd_open(template.pid)
        self._all[template.key] = template
        self._watch(template)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # Those say that it died already: its exit follows, and says more
            template.channel.send({"kind": "load", "spec": self._spec(model)})

    def _spec(self, model: str) -> dict[str, Any]:
        plan = self._edge.plans[model]
        return {
            "model": model,
            "path": plan.settings.path,
            "model_cache": plan.model_cache,
            "max_archive_size": plan.settings.max_archive_size,
            "handler": plan.settings.handler,
            "batch_size": plan.settings.batch_size,
            "preload": plan.settings.preload,
            "python": plan.interpreter.path,
            # Each worker sees one device, and the one that is seen is number 0; -1 is the CPU
            "gpu_id": 0 if plan.settings.gpus else -1,
            # A model that floats must not inherit the CPUs that only the supervisor was told to stay on.
            "cpus": plan.placement.cpus or self._edge.allowed_cpus,
            "warmup": plan.settings.warmup,
            "server_version": __version__,
        }

    def _watch(self, template: TemplateProcess) -> None:
        assert template.channel is not None
        reactor = self._edge.reactor
        reactor.add(template.pidfd, Rank.LIFE, lambda _: self._on_exit(template))
        reactor.add(template.channel.fileno(), Rank.LIFE, lambda _: self._on_channel(template))
        for stream in template.streams:
            self._edge.intake.add(stream)

    def _stream(self, template: TemplateProcess, name: str, fd: int) -> Stream:
        model = template.key.model
        max_line = self._edge.plans[model].settings.max_line
        source = f"{model} template {name}"
        return Stream(name, source, fd, max_line, self._edge.journal, lambda: self._voice(template))

    @staticmethod
    def _voice(template: TemplateProcess) -> Voice:
        key = template.key
        identity = {"model": key.model, "pid": template.pid, "generation": key.generation}
        return Voice("template.output", (key.model, None), identity, template.last_lines)

    # -- messages -------------------------------------------------------------------------------------------------

    def _on_channel(self, template: TemplateProcess) -> None:
        def refuse(reason: str) -> None:
            self._note(template, "warning", "template.bad_message", reason=reason)

        channel = template.channel
        if not take_messages(channel, lambda said: self._on_message(template, said), refuse):
            assert channel is not None
            self._edge.reactor.remove(channel.fileno())
            channel.close()

    def _on_message(self, template: TemplateProcess, message: Message) -> None:
        kind = message["kind"]
        if kind == "loaded":
            facts = message.get("facts")
            # A process that runs the model's code says so: only what the event has, of the type that it has there
            template.facts = known_facts("template.ready", facts)
            self._edge.post(TemplateLoaded(template.key, self._edge.now()))
        elif kind == "load_failed":
            template.complaint = message
        elif kind in ("forked", "fork_failed"):
            template.in_flight = max(0, template.in_flight - 1)
            self.on_birth(template.key, message)
            self._send_forks(template)
        else:
            self._note(template, "warning", "template.bad_message", reason=f"unknown kind {kind!r}")

    def _note(self, template: TemplateProcess, level: str, event: str, **fields: Any) -> None:
        key = template.key
        self._edge.journal.emit(
            *(level, event),
            model=key.model,
            pid=template.pid or None,  # none where no interpreter could be started
            generation=key.generation,
            **fields,
        )

    def facts(self, key: TemplateKey) -> dict[str, Any]:
        """What a template said of itself when it had loaded, and how long that took from the exec on."""
        template = self._all.get(key) or self._dead.get(key)
        if template is None:
            return {}
        return {**template.facts, "start_s": round(self._edge.now() - template.begun, 4)}

    def sweep(self, key: TemplateKey) -> None:
        """Have a template remove unpacked archives that nobody uses any more, when it has nothing else to do."""
        template = self._all.get(key)
        if template is not None and template.channel is not None and not template.channel.closed:
            with contextlib.suppress(OSError):  # dying, or busy: a later one does it, or the end
                template.channel.send({"kind": "sweep"})

    # -- births ---------------------------------------------------------------------------------------------------

    def request_fork(self, key: TemplateKey, request: ForkRequest) -> bool:
        """Queue a fork request; False where the template is gone."""
        template = self._all.get(key)
        if template is None:
            return False
        template.queue.append(request)
        self._send_forks(template)
        return True

    def _send_forks(self, template: TemplateProcess) -> None:
        while template.queue and template.in_flight < FORKS_IN_FLIGHT:
            if template.channel is None or template.channel.closed:
                return  # its exit follows, and ends the births that wait
            if template.queue.popleft()(template.channel):
                template.in_flight += 1

    # -- the end --------------------------------------------------------------------------------------------------

    def signal(self, key: TemplateKey, ending: Ending) -> None:
        """Send a signal that ends it."""
        template = self._all.get(key)
        if template is not None:
            processes.end(template.pidfd, signal.Signals[ending.value])

    def _on_exit(self, template: TemplateProcess) -> None:
        status = processes.peek_exit(template.pidfd)
        if status is None:
            return
        self._on_channel(template)
        template.status = status
        template.last_words = tuple(stream.read_what_is_there() for stream in template.streams)
        helpers = processes.kill_session(template.pid)
        if helpers:  # they may have written between the reading and the killing
            more = (stream.read_what_is_there() for stream in template.streams)
            template.last_words = tuple(
                a + b for a, b in zip(template.last_words, more, strict=True)
            )
        self._edge.doomed.update(helpers)
        template.remains = bury(template.pid, status)
        del self._all[template.key]
        self._dead[template.key] = template
        self._discard(template)
        reason = str(status)
        if template.complaint is not None:
            reason = str(template.complaint.get("error"))
        self._edge.post(TemplateExited(template.key, self._edge.now(), reason))
        self.on_gone(template.key)

    def _discard(self, template: TemplateProcess) -> None:
        """Let go of every descriptor but what has been read already."""
        if template.channel is not None and not template.channel.closed:
            self._edge.reactor.remove(template.channel.fileno())
            template.channel.close()
        for stream in template.streams:
            self._edge.intake.remove(stream)
            os.close(stream.fd)
        for end in template.writing_ends:
            os.close(end)
        template.writing_ends = ()
        if template.pidfd >= 0:
            self._edge.reactor.remove(template.pidfd)
            os.close(template.pidfd)
            template.pidfd = -1

    def report_exit(self, action: ReportTemplateExit) -> None:
        """The one event of a template's end, its last output before it."""
        template = self._dead.pop(action.key)
        now = self._edge.now()
        known = (template.status, template.remains, self._edge.oom, now)
        evidence = evidence_of(action, *known)
        uptime = round(now - template.begun, 3)
        self._edge.intake.finish(
            template.streams,
            template.last_words,
            self._voice(template),
            lambda: self._tell_exit(template, action, uptime, evidence),
        )

    def _tell_exit(
        self,
        template: TemplateProcess,
        action: ReportTemplateExit,
        uptime: float,
        evidence: Evidence,
    ) -> None:
        status = template.status or processes.ExitStatus()
        complaint = template.complaint or {}
        failed = not action.asked
        self._note(
            template,
            "error" if failed else "info",
            "template.exited",
            cause=template_cause(action, template.status, template.complaint, evidence),
            reason=action.reason,
            **evidence.fields,
            code=status.code,
            signal=status.signal_name,
            uptime_s=uptime,
            loaded=action.loaded,
            next=action.next.value,
            retry_in_s=None if action.delay is None else round(action.delay, 3),
            failures=action.failures,
            config=self._edge.config_line(action.key.model) if failed else None,
            traceback=text_or_none(complaint.get("traceback")),
            last_lines=template.last_lines.take() if failed else None,
        )
