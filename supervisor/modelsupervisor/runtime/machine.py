"""The machine as this process finds it: CPUs, cores, NUMA nodes, kinds of cores, and CPU quota.

All of it is text in /sys and /proc, read below a root that is an argument, so that tests read
machines that are written down. Containers, old kernels and odd machines lack any part of it: then
the plainest thing is assumed, and a note for `plan` says so; nothing here raises. What is absent
everywhere but on its own kind of machine (a hybrid processor's lists, a quota) is no note.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from modelsupervisor.core.reasons import show_cpus
from modelsupervisor.core.topology import Cpu, Kind, Topology
from modelsupervisor.runtime.cgroup import read_cgroup
from modelsupervisor.runtime.kernel_text import cpu_list, read_text

CPU_FOLDER = "sys/devices/system/cpu"
NODE_FOLDER = "sys/devices/system/node"
# Intel's two performance counters of a hybrid processor name the CPUs of each kind
SLOW_LIST = "sys/devices/cpu_atom/cpus"


def read_topology(root: str = "/", affinity: Iterable[int] | None = None) -> Topology:
    """What this process may use of the machine whose /sys and /proc lie under `root`.

    `affinity` are the CPUs that the scheduler lets it run on; None: they are asked of the kernel.
    """
    numbers = set(os.sched_getaffinity(0) if affinity is None else affinity)
    notes: list[str] = []
    group = read_cgroup(root)
    notes += group.notes
    if group.cpus is not None:
        if numbers & group.cpus:
            numbers &= group.cpus
        else:
            notes.append(
                f"The cpuset {show_cpus(tuple(sorted(group.cpus)))} has no CPU of this process's "
                "affinity; the affinity is gone by."
            )
    allowed = tuple(sorted(numbers))
    cores = _cores(root, allowed, notes)
    nodes = _nodes(root, allowed, notes)
    slow = _slow(root, allowed)
    cpus = tuple(
        Cpu(n, cores[n], nodes.get(n, 0), Kind.SLOW if n in slow else Kind.FAST) for n in allowed
    )
    return Topology(cpus, group.quota, tuple(notes))


def _cores(root: str, allowed: tuple[int, ...], notes: list[str]) -> dict[int, int]:
    """For each CPU the lowest number among its hardware threads, which names its core."""
    cores = {}
    unknown = []
    for number in allowed:
        folder = os.path.join(root, CPU_FOLDER, f"cpu{number}", "topology")
        # core_cpus_list is the same under the name that newer kernels prefer
        siblings = _siblings(folder, "thread_siblings_list") or _siblings(folder, "core_cpus_list")
        if siblings is None or number not in siblings:
            unknown.append(number)
            siblings = frozenset({number})
        cores[number] = min(siblings)
    if unknown:
        notes.append(
            f"/{CPU_FOLDER} does not say which hardware threads share a core with CPU "
            f"{show_cpus(tuple(unknown))}; each counts as a core."
        )
    return cores


def _siblings(folder: str, name: str) -> frozenset[int] | None:
    return cpu_list(read_text(os.path.join(folder, name)))


def _nodes(root: str, allowed: tuple[int, ...], notes: list[str]) -> dict[int, int]:
    """The NUMA node of each CPU; a CPU of none is left out."""
    folder = os.path.join(root, NODE_FOLDER)
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        notes.append(f"There is no /{NODE_FOLDER}: one NUMA node is assumed.")
        return {}
    nodes: dict[int, int] = {}
    for name in names:
        number = name.removeprefix("node")
        if number != name and number.isascii() and number.isdigit():
            listed = cpu_list(read_text(os.path.join(folder, name, "cpulist"))) or frozenset()
            nodes.update(dict.fromkeys(listed, int(number)))
    missing = tuple(number for number in allowed if number not in nodes)
    if missing:
        notes.append(
            f"/{NODE_FOLDER} does not say which NUMA node CPU {show_cpus(missing)} is of; "
            "node 0 is assumed."
        )
    return nodes


def _slow(root: str, allowed: tuple[int, ...]) -> frozenset[int]:
    """The CPUs of slow cores: those that Intel's hybrid processors list as such, or whose capacity
    (ARM: 1024 is the fastest of the machine) is at most half of the largest here; the middle ones
    of three clusters are above that.
    """
    listed = cpu_list(read_text(os.path.join(root, SLOW_LIST)))
    if listed is None:
        capacity: dict[int, int] = {}
        for number in allowed:
            text = read_text(os.path.join(root, CPU_FOLDER, f"cpu{number}", "cpu_capacity"))
            if text is None or not text.isascii() or not text.isdigit():
                return frozenset()
            capacity[number] = int(text)
        largest = max(capacity.values(), default=0)
        listed = frozenset(n for n, value in capacity.items() if value * 2 <= largest)
    slow = listed & frozenset(allowed)
    return frozenset() if slow == frozenset(allowed) else slow  # all alike: there is no faster one
