"""ring.py: the newest events of every worker, within bounds, and in order."""

from __future__ import annotations

import json

import pytest

from modelsupervisor.log.render import Block, RingKey
from modelsupervisor.log.ring import ALL_RINGS, RING, SMALLEST_RING, Ring, Rings, ring_size


def made(first: int, count: int = 1, about: RingKey = (None, None), **facts: object) -> Block:
    """A block of events from number `first` on."""
    lines = [
        json.dumps({"event": "a.b", "seq": seq, **facts}, separators=(",", ":")).encode() + b"\n"
        for seq in range(first, first + count)
    ]
    return Block("s", count, b"".join(lines), about)


def seqs(lines: list[bytes]) -> list[int]:
    """Their numbers; each is one whole line."""
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    return [json.loads(line)["seq"] for line in lines]


@pytest.mark.parametrize(
    ("workers", "size"),
    [(0, RING), (1, RING), (64, RING), (128, RING // 2), (100_000, SMALLEST_RING)],
)
def test_the_size_of_a_ring(workers: int, size: int) -> None:
    """A megabyte; less where there are many workers, but never too little for a traceback."""
    assert ring_size(workers) == size
    assert size * workers <= ALL_RINGS or size == SMALLEST_RING


def test_the_newest_over_several_blocks() -> None:
    """As many as asked for, oldest first; all that there are where more is asked for."""
    ring = Ring(10_000)
    for first, count in ((1, 3), (4, 1), (5, 4)):
        ring.add(made(first, count))
    assert seqs(ring.newest(1)) == [8]
    assert seqs(ring.newest(4)) == [5, 6, 7, 8]
    assert seqs(ring.newest(6)) == [3, 4, 5, 6, 7, 8]
    assert seqs(ring.newest(100)) == list(range(1, 9))
    assert ring.newest(0) == []
    assert Ring(10).newest(5) == []


def test_a_ring_is_bounded() -> None:
    """The oldest blocks go as soon as it is over its size; none goes that has room."""
    one = made(1000)
    ring = Ring(3 * len(one.json))
    for seq in range(1000, 1010):
        ring.add(made(seq))
    assert seqs(ring.newest(100)) == [1007, 1008, 1009]
    assert sum(len(each.json) for each in ring._blocks) == ring._size == 3 * len(one.json)


def test_the_newest_block_is_always_kept() -> None:
    """Also where it is larger than the ring; it goes with the next."""
    ring = Ring(100)
    ring.add(made(1))
    ring.add(made(2, 50))
    assert seqs(ring.newest(100)) == list(range(2, 52))
    ring.add(made(52))
    assert seqs(ring.newest(100)) == [52]


def test_rings_are_made_when_needed() -> None:
    """One for each worker, for each model's templates, and for the supervisor."""
    rings = Rings(1000)
    assert rings._all == {}
    keys: list[RingKey] = [(None, None), ("a", 0), ("a", 1), ("a", None), ("b", 0), ("a", 0)]
    for seq, key in enumerate(keys, 1):
        rings.add(made(seq, about=key))
    assert set(rings._all) == set(keys)


def test_whose_events() -> None:
    """A worker's own, a model's with its workers and templates, or everything; in the order in which they were made."""
    rings = Rings(10_000)
    keys: list[RingKey] = [("a", 0), (None, None), ("b", 0), ("a", None), ("a", 1), ("a", 0)]
    for turn in range(2):
        for place, key in enumerate(keys):
            rings.add(made(1 + 2 * (place + turn * len(keys)), 2, about=key))
    assert seqs(list(rings.newest(100, "a", 0))) == [1, 2, 11, 12, 13, 14, 23, 24]
    assert seqs(list(rings.newest(100, "b", 0))) == [5, 6, 17, 18]
    assert seqs(list(rings.newest(7, "a", None))) == [14, 19, 20, 21, 22, 23, 24]
    assert seqs(list(rings.newest(100, None, None))) == list(range(1, 25))
    assert seqs(list(rings.newest(3, None, None))) == [22, 23, 24]
    assert list(rings.newest(100, "c", None)) == list(rings.newest(100, "a", 9)) == []
    assert list(rings.newest(0, None, None)) == list(rings.newest(-1, None, None)) == []


def test_a_fact_called_seq_is_not_the_number() -> None:
    """The envelope's comes before the facts, whatever a worker prints."""
    rings = Rings(10_000)
    rings.add(made(3, about=("a", 0), fields={"seq": 1}, line='"seq":1'))
    rings.add(made(2, about=("a", 1), fields={"seq": 9}))
    assert seqs(list(rings.newest(10, None, None))) == [2, 3]


def test_a_block_is_kept_without_a_copy() -> None:
    """The very bytes that went to the sinks."""
    ring = Ring(10_000)
    block = made(1, 100)
    ring.add(block)
    assert ring._blocks[0].json is block.json
