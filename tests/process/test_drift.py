"""worker.drift: handlers that change their CPUs or threads, CPUs that go away, and what is no drift."""

from __future__ import annotations

import ctypes.util
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from support.cgroups import control_group
from support.faults import ask, echo, kill_worker, ready
from support.instance import Instance

Running = Callable[..., Instance]
Make = Callable[..., Instance]

ALLOWED = sorted(os.sched_getaffinity(0))
two_cpus = pytest.mark.skipif(len(ALLOWED) < 2, reason="a thread cannot stray on one CPU")
libgomp = pytest.mark.skipif(
    ctypes.util.find_library("gomp") is None, reason="there is no libgomp.so.1 here"
)
FIRST, LAST = ALLOWED[0], ALLOWED[-1]


def stray(**more: Any) -> str:
    """A fault, as a variable holds it: go where the plan has nobody."""
    return json.dumps({"do": "stray", "cpus": [LAST], **more})


def drift_of(instance: Instance, index: int = 0) -> list[str] | None:
    """What `status` says."""
    found: list[str] | None = instance.worker(index=index)["drift"]
    return found


def test_as_planned_there_is_no_drift(running: Running) -> None:
    """Neither an event nor a word in `status`, of workers that are pinned and of those that float."""
    instance = running(workers=2)
    assert [drift_of(instance, index) for index in (0, 1)] == [None, None]
    assert instance.stop() == 0
    assert not instance.events("worker.drift")


@two_cpus
def test_a_handler_that_moves_itself_after_the_fork(running: Running) -> None:
    """One event for each generation, with both sides; READY all the same, and in `status` for people too."""
    instance = running("worker.exited", cpus=FIRST, env__FAULT_AFTER_FORK=stray())
    drift = instance.wait_event("worker.drift", generation=1)
    assert (drift["what"], drift["planned"], drift["found"]) == ("cpus", str(FIRST), str(LAST))
    assert drift["pid"] == ready(instance, 1)["pid"]
    words = f"its one thread may run on CPU {LAST}; planned: CPU {FIRST}"
    assert drift["reason"] == words
    assert drift_of(instance) == [words]
    story = instance.cli("status", "echo/0", "-c", str(instance.config))
    assert f"It is not as planned: {words}." in story.stdout
    kill_worker(instance, signal.SIGKILL)
    instance.wait_event("worker.drift", generation=2)
    assert len(instance.events("worker.drift")) == 2


@two_cpus
def test_a_thread_of_its_own(running: Running) -> None:
    """Every thread is looked at, not only the first."""
    instance = running(cpus=FIRST, env__FAULT_AFTER_FORK=stray(thread=True))
    assert instance.wait_event("worker.drift")["reason"] == (
        f"1 of 2 threads may run on CPU {LAST}; planned: CPU {FIRST}"
    )


@two_cpus
def test_a_handler_that_moves_itself_while_it_serves(running: Running) -> None:
    """The look from outside finds it after READY, once however often it looks."""
    instance = running(cpus=FIRST)
    ask(instance, "stray", cpus=[LAST], thread=True)
    for _ in range(2):
        assert drift_of(instance) == [f"1 of 2 threads may run on CPU {LAST}; planned: CPU {FIRST}"]
    assert instance.stop() == 0
    assert len(instance.events("worker.drift")) == 1


WATCHFUL = """
import sys
from modelsupervisor.runtime import drift
drift.LOOK_EVERY = 0.2
from modelsupervisor.cli import main
sys.exit(main(sys.argv[1:]))
"""


@two_cpus
def test_nobody_has_to_ask_for_it(instance: Make) -> None:
    """At the periodic looks at workers it is found, without a command (LOOK_EVERY is shortened for the test)."""
    watched = instance()
    watched.write(watched.model(cpus=FIRST, response_timeout="1s"))
    line = [sys.executable, "-c", WATCHFUL, "start", "-c", str(watched.config)]
    watched.launch(command=line).wait_event("supervisor.ready")
    ask(watched, "stray", cpus=[LAST], thread=True)
    assert watched.wait_event("worker.drift")["found"] == str(LAST)


@two_cpus
def test_what_is_no_drift(instance: Make) -> None:
    """A worker that floats; and a thread on one of the planned CPUs, where OMP_PROC_BIND has the operator bind them so."""
    made = instance()
    bound = {"cpus": f"{FIRST},{LAST}", "env__OMP_PROC_BIND": "true"}
    floating = made.model(cpus="none", env__FAULT_AFTER_FORK=stray())
    made.write(floating + made.model("bound", **bound, env__FAULT_AFTER_FORK=stray(thread=True)))
    made.start()
    assert [made.worker(model)["drift"] for model in ("echo", "bound")] == [None, None]
    assert not made.events("worker.drift")


