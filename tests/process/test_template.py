"""A model's template: it fails to load in every way, dies, hangs and cannot fork, and what becomes of its workers."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.faults import (
    ask,
    echo,
    facts,
    heir_pid,
    kill_worker,
    ready,
    template_pid,
    turned_away,
)
from support.instance import Instance, children_of, state_of, wait_for
from support.mendable import Mendable
from support.unprivileged import launch_as_nobody, limit_processes

Make = Callable[..., Instance]
Running = Callable[..., Instance]


BROKEN = [
    ("raise RuntimeError('no weights')", "service", "RuntimeError: no weights", "load_failed"),
    ("def handle(data, context:\n", "service", "SyntaxError", "load_failed"),
    ("import nonexistent_framework", "service", "No module named 'nonexistent_fr", "load_failed"),
    (
        "def handle(data, context): return data",
        "service:predict",
        "no such function",
        "load_failed",
    ),
    ("class A:\n  def initialize(self, c): self.x", "service", "has no handle()", "load_failed"),
    ("import sys; sys.exit(5)", "service", "left by sys.exit(5)", "load_failed"),
    ("import sys; sys.exit('bye')", "service", "left by sys.exit('bye')", "load_failed"),
    ("import os; os._exit(6)", "service", "exited with code 6", "exit"),
    ("import os; os.kill(os.getpid(), 9)", "service", "killed by SIGKILL", "signal"),
    ("import ctypes; ctypes.string_at(0)", "service", "killed by SIGSEGV", "signal"),
]


@pytest.mark.parametrize(("code", "handler", "said", "cause"), BROKEN)
def test_a_model_that_does_not_load_ends_the_start(
    instance: Make, short_tmp: Path, code: str, handler: str, said: str, cause: str
) -> None:
    """One template.exited with the reason, the traceback and the line of the INI file; exit 1 at once, nothing left."""
    model = short_tmp / "model"
    model.mkdir()
    (model / "service.py").write_text(code)
    broken = instance("template.exited", "supervisor.start_failed")
    broken.write(broken.model(folder=model, handler=handler, workers=2))
    broken.launch()
    assert broken.wait() == 1
    (exited,) = broken.events("template.exited")
    assert exited["cause"] == cause
    assert said in exited["reason"]
    assert (exited["loaded"], exited["next"], exited["failures"]) == (False, "stop", 1)
    assert exited["config"] == "workers.ini:5 [model:echo]"
    if cause == "load_failed":
        assert said in exited["traceback"]
        assert ("service.py" in exited["traceback"]) == (handler == "service" and "has" not in said)
    if "SIGSEGV" in said:
        assert "Fatal Python error: Segmentation fault" in "\n".join(exited["last_lines"])
    (failed,) = broken.events("supervisor.start_failed")
    assert "echo" in failed["reason"]
    assert not broken.events("worker.starting")
    assert not broken.events("supervisor.ready")
    broken.check_nothing_left()


def test_a_load_that_hangs_is_ended_at_its_deadline(instance: Make) -> None:
    """startup_timeout covers the load: cause start_timeout, with the stack that shows where it hangs, exit 1."""
    hung = instance("template.exited", "supervisor.start_failed")
    fault = json.dumps({"do": "sleep"})
    hung.write(hung.model(startup_timeout="1s", env__FAULT_AT_LOAD=fault))
    hung.launch()
    assert hung.wait() == 1
    (exited,) = hung.events("template.exited")
    assert (exited["cause"], exited["signal"]) == ("start_timeout", "SIGABRT")
    assert 1.0 <= exited["uptime_s"] < 5.0
    assert "loading faults" in exited["last_lines"][0]
    (stack,) = hung.events("template.output", kind="traceback")
    assert "in initialize" in stack["line"]


def test_one_broken_model_stops_the_start_of_the_others(instance: Make) -> None:
    """Under the default `exit`, a model that is READY already goes down with the one that does not load."""
    both = instance("template.exited", "supervisor.start_failed")
    fault = json.dumps({"do": "raise"})
    models = both.model("good") + both.model("bad", env__FAULT_AT_LOAD=fault)
    both.write(models)
    both.launch()
    assert both.wait() == 1
    assert [exited["model"] for exited in both.events("template.exited", level="error")] == ["bad"]


def test_continue_serves_on_and_a_mended_model_comes_back(
    instance: Make, mendable: Mendable
) -> None:
    """Back-off between the tries, then FAILED, a degraded ready and connections turned away; `restart MODEL` mends it."""
    mendable.set("raise", text="no weights yet")
    both = instance("template.exited", "restart.failed")
    models = both.model("good") + both.model(
        "echo", workers=2, max_failures=3, env__FAULT_FILE=mendable.path
    )
    both.write(models, "on_start_failure = continue")
    both.start()
    degraded = both.wait_event("supervisor.ready")
    assert (degraded["degraded"], degraded["failed"], degraded["workers"]) == (True, 2, 3)
    exits = both.events("template.exited")
    assert [exited["next"] for exited in exits] == ["restart", "back_off", "failed"]
    assert [exited["failures"] for exited in exits] == [1, 2, 3]
    assert 0.4 <= exits[1]["retry_in_s"] <= 0.6
    assert all("no weights yet" in exited["traceback"] for exited in exits)
    assert [both.worker(index=index)["phase"] for index in (0, 1)] == ["FAILED", "FAILED"]
    assert all(turned_away(both.socket(index=index)) for index in (0, 1))
    assert json.loads(ask(both, "facts", model="good"))["pid"] == both.worker("good")["pid"]

    still = both.cli("restart", "echo", "-c", str(both.config))
    assert still.returncode == 1
    assert "did not load" in still.stderr
    assert turned_away(both.socket())

    mendable.mend()
    mended = both.cli("restart", "echo", "-c", str(both.config))
    assert mended.returncode == 0, mended
    assert len(mended.stdout.splitlines()) == 2
    assert [echo(both, index=index) for index in (0, 1)] == [b"are you there"] * 2
    assert both.worker()["phase"] == "READY"
    assert both.stop() == 0


def test_continue_retries_a_failed_model_by_itself(instance: Make, mendable: Mendable) -> None:
    """After retry_failed_after a FAILED model is loaded again, and its slots are READY without an operator."""
    mendable.set("raise")
    failed = instance("template.exited")
    keys = {"max_failures": 1, "retry_failed_after": "700ms", "env__FAULT_FILE": mendable.path}
    failed.write(failed.model(**keys), "on_start_failure = continue")
    failed.start()
    assert failed.events("template.exited")[0]["retry_in_s"] == 0.7
    mendable.mend()
    ready(failed, 1)
    assert echo(failed) == b"are you there"


def test_killed_while_it_loads_it_is_started_again(instance: Make, mendable: Mendable) -> None:
    """Under `continue` a template that is killed in the middle of its load has a successor, which serves."""
    mendable.set("sleep")
    loading = instance("template.exited")
    loading.write(loading.model(env__FAULT_FILE=mendable.path), "on_start_failure = continue")
    loading.launch()
    pid = loading.wait_event("template.output")["pid"]
    mendable.mend()
    os.kill(pid, signal.SIGKILL)
    exited = loading.wait_event("template.exited")
    assert (exited["cause"], exited["signal"], exited["loaded"]) == ("signal", "SIGKILL", False)
    assert (exited["next"], exited["pid"]) == ("restart", pid)
    assert loading.wait_event("supervisor.ready")["degraded"] is False
    assert echo(loading) == b"are you there"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_while_idle_its_workers_serve_on(running: Running, number: signal.Signals) -> None:
    """One template.exited; the worker keeps its pid; births after that come of the new template."""
    instance = running("template.exited", "worker.exited")
    template, worker = template_pid(instance), instance.worker()["pid"]
    os.kill(template, number)
    exited = instance.wait_event("template.exited")
    assert (exited["cause"], exited["signal"], exited["pid"]) == ("signal", number.name, template)
    assert (exited["loaded"], exited["next"]) == (True, "restart")
    assert exited["config"] == "workers.ini:5 [model:echo]"
    assert echo(instance) == b"are you there"
    assert facts(instance)["pid"] == worker
    assert template_pid(instance, 2) != template
    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    assert instance.events("worker.starting", generation=2)[0]["template"] == 2
    assert len(instance.events("template.exited")) == 1


def test_killed_together_with_its_worker_both_come_back(running: Running) -> None:
    """A slot that has to wait for its template is born of the next one; its clients wait in the backlog."""
    instance = running("template.exited", "worker.exited", "worker.spawn_failed")
    template = template_pid(instance)
    os.kill(template, signal.SIGSTOP)
    kill_worker(instance, signal.SIGKILL)
    instance.wait_event("worker.starting", generation=2)  # asked of the one that will not answer
    os.kill(template, signal.SIGKILL)
    assert echo(instance) == b"are you there"
    (failed,) = instance.events("worker.spawn_failed")
    assert (failed["cause"], failed["generation"]) == ("spawn_failed", 2)
    assert failed["failures"] == 1  # of the idle death before, not of this
    assert ready(instance, 3)["start_s"] < 5


def test_a_template_that_crashes_in_a_loop_backs_off(running: Running) -> None:
    """Its workers serve on while the model has no template; after max_failures only the slow retry is left."""
    instance = running("template.exited", max_failures=2)
    os.kill(template_pid(instance), signal.SIGKILL)
    os.kill(template_pid(instance, 2), signal.SIGKILL)
    exited = instance.wait_event("template.exited", count=2)
    assert (exited["next"], exited["retry_in_s"], exited["failures"]) == ("failed", 60.0, 2)
    assert echo(instance) == b"are you there"
    assert instance.worker()["phase"] == "READY"
    refused = instance.cli("restart", "echo/0", "-c", str(instance.config))
    assert refused.returncode == 1
    assert "restart echo loads it anew" in refused.stderr
    assert instance.cli("restart", "echo", "-c", str(instance.config)).returncode == 0
    assert instance.worker()["generation"] == 2


IMPATIENT = """
import sys
from modelsupervisor.core import slots
slots.FORK_TIMEOUT = 0.7
from modelsupervisor.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_template_that_does_not_fork_when_asked_is_hung(instance: Make) -> None:
    """It is ended with cause hung, and the slot that asked is born of its successor (FORK_TIMEOUT shortened for the test)."""
    hung = instance("template.exited", "worker.exited", "worker.spawn_failed")
    hung.write(hung.model(workers=2))
    line = [sys.executable, "-c", IMPATIENT, "start", "-c", str(hung.config)]
    hung.launch(command=line).wait_event("supervisor.ready")
    os.kill(template_pid(hung), signal.SIGSTOP)
    sibling = hung.worker(index=1)["pid"]
    kill_worker(hung, signal.SIGKILL)
    exited = hung.wait_event("template.exited")
    assert (exited["cause"], exited["signal"], exited["next"]) == ("hung", "SIGABRT", "restart")
    assert any(" in serve" in line for line in exited["last_lines"])
    assert echo(hung) == b"are you there"
    (failed,) = hung.events("worker.spawn_failed")
    assert "did not fork in time" in failed["reason"]
    assert facts(hung, index=1)["pid"] == sibling


