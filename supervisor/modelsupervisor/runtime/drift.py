"""Whether workers are what was planned: by their own word when they are ready, and by the kernel's later.

A READY worker is asked to attest its threads' CPUs, its OpenMP counts and its versions. That is the word of a process which runs a
model's code, and a busy one gives it late; so the CPUs are looked at from outside as well (`look`), with one system call for each
thread [measured: 0.05 ms for 20 threads]. Only a generation that was READY is looked at: one that is still starting has its
template's CPUs until it pins itself.

Each distinct difference of a generation is one `worker.drift` event, however often it is seen; a handler that moves its threads
about at every request gets MOST_TOLD of them. What is found at the last look is in `status`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from modelsupervisor.core.attestation import (
    Difference,
    Planned,
    Tasks,
    Usable,
    What,
    astray,
    binds_threads,
    cpu_differences,
    thread_differences,
    version_differences,
)
from modelsupervisor.core.states import SlotKey
from modelsupervisor.runtime.cgroup import read_cgroup
from modelsupervisor.runtime.edge import Edge, ModelPlan
from modelsupervisor.runtime.kernel_text import cpu_list, read_text
from modelsupervisor.runtime.messages import Message
from modelsupervisor.runtime.templates import Templates

if TYPE_CHECKING:
    from modelsupervisor.runtime.workers import Worker

MOST_TOLD = 16  # differences of one generation
USABLE_KEPT = 1.0  # seconds; all of a thousand workers may have lost a CPU, and reading why takes 0.2 ms [measured]
LOOK_EVERY = 10.0  # seconds between two looks at a worker that are only taken in passing
ONLINE = "sys/devices/system/cpu/online"
_TEXT_KEPT = 64  # characters of a name or version that a worker says


_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class _Tasks(msgspec.Struct):
    cpus: list[_Count]
    count: _Count


class _Facts(msgspec.Struct):
    """What an `attested` has to say, as far as it is compared; anything else that is in it is gone by."""

    tasks: list[_Tasks] = []
    openmp: list[tuple[str, _Count]] = []
    versions: dict[str, str] = {}

    def threads(self) -> list[Tasks]:
        """What it says of its threads: a reason to look, not to believe it."""
        return [Tasks(frozenset(each.cpus), each.count) for each in self.tasks]

    def counts(self) -> list[tuple[str, int]]:
        """The OpenMP runtimes, with names of a length that goes into a log."""
        return [(name[:_TEXT_KEPT], count) for name, count in self.openmp]

    def short_versions(self) -> dict[str, str]:
        """The versions, in such a length."""
        return {name: version[:_TEXT_KEPT] for name, version in self.versions.items()}


@dataclass
class _Findings:
    """What is known of a generation: `attested` is its own last word, `seen` is of the last look at its threads; `asked` while it
    has not answered.
    """

    generation: int
    planned: Planned
    attested: list[Difference] = field(default_factory=list)
    seen: list[Difference] = field(default_factory=list)
    told: set[tuple[What, str, str]] = field(default_factory=set)
    asked: bool = False
    at: float = float("-inf")  # when it was last refreshed


def read_affinities(pid: int) -> list[Tasks]:
    """The CPUs that the threads of a process may run on, asked of the kernel; none for a process that is gone."""
    counts: dict[frozenset[int], int] = {}
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    for task in tasks:
        try:
            cpus = frozenset(os.sched_getaffinity(int(task)))
        except OSError:  # ended meanwhile
            continue
        counts[cpus] = counts.get(cpus, 0) + 1
    return [Tasks(cpus, count) for cpus, count in counts.items()]


def read_usable(root: str = "/") -> Usable:
    """Which CPUs there are, to explain why planned ones are gone."""
    return Usable(cpu_list(read_text(os.path.join(root, ONLINE))), read_cgroup(root).cpus)


def planned_of(plan: ModelPlan, index: int, versions: Mapping[str, Any]) -> Planned:
    """What a worker of a model is to have; `versions` are facts of its template."""
    known = tuple((name, said) for name, said in versions.items() if isinstance(said, str))
    cpus = plan.placement.workers[index].cpus
    return Planned(cpus, plan.threads, binds_threads(plan.environment), known)


class Drift:
    """The findings by slot. A worker that is given as None is gone already."""

    def __init__(self, edge: Edge, templates: Templates, root: str = "/") -> None:
        self._edge = edge
        self._templates = templates
        self._root = root
        self._findings: dict[SlotKey, _Findings] = {}
        self._usable: tuple[float, Usable] = (float("-inf"), Usable())

    def expect(self, worker: Worker | None) -> None:
        """A generation is READY: hold it against the plan from now on, and its predecessor no more."""
        if worker is not None:
            said = self._templates.facts(worker.template)
            planned = planned_of(self._edge.plans[worker.key.model], worker.key.index, said)
            self._findings[worker.key] = _Findings(worker.generation, planned)
            self._ask(worker, self._findings[worker.key])

    def verify(self, worker: Worker | None) -> None:
        """Hold a worker against its plan again: what the kernel says at once, what it has to say itself when it answers."""
        found = self._found(worker)
        if worker is not None and found is not None:
            self._look(worker, found)
            self._ask(worker, found)

    def attested(self, worker: Worker, said: Message) -> None:
        """Compare what a worker said. If it strayed, by its own word, the kernel is asked."""
        found = self._found(worker)
        if found is None:
            return
        if not found.asked:
            self._emit(worker, "worker.bad_message", reason="attested: nobody asked")
            return
        found.asked = False
        try:
            facts = msgspec.convert(said, _Facts)
        except msgspec.ValidationError as error:
            self._emit(worker, "worker.bad_message", reason=f"attested: {error}")
            return
        said_threads = thread_differences(found.planned, facts.counts()[:MOST_TOLD])
        said_versions = version_differences(found.planned, facts.short_versions())
        found.attested = said_threads + said_versions
        if astray(found.planned, facts.threads()):
            self._look(worker, found)
        else:
            self._tell(worker, found)

    def refresh(self, workers: Iterable[Worker | None]) -> None:
        """Verify those of some workers that were not for LOOK_EVERY seconds."""
        now = self._edge.now()
        for worker in workers:
            found = self._found(worker)
            if found is not None and now - found.at >= LOOK_EVERY:
                found.at = now
                self.verify(worker)

    def of(self, worker: Worker) -> list[str] | None:
        """The differences of a worker in words, as of the last look; None where there are none."""
        found = self._found(worker)
        differences = () if found is None else (*found.seen, *found.attested)
        return [each.reason for each in differences] or None

    def _found(self, worker: Worker | None) -> _Findings | None:
        if worker is None:
            return None
        found = self._findings.get(worker.key)
        return found if found is not None and found.generation == worker.generation else None

    def _ask(self, worker: Worker, found: _Findings) -> None:
        """Once at a time: a busy worker has it waiting in its channel, where there has to be room for a stop."""
        if worker.channel is not None and not worker.channel.closed and not found.asked:
            with contextlib.suppress(OSError):
                worker.channel.send({"kind": "attest"})
                found.asked = True

    def _look(self, worker: Worker, found: _Findings) -> None:
        """Its process is not reaped yet, so the number is nobody else's."""
        if worker.pid is None or found.planned.cpus is None:
            return
        tasks = read_affinities(worker.pid)
        # The machine is read only where there is something to explain.
        strayed = bool(astray(found.planned, tasks))
        usable = self._read_usable() if strayed else Usable()
        found.seen = cpu_differences(found.planned, tasks, usable)[:MOST_TOLD]
        self._tell(worker, found)

    def _read_usable(self) -> Usable:
        now = self._edge.now()
        if now - self._usable[0] >= USABLE_KEPT:
            self._usable = now, read_usable(self._root)
        return self._usable[1]

    def _tell(self, worker: Worker, found: _Findings) -> None:
        for each in (*found.seen, *found.attested):
            if each.identity not in found.told and len(found.told) < MOST_TOLD:
                found.told.add(each.identity)
                self._emit(
                    *(worker, "worker.drift"),
                    what=each.what.value,
                    planned=each.planned,
                    found=each.found,
                    reason=each.reason,
                )

    def _emit(self, worker: Worker, event: str, **facts: Any) -> None:
        self._edge.journal.emit(
            *("warning", event),
            model=worker.key.model,
            worker=worker.key.index,
            pid=worker.pid,
            generation=worker.generation,
            **facts,
        )
