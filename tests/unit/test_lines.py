"""lines.py: every byte of a stream is in its lines, however it was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupervisor.log.lines import LineSplitter, Part, Segment


def put_together(segments: list[Segment]) -> bytes:
    """The stream that these came of."""
    found = b""
    for segment in segments:
        if isinstance(segment, Part):
            found += segment.content + (b"" if segment.more or segment.partial else b"\n")
        else:
            found += b"".join(line + b"\n" for line in segment)
    return found


def flat(segments: list[Segment]) -> list[bytes | Part]:
    """Lines and parts in order, without regard to which came in one list."""
    found: list[bytes | Part] = []
    for segment in segments:
        if isinstance(segment, Part):
            found.append(segment)
        else:
            found += segment
    return found


def test_lines_and_the_rest() -> None:
    """A line is given out when its newline came, together with its neighbours; the rest when the writer is gone."""
    splitter = LineSplitter(100)
    assert splitter.feed(b"one\ntw") == [[b"one"]]
    assert splitter.held == 2
    assert splitter.feed(b"o\n\nthr") == [[b"two", b""]]
    assert splitter.flush() == [Part(b"thr", partial=True)]
    assert splitter.flush() == []
    assert splitter.held == 0


def test_nothing_new() -> None:
    """No bytes, or none that end a line, give nothing."""
    splitter = LineSplitter(100)
    assert splitter.feed(b"") == []
    assert splitter.feed(b"on") == []
    assert splitter.feed(b"") == []
    assert splitter.feed(b"e\n") == [[b"one"]]
    assert splitter.flush() == []


def test_a_long_line_is_parts() -> None:
    """Parts count from 1; all but the last are marked; the lines before and behind are whole."""
    splitter = LineSplitter(4)
    assert splitter.feed(b"a\nb\nabcdefghij\nnext\n\nabcde\n") == [
        [b"a", b"b"],
        Part(b"abcd", part=1, more=True),
        Part(b"efgh", part=2, more=True),
        Part(b"ij", part=3),
        [b"next", b""],
        Part(b"abcd", part=1, more=True),
        Part(b"e", part=2),
    ]


def test_a_line_of_just_the_length() -> None:
    """It is whole, also where its newline comes later; one byte more and it is not."""
    splitter = LineSplitter(4)
    assert splitter.feed(b"abcd\n") == [[b"abcd"]]
    assert splitter.feed(b"abcd") == []
    assert splitter.feed(b"\nabcde\n") == [
        [b"abcd"],
        Part(b"abcd", part=1, more=True),
        Part(b"e", part=2),
    ]


def test_a_long_line_over_many_readings() -> None:
    """Its parts go on counting until its newline comes, and the next line begins anew."""
    splitter = LineSplitter(4)
    assert splitter.feed(b"abcde") == [Part(b"abcd", part=1, more=True)]
    assert splitter.feed(b"f") == []
    assert splitter.feed(b"ghijk") == [Part(b"efgh", part=2, more=True)]
    assert splitter.feed(b"\nx\nlonger") == [
        Part(b"ijk", part=3),
        [b"x"],
        Part(b"long", part=1, more=True),
    ]


def test_a_long_line_that_nobody_ends() -> None:
    """Its last part is partial, nothing of it is kept beside one part, and the splitter is as new behind it."""
    splitter = LineSplitter(4)
    assert splitter.feed(b"abcdef") == [Part(b"abcd", part=1, more=True)]
    assert splitter.held == 2
    assert splitter.flush() == [Part(b"ef", part=2, partial=True)]
    assert splitter.feed(b"new\n") == [[b"new"]]


@given(st.binary(max_size=400), st.lists(st.integers(1, 50)), st.integers(1, 20))
def test_every_byte_is_kept(stream: bytes, cuts: list[int], longest: int) -> None:
    """Whatever the bytes and wherever they are cut: put together they are the stream, none is too long, none too much is held."""
    splitter = LineSplitter(longest)
    segments: list[Segment] = []
    at = 0
    for cut in [*cuts, len(stream)]:
        segments += splitter.feed(stream[at : at + cut])
        assert splitter.held <= longest
        at += cut
    segments += splitter.flush()
    assert put_together(segments) == stream
    assert [] not in segments
    pieces = flat(segments)
    assert all(len(p.content if isinstance(p, Part) else p) <= longest for p in pieces)
    at_once = LineSplitter(longest)
    assert flat(at_once.feed(stream) + at_once.flush()) == pieces


@given(st.lists(st.text("ab\n", max_size=30), max_size=20), st.integers(1, 5))
def test_parts_count(chunks: list[str], longest: int) -> None:
    """The parts of a line are numbered without a gap, and exactly the last of them is without `more`."""
    splitter = LineSplitter(longest)
    segments = [each for chunk in chunks for each in splitter.feed(chunk.encode())]
    expected = 1
    for piece in flat(segments + splitter.flush()):
        if isinstance(piece, Part) and piece.part:
            assert piece.part == expected
            expected = expected + 1 if piece.more else 1
        else:
            assert expected == 1


@pytest.mark.parametrize(
    ("part", "marks"),
    [
        (Part(b"a", part=1, more=True), {"part": 1, "more": True}),
        (Part(b"a", part=2), {"part": 2, "more": False}),
        (Part(b"a", partial=True), {"partial": True}),
        (Part(b"a", part=3, partial=True), {"part": 3, "more": False, "partial": True}),
    ],
)
def test_the_marks_of_a_part(part: Part, marks: dict[str, object]) -> None:
    """Only what differs from a whole line is said."""
    assert part.marks() == marks
