"""cli/story.py: a worker's state and last crash in words; and the commands that show them."""

from __future__ import annotations

import copy
import io
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from modelsupervisor.cli import main, render
from modelsupervisor.cli.story import story
from modelsupervisor.cli.terminal import one_line, output_line
from modelsupervisor.control import ControlConnection
from modelsupervisor.log.harmless import harmless_json

DIED = datetime(2026, 1, 2, 3, 4, 5, 678000, timezone.utc)
NOW = DIED + timedelta(seconds=123)

CRASH: dict[str, Any] = {
    "cause": "signal",
    "reason": "killed by SIGKILL with 2 requests in hand",
    "code": None,
    "signal": "SIGKILL",
    "uptime_s": 12.3,
    "requests": 34,
    "in_hand": ["req-1", "req-2"],
    "next": "restart",
    "retry_in_s": None,
    "failures": 0,
    "last_lines": ["going to", "\tcrash"],
    "at": DIED.isoformat(timespec="milliseconds"),
    "generation": 2,
    "pid": 41,
    "successor": {
        "generation": 3,
        "pid": 42,
        "at": (DIED + timedelta(milliseconds=14)).isoformat(timespec="milliseconds"),
        "start_s": 0.013,
    },
}
WORKER: dict[str, Any] = {
    "index": 0,
    "wanted": "up",
    "phase": "READY",
    "pid": 42,
    "generation": 3,
    "requests": 36,
    "restarts": 2,
    "last_exit": {key: fact for key, fact in CRASH.items() if key not in ("pid", "successor")},
    "last_crash": CRASH,
}


def told(worker: dict[str, Any] | None = None, **crash: Any) -> list[str]:
    """The lines of the story of WORKER with other facts, and with other facts of its crash."""
    facts = {**WORKER, "last_crash": {**CRASH, **crash}, **(worker or {})}
    return story("digits/0", msgspec.convert(facts, render.WorkerStatus), NOW).split("\n")


def paragraph(lines: list[str], heading: str) -> list[str]:
    """The lines below a heading, without their indent."""
    at = lines.index(f"  {heading}") + 1
    end = next((n for n in range(at, len(lines)) if lines[n][:3].strip()), len(lines))
    return [line[4:] for line in lines[at:end]]


def done(worker: dict[str, Any] | None = None, **crash: Any) -> str:
    """The sentences about what was done."""
    (sentences,) = paragraph(told(worker, **crash), "What was done")
    return sentences


def test_what_points_to_memory_is_evidence() -> None:
    """The counter's words and the peak, below the signal; nothing where there is nothing."""
    words = "oom_kill in /a/memory.events rose from 0 to 1 within 2.0 s; it counts us"
    lines = paragraph(
        told(cause="oom_suspected", evidence=words, peak_rss_bytes=300 << 20), "Evidence"
    )
    assert lines[:4] == [
        "cause      oom_suspected",
        "signal     SIGKILL, which the supervisor did not send",
        f"memory     {words}",
        "peak       300 MiB resident",
    ]
    assert not any(line.startswith(("memory", "peak")) for line in paragraph(told(), "Evidence"))


def test_a_drift_is_said_before_any_crash() -> None:
    """It is how the worker is now."""
    lines = told({"drift": ["1 of 2 threads may run on CPU 1", "numpy is 1.26"]})
    assert lines[2] == "It is not as planned: 1 of 2 threads may run on CPU 1; and numpy is 1.26."


def test_the_story_of_a_crash_with_requests_in_hand() -> None:
    """State, what happened, evidence, what was done: all facts, in that order."""
    assert told() == [
        "digits/0 is READY: generation 3, pid 42, serves.",
        "Since the supervisor was started it answered 36 requests and was restarted twice.",
        "",
        "Last crash: 2026-01-02 03:04:05.678 UTC, 2 min 3 s ago",
        "  What happened",
        "    Generation 2 (pid 41) ended: killed by SIGKILL with 2 requests in hand. It was 12 s old and had answered 34 requests.",
        "  Evidence",
        "    cause      signal",
        "    signal     SIGKILL, which the supervisor did not send",
        "    in hand    req-1, req-2",
        "    its last 2 lines of output",
        "      | going to",
        "      | \tcrash",
        "    more       modelsupervisor logs digits/0",
        "  What was done",
        "    A successor was asked for at once. Generation 3, pid 42, was ready 14 ms after the crash.",
    ]


