"""The shared record: what a worker writes is what is read, and garbage is read without harm."""

from __future__ import annotations

import mmap
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworker.scoreboard import RECORD_SIZE, Reading, Record, read_record


@pytest.fixture
def memory() -> bytearray:
    return bytearray(RECORD_SIZE)


def test_a_fresh_generation_is_idle(memory: bytearray) -> None:
    """Nothing of the generation before shows."""
    record = Record(memory)
    record.begin(["old"], 5.0)
    record.end(7)
    record.reset(3)
    assert read_record(memory) == Reading(3, 0, 0.0, 0, ())


def test_a_batch_in_hand_shows_its_ids_and_its_start(memory: bytearray) -> None:
    """From begin to end; then the answers are counted."""
    record = Record(memory)
    record.reset(2)
    record.begin(["a", "é"], 12.5)
    assert read_record(memory) == Reading(2, 0, 12.5, 2, ("a", "é"))
    record.end(2)
    assert read_record(memory) == Reading(2, 2, 0.0, 0, ())
    record.begin(["b"], 13.0)
    assert read_record(memory) == Reading(2, 2, 13.0, 1, ("b",))
    record.end(1)
    assert read_record(memory).requests == 3


def test_at_most_64_ids_of_63_bytes(memory: bytearray) -> None:
    """The count says how many there are; a long id is cut, and neither reaches a neighbour."""
    memory.extend(b"\xaa" * 8)
    record = Record(memory)
    record.reset(1)
    record.begin(["x" * 200] * 70, 1.0)
    reading = read_record(memory)
    assert reading.in_hand == 70
    assert reading.ids == ("x" * 63,) * 64
    assert memory[-8:] == b"\xaa" * 8


def test_the_layout(memory: bytearray) -> None:
    """The supervisor of another version reads the same places."""
    record = Record(memory)
    record.reset(9)
    record.begin(["id"], 2.0)
    record.end(4)
    record.begin(["id"], 3.0)
    assert struct.unpack_from("=QQQdI", memory) == (6, 9, 4, 3.0, 1)
    assert memory[64:67] == b"\x02id"


def test_a_record_in_a_shared_map() -> None:
    """At an offset, as the supervisor reads the records of all workers."""
    with mmap.mmap(-1, 2 * RECORD_SIZE) as region:
        view = memoryview(region)
        record = Record(view[RECORD_SIZE:])
        record.reset(5)
        assert read_record(region, RECORD_SIZE).generation == 5
        assert read_record(region).generation == 0
        del record
        view.release()


def test_a_worker_that_died_while_writing_is_still_read(memory: bytearray) -> None:
    """An odd sequence for ever: the last reading is as good as any."""
    record = Record(memory)
    record.reset(1)
    record.begin(["a"], 4.0)
    struct.pack_into("=Q", memory, 0, 7)
    assert read_record(memory) == Reading(1, 0, 4.0, 1, ("a",))


def test_too_little_memory_is_an_empty_reading() -> None:
    """A file cut short under the reader."""
    assert read_record(b"") == Reading(0, 0, 0.0, 0, ())
    assert read_record(bytes(RECORD_SIZE), RECORD_SIZE) == Reading(0, 0, 0.0, 0, ())


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(min_size=64, max_size=64), st.binary(min_size=0, max_size=300))
def test_garbage_is_clamped(header: bytes, cells: bytes) -> None:
    """Any bytes give a reading whose numbers can be used: no NaN, no negative time, bounded ids."""
    raw = bytearray(RECORD_SIZE)
    raw[: len(header)] = header
    raw[64 : 64 + len(cells)] = cells
    reading = read_record(raw)
    assert 0.0 <= reading.busy_since < float("inf")
    assert 0 <= reading.in_hand <= 1024
    assert len(reading.ids) <= 64
    assert all(len(each) <= 63 for each in reading.ids)
    "".join(reading.ids).encode()


@pytest.mark.parametrize("since", [float("nan"), float("inf"), -1.0])
def test_a_time_that_is_none_is_idle(memory: bytearray, since: float) -> None:
    """What cannot be a start does not make a worker hung."""
    struct.pack_into("=d", memory, 24, since)
    assert read_record(memory).busy_since == 0.0
