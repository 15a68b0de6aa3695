"""watch.py, autopsy.py and the words for a hang: what is seen of workers, and what is said of one that hangs."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modelworker.scoreboard import Reading

from modelsupervisor.core.actions import AskWorker, LookAtWorkers, Next, ReportWorkerExit
from modelsupervisor.core.events import Sighting, WorkersSeen
from modelsupervisor.core.states import Blame, SlotKey, Watch
from modelsupervisor.runtime import autopsy
from modelsupervisor.runtime.autopsy import MOST_THREADS, threads_of
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.endings import Corpse, worker_exit_fields
from modelsupervisor.runtime.evidence import Evidence
from modelsupervisor.runtime.processes import ExitStatus
from modelsupervisor.runtime.watch import Lookout
from modelsupervisor.runtime.workers import Workers
from support.instance import state_of, wait_for

KEYS = tuple(SlotKey("m", index) for index in range(3))
BUSY = Reading(generation=4, requests=7, busy_since=5.0, in_hand=2, ids=("a", "b"))


class Place:
    """A lookout with three slots: a worker in the first, a birth in the second, nobody in the third."""

    def __init__(self, *also: Any) -> None:
        self.posted: list[Any] = []
        self.sent: list[dict[str, Any]] = []
        self.full = False
        channel = SimpleNamespace(send=self._send)
        fields = {"generation": 4, "echoes": 9, "channel": channel}
        present = {
            KEYS[0]: SimpleNamespace(pid=os.getpid(), **fields),
            KEYS[1]: SimpleNamespace(pid=None, **fields),
        }
        edge = SimpleNamespace(
            now=lambda: 100.0,
            post=self.posted.append,
            places={key: SimpleNamespace(number=key.index) for key in KEYS},
            board=SimpleNamespace(read=lambda number, generation: BUSY),
        )
        workers = SimpleNamespace(present=present.get)
        self.lookout = Lookout(cast(Edge, edge), cast(Workers, workers), also)

    def _send(self, message: dict[str, Any]) -> None:
        if self.full:
            raise BlockingIOError
        self.sent.append(message)


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_seen(whole: bool) -> None:
    """Of a worker with a pid: what its record says, and its echoes; others look at it at periodic looks alone."""
    glances: list[Any] = []
    place = Place(glances.append)
    place.lookout.perform(LookAtWorkers("m", KEYS, whole))
    sighting = Sighting(KEYS[0], 4, busy_since=5.0, answered=7, echoes=9)
    assert place.posted == [WorkersSeen(100.0, (sighting,))]
    assert [worker.pid for worker in glances] == [os.getpid()] * whole


def test_a_ping_goes_to_the_generation_that_it_is_for() -> None:
    """And one that cannot be sent is one that is not answered: no more than that."""
    place = Place()
    for key, generation in ((KEYS[0], 4), (KEYS[0], 3), (KEYS[2], 1)):
        place.lookout.perform(AskWorker(key, generation))
    assert place.sent == [{"kind": "ping"}]
    place.full = True
    place.lookout.perform(AskWorker(KEYS[0], 4))


def test_evidence() -> None:
    """The ids in hand, and what the kernel says; nothing of a slot without a process."""
    place = Place()
    evidence = place.lookout.evidence(KEYS[0])
    assert evidence["in_hand"] == ["a", "b"]
    assert evidence["threads"]
    assert place.lookout.evidence(KEYS[1]) == place.lookout.evidence(KEYS[2]) == {}


def test_threads_of_a_process() -> None:
    """A line each, the oldest first: number, name, and whether it runs or sleeps."""
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(2)]
    for thread in threads:
        thread.start()

    def waiting() -> list[str]:
        """Our lines, once both threads have gone to sleep."""
        lines = threads_of(os.getpid())
        asleep = [line for line in lines if ": S" in line]
        known = all(
            any(line.startswith(f"{thread.native_id} ") for line in asleep) for thread in threads
        )
        return lines if known else []

    try:
        lines = wait_for(waiting, "two sleeping threads")
    finally:
        over.set()
    assert lines[0].startswith(f"{os.getpid()} ")
    assert ": R" in lines[0]
    for thread in threads:
        thread.join()


def test_a_stopped_process_with_a_difficult_name() -> None:
    """Its name may hold what the kernel's own format is made of."""
    name = "a) R (b"
    pid = os.posix_spawn(
        "/bin/sh", ["sh", "-c", f"printf '{name}' > /proc/$$/comm; kill -STOP $$"], {}
    )
    try:
        wait_for(lambda: state_of(pid) == "T", "the child to be stopped")
        (line,) = threads_of(pid)
        assert line.startswith(f"{pid} {name}: T")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert threads_of(pid) == []


def test_a_crowd_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many are looked at, however many there are."""
    monkeypatch.setattr(os, "listdir", lambda path: [str(number) for number in range(10**4)])
    monkeypatch.setattr(autopsy, "_read", lambda pid, task, name: f"{task} (x) S 1")
    assert len(threads_of(1)) == MOST_THREADS


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (
            BUSY,
            "busy for 2.5 s, longer than response_timeout allows; killed by SIGABRT with 2 requests in hand",
        ),
        (
            BUSY._replace(busy_since=0.0, in_hand=0, ids=()),
            "deaf for 2.5 s, longer than response_timeout allows; killed by SIGABRT while idle",
        ),
    ],
    ids=["busy", "deaf"],
)
def test_the_words_for_a_hang(reading: Reading, words: str) -> None:
    """Cause hung; the reason names the setting, for how long, and what it had in hand."""
    corpse = Corpse(ExitStatus(signal=signal.SIGABRT), 9.0, reading)
    report = ReportWorkerExit(
        *(KEYS[0], 4, str(corpse.status)),
        asked=False,
        blame=Blame.HUNG,
        next=Next.RESTART,
        watch=Watch((reading.busy_since, 7, 9), seen=99.0, stuck=2.5),
    )
    level, event, facts = worker_exit_fields(report, corpse, [], Evidence())
    assert (level, event, facts["cause"]) == ("error", "worker.exited", "hung")
    assert facts["reason"] == words
