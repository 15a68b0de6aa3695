"""streams.py: a real pipe turned into events, within the bounds of a turn, every line once and counted."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelsupervisor.log.render import MOST_LINES
from modelsupervisor.runtime.streams import (
    BLOCK_BYTES,
    LAST_LINE_LENGTH,
    LAST_LINES,
    TURN,
    TURN_BLOCKS,
    LastLines,
)
from support.source import SOURCE, Source, always, never

TRACEBACK = [b"Traceback (most recent call last):", b'  File "a.py", line 1', b"ValueError: x"]


@pytest.fixture
def make() -> Iterator[Callable[..., Source]]:
    """Makes sources."""
    made: list[Source] = []

    def source(*args: Any, **options: Any) -> Source:
        made.append(Source(*args, **options))
        return made[-1]

    yield source
    for each in made:
        each.close()


@pytest.fixture
def source(make: Callable[..., Source]) -> Source:
    """A worker's standard output."""
    return make()


# A turn --------------------------------------------------------------------------------------------------------------


def test_lines_become_events(source: Source) -> None:
    """Of the worker and stream that printed them; a line without its newline waits for it."""
    source.prints(b"one\ntwo\nthr")
    assert source.serve() == 11
    source.prints(b"ee\n")
    assert source.serve() == 3
    assert source.lines() == ["one", "two", "three"]
    event = source.events()[0]
    assert [
        event[name] for name in ("event", "model", "worker", "pid", "generation", "stream")
    ] == [
        *("worker.output", "digits", 0, 7, 1, "stdout"),
    ]
    assert source.journal.newest(10, "digits", 0)
    assert source.outlet.buffer.tallies[SOURCE].logged == 3


def test_nothing_to_read(source: Source) -> None:
    """Nothing is made of it."""
    assert source.serve() == 0
    source.prints(b"half")
    assert source.serve() == 4
    assert source.events() == []
    assert not source.stream.unfinished and not source.stream.held_back


def test_levels_of_the_streams(make: Callable[..., Source]) -> None:
    """stdout says info, stderr warning, and a line that says better is believed; so are parts and remainders."""
    for name, default in (("stdout", "info"), ("stderr", "warning")):
        source = make(name, max_line=100)
        source.prints(b"plain\nERROR:root:x\n" + b"x" * 150 + b"\nrest")
        source.serve()
        source.finish()
        levels = [event["level"] for event in source.events()]
        assert levels == [default, "error", default, default, default]


def test_a_turn_reads_so_much(source: Source) -> None:
    """And leaves the rest in the pipe."""
    line = b"x" * 1023 + b"\n"
    source.prints(line * 64)
    assert source.stream.pending() == TURN == 64 * len(line)
    for most in (TURN, 0):
        assert source.serve() == most
    assert len(source.lines()) == 64


def test_a_turn_gives_out_so_many_blocks(source: Source) -> None:
    """Empty lines make events of much more than they are: what is left waits for the next turns, which read nothing meanwhile."""
    source.prints(b"\n" * TURN)
    assert source.serve() == TURN
    assert source.blocks() == [MOST_LINES] * TURN_BLOCKS
    assert source.stream.unfinished
    turns = 1
    while source.stream.unfinished:
        assert source.serve() == 0
        turns += 1
    assert turns == TURN // (MOST_LINES * TURN_BLOCKS)
    assert source.lines() == [""] * TURN


def test_a_block_is_cut_where_it_is_full(source: Source) -> None:
    """Lines of several levels and kinds in one block, in order, and none of them twice."""
    source.prints(b"a\n" * 500 + b'{"a": 1}\n' + b"ERROR:root:%d\n" * 30 + b"b\n" * 500)
    source.serve()
    assert sum(source.blocks()) == 1031
    assert all(MOST_LINES <= events < 2 * MOST_LINES for events in source.blocks()[:-1])
    lines = ["a"] * 500 + ['{"a": 1}'] + ["ERROR:root:%d"] * 30 + ["b"] * 500
    assert source.lines() == lines