def test_no_crash() -> None:
    """It says so, and nothing more."""
    assert told({"last_crash": None, "last_exit": None, "requests": 1, "restarts": 0}) == [
        "digits/0 is READY: generation 3, pid 42, serves.",
        "Since the supervisor was started it answered 1 request and was never restarted.",
        "It has not crashed in that time.",
    ]


def test_an_end_that_was_asked_for_is_no_crash() -> None:
    """A newer end by an operator stands before the crash, or alone."""
    stopped = {"cause": "stopped", "reason": "exited with code 0", "generation": 3, "uptime_s": 5.0}
    ended = "Its last process, generation 3, ended as asked: exited with code 0, after 5.0 s."
    lines = told({"last_exit": stopped, "generation": 4})
    assert lines[2] == ended
    assert lines[4].startswith("Last crash: ")
    lines = told({"last_exit": stopped, "last_crash": None})
    assert lines[2:] == [ended, "It has not crashed in that time."]


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"phase": "STARTING"}, "generation 3, pid 42, is not ready yet."),
        ({"phase": "DRAINING"}, "generation 3, pid 42, finishes what it has in hand."),
        ({"phase": "STOPPING"}, "generation 3, pid 42, is being ended."),
        ({"phase": "NEW_ONE"}, "generation 3, pid 42, lives."),
        ({"phase": "STARTING", "pid": None}, "its process is being born."),
        (
            {"phase": "EMPTY", "pid": None, "wanted": "down"},
            "it has no process and is to have none.",
        ),
        (
            {"phase": "EMPTY", "pid": None},
            "it has no process and waits for the template of its model.",
        ),
        (
            {"phase": "BACKING_OFF", "pid": None},
            "it has no process now, and clients wait in the queue of its socket.",
        ),
        (
            {"phase": "FAILED", "pid": None},
            "it has no process, and connections are refused; it is tried again from time to time.",
        ),
    ],
)
def test_every_phase_in_words(facts: dict[str, Any], sentence: str) -> None:
    """Its name, and what that means now."""
    assert told(facts)[0] == f"digits/0 is {facts['phase']}: {sentence}"


@pytest.mark.parametrize(
    ("crash", "sentence"),
    [
        ({"next": "restart"}, "A successor was asked for at once."),
        (
            {"next": "back_off", "retry_in_s": 0.5, "failures": 1},
            "After 1 failure in a row, a successor was to come 500 ms later.",
        ),
        (
            {"next": "failed", "retry_in_s": 60.0, "failures": 5},
            "After 5 failures in a row it was given up as FAILED, to be tried again 1 min 0 s later.",
        ),
        (
            {"next": "wait_for_template"},
            "A successor was to come as soon as the template of the model can fork.",
        ),
        (
            {"next": "stop"},
            "The supervisor's start had failed with it, and everything was stopped.",
        ),
        ({"next": "none"}, "Nothing: it was to go."),
        ({"next": "later"}, "later"),
    ],
)
def test_what_was_done(crash: dict[str, Any], sentence: str) -> None:
    """Every next step in words, and the successor that came of it."""
    after = "Generation 3, pid 42, was ready 14 ms after the crash."
    assert done(**crash) == f"{sentence} {after}"