# -- the heir ---------------------------------------------------------------------------------------------------------


def test_the_successor_is_the_heir(running: Running) -> None:
    """Who waited for a slot fills the next one that comes free, and another one waits after it."""
    instance = running("worker.exited")
    template = template_pid(instance)
    heir = heir_pid(instance.pid, template)
    kill_worker(instance, signal.SIGKILL)
    assert ready(instance, 2)["pid"] == heir
    assert heir_pid(instance.pid, template) != heir


def test_an_heir_that_is_killed_is_replaced(running: Running) -> None:
    """The template notices, the supervisor keeps no zombie and reports no orphan; the next birth comes as fast as ever."""
    instance = running("worker.exited")
    template = template_pid(instance)
    first = heir_pid(instance.pid, template)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: state_of(first) is None, "the dead heir to be reaped")
    assert heir_pid(instance.pid, template) != first
    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    assert echo(instance) == b"are you there"
    assert not instance.events("worker.spawn_failed")
    assert not instance.events("orphan.adopted")


def test_an_heir_that_dies_with_its_slot_in_hand_is_a_worker_that_died(running: Running) -> None:
    """It was born, so its end is a worker's end; the next generation is alone in its slot."""
    instance = running("worker.exited")
    template = template_pid(instance)
    heir = heir_pid(instance.pid, template)
    os.kill(heir, signal.SIGSTOP)
    wait_for(lambda: state_of(heir) == "T", "the heir to be stopped")
    kill_worker(instance, signal.SIGKILL)
    wait_for(lambda: instance.worker()["pid"] == heir, "the heir to have its slot")
    os.kill(heir, signal.SIGKILL)
    died = instance.wait_event("worker.exited", generation=2)
    assert (died["pid"], died["signal"]) == (heir, "SIGKILL")
    assert echo(instance) == b"are you there"
    worker = instance.worker()["pid"]
    expected = {template, worker, heir_pid(instance.pid, template)}
    wait_for(lambda: set(children_of(instance.pid)) == expected, "one worker to be there")


