"""console.py: an event as a person reads it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from modelsupervisor.log.console import Console, decode_event
from modelsupervisor.log.render import Block

OUTPUT = {"event": "worker.output", "model": "echo", "worker": 3, "stream": "stdout"}


def line(event: dict[str, Any]) -> bytes:
    """One event as it stands in the log."""
    envelope = {"timestamp": "2026-01-02T03:04:05.678901Z", "level": "info", "seq": 1}
    return json.dumps(envelope | event).encode() + b"\n"


def shown(colors: bool = False, **event: Any) -> str:
    """One event, rendered."""
    return Console(colors=colors).line(line(event))


# Events --------------------------------------------------------------------------------------------------------------


def test_time_level_name_and_facts() -> None:
    """The time of day to the millisecond; no seq, nothing that is null or an empty list."""
    text = shown(event="worker.ready", model="echo", worker=0, start_s=0.5, missing=None, empty=[])
    assert text.startswith("03:04:05.678 ")
    for words in ("info", "worker.ready", "model=echo", "worker=0", "start_s=0.5"):
        assert words in text
    for word in ("seq", "missing", "empty", "\x1b"):
        assert word not in text


def test_what_stands_above_already() -> None:
    """A worker's last lines were shown when it wrote them."""
    text = shown(event="worker.exited", last_lines=["once"], at="2026", reason="killed")
    assert "killed" in text
    assert "once" not in text and "at=" not in text


def test_a_traceback_is_a_block() -> None:
    """One mark for each line, below the event."""
    text = shown(event="template.exited", traceback="Traceback:\n  line\nError: \x1b[2J\n")
    first, *below = text.split("\n")
    assert "traceback" not in first
    assert below == ["    | Traceback:", "    |   line", "    | Error: \\x1b[2J"]


# Lines of output -----------------------------------------------------------------------------------------------------


def test_a_workers_own_line() -> None:
    """Its slot, then its words; a template's says so; what is no text is shown as it travels."""
    assert shown(**OUTPUT, line="hello").endswith("03:04:05.678 echo/3 | hello")
    assert shown(**OUTPUT, line_b64="//4=").endswith(" echo/3 | //4=")
    said = shown(event="template.output", model="echo", stream="stderr", line="warned")
    assert said.endswith(" echo template | warned")


def test_a_colour_for_stderr_and_one_for_errors() -> None:
    """Where there are colours at all."""
    usual = shown(True, **OUTPUT, line="x")
    stderr = shown(True, **(OUTPUT | {"stream": "stderr"}), line="x")
    error = shown(True, **OUTPUT, line="x", level="error")
    assert len({usual, stderr, error}) == 3
    assert all("\x1b[" in text for text in (usual, stderr, error))
    assert "\x1b" not in shown(**OUTPUT, line="x", level="error")


def test_a_line_has_no_power_over_the_terminal() -> None:
    """Escape sequences, carriage returns and bells of a model's output are shown and not obeyed."""
    text = shown(**OUTPUT, line="\x1b[2J\r\x07\tok é")
    assert text.endswith("\\x1b[2J\\r\\x07\tok é")


def test_a_workers_traceback() -> None:
    """Its first line is where a line stands, the others are below it; none has power over the terminal."""
    told = "Traceback (most recent call last):\x07\n  \x1b[2Jx\nValueError: y"
    first, *below = shown(**OUTPUT, line=told, kind="traceback", error="ValueError: y").split("\n")
    assert first.endswith(" echo/3 | Traceback (most recent call last):\\x07")
    assert below == ["    |   \\x1b[2Jx", "    | ValueError: y"]


def test_a_line_of_another_kind_is_its_line() -> None:
    """Its fields are in it already; and a newline in what is no traceback is shown, not obeyed."""
    assert shown(**OUTPUT, line='{"a": 1}', kind="json", fields={"a": 1}).endswith(' | {"a": 1}')
    assert shown(**OUTPUT, line="a\nb").endswith(" | a\\nb")


# Blocks --------------------------------------------------------------------------------------------------------------


def test_a_block_is_a_line_each() -> None:
    """The events in order."""
    events = [line(OUTPUT | {"line": text}) for text in ("one", "two\u2028", "three")]
    text = Console(colors=False).encode(Block("s", 3, b"".join(events))).decode()
    assert [each.partition(" | ")[2] for each in text.split("\n")] == [
        *("one", "two\\u2028", "three", ""),
    ]


def test_a_lone_surrogate() -> None:
    """From a name that is not UTF-8: the fast decoder refuses its escape, people get it as an escape."""
    event = line({"event": "a.b", "path": "/\udcff"})
    with pytest.raises(msgspec.DecodeError):
        msgspec.json.decode(event)
    assert decode_event(event)["path"] == "/\udcff"
    made = Console(colors=False).encode(Block(None, 1, event))
    assert b"udcff" in made
    said = line(OUTPUT | {"line": "x", "model": "m\udcff"})
    assert b"m\\udcff/3 | x" in Console(colors=False).encode(Block("s", 1, said))


# The progress line ---------------------------------------------------------------------------------------------------


def test_the_progress_line() -> None:
    """It is drawn once for each state, goes for a block and comes back below it, and is taken away at the end."""
    console = Console(colors=True)
    block = Block(None, 2, line({"event": "a.b"}) + line({"event": "a.c"}))
    drawn = console.progress("starting: 0 of 1 …")
    assert drawn.startswith(b"\r\x1b[2K") and "starting: 0 of 1 …".encode() in drawn
    assert console.progress("starting: 0 of 1 …") == b""
    assert console.encode(block) == b"\r\x1b[2K" + Console(colors=True).encode(block) + drawn
    assert b"1 of 1" in console.progress("starting: 1 of 1 …")
    assert console.progress("") == b"\r\x1b[2K"
    assert console.progress("") == b""
    assert console.encode(block) == Console(colors=True).encode(block)
