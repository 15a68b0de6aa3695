"""Equal shares of cores: the rule of `cpus = auto`, and the plainer one of a list.

Cores of one NUMA node and one kind are a *cell*. Every worker gets the same number of whole cores,
all in one cell: memory of another node is slower, and a parallel loop waits for its slowest thread,
so a worker on fast and slow cores runs at the speed of slow ones. The share is the largest that
leaves room for everyone, and never larger than a cell of the best kind: a worker alone gets all
fast cores, not the slow ones because there are more of them.

Workers go to fast cells first and among these to where most is free, so that nodes are used evenly;
then they are numbered cell by cell: neighbours in number share a node, and its memory. Where there
are more workers than cores the line of cores starts over, a core for each worker.
"""

from __future__ import annotations

from modelsupervisor.core.topology import Core, Kind

Share = tuple[Core, ...]


def share_cores(cores: tuple[Core, ...], workers: int) -> tuple[Share, ...]:
    """The cores of each of `workers` (at least 1) workers; none are in two shares unless there are
    fewer cores than workers.
    """
    line = tuple(sorted(cores, key=lambda core: (core.kind is Kind.SLOW, core.node, core.cpus)))
    if workers > len(line):
        return tuple((line[worker % len(line)],) for worker in range(workers))
    cells: dict[tuple[Kind, int], Share] = {}
    for core in line:
        cells[core.kind, core.node] = (*cells.get((core.kind, core.node), ()), core)
    best = [cell for (kind, _), cell in cells.items() if kind is line[0].kind]
    size = min(len(line) // workers, max(map(len, best)))
    while sum(len(cell) // size for cell in cells.values()) < workers:
        size -= 1  # at 1 there is room, because there are as many cores as workers
    shares: list[Share] = []
    for where, count in _spread(cells, workers, size).items():
        cell = cells[where]
        shares += [cell[at * size : (at + 1) * size] for at in range(count)]
    return tuple(shares)


def _spread(
    cells: dict[tuple[Kind, int], Share], workers: int, size: int
) -> dict[tuple[Kind, int], int]:
    """How many workers each cell takes, in the order of the cells."""
    count = dict.fromkeys(cells, 0)
    for _ in range(workers):
        free = {where: len(cell) - count[where] * size for where, cell in cells.items()}
        room = [where for where in cells if free[where] >= size]
        chosen = min(room, key=lambda where: (where[0] is Kind.SLOW, -free[where]))
        count[chosen] += 1
    return count


def share_in_order(cores: tuple[Core, ...], workers: int) -> tuple[Share, ...]:
    """Consecutive cores for each worker in the order given, starting over where they do not
    suffice: an operator's list means what it says, over nodes and kinds.
    """
    size = max(1, len(cores) // workers)
    return tuple(
        tuple(cores[(worker * size + offset) % len(cores)] for offset in range(size))
        for worker in range(workers)
    )
