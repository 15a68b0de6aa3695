"""outlet.py: a sink that does not take is dropped for and says so; one that does sets the pace. The clock is the test's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from modelsupervisor.log.buffer import Tally
from modelsupervisor.log.outlet import (
    PACE,
    PATIENCE,
    RESERVED,
    TELL_EVERY,
    WRITE,
    WRITES,
    Outlet,
    Said,
)
from modelsupervisor.log.render import Block
from support.schema import check_words
from support.sinks import ScriptedPort, block

OUT, ERR = "digits/0 stdout", "digits/0 stderr"
LIMIT = 1000


class Sink:
    """An outlet called `stdout`, its port, and what it said."""

    def __init__(self, room: int = 0, limit: int = LIMIT, **options: Any) -> None:
        self.port = ScriptedPort(room)
        self.outlet = Outlet("stdout", self.port, limit, **options)

    def put(self, source: str | None, events: int, size: int) -> None:
        """Hand it a block."""
        self.outlet.put(block(source, events, size))

    def take(self, size: int, now: float = 0.0) -> None:
        """Let the port take so many bytes more, and write."""
        self.port.room += size
        self.outlet.flush(now)

    def said(self) -> list[tuple[str, dict[str, Any]]]:
        """Events that it wants made since the last call, each as the catalogue has it."""
        said = self.outlet.take_said()
        for each in said:
            check_words(each.level, each.event, each.facts)
            assert each.facts["sink"] == "stdout"
        return [
            (each.event, {name: fact for name, fact in each.facts.items() if name != "sink"})
            for each in said
        ]

    def stall(self) -> None:
        """Fill it, and drop one event more."""
        self.put(OUT, 10, LIMIT)
        self.put(OUT, 1, 10)
        assert self.outlet.buffer.stalled


# Writing -------------------------------------------------------------------------------------------------------------


def test_what_is_put_is_written() -> None:
    """In order, as it came, and nothing is said about it."""
    sink = Sink(room=1 << 30)
    blocks = [Block(OUT, 1, b"one\n"), Block(None, 1, b"event\n"), Block(ERR, 2, b"a\nb\n")]
    for each in blocks:
        sink.outlet.put(each)
    assert sink.outlet.backlog
    sink.outlet.flush(0.0)
    assert bytes(sink.port.taken) == b"one\nevent\na\nb\n"
    assert not sink.outlet.backlog and sink.said() == []
    assert sink.outlet.buffer.tallies[ERR] == Tally(logged=2)


def test_nothing_is_written_where_nothing_waits() -> None:
    """A port without backlog is not called."""
    sink = Sink(room=1 << 30)
    sink.outlet.flush(0.0)
    assert sink.port.writes == []


def test_a_flush_has_a_bound() -> None:
    """So many writes of so many bytes: who reads as fast as we write may not keep us."""
    sink = Sink(room=1 << 40, limit=1 << 30)
    for _ in range(WRITES + 3):
        sink.put(OUT, 1, WRITE)
    sink.outlet.flush(0.0)
    assert sink.port.writes == [WRITE] * WRITES
    few = Sink(room=1 << 40, limit=1 << 30, most=100, writes=2)
    few.put(OUT, 1, 1000)
    few.outlet.flush(0.0)
    assert few.port.writes == [100, 100]


def test_a_port_that_takes_nothing_is_asked_once() -> None:
    """Until the next flush."""
    sink = Sink()
    sink.put(OUT, 1, 10)
    sink.outlet.flush(0.0)
    assert len(sink.port.writes) == 1
    assert sink.outlet.backlog


def test_a_form_of_its_own() -> None:
    """`encode` is what makes the bytes; the count of events stays the block's."""
    sink = Sink(room=1 << 30, encode=lambda each: b"<" + each.json + b">")
    sink.outlet.put(Block(OUT, 3, b"a\nb\nc\n"))
    sink.outlet.flush(0.0)
    assert bytes(sink.port.taken) == b"<a\nb\nc\n>"
    assert sink.outlet.buffer.tallies[OUT] == Tally(logged=3)


