"""From the bytes of a stream to its lines, keeping every byte. Pure.

A line ends with a newline. One that grows past `max_line` is cut into consecutive parts, each but the last marked `more`; what is
left without a newline when its writer dies is given out as `partial`.

This is the path that a flood takes, so whole lines come as plain lists of bytes, hundreds at a time, and only the odd ones, parts
and remainders, as objects with marks.
"""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """What is no whole line: a part of a long one (`part` counts from 1), or the remainder that a dead writer left (`partial`)."""

    content: bytes
    part: int = 0
    more: bool = False
    partial: bool = False

    def marks(self) -> dict[str, object]:
        """The fields that tell so in an event."""
        marks: dict[str, object] = {}
        if self.part:
            marks["part"] = self.part
            marks["more"] = self.more
        if self.partial:
            marks["partial"] = True
        return marks


Segment = list[bytes] | Part
"""Consecutive whole lines without their newlines, or one part."""


class LineSplitter:
    """Holds at most one unfinished line of `max_line` bytes."""

    def __init__(self, max_line: int) -> None:
        self._max = max_line
        self._rest: list[
            bytes
        ] = []  # the unfinished line: it may grow by many chunks, and is put together once
        self._held = 0
        self._part = 0

    @property
    def held(self) -> int:
        """Bytes of the unfinished line that are held."""
        return self._held

    def feed(self, chunk: bytes) -> list[Segment]:
        """What this chunk completes, in order."""
        self._rest.append(chunk)
        self._held += len(chunk)
        if b"\n" not in chunk and self._held <= self._max:
            return []
        whole = b"".join(self._rest)
        lines = whole.split(b"\n")
        rest = lines.pop()
        # No line can be too long in what is not too long: the usual case is one look.
        if not self._part and (len(whole) <= self._max or not self._too_long(lines, rest)):
            found: list[Segment] = [lines] if lines else []
        else:
            found = self._cut_all(lines)
            if len(rest) > self._max:
                rest = self._cut(rest, found)
        self._rest, self._held = [rest], len(rest)
        return found

    def _too_long(self, lines: list[bytes], rest: bytes) -> bool:
        return len(rest) > self._max or max(map(len, lines), default=0) > self._max

    def _cut_all(self, lines: list[bytes]) -> list[Segment]:
        found: list[Segment] = []
        run: list[bytes] = []
        for line in lines:
            if not self._part and len(line) <= self._max:
                run.append(line)
                continue
            if run:
                found.append(run)
                run = []
            last = self._cut(line, found)
            found.append(Part(last, part=self._part))
            self._part = 0
        if run:
            found.append(run)
        return found

    def _cut(self, line: bytes, found: list[Segment]) -> bytes:
        """Give out full parts of a long line; what remains is its next part."""
        start = 0
        self._part = self._part or 1
        while len(line) - start > self._max:
            found.append(Part(line[start : start + self._max], part=self._part, more=True))
            self._part += 1
            start += self._max
        return line[start:]

    def flush(self) -> list[Segment]:
        """What the dead writer left without a newline."""
        rest, part = b"".join(self._rest), self._part
        self._rest, self._held, self._part = [], 0, 0
        return [Part(rest, part=part, partial=True)] if rest or part else []
