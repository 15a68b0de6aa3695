"""More workers than one answer has room for, up to a thousand on one supervisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modelsupervisor.control import ControlConnection
from modelsupervisor.runtime.report import PAGE
from support.faults import ask, crash, ready
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
