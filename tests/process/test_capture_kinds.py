"""What lines say about themselves, printed by real libraries in a worker: tracebacks, levels, metrics, JSON; and whose they are."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from support.capture import content
from support.faults import Caller, ask, request
from support.instance import Event, Instance

Running = Callable[..., Instance]


def test_logging_exception_is_one_event(running: Running) -> None:
    """The message is a line of level error, the traceback below it one event with its last line as `error`."""
    instance = running("worker.output")
    ask(instance, "log", level="EXCEPTION", text="a cat")
    told = instance.wait_event("worker.output", kind="traceback", stream="stderr")
    message, only = instance.events("worker.output")
    assert (message["line"], message["level"]) == ("ERROR:net.layer:could not look", "error")
    assert "kind" not in message
    assert only == told
    assert (told["level"], told["error"]) == ("error", "KeyError: 'a cat'")
    lines = told["line"].split("\n")
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == told["error"]
    assert told["lines"] == len(lines) >= 4


def test_an_exception_in_a_thread_is_one_event(running: Running) -> None:
    """With the exception that it came of, blank line and sentence between them."""
    instance = running("worker.output")
    ask(instance, "raise_in_thread")
    told = instance.wait_event("worker.output", kind="traceback")
    assert told["level"] == "error"
    assert told["error"] == "ValueError: no such animal"
    assert told["line"].count("Traceback (most recent call last):") == 2
    assert "\n\nThe above exception was the direct cause" in told["line"]
    (before,) = instance.events("worker.output")[:-1]
    assert before["line"].startswith("Exception in thread watcher")
    assert before["level"] == "error"


def test_a_traceback_is_whole_where_it_is_the_last_word(running: Running) -> None:
    """A process that dies of an exception's consequences has its traceback in the log before its end, and in one piece."""
    instance = running("worker.exited", "worker.output")
    killed = {"do": "kill"}
    caller = request("all", of=[{"do": "raise_in_thread"}, killed])
    with Caller(instance.socket(), caller) as asked, pytest.raises(ConnectionError):
        asked.answer()
    exited = instance.wait_event("worker.exited")
    (told,) = instance.events("worker.output", kind="traceback")
    assert told["seq"] < exited["seq"]
    assert told["line"].endswith("\nValueError: no such animal")
    assert "ValueError: no such animal" in exited["last_lines"]


@pytest.mark.parametrize(
    ("said", "level"), [("WARNING", "warning"), ("ERROR", "error"), ("CRITICAL", "error")]
)
def test_a_level_of_logging_is_the_events(running: Running, said: str, level: str) -> None:
    """As logging.basicConfig prints it to stderr."""
    instance = running("worker.output")
    ask(instance, "log", level=said, text="the picture is dark")
    told = instance.wait_event("worker.output")
    assert (told["line"], told["level"]) == (f"{said}:net.layer:the picture is dark", level)


def test_metrics_are_metrics(running: Running) -> None:
    """What a handler records by `context.metrics`: name, unit, value, dimensions, and the request that it belongs to."""
    instance = running()
    ask(instance, "metrics", request_id="picture-7")
    instance.wait_event("worker.output", count=3)
    told = instance.events("worker.output", kind="metric", stream="stdout", level="info")
    metrics = {event["metric"]["name"]: event["metric"] for event in told}
    assert {name: (each["unit"], each["value"]) for name, each in metrics.items()} == {
        "Pictures": ("Count", 2),
        "Looking": ("Milliseconds", 12.5),
        "Certainty": ("Percent", 99.5),
    }
    for each in metrics.values():
        assert each["dimensions"] == {"ModelName": "echo", "Level": "Model"}
        assert (each["request_id"], each["host"]) == ("picture-7", socket.gethostname())
    assert all(event["line"].startswith("[METRICS]") for event in told)


def test_json_lines_keep_their_fields(running: Running) -> None:
    """As an object, in their own digits and order; a `level` in it is the event's."""
    instance = running()
    line = '{"level": "warning", "loss": 0.10, "layer": {"name": "conv é", "sizes": [3, 28]}}'
    ask(instance, "write", text=line.encode().decode("latin-1") + "\n" + '{"epoch": 1}\n')
    instance.wait_event("worker.output", count=2, kind="json")
    first, second = instance.events("worker.output")
    assert first["line"] == line
    assert first["fields"] == json.loads(line)
    assert (first["level"], second["level"]) == ("warning", "info")
    assert second["fields"] == {"epoch": 1}
    assert line.encode() in instance.log.read_bytes()


def test_a_line_names_the_request_in_hand_when_it_was_read(
    running: Running, short_tmp: Path
) -> None:
    """While the handler is at work the request's id is on its lines; on a line that comes afterwards there is none."""
    instance = running(workers=2)
    release, speak = short_tmp / "release", short_tmp / "speak"
    of = [
        {"do": "print", "text": "at work"},
        {"do": "speak_later", "path": str(speak), "text": "afterwards"},
        {"do": "wait_for_file", "path": str(release)},
    ]
    with Caller(instance.socket(), request("all", "picture-7", of=of)) as caller:
        at_work = instance.wait_event("worker.output", line="at work 0")
        ask(instance, "print", index=1, text="the other worker")
        release.touch()
        assert caller.answer() == b"done"
        speak.touch()
        afterwards = instance.wait_event("worker.output", line="afterwards")
    assert at_work["in_hand_at_read"] == ["picture-7"]
    assert "in_hand_at_read" not in afterwards
    other: list[Event] = instance.events("worker.output", worker=1)
    assert [content(event) for event in other] == [b"the other worker 0\n"]
    assert all("picture-7" not in event.get("in_hand_at_read", []) for event in other)
