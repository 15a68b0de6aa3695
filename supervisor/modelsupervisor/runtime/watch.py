"""The eyes of the core: what the workers' records say, a ping for each, and the evidence where one hangs.

Nothing is decided here. A record is memory that a process with a model's code in it writes to, and an answered ping is a message
of it; both are passed on as numbers, and `core.hangs` knows what to believe of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from modelsupervisor.core.actions import AskWorker, LookAtWorkers, WatchAction
from modelsupervisor.core.events import Sighting, WorkersSeen
from modelsupervisor.core.reduce import assert_never
from modelsupervisor.core.states import SlotKey
from modelsupervisor.runtime.autopsy import threads_of
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.workers import Worker, Workers

Glance = Callable[[Worker], None]
"""Looks at a worker for reasons of its own."""


class Lookout:
    """Looks at workers and pings them. `also` is called for each worker at every periodic look at its model."""

    def __init__(self, edge: Edge, workers: Workers, also: tuple[Glance, ...] = ()) -> None:
        self._edge = edge
        self._workers = workers
        self._also = also

    def perform(self, action: WatchAction) -> None:
        """Carry out what the core wants to know."""
        match action:
            case LookAtWorkers():
                self._look(action)
            case AskWorker(key, generation):
                self._ask(key, generation)
            case _:
                assert_never(action)

    def _look(self, action: LookAtWorkers) -> None:
        now = self._edge.now()
        sightings = []
        for key in action.keys:
            worker = self._workers.present(key)
            if worker is None or worker.pid is None:
                continue
            number = self._edge.places[key].number
            read = self._edge.board.read(number, worker.generation)
            sightings.append(
                Sighting(key, worker.generation, read.busy_since, read.requests, worker.echoes)
            )
            for glance in self._also if action.whole else ():
                glance(worker)
        self._edge.post(WorkersSeen(now, tuple(sightings)))

    def _ask(self, key: SlotKey, generation: int) -> None:
        worker = self._workers.present(key)
        if worker is not None and worker.generation == generation and worker.channel is not None:
            # What it does not take now it does not answer, and that is what we want to know
            with contextlib.suppress(OSError):
                worker.channel.send({"kind": "ping"})

    def evidence(self, key: SlotKey) -> dict[str, Any]:
        """What there is to say of a worker that hangs, before it is ended."""
        worker = self._workers.present(key)
        if worker is None or worker.pid is None:
            return {}
        number = self._edge.places[key].number
        read = self._edge.board.read(number, worker.generation)
        return {"in_hand": list(read.ids), "threads": threads_of(worker.pid)}