def test_an_heir_that_hangs_is_a_worker_that_does_not_start(instance: Make) -> None:
    """It is killed at startup_timeout like any worker, and its successor comes."""
    hung = instance("worker.exited")
    hung.write(hung.model(startup_timeout="2s"))
    hung.start()
    heir = heir_pid(hung.pid, template_pid(hung))
    os.kill(heir, signal.SIGSTOP)
    kill_worker(hung, signal.SIGKILL)
    assert hung.wait_event("worker.exited", generation=2)["cause"] == "start_timeout"
    assert echo(hung) == b"are you there"
    assert state_of(heir) is None


def test_an_heir_goes_with_its_template(running: Running) -> None:
    """A killed template leaves no heir, no zombie and no orphan event behind; its workers serve on."""
    instance = running("template.exited")
    template = template_pid(instance)
    heir = heir_pid(instance.pid, template)
    os.kill(template, signal.SIGKILL)
    wait_for(lambda: state_of(heir) is None, "the heir to be gone")
    assert echo(instance) == b"are you there"
    heir_pid(instance.pid, template_pid(instance, 2))
    assert not instance.events("orphan.adopted")


# -- after the fork ---------------------------------------------------------------------------------------------------


def test_after_fork_that_raises_ends_the_start(instance: Make) -> None:
    """The worker says why, with the traceback: cause start_failed, and `start` exits 1 after the first try."""
    broken = instance("worker.exited", "supervisor.start_failed")
    fault = json.dumps({"do": "raise", "text": "no database"})
    broken.write(broken.model(env__FAULT_AFTER_FORK=fault))
    broken.launch()
    assert broken.wait() == 1
    (exited,) = broken.events("worker.exited")
    (failed,) = broken.events("supervisor.start_failed")
    assert failed["config"] == "workers.ini:5 [model:echo]"
    assert (exited["cause"], exited["code"], exited["next"]) == ("start_failed", 1, "stop")
    assert "no database" in exited["reason"]
    assert "service.py" in exited["traceback"]
    assert not broken.events("worker.ready")


