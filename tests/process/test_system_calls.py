"""Each system call of a start, a restart, a birth and a stop failed once: a clear error or recovery, nothing left, no hang.

Needs strace and the permission to trace; skips otherwise.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from modelsupervisor.control import ControlConnection
from modelsupervisor.errors import ControlError
from support.faults import echo, heir_pid
from support.injection import Call, Strace, chosen, launch_marked, need_strace
from support.instance import LIMIT, Instance, children_of, wait_for

Make = Callable[..., Instance]
Trial = Callable[[Instance, Call], bool]  # True where the call came

SAMPLE = 3  # of each kind, in the suite
SEED = 4
EXPECTED = (
    "log.failed",
    "restart.failed",
    "supervisor.start_failed",
    "template.exited",
    "worker.exited",
    "worker.failed",
    "worker.spawn_failed",
)
"""What may be told of. Never `supervisor.fault`: an exception of ours that nobody expected."""


def prepared(make: Make) -> Instance:
    """A supervisor of one worker, configured; what it cannot be told in kind is over soon."""
    made = make(*EXPECTED)
    made.write(made.model(stop_timeout="1s", startup_timeout="5s"))
    return made


def injected(call: Call | None) -> str:
    """What strace is to be told, of a call or of none."""
    return "" if call is None else call.injection


def ask(made: Instance, command: str, **arguments: object) -> str:
    """Give a command; the reason why it was not carried out, "" where it was."""
    try:
        with ControlConnection.open(str(made.run_dir)) as control:
            control.call(command, arguments, LIMIT)
    except ControlError as error:
        return str(error)
    return ""


# -- a start ----------------------------------------------------------------------------------------------------------


def start(made: Instance, call: Call | None) -> tuple[list[Call], bool]:
    """Start while a call is failed; it serves, or says why not and is gone. Returns the calls, and whether that one came."""
    launch_marked(made)
    with Strace(made.pid, made.folder / "start.trace", injected(call)) as strace:
        wait_for(lambda: made.over or made.events("supervisor.ready"), "an end of the start")
        serves = not made.over
        if serves:
            assert echo(made) == b"are you there"
        calls, hit = strace.calls(), strace.hit
    if not serves:
        assert call is not None
        assert made.wait() in (1, 78)
        complaint = (made.folder / "stderr").read_text()
        assert "Traceback" not in complaint
        assert complaint.startswith("modelsupervisor: ") or made.events("supervisor.start_failed")
        assert call.reason in complaint or told(made, call)
    return calls, hit


def start_and_stop(made: Instance, call: Call) -> bool:
    """A start with a failed call, and a stop where it came to serve."""
    _, hit = start(made, call)
    if not made.over:
        assert made.stop() == 0
    return hit


# -- a stop -----------------------------------------------------------------------------------------------------------


def stop(made: Instance, call: Call | None) -> tuple[list[Call], bool]:
    """Stop while a call is failed: it ends in time, with exit code 0. An operator who is not heard asks again."""
    with Strace(made.pid, made.folder / "stop.trace", injected(call)) as strace:
        reason = ask(made, "stop")
        if reason:
            assert "closed the connection" in reason
            assert ask(made, "stop") == ""
        assert made.wait() == 0
    return strace.calls(), strace.hit


def serve_and_stop(made: Instance, call: Call) -> bool:
    """A stop with a failed call."""
    made.start()
    assert echo(made) == b"are you there"
    return stop(made, call)[1]


# -- a restart of the model, and a birth as the template sees it ------------------------------------------------------


def settled(made: Instance) -> int:
    """The pid of the template that births come from, when it has made ready for the next."""
    pid: int = wait_for(lambda: made.events("template.ready"), "a template")[-1]["pid"]
    heir_pid(made.pid, pid)
    return pid


def restart(made: Instance, call: Call | None) -> tuple[list[Call], bool]:
    """Restart the model while a call is failed: it is restarted, or the reason is said and it serves on as it was."""
    with Strace(made.pid, made.folder / "restart.trace", injected(call)) as strace:
        reason = ask(made, "restart", model="echo", index=None)
        assert echo(made) == b"are you there"
        if reason and "closed the connection" not in reason:
            assert "see template.exited" in reason or "see worker.exited" in reason, reason
            assert call is not None
            wait_for(lambda: told(made, call), f"an event that says {call.reason}")
    return strace.calls(), strace.hit


def told(made: Instance, call: Call) -> bool:
    """An event of the log has the reason why the call failed."""
    return any(call.reason in event["reason"] for event in made.events(level="error"))


def bear(made: Instance, call: Call | None) -> tuple[list[Call], bool]:
    """Have the template bear workers, of which one meets the failure: its slot is served again."""
    log = made.folder / "birth.trace"
    log.unlink(missing_ok=True)
    with Strace(settled(made), log, injected(call), follow=True) as strace:
        for _ in range(3):
            reason = ask(made, "restart", model="echo", index=0)
            assert not reason or "see worker.exited" in reason, reason
            if strace.hit:
                break
    assert echo(made) == b"are you there"
    return strace.calls(), strace.hit


# -- all of them ------------------------------------------------------------------------------------------------------


def each(trial: Trial, places: Sequence[Instance], calls: Sequence[Call]) -> int:
    """Try every call, each in the next of the places, some side by side; the number of those that came."""

    def attempt(place: Instance, mine: Sequence[Call]) -> int:
        came = 0
        for call in mine:
            try:
                came += trial(place, call)
            except Exception as error:
                raise AssertionError(f"{call}: {error!r}\n{place.story()}") from error
        return came

    together = len(places)
    with ThreadPoolExecutor(2) as pool:
        shares = [calls[number::together] for number in range(together)]
        return sum(pool.map(attempt, places, shares))


def own_places(make: Make, calls: Sequence[Call]) -> list[Instance]:
    """A supervisor to be for each call."""
    return [prepared(make) for _ in calls]


def known(make: Make) -> dict[str, list[Call]]:
    """The calls that are worth failing, by kind, as they come where none is failed."""
    made = prepared(make)
    kinds = {"start": start(made, None)[0], "restart": restart(made, None)[0]}
    kinds["birth"] = bear(made, None)[0]
    kinds["stop"] = stop(made, None)[0]
    return {kind: chosen(calls) for kind, calls in kinds.items()}


def test_a_failed_system_call_is_told_or_recovered_from(instance: Make) -> None:
    """A sample: of a start, a stop, a restart and a birth."""
    need_strace()
    luck = random.Random(SEED)
    some = {kind: luck.sample(calls, SAMPLE) for kind, calls in known(instance).items()}
    each(start_and_stop, own_places(instance, some["start"]), some["start"])
    each(serve_and_stop, own_places(instance, some["stop"]), some["stop"])
    running = prepared(instance).start()
    each(lambda made, call: restart(made, call)[1], [running], some["restart"])
    each(lambda made, call: bear(made, call)[1], [running], some["birth"])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_system_call_of_a_start(instance: Make) -> None:
    """From the first one after the interpreter's own on."""
    need_strace()
    calls = known(instance)["start"]
    assert {"openat", "mknodat", "bind", "linkat", "unlinkat", "prctl"} <= {c.name for c in calls}
    came = each(start_and_stop, own_places(instance, calls), calls)
    assert came > 0.9 * len(calls)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_system_call_of_a_stop(instance: Make) -> None:
    """From the operator's command on."""
    need_strace()
    calls = known(instance)["stop"]
    assert {"sendmsg", "waitid", "unlinkat"} <= {call.name for call in calls}
    came = each(serve_and_stop, own_places(instance, calls), calls)
    assert came > 0.8 * len(calls)  # how many exits come together, and so the waitids, is chance


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_system_call_of_a_restart_and_of_a_birth(instance: Make) -> None:
    """One supervisor bears them all, one after another, and has no descriptor and no child more at the end than before."""
    need_strace()
    kinds = known(instance)
    running = prepared(instance).start()
    settled(running)
    before = belongings(running)
    came = each(lambda made, call: restart(made, call)[1], [running], kinds["restart"])
    assert came > 0.8 * len(kinds["restart"])
    came = each(lambda made, call: bear(made, call)[1], [running], kinds["birth"])
    assert came > 0.8 * len(kinds["birth"])
    wait_for(lambda: belongings(running) == before, "as many descriptors and children as before")


def test_a_connection_that_cannot_be_watched_costs_no_worker(running: Make) -> None:
    """It is closed, and its client asks again; the worker rests for a second from accepting and serves on."""
    need_strace()
    made = running()
    worker = made.worker()["pid"]
    refused = Call("epoll_ctl", 1, "of the connection that is accepted")
    with Strace(worker, made.folder / "worker.trace", refused.injection) as strace:
        assert echo(made) == b"are you there"
        assert strace.hit
    assert refused.error in made.wait_event("worker.accept_failed")["error"]
    assert made.worker()["pid"] == worker


def belongings(made: Instance) -> tuple[int, int]:
    """The supervisor's number of descriptors and of children, the heir among them."""
    return len(os.listdir(f"/proc/{made.pid}/fd")), len(children_of(made.pid))
