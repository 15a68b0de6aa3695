"""The log: every event is one structlog event, a JSON line, handed to every sink and kept in a ring.

The envelope is the same everywhere: `timestamp` (UTC), `level`, `event`, `seq`, then `model`, `worker`, `pid`, `generation` where
they apply, then the facts. `seq` counts the events made, by the supervisor alone, whether a sink took them or not: a gap in a
sink's copy is what that sink did not take, and its `log.dropped` says how many. An event below the log level is not made, and not
counted. Lines of output, the hot path, come in blocks that were rendered already (`log.render`) and only get their numbers here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from datetime import datetime, timezone
from typing import Any

import msgspec

from modelsupervisor.log.outlet import Outlet
from modelsupervisor.log.render import Block, RingKey
from modelsupervisor.log.ring import Rings
from modelsupervisor.log.structured import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_ENVELOPE = ("timestamp", "level", "event", "seq", "model", "worker", "pid", "generation")
_RESERVED = frozenset(
    {"timestamp", "level", "event", "seq", "exc_info", "exception", "stack", "stack_info"}
)
"""Names that are ours, or that structlog gives a meaning to: a fact of such a name gets an underscore behind it."""

DEEPEST = 8  # levels of a fact that are shown

EventFields = MutableMapping[str, Any]


def timestamp() -> str:
    """Now, as the envelope has it, structlog's own form: UTC, ISO 8601, microseconds."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _unpack(_: Any, __: str, event: EventFields) -> EventFields:
    for name, fact in event.pop("facts").items():
        shown = _shallow(fact, DEEPEST) if isinstance(fact, (dict, list, tuple)) else fact
        event[f"{name}_" if name in _RESERVED else name] = shown
    return event


def _shallow(fact: Any, depth: int) -> Any:
    """A fact without what lies too deep: a worker may nest as deep as its reader just bears, and a renderer bears less."""
    if isinstance(fact, dict):
        return {name: _shallow(each, depth - 1) for name, each in fact.items()} if depth else "…"
    if isinstance(fact, (list, tuple)):
        return [_shallow(each, depth - 1) for each in fact] if depth else "…"
    return fact


def _order(_: Any, __: str, event: EventFields) -> EventFields:
    ordered = {name: event[name] for name in _ENVELOPE if event.get(name) is not None}
    ordered.update((name, value) for name, value in event.items() if name not in _ENVELOPE)
    return ordered


def _json(event: EventFields, **_: Any) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=str).decode()
    except UnicodeEncodeError:  # a lone surrogate, from bytes that are not UTF-8
        return json.dumps(event, default=str, separators=(",", ":"))


class _Lines:
    """What structlog calls a logger: takes the rendered line."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self.msg = take
        self.debug = self.info = self.warning = self.error = take


class Journal:
    """Makes events, numbers them and hands them on. `outlets` are added before the first event that they are to have."""

    def __init__(self, level: str, rings: Rings) -> None:
        self._least = LEVELS[level]
        self._rings = rings
        self._about: RingKey = (None, None)
        self._source: str | None = None
        self.seq = 0
        self.outlets: list[Outlet] = []
        self._logger = structlog.wrap_logger(
            _Lines(self._take),
            processors=[
                _unpack,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _order,
                structlog.processors.JSONRenderer(serializer=_json),
            ],
            wrapper_class=structlog.BoundLogger,
        )

    def _take(self, line: str) -> None:
        self._hand_out(Block(self._source, 1, line.encode() + b"\n", self._about))

    def _hand_out(self, block: Block) -> None:
        self._rings.add(block)
        for outlet in self.outlets:
            outlet.put(block)

    def shows(self, level: str) -> bool:
        """Whether events of this level are made."""
        return LEVELS.get(level, 20) >= self._least

    def emit(self, level: str, event: str, /, **fields: Any) -> None:
        """Make one event. The fields may be a worker's words: any name, any value that JSON has."""
        if not self.shows(level):
            return
        self.seq += 1
        model, worker = fields.get("model"), fields.get("worker")
        known = isinstance(model, str) and (worker is None or isinstance(worker, int))
        self._about = (model, worker) if known else (None, None)
        # As one value: among keyword arguments a fact called `self` would be an error of the call.
        getattr(self._logger, level)(event, seq=self.seq, facts=fields)

    def emit_told(self, source: str, level: str, event: str, /, **fields: Any) -> None:
        """The same for an event that a worker sent: it is accounted under `source`, and takes no room that is for ours."""
        self._source = source
        try:
            self.emit(level, event, **fields)
        finally:
            self._source = None

    def emit_block(
        self, about: RingKey, source: str, count: int, render: Callable[[int], bytes]
    ) -> None:
        """Make `count` events of one stream; `render` is given the number of the first."""
        first = self.seq + 1
        self.seq += count
        self._hand_out(Block(source, count, render(first), about))

    def tell_of_outlets(self, **identity: Any) -> None:
        """Make the events that sinks have to say of themselves."""
        for outlet in self.outlets:
            while said := outlet.take_said():
                for each in said:
                    self.emit(each.level, each.event, **identity, **each.facts)

    def newest(self, count: int, model: str | None, worker: int | None) -> list[bytes]:
        """The newest events of a worker, of a model, or of everything, as JSON lines in order."""
        return list(self._rings.newest(count, model, worker))
