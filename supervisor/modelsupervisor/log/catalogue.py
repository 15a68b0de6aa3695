"""The catalogue: every event that there is, with every field, its type and its meaning.

docs/events.md and docs/events.schema.json are made of it (`make docs`), the tests hold the code against it, and what a worker's
process sends as an event is held against it before it is logged (`objection`): such a process runs a model's code, and the log is
to be believed by machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelsupervisor.log.catalogue_machine import MACHINE
from modelsupervisor.log.catalogue_output import OUTPUT
from modelsupervisor.log.catalogue_spares import SPARES
from modelsupervisor.log.catalogue_supervisor import LOG, ORPHANS, SCHEMA_VERSION, SUPERVISOR
from modelsupervisor.log.catalogue_workers import TEMPLATES, WORKERS
from modelsupervisor.log.fields import IDENTITY, Event, Field, Group, misfit

__all__ = ["ENVELOPE", "EVENTS", "GROUPS", "SCHEMA_VERSION", "fields_of", "objection"]

GROUPS: tuple[Group, ...] = (SUPERVISOR, LOG, TEMPLATES, WORKERS, SPARES, MACHINE, OUTPUT, ORPHANS)

EVENTS: dict[str, Event] = {event.name: event for group in GROUPS for event in group.events}

ENVELOPE: tuple[Field, ...] = (
    Field(
        "timestamp",
        "string",
        "UTC, ISO 8601, microseconds",
        # structlog leaves the fraction out in the one microsecond of a million where it is zero
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z$",
    ),
    Field("level", "string", "`debug`, `info`, `warning`, `error`"),
    Field("event", "string", "one of the names below"),
    Field(
        "seq",
        "integer",
        "counts the events that this supervisor made, from 1; a gap is an event that this sink did not get, and `log.dropped` says "
        "how many",
        minimum=1,
    ),
    Field(
        "model",
        "string",
        "the model's name, where the event is about one",
        required=False,
    ),
    Field(
        "worker",
        "integer",
        "the index of the worker, where the event is about one; a template has none",
        required=False,
        minimum=0,
    ),
    Field(
        "pid",
        "integer",
        "of the process that the event is about; absent where there is none, or where a newborn wrote before its pid was told",
        required=False,
        minimum=1,
    ),
    Field(
        "generation",
        "integer",
        "counts the processes of that worker, or the templates of that model, from 1; 0 only on a line that somebody else wrote "
        "before there was one",
        required=False,
        minimum=0,
    ),
)


def fields_of(event: Event) -> Iterator[Field]:
    """The fields of the envelope that the event may have, `required` as they are for it, and then its own."""
    always, sometimes = IDENTITY[event.about]
    for field in ENVELOPE:
        if field.required or field.name in always:
            yield field if field.required else _always(field)
        elif field.name in sometimes:
            yield field
    yield from event.fields


def _always(field: Field) -> Field:
    return Field(field.name, field.type, field.meaning, minimum=field.minimum)


def objection(level: object, event: object, facts: dict[str, Any]) -> str | None:
    """Why this is no event that a worker's process sends, None where it is one."""
    row = EVENTS.get(event) if isinstance(event, str) else None
    if row is None or not row.told:
        return f"{_shown(event)} is no event of a worker"
    if level not in row.levels:
        return f"{row.name} has no level {_shown(level)}"
    wrong = misfit(row.fields, facts)
    return f"{row.name}: {wrong}" if wrong else None


def known_facts(event: str, facts: object) -> dict[str, Any]:
    """Those of some facts that the event has, as they are there; for facts that a worker or template said of itself."""
    if not isinstance(facts, dict):
        return {}
    fields = {field.name: field for field in EVENTS[event].fields}
    return {
        name: value
        for name, value in facts.items()
        if name in fields and fields[name].admits(value)
    }


def _shown(word: object) -> str:
    """Short, and nothing that could be as deep as its reader just bore."""
    return repr(word[:64]) if isinstance(word, str) else type(word).__name__
