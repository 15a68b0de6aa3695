"""The catalogue of events, the schema that is made of it, and the check of what workers send: one truth in three forms."""

from __future__ import annotations

import base64
import json
from typing import Any

import fastjsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupervisor.core.actions import Next
from modelsupervisor.core.states import Blame
from modelsupervisor.log.catalogue import (
    ENVELOPE,
    EVENTS,
    GROUPS,
    SCHEMA_VERSION,
    fields_of,
    objection,
)
from modelsupervisor.log.fields import IDENTITY, Field
from support.schema import check, schema

LINE: dict[str, Any] = {
    "timestamp": "2026-01-01T10:00:00.123456Z",
    "level": "info",
    "event": "worker.output",
    "seq": 7,
    "model": "digits",
    "worker": 0,
    "pid": 4711,
    "generation": 1,
    "stream": "stdout",
    "line": "epoch 1",
}
METRIC = {
    "name": "PredictionTime",
    "unit": "Milliseconds",
    "value": 1.5,
    "dimensions": {"ModelName": "digits", "Level": "Model"},
    "host": "h",
    "time": 1700000000,
    "request_id": "r",
}
TOLD = [event for event in EVENTS.values() if event.told]


def example(field: Field) -> Any:
    """Some value that a field may have."""
    if field.choices:
        return field.choices[0]
    if field.fields:
        return {each.name: example(each) for each in field.fields}
    values: dict[str, Any] = {
        "string": "x",
        "integer": max(field.minimum or 0, 1),
        "number": 0.25,
        "boolean": False,
        "array": ["x"],
        "object": {"x": 1} if field.of == "integer" else {"x": "y"},
    }
    value = values[field.type.partition("|")[0]]
    if field.pattern:
        known = {"timestamp": LINE["timestamp"], "sink": "stdout", "line_b64": "eA=="}
        value = {**known, "at": "2026-01-01T10:00:00.123+00:00"}[field.name]
    return value


def sample(name: str) -> dict[str, Any]:
    """An event with everything that it may have, but no special kind of line."""
    event = EVENTS[name]
    skipped = {"line_b64", "kind"}
    made = {
        field.name: example(field)
        for field in fields_of(event)
        if not field.kind and (field.name not in skipped or not event.one_of)
    }
    return {**made, "event": name, "level": event.levels[0]}


# -- the table -----------------------------------------------------------------------------------------------------------


def test_every_name_stands_once() -> None:
    """Events in all groups, and fields in every event, the envelope's among them."""
    assert sum(len(group.events) for group in GROUPS) == len(EVENTS)
    for event in EVENTS.values():
        names = [field.name for field in fields_of(event)]
        assert len(names) == len(set(names)), event.name
        assert event.about in IDENTITY


def test_every_event_and_every_field_is_told_of() -> None:
    """Meanings are sentences; types are JSON's; levels are in order."""
    order = ("debug", "info", "warning", "error")
    types = {"string", "integer", "number", "boolean", "array", "object", "null"}
    for event in EVENTS.values():
        assert event.meaning.endswith("."), event.name
        assert list(event.levels) == sorted(event.levels, key=order.index)
        for field in event.fields:
            assert set(field.type.split("|")) <= types
            assert not field.meaning or field.meaning.endswith("."), field
            assert field.type.split("|")[0] != "array" or field.of, field


def test_words_that_the_core_chooses_are_all_there() -> None:
    """What follows an exit, and whom we blame for one."""
    worker = {field.name: field for field in EVENTS["worker.exited"].fields}
    template = {field.name: field for field in EVENTS["template.exited"].fields}
    assert set(worker["next"].choices) == {each.value for each in Next}
    assert set(template["next"].choices) == {each.value for each in Next} - {Next.WAIT.value}
    assert set(template["cause"].choices) >= {each.value for each in Blame}
    assert Blame.START_TIMEOUT.value in worker["cause"].choices


def test_durations_are_in_seconds() -> None:
    """A number that can be a fraction is a duration and says so in its name."""
    for event in EVENTS.values():
        for field in event.fields:
            assert ("number" in field.type.split("|")) == field.name.endswith("_s"), field


# -- the schema ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_as_the_catalogue_has_it_is_valid(name: str) -> None:
    """With all its fields; without those that may be absent; and never without one that may not."""
    whole = sample(name)
    check(whole)
    for field in fields_of(EVENTS[name]):
        if field.name not in whole:
            continue
        less = {key: value for key, value in whole.items() if key != field.name}
        if field.name == "event":
            continue
        tied = field.name in (*EVENTS[name].together, *EVENTS[name].one_of)
        if field.required or tied:
            with pytest.raises(AssertionError):
                check(less)
        else:
            check(less)


@pytest.mark.parametrize("name", EVENTS)
def test_what_the_catalogue_does_not_have_is_invalid(name: str) -> None:
    """A fact that is not listed, a level that it never has, a value of another type."""
    whole = sample(name)
    for wrong in (
        {"novelty": 1},
        {"level": "fatal"},
        {"seq": 0},
        {"seq": "1"},
        {"timestamp": "now"},
    ):
        with pytest.raises(AssertionError):
            check({**whole, **wrong})
    for field in EVENTS[name].fields:
        with pytest.raises(AssertionError):
            check({**whole, field.name: ["of", {"no": "type"}]})


def test_the_whole_schema_says_the_same() -> None:
    """Whoever does not look definitions up by name gets the same answers, and unheard-of names are none."""
    validate = fastjsonschema.compile(schema())
    for name in EVENTS:
        validate(sample(name))
        with pytest.raises(fastjsonschema.JsonSchemaException):
            validate({**sample(name), "novelty": 1})
    for nameless in ({**LINE, "event": "worker.unheard_of"}, {"line": "x"}, [], 7):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            validate(nameless)
    with pytest.raises(AssertionError, match="no event"):
        check({**LINE, "event": "seq"})


