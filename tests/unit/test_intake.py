"""intake.py: when output is read, and when not. The clock is the test's, the pipes are real."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from modelsupervisor.log.render import MOST_LINES
from modelsupervisor.runtime.intake import HOLD, PLENTY, REST, Intake
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


# Coming and going ----------------------------------------------------------------------------------------------------


def test_a_stream_that_is_removed(loop: Loop) -> None:
    """It is not read any more, and what was due for it is not; removing it again is nothing."""
    stays, goes = loop.source(), loop.source()
    goes.prints(b"\n" * 5000 + TRACEBACK)
    loop.turn()
    assert goes.stream.unfinished and goes.stream.holding
    loop.intake.remove(goes.stream)
    loop.intake.remove(goes.stream)
    made = goes.stream.events
    goes.prints(b"x\n")
    stays.prints(b"y\n")
    assert loop.intake.deadline() is None
    loop.pass_(10 * HOLD)
    loop.turn()
    assert goes.stream.events == made and goes.stream.pending() == 2
    assert stays.lines() == ["y"]


def test_after_the_end(loop: Loop) -> None:
    """Nothing wakes the loop any more; to end again, or while it rests, is nothing."""
    source = loop.source()
    source.prints(b"1\n")
    loop.turn()
    source.prints(b"2\n")
    loop.intake.close()
    loop.intake.close()
    assert not loop.turn()
    awake = Loop()
    awake.intake.close()
    assert not awake.turn() and not awake.reactor._watches
    awake.close()
