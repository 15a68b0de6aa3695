"""docs/events.schema.json as a check of one event, fast enough for every line of a long log.

One function is compiled for each event's definition, when the first event of that name is seen, and found by the name; so a check
costs what its own event costs, not what all of them do. It is the file that is compiled, as whoever reads our log has it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import fastjsonschema

from modelsupervisor.log.catalogue import EVENTS
from modelsupervisor.log.fields import misfit
from support.pages import ROOT

SCHEMA_FILE = ROOT / "docs" / "events.schema.json"


@functools.cache
def schema() -> dict[str, Any]:
    """The whole file."""
    loaded: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    return loaded


@functools.cache
def _checker(name: str) -> Callable[[Any], Any]:
    definitions = schema()["definitions"]
    if "." not in name or name not in definitions:
        raise AssertionError(f"there is no event {name!r} in {SCHEMA_FILE.name}")
    one = {
        "$schema": schema()["$schema"],
        "$ref": f"#/definitions/{name}",
        "definitions": definitions,
    }
    compiled: Callable[[Any], Any] = fastjsonschema.compile(one)
    return compiled


def check(event: dict[str, Any]) -> None:
    """Raise AssertionError, naming the field, for an event that is not as the schema says."""
    try:
        _checker(event["event"])(event)
    except fastjsonschema.JsonSchemaException as error:
        raise AssertionError(f"{error.message} (rule {error.rule!r})\n{event}") from None


def check_words(level: object, event: str, facts: dict[str, Any]) -> None:
    """The same of an event that has no envelope yet: its name, its level and its own facts."""
    assert event in EVENTS, f"there is no event {event!r} in the catalogue"
    assert level in EVENTS[event].levels, f"{event} has no level {level!r}"
    wrong = misfit(EVENTS[event].fields, facts)
    assert wrong is None, f"{event}: {wrong}: {facts}"