def test_a_block_of_long_parts(make: Callable[..., Source]) -> None:
    """It ends where it has BLOCK_BYTES of them: in a stream without newlines 512 parts would be the size of all memory."""
    source = make(max_line=BLOCK_BYTES // 2)
    source.finish(b"x" * (BLOCK_BYTES * 5 // 2))
    assert source.blocks() == [2, 2, 1]


def test_pressed_in_the_midst_of_a_turn(source: Source) -> None:
    """After each block the sinks are asked; what is left is given out when it goes on, before anything new is read."""
    source.prints(b"a\n" * 1500)
    assert source.serve(always) == 3000
    assert source.blocks() == [512] and source.stream.unfinished
    source.prints(b"b\n")
    assert source.serve(always) == 0
    assert source.blocks() == [512, 512]
    assert source.serve(never) == 0
    assert not source.stream.unfinished
    assert source.serve(never) == 2
    assert source.lines() == ["a"] * 1500 + ["b"]


def test_whose_line_is_settled_when_it_is_read(source: Source) -> None:
    """Also where it is given out later: who wrote, and which requests were in hand."""
    source.in_hand = ("r1", "r2")
    source.prints(b"a\n" * 600)
    source.serve(always)
    source.generation, source.in_hand = 2, ()
    source.serve()
    source.prints(b"b\n" * 600)
    source.serve(always)
    source.in_hand = ("r3",)
    source.finish(b"c\n")
    events = source.events()
    assert [event["generation"] for event in events] == [1] * 600 + [2] * 601
    in_hand = [event.get("in_hand_at_read") for event in events]
    assert in_hand == [["r1", "r2"]] * 600 + [None] * 600 + [["r3"]]


def test_a_long_line(make: Callable[..., Source]) -> None:
    """Becomes parts, between its neighbours; every byte of it is there."""
    source = make(max_line=1000)
    long = os.urandom(2500).replace(b"\n", b"\xff")
    source.prints(b"before\n" + long + b"\nbehind\n")
    source.serve()
    events = source.events()
    assert [event.get("part") for event in events] == [None, 1, 2, 3, None]
    assert [event.get("more") for event in events] == [None, True, True, False, None]
    content = [base64.b64decode(event["line_b64"]) for event in events[1:4]]
    assert b"".join(content) == long
    assert [events[0]["line"], events[4]["line"]] == ["before", "behind"]


# Tracebacks ----------------------------------------------------------------------------------------------------------


def test_a_traceback_is_one_event(source: Source) -> None:
    """Also when it comes in several readings; it is held until it is whole."""
    source.prints(b"before\n" + TRACEBACK[0] + b"\n")
    source.serve()
    assert source.stream.held_back and not source.stream.unfinished
    assert source.lines() == ["before"]
    source.prints(b"\n".join(TRACEBACK[1:]) + b"\nbehind\n")
    source.serve()
    assert not source.stream.held_back
    _, traceback, behind = source.events()
    assert (traceback["kind"], traceback["lines"]) == ("traceback", 3)
    assert traceback["line"].encode() == b"\n".join(TRACEBACK)
    assert behind["line"] == "behind"


def test_released_when_nothing_more_comes(source: Source) -> None:
    """It is given out as far as it is there; a release of nothing is nothing."""
    source.stream.release(never)
    source.prints(b"\n".join(TRACEBACK) + b"\n")
    source.serve()
    assert source.events() == []
    source.stream.release(never)
    assert not source.stream.held_back
    (event,) = source.events()
    assert event["error"] == "ValueError: x"
    source.stream.release(never)
    assert len(source.events()) == 1


def test_a_release_keeps_the_order(source: Source) -> None:
    """What was read before it and waits goes first."""
    source.prints(b"a\n" * 600 + b"\n".join(TRACEBACK) + b"\n")
    source.serve(always)
    assert source.stream.unfinished and source.stream.held_back
    source.stream.release(never)
    assert [event.get("kind") for event in source.events()] == [None] * 600 + ["traceback"]
    assert not source.stream.unfinished


def test_a_part_ends_a_traceback(make: Callable[..., Source]) -> None:
    """In order: what is held goes before it."""
    source = make(max_line=100)
    source.prints(b"\n".join(TRACEBACK[:2]) + b"\n" + b"x" * 150 + b"\n")
    source.serve()
    assert not source.stream.held_back
    events = source.events()
    assert [event.get("part") for event in events] == [None, 1, 2]
    assert events[0]["kind"] == "traceback"


# The end -------------------------------------------------------------------------------------------------------------


def test_the_last_bytes_of_a_writer(source: Source) -> None:
    """Everything is given out: what waits, what is held, and the unfinished line, marked; what comes then is a new writer's."""
    source.prints(b"a\n" * 1500)
    source.serve(always)
    source.finish(b"\n".join(TRACEBACK) + b"\nlast wo")
    assert source.ends == [1502]
    assert not source.stream.unfinished and not source.stream.held_back
    events = source.events()
    assert [event["line"] for event in events[:1500]] == ["a"] * 1500
    traceback, last = events[1500:]
    assert traceback["kind"] == "traceback"
    assert (last["line"], last["partial"]) == ("last wo", True)
    source.prints(b"rds\n")
    source.serve()
    assert source.lines()[-1] == "rds"


def test_an_end_of_many_words(source: Source) -> None:
    """It is given out as the sinks take it, and told when the last of it was; what comes after it waits for that in the pipe."""
    source.finish(b"a\n" * 1500 + b"rest", always)
    assert source.blocks() == [512] and source.stream.unfinished
    source.prints(b"new\n")
    assert source.serve(always) == 0
    assert source.ends == [] and source.stream.pending() == 4
    assert source.serve() == 0
    assert source.ends == [1501] and not source.stream.unfinished
    assert source.serve() == 4
    assert source.lines() == ["a"] * 1500 + ["rest", "new"]


def test_an_end_without_words(source: Source) -> None:
    """Is told as well, in its turn."""
    source.prints(b"a\n" * 600)
    source.serve(always)
    source.finish(b"", always)
    source.serve()
    assert source.ends == [600]


def test_nobodys_words_stay_where_they_are(source: Source) -> None:
    """Until it is known whose they are; what was read before goes out meanwhile."""
    source.prints(b"a\n" * 600)
    source.serve(always)
    source.known = False
    assert source.serve() == 0
    source.prints(b"b\n")
    assert source.serve() == 0
    assert (len(source.lines()), source.stream.pending()) == (600, 2)
    source.known = True
    assert source.serve() == 2


def test_what_was_held_is_its_writers(source: Source) -> None:
    """Also where it is released in another's time, or in nobody's."""
    source.prints(TRACEBACK[0] + b"\n")
    source.serve()
    source.generation, source.known = 2, False
    source.stream.release(never)
    assert [event["generation"] for event in source.events()] == [1]


def test_a_successor_inherits_no_words(source: Source) -> None:
    """What a writer left is its own, also where the next one's voice is the stream's by then."""
    source.prints(b"a\n" * 600)
    source.serve(always)
    before = source.writer()
    source.generation = 2
    source.stream.finish(b"its end", before, source.on_end)
    source.serve()
    source.prints(b"new\n")
    source.serve()
    assert [event["generation"] for event in source.events()] == [1] * 601 + [2]


def test_the_end_of_a_long_line(make: Callable[..., Source]) -> None:
    """The last part is partial."""
    source = make(max_line=4)
    source.finish(b"abcdef")
    events = source.events()
    assert [(event["part"], event["more"], event.get("partial")) for event in events] == [
        (1, True, None),
        (2, False, True),
    ]


def test_what_is_there_and_no_more(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of the moment when it is asked, also while somebody goes on writing; nothing where there is nothing."""
    assert source.stream.read_what_is_there() == b""
    source.prints(b"x" * 10_000)
    read = os.read

    def writes_on(fd: int, size: int) -> bytes:
        source.prints(b"y" * 100)
        return read(fd, min(size, 999))

    monkeypatch.setattr(os, "read", writes_on)
    assert source.stream.read_what_is_there() == b"x" * 10_000
    monkeypatch.undo()
    assert source.stream.pending() == 1100


# Accounts ------------------------------------------------------------------------------------------------------------


def test_the_account_of_a_stream(source: Source) -> None:
    """Bytes that were read, events that were made: the sink's account adds up to it. A traceback is one event."""
    source.prints(b"a\nb\n" + b"\n".join(TRACEBACK) + b"\nc\n")
    source.serve()
    source.finish(b"rest")
    size = len(b"a\nb\nc\nrest") + len(b"\n".join(TRACEBACK)) + 1
    assert source.stream.report() == {"bytes": size, "events": 5, "hidden_lines": 0}
    source.outlet.flush(0.0)
    assert source.outlet.buffer.tallies[SOURCE].logged == 5


def test_lines_below_the_level(make: Callable[..., Source]) -> None:
    """Are hidden and counted, and no numbers are used up for them; a worker's last lines hold them all the same."""
    source = make(level="warning", max_line=100)
    source.prints(b"a\nb\nWARNING:root:w\nc\n" + b"x" * 150 + b"\n")
    source.serve()
    source.finish(b"d")
    assert source.lines() == ["WARNING:root:w"]
    assert source.stream.report()["events"] == 1
    assert source.stream.report()["hidden_lines"] == 6
    assert source.last_lines.take() == ["a", "b", "WARNING:root:w", "c", "x" * 100, "x" * 50, "d"]


def test_the_last_lines(source: Source) -> None:
    """The newest ones of all kinds, oldest first, in the order in which they came; taken once."""
    source.prints(b"a\n" * 600 + b"\n".join(TRACEBACK) + b"\n\xff\n")
    source.serve()
    taken = source.last_lines.take()
    assert len(taken) == LAST_LINES
    assert taken[-4:] == [*(line.decode() for line in TRACEBACK), "\\xff"]
    assert source.last_lines.take() == []


def test_long_last_lines() -> None:
    """Each is cut to what is worth reading, and kept in no more memory than that."""
    last = LastLines()
    last.add([b"x" * 100_000, "é".encode() * 100_000])
    assert sum(map(len, last._lines)) <= 2 * 4 * LAST_LINE_LENGTH
    assert last.take() == ["x" * LAST_LINE_LENGTH, "é" * LAST_LINE_LENGTH]
