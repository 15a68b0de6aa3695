"""An operator's restart of a model or of one worker, as the command line asks for it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelsupervisor.client import Client
from modelsupervisor.errors import ClientError
from support.faults import ask, echo, facts, inode, ready, template_pid
from support.instance import Instance, alive, environment, wait_for
from support.mendable import Mendable

Running = Callable[..., Instance]


def _restart(instance: Instance, target: str) -> subprocess.CompletedProcess[str]:
    return instance.cli("restart", target, "-c", str(instance.config))


def _begin_restart(instance: Instance, target: str) -> subprocess.Popen[str]:
    """The restart command, running."""
    line = ["-m", "modelsupervisor", "restart", target, "-c", str(instance.config)]
    return subprocess.Popen(
        [sys.executable, *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment("cli-" + instance.mark),
    )


def test_restart_of_a_model_loads_what_is_in_its_folder_now(
    running: Running, short_tmp: Path
) -> None:
    """A new template first, then every worker, one at a time, on the same sockets; the old template is sent away."""
    model = short_tmp / "model"
    model.mkdir()
    code = "def handle(data, context):\n    return [b'%s'] * len(data) if data else []\n"
    (model / "service.py").write_text(code % "old")
    instance = running(folder=model, workers=2)
    old = template_pid(instance)
    before = [inode(instance.socket(index=index)) for index in (0, 1)]
    assert [echo(instance, index=index) for index in (0, 1)] == [b"old", b"old"]
    (model / "service.py").write_text(code % "new")
    done = _restart(instance, "echo")
    assert done.returncode == 0, done
    pids = [instance.worker(index=index)["pid"] for index in (0, 1)]
    assert done.stdout.splitlines() == [
        f"echo/{index}\tgeneration 2\tpid {pids[index]}" for index in (0, 1)
    ]
    assert [echo(instance, index=index) for index in (0, 1)] == [b"new", b"new"]
    assert [inode(instance.socket(index=index)) for index in (0, 1)] == before
    gone = instance.wait_event("template.exited", generation=1)
    assert (gone["cause"], gone["level"], gone["pid"]) == ("stopped", "info", old)
    exits = instance.events("worker.exited")
    assert [each["cause"] for each in exits] == ["stopped", "stopped"]
    assert [(each["code"], each["level"]) for each in exits] == [(0, "info")] * 2
    # One at a time: the second was told to stop only after the first's successor was READY.
    story = [
        (event["event"], event["worker"])
        for event in instance.events()
        if event["event"] in ("worker.stopping", "worker.ready") and event["seq"] > gone["seq"] - 99
    ]
    assert story[-4:] == [
        ("worker.stopping", 0),
        ("worker.ready", 0),
        ("worker.stopping", 1),
        ("worker.ready", 1),
    ]


def test_restart_with_a_broken_version_leaves_the_old_one_serving(
    running: Running, mendable: Mendable
) -> None:
    """Exit 1 with the reason; same template, same worker, same answers; the next restart of a mended one succeeds."""
    instance = running("template.exited", "restart.failed", env__FAULT_FILE=mendable.path)
    template, worker = template_pid(instance), instance.worker()["pid"]
    mendable.set("raise", text="weights of another model")
    failed = _restart(instance, "echo")
    assert failed.returncode == 1
    assert "did not load" in failed.stderr
    assert "serves on" in failed.stderr
    exited = instance.wait_event("template.exited")
    assert (exited["generation"], exited["cause"], exited["next"]) == (2, "load_failed", "none")
    assert "weights of another model" in exited["traceback"]
    assert facts(instance)["pid"] == worker
    assert alive(template)
    mendable.mend()
    assert _restart(instance, "echo").returncode == 0
    assert echo(instance) == b"are you there"
    assert instance.worker()["pid"] != worker


def test_restart_whose_first_new_worker_does_not_start_says_so(
    running: Running, mendable: Mendable
) -> None:
    """The template loads, after_fork fails: exit 1, and the other worker of the old version serves on."""
    instance = running(
        "worker.exited", "restart.failed", workers=2, env__FAULT_AFTER_FORK_FILE=mendable.path
    )
    second = instance.worker(index=1)["pid"]
    mendable.set("raise", text="no licence")
    failed = _restart(instance, "echo")
    assert failed.returncode == 1
    assert "echo/0 did not start" in failed.stderr
    assert facts(instance, index=1)["pid"] == second
    mendable.mend()
    assert echo(instance) == b"are you there"  # its back-off goes on by itself


def test_restart_of_one_worker_is_a_fork_of_the_present_template(running: Running) -> None:
    """Generation 2 in that slot alone, no new template."""
    instance = running(workers=2)
    sibling = instance.worker(index=0)["pid"]
    done = _restart(instance, "echo/1")
    assert done.returncode == 0
    assert done.stdout == f"echo/1\tgeneration 2\tpid {instance.worker(index=1)['pid']}\n"
    assert facts(instance, index=0)["pid"] == sibling
    assert len(instance.events("template.starting")) == 1


@pytest.mark.parametrize(
    ("target", "said"),
    [("other", "there is no model other"), ("echo/7", "there is no worker echo/7")],
)
def test_restart_of_what_is_not_there(running: Running, target: str, said: str) -> None:
    """Exit 1, naming what there is; nothing was restarted."""
    instance = running()
    refused = _restart(instance, target)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert instance.worker()["generation"] == 1


def test_restart_while_a_restart_is_under_way_is_refused(
    running: Running, mendable: Mendable
) -> None:
    """Two operators: the second is told at once, the first gets its answer."""
    instance = running(env__FAULT_FILE=mendable.path, startup_timeout="20s")
    mendable.set("sleep", seconds=1)
    first = _begin_restart(instance, "echo")
    instance.wait_event("template.starting", generation=2)
    second = _restart(instance, "echo/0")
    assert second.returncode == 1
    assert "under way" in second.stderr
    assert first.communicate(timeout=30)[1] == ""
    assert first.returncode == 0


def test_restart_is_answered_when_the_supervisor_stops_meanwhile(
    running: Running, mendable: Mendable
) -> None:
    """Whoever waits for a restart is told that it will not come, and the stop is not held up by the load."""
    instance = running(env__FAULT_FILE=mendable.path)
    mendable.set("sleep")
    waiting = _begin_restart(instance, "echo")
    instance.wait_event("template.output", generation=2)
    assert instance.stop() == 0
    _, said = waiting.communicate(timeout=30)
    assert waiting.returncode == 1
    assert "stopping" in said


def test_restart_finishes_the_batch_in_hand(running: Running) -> None:
    """The worker that is replaced answers what it has, and only then goes."""
    instance = running()
    answers: list[bytes] = []
    caller = threading.Thread(target=lambda: answers.append(ask(instance, "sleep", seconds=1)))
    caller.start()
    record = instance.run_dir / "scoreboard"
    wait_for(lambda: record.read_bytes()[32] == 1, "the request to be in hand")
    assert _restart(instance, "echo/0").returncode == 0
    caller.join()
    assert answers == [b"done"]
    exited = instance.wait_event("worker.exited")
    assert (exited["cause"], exited["requests"], exited["in_hand"]) == ("stopped", 1, [])
    ready(instance, 2)


def test_restart_under_load_loses_no_request(running: Running) -> None:
    """Clients are all answered while a model's workers are replaced under them, one by one.

    A request that was read and waited in the worker's queue when the stop came is asked again, as the client does by default.
    """
    instance = running(workers=2)
    over = threading.Event()
    answered: list[int] = []
    troubles: list[ClientError] = []

    def call() -> None:
        count = 0
        with Client.from_run_dir(str(instance.run_dir), "echo") as client:
            while not over.is_set():
                try:
                    assert client.predict(b"%d" % count).body == b"%d" % count
                except ClientError as error:
                    troubles.append(error)
                    break
                count += 1
        answered.append(count)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    done = [_restart(instance, target).returncode for target in ("echo", "echo/0", "echo/1")]
    over.set()
    for caller in callers:
        caller.join()
    assert done == [0, 0, 0]
    assert not troubles, troubles
    assert min(answered) > 0
    assert {event["cause"] for event in instance.events("worker.exited")} == {"stopped"}