def test_what_it_does_not_want() -> None:
    """Is neither written nor counted, even where nothing is taken any more."""
    sink = Sink(room=1 << 30, wants=lambda each: each.about == ("digits", 0))
    mine, other = Block(OUT, 1, b"mine\n", ("digits", 0)), Block(OUT, 1, b"no\n", ("digits", 1))
    sink.outlet.put(other)
    sink.outlet.put(mine)
    sink.outlet.flush(0.0)
    assert bytes(sink.port.taken) == b"mine\n"
    sink.outlet.close("gone")
    sink.outlet.put(other)
    assert sink.outlet.buffer.tallies == {OUT: Tally(logged=1)}


# Stalled and resumed -------------------------------------------------------------------------------------------------


def test_stalled_is_said_once() -> None:
    """When the first line finds no room; from there on all output is dropped and counted, events are taken."""
    sink = Sink()
    sink.put(OUT, 10, LIMIT - 5)
    assert sink.said() == []
    sink.put(OUT, 2, 20)
    reason = "it does not take what is written"
    assert sink.said() == [("log.stalled", {"reason": reason, "buffered_bytes": LIMIT - 5})]
    sink.put(ERR, 1, 5)  # for which there would be room
    sink.put(None, 1, 50)
    sink.outlet.flush(0.0)
    assert sink.said() == []
    assert sink.outlet.buffer.tallies == {
        OUT: Tally(buffered=10, dropped=2),
        ERR: Tally(dropped=1),
        None: Tally(buffered=1),
    }


def test_the_known_trouble_is_the_reason() -> None:
    """What its owner knows says more than that nothing is taken; it stays the reason although it may have passed by then."""
    sink = Sink()
    sink.outlet.trouble = "it cannot be written: No space left on device"
    sink.stall()
    sink.outlet.trouble = ""
    ((_, stalled),) = sink.said()
    sink.take(LIMIT)
    (_, resumed), (_, dropped) = sink.said()
    expected = "it cannot be written: No space left on device"
    assert {stalled["reason"], resumed["reason"], dropped["reason"]} == {expected}


