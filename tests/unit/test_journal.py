"""journal.py: the envelope, the count, and facts that a worker made up."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelsupervisor.log.console import Console
from modelsupervisor.log.journal import DEEPEST, Journal, timestamp
from modelsupervisor.log.outlet import Outlet, Said
from modelsupervisor.log.ring import Rings
from support.schema import check
from support.sinks import EVERYTHING, ScriptedPort


class Log:
    """A journal with one sink, and what that took."""

    def __init__(self, *, level: str = "info", console: bool = False, limit: int = 1 << 20) -> None:
        self.port = ScriptedPort()
        self.outlet = Outlet("stdout", self.port, limit)
        if console:
            self.outlet = Outlet("stdout", self.port, limit, Console(colors=False).encode)
        self.journal = Journal(level, Rings(1 << 20))
        self.journal.outlets.append(self.outlet)

    def text(self) -> str:
        """Everything that was written so far."""
        while self.outlet.backlog:
            self.outlet.flush(0.0)
        return self.port.taken.decode()

    def events(self) -> list[dict[str, Any]]:
        """The same, as events."""
        return [json.loads(line) for line in self.text().split("\n") if line]


# The envelope --------------------------------------------------------------------------------------------------------


def test_the_envelope_comes_first_and_in_order() -> None:
    """timestamp, level, event, seq, model, worker, pid, generation, then the facts; what does not apply is not there."""
    log = Log()
    log.journal.emit("info", "worker.ready", start_s=1.5, pid=7, generation=2, worker=0, model="a")
    log.journal.emit("error", "supervisor.fault", pid=None, why=None)
    first, second = log.events()
    assert list(first) == [
        *("timestamp", "level", "event", "seq", "model", "worker", "pid", "generation", "start_s"),
    ]
    assert list(second) == ["timestamp", "level", "event", "seq", "why"]
    assert second["why"] is None
    assert [first["level"], second["level"]] == ["info", "error"]


def test_one_form_of_time() -> None:
    """Events and the lines of workers have the same: UTC, microseconds, and it is now."""
    log = Log()
    log.journal.emit("info", "a.b")
    for made in (log.events()[0]["timestamp"], timestamp()):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", made)
        then = datetime.fromisoformat(made.replace("Z", "+00:00"))
        assert abs(datetime.now(timezone.utc) - then) < timedelta(minutes=1)


def test_below_the_level_nothing_is_made() -> None:
    """An event that is not wanted does not count either."""
    log = Log(level="warning")
    log.journal.emit("info", "a.b")
    log.journal.emit("warning", "a.c")
    log.journal.emit("debug", "a.d")
    log.journal.emit("error", "a.e")
    assert [(event["event"], event["seq"]) for event in log.events()] == [("a.c", 1), ("a.e", 2)]
    shown = [log.journal.shows(level) for level in ("debug", "info", "warning", "error")]
    assert shown == [False, False, True, True]


# Blocks of lines -----------------------------------------------------------------------------------------------------


def rendered(count: int, given: list[int]) -> Any:
    """A rendering of so many events, which notes the number that it was given."""

    def render(first: int) -> bytes:
        given.append(first)
        return b"".join(b'{"event":"x","seq":%d}\n' % each for each in range(first, first + count))

    return render


def test_a_block_takes_as_many_numbers_as_it_has_events() -> None:
    """It is rendered once, with the number of its first event, and is of its stream in the sink's account."""
    log, given = Log(), list[int]()
    log.journal.emit("info", "a.b")
    log.journal.emit_block(("digits", 0), "digits/0 stdout", 3, rendered(3, given))
    log.journal.emit("info", "a.c")
    assert given == [2]
    assert [event["seq"] for event in log.events()] == [1, 2, 3, 4, 5]
    assert log.journal.seq == 5
    assert log.outlet.buffer.tallies["digits/0 stdout"].logged == 3


def test_every_sink_gets_everything() -> None:
    """Events as well as blocks, in the same order; one that is added later has what comes from then on."""
    log = Log()
    late = Outlet("file", ScriptedPort(), 1000)
    log.journal.emit("info", "a.b")
    log.journal.outlets.append(late)
    log.journal.emit_block(("digits", 0), "s", 2, rendered(2, []))
    log.journal.emit("info", "a.c")
    late.flush(0.0)
    assert isinstance(late.port, ScriptedPort)
    assert [event["seq"] for event in late.port.events()] == [2, 3, 4]
    assert [event["seq"] for event in log.events()] == [1, 2, 3, 4]


def test_the_newest_events() -> None:
    """Are those that the rings hold, an event under the model and worker that it names."""
    log = Log()
    journal = log.journal
    journal.emit("info", "supervisor.ready")
    journal.emit("info", "worker.ready", model="digits", worker=0)
    journal.emit("info", "template.ready", model="digits")
    journal.emit_block(("digits", 1), "s", 2, rendered(2, []))

    def seqs(*which: Any) -> list[int]:
        return [json.loads(line)["seq"] for line in journal.newest(*which)]

    assert seqs(100, None, None) == [1, 2, 3, 4, 5]
    assert seqs(2, None, None) == [4, 5]
    assert seqs(100, "digits", None) == [2, 3, 4, 5]
    assert seqs(100, "digits", 0) == [2]
    assert seqs(100, "digits", 1) == [4, 5]


# What sinks say ------------------------------------------------------------------------------------------------------


