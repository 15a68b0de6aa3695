"""The life of a worker, seen from outside: it dies in every way, and is back on the same socket."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from modelsupervisor.client import Client
from modelsupervisor.errors import ClientError, PredictionFailedError, WorkerCrashedError
from support.faults import (
    Caller,
    ask,
    crash,
    echo,
    heir_pid,
    inode,
    kill_worker,
    ready,
    request,
    template_pid,
    turned_away,
)
from support.instance import LIMIT, Instance, children_of, state_of, wait_for
from support.mendable import Mendable

Running = Callable[..., Instance]


def only_exit(instance: Instance) -> dict[str, Any]:
    """The one `worker.exited` that there is; a second one fails the test."""
    exits = instance.events("worker.exited")
    assert len(exits) == 1, exits
    return exits[0]


def test_a_supervisor_starts_serves_and_stops(running: Running) -> None:
    """Ready means served; TERM means exit 0 and nothing left."""
    instance = running()
    with Client.from_run_dir(str(instance.run_dir), "echo") as client:
        assert client.predict(b"hello").body == b"hello"
    assert instance.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_from_outside_while_idle(running: Running, number: signal.Signals) -> None:
    """One worker.exited with the signal, counted as a failure, and a successor on the same socket inode."""
    instance = running("worker.exited")
    before = inode(instance.socket())
    pid = kill_worker(instance, number)
    ready(instance, 2)
    exited = only_exit(instance)
    assert (exited["cause"], exited["signal"], exited["code"]) == ("signal", number.name, None)
    assert (exited["pid"], exited["generation"], exited["worker"]) == (pid, 1, 0)
    assert (exited["requests"], exited["in_hand"], exited["failures"]) == (0, [], 1)
    assert "while idle" in exited["reason"]
    assert (exited["next"], exited["level"]) == ("restart", "error")
    assert echo(instance, b"again") == b"again"
    assert inode(instance.socket()) == before
    worker = instance.worker()
    assert (worker["phase"], worker["generation"], worker["restarts"]) == ("READY", 2, 1)
    assert (worker["last_exit"]["signal"], worker["last_exit"]["generation"]) == (number.name, 1)


DEATHS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("kill", {}, {"cause": "signal", "signal": "SIGKILL", "code": None}),
    ("kill", {"signal": 15}, {"cause": "signal", "signal": "SIGTERM", "code": None}),
    ("kill", {"signal": 6}, {"cause": "signal", "signal": "SIGABRT", "code": None}),
    ("segfault", {}, {"cause": "signal", "signal": "SIGSEGV", "code": None}),
    ("exit", {"code": 3}, {"cause": "exit", "signal": None, "code": 3}),
    ("exit", {"code": 0}, {"cause": "exit", "signal": None, "code": 0}),
    ("sys_exit", {"code": 4}, {"cause": "exit", "signal": None, "code": 4}),
    ("sys_exit", {"code": "in words"}, {"cause": "exit", "signal": None, "code": 1}),
]


def test_every_death_by_a_request_is_one_event_charged_to_the_request(running: Running) -> None:
    """Cause, code, signal, requests and the ids in hand are right for each; none of them counts as the slot's failure."""
    instance = running("worker.exited", max_failures=1)
    before = inode(instance.socket())
    for number, (do, fault, expected) in enumerate(DEATHS, start=1):
        assert echo(instance) == b"are you there"
        crash(instance, do, request_id=f"poison-{number}", **fault)
        ready(instance, number + 1)
        exits = instance.events("worker.exited")
        assert len(exits) == number, exits
        exited = exits[-1]
        assert {key: exited[key] for key in expected} == expected, exited
        assert exited["in_hand"] == [f"poison-{number}"], exited
        assert (exited["requests"], exited["failures"], exited["generation"]) == (1, 0, number)
        assert "with 1 request in hand" in exited["reason"]
        assert inode(instance.socket()) == before
    story = "\n".join(instance.events("worker.exited", signal="SIGSEGV")[0]["last_lines"])
    assert "Fatal Python error: Segmentation fault" in story
    assert "service.py" in story
    assert instance.events("worker.exited", code=1)[0]["last_lines"][-1] == "in words"


