"""Spares: workers that wait for a slot, take it when its process dies, and harm nobody when they die themselves or do not come."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

from support.faults import Caller, crash, echo, facts, kill_worker, ready, request, template_pid
from support.instance import Instance, alive, children_of, wait_for
from support.mendable import Mendable

Running = Callable[..., Instance]


def _parked(instance: Instance, number: int) -> dict[str, Any]:
    return instance.wait_event("spare.ready", spare=number)


def test_the_spare_takes_over(running: Running) -> None:
    """It is what serves next, on the slot's CPUs, with the slot's output; and another spare is born for the next time."""
    instance = running("worker.exited", workers=2, spares=1)
    spare = _parked(instance, 1)
    (status,) = instance.status()["models"]
    assert status["spares_wanted"] == 1
    assert status["spares"] == [{"number": 1, "phase": "PARKED", "pid": spare["pid"]}]
    before = facts(instance, index=1)
    kill_worker(instance, signal.SIGKILL, index=1)
    seated = ready(instance, 2, index=1)
    assert seated["pid"] == spare["pid"]
    (starting,) = instance.events("worker.starting", worker=1, generation=2)
    assert starting["spare"] == 1
    now = facts(instance, index=1)
    assert now["pid"] == spare["pid"] and now["ppid"] == instance.pid
    assert (now["sid"], now["pgid"]) == (now["pid"], now["pid"])
    assert set(map(tuple, now["affinity"].values())) == set(map(tuple, before["affinity"].values()))
    assert _kinds(now) == _kinds(before)
    assert _parked(instance, 2)["pid"] != spare["pid"]
    crash(instance, "all", of=[{"do": "print", "text": "last words"}, {"do": "kill"}], index=1)
    died = instance.wait_event("worker.exited", worker=1, generation=2)
    assert died["last_lines"] == ["last words 0"]
    _parked(instance, 3)


def _kinds(told: dict[str, Any]) -> list[str]:
    """What a worker has open, without the numbers that differ from worker to worker."""
    return sorted((name or "closed").partition(":")[0] for name in told["fds"].values())


def test_who_asked_the_dead_worker_is_answered_by_the_spare(running: Running) -> None:
    """Those in the backlog notice nothing."""
    instance = running("worker.exited", spares=1)
    _parked(instance, 1)
    pid = instance.worker()["pid"]
    os.kill(pid, signal.SIGSTOP)
    with Caller(instance.socket(), b"patience") as caller:
        os.kill(pid, signal.SIGKILL)
        assert caller.answer() == b"patience"
    assert instance.worker()["pid"] != pid


def test_a_spare_that_dies_harms_nothing(running: Running) -> None:
    """It is told as a warning, another one is born, and no worker is touched."""
    instance = running(workers=2, spares=2)
    first, second = _parked(instance, 1), _parked(instance, 2)
    os.kill(first["pid"], signal.SIGKILL)
    os.kill(second["pid"], signal.SIGSEGV)
    gone = instance.wait_event("spare.exited", spare=1)
    assert (gone["cause"], gone["signal"], gone["level"]) == ("signal", "SIGKILL", "warning")
    assert instance.wait_event("spare.exited", spare=2)["signal"] == "SIGSEGV"
    assert {_parked(instance, 3)["pid"], _parked(instance, 4)["pid"]} <= set(
        children_of(instance.pid)
    )
    assert [instance.worker(index=index)["generation"] for index in (0, 1)] == [1, 1]
    assert echo(instance) and not instance.events("worker.exited")


def test_a_spare_and_its_worker_that_die_together(running: Running) -> None:
    """The slot is served by what the template forks, as if there had never been a spare."""
    instance = running("worker.exited", spares=1)
    spare = _parked(instance, 1)
    instance.signal(signal.SIGSTOP)
    pid = kill_worker_of(instance)
    os.kill(spare["pid"], signal.SIGKILL)
    instance.signal(signal.SIGCONT)
    assert echo(instance, b"still here") == b"still here"
    assert instance.worker()["pid"] not in (pid, spare["pid"])


def kill_worker_of(instance: Instance) -> int:
    """Kill worker 0 without asking a supervisor that is stopped."""
    (event,) = instance.events("worker.ready", worker=0)
    pid: int = event["pid"]
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_spare_that_cannot_start_is_tried_again_later_and_later(
    running: Running, mendable: Mendable
) -> None:
    """With its traceback in the one event; the workers that serve go on serving, and a mended one is parked."""
    instance = running(spares=1, env__FAULT_AFTER_FORK_FILE=mendable.path)
    pid = _parked(instance, 1)["pid"]
    mendable.set("raise", text="no more copies")
    os.kill(pid, signal.SIGKILL)
    failed = instance.wait_event("spare.exited", cause="start_failed", failures=3, limit=60)
    assert "no more copies" in failed["reason"] and "Traceback" in failed["traceback"]
    assert failed["retry_in_s"] > 0.3
    assert echo(instance)
    mendable.mend()
    assert alive(instance.wait_event("spare.ready", count=2)["pid"])
    assert instance.worker()["restarts"] == 0


def test_a_spare_that_is_slow_to_come_is_not_waited_for(
    running: Running, mendable: Mendable
) -> None:
    """A worker that dies meanwhile is followed by one from the template."""
    instance = running("worker.exited", spares=1, env__FAULT_AFTER_FORK_FILE=mendable.path)
    first = _parked(instance, 1)
    mendable.set("wait_for_file", path=str(mendable.path.parent / "go"))
    kill_worker(instance, signal.SIGKILL)
    assert ready(instance, 2)["pid"] == first["pid"]
    wait_for(lambda: instance.status()["models"][0]["spares"], "the next spare to be born")
    assert instance.status()["models"][0]["spares"][0]["phase"] == "STARTING"
    mendable.mend()
    kill_worker(instance, signal.SIGKILL)
    assert ready(instance, 3)["pid"] != first["pid"]
    assert echo(instance)
    (mendable.path.parent / "go").touch()
    _parked(instance, 2)


def test_a_spare_that_never_comes_is_ended(running: Running, mendable: Mendable) -> None:
    """At startup_timeout, like any worker; what serves is not touched."""
    instance = running(spares=1, startup_timeout="3s", env__FAULT_AFTER_FORK_FILE=mendable.path)
    _parked(instance, 1)
    mendable.set("sleep")
    os.kill(instance.events("spare.ready")[0]["pid"], signal.SIGKILL)
    late = instance.wait_event("spare.exited", spare=2)
    assert late["cause"] == "start_timeout" and "startup_timeout" in late["reason"]
    assert echo(instance)
    mendable.mend()


def test_a_spare_outlives_its_template(running: Running) -> None:
    """It is of the version that is served: a worker that dies before the new template has loaded is replaced all the same."""
    instance = running("worker.exited", "template.exited", spares=1)
    spare = _parked(instance, 1)
    os.kill(template_pid(instance), signal.SIGKILL)
    instance.wait_event("template.exited")
    kill_worker(instance, signal.SIGKILL)
    assert ready(instance, 2)["pid"] == spare["pid"]
    _parked(instance, 2)


def test_spares_of_an_older_version_go(running: Running) -> None:
    """After an operator's restart of the model every worker and every spare is of the new template."""
    instance = running(workers=2, spares=1)
    old = _parked(instance, 1)
    assert instance.cli("restart", "echo", "-c", str(instance.config)).returncode == 0
    gone = instance.wait_event("spare.exited", spare=1)
    assert (gone["cause"], gone["level"]) == ("stopped", "info")
    assert not alive(old["pid"])
    (entry,) = wait_for(
        lambda: [
            spare
            for spare in instance.status()["models"][0]["spares"]
            if spare["phase"] == "PARKED"
        ],
        "a spare of the new template",
    )
    assert entry["number"] > 1


