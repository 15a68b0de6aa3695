"""Workers that hang, in every way there is: stacks, SIGABRT, SIGKILL, a successor; and nobody else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.faults import Caller, ask, echo, kill_worker, ready, request
from support.instance import Event, Instance, state_of, wait_for

Running = Callable[..., Instance]

TIMEOUT = 1.0  # response_timeout
LATE = 4.0  # seconds that a busy machine may take on top


class Hang(NamedTuple):
    """A way to hang: what is asked for, and what is then seen. `stack` is in what it wrote, None where it wrote nothing."""

    fault: dict[str, Any]
    stack: str | None
    signal: str = "SIGABRT"
    busy: bool = True


MUTE = {"do": "all", "of": [{"do": "say_nothing"}, {"do": "sleep"}]}
IN_HAND = {
    "in Python": Hang({"do": "spin"}, "in _spin"),
    "in a system call": Hang({"do": "sleep"}, "in _meet"),
    "in C, holding the GIL": Hang({"do": "busy_in_c"}, "in _meet"),
    "in one operation": Hang({"do": "grind"}, "in _grind"),
    "stopped": Hang({"do": "kill", "signal": int(signal.SIGSTOP)}, "in _meet"),
    "livelock": Hang({"do": "livelock"}, "in give_way"),
    "mute": Hang(MUTE, None, "SIGKILL"),
}


class Load:
    """Short requests, one after the other from a thread, to one worker; any that fails, fails the test."""

    def __init__(self, instance: Instance, index: int) -> None:
        self._instance, self._index = instance, index
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers = 0
        self.failure: Exception | None = None

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                ask(self._instance, "sleep", index=self._index, seconds=0.02)
                self.answers += 1
        except Exception as error:  # noqa: BLE001 - whatever it was, the test says so
            self.failure = error

    @contextmanager
    def running(self) -> Iterator[Load]:
        """For as long as this is open."""
        self._thread.start()
        try:
            yield self
        finally:
            self._over.set()
            self._thread.join()
        assert self.failure is None


def gone(instance: Instance, index: int) -> Event:
    """The end of the first generation of a slot."""
    return instance.wait_event("worker.exited", worker=index, generation=1)


def check_end(instance: Instance, index: int, hang: Hang) -> None:
    """One `worker.hung`, one `worker.exited` with its cause and stacks, and a successor that answers."""
    exited = gone(instance, index)
    assert (exited["cause"], exited["signal"]) == ("hung", hang.signal)
    assert "response_timeout" in exited["reason"]
    assert f"{'busy' if hang.busy else 'deaf'} for 1." in exited["reason"]
    (told,) = instance.events("worker.hung", worker=index)
    assert told["busy"] is hang.busy
    assert told["in_hand"] == exited["in_hand"] == ([f"r-{index}"] if hang.busy else [])
    assert TIMEOUT <= told["stuck_s"] < TIMEOUT + LATE
    assert told["threads"][0].startswith(f"{exited['pid']} ")
    wrote = instance.events("worker.output", worker=index, generation=1, stream="stderr")
    stacks = [event["line"] for event in wrote if event.get("kind") == "traceback"]
    if hang.stack is None:
        assert stacks == []
    else:
        (stack,) = stacks
        assert stack.startswith("Fatal Python error: Aborted")
        assert hang.stack in stack
        assert any(hang.stack in line for line in exited["last_lines"])
    ready(instance, 2, index)
    assert echo(instance, index=index) == b"are you there"


@pytest.fixture
def calls() -> Iterator[list[Caller]]:
    """Requests that wait for their answers."""
    made: list[Caller] = []
    yield made
    for each in made:
        each.__exit__()


def test_every_way_to_hang_with_a_request_in_hand(running: Running, calls: list[Caller]) -> None:
    """Each is ended at response_timeout, with its stacks where it can write them, and replaced; a sibling serves on."""
    well = len(IN_HAND)
    instance = running("worker.exited", workers=well + 1, response_timeout="1s", cpus="none")
    with Load(instance, well).running() as load:
        for index, hang in enumerate(IN_HAND.values()):
            asked = request(request_id=f"r-{index}", **hang.fault)
            calls.append(Caller(instance.socket(index=index), asked))
        busy = wait_for(lambda: instance.worker(index=1)["busy_s"], "a batch to be seen")
        assert 0.0 < busy < TIMEOUT + LATE
        for index, hang in enumerate(IN_HAND.values()):
            check_end(instance, index, hang)
    assert load.answers > 0
    assert instance.worker(index=well)["generation"] == 1
    assert instance.worker(index=well)["busy_s"] is None
    assert len(instance.events("worker.exited")) == well
    assert {event["sent"] for event in instance.events("worker.overdue")} == {"SIGKILL"}
    states = [event["threads"][0] for event in instance.events("worker.hung", worker=4)]
    assert ": T" in states[0]


def test_a_worker_that_is_deaf_while_idle(running: Running, short_tmp: Path) -> None:
    """Stopped, or its interpreter held by a thread, with nothing in hand: it does not answer a ping, and is replaced."""
    held = short_tmp / "hold"
    instance = running("worker.exited", workers=3, response_timeout="1s")
    ask(instance, "hold_interpreter", index=1, path=str(held))
    assert instance.worker(index=1)["requests"] == 1
    held.touch()
    kill_worker(instance, signal.SIGSTOP, index=0)
    check_end(instance, 0, Hang({}, "serve.py", busy=False))
    check_end(instance, 1, Hang({}, "in hold", busy=False))
    assert instance.worker(index=2)["generation"] == 1


def test_a_supervisor_that_was_stopped_ends_nobody(running: Running, calls: list[Caller]) -> None:
    """Stopped for twice response_timeout: a busy worker, an idle one, and one with a batch as long as may be, are all well."""
    instance = running(workers=3, response_timeout="1s")
    pids = [instance.worker(index=index)["pid"] for index in range(3)]
    with Load(instance, 0).running() as load:
        wait_for(lambda: load.answers > 2, "the first answers")
        instance.signal(signal.SIGSTOP)
        wait_for(lambda: state_of(instance.pid) == "T", "the supervisor to stand still")
        time.sleep(1.5 * TIMEOUT)  # the standstill is what is tested
        long = Caller(instance.socket(index=2), request("sleep", seconds=0.9 * TIMEOUT))
        calls.append(long)
        time.sleep(0.5 * TIMEOUT)
        instance.signal(signal.SIGCONT)
        assert long.answer() == b"done"
        seen = load.answers
        wait_for(lambda: load.answers > seen + 75, "looks enough to find them hung")
    assert [instance.worker(index=index)["pid"] for index in range(3)] == pids
    assert instance.events("worker.hung") == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_supervisor_that_is_stopped_again_and_again(
    running: Running, calls: list[Caller]
) -> None:
    """For any time from a moment to three times response_timeout: who works or idles is never ended, and who hangs is."""
    instance = running("worker.exited", workers=3, response_timeout="1s")
    pids = [instance.worker(index=index)["pid"] for index in range(2)]
    with Load(instance, 0).running():
        for pause in (0.05, 0.2, 0.24, 0.26, 0.3, 0.49, 0.51, 0.6, 0.9, 1.1, 1.6, 2.5, 3.0):
            instance.signal(signal.SIGSTOP)
            time.sleep(pause)
            instance.signal(signal.SIGCONT)
            time.sleep(0.35)
        calls.append(Caller(instance.socket(index=2), request("sleep", request_id="r-2")))
        check_end(instance, 2, Hang({}, "in _meet"))
    assert [instance.worker(index=index)["pid"] for index in range(2)] == pids
    assert len(instance.events("worker.hung")) == 1


def test_a_stop_finds_a_worker_that_hangs(running: Running, calls: list[Caller]) -> None:
    """One that does not mind SIGABRT is in its last second when TERM comes: it was hung all the same, and the stop ends."""
    instance = running("worker.exited", response_timeout="1s")
    calls.append(Caller(instance.socket(), request(request_id="r-0", **MUTE)))
    instance.wait_event("worker.hung")
    begun = time.monotonic()
    assert instance.stop() == 0
    assert time.monotonic() - begun < 1.0 + LATE
    exited = gone(instance, 0)
    assert (exited["cause"], exited["next"]) == ("hung", "none")
    assert os.path.exists(instance.log)
