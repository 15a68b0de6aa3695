"""lines.py: every byte of a stream is in its lines, however it was cut."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupervisor.runtime.lines import Line, LineSplitter


def put_together(lines: list[Line]) -> bytes:
    """The stream that lines came of."""
    return b"".join(line.content + (b"" if line.more or line.partial else b"\n") for line in lines)


def test_lines_and_the_rest() -> None:
    """A line is given out when its newline came, the rest when the writer is gone."""
    splitter = LineSplitter(100)
    assert splitter.feed(b"one\ntw") == [Line(b"one")]
    assert splitter.feed(b"o\n\nthr") == [Line(b"two"), Line(b"")]
    assert splitter.flush() == [Line(b"thr", partial=True)]
    assert splitter.flush() == []


def test_a_long_line_is_parts() -> None:
    """Parts count from 1; all but the last are marked; the next line begins anew."""
    splitter = LineSplitter(4)
    lines = splitter.feed(b"abcdefghij\nnext\n")
    assert lines == [
        Line(b"abcd", part=1, more=True),
        Line(b"efgh", part=2, more=True),
        Line(b"ij", part=3),
        Line(b"next"),
    ]


def test_a_long_line_that_nobody_ends() -> None:
    """Its last part is partial; nothing of it is kept beside one part."""
    splitter = LineSplitter(4)
    assert splitter.feed(b"abcdef") == [Line(b"abcd", part=1, more=True)]
    assert splitter.flush() == [Line(b"ef", part=2, partial=True)]


@given(st.binary(max_size=400), st.lists(st.integers(1, 50)), st.integers(1, 20))
def test_every_byte_is_kept(stream: bytes, cuts: list[int], longest: int) -> None:
    """Whatever the bytes and wherever they are cut: the lines put together are the stream, and none is too long."""
    splitter = LineSplitter(longest)
    lines: list[Line] = []
    at = 0
    for cut in [*cuts, len(stream)]:
        lines += splitter.feed(stream[at : at + cut])
        at += cut
    lines += splitter.feed(stream[at:])
    lines += splitter.flush()
    assert put_together(lines) == stream
    assert all(len(line.content) <= longest for line in lines)


@given(st.binary(max_size=100))
def test_bytes_that_are_no_text(content: bytes) -> None:
    """UTF-8 travels as text, anything else as base64, and both come back."""
    fields = Line(content).fields()
    if "line" in fields:
        assert str(fields["line"]).encode() == content
    else:
        assert base64.b64decode(str(fields["line_b64"])) == content
    assert set(fields) in ({"line"}, {"line_b64"})


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (Line(b"a"), {"line": "a"}),
        (Line(b"a", part=1, more=True), {"line": "a", "part": 1, "more": True}),
        (Line(b"a", part=2), {"line": "a", "part": 2, "more": False}),
        (Line(b"a", partial=True), {"line": "a", "partial": True}),
    ],
)
def test_the_fields_of_an_event(line: Line, fields: dict[str, object]) -> None:
    """Only what differs from a whole line is said."""
    assert line.fields() == fields
