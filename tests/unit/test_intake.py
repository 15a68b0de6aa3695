"""intake.py: when output is read, and when not. The clock is the test's, the pipes are real."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from modelsupervisor.log.render import MOST_LINES
from modelsupervisor.runtime.intake import DRAIN, HOLD, LAST_BLOCKS, PLENTY, REST, Intake
from modelsupervisor.runtime.outlets import Outlets
from modelsupervisor.runtime.reactor import Rank, Reactor
from modelsupervisor.runtime.streams import TURN, TURN_BLOCKS
from support.source import Source

TRACEBACK = b'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: x\n'


class Sinks:
    """Sinks that are behind when the test says so."""

    def __init__(self) -> None:
        self.behind: Callable[[], bool] = lambda: False
        self.pressing = False
        self.full = False
        self.drains: list[float] = []
        self.drained: Callable[[float], None] = lambda until: None

    def brimming(self) -> bool:
        """As `Outlets.brimming`."""
        return self.full

    def drain(self, until: float) -> None:
        """As `Outlets.drain`."""
        self.drains.append(until)
        self.drained(until)

    def holds(self, now: float) -> bool:
        """As `Outlets.holds`."""
        return self.behind()

    def pressed(self) -> bool:
        """As `Outlets.pressed`."""
        return self.pressing


class Loop:
    """A reactor with an intake, whose turns and time the test makes."""

    def __init__(self) -> None:
        self.time = 100.0
        self.reactor = Reactor()
        self.reactor.open()
        self.sinks = Sinks()
        self.intake = Intake(self.reactor, cast(Outlets, self.sinks), lambda: self.time)
        self.intake.open()
        self.sources: list[Source] = []

    def source(self, **options: Any) -> Source:
        """One more stream, which is read from now on."""
        made = Source(**options)
        self.sources.append(made)
        self.intake.add(made.stream)
        return made

    def turn(self) -> bool:
        """One turn of the supervisor's loop, without waiting; whether anything was ready."""
        ready = self.reactor.wait(0)
        for watch, events in ready:
            watch.callback(events)
        self.intake.tick(self.time)
        return bool(ready)

    def pass_(self, seconds: float) -> None:
        """Let time go by, and do what is due: a turn in which nothing was ready."""
        self.time += seconds
        self.intake.tick(self.time)

    def close(self) -> None:
        """Let everything go."""
        self.intake.close()
        self.reactor.close()
        for each in self.sources:
            each.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    """A loop of the test's own."""
    made = Loop()
    yield made
    made.close()


# Rest ----------------------------------------------------------------------------------------------------------------


def test_a_rest_after_little(loop: Loop) -> None:
    """What comes meanwhile wakes nobody and is read together when it is over."""
    source = loop.source()
    source.prints(b"1\n")
    assert loop.turn()
    assert source.lines() == ["1"]
    assert loop.intake.deadline() == loop.time + REST
    source.prints(b"2\n")
    source.prints(b"3\n")
    assert not loop.turn()
    loop.pass_(REST / 2)
    assert not loop.turn()
    loop.pass_(REST / 2)
    assert loop.intake.deadline() is None
    assert loop.turn()
    assert source.lines() == ["1", "2", "3"]


def test_no_rest_after_plenty(loop: Loop) -> None:
    """A FIFO that fills is read at once again; one stream that has plenty is enough."""
    quiet, source = loop.source(), loop.source()
    for expected in (1, 2):
        source.prints(b"x" * (PLENTY - 1) + b"\n")
        quiet.prints(b"y\n")
        assert loop.turn()
        assert loop.intake.deadline() is None
        assert len(source.lines()) == len(quiet.lines()) == expected
    source.prints(b"x" * (PLENTY - 2) + b"\n")
    assert loop.turn()
    assert loop.intake.deadline() is not None


def test_each_stream_once_a_turn(loop: Loop) -> None:
    """One that floods does not keep another's line waiting, nor take more than its bound."""
    flooding, quiet = loop.source(), loop.source()
    for _ in range(3):
        flooding.prints((b"x" * 1023 + b"\n") * (flooding.stream.pending() == 0) * 64)
        quiet.prints(b"line\n")
        before = flooding.stream.bytes_read
        assert loop.turn()
        assert flooding.stream.bytes_read - before == TURN
        assert quiet.stream.pending() == 0
    assert len(quiet.lines()) == 3


