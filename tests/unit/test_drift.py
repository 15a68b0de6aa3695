"""runtime/drift.py: what the kernel says of threads, what a worker's word is worth, and how often it is told."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modelsupervisor.core.states import SlotKey, TemplateKey
from modelsupervisor.runtime import drift
from modelsupervisor.runtime.drift import LOOK_EVERY, MOST_TOLD, Drift, read_affinities, read_usable
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.messages import SupervisorEnd
from modelsupervisor.runtime.templates import Templates
from modelsupervisor.runtime.workers import Worker

KEY = SlotKey("echo", 0)
HERE = tuple(sorted(os.sched_getaffinity(0)))
NOWHERE = (8000,)


class _Channel:
    """Keeps what the worker is asked."""

    closed = False

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any]) -> None:
        self.asked.append(message)


class Case:
    """One worker, which is this process, with a plan for it."""

    def __init__(
        self, cpus: tuple[int, ...] | None = NOWHERE, threads: int = 1, **said: str
    ) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.now = 0.0
        placed = SimpleNamespace(workers=[SimpleNamespace(cpus=cpus)])
        plan = SimpleNamespace(placement=placed, threads=threads, environment={})
        journal = SimpleNamespace(emit=self._emit)
        edge = SimpleNamespace(plans={"echo": plan}, journal=journal, now=lambda: self.now)
        templates = SimpleNamespace(facts=lambda key: said)
        self.drift = Drift(cast(Edge, edge), cast(Templates, templates))
        self.channel = _Channel()
        self.worker = self.born(1)

    def _emit(self, level: str, event: str, **facts: Any) -> None:
        assert level == "warning"
        self.events.append((event, facts))

    def born(self, generation: int) -> Worker:
        """A generation of it, READY."""
        end = cast(SupervisorEnd, self.channel)
        self.worker = Worker(KEY, generation, TemplateKey("echo", 1), 0.0, end, os.getpid())
        self.drift.expect(self.worker)
        return self.worker

    def says(self, **fields: Any) -> None:
        """It attests this."""
        self.drift.attested(self.worker, {"kind": "attested", **fields})

    def verify(self) -> None:
        """Somebody looks."""
        self.drift.verify(self.worker)

    @property
    def status(self) -> list[str] | None:
        """What `status` says of it."""
        return self.drift.of(self.worker)


def test_every_thread_is_asked_for() -> None:
    """Those with the same CPUs are counted together; of a process that is gone there are none."""
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    counts = {tasks.cpus: tasks.count for tasks in read_affinities(os.getpid())}
    ended.set()
    for thread in threads:
        thread.join()
    assert counts[frozenset(HERE)] >= 4
    assert read_affinities(2**22 + 1) == []


def test_this_machine_says_what_is_usable() -> None:
    """Our own CPUs are online."""
    usable = read_usable()
    assert usable.online is None or set(HERE) <= usable.online


def test_its_word_is_only_a_reason_to_look() -> None:
    """It says that it strayed, and the kernel says that it did not; of its OpenMP runtimes nobody else can tell."""
    case = Case(HERE, 2)
    case.says(tasks=[{"cpus": list(NOWHERE), "count": 1}], openmp=[["libgomp.so.1", 3]])
    assert [facts["what"] for _, facts in case.events] == ["threads"]
    assert case.status == ["libgomp.so.1 would compute with 3 threads; planned: 2"]
    case.verify()
    case.says(openmp=[["libgomp.so.1", 2]])
    assert case.status is None


def test_an_answer_that_nobody_asked_for_costs_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that writes to the channel by itself is heard once for each question."""
    case, looks = Case(), []
    monkeypatch.setattr(drift, "read_affinities", lambda pid: looks.append(pid) or [])
    for _ in range(5):
        case.says(tasks=[{"cpus": [1], "count": 1}])
    assert len(looks) == 1
    assert [name for name, _ in case.events] == ["worker.bad_message"] * 4


