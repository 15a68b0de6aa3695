"""Who writes without end: he delays the news of nobody's death by more than a turn, and every byte of his is somebody's.

What lies between a death and its event is counted, not timed: the supervisor is stopped, the worker dies, and of what is read once
the supervisor goes on, everything with a number below the event's came before it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

import pytest

from modelsupervisor.runtime.streams import TURN
from support.capture import check_accounts, content, joined, source_of
from support.faults import Caller, ask, echo, kill_worker, ready, request
from support.instance import Event, Instance, alive, state_of, wait_for

Running = Callable[..., Instance]

HELPERS_WORD = (
    "written by a helper process, which is not gone because its worker is, and so writes on:"
)
HELPERS_LINE = len(HELPERS_WORD) + 22


@contextmanager
def stopped(instance: Instance) -> Iterator[str]:
    """The supervisor stands still, until the end; gives the moment from which on it did, as its events tell the time."""
    instance.signal(signal.SIGSTOP)
    try:
        wait_for(lambda: state_of(instance.pid) == "T", "the supervisor to stand still")
        yield datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    finally:
        instance.signal(signal.SIGCONT)


def full(instance: Instance, stream: str) -> bool:
    """True where worker 0's FIFO takes no more: it counts in pages, so that its size in bytes does not tell."""
    fifo = os.open(instance.run_dir / f"echo.0.{stream}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [fifo], [], 0)[1]
    finally:
        os.close(fifo)


def capacity(instance: Instance) -> int:
    """Bytes that worker 0's FIFO holds at most."""
    fifo = os.open(instance.run_dir / "echo.0.stdout", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return fcntl.fcntl(fifo, fcntl.F_GETPIPE_SZ)
    finally:
        os.close(fifo)


def bytes_read(instance: Instance, index: int = 0) -> int:
    """What the supervisor has read of a worker's stdout so far."""
    size: int = instance.worker(index=index)["output"]["stdout"]["bytes"]
    return size


def read_between(instance: Instance, moment: str, exited: Event) -> dict[str, int]:
    """Bytes by stream of what was read after a moment and numbered before a worker's end."""
    sizes: dict[str, int] = defaultdict(int)
    for event in instance.events("worker.output"):
        if event["timestamp"] > moment and event["seq"] < exited["seq"]:
            sizes[source_of(event)] += len(content(event))
    return sizes


def kill_unseen(pid: int) -> None:
    """Kill a worker while its supervisor stands still, and wait until it is dead."""
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state_of(pid) == "Z", f"{pid} to be dead")


# -- a worker that floods ---------------------------------------------------------------------------------------------


LONGEST = 1000  # bytes of a line
FLOODS = {
    "lines of 100 bytes": ("x" * 99 + "\n") * 40,
    # 64 KiB of these are more events than a turn makes: what is left of a turn must not lead to another one
    "short lines": "eleven char\n" * 340,
}


@pytest.mark.parametrize("out", FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_delays_the_news_of_another_workers_end_by_a_turn(
    running: Running, out: str
) -> None:
    """One worker keeps both of its FIFOs full: between another's death and its event at most 64 KiB of either stream are read."""
    instance = running("worker.exited", workers=2)
    flooder, victim = (instance.worker(index=index)["pid"] for index in range(2))
    texts = [(1, out), (2, ("x" * (LONGEST - 1) + "\n") * 4)]
    with Caller(instance.socket(), request("flood", texts=texts)):
        for generation in range(1, 6):
            moment = let_flood_and_die(instance, flooder, victim)
            exited = instance.wait_event("worker.exited", worker=1, generation=generation)
            read = read_between(instance, moment, exited)
            assert all(size <= TURN + LONGEST for size in read.values()), dict(read)
            assert echo(instance, index=1)
            victim = ready(instance, generation + 1, 1)["pid"]
        os.kill(flooder, signal.SIGKILL)
    instance.wait_event("worker.exited", worker=0, pid=flooder)
    check_accounts(instance.status())


def let_flood_and_die(instance: Instance, flooder: int, victim: int) -> str:
    """Let the flood run until the supervisor is in the midst of reading, wherever that is, and stop all; let the victim die unseen.

    Both FIFOs are left full, but the flood stands still from here on, since nobody reads its log as fast as it grows. Gives the
    moment of the stop.
    """
    size = instance.log.stat().st_size
    os.kill(flooder, signal.SIGCONT)
    wait_for(lambda: instance.log.stat().st_size > size, "the flood to go on")
    with stopped(instance) as moment:
        wait_for(lambda: full(instance, "stdout") or full(instance, "stderr"), "a full FIFO")
        os.kill(flooder, signal.SIGSTOP)
        kill_unseen(victim)
    return moment


# -- helper processes that write on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("session", [False, True], ids=["its session", "a session of its own"])
def test_a_helper_that_writes_on_does_not_hold_up_the_exit(running: Running, session: bool) -> None:
    """Its worker's end is told before more than the full FIFO and a turn are read; one in the worker's session is gone by then."""
    instance = running("worker.exited")
    worker = instance.worker()["pid"]
    helper = int(ask(instance, "writing_helper", text=HELPERS_WORD, session=session))
    with stopped(instance) as moment:
        wait_for(lambda: full(instance, "stdout"), "a full FIFO")
        kill_unseen(worker)
    wait_for(lambda: instance.worker()["pid"] not in (worker, None), "a successor")
    assert alive(helper) is session
    if session:
        os.kill(helper, signal.SIGKILL)  # nobody reads its log as fast as it grows
    exited = instance.wait_event("worker.exited", pid=worker)
    # Where helpers are killed, what they wrote until then is read too
    most = capacity(instance) * (1 if session else 2) + TURN
    assert sum(read_between(instance, moment, exited).values()) <= most + HELPERS_LINE
    assert ("helper process" in exited["reason"]) is not session
    assert echo(instance)
    if session:
        instance.wait_event("orphan.exited", pid=helper)
        assert instance.events("worker.output", generation=2), "it wrote on"
    check_every_byte_is_somebodys(instance)
    assert instance.stop() == 0


def check_every_byte_is_somebodys(instance: Instance) -> None:
    """The helper counted its lines: none is missing over the worker's end, whosever they were taken for, and the accounts agree."""
    generation = instance.worker()["generation"]
    # Whose end brings out what waits for the rest of its line
    kill_worker(instance, signal.SIGKILL)
    instance.wait_event("worker.exited", generation=generation)
    ready(instance, generation + 1)
    made = check_accounts(instance.status())
    events = instance.events("worker.output", stream="stdout")
    carried = joined(events)
    assert len(events) == made["echo/0 stdout"]
    assert bytes_read(instance) == len(carried)
    lines = carried.split(b"\n")
    assert lines.pop() == b""
    assert lines == [f"{HELPERS_WORD} {number:020d}".encode() for number in range(len(lines))]


def test_the_end_comes_though_helpers_write(running: Running) -> None:
    """Two helpers, one of them in a session of its own, write into two FIFOs, and the supervisor stops in order and on time."""
    instance = running("worker.exited", workers=2)
    helpers = [
        int(ask(instance, "writing_helper", index=index, text=HELPERS_WORD, session=index == 0))
        for index in range(2)
    ]
    for index in range(2):
        wait_for(lambda index=index: bytes_read(instance, index) > 0, "the helper to write")
    kill_worker(instance, signal.SIGKILL)
    wait_for(lambda: instance.worker()["generation"] == 2, "a successor")
    assert instance.stop() == 0
    assert not any(alive(helper) for helper in helpers)
    *_, last = instance.events()
    assert last["event"] == "supervisor.stopped"