def test_life_goes_before_output(loop: Loop) -> None:
    """Whatever is printed: news of a worker's end are served before it."""
    source = loop.source()
    source.prints(b"x\n")
    reading, writing = os.pipe()
    seen: list[int] = []
    loop.reactor.add(reading, Rank.LIFE, lambda _: seen.append(source.stream.bytes_read))
    os.write(writing, b"!")
    assert loop.turn()
    assert seen == [0]
    assert source.lines() == ["x"]
    loop.reactor.remove(reading)
    os.close(reading)
    os.close(writing)


# A sink that is behind -----------------------------------------------------------------------------------------------


def test_nothing_is_read_while_a_sink_is_behind(loop: Loop) -> None:
    """The loop is not woken by it either; when the sink has room again, reading goes on."""
    source = loop.source()
    source.prints(b"x\n")
    loop.sinks.behind = lambda: True
    assert loop.turn()
    assert source.stream.bytes_read == 0
    assert not loop.turn()
    loop.pass_(1.0)
    assert not loop.turn()
    assert loop.intake.deadline() is None
    loop.sinks.behind = lambda: False
    loop.pass_(0.0)
    assert loop.turn()
    assert source.lines() == ["x"]


def test_a_rest_does_not_end_a_hold(loop: Loop) -> None:
    """Nor the other way round: both have to be over."""
    source = loop.source()
    source.prints(b"1\n")
    loop.turn()
    source.prints(b"2\n")
    loop.sinks.behind = lambda: True
    loop.pass_(REST)
    assert not loop.turn()
    assert loop.intake.deadline() is None
    loop.sinks.behind = lambda: False
    loop.pass_(0.0)
    assert loop.turn()
    assert source.lines() == ["1", "2"]


def test_behind_in_the_midst_of_a_turn(loop: Loop) -> None:
    """The streams that are left are served later, and none is forgotten."""
    sources = [loop.source() for _ in range(3)]
    for source in sources:
        source.prints(b"x\n")
    loop.sinks.behind = lambda: any(source.stream.bytes_read for source in sources)
    assert loop.turn()
    assert sorted(source.stream.bytes_read for source in sources) == [0, 0, 2]
    assert loop.turn()
    assert not loop.turn()
    loop.sinks.behind = lambda: False
    loop.pass_(0.0)
    assert loop.turn()
    assert [source.lines() for source in sources] == [["x"]] * 3


# What is left of a turn ----------------------------------------------------------------------------------------------


def test_what_was_read_and_waits(loop: Loop) -> None:
    """Is due at once, though nothing in the kernel tells of it, but not in the same turn; then the stream rests like any other."""
    source = loop.source()
    source.prints(b"\n" * 5000)
    assert loop.turn()
    assert source.stream.events == TURN_BLOCKS * MOST_LINES
    assert source.stream.unfinished
    assert loop.intake.deadline() == loop.time
    loop.pass_(0.0)
    assert not source.stream.unfinished
    assert len(source.lines()) == 5000
    assert loop.intake.deadline() == loop.time + REST


def test_what_waits_is_not_a_way_around_a_hold(loop: Loop) -> None:
    """While the sinks are behind it stays where it is, and nobody is woken for it."""
    source = loop.source()
    source.prints(b"\n" * 3000)
    loop.sinks.pressing = True
    assert loop.turn()
    made = source.stream.events
    assert source.stream.unfinished
    loop.sinks.behind = lambda: True
    loop.pass_(0.0)
    assert not loop.turn()
    assert loop.intake.deadline() is None
    assert source.stream.events == made
    loop.sinks.behind, loop.sinks.pressing = (lambda: False), False
    loop.pass_(0.0)
    assert len(source.lines()) == 3000


# Tracebacks ----------------------------------------------------------------------------------------------------------


def test_an_open_traceback_is_released(loop: Loop) -> None:
    """HOLD after its newest line, as far as it is there."""
    source = loop.source()
    half = TRACEBACK.index(b"ValueError")
    source.prints(TRACEBACK[:half])
    loop.turn()
    loop.pass_(HOLD / 2)
    source.prints(TRACEBACK[half:])
    loop.turn()
    due = loop.time + HOLD
    loop.pass_(REST)
    assert loop.intake.deadline() == due
    loop.pass_(HOLD - 2 * REST)
    assert source.events() == []
    loop.pass_(REST + 0.0001)
    (event,) = source.events()
    assert (event["kind"], event["lines"]) == ("traceback", 3)
    assert loop.intake.deadline() is None


