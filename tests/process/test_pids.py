"""Process numbers that change hands: strangers in the place of the dead, a space of few numbers, PID 1 among foreign orphans."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.faults import crash, echo, ready, template_pid
from support.instance import Instance, state_of, wait_for
from support.namespaces import (
    first_process,
    inside,
    launch_in_namespace,
    line_of,
    pids_inside,
    require_namespaces,
)

Make = Callable[..., Instance]


@pytest.fixture(autouse=True)
def needs_namespaces() -> None:
    """Root, or a kernel that lets anybody; and nsenter."""
    if shutil.which("nsenter") is None:
        pytest.skip("there is no nsenter here")
    require_namespaces()


# Kills a process, waits until its number is free, and has a stranger take that number: the leader of a session of the same number.
# Says "taken", and at the end of its own input whether the stranger still lives.
_THIEF = """
import os, signal, sys, time
victim = int(sys.argv[1])
os.kill(victim, signal.SIGKILL)
deadline = time.monotonic() + 5
stranger = 0
while stranger != victim:
    if stranger:
        os.kill(stranger, signal.SIGKILL)
        os.waitpid(stranger, 0)
    while os.path.exists("/proc/%d" % victim) or time.monotonic() > deadline:
        if time.monotonic() > deadline:  # somebody else was faster
            print("missed", flush=True)
            sys.exit()
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(victim - 1))
    stranger = os.fork()
    if stranger == 0:
        os.setsid()
        while True:
            signal.pause()
print("taken", flush=True)
sys.stdin.read()
pid, status = os.waitpid(stranger, os.WNOHANG)
print("lives" if pid == 0 else "ended with %d" % status, flush=True)
os.kill(stranger, signal.SIGKILL)
"""


def needs_last_pid() -> None:
    """The kernel lets the next number be chosen."""
    if not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
        pytest.skip("the next pid cannot be chosen here (kernel.ns_last_pid)")


def test_a_stranger_with_the_number_of_a_dead_worker_is_left_alone(instance: Make) -> None:
    """Its pid and its session are those of workers and of a template that died; whatever is done afterwards, it is not touched.

    Exits, restarts of every kind and the stop signal and reap by descriptor, or by a number that an unreaped child of ours holds.
    """
    needs_last_pid()
    if not any(_is_left_alone(instance("worker.exited", "template.exited")) for _ in range(3)):
        pytest.skip("somebody else had the number first, three times")


def _is_left_alone(made: Instance) -> bool:
    """The same for one supervisor; False where a stranger did not get the number that it was to have."""
    made.write(made.model(workers=3, threads=1))
    launch_in_namespace(made, init=True).wait_event("supervisor.ready")
    with ExitStack() as stack:
        thieves = []
        for index, victim in enumerate(
            [ready(made, 1, 0)["pid"], ready(made, 1, 1)["pid"], template_pid(made)]
        ):
            thieves.append(stack.enter_context(inside(made, _THIEF, str(victim))))
            if line_of(thieves[-1]) == "missed":
                os.kill(_supervisor(made), signal.SIGTERM)
                made.wait_event("supervisor.stopped")
                return False
            if index < 2:
                ready(made, 2, index)
        made.wait_event("template.ready", generation=2)
        assert len({event["pid"] for event in made.events("worker.exited")}) == 2
        for index in range(3):
            crash(made, "kill", index=index)
            ready(made, 2 if index == 2 else 3, index)
            assert echo(made, index=index) == b"are you there"
        for target in ("echo", "echo/0"):
            assert made.cli("restart", target, "-c", str(made.config)).returncode == 0
        os.kill(_supervisor(made), signal.SIGTERM)
        made.wait_event("supervisor.stopped")
        # PID 1 goes with its program, and all the namespace with it: the strangers are asked before it is seen to be gone
        said = []
        for thief in thieves:
            assert thief.stdin is not None
            thief.stdin.close()
            said.append(line_of(thief))
    assert said == ["lives"] * 3
    assert made.wait() == 0
    assert not made.events("orphan.adopted") and not made.events("orphan.killed")
    return True


def _supervisor(made: Instance) -> int:
    """Its pid, out here."""
    return pids_inside(made)[made.events("supervisor.starting")[0]["pid"]]


# Processes that are born and gone all the time, and some that stay; each takes the next number that is free.
_CHURN = """
import os, signal, sys, time
stay = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        while True:
            signal.pause()
    stay.append(pid)
print("churning", flush=True)
os.set_blocking(0, False)
seen = set()
while True:
    try:
        if os.read(0, 1) == b"":
            break
    except BlockingIOError:
        pass
    try:
        pid = os.fork()
    except OSError:
        continue  # no number is free just now
    if pid == 0:
        os.setsid()
        os._exit(0)
    seen.add(pid)
    os.waitpid(pid, 0)
    time.sleep(0.0005)
gone = [pid for pid in stay if os.waitpid(pid, os.WNOHANG)[0]]
for pid in stay:
    if pid not in gone:
        os.kill(pid, signal.SIGKILL)
print(len(gone), *sorted(seen), flush=True)
"""

FEW = 330  # numbers below 300 are given out once, and never again (RESERVED_PIDS)


def needs_own_space_of_pids() -> None:
    """kernel.pid_max of a namespace is its own from Linux 6.14 on; before that it is the machine's, and left alone."""
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is None or (int(version[1]), int(version[2])) < (6, 14):
        pytest.skip("kernel.pid_max is not a namespace's own here")