def test_what_a_sink_says_is_an_event() -> None:
    """With the identity of the supervisor; said once; also what a sink says because of another's event, or of its own."""
    log = Log()
    for name in ("file", "journal"):
        small = Outlet(name, ScriptedPort(0), 1)
        small.buffer.reserved = 0
        log.journal.outlets.insert(0, small)
    small.said.append(Said("info", "log.opened", {"sink": "journal"}))
    log.outlet.said.append(Said("warning", "log.failed", {"sink": "stdout", "reason": "x"}))
    log.journal.tell_of_outlets(pid=7)
    log.journal.tell_of_outlets(pid=7)
    told = [(event["event"], event["sink"], event["pid"]) for event in log.events()]
    assert told == [
        ("log.opened", "journal", 7),
        ("log.stalled", "journal", 7),
        ("log.stalled", "file", 7),
        ("log.failed", "stdout", 7),
    ]


def test_dropped_lines_are_told_and_are_the_gap() -> None:
    """When there is room again `log.dropped` says how many and of which stream; the gap in seq is as large."""
    log = Log(limit=4000)
    log.port.room = 0
    for _ in range(7):
        log.journal.emit_block(("digits", 0), "digits/0 stdout", 50, rendered(50, []))
    log.journal.emit("info", "worker.ready")  # has its reserved room
    log.port.room = EVERYTHING
    log.outlet.flush(0.0)
    log.journal.tell_of_outlets(pid=7)
    log.journal.emit("info", "a.b")
    events = [event for event in log.events() if event["event"] != "x"]
    names = [event["event"] for event in events]
    assert names == ["worker.ready", "log.stalled", "log.resumed", "log.dropped", "a.b"]
    for event in events[1:4]:
        check(event)
    dropped = events[3]
    written = log.events()
    assert dropped["lines"] == written[-1]["seq"] - len(written) > 0
    assert dropped["streams"] == {"digits/0 stdout": dropped["lines"]}


# Facts that a worker made up -----------------------------------------------------------------------------------------

_FACTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.text(max_size=8) | st.sampled_from(
    [
        *("self", "event", "level", "seq", "timestamp", "method_name", "facts", "logger", "name"),
        *("exc_info", "exception", "stack", "stack_info", "traceback", "last_lines"),
        *("model", "worker", "pid", "_record", "_from_structlog", "logger_name"),
        *("positional_args", "line", "kind"),
    ]
)


@pytest.mark.parametrize("console", [False, True])
@given(facts=st.dictionaries(_NAMES, _FACTS, max_size=4))
@example(facts={"model": "m", "worker": [0]})
@example(facts={"model": [0], "worker": 0})
def test_any_facts_are_borne(console: bool, facts: dict[str, Any]) -> None:
    """A worker's words are names and values as it likes: an event comes of them, and the envelope is ours."""
    log = Log(console=console)
    log.journal.emit("info", "worker.told", **facts)
    (kept,) = log.journal.newest(10, None, None)
    event = json.loads(kept)
    assert (event["event"], event["level"], event["seq"]) == ("worker.told", "info", 1)
    assert "worker.told" in log.text() if console else log.events() == [event]


def test_a_fact_with_a_name_of_ours() -> None:
    """Gets an underscore behind it."""
    log = Log()
    log.journal.emit("info", "a.b", seq=9, level="loud", timestamp="now", stack="s")
    (event,) = log.events()
    assert [event[f"{name}_"] for name in ("seq", "level", "timestamp", "stack")] == [
        *(9, "loud", "now", "s"),
    ]
    assert (event["seq"], event["level"]) == (1, "info")


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: (x,)])
def test_how_deep_a_fact_is_shown(wrap: Callable[[Any], Any]) -> None:
    """DEEPEST levels, whatever they are made of."""
    fact: Any = wrap("bottom")
    for _ in range(DEEPEST):
        fact = wrap(fact)
    log = Log()
    log.journal.emit(
        "info", "worker.told", shown=fact, also=fact["a"] if isinstance(fact, dict) else fact[0]
    )
    (event,) = log.events()
    assert "bottom" not in str(event["shown"]) and "…" in str(event["shown"])
    assert "bottom" in str(event["also"])


@pytest.mark.parametrize("console", [False, True])
def test_facts_that_are_nested_too_deep(console: bool) -> None:
    """What is deeper than anybody reads is not shown, and is no error."""
    log = Log(console=console)
    log.journal.emit("info", "worker.told", deep=nested(700), huge=10**400, text="\udcff")
    assert "worker.told" in log.text()


def test_a_path_that_is_no_utf_8() -> None:
    """It comes out escaped, on one line, and its event has its place among the newest all the same."""
    log = Log()
    log.journal.emit("info", "a.a", model="m", worker=0)
    log.journal.emit("info", "a.b", path=os.fsdecode(b"/\xff\xfe"), lines=["\udcff", "ok"])
    log.journal.emit("info", "a.c", model="m", worker=0)
    _, event, _ = log.events()
    assert os.fsencode(event["path"]) == b"/\xff\xfe"
    newest = [json.loads(line)["event"] for line in log.journal.newest(10, None, None)]
    assert newest == ["a.a", "a.b", "a.c"]


def test_what_workers_send_takes_no_room_that_is_for_ours() -> None:
    """A flood of their events is dropped like output, under a name of its own, and a worker's end still has its place."""
    log = Log(limit=10_000)
    log.port.room = 0
    facts: dict[str, Any] = {"model": "m", "worker": 0, "generation": 1, "error": "x" * 500}
    for _ in range(100):
        log.journal.emit_told("m/0 events", "warning", "metrics.lost", **facts)
    tally = log.outlet.buffer.tallies["m/0 events"]
    assert tally.dropped > 50
    assert tally.dropped + tally.buffered == 100
    log.journal.emit("info", "orphan.exited", pid=1, reason="ours")
    assert log.outlet.buffer.tallies[None].buffered == 1