def test_why_cpus_are_gone_is_read_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cpuset that shrinks moves every worker: the machine is not read for each of them."""
    case, readings = Case(), []
    monkeypatch.setattr(drift, "read_usable", lambda root: readings.append(root) or drift.Usable())
    for now in (0.0, 0.1, 0.2, 5.0):
        case.now = now
        case.verify()
    assert len(readings) == 2


def test_what_the_look_finds_is_told_once() -> None:
    """And again of the next generation; its predecessor is looked at no more."""
    case = Case()
    first = case.worker
    for generation in (1, 2):
        case.born(generation)
        for _ in range(3):
            case.verify()
    case.drift.verify(first)
    case.drift.verify(None)
    case.drift.expect(None)
    assert [(name, facts["generation"]) for name, facts in case.events] == [
        ("worker.drift", 1),
        ("worker.drift", 2),
    ]
    assert (case.events[0][1]["planned"], case.events[0][1]["pid"]) == ("8000", os.getpid())
    assert case.drift.of(first) is None
    assert "; CPU 8000 is offline" in (case.status or [""])[0]


def test_one_that_is_not_ready_is_not_looked_at() -> None:
    """It has its template's CPUs until it pins itself."""
    case = Case()
    case.worker = Worker(KEY, 2, TemplateKey("echo", 1), 0.0, None, os.getpid())
    case.verify()
    case.says(openmp=[["libgomp.so.1", 3]])
    assert (case.events, case.status) == ([], None)


def test_it_is_asked_once_at_a_time() -> None:
    """A busy worker must not find its channel full of questions: a stop has to fit in."""
    case = Case()
    for _ in range(5):
        case.verify()
    assert case.channel.asked == [{"kind": "attest"}]
    case.says()
    case.verify()
    assert len(case.channel.asked) == 2


def test_looks_in_passing_are_not_taken_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first at once; then one in LOOK_EVERY seconds, however often somebody asks for the status."""
    case, looks = Case(), []
    monkeypatch.setattr(drift, "read_affinities", lambda pid: looks.append(pid) or [])
    for now in (0.0, 1.0, LOOK_EVERY - 1, LOOK_EVERY, LOOK_EVERY + 1):
        case.now = now
        case.drift.refresh([None, case.worker])
    assert len(looks) == 2


def test_a_handler_that_moves_about_is_told_of_so_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """MOST_TOLD times in a generation; `status` still says what is so now."""
    case = Case()
    for number in range(2 * MOST_TOLD):
        tasks = [drift.Tasks(frozenset({number}), 1)]
        monkeypatch.setattr(drift, "read_affinities", lambda _, tasks=tasks: tasks)
        case.verify()
    assert len(case.events) == MOST_TOLD
    assert f"CPU {2 * MOST_TOLD - 1};" in (case.status or [""])[0]


def test_a_drift_that_is_mended_is_gone_from_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event stays in the log."""
    case = Case()
    case.verify()
    assert case.status is not None
    monkeypatch.setattr(drift, "read_affinities", lambda _: [drift.Tasks(frozenset(NOWHERE), 1)])
    case.verify()
    assert case.status is None


@pytest.mark.parametrize(
    "fields",
    [
        {"tasks": 7},
        {"openmp": [["libgomp", 1 << 40]]},
        {"openmp": [["libgomp"]]},
        {"tasks": [{"cpus": [-1], "count": 1}]},
        {"versions": {"python": None}},
    ],
)
def test_nonsense_is_a_bad_message(fields: dict[str, Any]) -> None:
    """And the generation is looked at from outside all the same."""
    case = Case()
    case.says(**fields)
    assert [name for name, _ in case.events] == ["worker.bad_message"]
    case.verify()
    assert case.events[-1][0] == "worker.drift"


def test_no_more_is_kept_than_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of runtimes in one message, and a thread on each CPU: `status` has a bound."""
    case = Case(threads=1)
    tasks = [drift.Tasks(frozenset({number}), 1) for number in range(1000)]
    monkeypatch.setattr(drift, "read_affinities", lambda _: tasks)
    case.verify()
    case.says(openmp=[["x", 5]] * 5000)
    assert len(case.status or []) == 2 * MOST_TOLD


def test_long_words_are_cut() -> None:
    """A name goes into the log with a length that is fit for one."""
    case = Case(None, numpy="1")
    case.says(openmp=[["x" * 60000, 5]], versions={"numpy": "9" * 60000})
    assert [len(facts["reason"]) < 200 for _, facts in case.events] == [True, True]
