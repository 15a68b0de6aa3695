"""The newest events of every worker, kept in memory for `logs`.

One ring for each worker, for each model's templates and for the supervisor itself, made when its first event comes. A ring holds
whole blocks, the very bytes that went to the sinks, so that keeping costs a reference; the oldest blocks go when it is over its
size. What all rings may hold together is bounded too: a thousand talkative workers get smaller ones.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice

from modelsupervisor.log.render import Block, RingKey

RING = 1024 * 1024  # bytes (DESIGN §6)
ALL_RINGS = 64 * 1024 * 1024
SMALLEST_RING = 64 * 1024

_SEQ = re.compile(rb'"seq":(\d+)')


def ring_size(workers: int) -> int:
    """The bytes of one ring among so many workers."""
    return max(SMALLEST_RING, min(RING, ALL_RINGS // max(1, workers)))


class Ring:
    """The newest `size` bytes of events, and always the newest block."""

    def __init__(self, size: int) -> None:
        self._limit = size
        self._blocks: deque[Block] = deque()
        self._size = 0

    def add(self, block: Block) -> None:
        """Keep a block."""
        self._blocks.append(block)
        self._size += len(block.json)
        while self._size > self._limit and len(self._blocks) > 1:
            self._size -= len(self._blocks.popleft().json)

    def newest(self, count: int) -> list[bytes]:
        """At most so many events, oldest first, as JSON lines with their newlines."""
        chosen: list[Block] = []
        found = 0
        for block in reversed(self._blocks):
            chosen.append(block)
            found += block.events
            if found >= count:
                break
        lines = [line for block in reversed(chosen) for line in block.json.splitlines(True)]
        return lines[max(0, found - count) :]


class Rings:
    """All rings by key."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._all: dict[RingKey, Ring] = {}

    def add(self, block: Block) -> None:
        """Keep a block in the ring of its worker, model or the supervisor."""
        ring = self._all.get(block.about)
        if ring is None:
            ring = self._all[block.about] = Ring(self._size)
        ring.add(block)

    def newest(self, count: int, model: str | None, worker: int | None) -> Iterator[bytes]:
        """The newest `count` events of a worker, of a model with its workers and templates, or of everything; in order."""
        if count <= 0:
            return iter(())
        chosen = [
            ring.newest(count)
            for key, ring in self._all.items()
            if (model is None or key[0] == model) and (worker is None or key[1] == worker)
        ]
        total = sum(map(len, chosen))
        merged = heapq.merge(*chosen, key=_seq)
        return islice(merged, max(0, total - count), None)


def _seq(line: bytes) -> int:
    found = _SEQ.search(line)
    return int(found.group(1)) if found else 0
