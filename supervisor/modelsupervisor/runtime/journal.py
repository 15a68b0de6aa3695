"""The log: every event is one structlog event a line, JSON for machines, readable on a terminal.

The envelope is the same everywhere: `timestamp` (UTC), `level`, `event`, `seq`, then `model`, `worker`, `pid`, `generation` where
they apply, then the facts. `seq` counts the events made, by the supervisor alone, whether a sink took them or not: a gap in it is
a dropped line, and `log.dropped` says how many. An event below the log level is not made, and not counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from typing import Any

import msgspec
import structlog

from modelsupervisor.runtime.console import ConsoleLine
from modelsupervisor.runtime.sink import StdoutSink

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
OUTPUT_EVENTS = frozenset({"worker.output", "template.output"})
_ENVELOPE = ("timestamp", "level", "event", "seq", "model", "worker", "pid", "generation")
_RESERVED = frozenset(
    {"timestamp", "level", "event", "seq", "exc_info", "exception", "stack", "stack_info"}
)
"""Names that are ours, or that structlog gives a meaning to: a fact of such a name gets an underscore behind it."""

DEEPEST = 8  # levels of a fact that are shown

EventFields = MutableMapping[str, Any]


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
        return json.dumps(event, default=str)


class _Lines:
    """What structlog calls a logger: takes the rendered line."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self.msg = take
        self.debug = self.info = self.warning = self.error = take


class Journal:
    """Makes events and hands them to the sink. `console` chooses the form for people, `colors` its colours."""

    def __init__(self, sink: StdoutSink, *, level: str, console: bool, colors: bool) -> None:
        self._sink = sink
        self._least = LEVELS[level]
        self._output = False
        self.seq = 0
        self._screen = ConsoleLine(colors=colors) if console else None
        render: Any = self._screen or structlog.processors.JSONRenderer(serializer=_json)
        self._logger = structlog.wrap_logger(
            _Lines(self._take),
            processors=[
                _unpack,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _order,
                render,
            ],
            wrapper_class=structlog.BoundLogger,
        )

    def _take(self, line: str) -> None:
        below = self._screen.redraw() if self._screen is not None else ""
        text = f"{line}\n{below}".encode(errors="backslashreplace")
        self._sink.put(text, reserved=not self._output)

    def emit(self, level: str, event: str, /, **fields: Any) -> None:
        """Make one event. The fields may be a worker's words: any name, any value that JSON has."""
        if LEVELS.get(level, 20) < self._least:
            return
        self.tell_dropped()
        self._make(level, event, fields)

    def tell_dropped(self) -> None:
        """Say in the log how many lines are missing from it, once there is room for that."""
        dropped = self._sink.take_dropped()
        if dropped:
            self._make("warning", "log.dropped", {"sink": "stdout", "lines": dropped})

    def _make(self, level: str, event: str, fields: dict[str, Any]) -> None:
        self.seq += 1
        self._output = event in OUTPUT_EVENTS
        # As one value: among keyword arguments a fact called `self` would be an error of the call.
        getattr(self._logger, level)(event, seq=self.seq, facts=fields)

    def progress(self, text: str) -> None:
        """Show, on a terminal, what is being waited for; an empty text takes it away. Not an event."""
        if self._screen is not None and self._screen.colors:
            drawn = self._screen.progress(text)
            if drawn:
                self._sink.put(drawn.encode(), reserved=False)
