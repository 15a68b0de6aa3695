"""Which CPUs each worker runs on, and with how many threads: a pure function of the machine and the
models, with the reason for every number.

The workers of all models with `cpus = auto` stand in line in the order of the file and divide what
may be used (core/topology.py) into equal shares of whole cores (core/shares.py). What is left over
by the division stays free: a worker with one core more than its siblings only makes the slowest
answer look like noise. A model with a list of its own divides that list among its own workers, and
nobody else is told of it. A model with `cpus = none` is not pinned.

`threads = auto` is one number for a whole model, its smallest share, because its workers are forked
from one template and have to be interchangeable. It counts cores, not hardware threads: the threads
of a core have one set of arithmetic units between them. A worker that floats counts as one of the
line when its threads are chosen: it is given the share that it would have had. No model has more
threads in all than the quota has CPUs, as long as a thread for each worker allows it.

A slot keeps its CPUs over restarts because the result depends on nothing that changes while the
supervisor runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from modelsupervisor.core.reasons import (
    counted,
    share_reason,
    show_cpus,
    threads_reason,
    usable_reasons,
)
from modelsupervisor.core.shares import Share, share_cores, share_in_order
from modelsupervisor.core.topology import Cpu, Topology, cores_of, usable_cpus
from modelsupervisor.errors import InvariantError


@dataclass(frozen=True)
class Demand:
    """What one model asks for, as configured."""

    name: str
    workers: int
    cpus: Literal["auto", "none"] | tuple[int, ...] = "auto"
    threads: Literal["auto"] | int = "auto"


@dataclass(frozen=True)
class WorkerPlacement:
    """One slot: `cpus` ascending (None: not pinned), the number of computing
    threads, and in words why it is these CPUs.
    """

    model: str
    index: int
    cpus: tuple[int, ...] | None
    threads: int
    reason: str = ""


@dataclass(frozen=True)
class ModelPlacement:
    """One model: its slots by index, and what its template needs to know.

    `cpus` is the union over the workers, ascending (None: not pinned). `shares_cpus` says that at
    least one worker can meet another worker, of this model or not, on a CPU: a thread that spins
    while it waits then takes from a neighbour. `reason` is that of the number of threads.
    """

    name: str
    workers: tuple[WorkerPlacement, ...]
    threads: int
    cpus: tuple[int, ...] | None
    shares_cpus: bool
    reason: str = ""


@dataclass(frozen=True)
class PlacementProblem:
    """A model's `cpus` names CPUs that this process may not use; `refused` are those, ascending."""

    model: str
    refused: tuple[int, ...]
    allowed: tuple[int, ...]

    @property
    def message(self) -> str:
        """What is wrong, for a person."""
        return f"the supervisor may not use {counted('CPU', self.refused)}"

    @property
    def expected(self) -> str:
        """What would be right, for a person."""
        return f"CPUs out of {show_cpus(self.allowed)}"