def test_a_batch_in_hand_is_named_whole(running: Running) -> None:
    """Every request of the batch that a worker died with is in `in_hand`, in order."""
    instance = running("worker.exited")
    with Client([str(instance.socket())], retries=0) as client, pytest.raises(WorkerCrashedError):
        client.predict_batch([request("exit", "first"), request("facts", "second")])
    assert instance.wait_event("worker.exited")["in_hand"] == ["first", "second"]
    ready(instance, 2)


def test_an_exception_in_the_handler_is_one_event_and_the_worker_lives(running: Running) -> None:
    """The client is told, the log has the traceback and the request's id, and nothing was restarted."""
    instance = running("request.failed")
    pid = instance.worker()["pid"]
    with pytest.raises(PredictionFailedError) as failed:
        ask(instance, "raise", request_id="bad", text="no such digit")
    assert failed.value.code == 503
    event = instance.wait_event("request.failed")
    assert (event["request_ids"], event["code"], event["pid"]) == (["bad"], 503, pid)
    assert (event["worker"], event["model"], event["generation"]) == (0, "echo", 1)
    assert "no such digit" in event["traceback"]
    assert "service.py" in event["traceback"]
    with pytest.raises(PredictionFailedError) as failed:
        ask(instance, "memory")
    assert failed.value.code == 507
    assert echo(instance) == b"are you there"
    instance.wait_event("request.failed", count=2)
    # The count follows the answer.
    wait_for(lambda: instance.worker()["requests"] == 3, "three requests to be counted")
    worker = instance.worker()
    assert (worker["pid"], worker["generation"]) == (pid, 1)
    assert len(instance.events("request.failed")) == 2
    assert not instance.events("worker.exited")


TEXTS = [b"caller %d" % number for number in range(20)]


def test_clients_of_a_stopped_worker_are_answered_by_its_successor(running: Running) -> None:
    """Connections that the worker had not accepted when it was killed survive it, with what was sent on them."""
    instance = running("worker.exited")
    pid = kill_worker(instance, signal.SIGSTOP)
    wait_for(lambda: state_of(pid) == "T", "the worker to be stopped")
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(instance.socket(), text)) for text in TEXTS]
        os.kill(pid, signal.SIGKILL)
        assert [caller.answer() for caller in callers] == TEXTS


def test_clients_that_connect_while_there_is_no_worker_wait_and_are_answered(
    running: Running,
) -> None:
    """The socket takes connections between two generations; here the birth is held up as long as the clients take."""
    instance = running("worker.exited")
    template = template_pid(instance)
    heir_pid(instance.pid, template)
    os.kill(template, signal.SIGSTOP)
    wait_for(lambda: state_of(template) == "T", "the template to be stopped")
    kill_worker(instance, signal.SIGKILL)
    instance.wait_event("worker.exited")
    assert instance.worker()["pid"] is None
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(Caller(instance.socket(), text)) for text in TEXTS]
        os.kill(template, signal.SIGCONT)
        assert [caller.answer() for caller in callers] == TEXTS
    assert instance.worker()["generation"] == 2


def test_twenty_clients_during_repeated_kills_are_all_answered(running: Running) -> None:
    """Whatever a kill takes from a client, asking again on the same socket brings the answer."""
    instance = running("worker.exited", workers=2)
    before = [inode(instance.socket(index=index)) for index in range(2)]
    asked: list[bytes] = []
    answers: list[bytes] = []
    killed: list[int] = []
    troubles: list[ClientError] = []

    def call(number: int) -> None:
        turn = 0
        with Client.from_run_dir(str(instance.run_dir), "echo", retries=100) as client:
            while turn < 40 or len(killed) < 3:
                text = b"%d of %d" % (turn, number)
                turn += 1
                asked.append(text)
                try:
                    answers.append(client.predict(text).body)
                except ClientError as error:
                    troubles.append(error)
                    return

    callers = [threading.Thread(target=call, args=(number,)) for number in range(20)]
    for caller in callers:
        caller.start()
    while any(caller.is_alive() for caller in callers):
        instance.wait_event("worker.ready", count=2 + len(killed))
        # A slot without one answer between two idle deaths would be failing, rightly: kill the one that served.
        index = len(killed) % 2
        wait_for(
            lambda index=index: (
                instance.worker(index=index)["requests"] > 0
                or not any(caller.is_alive() for caller in callers)
            ),
            "the worker to serve",
        )
        worker = instance.worker(index=index)
        if worker["pid"]:
            os.kill(worker["pid"], signal.SIGKILL)
            killed.append(worker["pid"])
    for caller in callers:
        caller.join(LIMIT)
    assert not troubles
    assert sorted(answers) == sorted(asked)
    instance.wait_event("worker.exited", count=len(killed))
    assert [inode(instance.socket(index=index)) for index in range(2)] == before


