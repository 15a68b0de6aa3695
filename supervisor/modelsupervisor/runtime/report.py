"""`status`: the whole state as the one JSON object that the command line, dashboards and tests read.

PSS costs the kernel 4–5 ms a process with a large model [measured], so that a reading is kept for PSS_KEPT seconds, and none is
ever made on the restart path. The memory figures come by psutil and are for people; no decision rests on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil

from modelsupervisor import __version__
from modelsupervisor.config import ModelSettings
from modelsupervisor.core.states import Slot, State
from modelsupervisor.log.render import json_text
from modelsupervisor.runtime.board import NOTHING
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.workers import Workers

PSS_KEPT = 10.0
# Bytes of all last lines and tracebacks: a quarter of what an answer may have (control.MAX_LINE)
STORIES = 256 * 1024
LEAST_TEXT = 60  # characters of anything that is shown at all


@dataclass(frozen=True)
class _Memory:
    at: float
    rss: int | None
    pss: int | None


class Reporter:
    """Builds status reports; keeps the last PSS of each process."""

    def __init__(self, edge: Edge, workers: Workers, run_dir: str, begun: float) -> None:
        self._edge = edge
        self._workers = workers
        self._run_dir = run_dir
        self._begun = begun
        self._memory: dict[int, _Memory] = {}
        ends = 2 * sum(model.workers for model in edge.settings.models)
        self._room = STORIES // max(1, ends)

    def status(self, state: State) -> dict[str, Any]:
        """The result of the control command `status`."""
        living = self._workers.pids()
        self._memory = {pid: seen for pid, seen in self._memory.items() if pid in living}
        return {
            "supervisor": {
                "pid": self._edge.pid,
                "version": __version__,
                "uptime_s": round(self._edge.now() - self._begun, 3),
                "config": self._edge.settings.source,
                "run_dir": self._run_dir,
            },
            "models": [
                {
                    "name": model.name,
                    "workers_wanted": model.workers,
                    "workers": [
                        self._worker(slot)
                        for key, slot in sorted(state.slots.items())
                        if key.model == model.name
                    ],
                    **self._spares(state, model),
                }
                for model in self._edge.settings.models
            ],
            "log": {"events": self._edge.journal.seq, "sinks": self._edge.outlets.report()},
        }

    def _spares(self, state: State, model: ModelSettings) -> dict[str, Any]:
        """Those of a model that keeps some, or has one born for a worn worker; nothing for any other."""
        here = [spare for key, spare in state.spares.items() if key.model == model.name]
        if not model.spares and not here:
            return {}
        pids = {spare.key: self._workers.spares.pid_of(spare.key) for spare in here}
        shown = [
            {"number": spare.key.number, "phase": spare.phase.value, "pid": pids[spare.key]}
            for spare in here
        ]
        return {"spares_wanted": model.spares, "spares": shown}

    def _worker(self, slot: Slot) -> dict[str, Any]:
        plan = self._edge.plans[slot.key.model]
        placed = plan.placement.workers[slot.key.index]
        place = self._edge.places[slot.key]
        worker = self._workers.present(slot.key)
        pid = worker.pid if worker is not None else None
        reading = NOTHING
        if worker is not None:
            reading = self._edge.board.read(place.number, worker.generation)
        memory = self._memory_of(pid)
        return {
            "index": slot.key.index,
            "wanted": slot.wanted.value,
            "phase": slot.phase.value,
            "pid": pid,
            "generation": slot.generation,
            "cpus": list(placed.cpus) if placed.cpus is not None else None,
            "threads": plan.threads,
            "preload": plan.settings.preload,
            "rss_bytes": memory.rss,
            "pss_bytes": memory.pss,
            "requests": place.answered_before + reading.requests,
            "restarts": place.restarts,
            "last_exit": _within(self._room, place.last_exit),
            "last_crash": _within(self._room, place.last_crash),
            "output": {stream.name: stream.report() for stream in place.streams},
            "socket": place.path("sock"),
            "stdout": place.path("stdout"),
            "stderr": place.path("stderr"),
        }

    def _memory_of(self, pid: int | None) -> _Memory:
        if pid is None:
            return _Memory(0.0, None, None)
        now = self._edge.now()
        seen = self._memory.get(pid)
        if seen is None or now - seen.at > PSS_KEPT:
            try:
                full = psutil.Process(pid).memory_full_info()
                seen = _Memory(now, int(full.rss), int(full.pss))
            except (psutil.Error, OSError):
                seen = _Memory(now, None, None)
            self._memory[pid] = seen
        return seen


def _within(room: int, told: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is told of an end, with as much of it as there is room for: of texts and lines the newest, at least the end of one."""
    if told is None:
        return None
    shown = dict(told)
    shown["reason"] = told["reason"][: max(room // 4, LEAST_TEXT)]
    shown["in_hand"] = _newest(room // 4, told["in_hand"])
    if told.get("traceback"):
        lines = _newest(room // 4, str(told["traceback"]).rstrip("\n").split("\n"))
        shown["traceback"] = "\n".join(lines)
    shown["last_lines"] = _newest(room // 2, told["last_lines"])
    return shown


def _newest(room: int, lines: list[str]) -> list[str]:
    kept: list[str] = []
    for line in reversed(lines):
        size = len(json_text(line)) + 1
        if size > room:
            if not kept:
                kept.append(
                    line[-max(room // 6, LEAST_TEXT) :]
                )  # six bytes a character at most, escaped
            break
        room -= size
        kept.append(line)
    return kept[::-1]
