"""What a handler starts beside itself, and what is left when the supervisor itself is killed: nothing outlives its time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from support.faults import Caller, ask, echo, kill_worker, ready, request, template_pid
from support.instance import Instance, alive, children_of, marked_processes, state_of, wait_for

Running = Callable[..., Instance]


@pytest.mark.parametrize("orphaned", [False, True], ids=["child", "whose_own_parent_left"])
def test_a_helper_in_the_session_dies_with_its_worker(running: Running, orphaned: bool) -> None:
    """Killed before its worker is reaped, named in the reason, and no zombie is left of it."""
    instance = running("worker.exited")
    helper = int(ask(instance, "helper", orphaned=orphaned))
    assert alive(helper)
    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    wait_for(lambda: state_of(helper) is None, "the helper to be gone, reaped")
    assert "1 helper process killed with it" in instance.wait_event("worker.exited")["reason"]
    own = {template_pid(instance), instance.worker()["pid"]}
    assert len(set(children_of(instance.pid)) - own) <= 1  # the heir
    assert not instance.events("orphan.killed")


def test_a_helper_dies_with_a_worker_that_stops_as_asked(running: Running) -> None:
    """A graceful stop leaves no helper either."""
    instance = running()
    helper = int(ask(instance, "helper"))
    assert instance.stop() == 0
    assert state_of(helper) is None


def test_a_helper_that_left_the_session_is_reported_and_ends_with_the_supervisor(
    running: Running,
) -> None:
    """What its worker's session does not hold is an orphan.adopted event, lives on, and is gone after the stop."""
    instance = running("worker.exited")
    helper = int(ask(instance, "helper", session=True))
    kill_worker(instance, signal.SIGKILL)
    adopted = instance.wait_event("orphan.adopted")
    assert (adopted["pid"], adopted["command"], adopted["level"]) == (helper, "sleep", "warning")
    ready(instance, 2)
    assert alive(helper)
    assert instance.stop() == 0
    assert state_of(helper) is None
    assert [event["pid"] for event in instance.events("orphan.killed")] == [helper]
    assert len(instance.events("orphan.adopted")) == 1


def test_an_orphan_that_ends_by_itself_is_reaped(running: Running) -> None:
    """It was reported when it came and is when it goes; no zombie stays."""
    instance = running("worker.exited")
    helper = int(ask(instance, "helper", session=True))
    kill_worker(instance, signal.SIGKILL)
    instance.wait_event("orphan.adopted", pid=helper)
    os.kill(helper, signal.SIGTERM)
    gone = instance.wait_event("orphan.exited", pid=helper)
    assert gone["reason"] == "killed by SIGTERM"
    assert state_of(helper) is None


# -- the supervisor's own death ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quiet", [True, False], ids=["pause", "sleep"])
def test_a_worker_busy_in_c_is_gone_within_a_second_of_its_supervisor(
    running: Running, quiet: bool
) -> None:
    """It holds the GIL for ever and sees neither message nor signal handler: the kernel kills it, and its template."""
    instance = running()
    with Caller(instance.socket(), request("busy_in_c", quiet=quiet)):
        record = instance.run_dir / "scoreboard"
        wait_for(lambda: record.read_bytes()[32] == 1, "the request to be in hand")
        instance.signal(signal.SIGKILL)
        wait_for(lambda: not marked_processes(instance.mark), "everything to be gone", 1.0)
    instance.wait()
    instance.start()  # sweeps what was left
    assert echo(instance) == b"are you there"
