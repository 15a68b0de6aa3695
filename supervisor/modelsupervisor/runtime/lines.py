"""From the bytes of a stream to its lines, keeping every byte. Pure.

A line ends with a newline. One that grows past `max_line` is cut into consecutive parts, each but the last marked `more`; what is
left without a newline when its writer dies is given out as `partial`. Bytes that are not UTF-8 are not replaced but travel as
base64, so that the stream can always be put together again.
"""

from __future__ import annotations

import base64
from typing import NamedTuple


class Line(NamedTuple):
    """One line or part of a line, without its newline. `part` counts from 1 and is 0 for a whole line."""

    content: bytes
    part: int = 0
    more: bool = False
    partial: bool = False

    def fields(self) -> dict[str, object]:
        """The fields of the line in a `worker.output` event."""
        fields: dict[str, object] = {}
        try:
            fields["line"] = self.content.decode()
        except UnicodeDecodeError:
            fields["line_b64"] = base64.b64encode(self.content).decode("ascii")
        if self.part:
            fields["part"] = self.part
            fields["more"] = self.more
        if self.partial:
            fields["partial"] = True
        return fields


class LineSplitter:
    """Holds at most one unfinished line of `max_line` bytes."""

    def __init__(self, max_line: int) -> None:
        self._max = max_line
        self._rest = b""
        self._part = 0

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that this chunk completes."""
        pieces = (self._rest + chunk).split(b"\n")
        self._rest = pieces.pop()
        lines: list[Line] = []
        for piece in pieces:
            if self._part or len(piece) > self._max:
                last = self._cut(piece, lines)
                lines.append(Line(last, part=self._part))
                self._part = 0
            else:
                lines.append(Line(piece))
        if len(self._rest) > self._max:
            self._rest = self._cut(self._rest, lines)
        return lines

    def _cut(self, piece: bytes, lines: list[Line]) -> bytes:
        """Give out full parts of a long line; what remains is its next part."""
        start = 0
        self._part = self._part or 1
        while len(piece) - start > self._max:
            lines.append(Line(piece[start : start + self._max], part=self._part, more=True))
            self._part += 1
            start += self._max
        return piece[start:]

    def flush(self) -> list[Line]:
        """What the dead writer left without a newline."""
        rest, part = self._rest, self._part
        self._rest, self._part = b"", 0
        return [Line(rest, part=part, partial=True)] if rest or part else []
