"""Models that crash in a loop, in every way: births bounded, the cause told, everybody else served and answered meanwhile."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.client import Client
from modelsupervisor.control import ControlConnection
from modelsupervisor.errors import ClientError
from support.faults import request
from support.instance import LIMIT, Event, Instance, children_of, wait_for

Make = Callable[..., Instance]

PROMPT = (
    2.0  # seconds for a status, or an answer of a healthy worker: some hundred times what is seen
)
DEATHS = ("worker.exited", "worker.failed", "template.exited", "worker.spawn_failed")
NEARLY = 0.9  # of the second that the bounds are for: they are kept by when births are decided, and these are times of the log
DIES = {"do": "die_soon"}


@contextmanager
def others_served(made: Instance) -> Iterator[None]:
    """Hold that meanwhile a healthy sibling model answers without pause, and status and restart of it are answered in time."""
    over = threading.Event()
    answered: list[float] = []
    troubles: list[ClientError] = []

    def call() -> None:
        with Client.from_run_dir(str(made.run_dir), "good", timeout=LIMIT) as client:
            while not over.is_set():
                begun = time.monotonic()
                try:
                    assert client.predict(b"are you there").body == b"are you there"
                except ClientError as error:
                    troubles.append(error)
                    return
                answered.append(time.monotonic() - begun)
                time.sleep(0.001)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
        with ControlConnection.open(str(made.run_dir)) as control:
            control.call("restart", {"model": "good", "index": 0}, timeout=PROMPT)
            control.call("status", timeout=PROMPT)
    finally:
        over.set()
        caller.join(LIMIT)
    assert not troubles, troubles
    assert len(answered) > 10
    assert max(answered) < PROMPT


def crashing(make: Make, workers: int, **keys: object) -> Instance:
    """A supervisor with a healthy model, and one that crashes as the keys say; started, and not waited for."""
    made = make(*DEATHS)
    bad = made.model("bad", workers=workers, **keys)
    made.write(made.model("good") + bad, "on_start_failure = continue")
    return made.launch()


def births(made: Instance, index: int = 0) -> list[float]:
    """The times, in seconds, at which processes of a slot of the bad model were asked for."""
    return [
        datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00")).timestamp()
        for event in made.events("worker.starting", model="bad", worker=index)
    ]


def held_by(made: Instance) -> tuple[int, int, int]:
    """The numbers of descriptors of supervisor and of the bad model's template, and of the supervisor's children."""
    template = made.wait_event("template.ready", model="bad")["pid"]
    descriptors = [len(os.listdir(f"/proc/{pid}/fd")) for pid in (made.pid, template)]
    return descriptors[0], descriptors[1], len(children_of(made.pid))


def failed_slots(made: Instance, count: int) -> list[Event]:
    """The events of that many slots of the bad model that have given up."""
    made.wait_event("worker.failed", model="bad", count=count)
    return made.events("worker.failed", model="bad")


# -- before there is a worker -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["load", "warm-up"])
def test_a_model_that_fails_to_load_again_and_again(
    instance: Make, short_tmp: Path, where: str
) -> None:
    """Tried max_failures times with back-off, then FAILED with the traceback and the line of the file; no worker was born."""
    fault = {"do": "raise", "text": "no weights"}
    keys: dict[str, object] = {"env__FAULT_AT_LOAD": json.dumps(fault)}
    if where == "warm-up":
        example = short_tmp / "example.json"
        example.write_text(json.dumps(fault))
        keys = {"warmup": example}
    made = crashing(instance, 2, max_failures=3, **keys)
    made.wait_event("worker.ready", model="good")
    with others_served(made):
        ready = made.wait_event("supervisor.ready")
    assert (ready["degraded"], ready["failed"]) == (True, 2)
    exits = made.events("template.exited", model="bad")
    assert [each["next"] for each in exits] == ["restart", "back_off", "failed"]
    assert all("no weights" in each["traceback"] for each in exits)
    assert all(each["config"].endswith("[model:bad]") for each in exits)
    assert [made.worker("bad", index)["phase"] for index in (0, 1)] == ["FAILED", "FAILED"]
    assert not births(made)
    assert len(made.events("template.starting", model="good")) == 1
    assert made.stop(5) == 0


# -- after it is ready, never an answer -------------------------------------------------------------------------------


@pytest.mark.parametrize("loops", [1, 3], ids=["of one slot", "of all slots"])
def test_workers_that_die_right_after_they_are_ready(instance: Make, loops: int) -> None:
    """Each loop ends in FAILED with its cause, in events and status; the template stays, healthy slots of the model serve on."""
    fault = {**DIES, "slot": 1} if loops == 1 else DIES
    made = crashing(instance, 3, max_failures=3, env__FAULT_AFTER_FORK=json.dumps(fault))
    made.wait_event("worker.ready", model="good")
    with others_served(made):
        failed = failed_slots(made, loops)
    bad = sorted(event["worker"] for event in failed)
    assert bad == ([1] if loops == 1 else [0, 1, 2])
    for index in bad:
        exits = made.events("worker.exited", model="bad", worker=index)
        assert [each["next"] for each in exits] == ["restart", "back_off", "failed"]
        assert {(each["cause"], each["code"]) for each in exits} == {("exit", 7)}
        worker = made.worker("bad", index)
        assert (worker["phase"], worker["last_crash"]["code"]) == ("FAILED", 7)
        assert len(births(made, index)) == 3
    if loops == 1:
        sockets = [str(made.socket("bad", index)) for index in (0, 2)]
        for path in sockets:
            with Client([path], timeout=LIMIT, retries=0) as client:
                assert client.predict(b"still here").body == b"still here"
    assert len(made.events("template.starting", model="bad")) == 1
    assert made.stop(5) == 0


# -- with the requests ------------------------------------------------------------------------------------------------


@contextmanager
def asked_without_end(made: Instance, workers: int, **fault: object) -> Iterator[None]:
    """Every worker of the bad model is asked for a fault as soon as it can be, again and again."""
    over = threading.Event()

    def call(index: int) -> None:
        path = str(made.socket("bad", index))
        asked = request(str(fault["do"]), **{k: v for k, v in fault.items() if k != "do"})
        while not over.is_set():
            with Client([path], timeout=LIMIT, retries=0) as client:
                try:
                    client.predict_batch([asked])
                except ClientError:
                    continue

    callers = [threading.Thread(target=call, args=[index]) for index in range(workers)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        over.set()
        for caller in callers:
            caller.join(LIMIT)


def most_within(times: list[float], seconds: float) -> int:
    """The largest number of times within so many seconds."""
    return max(sum(begun <= time < begun + seconds for time in times) for begun in times)


def loop_of_requests(made: Instance, fault: dict[str, Any], count: int) -> None:
    """Bear `count` deaths of both bad workers by a fault; nobody else notices, nothing leaks."""
    made.wait_event("supervisor.ready")
    echo_both(made)
    before = wait_for(lambda: settled(made), "an heir of each template")
    with others_served(made), asked_without_end(made, 2, **fault):
        for index in (0, 1):
            made.wait_event("worker.exited", model="bad", worker=index, count=count)
    wait_for(lambda: held_by(made) == before, "as many descriptors and children as before")
    assert not made.events("worker.failed")
    assert len(made.events("template.starting", model="bad")) == 1


def settled(made: Instance) -> tuple[int, int, int] | None:
    """What is held once every worker, template and heir is there."""
    held = held_by(made)
    return held if held[2] == 3 + 2 + 2 else None


def echo_both(made: Instance) -> None:
    """An answer of each bad worker."""
    for index in (0, 1):
        with Client([str(made.socket("bad", index))], timeout=LIMIT, retries=9) as client:
            client.predict(b"x")


def test_workers_that_die_with_every_request(instance: Make) -> None:
    """After five such deaths a second lies between two births of a slot; it never fails, and answers who asks for no harm."""
    made = crashing(instance, 2)
    loop_of_requests(made, {"do": "exit"}, 7)
    for index in (0, 1):
        times = births(made, index)
        # The first is of the start
        assert most_within(times[6:], NEARLY) == 1, times
    with Client([str(made.socket("bad", 0))], timeout=LIMIT, retries=9) as client:
        assert client.predict(b"no harm").body == b"no harm"
    assert made.stop(5) == 0


def test_workers_that_die_after_every_answer(instance: Make) -> None:
    """An answer ends every row of failures, so only the bound on births holds them back: 20 a second of one slot."""
    made = crashing(instance, 2)
    loop_of_requests(made, {"do": "die_soon", "seconds": 0.001}, 30)
    for index in (0, 1):
        assert most_within(births(made, index), NEARLY) <= 20
    stop_amidst(made, 2)


def stop_amidst(made: Instance, workers: int) -> None:
    """Stop while the workers die after every answer: at once, and nothing is born any more."""
    deaths = len(made.events("worker.exited", model="bad"))
    with asked_without_end(made, workers, do="die_soon", seconds=0.001):
        made.wait_event("worker.exited", model="bad", count=deaths + 5 * workers)
        assert made.stop(5) == 0


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_eight_workers_that_crash_for_long(instance: Make) -> None:
    """Ten seconds of all eight dying after every answer: bounded births, flat descriptors and memory, and a prompt stop."""
    made = crashing(instance, 8)
    made.wait_event("supervisor.ready")
    with others_served(made), asked_without_end(made, 8, do="die_soon", seconds=0.001):
        made.wait_event("worker.exited", model="bad", count=200)
        early = memory_of(made.pid), memory_of(template_of_bad(made))
        time.sleep(10)
    late = memory_of(made.pid), memory_of(template_of_bad(made))
    assert late[0] - early[0] < 8 * 1024 and late[1] - early[1] < 2 * 1024, (early, late)
    for index in range(8):
        assert most_within(births(made, index), NEARLY) <= 20
    stop_amidst(made, 8)


def template_of_bad(made: Instance) -> int:
    """The pid of the bad model's template."""
    pid: int = made.wait_event("template.ready", model="bad")["pid"]
    return pid


def memory_of(pid: int) -> int:
    """KiB of resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
