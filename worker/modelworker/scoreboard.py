"""The record that a worker keeps in shared memory: what it has in hand, and since when.

The supervisor reads it when it wants to know, without asking: a worker that is busy in C, or dead,
answers nothing. So the writer must be cheap (a handful of stores a batch, no system call) and the
reader must survive anything, since a handler can write all over it: lengths are clamped, a time
that is no time is idle, bytes that are no text are replaced.

The sequence is odd while the worker writes. A reader that saw it odd, or changed, tries again; a
worker that died in the middle of a write leaves it odd for ever, and then the last reading is as
good as any.

    0 u64 sequence · 8 u64 generation · 16 u64 requests answered by this generation
    24 f64 busy since (CLOCK_MONOTONIC seconds; 0.0 is idle) · 32 u32 ids in hand (may exceed 64)
    64 … 64 cells of 64 bytes: u8 length (at most 63), then the bytes of an id
    (native byte order)
"""

from __future__ import annotations

import math
import mmap
import struct
from typing import NamedTuple, Sequence, Tuple, Union

RECORD_SIZE = max(8192, mmap.ALLOCATIONGRANULARITY)
"""Bytes of a record: whole pages, so that each worker can map its own and nothing else."""

CELLS = 64
CELL_SIZE = 64
MOST_IN_HAND = 1024  # a frame holds no more requests: see wire.Limits
_CELLS_AT = 64
_USED = _CELLS_AT + CELLS * CELL_SIZE
_HEADER = struct.Struct("=QQQdI")
_CELL = struct.Struct("64p")  # length and bytes, cut to 63 and padded with zeros, in one call
_SINCE_AT = 24
_BATCH = struct.Struct("=dI28x64p")  # from "busy since" to the first id, often the only one
_READ_TRIES = 4

Buffer = Union[bytearray, memoryview, mmap.mmap]


class Record:
    """The worker's side, over a writable buffer of at least RECORD_SIZE bytes."""

    __slots__ = ("_count", "_memory", "_requests", "_sequence", "_since", "_words")

    def __init__(self, buffer: Buffer) -> None:
        self._memory = memoryview(buffer)[:_USED].cast("B")
        self._words = self._memory.cast("Q")  # 0 sequence, 1 generation, 2 requests
        self._since = self._memory[_SINCE_AT:32].cast("d")
        self._count = self._memory[32:36].cast("I")
        self._sequence = 0
        self._requests = 0

    def reset(self, generation: int) -> None:
        """Begin a generation: idle, nothing answered, no ids of the one before."""
        self._memory[:] = bytes(_USED)
        self._words[1] = generation
        self._sequence = self._requests = 0

    def begin(self, request_ids: Sequence[str], now: float) -> None:
        """Note the batch that the handler is about to get; `now` is CLOCK_MONOTONIC seconds."""
        sequence = self._sequence = self._sequence + 2
        memory = self._memory
        self._words[0] = sequence - 1
        first = request_ids[0].encode("utf-8", "surrogateescape") if request_ids else b""
        _BATCH.pack_into(memory, _SINCE_AT, now, len(request_ids), first)
        if len(request_ids) > 1:
            at = _CELLS_AT + CELL_SIZE
            for request_id in request_ids[1:CELLS]:
                _CELL.pack_into(memory, at, request_id.encode("utf-8", "surrogateescape"))
                at += CELL_SIZE
        self._words[0] = sequence

    def end(self, answered: int) -> int:
        """Note that the replies are handed over: idle, and `answered` requests more. Returns how many those are in all."""
        sequence = self._sequence = self._sequence + 2
        requests = self._requests = self._requests + answered
        words = self._words
        words[0] = sequence - 1
        self._since[0] = 0.0
        self._count[0] = 0
        words[2] = requests
        words[0] = sequence
        return requests


class Reading(NamedTuple):
    """What a record said: at most 64 `ids` of at most 63 bytes; `in_hand` counts all."""

    generation: int
    requests: int
    busy_since: float
    in_hand: int
    ids: Tuple[str, ...]


def read_record(buffer: Union[Buffer, bytes], offset: int = 0) -> Reading:
    """Read the record at `offset`; garbage gives a clamped reading, never an exception."""
    reading = Reading(0, 0, 0.0, 0, ())
    for _ in range(_READ_TRIES):
        raw = bytes(memoryview(buffer)[offset : offset + _USED])
        if len(raw) < _USED:
            return reading
        reading = _reading(raw)
        before = raw[:8]
        after = bytes(memoryview(buffer)[offset : offset + 8])
        if before == after and not _HEADER.unpack_from(raw)[0] % 2:
            break
    return reading


def _reading(raw: bytes) -> Reading:
    _, generation, requests, busy_since, count = _HEADER.unpack_from(raw)
    if not (math.isfinite(busy_since) and busy_since > 0.0):
        busy_since = 0.0
    ids = tuple(
        raw[at + 1 : at + 1 + min(raw[at], CELL_SIZE - 1)].decode("utf-8", "replace")
        for at in range(_CELLS_AT, _CELLS_AT + min(count, CELLS) * CELL_SIZE, CELL_SIZE)
    )
    return Reading(generation, requests, busy_since, min(count, MOST_IN_HAND), ids)
