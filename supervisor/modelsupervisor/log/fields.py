"""What a row of the catalogue of events is made of.

The types are those of JSON, by JSON Schema's names, since the events are read by programs in every language: `"string|null"` is a
string or null. A field is always there unless it says otherwise; what an event has beside its envelope and its fields is a fault.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

_PYTHON: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


@dataclass(frozen=True)
class Field:
    """One field of an event.

    `of` is the type of an array's elements or of an object's values, `fields` are those of an object that has no others; `kind`
    names the kind of an output line that always has this field, where no other line has it.
    """

    name: str
    type: str
    meaning: str = ""
    required: bool = True
    choices: tuple[str | int | bool, ...] = ()
    pattern: str = ""
    minimum: int | None = None
    of: str = ""
    fields: tuple[Field, ...] = ()
    kind: str = ""

    def admits(self, value: Any) -> bool:
        """True for a decoded JSON value that this field may have."""
        if value is None:
            return "null" in self.type.split("|")
        if not any(_is(value, each) for each in self.type.split("|")):
            return False
        if self.choices and value not in self.choices:
            return False
        if self.pattern and not re.fullmatch(self.pattern, value):
            return False
        if self.minimum is not None and value < self.minimum:
            return False
        if self.fields:
            return misfit(self.fields, value) is None
        inner = value.values() if isinstance(value, dict) else value
        return not self.of or all(_is(each, self.of) for each in inner)


def _is(value: Any, type_: str) -> bool:
    """Python's True is an integer, JSON's is not; NaN and infinity are numbers in Python alone."""
    if isinstance(value, bool):
        return type_ == "boolean"
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, _PYTHON[type_])


def misfit(fields: tuple[Field, ...], facts: dict[str, Any]) -> str | None:
    """What is wrong with these facts, None where nothing is."""
    known = {field.name: field for field in fields}
    for name, value in facts.items():
        if name not in known:
            return f"unknown fact {name[:64]!r}"
        if not known[name].admits(value):
            return f"{name} is not of type {known[name].type}, or not one of its values"
    for field in fields:
        if field.required and not field.kind and field.name not in facts:
            return f"{field.name} is missing"
    return None


@dataclass(frozen=True)
class Event:
    """One event. `about` says whose identity it carries (`IDENTITY`), `told` that a worker's process sends it."""

    name: str
    about: str
    levels: tuple[str, ...]
    meaning: str
    fields: tuple[Field, ...] = ()
    told: bool = False
    one_of: tuple[str, ...] = ()  # one of these two is there, and not the other
    together: tuple[str, ...] = ()  # all of these are there, or none


@dataclass(frozen=True)
class Group:
    """Events under one heading of the page; `note` stands below their table."""

    heading: str
    events: tuple[Event, ...]
    note: str = ""


IDENTITY: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "supervisor": (frozenset({"pid"}), frozenset()),
    "log": (frozenset(), frozenset({"pid"})),
    "process": (frozenset({"pid"}), frozenset()),
    "template": (frozenset({"model", "generation"}), frozenset({"pid"})),
    "worker": (frozenset({"model", "worker", "generation"}), frozenset({"pid"})),
    "spare": (frozenset({"model"}), frozenset({"pid"})),
}
"""Which of model, worker, pid and generation an event always has, and which it has where they are known."""


# Fields of one form that many events have

REASON = Field("reason", "string")
EVIDENCE = Field(
    "evidence",
    "string",
    "What was found that points to the cause, where there was anything to find; see memory.md.",
    required=False,
)
PEAK_RSS = Field(
    "peak_rss_bytes",
    "integer|null",
    "The most memory that it had resident, pages that it shared with its template among it; null where not known.",
    minimum=0,
)
LOST_BEFORE = Field(
    "lost_before",
    "integer",
    "Events that the worker could not send before this one, because the supervisor did not take them.",
    required=False,
    minimum=1,
)
TRACEBACK = Field("traceback", "string", "Python's own text; of a very long one its end.")


def count(name: str, meaning: str = "", *, required: bool = True) -> Field:
    """A number of things."""
    return Field(name, "integer", meaning, required=required, minimum=0)


def seconds(name: str, meaning: str = "", *, required: bool = True, null: bool = False) -> Field:
    """A duration."""
    type_ = "number|null" if null else "number"
    return Field(name, type_, meaning, required=required, minimum=0)


def texts(name: str, meaning: str = "", *, null: bool = False) -> Field:
    """A list of strings."""
    return Field(name, "array|null" if null else "array", meaning, of="string")


def word(name: str, *choices: str, meaning: str = "") -> Field:
    """One of some words."""
    return Field(name, "string", meaning, choices=choices)