def test_a_traceback_that_ended_is_not_due(loop: Loop) -> None:
    """The next line ended it, and gave it out."""
    source = loop.source()
    source.prints(TRACEBACK)
    loop.turn()
    loop.pass_(REST)
    assert loop.intake.deadline() is not None
    source.prints(b"next\n")
    loop.turn()
    assert len(source.events()) == 2
    loop.pass_(REST)
    assert loop.intake.deadline() is None


# The end of a writer ------------------------------------------------------------------------------------------------


def finish(loop: Loop, source: Source, chunk: bytes) -> None:
    """A writer died and left this."""
    loop.intake.finish([source.stream], [chunk], source.writer(), source.on_end)


def test_a_usual_end_is_told_at_once(loop: Loop) -> None:
    """With all that it left before it; nothing is due then."""
    source = loop.source()
    source.prints(TRACEBACK[:30])
    loop.turn()
    finish(loop, source, TRACEBACK[30:] + b"a\n" * 3000 + b"rest")
    assert source.ends == [3002]
    loop.pass_(REST)
    assert loop.intake.deadline() is None


def test_an_end_does_not_wait_for_a_sink_that_is_behind(loop: Loop) -> None:
    """Only for one that has no room left: what remains is given out in turns, and the end is told behind it."""
    source = loop.source()
    loop.sinks.pressing = True
    finish(loop, source, b"a\n" * 3000)
    assert source.ends == [3000]
    loop.sinks.pressing, loop.sinks.full = False, True
    finish(loop, source, b"b\n" * 3000)
    assert source.stream.events < 6000 and source.ends == [3000]
    assert loop.intake.deadline() == loop.time
    loop.pass_(0.0)
    assert source.ends == [3000, 6000]


def test_an_end_without_streams(loop: Loop) -> None:
    """Is told at once."""
    source = loop.source()
    loop.intake.finish([], [], source.writer(), source.on_end)
    assert source.ends == [0]


def test_the_end_is_behind_both_streams(loop: Loop) -> None:
    """What was printed on either was given out when it is told, and it is told once."""
    out, err = loop.source(), loop.source(name="stderr")
    seen: list[tuple[int, int]] = []
    loop.sinks.full = True

    def told() -> None:
        seen.append((out.stream.events, err.stream.events))

    streams = [out.stream, err.stream]
    loop.intake.finish(streams, [b"a\n" * 3000, b"b"], out.writer(), told)
    assert seen == []
    for _ in range(3):
        loop.pass_(0.0)
    assert seen == [(3000, 1)]


def test_an_end_of_very_much(loop: Loop) -> None:
    """It keeps the loop for LAST_BLOCKS blocks at most."""
    source = loop.source()
    finish(loop, source, b"\n" * ((LAST_BLOCKS + TURN_BLOCKS) * MOST_LINES))
    assert source.stream.events == LAST_BLOCKS * MOST_LINES
    assert source.ends == []
    loop.pass_(0.0)
    assert source.ends == [(LAST_BLOCKS + TURN_BLOCKS) * MOST_LINES]


def test_at_the_very_end(loop: Loop) -> None:
    """Everything that was read is given out as the sinks make room."""
    sources = [loop.source(), loop.source()]
    loop.sinks.full = True
    for source in sources:
        finish(loop, source, b"a\n" * 2000)

    def make_room(until: float) -> None:
        loop.sinks.full = len(loop.sinks.drains) < 2

    loop.sinks.drained = make_room
    loop.intake.finish_all(loop.time + 10)
    assert [source.ends for source in sources] == [[2000], [2000]]
    assert loop.sinks.drains == [loop.time + DRAIN] * 2


def test_at_the_very_end_time_is_up(loop: Loop) -> None:
    """After the deadline nothing waits any more: what has no room is counted as dropped, and the ends are told."""
    source = loop.source()
    loop.sinks.full = True
    finish(loop, source, b"a\n" * 10_000)

    def pass_time(until: float) -> None:
        assert loop.time < until <= deadline
        loop.time = until

    deadline = loop.time + 2.5 * DRAIN
    loop.sinks.drained = pass_time
    loop.intake.finish_all(deadline)
    assert source.ends == [10_000]
    assert len(loop.sinks.drains) == 3