def test_a_crash_loop_while_idle_ends_in_failed_and_leaves_its_siblings_alone(
    running: Running,
) -> None:
    """Back-off first, then FAILED and turned away; `restart MODEL/N` brings the slot back and forgets its failures."""
    instance = running("worker.exited", "worker.failed", workers=2, max_failures=3)
    sibling = instance.worker(index=1)["pid"]
    for generation in (1, 2, 3):
        ready(instance, generation)
        kill_worker(instance, signal.SIGKILL)
    failed = instance.wait_event("worker.failed")
    assert (failed["worker"], failed["failures"], failed["level"]) == (0, 3, "error")
    exits = instance.events("worker.exited")
    assert [exited["next"] for exited in exits] == ["restart", "back_off", "failed"]
    assert [exited["failures"] for exited in exits] == [1, 2, 3]
    assert 0.4 <= exits[1]["retry_in_s"] <= 0.6
    assert exits[2]["retry_in_s"] == 60.0
    worker = instance.worker()
    assert (worker["phase"], worker["pid"], worker["restarts"]) == ("FAILED", None, 3)
    assert turned_away(instance.socket())
    assert echo(instance, index=1) == b"are you there"
    assert instance.worker(index=1)["pid"] == sibling
    asked = instance.cli("restart", "echo/0", "-c", str(instance.config))
    assert asked.returncode == 0, asked
    assert echo(instance) == b"are you there"
    worker = instance.worker()
    assert (worker["phase"], worker["generation"]) == ("READY", 4)
    assert instance.worker(index=1)["pid"] == sibling
    kill_worker(instance, signal.SIGKILL)
    assert instance.wait_event("worker.exited", count=4)["failures"] == 0  # it had answered
    ready(instance, 5)


def test_deaths_by_requests_slow_the_births_down_and_never_end_a_slot(running: Running) -> None:
    """After five such deaths in a row without one answer the births of the slot are a second apart."""
    instance = running("worker.exited", max_failures=1)
    for generation in range(1, 6):
        ready(instance, generation)
        crash(instance, "exit")
    fifth = instance.wait_event("worker.exited", count=5)
    assert (fifth["next"], fifth["failures"]) == ("back_off", 0)
    assert 0 < fifth["retry_in_s"] <= 1
    assert echo(instance) == b"are you there"  # waits in the backlog
    assert not instance.events("worker.failed")


