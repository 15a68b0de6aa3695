"""journal.py: the envelope, the count, and facts that a worker made up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupervisor.runtime.journal import Journal
from modelsupervisor.runtime.sink import BUFFER, StdoutSink


class Log:
    """A journal and what it wrote."""

    def __init__(self, *, level: str = "info", console: bool = False, colors: bool = False) -> None:
        self.reading, writing = os.pipe()
        self.sink = StdoutSink(writing)
        self.sink.open()
        self._writing = writing
        self.journal = Journal(self.sink, level=level, console=console, colors=colors)

    def text(self) -> str:
        """Everything that was written so far."""
        self.sink.put(b"\0", reserved=True)
        chunks = b""
        while not chunks.endswith(b"\0"):
            self.sink.flush()
            chunks += os.read(self.reading, 65536)
        return chunks[:-1].decode()

    def events(self) -> list[dict[str, Any]]:
        """The same, as events."""
        return [json.loads(line) for line in self.text().split("\n") if line]

    def close(self) -> None:
        """Let the descriptors go."""
        self.sink.close()
        os.close(self.reading)
        os.close(self._writing)


@pytest.fixture
def log() -> Iterator[Log]:
    """A journal in JSON."""
    made = Log()
    yield made
    made.close()


def test_the_envelope_comes_first_and_in_order(log: Log) -> None:
    """timestamp, level, event, seq, model, worker, pid, generation, then the facts; what does not apply is not there."""
    log.journal.emit("info", "worker.ready", start_s=1.5, pid=7, generation=2, worker=0, model="a")
    log.journal.emit("error", "supervisor.fault", pid=None, why=None)
    first, second = log.events()
    assert list(first) == [
        *("timestamp", "level", "event", "seq", "model", "worker", "pid", "generation", "start_s"),
    ]
    assert first["timestamp"].endswith("Z")
    assert list(second) == ["timestamp", "level", "event", "seq", "why"]
    assert second["why"] is None


def test_below_the_level_nothing_is_made() -> None:
    """An event that is not wanted does not count either."""
    log = Log(level="warning")
    log.journal.emit("info", "a.b")
    log.journal.emit("warning", "a.c")
    log.journal.emit("debug", "a.d")
    log.journal.emit("error", "a.e")
    assert [(event["event"], event["seq"]) for event in log.events()] == [("a.c", 1), ("a.e", 2)]
    log.close()


def test_dropped_lines_are_told_and_are_the_gap(log: Log) -> None:
    """When there is room again `log.dropped` says how many; the gap in seq is as large."""
    log.journal.emit("info", "worker.output", line="x" * (BUFFER - 1000))
    for _ in range(5):
        log.journal.emit("info", "worker.output", line="x" * 2000)
    log.journal.emit("info", "worker.ready")  # has its reserved room
    text = ""
    while log.sink.backlog:
        log.sink.flush()
        text += os.read(log.reading, 1 << 20).decode()
    log.journal.tell_dropped()
    log.journal.emit("info", "a.b")
    text += log.text()
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["event"] for event in events] == [
        "worker.output",
        "worker.ready",
        "log.dropped",
        "a.b",
    ]
    assert [event["seq"] for event in events] == [1, 7, 8, 9]
    assert (events[2]["lines"], events[2]["sink"]) == (5, "stdout")


_FACTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.text(max_size=8) | st.sampled_from(
    [
        *("self", "event", "level", "seq", "timestamp", "method_name", "facts", "logger", "name"),
        *(
            "exc_info",
            "exception",
            "stack",
            "stack_info",
            "traceback",
            "last_lines",
            "positional_args",
        ),
        *("model", "worker", "pid", "_record", "_from_structlog", "logger_name"),
    ]
)


@pytest.mark.parametrize("console", [False, True])
@given(facts=st.dictionaries(_NAMES, _FACTS, max_size=4))
def test_any_facts_are_borne(console: bool, facts: dict[str, Any]) -> None:
    """A worker's words are names and values as it likes: an event comes of them, and the envelope is ours."""
    log = Log(console=console)
    try:
        log.journal.emit("info", "worker.told", **facts)
        if console:
            assert "worker.told" in log.text()
        else:
            (event,) = log.events()
            assert (event["event"], event["level"], event["seq"]) == ("worker.told", "info", 1)
    finally:
        log.close()


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize("console", [False, True])
def test_facts_that_are_nested_too_deep(console: bool) -> None:
    """What is deeper than anybody reads is not shown, and is no error."""
    log = Log(console=console)
    log.journal.emit("info", "worker.told", deep=nested(700), huge=10**400, text="\udcff")
    assert "worker.told" in log.text()
    log.close()


def test_the_progress_line() -> None:
    """It is drawn once for each state, goes for a log line and comes back below it, and is taken away at the end."""
    log = Log(console=True, colors=True)
    log.journal.progress("starting: 0 of 1")
    log.journal.progress("starting: 0 of 1")
    log.journal.emit("info", "a.b")
    log.journal.progress("")
    log.journal.emit("info", "a.c")
    text = log.text()
    assert text.count("starting: 0 of 1") == 2
    first, second = text.split("\n")[:2]
    assert "a.b" in first.rpartition("\x1b[2K")[2]
    assert "starting" not in second.rpartition("\x1b[2K")[2] and "a.c" in second
    log.close()


@pytest.mark.parametrize(("console", "colors"), [(False, False), (True, False)])
def test_no_progress_line_without_a_terminal(console: bool, colors: bool) -> None:
    """Nor where colours are not wanted."""
    log = Log(console=console, colors=colors)
    log.journal.progress("starting")
    assert log.text() == ""
    log.close()


def test_a_path_that_is_no_utf_8(log: Log, tmp_path: Path) -> None:
    """It comes out escaped, on one line."""
    log.journal.emit("info", "a.b", path=os.fsdecode(b"/\xff\xfe"), lines=["\udcff", "ok"])
    (event,) = log.events()
    assert os.fsencode(event["path"]) == b"/\xff\xfe"
