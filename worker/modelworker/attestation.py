"""What a worker really has: the CPUs of each of its threads, the count of each OpenMP runtime, versions.

The supervisor asks for it when it has been told of READY, and later when it likes, and compares it with the plan: a handler, or a
library that it starts, may have changed any of it. It is asked for and not sent along with READY, because the first answer would
wait for it: in a process that was just forked, most of what it touches is a page to be copied [measured: 0.2 ms for the threads of
a worker with 20, 0.1 ms for the rest; 0.03 ms in all once it is warm].

Threads with the same CPUs are told together, so that the message stays small however many there are.
"""

from __future__ import annotations

import os
from typing import Any, Dict, FrozenSet, List, Sequence

from modelworker import frameworks

_MOST_SETS = 8  # distinct sets of CPUs that are told: the message has its limit, and one that differs is enough


def attestation(setters: Sequence[Any], pinned: bool) -> Dict[str, Any]:
    """The fields of `attested`: `tasks` only of a worker that is bound to CPUs, since otherwise nothing was planned.

    Never raises for want of descriptors or memory: they are the handler's to use up, and no reason to die of being asked.
    """
    try:
        tasks = _affinities() if pinned else []
    except (OSError, MemoryError):
        tasks = []
    return {
        "tasks": tasks,
        "openmp": frameworks.thread_counts(setters),
        "versions": frameworks.versions(),
    }


def _affinities() -> List[Dict[str, Any]]:
    """The sets of CPUs that the threads of this process may run on, and how many threads each has."""
    counts: Dict[FrozenSet[int], int] = {}
    for task in os.listdir("/proc/self/task"):
        try:
            cpus = frozenset(os.sched_getaffinity(int(task)))
        except ProcessLookupError:  # ended meanwhile
            continue
        counts[cpus] = counts.get(cpus, 0) + 1
    told = sorted(counts, key=lambda cpus: -counts[cpus])[:_MOST_SETS]
    return [{"cpus": sorted(cpus), "count": counts[cpus]} for cpus in told]
