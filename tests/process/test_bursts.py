"""Many deaths: all workers at once, one after another for long, and the supervisor's own in the midst of a birth."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.faults import echo, ready, template_pid
from support.instance import Instance, children_of, marked_processes, state_of, wait_for

Make = Callable[..., Instance]
Running = Callable[..., Instance]

BURST = 32
GONE_WITHIN = 5.0  # seconds; tens of milliseconds are seen on a quiet machine
PAGE = os.sysconf("SC_PAGE_SIZE")


# -- all at once --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True], ids=["as_they_come", "seen_in_one_turn"])
def test_a_burst_of_deaths(running: Running, stopped: bool) -> None:
    """32 workers killed together: 32 exits told, 32 successors, every slot answers, and no zombie is left.

    With the supervisor itself stopped meanwhile, it finds all of them dead in one turn of its loop.
    """
    instance = running("worker.exited", workers=BURST, threads=1)
    pids = [worker["pid"] for worker in instance.status()["models"][0]["workers"]]
    if stopped:
        instance.signal(signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    if stopped:
        wait_for(lambda: {state_of(pid) for pid in pids} == {"Z"}, "all of them to be dead")
        instance.signal(signal.SIGCONT)
    instance.wait_event("worker.ready", generation=2, count=BURST)
    assert [echo(instance, b"%d" % index, index) for index in range(BURST)] == [
        b"%d" % index for index in range(BURST)
    ]
    assert sorted(event["pid"] for event in instance.events("worker.exited")) == sorted(pids)
    assert {event["worker"] for event in instance.events("worker.starting", generation=2)} == set(
        range(BURST)
    )
    assert len(instance.events("worker.starting")) == 2 * BURST
    workers = instance.status()["models"][0]["workers"]
    assert [worker["restarts"] for worker in workers] == [1] * BURST
    wait_for(
        lambda: "Z" not in {state_of(child) for child in children_of(instance.pid)}, "no zombie"
    )
    own = {worker["pid"] for worker in workers} | {template_pid(instance)}
    assert len(set(children_of(instance.pid)) - own) <= 1  # the heir
    assert not instance.events("orphan.adopted")


# -- one after another --------------------------------------------------------------------------------------------------


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def memory(pid: int) -> tuple[int, int]:
    """RSS and PSS of a process in KiB."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    figures = {line.split()[0]: int(line.split()[1]) for line in rollup[1:]}
    return figures["Rss:"], figures["Pss:"]


def restart_by_kill(instance: Instance, slots: int, generations: range) -> None:
    """In each slot, for each generation: an answer, kill -9, and its successor READY. Slots take turns."""
    for generation in generations:
        for index in range(slots):
            assert echo(instance, index=index) == b"are you there"
            os.kill(ready(instance, generation, index)["pid"], signal.SIGKILL)
        for index in range(slots):
            ready(instance, generation + 1, index)


def stay_flat(instance: Instance, slots: int, warm: int, generations: int) -> None:
    """Hold descriptors and memory of supervisor and template against what they were after `warm` generations.

    The supervisor keeps the newest megabyte of events of each slot for `logs`: that much may come to it.
    """
    restart_by_kill(instance, slots, range(1, warm))
    template = template_pid(instance)
    processes = {"supervisor": instance.pid, "template": template}
    opened = {pid: descriptors(pid) for pid in processes.values()}
    before = {name: memory(pid) for name, pid in processes.items()}
    restart_by_kill(instance, slots, range(warm, generations))
    for name, pid in processes.items():
        wait_for(lambda pid=pid: descriptors(pid) <= opened[pid], f"the {name}'s descriptors")
    after = {name: memory(pid) for name, pid in processes.items()}
    print("KiB before and after:", before, after)
    kept = sum(line.stat().st_size for line in [instance.log]) // 1024
    for name, allowed in (("supervisor", 1024 + kept), ("template", 512)):
        for figure, was, became in zip(("RSS", "PSS"), before[name], after[name], strict=True):
            assert became - was <= allowed, f"{figure} of the {name}: {was} → {became} KiB"
    assert template_pid(instance) == template
    assert len(instance.events("worker.exited")) == slots * (generations - 1)


def test_restarts_leave_nothing_behind(running: Running) -> None:
    """60 of them, an answer between each: as many descriptors as before, and no more memory."""
    instance = running("worker.exited", workers=4, threads=1)
    stay_flat(instance, 4, 5, 16)


@pytest.mark.slow
def test_five_hundred_restarts_leave_nothing_behind(running: Running) -> None:
    """The same for long."""
    instance = running("worker.exited", workers=8, threads=1)
    stay_flat(instance, 8, 10, 64)


# -- the supervisor itself ----------------------------------------------------------------------------------------------


def children(pid: int) -> list[str]:
    """The children of a process, as the kernel lists them; none of one that is gone."""
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def kill_at_birth(instance: Instance, births: int, delay: float) -> None:
    """Start, kill -9 the supervisor `delay` seconds after so many children of it were seen, and wait for the end of everything."""
    instance.launch()
    deadline = time.monotonic() + 30
    while len(children(instance.pid)) < births:
        assert time.monotonic() < deadline and instance.process.poll() is None, instance.story()  # type: ignore[union-attr]
        time.sleep(0.0005)
    time.sleep(delay)  # not a wait for anything: the moment is what is tested
    instance.signal(signal.SIGKILL)
    instance.wait()
    what = f"everything to be gone, killed {delay * 1000:.2f} ms after child number {births}"
    wait_for(lambda: not marked_processes(instance.mark), what, GONE_WITHIN)


def kill_at_births(made: Instance, seed: int, rounds: int) -> None:
    """So many kills in one run directory, at moments drawn by the seed, and then a start like any other."""
    luck = random.Random(seed)
    for _ in range(rounds):
        # The first child is the template, which is killed while it is exec'd, the others are workers and the heir.
        kill_at_birth(made, luck.choice((1, 2, 2, 3, 3, 4)), luck.uniform(0, 0.005))
    made.start()
    assert [echo(made, index=index) for index in range(3)] == [b"are you there"] * 3
    assert made.stop() == 0


def kill_in_lanes(make: Make, lanes: int, rounds: int) -> None:
    """Several run directories side by side."""
    instances = [make() for _ in range(lanes)]
    for each in instances:
        each.write(each.model(workers=3, threads=1))
    with ThreadPoolExecutor(lanes) as pool:
        for outcome in [
            pool.submit(kill_at_births, each, seed, rounds) for seed, each in enumerate(instances)
        ]:
            outcome.result()


def test_a_supervisor_killed_at_a_birth_leaves_no_orphan(instance: Make) -> None:
    """20 times, up to 5 ms after a process was born: all of the tree is gone, and the next start in its place works."""
    kill_in_lanes(instance, 2, 10)


@pytest.mark.slow
@pytest.mark.timeout(400)  # 200 starts: 50 s on a machine that does nothing else
def test_a_supervisor_killed_at_two_hundred_births_leaves_no_orphan(instance: Make) -> None:
    """The same for long."""
    kill_in_lanes(instance, 4, 50)
