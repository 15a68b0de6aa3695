"""Memory that runs out: what Python says itself, limits, and the kernel's own kills; each cause with its evidence, or none."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelsupervisor.errors import PredictionFailedError
from support.cgroups import Group, control_group
from support.faults import ask, crash, echo, kill_worker, ready, template_pid
from support.instance import Instance
from support.mendable import Mendable

Running = Callable[..., Instance]
Make = Callable[..., Instance]

MIB = 1 << 20
# Far more than the answer and its event need; but filled with small objects, so that nothing is left of it
ROOM = 64 * MIB


def test_memory_that_runs_out_in_a_request(running: Running) -> None:
    """507 as MMS has it, an event with the ids, and the worker goes on with the memory that the request had filled."""
    instance = running("request.failed")
    pid = ready(instance, 1)["pid"]
    for number in range(2):
        with pytest.raises(PredictionFailedError) as raised:
            ask(instance, "fill", request_id=f"r{number}", room=ROOM)
        assert raised.value.code == 507
    failed = instance.wait_event("request.failed", count=2)
    assert (failed["code"], failed["error"]) == (507, "MemoryError")
    assert failed["request_ids"] == ["r1"]
    assert "kept.append" in failed["traceback"]
    assert echo(instance) == b"are you there"
    assert instance.worker()["pid"] == pid


@pytest.mark.parametrize("hook", ["FAULT_AT_LOAD", "FAULT_AFTER_FORK"])
def test_memory_that_runs_out_at_the_start(instance: Make, hook: str) -> None:
    """While it loads the template says so, after the fork the worker does: cause memory, with the traceback."""
    name = "template.exited" if hook == "FAULT_AT_LOAD" else "worker.exited"
    broken = instance(name, "supervisor.start_failed")
    fault = json.dumps({"do": "fill", "room": ROOM})
    broken.write(broken.model(**{f"env__{hook}": fault}))
    broken.launch()
    assert broken.wait() == 1
    (exited,) = broken.events(name)
    assert (exited["cause"], exited["next"]) == ("memory", "stop")
    assert "MemoryError" in exited["reason"]
    assert "kept.append" in exited["traceback"]
    assert "evidence" not in exited


def test_a_limit_of_the_operators(instance: Make, short_tmp: Path) -> None:
    """Below `ulimit -v` a load that needs more is cause memory: it is what Python said, whoever set the limit."""
    limited = instance("template.exited", "supervisor.start_failed")
    fault = {"do": "fill", "piece": 64 * MIB}
    limited.write(limited.model(env__FAULT_AT_LOAD=json.dumps(fault)))
    line = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(limited.config)]
    shell = ["sh", "-c", f'ulimit -v {1024 * 1024} && exec "$@"', "sh"]
    limited.launch(command=[*shell, *line])
    assert limited.wait() == 1
    assert limited.events("template.exited")[0]["cause"] == "memory"


def test_a_crash_below_a_limit_claims_nothing(running: Running) -> None:
    """What C++ does without memory is SIGABRT, and so are other bugs: the cause is the signal, the limit a fact beside it."""
    instance = running("worker.exited")
    crash(instance, "abort", limit=64 << 30)
    exited = instance.wait_event("worker.exited")
    assert (exited["cause"], exited["signal"]) == ("signal", "SIGABRT")
    assert exited["evidence"].startswith("RLIMIT_AS was 64.00 GiB; at most ")
    assert exited["peak_rss_bytes"] > MIB
    story = instance.cli("status", "echo/0", "-c", str(instance.config))
    assert f"    memory     {exited['evidence']}" in story.stdout


def test_a_kill_without_evidence_is_a_signal(running: Running) -> None:
    """`kill -9` of a worker and of a template: the counter stands, and nothing is claimed."""
    instance = running("worker.exited", "template.exited")
    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    os.kill(template_pid(instance), signal.SIGKILL)
    for name in ("worker.exited", "template.exited"):
        exited = instance.wait_event(name)
        assert (exited["cause"], exited["signal"]) == ("signal", "SIGKILL")
        assert "evidence" not in exited


def test_a_spare_that_lacks_memory(running: Running, mendable: Mendable) -> None:
    """Its end has the same causes as a worker's; the slots serve on, and another spare comes once there is memory."""
    mendable.mend()
    instance = running(spares=1, env__FAULT_AFTER_FORK_FILE=mendable.path)
    first = instance.wait_event("spare.ready")["pid"]
    mendable.set("fill", room=ROOM)
    os.kill(first, signal.SIGKILL)
    killed = instance.wait_event("spare.exited")
    assert (killed["cause"], "evidence" in killed) == ("signal", False)
    assert instance.wait_event("spare.exited", count=2)["cause"] == "memory"
    mendable.mend()
    instance.wait_event("spare.ready", count=2)
    assert echo(instance) == b"are you there"


# -- the kernel ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tight() -> Iterator[Group]:
    """A control group with 256 MiB of memory and no swap."""
    with control_group("memory") as group:
        if group.version == 1:
            group.set("memory.limit_in_bytes", 256 * MIB)
            if group.has("memory.memsw.limit_in_bytes"):
                group.set("memory.memsw.limit_in_bytes", 256 * MIB)
        else:
            group.set("memory.max", 256 * MIB)
            if group.has("memory.swap.max"):
                group.set("memory.swap.max", 0)
        yield group


def launch_in(group: Group, instance: Instance) -> Instance:
    """Start the supervisor, and so everything that it starts, in a control group."""
    line = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(instance.config)]
    return instance.launch(command=group.enter(*line))


def test_a_real_kill_for_want_of_memory(instance: Make, tight: Group) -> None:
    """Cause oom_suspected, with the counter that rose, and a successor; a `kill -9` after it has no evidence and no such cause."""
    killed = instance("worker.exited")
    killed.write(killed.model(workers=2))
    launch_in(tight, killed).wait_event("supervisor.ready")
    crash(killed, "fill", piece=MIB)
    exited = killed.wait_event("worker.exited", worker=0)
    assert (exited["cause"], exited["signal"]) == ("oom_suspected", "SIGKILL")
    assert str(tight.path) in exited["evidence"]
    assert "rose from 0 to 1" in exited["evidence"]
    assert exited["in_hand"] != []
    assert exited["peak_rss_bytes"] > 100 * MIB
    assert echo(killed) == b"are you there"
    kill_worker(killed, signal.SIGKILL, index=1)
    other = killed.wait_event("worker.exited", worker=1)
    assert (other["cause"], other["signal"]) == ("signal", "SIGKILL")
    assert "evidence" not in other
    assert killed.worker()["last_crash"]["evidence"] == exited["evidence"]
    story = killed.cli("status", "echo/0", "-c", str(killed.config)).stdout
    assert "    cause      oom_suspected\n" in story
    assert f"    memory     {exited['evidence']}\n" in story
    assert killed.stop() == 0


def test_a_template_that_is_killed_for_want_of_memory(
    instance: Make, tight: Group, mendable: Mendable
) -> None:
    """The same while a model loads; it is tried again, and serves once it needs less."""
    mendable.set("fill", piece=MIB)
    killed = instance("template.exited")
    killed.write(killed.model(env__FAULT_FILE=mendable.path), "on_start_failure = continue")
    launch_in(tight, killed)
    exited = killed.wait_event("template.exited")
    assert (exited["cause"], exited["signal"]) == ("oom_suspected", "SIGKILL")
    assert "rose from 0 to 1" in exited["evidence"]
    mendable.mend()
    killed.wait_event("template.ready")
    assert echo(killed) == b"are you there"
    assert killed.stop() == 0
