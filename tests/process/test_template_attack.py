"""A template killed, stopped or unable to fork at the worst moments: workers serve on, births come late but come; all is told."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from support.faults import echo, facts, heir_pid, kill_worker, ready, template_pid, turned_away
from support.injection import Strace, every_fork, need_strace
from support.instance import LIMIT, Event, Instance, alive, children_of, wait_for
from support.mendable import Mendable

Make = Callable[..., Instance]
Running = Callable[..., Instance]

IMPATIENT = """
import sys
from modelsupervisor.core import slots
slots.FORK_TIMEOUT = 0.7
from modelsupervisor.cli import main
sys.exit(main(sys.argv[1:]))
"""


def impatient(made: Instance) -> list[str]:
    """A supervisor that takes a template for hung after 0.7 s without a fork, instead of 10."""
    return [sys.executable, "-c", IMPATIENT, "start", "-c", str(made.config)]


def newest(made: Instance, name: str) -> Event:
    """The newest event of a name."""
    return made.events(name)[-1]


def all_serve(made: Instance, workers: int) -> None:
    """Every worker of the model echo answers."""
    for index in range(workers):
        assert echo(made, index=index) == b"are you there"


# -- killed -----------------------------------------------------------------------------------------------------------


def test_killed_in_the_midst_of_a_burst_of_births(running: Running) -> None:
    """Three of four workers and the template die at once: the fourth serves on, three are born of the next template."""
    made = running("template.exited", "worker.exited", "worker.spawn_failed", workers=4)
    template, sibling = template_pid(made), made.worker(index=3)["pid"]
    os.kill(template, signal.SIGSTOP)
    for index in range(3):
        kill_worker(made, signal.SIGKILL, index)
    made.wait_event("worker.starting", generation=2, count=3)
    assert facts(made, index=3)["pid"] == sibling
    os.kill(template, signal.SIGKILL)
    all_serve(made, 4)
    assert facts(made, index=3)["pid"] == sibling
    failed = made.events("worker.spawn_failed")
    assert {(each["next"], each["failures"]) for each in failed} == {("wait_for_template", 1)}
    assert all("template died before it forked" in each["reason"] for each in failed)
    assert newest(made, "template.exited")["next"] == "restart"
    for index in range(3):
        assert ready(made, 3, index)["start_s"] < LIMIT


def test_the_template_of_a_restart_that_is_killed_while_it_loads(
    running: Running, mendable: Mendable
) -> None:
    """The restart fails and says so; the present template bears the next worker as if nothing had been."""
    made = running(
        "template.exited", "restart.failed", "worker.exited", env__FAULT_FILE=mendable.path
    )
    template = template_pid(made)
    mendable.set("sleep")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(made.cli, "restart", "echo", "-c", str(made.config))
        os.kill(made.wait_event("template.output", generation=2)["pid"], signal.SIGKILL)
        answer = asked.result(LIMIT)
    assert answer.returncode == 1
    assert "the new template did not load; the present one serves on" in answer.stderr
    exited = made.wait_event("template.exited")
    assert (exited["generation"], exited["cause"], exited["next"]) == (2, "signal", "none")
    kill_worker(made, signal.SIGKILL)
    assert echo(made) == b"are you there"
    assert template_pid(made) == template and alive(template)


# -- hung -------------------------------------------------------------------------------------------------------------


def test_stopped_while_it_loads(instance: Make, mendable: Mendable) -> None:
    """A SIGSTOP in the middle of the load is found at startup_timeout, cause start_timeout, and the next one serves."""
    mendable.set("sleep")
    made = instance("template.exited")
    made.write(
        made.model(startup_timeout="1s", env__FAULT_FILE=mendable.path),
        "on_start_failure = continue",
    )
    made.launch()
    pid = made.wait_event("template.output")["pid"]
    os.kill(pid, signal.SIGSTOP)
    mendable.mend()
    exited = made.wait_event("template.exited")
    assert (exited["cause"], exited["next"]) == ("start_timeout", "restart")
    assert made.wait_event("supervisor.ready")["degraded"] is False
    assert echo(made) == b"are you there"


def test_stopped_while_nothing_is_asked_of_it(running: Running) -> None:
    """Nobody needs it then, and it is left alone; continued, it bears the next worker."""
    made = running("worker.exited", workers=2)
    template = template_pid(made)
    heir_pid(made.pid, template)
    os.kill(template, signal.SIGSTOP)
    all_serve(made, 2)
    os.kill(template, signal.SIGCONT)
    kill_worker(made, signal.SIGKILL)
    all_serve(made, 2)
    assert template_pid(made) == template and alive(template)


def test_every_template_hangs_when_it_is_asked(instance: Make, mendable: Mendable) -> None:
    """Each is ended as hung, with back-off between two, and the model is FAILED in the end; its other worker serves on."""
    made = instance("template.exited", "worker.exited", "worker.spawn_failed")
    mendable.mend()
    made.write(made.model(workers=2, max_failures=3, env__FAULT_FILE=mendable.path))
    made.launch(command=impatient(made)).wait_event("supervisor.ready")
    sibling = made.worker(index=1)["pid"]
    mendable.set("stop_at_fork")
    os.kill(template_pid(made), signal.SIGKILL)
    template_pid(made, 2)
    kill_worker(made, signal.SIGKILL)
    made.wait_event("template.exited", cause="hung", count=2)
    exits = made.events("template.exited")
    assert [each["next"] for each in exits] == ["restart", "back_off", "failed"]
    assert all(
        "did not fork in time" in each["reason"] for each in made.events("worker.spawn_failed")
    )
    wait_for(lambda: made.worker()["phase"] == "FAILED", "the slot to say so")
    assert turned_away(made.socket())
    assert facts(made, index=1)["pid"] == sibling
    mendable.mend()
    assert made.cli("restart", "echo", "-c", str(made.config)).returncode == 0
    all_serve(made, 2)


# -- unable to fork ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["ENOMEM", pytest.param("EAGAIN", marks=pytest.mark.slow)])
def test_a_template_whose_every_fork_fails(running: Running, error: str) -> None:
    """Told with the reason each time, with back-off, then FAILED; it does not spin, its other worker lives, it forks in the end."""
    need_strace()
    made = running(
        "worker.exited", "worker.spawn_failed", "worker.failed", workers=2, max_failures=4
    )
    template, sibling = template_pid(made), made.worker(index=1)["pid"]
    heir_pid(made.pid, template)
    with Strace(template, made.folder / "trace", every_fork(error)) as strace:
        kill_worker(made, signal.SIGKILL)
        ready(made, 2)  # the heir needs no fork
        kill_worker(made, signal.SIGKILL)
        made.wait_event("worker.failed")
        forks = sum(call.name.startswith(("clone", "fork", "vfork")) for call in strace.calls())
        assert facts(made, index=1)["pid"] == sibling
    failed = made.events("worker.spawn_failed")
    assert [each["next"] for each in failed] == ["back_off", "failed"]
    assert [each["failures"] for each in failed] == [3, 4]
    assert all("the template could not fork" in each["reason"] for each in failed)
    assert all(f"({error})" in each["reason"] for each in failed)
    assert forks <= 6  # two births, an heir ahead of each wait; not one after another
    assert made.cli("restart", "echo/0", "-c", str(made.config)).returncode == 0
    all_serve(made, 2)
    assert template_pid(made) == template and alive(template)


def test_no_template_can_be_started(running: Running) -> None:
    """The supervisor's own forks fail while the template dies: tries with back-off, workers serve on, the first fork that can be
    made brings a template."""
    need_strace()
    made = running("template.exited", workers=2, max_failures=9)
    workers = [made.worker(index=index)["pid"] for index in (0, 1)]
    with Strace(made.pid, made.folder / "trace", every_fork("EAGAIN")):
        os.kill(template_pid(made), signal.SIGKILL)
        made.wait_event("template.exited", count=3)
        assert [facts(made, index=index)["pid"] for index in (0, 1)] == workers
    exits = made.events("template.exited")
    assert [each["next"] for each in exits] == ["restart", "back_off", "back_off"]
    assert all("Resource temporarily unavailable" in each["reason"] for each in exits[1:])
    assert [each["cause"] for each in exits[1:]] == ["spawn_failed"] * 2
    assert 0.7 < exits[2]["retry_in_s"] < 1.3
    assert made.wait_event("template.ready", count=2)["generation"] == 4
    assert [facts(made, index=index)["pid"] for index in (0, 1)] == workers


# -- at random --------------------------------------------------------------------------------------------------------


def torment(make: Make, rounds: int, seed: int) -> Instance:
    """Kill or stop templates, and workers with them, at random moments of births; whoever asks is answered each time."""
    luck = random.Random(seed)
    made = make("template.exited", "worker.exited", "worker.spawn_failed")
    made.write(made.model(workers=4, stable_after="1ms"))
    made.launch(command=impatient(made)).wait_event("supervisor.ready")
    for number in range(rounds):
        present = made.events("template.ready")[-1]
        template = os.pidfd_open(present["pid"])
        for index in luck.sample(range(4), luck.randrange(4)):
            kill_if_there(made, index)
        time.sleep(luck.uniform(0, 0.03))  # the moment is what is tested
        send(template, luck.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]))
        kill_if_there(made, luck.randrange(4))
        try:
            all_serve(made, 4)
            send(template, signal.SIGKILL)
            wait_for(lambda then=present: later(made, then), "the next template")
        except (AssertionError, OSError) as error:
            raise AssertionError(
                f"round {number}, seed {seed}: {error!r}\n{made.story()}"
            ) from None
        finally:
            os.close(template)
    all_serve(made, 4)
    return made


def later(made: Instance, then: Event) -> bool:
    """A template of a later generation has loaded."""
    generation: int = made.events("template.ready")[-1]["generation"]
    return generation > then["generation"]


def send(pidfd: int, number: signal.Signals) -> None:
    """Signal a process that may be gone."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def kill_if_there(made: Instance, index: int) -> None:
    """Kill the process of a slot, where there is one."""
    pid = made.worker(index=index)["pid"]
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_templates_tormented_at_random(instance: Make) -> None:
    """A few rounds; every worker answers after each."""
    torment(instance, 2, random.randrange(10**6))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_templates_tormented_at_random_for_long(instance: Make) -> None:
    """Thirty rounds; in the end there are four workers, a template, its heir, and as many descriptors as in the beginning."""
    quiet = torment(instance, 0, 0)
    tormented = torment(instance, 30, random.randrange(10**6))
    wait_for(lambda: belongings(tormented) == belongings(quiet), "nothing to be left over")


def belongings(made: Instance) -> tuple[int, int]:
    """The supervisor's numbers of descriptors and of children."""
    return len(os.listdir(f"/proc/{made.pid}/fd")), len(children_of(made.pid))