def test_resumed_when_half_is_free() -> None:
    """Not before: then it says so and how much is missing, by stream; and takes output again."""
    sink = Sink()
    sink.stall()
    sink.put(ERR, 5, 10)
    sink.put(OUT, 1, 10)
    sink.said()
    sink.take(LIMIT // 2 - 1)
    sink.put(OUT, 1, 10)
    assert sink.said() == []
    sink.take(1)
    reason = "it does not take what is written"
    assert sink.said() == [
        ("log.resumed", {"reason": reason}),
        ("log.dropped", {"lines": 8, "reason": reason, "streams": {OUT: 3, ERR: 5}}),
    ]
    sink.put(OUT, 1, 10)
    sink.take(LIMIT)
    assert sink.outlet.buffer.tallies[OUT] == Tally(logged=11, dropped=3)
    assert sink.said() == []


def test_every_stall_is_told() -> None:
    """The second like the first, with the count of its own."""
    sink = Sink()
    for _ in range(2):
        sink.stall()
        sink.take(LIMIT)
        assert [name for name, _ in sink.said()] == ["log.stalled", "log.resumed", "log.dropped"]
    assert sink.outlet.buffer.untold == 0


def test_the_count_of_a_sink_that_stays_stalled() -> None:
    """Is told every TELL_EVERY seconds, and only where there is something new."""
    sink = Sink()
    sink.stall()
    sink.said()
    sink.outlet.flush(100.0)
    sink.outlet.flush(100.0 + TELL_EVERY)
    assert sink.said() == []
    sink.outlet.flush(100.1 + TELL_EVERY)
    ((name, facts),) = sink.said()
    assert (name, facts["lines"]) == ("log.dropped", 1)
    sink.put(ERR, 4, 10)
    sink.outlet.flush(101.0 + TELL_EVERY)
    assert sink.said() == []
    sink.outlet.flush(100.2 + 2 * TELL_EVERY)
    ((_, facts),) = sink.said()
    assert facts["streams"] == {ERR: 4}
    sink.outlet.flush(1000.0)
    assert sink.said() == []


def test_the_next_stall_is_another() -> None:
    """Its first count is told TELL_EVERY after it began, not after the one before."""
    sink = Sink()
    sink.stall()
    sink.outlet.flush(0.0)
    sink.take(LIMIT)
    sink.said()
    sink.stall()
    sink.said()
    for now in (100.0, 100.0 + TELL_EVERY):
        sink.outlet.flush(now)
        assert sink.said() == []
    sink.outlet.flush(100.1 + TELL_EVERY)
    assert [name for name, _ in sink.said()] == ["log.dropped"]


def test_a_count_is_not_dropped_itself() -> None:
    """While the room for events is half used up, it waits: told into a buffer that is full, it would be lost with its number."""
    sink = Sink()
    sink.stall()
    sink.put(None, 1, RESERVED // 2 + 1)
    sink.said()
    sink.outlet.flush(0.0)
    sink.outlet.flush(1000.0)
    assert sink.said() == [] and sink.outlet.buffer.untold == 1
    sink.take(2)
    assert sink.outlet.buffer.stalled
    assert [name for name, _ in sink.said()] == ["log.dropped"]


def test_an_event_without_room_is_counted() -> None:
    """When even the reserve is used up."""
    sink = Sink()
    sink.put(None, 1, LIMIT + RESERVED)
    sink.put(None, 1, 10)
    assert sink.outlet.buffer.tallies[None] == Tally(buffered=1, dropped=1)
    assert [name for name, _ in sink.said()] == ["log.stalled"]
    sink.take(1 << 30)
    assert [name for name, _ in sink.said()] == ["log.resumed", "log.dropped"]


def test_a_line_longer_than_the_limit() -> None:
    """Is written like any other where the sink keeps up."""
    sink = Sink(room=1 << 30)
    sink.put(OUT, 1, 10 * LIMIT)
    sink.outlet.flush(0.0)
    assert sink.outlet.buffer.tallies[OUT] == Tally(logged=1)
    assert sink.said() == []


# Closed --------------------------------------------------------------------------------------------------------------


def test_a_reader_that_left() -> None:
    """Is said once, as an error; what waited and all that comes is dropped and counted; the port is not asked again."""
    sink = Sink()
    sink.put(OUT, 3, 100)
    sink.port.gone = "Broken pipe"
    sink.outlet.flush(0.0)
    assert sink.outlet.said[0].level == "error"
    assert sink.said() == [("log.closed", {"reason": "Broken pipe"})]
    sink.put(OUT, 2, 10)
    sink.put(None, 1, 10)
    sink.outlet.close("again")
    for now in (1.0, 100.0, 200.0):
        sink.outlet.flush(now)
    assert sink.said() == []
    assert sink.outlet.closed == sink.outlet.reason == "Broken pipe"
    assert not sink.outlet.backlog
    assert sink.outlet.buffer.tallies == {OUT: Tally(dropped=5), None: Tally(dropped=1)}


def test_a_stalled_reader_that_left() -> None:
    """It does not resume, it is closed; its last count can be told with the reason."""
    sink = Sink()
    sink.stall()
    sink.said()
    sink.port.gone = "Broken pipe"
    sink.outlet.flush(0.0)
    assert sink.said() == [("log.closed", {"reason": "Broken pipe"})]
    assert not sink.outlet.buffer.stalled
    sink.outlet.tell_dropped()
    assert sink.said() == [
        ("log.dropped", {"lines": 11, "reason": "Broken pipe", "streams": {OUT: 11}})
    ]
    sink.outlet.tell_dropped()
    assert sink.said() == []


# Holding -------------------------------------------------------------------------------------------------------------

BIG = 8 * PACE


@pytest.fixture
def behind() -> Sink:
    """A sink of which half is full, and that was looked at at second 10 for the first time."""
    sink = Sink(limit=BIG)
    sink.put(OUT, 1, BIG // 2 - 1)
    assert not sink.outlet.holds(9.0)
    assert sink.outlet.hold_ends() is None
    sink.put(OUT, 1, 1)
    assert sink.outlet.holds(10.0)
    return sink


def test_half_full_holds_for_a_while(behind: Sink) -> None:
    """PATIENCE seconds, and no longer where nothing is taken."""
    assert behind.outlet.hold_ends() == 10.0 + PATIENCE
    assert behind.outlet.holds(10.0 + PATIENCE * 0.99)
    assert not behind.outlet.holds(10.0 + PATIENCE)
    assert behind.outlet.hold_ends() is None
    assert not behind.outlet.holds(10.0 + PATIENCE * 1.5)


def test_who_keeps_the_pace_holds_on(behind: Sink) -> None:
    """As long as every look finds PACE bytes a second taken, reading waits for it; in the first look that does not, no more."""
    now = 10.0
    for _ in range(5):
        now += PATIENCE
        size = int(PACE * PATIENCE)
        behind.take(size, now)
        behind.put(OUT, 1, size)
        assert behind.outlet.holds(now)
    now += PATIENCE
    behind.take(int(PACE * PATIENCE) - 1, now)
    behind.put(OUT, 1, int(PACE * PATIENCE) - 1)
    assert not behind.outlet.holds(now)


def test_what_was_taken_before_does_not_count() -> None:
    """A look begins when half is full: a sink that took much and then stopped is not waited for longer than any other."""
    sink = Sink(limit=BIG)
    sink.put(OUT, 1, BIG)
    sink.take(BIG, 1.0)
    sink.put(OUT, 1, BIG)
    assert sink.outlet.holds(2.0)
    assert not sink.outlet.holds(2.0 + PATIENCE)


def test_a_late_look_measures_a_rate(behind: Sink) -> None:
    """Bytes a second, not bytes a look."""
    behind.put(OUT, 1, BIG // 2)
    behind.take(int(PACE * PATIENCE), 12.0)
    assert not behind.outlet.holds(12.0)


def test_time_of_our_own_is_not_the_sinks() -> None:
    """While this process computes or waits for a CPU, a sink cannot take what nobody offers; one that takes nothing at all is
    not excused by that.
    """
    own = [5.0]
    sink = Sink(limit=BIG, own_time=lambda: own[0])
    sink.put(OUT, 1, BIG // 2 + PACE)
    assert sink.outlet.holds(10.0)
    own[0] += PATIENCE * 0.9
    sink.take(int(PACE * PATIENCE * 0.2))
    assert sink.outlet.holds(10.0 + PATIENCE)
    own[0] += PATIENCE * 0.9
    assert not sink.outlet.holds(10.0 + 2 * PATIENCE)


def test_who_takes_again_is_waited_for_again(behind: Sink) -> None:
    """One look at PACE is enough."""
    assert not behind.outlet.holds(10.0 + PATIENCE)
    behind.take(PACE, 10.1 + PATIENCE)
    behind.put(OUT, 1, PACE)
    assert not behind.outlet.holds(10.1 + PATIENCE)
    assert behind.outlet.holds(10.0 + 2 * PATIENCE)


def test_below_half_nothing_is_held(behind: Sink) -> None:
    """And the next time begins with patience anew."""
    assert not behind.outlet.holds(10.0 + PATIENCE)
    behind.take(1, 11.0)
    assert not behind.outlet.holds(11.0)
    assert behind.outlet.hold_ends() is None
    behind.put(OUT, 1, 1)
    assert behind.outlet.holds(100.0)
    assert behind.outlet.hold_ends() == 100.0 + PATIENCE


def test_brimming(behind: Sink) -> None:
    """More than three quarters of a sink that takes; one that does not take is not worth waiting for."""
    behind.put(OUT, 1, BIG // 4)
    assert not behind.outlet.brimming
    behind.put(OUT, 1, 1)
    assert behind.outlet.brimming
    assert not behind.outlet.holds(10.0 + PATIENCE)
    assert not behind.outlet.brimming


def _stalls(sink: Sink) -> None:
    sink.put(OUT, 1, BIG // 2)
    sink.put(OUT, 1, 1)


def _closes(sink: Sink) -> None:
    sink.outlet.close("Broken pipe")


@pytest.mark.parametrize("end", [_stalls, _closes])
def test_who_is_dropped_for_holds_nobody(behind: Sink, end: Callable[[Sink], None]) -> None:
    """Stalled or closed: its lines are lost already."""
    end(behind)
    assert not behind.outlet.brimming
    assert not behind.outlet.holds(10.0)
    assert behind.outlet.hold_ends() is None


def test_a_sink_without_patience() -> None:
    """Never slows a worker, however full it is."""
    sink = Sink(limit=BIG, patient=False)
    sink.put(OUT, 1, BIG)
    assert not sink.outlet.holds(1.0)
    assert not sink.outlet.brimming
    assert sink.outlet.hold_ends() is None


def test_what_it_says_is_a_value() -> None:
    """Level, name and facts, the sink's name among them."""
    sink = Sink()
    sink.outlet.close("x")
    assert sink.outlet.said == [Said("error", "log.closed", {"sink": "stdout", "reason": "x"})]
