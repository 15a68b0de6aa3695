"""The status of very many workers on a terminal: models in a line each, and of the workers those that somebody should look at.

A table of a thousand rows hides the three that matter. Whoever wants every worker asks for --json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from modelsupervisor.cli.render import (
    NOTHING,
    ModelStatus,
    Named,
    WorkerStatus,
    exit_words,
    size_words,
    worker_table,
)
from modelsupervisor.cli.terminal import one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_ROWS = 64  # workers; from here on the table of them gives way to this
MOST_UNREADY = 24  # rows of workers that do not serve
MOST_CRASHES = 8  # lines of newest crashes


def overview(
    models: Sequence[ModelStatus], workers: Sequence[Named], *, wide: bool
) -> Iterator[RenderableType]:
    """The parts of the view, below the headline."""
    from rich.text import Text

    yield _models(models)
    unready = [(name, each) for name, each in workers if each.phase != "READY"]
    if unready:
        yield Text(f"\n{_count(len(unready), 'worker')} not READY:")
        yield worker_table(unready[:MOST_UNREADY], with_exits=wide)
        if len(unready) > MOST_UNREADY:
            yield Text(f"… and {len(unready) - MOST_UNREADY} more")
    crashed = sorted(
        ((each.last_crash.at, name, each.last_crash) for name, each in workers if each.last_crash),
        key=lambda found: found[0],
        reverse=True,
    )
    if crashed:
        yield Text(f"\n{_count(len(crashed), 'worker')} crashed so far, the newest:")
        for _, name, crash in crashed[:MOST_CRASHES]:
            yield Text(f"{name}: {exit_words(crash)}")
    yield Text("\nOf one worker: modelsupervisor status MODEL/N; of every worker: status --json.")


def _models(models: Sequence[ModelStatus]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    table.add_column("workers", justify="right", no_wrap=True)
    table.add_column("phases")
    for column in ("pss", "requests", "restarts"):
        table.add_column(column, justify="right", no_wrap=True)
    for model in models:
        phases = Counter(one_line(worker.phase) for worker in model.workers)
        requests = sum(worker.requests or 0 for worker in model.workers)
        restarts = sum(worker.restarts or 0 for worker in model.workers)
        cells = (
            one_line(model.name),
            str(len(model.workers)),
            ", ".join(f"{count} {phase}" for phase, count in phases.most_common()),
            _whole_pss(model.workers),
            str(requests),
            str(restarts),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _whole_pss(workers: Sequence[WorkerStatus]) -> str:
    """The sum, which is the memory that they take together; nothing where a part of it is not known yet."""
    sizes = [worker.pss_bytes for worker in workers if worker.pid is not None]
    known = [size for size in sizes if size is not None]
    return size_words(sum(known)) if known and len(known) == len(sizes) else NOTHING


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
