"""A sink without a kernel: a port that takes what the test lets it take, and what came of it."""

from __future__ import annotations

import json
from typing import Any

from modelsupervisor.log.outlet import PortClosed
from modelsupervisor.log.render import Block, RingKey

EVERYTHING = 1 << 40


class ScriptedPort:
    """Takes `room` bytes in all, at most `a_write` of them at once; with `gone` set, nothing ever again."""

    def __init__(self, room: int = EVERYTHING, a_write: int = EVERYTHING) -> None:
        self.room = room
        self.a_write = a_write
        self.gone = ""
        self.taken = bytearray()
        self.writes: list[int] = []  # what each write was offered
        self.fd = -1
        self.pollable = False

    def write(self, payloads: list[memoryview]) -> int:
        """Take the beginning of it."""
        if self.gone:
            raise PortClosed(self.gone)
        offered = b"".join(payloads)
        self.writes.append(len(offered))
        size = min(len(offered), self.room, self.a_write)
        self.taken += offered[:size]
        self.room -= size
        return size

    def events(self) -> list[dict[str, Any]]:
        """The whole events among what was taken."""
        whole, _, _ = bytes(self.taken).rpartition(b"\n")
        return [json.loads(line) for line in whole.split(b"\n") if line]


def block(
    source: str | None, events: int = 1, size: int = 10, about: RingKey = (None, None)
) -> Block:
    """So many events of `size` bytes in all; no JSON, for what only counts and keeps bytes."""
    line = b"x" * (size // events - 1) + b"\n"
    rest = size - len(line) * events
    return Block(source, events, b"x" * rest + line * events, about)