def test_after_fork_that_raises_is_tried_again_under_continue(
    instance: Make, mendable: Mendable
) -> None:
    """The slots are FAILED after max_failures, and READY after the cause is mended and `restart MODEL/N`."""
    mendable.set("raise")
    broken = instance("worker.exited", "worker.failed", "restart.failed")
    keys = {"max_failures": 2, "env__FAULT_AFTER_FORK_FILE": mendable.path}
    broken.write(broken.model(**keys), "on_start_failure = continue")
    broken.start()
    assert broken.wait_event("supervisor.ready")["degraded"] is True
    exits = broken.events("worker.exited")
    assert [(each["cause"], each["next"]) for each in exits] == [
        ("start_failed", "restart"),
        ("start_failed", "failed"),
    ]
    again = broken.cli("restart", "echo/0", "-c", str(broken.config))
    assert again.returncode == 1
    assert "did not start" in again.stderr
    mendable.mend()
    assert broken.cli("restart", "echo/0", "-c", str(broken.config)).returncode == 0
    assert echo(broken) == b"are you there"


@pytest.mark.parametrize(
    ("fault", "cause", "code"),
    [({"do": "exit", "code": 9}, "exit", 9), ({"do": "sleep"}, "start_timeout", None)],
)
def test_after_fork_that_never_comes_back(
    instance: Make, fault: dict[str, Any], cause: str, code: int | None
) -> None:
    """A worker that ends or hangs before it is READY is a failure; max_failures of them end the start."""
    broken = instance("worker.exited", "supervisor.start_failed")
    keys = {"startup_timeout": "1s", "max_failures": 1, "env__FAULT_AFTER_FORK": json.dumps(fault)}
    broken.write(broken.model(**keys))
    broken.launch()
    assert broken.wait() == 1
    (exited,) = broken.events("worker.exited")
    assert (exited["cause"], exited["code"], exited["next"]) == (cause, code, "stop")
    stacks = broken.events("worker.output", kind="traceback")
    assert ["in after_fork" in stack["line"] for stack in stacks] == [True] * (code is None)


