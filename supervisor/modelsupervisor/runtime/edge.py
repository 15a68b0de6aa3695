"""What the effect modules share: the reactor, the journal, the way events get to the core, and the plan."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from modelsupervisor.config import ModelSettings, Settings
from modelsupervisor.core.events import Event
from modelsupervisor.core.placement import ModelPlacement
from modelsupervisor.core.states import SlotKey
from modelsupervisor.runtime.board import Board
from modelsupervisor.runtime.journal import Journal
from modelsupervisor.runtime.place import Place
from modelsupervisor.runtime.reactor import Reactor

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}")


@dataclass(frozen=True)
class ModelPlan:
    """A model with everything that its processes are started by."""

    settings: ModelSettings
    placement: ModelPlacement
    environment: Mapping[str, str]
    # Of each worker's OpenMP runtime: the operator's number where there is one, else the plan's
    threads: int


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
    allowed_cpus: tuple[int, ...]  # what this process might use when it started
    doomed: set[int]  # pids that were sent SIGKILL with a session of ours and are not reaped yet

    @staticmethod
    def now() -> float:
        """Monotonic seconds: the only clock that decisions are made by."""
        return time.monotonic()

    def config_line(self, model: str) -> str:
        """`conf/workers.ini:12 [model:digits]`, for whoever has to mend it."""
        line = self.plans[model].settings.line
        return f"{os.path.relpath(self.settings.source)}:{line} [model:{model}]"


def _is_name(name: object) -> bool:
    """An event's or a fact's name: a worker may not write to our terminal by way of one."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def told_event(edge: Edge, message: dict[str, Any], **identity: Any) -> None:
    """Log an event that a worker sent; its words are checked, its facts are its own, the identity is ours."""
    level, event = message.get("level"), message.get("event")
    fields = message.get("fields")
    known = level in ("debug", "info", "warning", "error") and _is_name(event)
    if not known or not isinstance(fields, dict) or not all(map(_is_name, fields)):
        edge.journal.emit("warning", "worker.bad_message", **identity, reason="not an event")
        return
    told = {
        name: value
        for name, value in fields.items()
        if name not in ("timestamp", "seq", "level", "event", *identity)
    }
    edge.journal.emit(str(level), str(event), **identity, **told)
