"""The log as a person reads it on a terminal: time, level, event, facts; tracebacks as blocks below.

A worker's own line is shown as its line, with its slot before it. While something is being waited for, one progress line stands
below the log; each log line takes it away and puts it back.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import structlog

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


class ConsoleLine:
    """A structlog renderer; the last processor of the chain."""

    def __init__(self, *, colors: bool) -> None:
        self.colors = colors
        self._progress = ""
        self._plain = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=22, sort_keys=False)

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        for key in _SHOWN_BEFORE:
            event.pop(key, None)
        event["timestamp"] = str(event.get("timestamp", ""))[11:23]
        if event["event"] in ("worker.output", "template.output"):
            text = self._output(event)
        else:
            text = self._facts(logger, name, event)
        return _CLEAR + text if self._progress else text

    def _paint(self, color: str, text: str) -> str:
        return f"{color}{text}{_RESET}" if self.colors else text

    @staticmethod
    def _slot(event: MutableMapping[str, Any]) -> str:
        worker = event.get("worker")
        return str(event.get("model")) + (f"/{worker}" if worker is not None else " template")

    def _output(self, event: MutableMapping[str, Any]) -> str:
        line = event.get("line", event.get("line_b64", ""))
        color = _YELLOW if event.get("stream") == "stderr" else _DIM
        slot = self._paint(color, f"{self._slot(event)} |")
        return f"{self._paint(_DIM, event['timestamp'])} {slot} {_printable(str(line))}"

    def _facts(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        traceback = event.pop("traceback", None)
        for key in [key for key, value in event.items() if value is None or value == []]:
            del event[key]
        text = str(self._plain(logger, name, event))
        return text if not traceback else f"{text}\n{self._block(str(traceback))}"

    def _block(self, block: str) -> str:
        lines = block.rstrip("\n").split("\n")
        return "\n".join(self._paint(_RED, "    | ") + _printable(line) for line in lines)

    def progress(self, text: str) -> str:
        """The bytes that redraw the progress line; empty where nothing changes."""
        if text == self._progress:
            return ""
        self._progress = text
        return self.redraw() or _CLEAR

    def redraw(self) -> str:
        """The progress line again, after a log line took its place."""
        return f"{_CLEAR}{_DIM}{self._progress}{_RESET}" if self._progress else ""
