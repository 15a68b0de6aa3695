"""render.py: lines become events hundreds at once, and are what one at a time would have made of them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelsupervisor.log.lines import Part
from modelsupervisor.log.recognise import Run
from modelsupervisor.log.render import OutputForm, json_text
from support.schema import check

NOW = "2026-01-02T03:04:05.678901Z"
IDENTITY = {"model": "digits", "worker": 0, "pid": 4711, "generation": 2}


def form(stream: str = "stdout", in_hand: tuple[str, ...] = (), **identity: Any) -> OutputForm:
    """The form of a worker's lines."""
    return OutputForm("worker.output", stream, NOW, identity or IDENTITY, in_hand)


def events(rendered: bytes) -> list[dict[str, Any]]:
    """Decoded by the standard library, each line by itself: a duplicate key is an error."""
    assert rendered.endswith(b"\n")
    lines = rendered[:-1].split(b"\n")
    assert (
        lines == rendered.splitlines()
    )  # nothing in it that another reader takes for the end of a line
    return [json.loads(line, object_pairs_hook=_unique) for line in lines]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def naive(
    level: str, lines: list[bytes], seq: int, identity: dict[str, Any], in_hand: tuple[str, ...]
) -> list[dict[str, Any]]:
    """The same events, a dictionary a line."""
    made = []
    for number, line in enumerate(lines, seq):
        event = {"timestamp": NOW, "level": level, "event": "worker.output", "seq": number}
        event |= {**identity, "stream": "stderr"}
        if in_hand:
            event["in_hand_at_read"] = list(in_hand)
        try:
            event["line"] = line.decode()
        except UnicodeDecodeError:
            event["line_b64"] = base64.b64encode(line).decode()
        made.append(event)
    return made


# Plain lines ---------------------------------------------------------------------------------------------------------


def test_a_plain_line() -> None:
    """The envelope, the stream, the line, in this order and nothing else; it is as the schema says."""
    (event,) = events(form().lines("info", [b"hello"], 7))
    assert list(event.items()) == [
        ("timestamp", NOW),
        ("level", "info"),
        ("event", "worker.output"),
        ("seq", 7),
        ("model", "digits"),
        ("worker", 0),
        ("pid", 4711),
        ("generation", 2),
        ("stream", "stdout"),
        ("line", "hello"),
    ]
    check(event)


def test_a_templates_line() -> None:
    """It has no worker; a pid that is not known yet is left out."""
    made = OutputForm(
        "template.output", "stderr", NOW, {"model": "m", "pid": None, "generation": 1}
    )
    (event,) = events(made.lines("warning", [b"w"], 1))
    assert list(event)[3:] == ["seq", "model", "generation", "stream", "line"]
    check(event)


def test_requests_in_hand() -> None:
    """Their ids stand on each line that was read meanwhile."""
    for event in events(form(in_hand=("a", "b")).lines("info", [b"1", b"2"], 1)):
        assert event["in_hand_at_read"] == ["a", "b"]
        check(event)


def test_numbers_go_on_from_the_first() -> None:
    """A line is an event, empty ones too."""
    assert [
        (event["seq"], event["line"])
        for event in events(form().lines("error", [b"", b"a", b""], 9))
    ] == [(9, ""), (10, "a"), (11, "")]


def test_text_and_junk_in_one_block() -> None:
    """The lines that are UTF-8 are text all the same."""
    first, second, third = events(form().lines("info", [b"\xc3\xa9%d", b"%s\xff", b"x"], 1))
    assert (first["line"], third["line"]) == ("é%d", "x")
    assert base64.b64decode(second["line_b64"]) == b"%s\xff"
    for event in (first, second, third):
        assert ("line" in event) != ("line_b64" in event)
        check(event)


@pytest.mark.parametrize("name", ["%", "%d%s", "100%%", "%(seq)d", '"quoted"', "a\nb", "\udcff%"])
def test_names_with_a_meaning_elsewhere(name: str) -> None:
    """A name or an id is what it is: no pattern, no end of a line, and a lone surrogate comes back as one."""
    made = form(in_hand=(name, "ok"), model=name, worker=0, pid=1, generation=1)
    part = made.part("info", Part(b"%d", 1, True), 3)
    run = made.run(Run("info", "json", [b'{"%s": "%d"}'], None), 2)
    for event in events(made.lines("info", [b"%d"], 1) + run + part):
        assert (event["model"], event["in_hand_at_read"]) == (name, [name, "ok"])


_LINES = st.lists(
    st.binary(max_size=30).map(lambda line: line.replace(b"\n", b""))
    | st.text(max_size=20).map(lambda line: line.replace("\n", "").encode()),
    min_size=1,
    max_size=8,
)
_WORDS = st.text(st.characters(), max_size=8)  # surrogates too


