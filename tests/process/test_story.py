"""`status MODEL/N` against a living supervisor: the story of a crash is what really happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.faults import crash, echo, ready
from support.instance import Instance

Running = Callable[..., Instance]


def story(instance: Instance) -> str:
    """What `status echo/0` prints."""
    outcome = instance.cli("status", "echo/0", "-c", str(instance.config))
    assert (outcome.returncode, outcome.stderr) == (0, "")
    return outcome.stdout


def test_the_story_of_a_crash_with_a_request_in_hand(running: Running) -> None:
    """What happened, the evidence and what was done, with the numbers of this very crash."""
    instance = running("worker.exited")
    assert "It has not crashed in that time." in story(instance)
    pid = instance.worker()["pid"]
    echo(instance)
    last: dict[str, Any] = {"do": "write", "text": "about to crash"}
    crash(instance, "all", of=[last, {"do": "kill"}], request_id="order-66")
    after = ready(instance, 2)["pid"]
    told = story(instance)
    lines = [line.strip() for line in told.splitlines()]
    assert lines[:2] == [
        f"echo/0 is READY: generation 2, pid {after}, serves.",
        "Since the supervisor was started it answered 1 request and was restarted once.",
    ]
    assert f"Generation 1 (pid {pid}) ended: killed by SIGKILL with 1 request in hand." in told
    assert "had answered 1 request." in told
    for evidence in (
        "signal     SIGKILL, which the supervisor did not send",
        "in hand    order-66",
        "its last line of output",
        "| about to crash",
        f"more       modelsupervisor logs -c {instance.config} echo/0",
    ):
        assert evidence in lines
    assert f"A successor was asked for at once. Generation 2, pid {after}, was ready " in told
    assert " ms after the crash." in told
    whole = instance.cli("status", "echo/0", "--json", "-c", str(instance.config))
    assert json.loads(whole.stdout)["last_crash"]["in_hand"] == ["order-66"]


def test_the_story_of_a_worker_that_cannot_start(running: Running, tmp_path: Path) -> None:
    """Its traceback is the evidence, and the next try what was done."""
    fault = tmp_path / "fault"
    instance = running(
        "worker.exited", "worker.failed", env__FAULT_AFTER_FORK_FILE=fault, max_failures=1
    )
    fault.write_text(json.dumps({"do": "raise", "text": "no database"}))
    crash(instance, "kill")  # which is no failure: it had a request in hand
    instance.wait_event("worker.failed")
    told = story(instance)
    assert "echo/0 is FAILED: it has no process" in told
    assert "could not start: ValueError: no database" in told
    assert "      | Traceback (most recent call last):\n" in told
    assert "      | ValueError: no database\n" in told
    assert "it was given up as FAILED, to be tried again 1 min 0 s later. That is due in " in told


def test_the_last_words_of_many_fit_into_one_status(running: Running) -> None:
    """However much dead workers had written: the status is answered, with the newest of their lines."""
    instance = running("worker.exited", workers=6)
    words = {"do": "print", "lines": 60, "text": "x" * 1990}
    for index in range(6):
        crash(instance, "all", index=index, of=[words, {"do": "kill"}])
    for index in range(6):
        ready(instance, 2, index=index)
        lines = instance.worker(index=index)["last_crash"]["last_lines"]
        assert len(lines) > 2
        assert lines[-1].endswith("x 59")
