"""console.py: an event as a person reads it."""

from __future__ import annotations

from typing import Any

from modelsupervisor.runtime.console import ConsoleLine


def shown(colors: bool = False, **event: Any) -> str:
    """One event, rendered."""
    event.setdefault("timestamp", "2026-01-02T03:04:05.678901Z")
    event.setdefault("level", "info")
    return ConsoleLine(colors=colors)(None, "info", dict(event, seq=1))


def test_time_level_name_and_facts() -> None:
    """The time of day to the millisecond; no seq, nothing that is None."""
    text = shown(event="worker.ready", model="echo", worker=0, start_s=0.5, missing=None)
    assert text.startswith("03:04:05.678 ")
    for words in ("info", "worker.ready", "model=echo", "worker=0", "start_s=0.5"):
        assert words in text
    assert "seq" not in text and "missing" not in text and "\x1b" not in text


def test_a_workers_own_line() -> None:
    """Its slot, then its words; a template's says so; what is no text is shown as it travels."""
    output = {"event": "worker.output", "model": "echo", "worker": 3, "stream": "stdout"}
    assert shown(**output, line="hello").endswith(" echo/3 | hello")
    assert shown(**output, line_b64="//4=").endswith(" echo/3 | //4=")
    said = shown(event="template.output", model="echo", stream="stderr", line="warned")
    assert said.endswith(" echo template | warned")


def test_stderr_is_of_another_colour() -> None:
    """Where there are colours at all."""
    output = {"event": "worker.output", "model": "echo", "worker": 0, "line": "x"}
    assert shown(True, stream="stderr", **output) != shown(True, stream="stdout", **output)
    assert "\x1b" in shown(True, stream="stdout", **output)


def test_a_line_has_no_power_over_the_terminal() -> None:
    """Escape sequences, carriage returns and bells of a model's output are shown and not obeyed."""
    output = {"event": "worker.output", "model": "echo", "worker": 0, "stream": "stdout"}
    text = shown(**output, line="\x1b[2J\r\x07\tok é")
    assert text.endswith("\\x1b[2J\\r\\x07\tok é")


def test_a_traceback_is_a_block() -> None:
    """One mark for each line, below the event."""
    text = shown(event="template.exited", traceback="Traceback:\n  line\nError: x\n")
    first, *block = text.split("\n")
    assert "traceback" not in first
    assert block == ["    | Traceback:", "    |   line", "    | Error: x"]