def test_what_came_of_it_so_far() -> None:
    """Without a successor: who is on the way, or when the next try is due."""
    assert done(successor=None).endswith(" Generation 3, pid 42, is not ready yet.")
    gone = {"pid": None, "phase": "BACKING_OFF"}
    later = {"next": "back_off", "successor": None, "failures": 3}
    assert done(gone, **later, retry_in_s=130.0).endswith(" That is due in 7.0 s.")
    assert done(gone, **later, retry_in_s=1.0).endswith(" That is due now.")
    assert done({"pid": None, "phase": "EMPTY"}, successor=None).endswith(
        " There is no successor yet."
    )
    assert done({"pid": None, "phase": "EMPTY", "wanted": "down"}, successor=None).endswith(
        " It is to have no successor."
    )
    unknown = {"generation": 3, "pid": 42}
    assert done(successor=unknown).endswith(" Generation 3, pid 42, was ready.")


def test_evidence_of_an_exit_of_its_own() -> None:
    """The code; no signal, nothing in hand, no line: none of them is made up."""
    lines = told(
        cause="exit", signal=None, code=3, in_hand=[], last_lines=[], reason="exited with code 3"
    )
    assert paragraph(lines, "Evidence") == [
        "cause      exit",
        "exit code  3",
        "it had written no line of output",
        "more       modelsupervisor logs digits/0",
    ]


def test_evidence_of_a_start_that_failed() -> None:
    """Its own traceback, whole."""
    lines = told(
        cause="start_failed", signal=None, code=1, in_hand=[], last_lines=["one"], traceback="T:\n  x\nE: y\n"
    )  # fmt: skip
    assert paragraph(lines, "Evidence")[2:] == [
        "traceback",
        "  | T:",
        "  |   x",
        "  | E: y",
        "its last line of output",
        "  | one",
        "more       modelsupervisor logs digits/0",
    ]


def test_who_sent_the_signal_is_said_only_where_it_is_known() -> None:
    """Not for a fault of its own, nor where a deadline of ours had passed."""
    for cause, signal in (("signal", "SIGSEGV"), ("start_timeout", "SIGKILL")):
        assert f"    signal     {signal}" in told(cause=cause, signal=signal)
    assert "    signal     signal 40" in told(signal=40)


def test_a_birth_that_failed() -> None:
    """There never was a process, so none is named and none was old."""
    lines = told(cause="spawn_failed", signal=None, pid=None, reason="no fork: out of memory")
    (sentence,) = paragraph(lines, "What happened")
    assert sentence == "Generation 2 was never born: no fork: out of memory."


def test_a_story_with_half_of_its_facts() -> None:
    """A supervisor of another version says less: what is missing is left out."""
    facts = {"index": 0, "phase": "READY", "last_crash": {"signal": 9}}
    lines = story("m/0", msgspec.convert(facts, render.WorkerStatus), NOW).split("\n")
    assert "Last crash: at a time that is not known" in lines
    assert paragraph(lines, "What happened") == ["A generation ended: killed by SIGKILL."]


def test_a_story_has_no_power_over_the_terminal() -> None:
    """Whatever a model, a client or an exception put into its words is shown and not obeyed."""
    evil = "\x1b[2J\x9b31m\r\x07"
    lines = told(
        reason=evil,
        in_hand=[evil],
        last_lines=[evil],
        traceback=f"{evil}\n{evil}",
        signal=evil,
        cause=evil,
        next=evil,
        at=evil,
    )
    assert all(line.isprintable() for line in lines)
    assert sum("\\x1b[2J\\x9b31m\\r\\x07" in line for line in lines) == 9


def test_words_for_terminals() -> None:
    """Control characters are escaped, in JSON as JSON escapes them; tabs of output and newlines between lines stay."""
    assert one_line("a\tb\x1b\ud800") == "a\\tb\\x1b\\ud800"
    assert output_line("a\tb\x9b") == "a\tb\\x9b"
    encoded = '{\n"a": "ä \x7f \x9b2J \U000e0001"\n}'.encode()
    shown = harmless_json(encoded)
    assert json.loads(shown) == json.loads(encoded)
    assert all(line.isprintable() for line in shown.decode().split("\n"))


# the command