# Coming and going ----------------------------------------------------------------------------------------------------


def test_a_stream_that_is_removed(loop: Loop) -> None:
    """It is not read any more and no traceback of it is due; what was read is still given out. Removing it again is nothing."""
    stays, goes = loop.source(), loop.source()
    goes.prints(b"\n" * 5000 + TRACEBACK)
    loop.turn()
    assert goes.stream.unfinished and goes.stream.held_back
    loop.intake.remove(goes.stream)
    loop.intake.remove(goes.stream)
    goes.prints(b"x\n")
    stays.prints(b"y\n")
    loop.pass_(0.0)
    assert not goes.stream.unfinished
    for _ in range(3):
        loop.turn()
        loop.pass_(REST)
    assert goes.stream.events == 5000 and goes.stream.pending() == 2
    assert stays.lines() == ["y"]


def test_after_the_end(loop: Loop) -> None:
    """Nothing wakes the loop any more; to end again, or while it rests, is nothing."""
    source = loop.source()
    source.prints(b"1\n")
    loop.turn()
    source.prints(b"2\n")
    loop.intake.close()
    loop.intake.close()
    assert not loop.reactor.wait(0)
    awake = Loop()
    awake.intake.close()
    assert not awake.reactor.wait(0) and not awake.reactor._watches
    awake.close()


# Fairness ------------------------------------------------------------------------------------------------------------


def test_streams_that_were_passed_over_come_first(loop: Loop) -> None:
    """While a sink is slow but takes, a turn serves one stream and then waits: each in turn, the quiet ones too."""
    flooders = [loop.source() for _ in range(3)]
    quiet = loop.source()
    served = 0

    def behind() -> bool:
        return sum(each.stream.bytes_read for each in loop.sources) > served

    loop.sinks.behind = behind
    for _ in range(8):
        for each in flooders:
            each.prints(b"f\n" * 2000)
        quiet.prints(b"q\n")
        served = sum(each.stream.bytes_read for each in loop.sources)
        loop.turn()
        served = 1 << 40
        loop.pass_(REST)
    assert all(each.stream.bytes_read for each in loop.sources)


def test_a_progress_bar_does_not_hold_a_traceback_back(loop: Loop) -> None:
    """Bytes that end no line make the traceback no longer: it comes when it is due."""
    source = loop.source(name="stderr")
    source.prints(b'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no\n')
    loop.turn()
    assert not source.stream.events
    begun = loop.time
    while loop.time < begun + HOLD:
        source.prints(b"\r10%")
        loop.pass_(0.05)
        loop.turn()
    loop.pass_(REST)
    assert source.stream.events == 1


def test_what_is_held_waits_while_the_sinks_are_behind(loop: Loop) -> None:
    """And nobody is woken for it without end."""
    source = loop.source(name="stderr")
    source.prints(b'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: no\n')
    loop.turn()
    loop.sinks.behind = lambda: True
    loop.pass_(HOLD)
    assert not source.stream.events
    due = loop.intake.deadline()
    assert due is not None and due > loop.time
    loop.sinks.behind = lambda: False
    loop.pass_(HOLD)
    assert source.stream.events == 1


def test_a_stream_that_is_gone_is_not_passed_over_to_be_read(loop: Loop) -> None:
    """Its descriptor's number may be another stream's: what it left is given out, and nothing is read for it."""
    gone = loop.source()
    gone.prints(b"\n" * 5000)
    loop.turn()
    assert gone.stream.unfinished
    loop.intake.remove(gone.stream)
    heir = loop.source()
    own, gone.stream.fd = gone.stream.fd, heir.stream.fd
    asked = iter([False, True])
    loop.sinks.behind = lambda: next(asked, False)
    loop.turn()
    while gone.stream.unfinished:
        gone.stream.give_out(lambda: False, None)
    read = gone.stream.bytes_read
    heir.prints(b"of the heir\n")
    loop.pass_(REST)
    loop.turn()
    assert gone.stream.bytes_read == read
    assert heir.lines() == ["of the heir"]
    gone.stream.fd = own
