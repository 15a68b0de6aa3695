"""docs/events.md and docs/events.schema.json, made from the catalogue of events that the code itself is held against.

The page is for people; the schema, JSON Schema draft-07, is for programs that read the log: one definition for each event, under
the event's name, so that a validator may look the definition up and try that one alone. tests/unit/test_docs.py fails while either
file in the repository is not what this prints. `make docs` writes them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from modelsupervisor.log.catalogue import ENVELOPE, EVENTS, GROUPS, SCHEMA_VERSION, fields_of
from modelsupervisor.log.fields import Event, Field, Group

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "events.md"
SCHEMA = DOCS / "events.schema.json"

_HEAD = """\
# Events

<!-- Made by `make docs` from supervisor/modelsupervisor/log/catalogue.py; change it there. -->

Everything that happens is one event a line: JSON, or on a terminal a form for people (`log_format`). The names below are
all there are and do not change their meaning. [events.schema.json](events.schema.json) says the same to programs, with
the type of every field (JSON Schema draft-07; `definitions` has one schema for each event, under its name);
`supervisor.starting` says in `schema` which version of it a log is written by. Version {version} is this one; a new event
or field does not raise it. The test suite holds every event that it sees against it.

## The envelope

| field | type | |
| --- | --- | --- |
{envelope}

A duration ends in `_s` and is in seconds. A fact that does not apply is `null` or absent; an event has no facts but those
named here.
"""


def _text(cell: str) -> str:
    return cell.replace("|", "\\|")


def _type(field: Field) -> str:
    """The type in words; of a field that has only certain values, those."""
    if field.choices and "string" in field.type.split("|"):
        words = [f"`{choice}`" for choice in field.choices]
    elif field.of:
        words = [f"{field.type.split('|')[0]} of {field.of}s"]
    else:
        words = [field.type.split("|")[0]]
    if "null" in field.type.split("|"):
        words.append("null")
    if not field.required or field.kind:
        words.append("absent")
    return ", ".join(words)


def _facts(group: Group) -> str:
    """What there is to say of the fields of a group, each form of a field once; none where it says itself."""
    forms: dict[Field, list[str]] = {}
    for event in group.events:
        for field in event.fields:
            if field.meaning or field.choices or not field.required:
                forms.setdefault(field, []).append(event.name)
    names = [field.name for field in forms]
    rows = []
    for field, events in forms.items():
        where = f" of {', '.join(f'`{each}`' for each in events)}"
        name = f"`{field.name}`" + (where if names.count(field.name) > 1 else "")
        meaning = field.meaning
        if field.fields:
            meaning += " " + ", ".join(f"`{each.name}`" for each in field.fields) + "."
        rows.append(f"| {name} | {_type(field)} | {_text(meaning)} |")
    if not rows:
        return ""
    return "\n".join(["| fact | type | |", "| --- | --- | --- |", *rows]) + "\n"


def _group(group: Group) -> str:
    rows = ["| event | level | facts | meaning |", "| --- | --- | --- | --- |"]
    for event in group.events:
        facts = " ".join(f"`{field.name}`" for field in event.fields)
        rows.append(
            f"| `{event.name}` | {', '.join(event.levels)} | {facts} | {_text(event.meaning)} |"
        )
    note = group.note + "\n" if group.note else ""
    parts = [f"## {group.heading}\n", "\n".join(rows) + "\n", _facts(group), note]
    return "\n".join(part for part in parts if part)


def page() -> str:
    """The whole page, ending in a newline."""
    envelope = "\n".join(
        f"| `{field.name}` | {_type(field)} | {_text(field.meaning)} |" for field in ENVELOPE
    )
    head = _HEAD.format(version=SCHEMA_VERSION, envelope=envelope)
    return "\n".join([head, *map(_group, GROUPS)])


def _value(field: Field) -> dict[str, Any]:
    """The schema of one field's value."""
    types = field.type.split("|")
    schema: dict[str, Any] = {"type": types if len(types) > 1 else types[0]}
    if field.meaning:
        schema["description"] = field.meaning
    if field.choices:
        schema["enum"] = list(field.choices)
    if field.pattern:
        schema["pattern"] = field.pattern
    if field.minimum is not None:
        schema["minimum"] = field.minimum
    if field.of:
        inner = "items" if "array" in types else "additionalProperties"
        schema[inner] = {"type": field.of}
    if field.fields:
        schema.update(_object(field.fields))
    return schema


def _object(fields: tuple[Field, ...]) -> dict[str, Any]:
    return {
        "required": [field.name for field in fields if field.required and not field.kind],
        "properties": {field.name: _value(field) for field in fields},
        "additionalProperties": False,
    }


def _relations(event: Event) -> dict[str, Any]:
    """Which fields of an event come together, and which exclude each other.

    Said so that of a plain line, the most frequent event by far, hardly anything has to be looked at: what follows from a field is
    a dependency of that field.
    """
    schema: dict[str, Any] = {}
    dependencies: dict[str, Any] = {
        name: [other for other in event.together if other != name] for name in event.together
    }
    if event.one_of:
        schema["anyOf"] = [{"required": [name]} for name in event.one_of]
        first, *others = event.one_of
        dependencies.update({name: {"not": {"required": [first]}} for name in others})
    kinds: dict[str, list[str]] = {}
    for field in event.fields:
        if field.kind:
            kinds.setdefault(field.kind, []).append(field.name)
            is_it = {"properties": {"kind": {"const": field.kind}}, "required": ["kind"]}
            dependencies[field.name] = is_it
    if kinds:
        dependencies["kind"] = {
            "oneOf": [
                {"properties": {"kind": {"const": kind}}, "required": names}
                for kind, names in kinds.items()
            ]
        }
    if dependencies:
        schema["dependencies"] = dependencies
    return schema


def _event(event: Event) -> dict[str, Any]:
    """The schema of one event; what every event has is described once, beside the definitions of the events."""
    schema = _object(tuple(fields_of(event)))
    for field in ENVELOPE:
        if field.name in schema["properties"]:
            schema["properties"][field.name] = {"$ref": f"#/definitions/{field.name}"}
    schema["properties"]["level"] = {"enum": list(event.levels)}
    schema["properties"]["event"] = {"const": event.name}
    return {"description": event.meaning, "type": "object", **schema, **_relations(event)}


def schema() -> dict[str, Any]:
    """The schema of any event."""
    shared = {
        field.name: _value(field) for field in ENVELOPE if field.name not in ("event", "level")
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": f"urn:modelsupervisor:events:{SCHEMA_VERSION}",
        "title": "An event of modelsupervisor",
        "description": "One line of the log. Made by `make docs`; docs/events.md says it in prose.",
        "version": SCHEMA_VERSION,
        "type": "object",
        "required": ["event"],
        "properties": {"event": {"enum": list(EVENTS)}},
        "allOf": [
            {
                "if": {"properties": {"event": {"const": name}}},
                "then": {"$ref": f"#/definitions/{name}"},
            }
            for name in EVENTS
        ],
        "definitions": {**shared, **{name: _event(event) for name, event in EVENTS.items()}},
    }


def schema_text() -> str:
    """The same as a file, ending in a newline."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
        SCHEMA.write_text(schema_text(), encoding="utf-8")
    else:
        sys.stdout.write(page())
