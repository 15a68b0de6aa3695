"""How much memory workers hold for themselves, where their model has a `memory_limit`.

What counts is private memory: a forked worker shares most of its pages with its template, and those go with nobody. The kernel adds
it up in /proc/PID/smaps_rollup, which takes 0.3 ms for a small process and 5 for a large one [measured]; so that is read every ten
seconds, and in between only where the resident anonymous memory, a figure that costs nothing, has grown by a part of the limit that
matters. One process a turn of the loop.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

from modelsupervisor.core.events import WorkerWorn
from modelsupervisor.core.states import SlotKey, Wear
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.memory import read_private
from modelsupervisor.runtime.workers import Workers

LOOK_EVERY = 1.0  # seconds from the end of one round of looks to the next
SUM_EVERY = 10.0  # seconds between two full sums of a process that does not grow
GROWTH = 16  # a process that grew by the limit divided by this is summed up again at once
PAGE = resource.getpagesize()  # what /proc/PID/statm counts in


@dataclass(frozen=True)
class _Seen:
    generation: int
    at: float  # when it was last summed up
    anonymous: int  # bytes, then


class MemoryWatch:
    """Looks at workers one after another, and tells the core of those that hold too much."""

    def __init__(self, edge: Edge, workers: Workers) -> None:
        self._edge = edge
        self._workers = workers
        self._seen: dict[SlotKey, _Seen] = {}
        self._round: list[SlotKey] = []
        self._due: float | None = None
        self._limits = {
            model.name: model.memory_limit
            for model in edge.settings.models
            if model.memory_limit is not None
        }
        if self._limits:
            self._due = edge.now() + LOOK_EVERY

    def deadline(self) -> float | None:
        """When to look next; None for never."""
        return self._due

    def tick(self, now: float) -> None:
        """Look at one worker, if it is time."""
        if self._due is None or now < self._due:
            return
        if not self._round:
            self._round = [key for key in self._edge.places if key.model in self._limits]
        self._look(self._round.pop(), now)
        self._due = now + (0.0 if self._round else LOOK_EVERY)

    def _look(self, key: SlotKey, now: float) -> None:
        worker, limit = self._workers.present(key), self._limits[key.model]
        if worker is None or worker.pid is None:
            return
        try:
            anonymous = resident_anonymous(worker.pid)
            seen = self._seen.get(key)
            grown = (
                seen is None
                or seen.generation != worker.generation
                or anonymous - seen.anonymous >= limit // GROWTH
                or now - seen.at >= SUM_EVERY
            )
            if anonymous <= limit // 2 or not grown:
                return  # private memory that is not anonymous is small, and the kernel's to take back
            private = read_private(worker.pid)
        except OSError:
            return  # it has just died: that is told elsewhere
        self._seen[key] = _Seen(worker.generation, now, anonymous)
        if private is not None and private > limit:
            mib = 1024 * 1024
            reason = f"private memory {private / mib:.0f} MiB, memory_limit {limit / mib:.0f} MiB"
            worn = WorkerWorn(key, worker.generation, now, Wear.MEMORY, reason)
            self._edge.post(worn)


def resident_anonymous(pid: int) -> int:
    """Bytes of resident memory that are of no file, those shared with a template included. Raises OSError."""
    with open(f"/proc/{pid}/statm", encoding="utf-8") as statm:
        _, resident, shared, *_ = (int(column) for column in statm.read().split())
    return (resident - shared) * PAGE