def test_a_space_of_few_pids(instance: Make) -> None:
    """Numbers are used again within milliseconds, by strangers and by workers: each death is told once, and nobody else dies."""
    needs_own_space_of_pids()
    made = instance("worker.exited", "worker.spawn_failed", "template.exited")
    made.write(made.model(workers=4, threads=1))
    first = f"echo {FEW} > /proc/sys/kernel/pid_max; echo 290 > /proc/sys/kernel/ns_last_pid"
    launch_in_namespace(made, first, init=True).wait_event("supervisor.ready")
    with inside(made, _CHURN) as churn:
        assert line_of(churn) == "churning"
        for generation in range(1, 8):
            for index in range(4):
                pid = ready(made, generation, index)["pid"]
                crash(made, "kill", index=index)
                assert (
                    made.wait_event("worker.exited", worker=index, generation=generation)["pid"]
                    == pid
                )
        for index in range(4):
            ready(made, 8, index)
            assert echo(made, index=index) == b"are you there"
        assert churn.stdin is not None
        churn.stdin.close()
        gone, *seen = map(int, line_of(churn).split())
    assert gone == 0
    exited = made.events("worker.exited")
    assert len(exited) == len({(event["worker"], event["generation"]) for event in exited}) == 28
    assert {event["signal"] for event in exited} == {"SIGKILL"}
    workers = {event["pid"] for event in exited}
    assert workers & set(seen), "no number of a worker was a stranger's too"
    assert not made.events("orphan.adopted")
    assert made.stop() == 0


# -- PID 1 --------------------------------------------------------------------------------------------------------------

# Forks children that fork twice more and leave: what is left of each is a process that nobody of ours ever asked for.
_ORPHANS = """
import os, sys, time
count, seconds = int(sys.argv[1]), float(sys.argv[2])
for number in range(count):
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os.setsid()
            print(os.getpid(), flush=True)
            os.close(1)
            time.sleep(seconds)
            os._exit(number % 7)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture
def first(instance: Make) -> Instance:
    """A supervisor that is PID 1."""
    made = instance("worker.exited")
    made.write(made.model(workers=2, threads=1))
    launch_in_namespace(made).wait_event("supervisor.ready")
    assert made.events("supervisor.starting")[0]["pid"] == 1
    return made


def test_pid_1_reaps_whom_it_inherits(first: Instance) -> None:
    """Those that stay are reported, at the next death of anybody, and again when they go; those that go at once are reaped in
    silence; no zombie stays.
    """
    with inside(first, _ORPHANS, "30", "0") as program:
        quick = {int(line_of(program)) for _ in range(30)}
    with inside(first, _ORPHANS, "5", "1000") as program:
        slow = [int(line_of(program)) for _ in range(5)]
    crash(first, "kill")
    for pid in slow:
        assert first.wait_event("orphan.adopted", pid=pid)["command"].startswith("python")
    outside = pids_inside(first)
    for pid in slow:
        os.kill(outside[pid], signal.SIGTERM)
        assert first.wait_event("orphan.exited", pid=pid)["reason"] == "killed by SIGTERM"
    own = {1, template_pid(first)} | {
        worker["pid"] for worker in first.status()["models"][0]["workers"]
    }

    def strangers() -> set[int]:
        return set(pids_inside(first)) & (quick | set(slow)) - own

    wait_for(lambda: not strangers(), "every orphan to be reaped")
    reported = {event["pid"] for event in first.events("orphan.adopted")}
    assert reported == {event["pid"] for event in first.events("orphan.exited")}
    assert echo(first) == b"are you there"


def test_pid_1_restarts_workers_among_orphans(first: Instance) -> None:
    """Strangers of all kinds in its care, it sees its own workers' deaths as ever, and kills nobody else's process with them."""
    with inside(first, _ORPHANS, "10", "1000") as program:
        strangers = [int(line_of(program)) for _ in range(10)]
    for generation in (1, 2, 3):
        for index in (0, 1):
            crash(first, "kill", index=index)
            ready(first, generation + 1, index)
    assert set(strangers) <= set(pids_inside(first))
    assert {event["pid"] for event in first.events("orphan.adopted")} == set(strangers)
    exited = first.events("worker.exited")
    assert len(exited) == 6
    assert not any("helper" in event["reason"] for event in exited)
    assert first.cli("stop", "-c", str(first.config)).returncode == 0
    assert first.wait() == 0
    assert {event["pid"] for event in first.events("orphan.killed")} == set(strangers)


def test_pid_1_that_is_killed_takes_all_along(instance: Make) -> None:
    """Its namespace ends with it, and the next start in the same run directory works."""
    made = instance()
    made.write(made.model(workers=2, threads=1))
    launch_in_namespace(made).wait_event("supervisor.ready")
    inner = list(pids_inside(made).values())
    os.kill(first_process(made), signal.SIGKILL)
    assert made.wait() != 0
    wait_for(lambda: {state_of(pid) for pid in inner} == {None}, "the namespace to be gone")
    launch_in_namespace(made).wait_event("supervisor.ready")
    assert echo(made) == b"are you there"
    assert made.stop() == 0


def test_pid_1_stops_in_order(first: Instance) -> None:
    """SIGTERM reaches PID 1 only because it is handled: exit code 0, nothing left, in a moment."""
    begun = time.monotonic()
    assert first.stop() == 0
    assert time.monotonic() - begun < 10
    assert [path.name for path in Path(first.run_dir).iterdir()] == ["lock"]
