"""The decisions of the data path: turns, clocks, and what a connection is at."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworker.session import Connection, Session
from modelworker.wire import PredictCommand, Request, WireError, encode_predict

TIMEOUT = 10.0


def frame(name: str = "r") -> bytes:
    return encode_predict([Request(name, [], [])])


def asked(connection: Connection) -> str:
    """The id of the command that a connection has waiting."""
    assert isinstance(connection.command, PredictCommand)
    return connection.command.requests[0].request_id


@pytest.fixture
def session() -> Session[Connection]:
    return Session(TIMEOUT)


def test_turns_are_in_the_order_in_which_frames_were_complete(session: Session[Connection]) -> None:
    """Not in that of their first bytes."""
    slow, quick = Connection(), Connection()
    session.received(slow, frame()[:3], 1.0, 0.0)
    session.received(quick, frame(), 2.0, 0.0)
    session.received(slow, frame()[3:], 3.0, 0.0)
    assert list(session.queue) == [quick, slow]


def test_a_flood_of_one_gets_one_turn_in_each_round(session: Session[Connection]) -> None:
    """Frames sent at once go behind everybody else's, one by one."""
    flood, other = Connection(), Connection()
    session.received(flood, frame("1") + frame("2") + frame("3"), 1.0, 0.0)
    session.received(other, frame("x"), 1.0, 0.0)
    order = []
    while session.queue:
        connection = session.queue.popleft()
        order.append(asked(connection))
        session.answered(connection, 2.0)
        if order == ["1"]:
            session.received(flood, frame("4"), 2.0, 0.0) if flood.command is None else None
    assert order == ["1", "x", "2", "3"]


def test_half_a_frame_expires_and_trickling_buys_no_time(session: Session[Connection]) -> None:
    """The clock starts with its first byte."""
    connection = Connection()
    session.received(connection, frame()[:2], 100.0, 0.0)
    for step in range(1, 10):
        session.received(connection, frame()[1 + step : 2 + step], 100.0 + step, 0.0)
        assert session.expired(100.0 + step) == []
    assert session.patience(109.0) == pytest.approx(1.0)
    assert session.expired(110.0) == [connection]


def test_a_complete_frame_has_no_clock(session: Session[Connection]) -> None:
    """However long its turn takes to come; half a frame behind it gets one only when it is looked at."""
    connection = Connection()
    session.received(connection, frame()[:2], 1.0, 0.0)
    session.received(connection, frame()[2:] + frame()[:2], 2.0, 0.0)
    assert not session.timed
    assert session.patience(2.0) == 0.0
    session.queue.popleft()
    assert session.patience(2.0) is None
    session.answered(connection, 50.0)
    assert session.expired(59.0) == []
    assert session.expired(60.0) == [connection]


def test_the_time_of_a_batch_is_given_back_to_bytes_that_waited_meanwhile(
    session: Session[Connection],
) -> None:
    """A peer is not closed for what another's handler took; a silent one is, all the same."""
    prompt, silent = Connection(), Connection()
    for connection in (prompt, silent):
        session.received(connection, frame()[:2], 1.0, 0.0)
    session.received(prompt, frame()[2:3], 60.0, 58.0)
    assert session.expired(60.0) == [silent]


def test_a_stalled_reader_expires_unless_it_takes_something(session: Session[Connection]) -> None:
    """Its clock starts anew with each byte."""
    connection = Connection()
    session.received(connection, frame(), 1.0, 0.0)
    session.queue.popleft()
    session.stalled(connection, memoryview(b"abc"), 2.0)
    session.stalled(connection, memoryview(b"bc"), 11.0)
    assert session.expired(20.0) == []
    assert session.expired(21.0) == [connection]
    session.answered(connection, 21.0)
    assert connection.output is None
    assert not session.timed


def test_nonsense_behind_a_frame_is_found_after_its_answer(session: Session[Connection]) -> None:
    """The good frame is answered first."""
    connection = Connection()
    session.received(connection, frame() + b"X", 1.0, 0.0)
    assert session.queue.popleft() is connection
    with pytest.raises(WireError):
        session.answered(connection, 2.0)


def test_a_connection_that_is_gone_has_neither_turn_nor_clock(session: Session[Connection]) -> None:
    """Nothing of it is left."""
    waiting, half = Connection(), Connection()
    session.received(waiting, frame(), 1.0, 0.0)
    session.received(half, frame()[:3], 1.0, 0.0)
    session.gone(waiting)
    session.gone(half)
    assert not session.queue
    assert not session.timed


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30)), max_size=60))
def test_every_frame_is_run_once_in_its_connections_order(steps: list[list[int]]) -> None:
    """Whatever is sent in whatever pieces; between two turns of one, all others that wait have theirs."""
    session: Session[Connection] = Session(TIMEOUT)
    peers = [Connection() for _ in range(4)]
    streams = [b"".join(frame(str(number)) for number in range(5)) for _ in peers]
    sent = [0] * 4
    ran: list[list[str]] = [[] for _ in peers]

    def turn() -> None:
        waiting = list(session.queue)
        connection = session.queue.popleft()
        ran[peers.index(connection)].append(asked(connection))
        session.answered(connection, 0.0)
        assert list(session.queue)[: len(waiting) - 1] == waiting[1:]

    for which, size in [*steps, *((which, 200) for which in range(4))]:
        session.received(peers[which], streams[which][sent[which] : sent[which] + size], 0.0, 0.0)
        sent[which] += size
        while session.queue:
            turn()
    assert ran == [[str(number) for number in range(5)]] * 4
