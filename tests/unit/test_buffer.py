"""buffer.py: what waits for a sink, and what became of each event."""

from __future__ import annotations

from modelsupervisor.log.buffer import MOST_PAYLOADS, Dropped, SinkBuffer, Tally

OUT = "digits/0 stdout"


def offered(buffer: SinkBuffer, most: int = 1 << 30) -> bytes:
    """The bytes that would be written next."""
    return b"".join(buffer.next_payloads(most))


def test_an_event_is_logged_with_its_last_byte() -> None:
    """Until then it is buffered, for its own stream; a write may end anywhere."""
    buffer = SinkBuffer(1000, 100)
    buffer.put(OUT, 2, b"one\ntwo\n")
    buffer.put(None, 1, b"event\n")
    assert (buffer.size, buffer.begun, offered(buffer)) == (14, 0, b"one\ntwo\nevent\n")
    buffer.took(5)
    assert (buffer.size, buffer.begun, offered(buffer)) == (9, 3, b"wo\nevent\n")
    assert buffer.tallies == {OUT: Tally(buffered=2), None: Tally(buffered=1)}
    buffer.took(5)
    assert (buffer.size, buffer.begun, offered(buffer)) == (4, 4, b"ent\n")
    assert buffer.tallies == {OUT: Tally(logged=2), None: Tally(buffered=1)}
    buffer.took(4)
    assert (buffer.size, buffer.begun, offered(buffer)) == (0, 0, b"")
    assert buffer.tallies == {OUT: Tally(logged=2), None: Tally(logged=1)}


def test_a_write_that_ends_with_a_payload() -> None:
    """The sink stands between two lines then."""
    buffer = SinkBuffer(1000, 100)
    buffer.put(OUT, 1, b"one\n")
    buffer.put(OUT, 1, b"two\n")
    buffer.took(4)
    assert (buffer.begun, offered(buffer)) == (0, b"two\n")


def test_a_write_has_a_bound() -> None:
    """Of bytes, also in the middle of a payload that is begun, and of payloads, of which a writev takes so many."""
    buffer = SinkBuffer(100_000, 100)
    for _ in range(MOST_PAYLOADS + 5):
        buffer.put(OUT, 1, b"0123456789")
    assert offered(buffer, 25) == b"012345678901234567890123456789"[:25]
    buffer.took(3)
    assert offered(buffer, 5) == b"34567"
    assert offered(buffer, 9) == b"345678901"
    assert len(buffer.next_payloads(1 << 30)) == MOST_PAYLOADS


def test_room_for_output_and_for_events() -> None:
    """Output may fill the limit, a life-cycle event the reserve beyond it."""
    buffer = SinkBuffer(1000, 100)
    assert buffer.has_room(OUT, 1000)
    buffer.put(OUT, 1, b"x" * 900)
    assert buffer.has_room(OUT, 100) and not buffer.has_room(OUT, 101)
    assert buffer.has_room(None, 200) and not buffer.has_room(None, 201)
    buffer.put(None, 1, b"x" * 200)
    assert not buffer.has_room(None, 1) and not buffer.has_room(OUT, 1)
    buffer.took(900)
    assert buffer.has_room(None, 900) and not buffer.has_room(None, 901)


def test_a_block_larger_than_the_limit() -> None:
    """It is taken where half is free, else it never would be; and it does not take the reserve of the events behind it."""
    buffer = SinkBuffer(1000, 100)
    buffer.put(OUT, 1, b"x" * 500)
    assert buffer.has_room(OUT, 5000)
    buffer.put(OUT, 1, b"x" * 5000)
    assert not buffer.has_room(OUT, 1)
    assert buffer.has_room(None, 100) and not buffer.has_room(None, 101)
    buffer.put(None, 1, b"x" * 60)
    assert buffer.has_room(None, 40) and not buffer.has_room(None, 41)
    buffer.took(5559)
    assert buffer.has_room(None, 40)
    buffer.took(1)
    assert buffer.has_room(None, 1100) and not buffer.has_room(None, 1101)
    buffer.put(OUT, 1, b"x" * 5000)
    assert buffer.has_room(None, 100) and not buffer.has_room(None, 101)


def test_one_byte_over_half_is_not_half_free() -> None:
    """What is larger than the rest of the limit is refused from there on."""
    buffer = SinkBuffer(1000, 100)
    buffer.put(OUT, 1, b"x" * 501)
    assert not buffer.has_room(OUT, 500)
    assert buffer.has_room(OUT, 499)


def test_stalled_until_half_is_free() -> None:
    """Output has no room meanwhile, however small; events have."""
    buffer = SinkBuffer(1000, 100)
    buffer.put(OUT, 1, b"x" * 1000)
    buffer.stalled = True
    buffer.took(499)
    assert buffer.stalled and not buffer.has_room(OUT, 1) and buffer.has_room(None, 1)
    buffer.took(1)
    assert not buffer.stalled and buffer.has_room(OUT, 1)


def test_the_dropped_are_told_once() -> None:
    """In all and by stream; a life-cycle event is of no stream."""
    buffer = SinkBuffer(1000, 100)
    buffer.drop(OUT, 3)
    buffer.drop(None, 1)
    buffer.drop(OUT, 2)
    buffer.drop("digits/1 stderr", 1)
    assert buffer.untold == 7
    assert buffer.take_dropped() == Dropped(7, {OUT: 5, "digits/1 stderr": 1})
    assert buffer.untold == 0
    assert buffer.take_dropped() == Dropped(0, {})
    buffer.drop(OUT, 1)
    assert buffer.take_dropped() == Dropped(1, {OUT: 1})
    assert buffer.tallies[OUT] == Tally(dropped=6)
    assert buffer.tallies[None] == Tally(dropped=1)


def test_nobody_will_take_it() -> None:
    """What waits is dropped and counted, what was taken of it in part too; the buffer is empty and goes on counting."""
    buffer = SinkBuffer(1000, 100)
    buffer.put(OUT, 2, b"one\ntwo\n")
    buffer.put(None, 1, b"event\n")
    buffer.took(3)
    buffer.abandon()
    assert (buffer.size, buffer.begun, offered(buffer)) == (0, 0, b"")
    assert buffer.tallies == {OUT: Tally(dropped=2), None: Tally(dropped=1)}
    assert buffer.take_dropped() == Dropped(3, {OUT: 2})
    assert buffer.has_room(None, 1100) and not buffer.has_room(None, 1101)
    buffer.put(OUT, 1, b"x" * 5000)
    assert buffer.has_room(None, 100) and not buffer.has_room(None, 101)
