"""What the effect modules share: the reactor, the journal, the way events get to the core, and the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelsupervisor.config import ModelSettings, Settings
from modelsupervisor.core.events import Event
from modelsupervisor.core.placement import ModelPlacement
from modelsupervisor.core.states import SlotKey
from modelsupervisor.interpreters import Interpreter
from modelsupervisor.log.catalogue import objection
from modelsupervisor.log.journal import Journal
from modelsupervisor.runtime.board import Board
from modelsupervisor.runtime.intake import Intake
from modelsupervisor.runtime.oom import OomKills
from modelsupervisor.runtime.outlets import Outlets
from modelsupervisor.runtime.place import Place
from modelsupervisor.runtime.reactor import Reactor


@dataclass(frozen=True)
class ModelPlan:
    """A model with everything that its processes are started by."""

    settings: ModelSettings
    placement: ModelPlacement
    environment: Mapping[str, str]
    # Where its archive is unpacked; None for a folder
    model_cache: str | None
    # Of each worker's OpenMP runtime: the operator's number where there is one, else the plan's
    threads: int
    interpreter: Interpreter

    def gpu(self, index: int) -> int | None:
        """The GPU of a worker, by the number that the machine has for it; None where the workers are told of none."""
        gpus = self.settings.gpus
        return gpus[index % len(gpus)] if gpus else None


@dataclass(frozen=True)
class Edge:
    """Handed to every effect module. `post` queues an event for the core; it is answered before the next descriptor is."""

    settings: Settings
    reactor: Reactor
    journal: Journal
    post: Callable[[Event], None]
    plans: Mapping[str, ModelPlan]
    places: Mapping[SlotKey, Place]
    board: Board
    pid: int
    config_path: str  # as people read it, relative to where the supervisor was started
    allowed_cpus: tuple[int, ...]  # what this process might use when it started
    intake: Intake
    outlets: Outlets
    oom: OomKills
    servants: set[int]  # pids of our own that serve no model: log writers
    doomed: set[int]  # pids that were sent SIGKILL with a session of ours and are not reaped yet

    @staticmethod
    def now() -> float:
        """Monotonic seconds: the only clock that decisions are made by."""
        return time.monotonic()

    def config_line(self, model: str) -> str:
        """`conf/workers.ini:12 [model:digits]`, for whoever has to mend it."""
        line = self.plans[model].settings.line
        return f"{self.config_path}:{line} [model:{model}]"


def told_event(edge: Edge, message: dict[str, Any], **identity: Any) -> None:
    """Log an event that a worker sent, if it is one that workers send, with the facts that it has; who it is, is ours to say."""
    level, event, facts = message.get("level"), message.get("event"), message.get("fields")
    wrong = objection(level, event, facts) if isinstance(facts, dict) else "an event without facts"
    if wrong:
        edge.journal.emit("warning", "worker.bad_message", **identity, reason=wrong)
    else:
        source = f"{identity['model']}/{identity['worker']} events"
        edge.journal.emit_told(source, str(level), str(event), **identity, **(facts or {}))
