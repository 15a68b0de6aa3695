"""What the planner knows of the machine: the CPUs that this process may use, how they belong
together, and how much of their time it may spend. Values only; the machine is read elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from modelsupervisor.errors import InvariantError


class Kind(Enum):
    """The two kinds of cores of a hybrid processor. Where all cores are alike they are FAST."""

    FAST = "P"
    SLOW = "E"


@dataclass(frozen=True)
class Cpu:
    """One CPU as the kernel numbers them. CPUs with one `core` are hardware threads of it (SMT
    siblings); `core` is unique on the machine, `node` is the NUMA node.
    """

    number: int
    core: int
    node: int = 0
    kind: Kind = Kind.FAST


@dataclass(frozen=True)
class Quota:
    """How much CPU time a cgroup lets this process and its children use, in CPUs (1.5 is 150 ms in
    each 100 ms); `source` says where that was read.
    """

    cpus: float
    source: str

    @property
    def whole(self) -> int:
        """The quota as a number of CPUs, rounded down: half a CPU more is a thread that is stopped
        half of the time, while all others wait for it. At least 1, because a worker has to run.
        """
        return max(1, int(self.cpus))


@dataclass(frozen=True)
class Topology:
    """The allowed CPUs (affinity and cpuset), the quota if there is one, and in `notes` whatever
    could not be read and what was assumed instead.

    Raises InvariantError for no CPU, or a CPU twice: no process runs so.
    """

    cpus: tuple[Cpu, ...]
    quota: Quota | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cpus or len(set(self.numbers)) != len(self.cpus):
            raise InvariantError(f"not a list of allowed CPUs: {self.numbers}")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the allowed CPUs, ascending."""
        return tuple(sorted(cpu.number for cpu in self.cpus))


@dataclass(frozen=True)
class Core:
    """A core, or what of it may be used: `cpus` are its allowed hardware threads, ascending."""

    cpus: tuple[int, ...]
    node: int
    kind: Kind


def flat_topology(numbers: tuple[int, ...]) -> Topology:
    """A machine of which nothing is known but its CPUs: each a core of its own, all alike."""
    return Topology(tuple(Cpu(number, core=number) for number in numbers))


def usable_cpus(topology: Topology) -> tuple[Cpu, ...]:
    """The CPUs to be divided: all that are allowed, or as many as the quota pays for.

    With a quota, fast cores go before slow ones, and each core's first hardware thread before
    anybody's second: that is the most work for the time. No more CPUs than the quota has means that
    it cannot be overdrawn, whatever the workers do: nobody is ever stopped in the middle.
    """
    ordered = sorted(topology.cpus, key=lambda cpu: (cpu.kind is Kind.SLOW, cpu.node, cpu.number))
    if topology.quota is None or topology.quota.whole >= len(ordered):
        return tuple(ordered)
    rank: dict[int, int] = {}
    seen: dict[int, int] = {}
    for cpu in ordered:
        rank[cpu.number] = seen.get(cpu.core, 0)
        seen[cpu.core] = rank[cpu.number] + 1
    return tuple(sorted(ordered, key=lambda cpu: rank[cpu.number])[: topology.quota.whole])


def cores_of(cpus: tuple[Cpu, ...]) -> tuple[Core, ...]:
    """The CPUs grouped by core, in the order in which each core comes first."""
    grouped: dict[int, list[Cpu]] = {}
    for cpu in cpus:
        grouped.setdefault(cpu.core, []).append(cpu)
    return tuple(
        Core(tuple(sorted(cpu.number for cpu in some)), some[0].node, some[0].kind)
        for some in grouped.values()
    )
