"""Which CPUs each worker runs on, and with how many threads: a pure function of the allowed CPUs
and the models.

The plain rule: the workers of all models with `cpus = auto` stand in line in the order of the file,
and so do the allowed CPUs. Each worker takes as many consecutive CPUs as everyone can have (at
least one); where workers outnumber CPUs the line of CPUs starts over, so that no CPU has more than
one worker above another. CPUs left over by the division stay free: a worker with one CPU more than
its siblings only makes the slowest answer look like noise. A model with a list of its own divides
that list among its own workers by the same rule. A model with `cpus = none` is not pinned.

`threads = auto` is one number for a whole model, its smallest share, because its workers are forked
from one template and have to be interchangeable. A worker that floats counts as one of the line
when its threads are chosen: it is given the share that it would have had, and not one thread for
each CPU of the machine.

A slot keeps its CPUs over restarts because the result depends on nothing that changes while the
supervisor runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

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
    """One slot: `cpus` in the order of the rule (None: not pinned) and the number of computing
    threads.
    """

    model: str
    index: int
    cpus: tuple[int, ...] | None
    threads: int


@dataclass(frozen=True)
class ModelPlacement:
    """One model: its slots by index, and what its template needs to know.

    `cpus` is the union over the workers, ascending (None: not pinned). `shares_cpus` says that at
    least one worker can meet another worker, of this model or not, on a CPU: a thread that spins
    while it waits then takes from a neighbour.
    """

    name: str
    workers: tuple[WorkerPlacement, ...]
    threads: int
    cpus: tuple[int, ...] | None
    shares_cpus: bool


@dataclass(frozen=True)
class PlacementProblem:
    """A model's `cpus` names CPUs that this process may not use; `refused` are those, ascending."""

    model: str
    refused: tuple[int, ...]
    allowed: tuple[int, ...]

    @property
    def message(self) -> str:
        """What is wrong, for a person."""
        plural = "s" if len(self.refused) > 1 else ""
        return f"the supervisor may not use CPU{plural} {show_cpus(self.refused)}"

    @property
    def expected(self) -> str:
        """What would be right, for a person."""
        return f"CPUs out of {show_cpus(self.allowed)}"


@dataclass(frozen=True)
class Placement:
    """The whole plan, models in the order given. With a problem in it, it is to be shown and not to
    be used.
    """

    models: tuple[ModelPlacement, ...]
    problems: tuple[PlacementProblem, ...]

    def model(self, name: str) -> ModelPlacement:
        """The plan of one model; KeyError for a name that was not among the demands."""
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)


def place(allowed: tuple[int, ...], demands: tuple[Demand, ...]) -> Placement:
    """The plan for `demands` on the CPUs `allowed` (in the order in which they are to be given out,
    each once).

    Raises InvariantError for what a caller cannot have: no CPU at all, a CPU twice, or a model with
    no worker.
    """
    if not allowed or len(set(allowed)) != len(allowed):
        raise InvariantError(f"not a list of allowed CPUs: {allowed}")
    if any(demand.workers < 1 for demand in demands):
        raise InvariantError("a model without workers has no placement")
    problems = []
    pools = _pools(allowed, demands)
    placed = []
    for demand, pool in zip(demands, pools, strict=True):
        if isinstance(demand.cpus, tuple):
            refused = tuple(sorted(set(demand.cpus) - set(allowed)))
            if refused or not demand.cpus:
                problems.append(PlacementProblem(demand.name, refused, tuple(sorted(allowed))))
        placed.append(_workers(demand, pool, _floating_share(allowed, demands)))
    crowded = _crowded(allowed, placed)
    return Placement(
        tuple(
            _summary(demand, workers, crowded)
            for demand, workers in zip(demands, placed, strict=True)
        ),
        tuple(problems),
    )


def share_out(cpus: tuple[int, ...], workers: int) -> tuple[tuple[int, ...], ...]:
    """`cpus` divided into `workers` equal shares of consecutive CPUs, starting over where they do
    not suffice.
    """
    share = max(1, len(cpus) // workers)
    return tuple(
        tuple(cpus[(worker * share + offset) % len(cpus)] for offset in range(share))
        for worker in range(workers)
    )


def show_cpus(cpus: tuple[int, ...]) -> str:
    """`0-3,6`: CPU numbers in the order given, as the kernel and the configuration write them."""
    runs: list[tuple[int, int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], cpu)
        else:
            runs.append((cpu, cpu))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _pools(
    allowed: tuple[int, ...], demands: tuple[Demand, ...]
) -> list[tuple[tuple[int, ...], ...] | None]:
    """For each demand the CPUs of each of its workers; None for a model that floats."""
    line = sum(demand.workers for demand in demands if demand.cpus == "auto")
    shares = share_out(allowed, line) if line else ()
    taken = 0
    pools: list[tuple[tuple[int, ...], ...] | None] = []
    for demand in demands:
        if demand.cpus == "none":
            pools.append(None)
        elif demand.cpus == "auto":
            pools.append(shares[taken : taken + demand.workers])
            taken += demand.workers
        else:
            # CPUs that may not be used are a problem of the plan; what is shown of it stays within
            # what may.
            usable = tuple(cpu for cpu in dict.fromkeys(demand.cpus) if cpu in allowed)
            pools.append(share_out(usable or allowed, demand.workers))
    return pools


def _floating_share(allowed: tuple[int, ...], demands: tuple[Demand, ...]) -> int:
    line = sum(demand.workers for demand in demands if not isinstance(demand.cpus, tuple))
    return max(1, len(allowed) // max(1, line))


def _workers(
    demand: Demand, pool: tuple[tuple[int, ...], ...] | None, floating_share: int
) -> tuple[WorkerPlacement, ...]:
    if demand.threads != "auto":
        threads = demand.threads
    elif pool is None:
        threads = floating_share
    else:
        threads = min(len(cpus) for cpus in pool)
    return tuple(
        WorkerPlacement(demand.name, index, None if pool is None else pool[index], threads)
        for index in range(demand.workers)
    )


def _crowded(allowed: tuple[int, ...], placed: list[tuple[WorkerPlacement, ...]]) -> frozenset[int]:
    """The CPUs on which more than one worker can run; one that floats can run on all."""
    workers = [worker for workers in placed for worker in workers]
    visits = Counter(cpu for worker in workers for cpu in worker.cpus or allowed)
    return frozenset(cpu for cpu, count in visits.items() if count > 1)


def _summary(
    demand: Demand, workers: tuple[WorkerPlacement, ...], crowded: frozenset[int]
) -> ModelPlacement:
    floats = demand.cpus == "none"
    union = {cpu for worker in workers for cpu in worker.cpus or ()}
    return ModelPlacement(
        name=demand.name,
        workers=workers,
        threads=workers[0].threads,
        cpus=None if floats else tuple(sorted(union)),
        shares_cpus=bool(crowded) if floats else bool(union & crowded),
    )
