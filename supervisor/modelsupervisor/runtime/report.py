"""`status`: the state as the one JSON object that the command line, dashboards and tests read.

An answer tells of at most PAGE workers, and of more of them says where the `next` begins: so no answer holds up the loop for longer
than some milliseconds, and none outgrows a line of the protocol, however many workers there are and however they died.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from modelworker.scoreboard import Reading

from modelsupervisor import __version__
from modelsupervisor.config import ModelSettings
from modelsupervisor.core.states import Slot, SlotKey, State
from modelsupervisor.log.render import json_text
from modelsupervisor.runtime.board import NOTHING
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.memory import Living, MemoryReadings, read_rss
from modelsupervisor.runtime.workers import Worker, Workers

PAGE = 128  # workers: 2 ms of the loop [measured]
# Bytes of all last lines and tracebacks: a quarter of what an answer may have (control.MAX_LINE)
STORIES = 256 * 1024
LEAST_TEXT = 60  # characters of anything that is shown at all


class Reporter:
    """Builds status reports."""

    def __init__(self, edge: Edge, workers: Workers, run_dir: str, begun: float) -> None:
        self._edge = edge
        self._workers = workers
        self._run_dir = run_dir
        self._begun = begun
        self._memory = MemoryReadings()

    def status(self, state: State, keys: Sequence[SlotKey], offset: int) -> dict[str, Any]:
        """The result of the control command `status`: of these slots, those from `offset` on that one answer has room for."""
        page = keys[offset : offset + PAGE]
        self._look_at_memory(page)
        self._workers.drift.refresh([self._workers.present(key) for key in page])
        room = STORIES // max(1, 2 * len(page))
        report: dict[str, Any] = {
            "supervisor": {
                "pid": self._edge.pid,
                "version": __version__,
                "uptime_s": round(self._edge.now() - self._begun, 3),
                "config": self._edge.settings.source,
                "run_dir": self._run_dir,
            },
            "models": [
                {
                    "name": name,
                    "workers_wanted": self._edge.plans[name].settings.workers,
                    "workers": [self._worker(state.slots[key], room) for key in group],
                    **self._spares(state, self._edge.plans[name].settings),
                }
                for name, group in groupby(page, lambda key: key.model)
            ],
            "log": {"events": self._edge.journal.seq, "sinks": self._sinks(page, offset)},
        }
        if offset + PAGE < len(keys):
            report["next"] = offset + PAGE
        return report

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

    def _look_at_memory(self, page: Sequence[SlotKey]) -> None:
        found = (self._workers.present(key) for key in page)
        self._memory.refresh(
            Living(each.key, each.generation, each.pid)
            for each in found
            if each is not None and each.pid is not None
        )

    def _sinks(self, page: Sequence[SlotKey], offset: int) -> list[dict[str, Any]]:
        """The sinks' accounts of the streams of these slots; on the first page of all that is no slot's, too."""
        names = {str(key) for key in page}

        def shown(source: str | None) -> bool:
            name = (source or "").partition(" ")[0]
            return name in names if "/" in name else offset == 0

        return self._edge.outlets.report(shown)

    def _worker(self, slot: Slot, room: int) -> dict[str, Any]:
        plan = self._edge.plans[slot.key.model]
        placed = plan.placement.workers[slot.key.index]
        place = self._edge.places[slot.key]
        worker = self._workers.present(slot.key)
        reading = NOTHING
        if worker is not None:
            reading = self._edge.board.read(place.number, worker.generation)
        return {
            "index": slot.key.index,
            "wanted": slot.wanted.value,
            "phase": slot.phase.value,
            "pid": worker.pid if worker is not None else None,
            "generation": slot.generation,
            "cpus": list(placed.cpus) if placed.cpus is not None else None,
            "threads": plan.threads,
            "gpu": plan.gpu(slot.key.index),
            "preload": plan.settings.preload,
            "drift": _some(room, None if worker is None else self._workers.drift.of(worker)),
            **self._memory_of(worker),
            "busy_s": _busy(reading, self._edge.now()),
            "requests": place.answered_before + reading.requests,
            "restarts": place.restarts,
            "last_exit": _within(room, place.last_exit),
            "last_crash": _within(room, place.last_crash),
            "output": {stream.name: stream.report() for stream in place.streams},
            "socket": place.path("sock"),
            "stdout": place.path("stdout"),
            "stderr": place.path("stderr"),
        }

    def _memory_of(self, worker: Worker | None) -> dict[str, int | None]:
        if worker is None or worker.pid is None:
            return {"rss_bytes": None, "pss_bytes": None}
        pss = self._memory.pss(worker.key, worker.generation)
        return {"rss_bytes": read_rss(worker.pid), "pss_bytes": pss}


def _busy(reading: Reading, now: float) -> float | None:
    """For how many seconds the batch in hand has been running; the record may claim a time that is still to come."""
    return round(max(0.0, now - reading.busy_since), 3) if reading.busy_since else None


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


def _some(room: int, differences: list[str] | None) -> list[str] | None:
    """As many differences from the plan as there is room for: a handler can make hundreds."""
    return differences and _newest(room, differences)


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