class Answers:
    """A connection whose supervisor has this status."""

    def __init__(self, status: dict[str, Any]) -> None:
        self.status = status

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is open."""

    def call(self, command: str, *_: object) -> dict[str, Any]:
        assert command == "status"
        return copy.deepcopy(self.status)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """`ask(arguments)`: exit code, stdout and stderr of `status` with these."""
    second = {**WORKER, "index": 1, "last_crash": None, "last_exit": None}
    model = {"name": "digits", "workers": [WORKER, second]}
    status = {"supervisor": {}, "models": [model], "log": {"events": 1, "sinks": []}}
    monkeypatch.setattr(ControlConnection, "open", lambda run_dir: Answers(status))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["status", "--run-dir", str(tmp_path), *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_status_of_a_worker_is_its_story(ask: Any) -> None:
    """In words also where stdout is no terminal: `status digits/0 | less` is for a person."""
    code, out, _ = ask("digits/0")
    assert code == 0
    assert out.startswith("digits/0 is READY: ")
    assert "Last crash: 2026-01-02 03:04:05.678 UTC" in out
    assert "digits/1" not in out


def test_status_of_a_model_is_the_story_of_each_worker(ask: Any) -> None:
    """One after the other, an empty line between them."""
    code, out, _ = ask("digits")
    assert code == 0
    assert out.startswith("digits/0 is ")
    assert "\n\ndigits/1 is READY: " in out


def test_status_of_a_worker_or_model_as_json(ask: Any) -> None:
    """That part of the whole, unchanged."""
    assert json.loads(ask("digits/0", "--json")[1]) == WORKER
    assert json.loads(ask("digits", "--json")[1])["name"] == "digits"


def test_status_of_what_is_not_there(ask: Any) -> None:
    """One line that says what there is, exit code 1; a target of another form is wrong usage."""
    assert ask("nobody") == (1, "", "modelsupervisor: no model 'nobody'; there are: digits\n")
    assert ask("digits/2") == (1, "", "modelsupervisor: no worker digits/2; there are 2\n")
    assert ask("digits/x")[0] == 2


# what is said of the log


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        ({"name": "stdout"}, ""),
        ({"name": "stdout", "state": "open", "streams": {"m/0 stdout": {"dropped": 0}}}, ""),
        (
            {"name": "stdout", "streams": {"a": {"dropped": 1}}},
            "log: stdout is open, 1 event dropped",
        ),
        (
            {
                "name": "file",
                "path": "/var/log/x\x1b",
                "state": "failing",
                "reason": "No space left on device",
                "streams": {"a": {"dropped": 100, "logged": 5}, "events": {"dropped": 20}},
            },
            "log: file /var/log/x\\x1b is failing (No space left on device), 120 events dropped",
        ),
        ({"name": "journal", "state": "closed"}, "log: journal is closed"),
    ],
)
def test_a_sink_in_trouble_in_words(sink: dict[str, Any], words: str) -> None:
    """Name, path, state, reason and loss; nothing for one that is well and misses nothing."""
    assert render.sink_words(msgspec.convert(sink, render.SinkStatus)) == words


@pytest.mark.parametrize("width", [80, 200])
def test_sinks_in_trouble_stand_below_the_table(width: int) -> None:
    """On a wide terminal and on a narrow one."""
    sinks = [{"name": "stdout"}, {"name": "file", "state": "stalled", "reason": "[red]slow"}]
    status = {"supervisor": {}, "models": [], "log": {"sinks": sinks}}
    out = io.StringIO()
    view = render.status_view(render.read_status(status), width)
    Console(file=out, width=width, highlight=False).print(view)
    assert out.getvalue().rstrip().split("\n")[-1] == "log: file is stalled ([red]slow)"
    assert "stdout" not in out.getvalue()


def test_the_words_of_an_exit_in_the_table_are_harmless() -> None:
    """A worker's own complaint stands there."""
    last = render.LastExit(reason="could not start: \x1b[2J")
    assert render.exit_words(last) == "could not start: \\x1b[2J"
