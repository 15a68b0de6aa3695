"""Worn workers: replaced one at a time, the replacement first, between batches, and no request is lost by it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from modelsupervisor.client import Client
from support.faults import Caller, ask, crash, echo, ready, request
from support.instance import Instance, wait_for
from support.mendable import Mendable

Running = Callable[..., Instance]


def test_a_worker_that_answered_enough_is_replaced(running: Running) -> None:
    """Its replacement is parked before it is told to go; its exit is a recycling and no failure."""
    instance = running(max_requests=3)
    for _ in range(3):
        echo(instance)
    gone = instance.wait_event("worker.exited", generation=1)
    assert (gone["cause"], gone["code"], gone["level"]) == ("recycled", 0, "info")
    assert "max_requests" in gone["reason"] and gone["failures"] == 0
    ready(instance, 2)
    names = [event["event"] for event in instance.events()]
    story = ["worker.worn", "spare.ready", "worker.stopping", "worker.exited", "worker.starting"]
    assert [name for name in names if name in story][-5:] == story
    worn = instance.events("worker.worn")[0]
    assert (worn["wear"], worn["reason"]) == (
        "max_requests",
        "3 requests answered, max_requests 3",
    )
    assert instance.worker()["requests"] >= 3


def test_one_at_a_time_and_nobody_waits_in_vain(running: Running) -> None:
    """Three workers that are worn at the same moment; every request is answered, without being asked twice by its client."""
    instance = running(workers=3, max_requests=5)
    sockets = [str(instance.socket(index=index)) for index in range(3)]
    for path in sockets:
        with Client([path], timeout=30) as client:
            for number in range(5):
                assert client.predict(b"%d" % number).body == b"%d" % number
    wait_for(
        lambda: len(instance.events("worker.exited", cause="recycled")) >= 3, "three replacements"
    )
    for index in range(3):
        ready(instance, 2, index=index)
    away = 0
    for event in instance.events():
        if event["event"] == "worker.stopping":
            away += 1
        elif event["event"] == "worker.ready" and event["generation"] > 1:
            away -= 1
        assert away <= 1, "two were away at once"


def test_the_batch_in_hand_is_finished(running: Running) -> None:
    """However much longer it takes than stop_timeout: nobody is killed for having worn out in the middle of a batch."""
    instance = running(max_requests=1, stop_timeout="50ms")
    release = instance.folder / "release"
    waiting = request("wait_for_file", path=str(release))
    with (
        Caller(instance.socket(), b"the first") as first,
        Caller(instance.socket(), waiting) as second,
    ):
        assert first.answer() == b"the first"
        instance.wait_event("worker.stopping", generation=1)
        wait_for(lambda: instance.events("worker.stopping", generation=1), "the word to go")
        assert not instance.events("worker.overdue")
        release.touch()
        assert second.answer() == b"done"
    assert instance.wait_event("worker.exited", generation=1)["cause"] == "recycled"
    assert not instance.events("worker.overdue")


def test_without_a_replacement_it_serves_on(running: Running, mendable: Mendable) -> None:
    """A replacement that cannot start is tried again; until one is parked the worn worker answers."""
    instance = running(max_requests=2, env__FAULT_AFTER_FORK_FILE=mendable.path)
    mendable.set("raise", text="not now")
    for _ in range(2):
        echo(instance)
    assert "not now" in instance.wait_event("spare.exited", failures=2)["reason"]
    for _ in range(5):
        assert echo(instance)
    assert instance.worker()["generation"] == 1
    mendable.mend()
    assert instance.wait_event("worker.exited")["cause"] == "recycled"
    ready(instance, 2)


def test_a_worn_worker_that_crashes_is_a_crash(running: Running) -> None:
    """Nothing is kept of its wear, and the spare that was born for it serves next or goes."""
    instance = running("worker.exited", max_requests=1, spares=1)
    spare = instance.wait_event("spare.ready", spare=1)
    os.kill(spare["pid"], signal.SIGSTOP)
    crash(instance, "kill")
    os.kill(spare["pid"], signal.SIGCONT)
    assert instance.wait_event("worker.exited", generation=1)["cause"] == "signal"
    assert echo(instance)


def test_a_worker_that_holds_too_much_memory_is_replaced(running: Running) -> None:
    """What counts is its own: the template's pages, which all workers share, are nobody's wear."""
    instance = running(
        workers=2, memory_limit="60MiB", env__FAULT_AT_LOAD='{"do": "hold", "bytes": 100000000}'
    )
    assert ask(instance, "hold", index=1, bytes=80_000_000) == b"done"
    worn = instance.wait_event("worker.worn")
    assert (worn["worker"], worn["wear"]) == (1, "memory_limit")
    assert "memory_limit 60 MiB" in worn["reason"]
    assert instance.wait_event("worker.exited")["cause"] == "recycled"
    ready(instance, 2, index=1)
    assert instance.worker(index=0)["generation"] == 1