@given(_LINES, st.integers(1, 2**62), _WORDS, st.lists(_WORDS, max_size=3).map(tuple))
@example([b"\xed\xb3\xbf"], 1, "", ())  # a surrogate in UTF-8 is no UTF-8
@example([b"\xe2\x80\xa8\x85\x0c\x1c"], 1, "", ())  # what str.splitlines calls the end of a line
@example(["\u2028\x85\x0c\x1c\r\x00\x7f".encode()], 1, "\u2028", ("\r",))
def test_a_block_is_what_one_at_a_time_would_be(
    lines: list[bytes], seq: int, name: str, in_hand: tuple[str, ...]
) -> None:
    """Whatever the lines, the names and the ids: field by field, and in the same order."""
    identity = {"model": name, "worker": 3, "pid": 5, "generation": 1}
    rendered = form("stderr", in_hand, **identity).lines("warning", lines, seq)
    expected = naive("warning", lines, seq, identity, in_hand)
    assert [list(e.items()) for e in events(rendered)] == [list(e.items()) for e in expected]


# Lines of a kind -----------------------------------------------------------------------------------------------------


def test_a_traceback() -> None:
    """One event of all its lines, with its error and their number."""
    lines = [b"Traceback (most recent call last):", b'  File "%s"', b"ValueError: %d"]
    run = Run("error", "traceback", lines, {"error": "ValueError: %d", "lines": 3})
    (event,) = events(form("stderr").run(run, 4))
    assert event["line"].encode() == b"\n".join(lines)
    assert (event["level"], event["seq"], event["kind"]) == ("error", 4, "traceback")
    assert (event["error"], event["lines"]) == ("ValueError: %d", 3)
    check(event)


def test_a_traceback_that_is_no_text() -> None:
    """Its bytes travel like any others."""
    run = Run("error", "traceback", [b"Traceback", b"E: \xff"], {"error": "E: \ufffd", "lines": 2})
    (event,) = events(form("stderr").run(run, 1))
    assert base64.b64decode(event["line_b64"]) == b"Traceback\nE: \xff"
    assert "line" not in event
    check(event)


def test_a_metric() -> None:
    """What it measures stands beside its line."""
    metric = {
        "name": "PredictionTime",
        "unit": "Milliseconds",
        "value": 1.5,
        "dimensions": {"a": "b"},
        "host": "h",
        "time": 1700000000,
    }
    run = Run("info", "metric", [b"[METRICS]..."], {"metric": metric})
    (event,) = events(form().run(run, 1))
    assert (event["line"], event["kind"], event["metric"]) == ("[METRICS]...", "metric", metric)
    check(event)


@pytest.mark.parametrize(
    "line",
    [
        b'{"b": 1, "a": {"x": []}}',
        b'{"n": 123456789012345678901234567890, "f": 0.10, "seq": 5, "event": "mine"}',
        b'{"t": "%d \\u00e9 \\n"}  ',
        '{"é": "%s"}'.encode(),
        b"{}",
        b'{"a":\r1}\r',
    ],
)
def test_a_line_of_json(line: bytes) -> None:
    """Its object is embedded as it was written: keys in order, numbers with all digits, on one line; the line itself stays."""
    rendered = form().run(Run("warning", "json", [line], None), 1)
    (event,) = events(rendered)
    assert event["line"].encode() == line
    assert list(event["fields"].items()) == list(json.loads(line).items())
    assert (event["kind"], event["level"]) == ("json", "warning")
    assert line.strip().replace(b"\r", b" ") in rendered
    check(event)


# Parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        Part(b"abc%", part=1, more=True),
        Part(b"abc", part=2),
        Part(b"ab\xff", part=2, partial=True),
        Part(b"abc", partial=True),
    ],
)
def test_a_part(part: Part) -> None:
    """Its bytes, and the marks that say what it is a part of."""
    (event,) = events(form().part("info", part, 5))
    assert (event["seq"], event["level"]) == (5, "info")
    content = event["line"].encode() if "line" in event else base64.b64decode(event["line_b64"])
    assert content == part.content
    marks = {name: event[name] for name in ("part", "more", "partial") if name in event}
    assert marks == part.marks()
    check(event)


def test_a_lone_surrogate_is_escaped() -> None:
    """Which the fast encoder refuses; everything else is as compact as its output."""
    assert json_text({"a": "é", "b": [1]}) == '{"a":"é","b":[1]}'.encode()
    assert json_text({"a": "\udcff", "b": [1]}) == b'{"a":"\\udcff","b":[1]}'