def test_the_schema_carries_its_version() -> None:
    """In the file, in its identity, and in the first event of a log."""
    assert schema()["version"] == SCHEMA_VERSION
    assert schema()["$id"].endswith(f":{SCHEMA_VERSION}")
    check(sample("supervisor.starting"))
    with pytest.raises(AssertionError):
        check({**sample("supervisor.starting"), "schema": SCHEMA_VERSION + 1})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"level": "error"},
        {"in_hand_at_read": ["a", "b"]},
        {"part": 1, "more": True},
        {"part": 2, "more": False, "partial": True},
        {"kind": "traceback", "error": "ValueError: boom", "lines": 3},
        {"kind": "metric", "metric": METRIC},
        {"kind": "metric", "metric": {**METRIC, "dimensions": {}}},
        {"kind": "json", "fields": {"level": "info", "deep": [{"x": None}]}},
    ],
)
def test_lines_of_every_kind_are_valid(more: dict[str, Any]) -> None:
    """As text or as base64, of a worker or of a template."""
    check({**LINE, **more})
    raw = {**LINE, **more, "line_b64": base64.b64encode(b"\xff\x00").decode()}
    del raw["line"]
    check(raw)
    template = {**LINE, **more, "event": "template.output"}
    del template["worker"]
    template.pop("in_hand_at_read", None)
    check(template)


@pytest.mark.parametrize(
    "more",
    [
        {"level": "debug"},
        {"line_b64": "eA=="},
        {"line": None},
        {"stream": "stdlog"},
        {"part": 1},
        {"more": False},
        {"part": 0, "more": True},
        {"partial": False},
        {"pid": 0},
        {"pid": None},
        {"worker": True},
        {"in_hand_at_read": [1]},
        {"kind": ""},
        {"kind": "traceback"},
        {"kind": "traceback", "error": "x"},
        {"error": "x", "lines": 1},
        {"kind": "metric"},
        {"kind": "metric", "metric": {**METRIC, "value": "1.5"}},
        {"kind": "metric", "metric": {**METRIC, "dimensions": {"a": 1}}},
        {"kind": "metric", "metric": {**METRIC, "novelty": 1}},
        {"kind": "json"},
        {"kind": "json", "fields": []},
        {"kind": "json", "fields": {}, "metric": METRIC},
        {"fields": {}},
    ],
)
def test_lines_that_contradict_themselves_are_invalid(more: dict[str, Any]) -> None:
    """What belongs together comes together, and what excludes each other does not."""
    with pytest.raises(AssertionError):
        check({**LINE, **more})


def test_a_line_has_its_content() -> None:
    """Neither text nor base64 is no line."""
    with pytest.raises(AssertionError):
        check({key: value for key, value in LINE.items() if key != "line"})


# -- what workers send ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", TOLD, ids=lambda event: event.name)
def test_an_event_that_a_worker_may_send(event: Any) -> None:
    """As the catalogue has it, with and without what may be absent; otherwise the objection names what is wrong."""
    facts = {field.name: example(field) for field in event.fields}
    level = event.levels[0]
    assert objection(level, event.name, facts) is None
    for field in event.fields:
        less = {name: fact for name, fact in facts.items() if name != field.name}
        said = objection(level, event.name, less)
        assert said == (f"{event.name}: {field.name} is missing" if field.required else None)
        wrong = objection(level, event.name, {**facts, field.name: {}})
        assert wrong is not None
        assert field.name in wrong
    assert "novelty" in str(objection(level, event.name, {**facts, "novelty": 1}))
    assert "loud" in str(objection("loud", event.name, facts))


@pytest.mark.parametrize(
    "event", ["supervisor.ready", "worker.exited", "worker.odd", "", 7, None, [], {"a": 1}]
)
def test_events_that_are_not_a_workers_to_send(event: object) -> None:
    """It cannot speak for the supervisor, nor make names up."""
    assert "no event of a worker" in str(objection("info", event, {}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None])
def test_numbers_that_json_does_not_have(value: object) -> None:
    """Python's reader of JSON takes NaN; our log could not say it."""
    facts = {"error": "EMFILE: too many", "pause_s": value}
    assert objection("warning", "worker.accept_failed", facts) is not None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.data())
def test_what_is_not_objected_to_is_valid_in_the_log(draw: st.DataObject) -> None:
    """Whatever a worker makes up: once it is in the log, under the supervisor's envelope, the schema holds."""
    event = draw.draw(st.sampled_from(TOLD))
    facts = {field.name: example(field) for field in event.fields}
    names = st.sampled_from([field.name for field in event.fields]) | st.text(max_size=5)
    facts.update(draw.draw(st.dictionaries(names, _JSON, max_size=2)))
    for name in draw.draw(st.sets(names, max_size=1)):
        facts.pop(name, None)
    level = draw.draw(st.sampled_from([*event.levels, "debug"]))
    envelope = {key: LINE[key] for key in ("timestamp", "seq", "model", "worker", "generation")}
    logged = {**envelope, "level": level, "event": event.name, **facts}
    try:
        check(json.loads(json.dumps(logged)))
    except AssertionError:
        assert objection(level, event.name, facts) is not None


def test_the_envelope_is_what_the_page_says() -> None:
    """Its order is the order in a line."""
    assert [field.name for field in ENVELOPE] == [
        *("timestamp", "level", "event", "seq", "model", "worker", "pid", "generation"),
    ]
