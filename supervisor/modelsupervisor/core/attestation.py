"""What a worker was planned to have, what it has, and the differences in words. Pure.

A plan is a promise about threads and CPUs that any library in the worker can break: it is held against what the worker attests
when it is ready, and what the kernel says of its threads later. Where nothing was planned (`cpus = none`) nothing can differ. A
thread that may run on *some* of the planned CPUs is where the plan wants it if the operator had the runtime bind its threads one by
one (OMP_PROC_BIND and its like); otherwise somebody moved it, or the CPUs are gone, and then the words say which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from modelsupervisor.core.reasons import counted, show_cpus

BINDING_VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_NOT_BOUND = ("", "false", "none", "disabled")


class What(str, Enum):
    """What can differ from the plan."""

    CPUS = "cpus"
    THREADS = "threads"
    VERSION = "version"


@dataclass(frozen=True)
class Planned:
    """`cpus`: ascending, None where none are planned. `threads`: of each OpenMP runtime. `bound`: the operator's variables bind
    single threads. `versions`: by name, what the template said that it has.
    """

    cpus: tuple[int, ...] | None
    threads: int
    bound: bool = False
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Tasks:
    """So many threads of a process that may run on the same CPUs."""

    cpus: frozenset[int]
    count: int


@dataclass(frozen=True)
class Usable:
    """The CPUs that are online, and those of our cpuset; None where that is not known. They are read only to explain."""

    online: frozenset[int] | None = None
    cpuset: frozenset[int] | None = None


@dataclass(frozen=True)
class Difference:
    """One thing that is not as planned: both sides as the configuration writes them, and a sentence. `subject` is the runtime or
    package, where it is about one.
    """

    what: What
    planned: str
    found: str
    reason: str
    subject: str = ""

    @property
    def identity(self) -> tuple[What, str, str]:
        """The same for the same difference, whatever its words count."""
        return self.what, self.subject, self.found


def binds_threads(environment: Mapping[str, str]) -> bool:
    """True where a variable has the OpenMP runtime bind each thread to a CPU of its own."""
    return any(
        environment.get(name, "").strip().lower() not in _NOT_BOUND for name in BINDING_VARIABLES
    )


def astray(planned: Planned, tasks: Iterable[Tasks]) -> list[Tasks]:
    """The threads that may not run where the plan wants them, or may run elsewhere."""
    if planned.cpus is None:
        return []
    wanted = frozenset(planned.cpus)
    return [
        each for each in tasks if each.cpus != wanted and not (planned.bound and each.cpus < wanted)
    ]


def cpu_differences(planned: Planned, tasks: Iterable[Tasks], usable: Usable) -> list[Difference]:
    """The differences of a worker's threads; `tasks` are all that it has."""
    all_tasks = list(tasks)
    total = sum(each.count for each in all_tasks)
    wanted = planned.cpus or ()
    differences = []
    for each in astray(planned, all_tasks):
        found = tuple(sorted(each.cpus))
        many = f"{each.count} of {total} threads" if total > 1 else "its one thread"
        words = f"{many} may run on {counted('CPU', found)}; planned: {counted('CPU', wanted)}"
        words += _why_gone(frozenset(wanted) - each.cpus, usable)
        differences.append(Difference(What.CPUS, show_cpus(wanted), show_cpus(found), words))
    return differences


def _why_gone(missing: frozenset[int], usable: Usable) -> str:
    """What became of planned CPUs that a thread may not run on, where that is known."""
    words = ""
    offline = missing - usable.online if usable.online is not None else frozenset[int]()
    outside = missing - offline - usable.cpuset if usable.cpuset is not None else frozenset[int]()
    for gone, where in ((offline, "offline"), (outside, "not in the cpuset any more")):
        if gone:
            numbers = tuple(sorted(gone))
            words += f"; {counted('CPU', numbers)} {'is' if len(gone) == 1 else 'are'} {where}"
    return words


def thread_differences(planned: Planned, counts: Iterable[tuple[str, int]]) -> list[Difference]:
    """The OpenMP runtimes (name and thread count) that would compute with more or fewer threads."""
    return [
        Difference(
            What.THREADS,
            str(planned.threads),
            str(count),
            f"{name} would compute with {count} thread{'' if count == 1 else 's'}; planned: {planned.threads}",
            name,
        )
        for name, count in counts
        if count != planned.threads
    ]


def version_differences(planned: Planned, versions: Mapping[str, str]) -> list[Difference]:
    """What a worker has in another version than its template: it was upgraded below a running model."""
    return [
        Difference(
            *(What.VERSION, had, versions[name]),
            f"{name} is {versions[name]}; its template has {had}",
            name,
        )
        for name, had in planned.versions
        if versions.get(name, had) != had
    ]