def _descriptors(pid: int) -> dict[str, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[name] = os.readlink(f"/proc/{pid}/fd/{name}").split(":")[0]
    return found


def test_two_hundred_kills_leave_every_descriptor_count_as_it_was(running: Running) -> None:
    """Supervisor and template hold after 200 restarts exactly what they held before, and still answer on every socket."""
    workers = 8
    instance = running("worker.exited", workers=workers)
    template = template_pid(instance)
    heir_pid(instance.pid, template)
    before = [sorted(_descriptors(pid).values()) for pid in (instance.pid, template)]
    for kill in range(200):
        index = kill % workers
        assert echo(instance, b"%d" % kill, index) == b"%d" % kill
        generation = kill // workers + 1
        os.kill(ready(instance, generation, index)["pid"], signal.SIGKILL)
    for index in range(workers):
        ready(instance, 200 // workers + 1, index)
    assert len(instance.events("worker.exited")) == 200
    assert len({event["pid"] for event in instance.events("worker.exited")}) == 200

    def same() -> bool:
        return [sorted(_descriptors(pid).values()) for pid in (instance.pid, template)] == before

    wait_for(same, "the descriptors to be as before", 5)
    heir_pid(instance.pid, template)
    assert len(children_of(instance.pid)) == workers + 2  # the template and its heir
    wait_for(lambda: children_of(template) == [], "the template to have no child", 5)


# -- workers that mean harm -------------------------------------------------------------------------------------------


def test_a_worker_that_closes_every_descriptor_is_replaced(running: Running) -> None:
    """Its channel and its listener are gone, so it is; its client sees the end, its successor serves on the same socket."""
    instance = running("worker.exited", "request.failed")
    with contextlib.suppress(ClientError):
        ask(instance, "close_all")
    exited = instance.wait_event("worker.exited")
    assert exited["cause"] == "exit"
    ready(instance, 2)
    assert echo(instance) == b"are you there"


def test_a_scribbled_scoreboard_record_is_read_without_harm(running: Running) -> None:
    """Lengths, counts and times that cannot be: the event is whole, bounded, and the slot goes on."""
    instance = running("worker.exited")
    record = struct.pack("=QQQdI", 3, 1, 2**64 - 1, float("nan"), 2**32 - 1).ljust(64, b"\xff")
    with (instance.run_dir / "scoreboard").open("r+b") as board:
        board.write(record + b"\xff" * 4096)
    assert instance.worker()["phase"] == "READY"
    kill_worker(instance, signal.SIGKILL)
    exited = instance.wait_event("worker.exited")
    assert len(exited["in_hand"]) <= 64
    assert all(len(each) <= 64 for each in exited["in_hand"])
    ready(instance, 2)
    assert echo(instance) == b"are you there"
    assert instance.worker()["generation"] == 2


def test_garbage_on_the_channel_is_reported_and_costs_nobody_anything(running: Running) -> None:
    """What is no message is a worker.bad_message each; no event can be forged; the worker serves on."""
    instance = running()
    pid = instance.worker()["pid"]
    bad = [
        "no JSON",
        "[]",
        "{}",
        '{"kind": 5}',
        '{"kind": "unheard of"}',
        '{"kind": "event"}',
        '{"kind": "event", "level": "loud", "event": "x", "fields": {}}',
        '{"kind": "event", "level": "info", "event": "x", "fields": 7}',
        "\xff\xfe",
        "x" * 65536,
    ]
    forged = [
        '{"kind": "event", "level": "error", "event": "forged", "fields": {"fact": "\\ud800"}}',
        '{"kind": "event", "level": "info", "event": "supervisor.stopped", "fields": {"code": 0}}',
        '{"kind": "event", "level": "warning", "event": "metrics.lost", "fields": {"error": "", "pid": 1}}',
    ]
    genuine = '{"kind": "event", "level": "warning", "event": "metrics.lost", "fields": {"error": "\\ud800"}}'
    again = '{"kind": "ready", "facts": {"pid": 1}}'
    ask(instance, "babble", messages=[*bad, *forged, genuine, again])
    event = instance.wait_event("metrics.lost")
    assert (event["pid"], event["worker"], event["model"]) == (pid, 0, "echo")
    said = instance.events("worker.bad_message")
    assert len(said) == len(bad) + len(forged)
    assert {each["pid"] for each in said} == {pid}
    worker = instance.worker()
    assert (worker["pid"], worker["phase"], worker["generation"]) == (pid, "READY", 1)
    assert len(instance.events("worker.ready")) == 1
    assert echo(instance) == b"are you there"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_before_it_is_ready(
    running: Running, mendable: Mendable, number: signal.Signals
) -> None:
    """Between the fork and READY a signal is as deadly as later; the successor comes at once."""
    instance = running("worker.exited", env__FAULT_AFTER_FORK_FILE=mendable.path)
    mendable.set("all", of=[{"do": "print", "text": "half born"}, {"do": "sleep"}])
    kill_worker(instance, signal.SIGKILL)
    instance.wait_event("worker.output", generation=2)
    pid = wait_for(lambda: instance.worker()["pid"], "the newborn to be known")
    assert instance.worker()["phase"] == "STARTING"
    mendable.mend()
    os.kill(pid, number)
    exited = instance.wait_event("worker.exited", count=2)
    assert (exited["signal"], exited["generation"], exited["failures"]) == (number.name, 2, 2)
    assert exited["last_lines"] == ["half born 0"]
    assert echo(instance) == b"are you there"
    assert ready(instance, 3)["pid"] == instance.worker()["pid"]
