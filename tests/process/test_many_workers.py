"""More workers than one answer has room for, up to a thousand on one supervisor."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.control import ControlConnection
from modelsupervisor.runtime.report import PAGE
from support.faults import ask, crash, echo, ready
from support.instance import Instance

Make = Callable[..., Instance]


def one_answer(instance: Instance, **asked: object) -> dict[str, Any]:
    """What one `status` says."""
    with ControlConnection.open(str(instance.run_dir)) as control:
        result: dict[str, Any] = control.call("status", asked)
        return result


def test_the_status_of_many_comes_in_pages(instance: Make) -> None:
    """PAGE workers an answer, across models; joined, every worker and every stream is there once; one worker can be asked for."""
    made = instance("worker.exited")
    made.write(made.model("a", workers=PAGE - 28, threads=1) + made.model(workers=40, threads=1))
    made.start()
    crash(made, "kill", index=39)
    ready(made, 2, index=39, model="echo")
    ask(made, "print", index=39, lines=3)
    made.wait_event("worker.output", model="echo", worker=39, generation=2)

    first = one_answer(made)
    assert [len(model["workers"]) for model in first["models"]] == [PAGE - 28, 28]
    assert first["next"] == PAGE
    second = one_answer(made, offset=PAGE)
    assert [worker["index"] for worker in second["models"][0]["workers"]] == list(range(28, 40))
    assert "next" not in second
    assert one_answer(made, offset=PAGE + 40)["models"] == []

    whole = made.status()
    assert [(model["name"], len(model["workers"])) for model in whole["models"]] == [
        ("a", PAGE - 28),
        ("echo", 40),
    ]
    (sink,) = whole["log"]["sinks"]
    assert sink["streams"]["echo/39 stdout"]["logged"] == 3
    assert "echo template stdout" in sink["streams"]
    assert "echo template stdout" not in second["log"]["sinks"][0]["streams"]

    (model,) = one_answer(made, model="echo", index=39)["models"]
    (worker,) = model["workers"]
    assert (worker["index"], worker["generation"], worker["last_crash"]["cause"]) == (
        39,
        2,
        "signal",
    )
    assert made.cli("status", "echo/39", "-c", str(made.config)).stdout.startswith(
        "echo/39 is READY"
    )


THOUSAND = 1000
ANSWER_MS = 50  # asked of an answer of the control socket; the test allows ten times that


def milliseconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.monotonic()
    action()
    return 1000 * (time.monotonic() - begun)


@pytest.mark.slow
def test_a_thousand_workers(instance: Make) -> None:
    """All READY, each answers, the control socket within its time before and after all of them were killed, and a whole stop."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < THOUSAND * 6:
        pytest.skip("the hard limit of descriptors is too low here")
    made = instance("worker.exited")
    made.write(made.model(workers=THOUSAND, threads=1))
    begun = time.monotonic()
    made.launch().wait_event("supervisor.ready", limit=90)
    print(f"\nall READY after {time.monotonic() - begun:.1f} s")
    for index in range(THOUSAND):
        assert echo(made, b"%d" % index, index) == b"%d" % index
    _measure_answers(made)
    pids = [event["pid"] for event in made.events("worker.ready")]
    begun = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    made.wait_event("worker.ready", generation=2, count=THOUSAND, limit=90)
    print(f"all replaced after {time.monotonic() - begun:.1f} s")
    assert sorted(event["pid"] for event in made.events("worker.exited")) == sorted(pids)
    _measure_answers(made)
    shown = made.cli("status", "echo/999", "-c", str(made.config))
    assert shown.stdout.startswith("echo/999 is READY: generation 2")
    rss = Path(f"/proc/{made.pid}/statm").read_text().split()[1]
    print(f"RSS of the supervisor: {int(rss) * 4 // 1024} MiB")
    print(f"stopped in {milliseconds(made.stop):.0f} ms")
    assert made.process is not None and made.process.returncode == 0


def _measure_answers(made: Instance) -> None:
    answers = sorted(milliseconds(lambda: one_answer(made)) for _ in range(20))
    whole = sorted(milliseconds(made.status) for _ in range(5))
    print(f"an answer {answers[10]:.1f} ms, at most {answers[-1]:.1f}; all {whole[2]:.1f} ms")
    assert answers[-1] < 10 * ANSWER_MS
    workers = made.status()["models"][0]["workers"]
    assert [worker["phase"] for worker in workers] == ["READY"] * THOUSAND
