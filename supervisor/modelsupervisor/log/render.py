"""Lines of output as JSON events, hundreds at once.

A line becomes one `worker.output` or `template.output` event. All lines of one reading have the same time and identity, and mostly
the same level, so that everything but `seq` and the line itself is one constant, put together once; the lines are decoded in one
piece and encoded by one C call each. That costs 0.3 µs a line of 100 bytes, where a dictionary through structlog costs 15 µs
[measured]; a test holds both to one schema. Bytes that are not UTF-8 are not replaced but travel as base64 in `line_b64`, so that
the stream can always be put together again.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from modelsupervisor.log.lines import Part
from modelsupervisor.log.recognise import Run

_encode = msgspec.json.encode
MOST_LINES = 512  # of a block: what a sink takes or leaves as one


RingKey = tuple[str | None, int | None]
"""Whose events: (model, worker) a worker's, (model, None) its templates', (None, None) the supervisor's own."""


class Block(NamedTuple):
    """So many consecutive events as whole JSON lines; `source` names the stream they came from, None for a life-cycle event."""

    source: str | None
    events: int
    json: bytes
    about: RingKey = (None, None)


def json_text(value: Any) -> bytes:
    """A value as JSON; a lone surrogate (from a name that is not UTF-8) is written as its escape, which msgspec refuses to."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, default=str, separators=(",", ":")).encode()


class OutputForm:
    """The constant part of the events of one reading of one stream.

    `event` is worker.output or template.output; `identity` holds model, worker, pid and generation, what is None is left out;
    `in_hand` the ids of the requests in hand when the lines were read.
    """

    def __init__(
        self,
        event: str,
        stream: str,
        timestamp: str,
        identity: Mapping[str, Any],
        in_hand: Sequence[str] = (),
    ) -> None:
        self._begin = f'{{"timestamp":"{timestamp}","level":"'.encode()
        self._event = f'","event":"{event}","seq":'.encode()
        known: dict[str, Any] = {
            name: value for name, value in identity.items() if value is not None
        }
        known["stream"] = stream
        if in_hand:
            known["in_hand_at_read"] = list(in_hand)
        self._middle = b"," + json_text(known)[1:-1] + b","  # without its braces

    def _pattern(self, level: str, rest: bytes) -> bytes:
        middle = self._middle.replace(b"%", b"%%")
        return self._begin + level.encode() + self._event + b"%d" + middle + rest + b"}\n"

    def _one(self, level: str, seq: int, rest: bytes) -> bytes:
        number = b"%d" % seq
        parts = (self._begin, level.encode(), self._event, number, self._middle, rest, b"}\n")
        return b"".join(parts)

    def lines(self, level: str, lines: Sequence[bytes], seq: int) -> bytes:
        """Whole plain lines, the first of them as event number `seq`."""
        try:
            texts = b"\n".join(lines).decode().split("\n")
        except UnicodeDecodeError:
            pattern = self._pattern(level, b"%b")
            encoded = [_line(line) for line in lines]
        else:
            pattern = self._pattern(level, b'"line":%b')
            encoded = list(map(_encode, texts))
        count = len(encoded)
        values: list[Any] = [None] * (2 * count)
        values[::2] = range(seq, seq + count)
        values[1::2] = encoded
        return (pattern * count) % tuple(values)

    def run(self, run: Run, seq: int) -> bytes:
        """One event of a kind of its own: a traceback, a metric, a JSON line."""
        content = b"\n".join(run.lines)
        rest = _line(content) + b',"kind":"' + run.kind.encode() + b'"'
        if run.extra:
            rest += b"," + json_text(run.extra)[1:-1]
        elif run.kind == "json":
            # The object's own bytes, which were found to be JSON: numbers keep their digits, keys their order. A carriage return
            # or tab can only be white space there, and readers exist that would end the line at the one or escape the other.
            own = content.strip().replace(b"\r", b" ").replace(b"\t", b" ")
            rest += b',"fields":' + own
        return self._one(run.level, seq, rest)

    def part(self, level: str, part: Part, seq: int) -> bytes:
        """A part of a line."""
        rest = _line(part.content) + b"," + _encode(part.marks())[1:-1]
        return self._one(level, seq, rest)


def _line(content: bytes) -> bytes:
    try:
        return b'"line":' + _encode(content.decode())
    except UnicodeDecodeError:
        return b'"line_b64":"' + base64.b64encode(content) + b'"'