@dataclass(frozen=True)
class Placement:
    """The whole plan, models in the order given. With a problem in it, it is to be shown and not to
    be used. `usable` are the CPUs that were divided, ascending; `reasons` say why it is these.
    """

    models: tuple[ModelPlacement, ...]
    problems: tuple[PlacementProblem, ...]
    usable: tuple[int, ...]
    reasons: tuple[str, ...]

    def model(self, name: str) -> ModelPlacement:
        """The plan of one model; KeyError for a name that was not among the demands."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)


def place(topology: Topology, demands: tuple[Demand, ...]) -> Placement:
    """The plan for `demands` on what `topology` allows.

    Raises InvariantError for what a caller cannot have: a model with no worker.
    """
    if any(demand.workers < 1 for demand in demands):
        raise InvariantError("a model without workers has no placement")
    usable = usable_cpus(topology)
    shares = _shares(topology, usable, demands)
    crowded = _crowded(topology, demands, shares)
    line = _line(demands)
    models = tuple(
        _model(topology, usable, demand, share, line, crowded)
        for demand, share in zip(demands, shares, strict=True)
    )
    return Placement(
        models,
        tuple(_problems(topology, demands)),
        tuple(sorted(cpu.number for cpu in usable)),
        usable_reasons(topology, usable, _left_over(usable, demands, shares)),
    )


def _line(demands: tuple[Demand, ...]) -> int:
    """How many workers the usable cores are for, those that float among them."""
    return sum(demand.workers for demand in demands if not isinstance(demand.cpus, tuple))


def _problems(topology: Topology, demands: tuple[Demand, ...]) -> list[PlacementProblem]:
    problems = []
    for demand in demands:
        if isinstance(demand.cpus, tuple):
            refused = tuple(sorted(set(demand.cpus) - set(topology.numbers)))
            if refused or not demand.cpus:
                problems.append(PlacementProblem(demand.name, refused, topology.numbers))
    return problems


def _shares(
    topology: Topology, usable: tuple[Cpu, ...], demands: tuple[Demand, ...]
) -> list[tuple[Share, ...] | None]:
    """For each demand the cores of each of its workers; None for a model that floats."""
    line = sum(demand.workers for demand in demands if demand.cpus == "auto")
    divided = share_cores(cores_of(usable), line) if line else ()
    by_number = {cpu.number: cpu for cpu in topology.cpus}
    taken = 0
    shares: list[tuple[Share, ...] | None] = []
    for demand in demands:
        if demand.cpus == "none":
            shares.append(None)
        elif demand.cpus == "auto":
            shares.append(divided[taken : taken + demand.workers])
            taken += demand.workers
        else:
            # CPUs that may not be used are a problem of the plan; what is shown of it stays within
            # what may.
            listed = tuple(by_number[n] for n in dict.fromkeys(demand.cpus) if n in by_number)
            shares.append(share_in_order(cores_of(listed or usable), demand.workers))
    return shares


def _crowded(
    topology: Topology, demands: tuple[Demand, ...], shares: list[tuple[Share, ...] | None]
) -> frozenset[int]:
    """The CPUs on which more than one worker can run; one that floats can run on all."""
    visits: Counter[int] = Counter()
    for demand, share in zip(demands, shares, strict=True):
        if share is None:
            visits.update(dict.fromkeys(topology.numbers, demand.workers))
        else:
            visits.update(cpu for cores in share for core in cores for cpu in core.cpus)
    return frozenset(cpu for cpu, count in visits.items() if count > 1)


def _left_over(
    usable: tuple[Cpu, ...], demands: tuple[Demand, ...], shares: list[tuple[Share, ...] | None]
) -> tuple[int, ...]:
    """The usable CPUs that the division left to nobody, ascending; none where nothing was
    divided.
    """
    if all(demand.cpus != "auto" for demand in demands):
        return ()
    given = {
        cpu
        for demand, share in zip(demands, shares, strict=True)
        if demand.cpus == "auto"
        for cores in share or ()
        for core in cores
        for cpu in core.cpus
    }
    return tuple(sorted({cpu.number for cpu in usable} - given))


def _model(
    topology: Topology,
    usable: tuple[Cpu, ...],
    demand: Demand,
    shares: tuple[Share, ...] | None,
    line: int,
    crowded: frozenset[int],
) -> ModelPlacement:
    alone = max(1, len(cores_of(usable)) // max(1, line))
    smallest = alone if shares is None else min(len(cores) for cores in shares)
    paid = smallest
    if isinstance(demand.cpus, tuple) and topology.quota is not None:
        paid = min(smallest, max(1, topology.quota.whole // demand.workers))
    threads = paid if demand.threads == "auto" else demand.threads
    workers = tuple(
        _worker(topology, demand, index, share, threads, crowded)
        for index, share in enumerate(shares or (None,) * demand.workers)
    )
    union = {cpu for worker in workers for cpu in worker.cpus or ()}
    return ModelPlacement(
        name=demand.name,
        workers=workers,
        threads=threads,
        cpus=None if shares is None else tuple(sorted(union)),
        shares_cpus=bool(crowded) if shares is None else bool(union & crowded),
        reason=threads_reason(demand.threads, smallest, paid, shares, topology.quota),
    )


def _worker(
    topology: Topology,
    demand: Demand,
    index: int,
    share: Share | None,
    threads: int,
    crowded: frozenset[int],
) -> WorkerPlacement:
    cpus = None if share is None else tuple(sorted(cpu for core in share for cpu in core.cpus))
    listed = demand.cpus if isinstance(demand.cpus, tuple) else None
    meets = not crowded.isdisjoint(cpus or ())
    reason = share_reason(topology, share, listed, meets)
    return WorkerPlacement(demand.name, index, cpus, threads, reason)
