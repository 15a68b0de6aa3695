"""The log as a person reads it on a terminal: time, level, event, facts; tracebacks as blocks below.

It is made from the JSON of the events, in the supervisor as in the command `logs`. A worker's own line is shown as its line, with
its slot before it. While something is being waited for, one progress line stands below the log; each log line takes it away and
puts it back.
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

import msgspec

from modelsupervisor.log.render import Block
from modelsupervisor.log.structured import structlog

_CLEAR = "\r\x1b[2K"
_DIM, _RED, _YELLOW, _RESET = "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
_SHOWN_BEFORE = ("seq", "last_lines", "at")  # its last lines stand above a worker's end already


def _printable(line: str) -> str:
    """A line without the power over the terminal that it is shown on."""
    if line.isprintable():
        return line
    return "".join(
        each if each.isprintable() or each == "\t" else ascii(each)[1:-1] for each in line
    )


def decode_event(line: bytes) -> dict[str, Any]:
    """An event from its JSON line."""
    try:
        event = msgspec.json.decode(line)
    except msgspec.DecodeError:  # the escape of a lone surrogate
        event = json.loads(line)
    assert isinstance(event, dict)
    return event


class Console:
    """Turns events into text. `colors` only where a terminal shows it; `dates` where events may be of another day."""

    def __init__(self, *, colors: bool, dates: bool = False) -> None:
        self.colors = colors
        self._dates = dates
        self._progress = ""
        self._plain = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=22, sort_keys=False)

    def encode(self, block: Block) -> bytes:
        """The text of a block's events, each on a line of its own or more; the progress line is taken away and put back."""
        text = "".join(f"{self.line(line)}\n" for line in block.json.splitlines())
        shown = f"{_CLEAR}{text}{self._redraw()}" if self._progress else text
        return shown.encode(errors="backslashreplace")

    def line(self, line: bytes) -> str:
        """The text of one event, given as JSON, without a newline at its end."""
        event = decode_event(line)
        for key in _SHOWN_BEFORE:
            event.pop(key, None)
        moment = str(event.get("timestamp", ""))
        event["timestamp"] = f"{moment[:10]} {moment[11:23]}Z" if self._dates else moment[11:23]
        if event["event"] in ("worker.output", "template.output"):
            return self._output(event)
        return self._facts(event)

    def _paint(self, color: str, text: str) -> str:
        return f"{color}{text}{_RESET}" if self.colors else text

    @staticmethod
    def _slot(event: MutableMapping[str, Any]) -> str:
        worker = event.get("worker")
        return str(event.get("model")) + (f"/{worker}" if worker is not None else " template")

    def _output(self, event: MutableMapping[str, Any]) -> str:
        line = str(event.get("line", event.get("line_b64", "")))
        color = _YELLOW if event.get("stream") == "stderr" else _DIM
        color = _RED if event.get("level") == "error" else color
        slot = self._paint(color, f"{self._slot(event)} |")
        before = f"{self._paint(_DIM, event['timestamp'])} {slot}"
        if event.get("kind") == "traceback":
            head, *rest = line.split("\n")
            below = [self._paint(_RED, "    | ") + _printable(each) for each in rest]
            return "\n".join([f"{before} {_printable(head)}", *below])
        return f"{before} {_printable(line)}"

    def _facts(self, event: MutableMapping[str, Any]) -> str:
        traceback = event.pop("traceback", None)
        # Names and values may be a worker's words; structlog shows a text without blanks as it is.
        shown = {
            _printable(key): _printable(value) if isinstance(value, str) else value
            for key, value in event.items()
            if value is not None and value != []
        }
        text = str(self._plain(None, "", shown))
        return text if not traceback else f"{text}\n{self._block(str(traceback))}"

    def _block(self, block: str) -> str:
        lines = block.rstrip("\n").split("\n")
        return "\n".join(self._paint(_RED, "    | ") + _printable(line) for line in lines)

    def progress(self, text: str) -> bytes:
        """The bytes that redraw the progress line; empty where nothing changes."""
        if text == self._progress:
            return b""
        self._progress = text
        return (self._redraw() or _CLEAR).encode(errors="backslashreplace")

    def _redraw(self) -> str:
        return f"{_CLEAR}{_DIM}{self._progress}{_RESET}" if self._progress else ""
