"""Who writes without end: he delays the news of nobody's death by more than a turn, and every byte of his is somebody's.

What lies between a death and its event is counted, not timed: the supervisor is stopped, the worker dies, and of what is read once
the supervisor goes on, everything with a number below the event's came before it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import termios
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import pytest

from modelsupervisor.runtime.streams import TURN
from support.capture import check_accounts, content, joined, source_of
from support.faults import Caller, ask, echo, kill_worker, ready, request
from support.instance import Event, Instance, alive, state_of, wait_for

Running = Callable[..., Instance]

LINE = 100
FULL = 4096  # bytes: with less room than that left, a FIFO is full for whoever writes a page


@contextmanager
def stopped(instance: Instance) -> Iterator[str]:
    """The supervisor stands still, until the end; gives the moment from which on it did, as its events tell the time."""
    instance.signal(signal.SIGSTOP)
    try:
        wait_for(lambda: state_of(instance.pid) == "T", "the supervisor to stand still")
        yield datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    finally:
        instance.signal(signal.SIGCONT)


def full(instance: Instance, stream: str, index: int = 0) -> bool:
    """True where a FIFO has room for nothing more."""
    path = instance.run_dir / f"echo.{index}.{stream}"
    fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        size = fcntl.fcntl(fifo, fcntl.F_GETPIPE_SZ)
        (used,) = struct.unpack("i", fcntl.ioctl(fifo, termios.FIONREAD, b"\0\0\0\0"))
        return bool(used > size - FULL)
    finally:
        os.close(fifo)


def capacity(instance: Instance, index: int = 0) -> int:
    """Bytes that a worker's FIFO holds."""
    fifo = os.open(instance.run_dir / f"echo.{index}.stdout", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return fcntl.fcntl(fifo, fcntl.F_GETPIPE_SZ)
    finally:
        os.close(fifo)


def read_between(instance: Instance, moment: str, exited: Event) -> dict[str, int]:
    """Bytes by stream of what was read after a moment and numbered before a worker's end."""
    sizes: dict[str, int] = defaultdict(int)
    for event in instance.events("worker.output"):
        if event["timestamp"] > moment and event["seq"] < exited["seq"]:
            sizes[source_of(event)] += len(content(event))
    return sizes


def kill_while_stopped(instance: Instance, *pids: int) -> None:
    """While the supervisor cannot see it, kill these and wait until they are dead."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait_for(lambda pid=pid: state_of(pid) in ("Z", None), f"{pid} to be dead")


# -- a worker that floods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [LINE, 2], ids=["lines of 100 bytes", "lines of one letter"])
def test_a_flood_delays_the_news_of_another_workers_end_by_a_turn(
    running: Running, length: int
) -> None:
    """One worker keeps both of its FIFOs full: between another's death and its event at most 64 KiB of either stream are read."""
    instance = running("worker.exited", workers=2, stop_timeout="1s")
    text = ("x" * (length - 1) + "\n") * (4096 // length)
    with Caller(instance.socket(), request("flood", text=text, fds=[1, 2])):
        for generation in range(1, 9):
            # It is in the midst of reading, wherever: that is where the signal finds it
            newest = max(event["seq"] for event in instance.events())
            wait_for(
                lambda newest=newest: instance.events()[-1]["seq"] > newest, "the flood to go on"
            )
            pid = instance.worker(index=1)["pid"]
            with stopped(instance) as moment:
                wait_for(
                    lambda: full(instance, "stdout") or full(instance, "stderr"), "a full FIFO"
                )
                kill_while_stopped(instance, pid)
            exited = instance.wait_event("worker.exited", worker=1, generation=generation)
            read = read_between(instance, moment, exited)
            assert all(size <= TURN + length for size in read.values()), dict(read)
            assert echo(instance, index=1)
            ready(instance, generation + 1, 1)
        flooder = instance.worker()["pid"]
        kill_worker(instance, signal.SIGKILL)
        exited = instance.wait_event("worker.exited", worker=0)
    assert exited["pid"] == flooder
    check_accounts(instance.status())
    out = joined(instance.events("worker.output", worker=0, generation=1, stream="stdout"))
    assert out.rstrip(b"x") == text[:length].encode() * (out.count(b"\n"))


# -- helper processes that write on ------------------------------------------------------------------------------------


@pytest.mark.parametrize("session", [False, True], ids=["its session", "a session of its own"])
def test_a_helper_that_writes_on_does_not_hold_up_the_exit(running: Running, session: bool) -> None:
    """Its worker's end is told before more than the full FIFO and a turn are read; one in the worker's session is gone by then."""
    instance = running("worker.exited")
    helper = int(ask(instance, "writing_helper", text="on", session=session))
    instance.wait_event("worker.output", count=1000)
    worker = instance.worker()["pid"]
    with stopped(instance) as moment:
        wait_for(lambda: full(instance, "stdout"), "a full FIFO")
        kill_while_stopped(instance, worker)
    exited = instance.wait_event("worker.exited")
    assert exited["pid"] == worker
    # Where helpers are killed, what they wrote until then is read too
    most = capacity(instance) * (1 if session else 2) + TURN
    assert sum(read_between(instance, moment, exited).values()) <= most + LINE
    assert alive(helper) is session
    assert ("helper" in exited["reason"]) is not session
    assert echo(instance)
    if session:
        seen = len(instance.events("worker.output"))
        instance.wait_event("worker.output", count=seen + 1000)
        instance.wait_event("orphan.adopted")
        os.kill(helper, signal.SIGKILL)
        instance.wait_event("orphan.exited")
    check_every_byte_is_somebodys(instance, "on")
    assert instance.stop() == 0


def check_every_byte_is_somebodys(instance: Instance, text: str) -> None:
    """The helper counted its lines: none is missing over the worker's end, whosever they were taken for, and the accounts agree."""
    generation = instance.worker()["generation"]
    kill_worker(
        instance, signal.SIGKILL
    )  # whose end brings out what waits for the rest of its line
    instance.wait_event("worker.exited", generation=generation)
    ready(instance, generation + 1)
    status: dict[str, Any] = instance.status()
    made = check_accounts(status)
    events = instance.events("worker.output", stream="stdout")
    carried = joined(events)
    assert len(events) == made["echo/0 stdout"]
    assert status["models"][0]["workers"][0]["output"]["stdout"]["bytes"] == len(carried)
    lines = carried.split(b"\n")
    assert lines.pop() == b""
    assert lines == [b"%s %020d" % (text.encode(), number) for number in range(len(lines))]


def test_the_end_comes_though_helpers_write(running: Running) -> None:
    """Two helpers, one of them in a session of its own, write into two FIFOs, and the supervisor stops in order and on time."""
    instance = running("worker.exited", workers=2)
    helpers = [
        int(ask(instance, "writing_helper", index=0, text="on", session=True)),
        int(ask(instance, "writing_helper", index=1, text="on", session=False)),
    ]
    for index in range(2):
        instance.wait_event("worker.output", count=1000, worker=index)
    kill_worker(instance, signal.SIGKILL)
    instance.wait_event("worker.exited", worker=0, generation=1)
    ready(instance, 2)
    assert instance.stop() == 0
    assert not any(alive(helper) for helper in helpers)
    last = instance.events()[-1]
    assert last["event"] == "supervisor.stopped"