def test_a_stop_ends_spares_in_every_state(running: Running, mendable: Mendable) -> None:
    """Parked, and still starting: nothing is left, and each has its one event."""
    instance = running(spares=2, env__FAULT_AFTER_FORK_FILE=mendable.path)
    _parked(instance, 2)
    mendable.set("sleep")
    os.kill(instance.events("spare.ready", spare=1)[0]["pid"], signal.SIGKILL)
    wait_for(
        lambda: [
            spare
            for spare in instance.status()["models"][0]["spares"]
            if spare["phase"] == "STARTING" and spare["pid"]
        ],
        "a spare that starts",
    )
    assert instance.stop() == 0
    ends = {event["spare"]: event["cause"] for event in instance.events("spare.exited")}
    assert ends == {1: "signal", 2: "stopped", 3: "stopped"}


def test_a_spare_dies_with_the_supervisor(running: Running) -> None:
    """No orphan, however it was killed."""
    instance = running(spares=1)
    spare = _parked(instance, 1)
    instance.signal(signal.SIGKILL)
    instance.wait()
    wait_for(lambda: not alive(spare["pid"]), "the spare to be gone")
    for left in instance.run_dir.iterdir():
        left.unlink()


def test_what_a_spare_says_is_not_believed(running: Running) -> None:
    """The code of its model has its channel: a message out of place is told or changes nothing."""
    messages = [json.dumps({"kind": kind}) for kind in ("ready", "parked", "worn", "nonsense")]
    said = json.dumps({"do": "babble", "messages": messages})
    instance = running(spares=1, env__FAULT_AFTER_FORK=said)
    _parked(instance, 1)
    with Caller(instance.socket(), request("nothing")) as caller:
        assert caller.answer() == b"done"
