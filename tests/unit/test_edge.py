"""What a worker says is logged under names that are names."""

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

    edge = SimpleNamespace(journal=SimpleNamespace(emit=emit))
    told_event(cast(Edge, edge), message, model="m", pid=7)
    return made


def test_an_event_keeps_its_facts_and_gets_our_identity() -> None:
    """Level, name and facts are the worker's, who it is is ours."""
    fields = {"code": 503, "pid": 1, "seq": 9, "level": "x"}
    message = {"level": "error", "event": "request.failed", "fields": fields}
    assert told(message) == [("error", "request.failed", {"model": "m", "pid": 7, "code": 503})]


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"level": "loud", "event": "a", "fields": {}},
        {"level": "info", "event": "\x1b[2Jgone", "fields": {}},
        {"level": "info", "event": "a" * 65, "fields": {}},
        {"level": "info", "event": "a", "fields": {"\x1b[31mred": 1}},
        {"level": "info", "event": "a", "fields": ["no", "facts"]},
    ],
)
def test_what_is_no_event_is_reported_as_such(message: dict[str, Any]) -> None:
    """Names with power over a terminal, or without end, are not logged."""
    ((level, event, _),) = told(message)
    assert (level, event) == ("warning", "worker.bad_message")
