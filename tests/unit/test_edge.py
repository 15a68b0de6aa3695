"""What a worker says is logged where it is what workers say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from modelsupervisor.runtime.edge import Edge, told_event


def told(message: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """The events that come of a worker's message."""
    made: list[tuple[str, str, dict[str, Any]]] = []

    def emit(level: str, event: str, **fields: Any) -> None:
        made.append((level, event, fields))

    def emit_told(source: str, level: str, event: str, **facts: Any) -> None:
        assert source == "m/3 events"
        emit(level, event, **facts)

    edge = SimpleNamespace(journal=SimpleNamespace(emit=emit, emit_told=emit_told))
    told_event(cast(Edge, edge), message, model="m", worker=3, pid=7)
    return made


FACTS = {"error": "RuntimeError: no text"}


def test_an_event_keeps_its_facts_and_gets_our_identity() -> None:
    """Level, name and facts are the worker's, who it is is ours."""
    message = {"level": "warning", "event": "metrics.lost", "fields": FACTS}
    assert told(message) == [
        ("warning", "metrics.lost", {"model": "m", "worker": 3, "pid": 7, **FACTS})
    ]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"level": "loud", "event": "metrics.lost", "fields": FACTS},
        {"level": "warning", "event": "metrics.lost", "fields": ["no", "facts"]},
        {"level": "warning", "event": "metrics.lost", "fields": {}},
        {"level": "warning", "event": "metrics.lost", "fields": {**FACTS, "pid": 1}},
        {"level": "warning", "event": "metrics.lost", "fields": {**FACTS, "\x1b[31mred": 1}},
        {"level": "warning", "event": "\x1b[2Jgone", "fields": FACTS},
        {"level": "info", "event": "worker.exited", "fields": {}},
        {"level": "info", "event": [], "fields": {}},
    ],
)
def test_what_no_worker_sends_is_reported_as_such(message: dict[str, Any]) -> None:
    """An event of the supervisor's own, an unknown one, or one with other facts than the catalogue has: none can be forged."""
    ((level, event, facts),) = told(message)
    assert (level, event) == ("warning", "worker.bad_message")
    assert "\x1b" not in facts["reason"]
    assert (facts["model"], facts["pid"]) == ("m", 7)