@libgomp
def test_a_handler_that_changes_the_openmp_count(instance: Make) -> None:
    """The runtime is named, with both numbers. What the model did while it loaded is none: the worker set it anew."""
    at_load, later = json.dumps({"do": "openmp", "threads": 5}), {"do": "openmp", "threads": 7}
    made = instance()
    keys = {"threads": 2, "env__FAULT_AT_LOAD": at_load}
    models = made.model(**keys, env__FAULT_AFTER_FORK=json.dumps(later))
    made.write(models + made.model("docile", **keys))
    made.start()
    drift = made.wait_event("worker.drift")
    assert (drift["what"], drift["planned"], drift["found"]) == ("threads", "2", "7")
    assert drift["reason"].startswith("libgomp.so.1")
    assert made.worker()["drift"] == [drift["reason"]]
    assert made.worker("docile")["drift"] is None
    assert len(made.events("worker.drift")) == 1


@libgomp
@pytest.mark.parametrize("preload", ["import", "none"])
def test_a_worker_that_loads_its_own_copy(running: Running, preload: str) -> None:
    """Its OpenMP runtime is looked for in the worker, where alone it is; what `initialize` did to it there is a drift."""
    fault = json.dumps({"do": "openmp", "threads": 7})
    instance = running(threads=2, preload=preload, env__FAULT_AT_LOAD=fault)
    drift = instance.wait_event("worker.drift")
    assert (drift["what"], drift["planned"], drift["found"]) == ("threads", "2", "7")


def test_a_worker_that_attests_nonsense(running: Running) -> None:
    """It is a bad message; the worker serves."""
    instance = running()
    ask(instance, "babble", messages=[json.dumps({"kind": "attested", "tasks": 7})])
    assert instance.wait_event("worker.bad_message")["reason"].startswith("attested: ")
    assert echo(instance) == b"are you there"


@two_cpus
def test_a_cpuset_that_loses_a_cpu(instance: Make) -> None:
    """The words say where the CPU went; a worker born after that is told of, too, and one that has none left cannot start."""
    with control_group("cpuset") as group:
        group.set("cpuset.mems", "0")
        group.set("cpuset.cpus", ",".join(map(str, ALLOWED)))
        shrunk = instance("worker.exited")
        shrunk.write(shrunk.model(cpus=f"{FIRST},{LAST}") + shrunk.model("last", cpus=LAST))
        line = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(shrunk.config)]
        shrunk.launch(command=group.enter(*line)).wait_event("supervisor.ready")
        group.set("cpuset.cpus", FIRST)
        why = f"; CPU {LAST} is not in the cpuset any more"
        (told,) = drift_of(shrunk) or []
        assert told.endswith(why)
        assert shrunk.wait_event("worker.drift", model="echo")["found"] == str(FIRST)
        kill_worker(shrunk, signal.SIGKILL)
        assert shrunk.wait_event("worker.drift", generation=2)["reason"].endswith(why)
        kill_worker(shrunk, signal.SIGKILL, model="last")
        declined = shrunk.wait_event("worker.exited", model="last", generation=2)
        assert declined["cause"] == "start_failed"
        assert f"none of the planned CPUs ({LAST}) may be used" in declined["reason"]
        assert shrunk.stop() == 0


BLINDED = """
import sys
from modelsupervisor.runtime import machine, oom
machine.NODE_FOLDER = "sys/nowhere"
oom.kill_counters = lambda root: []
from modelsupervisor.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_what_cannot_be_read_of_the_machine_is_told_at_the_start(instance: Make) -> None:
    """machine.degraded, one for each thing and what is assumed instead (two places that are there everywhere are hidden here)."""
    blinded = instance("worker.exited")
    blinded.write(blinded.model())
    line = [sys.executable, "-c", BLINDED, "start", "-c", str(blinded.config)]
    blinded.launch(command=line).wait_event("supervisor.ready")
    said = [event["reason"] for event in blinded.events("machine.degraded")]
    assert "There is no /sys/nowhere: one NUMA node is assumed." in said
    assert any("No counter of the kernel's out-of-memory kills" in reason for reason in said)
    assert blinded.events()[0]["event"] == "supervisor.starting"
    kill_worker(blinded, signal.SIGKILL)
    assert blinded.wait_event("worker.exited")["cause"] == "signal"