# -- a template that may not fork -------------------------------------------------------------------------------------


def test_a_fork_that_fails_is_an_event_and_tried_again(instance: Make) -> None:
    """RLIMIT_NPROC forbids the birth: worker.spawn_failed says EAGAIN, the slot backs off and comes back when it is lifted."""
    limited = instance("worker.exited", "worker.spawn_failed")
    limited.write(limited.model(workers=2))
    launch_as_nobody(limited).wait_event("supervisor.ready")
    template = template_pid(limited)
    heir_pid(limited.pid, template)
    limit_processes(template, 0)
    kill_worker(limited, signal.SIGKILL)
    ready(limited, 2)  # the heir needs no fork
    kill_worker(limited, signal.SIGKILL)
    first = limited.wait_event("worker.spawn_failed")
    second = limited.wait_event("worker.spawn_failed", count=2)
    assert "EAGAIN" in first["reason"], first
    assert (first["cause"], first["failures"], first["next"]) == ("spawn_failed", 3, "back_off")
    assert (second["failures"], second["generation"]) == (4, 4)
    assert echo(limited, index=1) == b"are you there"
    limit_processes(template, 1000)
    assert echo(limited) == b"are you there"
    assert limited.worker()["generation"] == 5
    assert template_pid(limited) == template
    assert limited.stop() == 0


def test_a_template_that_cannot_fork_at_all_ends_the_start(instance: Make) -> None:
    """A first birth that fails max_failures times in a row is a failed start."""
    limited = instance("worker.spawn_failed", "supervisor.start_failed")
    limited.write(limited.model(max_failures=2, env__FAULT_AT_LOAD=json.dumps({"do": "no_forks"})))
    launch_as_nobody(limited)
    assert limited.wait() == 1
    failed = limited.events("worker.spawn_failed")
    assert [each["next"] for each in failed] == ["restart", "stop"]
    assert "EAGAIN" in failed[1]["reason"]
