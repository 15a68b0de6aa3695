"""core/attestation.py: what was planned against what was found, in words; and what a worker attests."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from modelworker import attestation as worker

from modelsupervisor.core.attestation import (
    Planned,
    Tasks,
    Usable,
    binds_threads,
    cpu_differences,
    thread_differences,
    version_differences,
)

PLAN = Planned((0, 1), 2)


def tasks(*found: tuple[set[int], int]) -> list[Tasks]:
    """So many threads for each set of CPUs."""
    return [Tasks(frozenset(cpus), count) for cpus, count in found]


def test_as_planned_is_no_difference() -> None:
    """Every thread on the planned CPUs, every runtime with the planned count."""
    assert cpu_differences(PLAN, tasks(({0, 1}, 20)), Usable()) == []
    assert thread_differences(PLAN, [("libgomp.so.1", 2), ("libiomp5.so", 2)]) == []


def test_threads_elsewhere() -> None:
    """Each set of CPUs that was not planned is one difference, with how many threads it has."""
    first, second = cpu_differences(
        PLAN, tasks(({0, 1}, 17), ({0, 1, 2, 3}, 2), ({5}, 1)), Usable()
    )
    assert (first.what.value, first.planned, first.found) == ("cpus", "0-1", "0-3")
    assert first.reason == "2 of 20 threads may run on CPUs 0-3; planned: CPUs 0-1"
    assert second.reason == "1 of 20 threads may run on CPU 5; planned: CPUs 0-1"
    assert first.identity != second.identity


def test_one_difference_stays_the_same_one() -> None:
    """However many threads it has by then."""
    (once,) = cpu_differences(PLAN, tasks(({0, 1}, 17), ({5}, 1)), Usable())
    (again,) = cpu_differences(PLAN, tasks(({0, 1}, 18), ({5}, 9)), Usable())
    assert once.identity == again.identity
    assert once.reason != again.reason


@pytest.mark.parametrize(
    ("usable", "why"),
    [
        (Usable(online=frozenset({0, 2})), "; CPU 1 is offline"),
        (Usable(frozenset({0, 1}), frozenset({0, 3})), "; CPU 1 is not in the cpuset any more"),
        (Usable(frozenset({0}), frozenset({0, 1})), "; CPU 1 is offline"),
        (Usable(frozenset({0, 1}), frozenset({0, 1})), ""),
        (Usable(), ""),
    ],
)
def test_cpus_that_are_gone(usable: Usable, why: str) -> None:
    """Offline, or out of the cpuset: said where it is known, and nothing where it is not."""
    (found,) = cpu_differences(PLAN, tasks(({0}, 1)), usable)
    assert found.reason == f"its one thread may run on CPU 0; planned: CPUs 0-1{why}"


def test_some_gone_by_one_and_some_by_the_other() -> None:
    """Both are said."""
    plan = Planned((0, 1, 2, 3), 4)
    (found,) = cpu_differences(
        plan, tasks(({0}, 2)), Usable(frozenset({0, 1}), frozenset({0, 2, 3}))
    )
    assert found.reason.endswith("; CPUs 2-3 are offline; CPU 1 is not in the cpuset any more")


def test_nothing_planned_nothing_differs() -> None:
    """`cpus = none`."""
    assert cpu_differences(Planned(None, 1), tasks(({0, 9}, 3)), Usable()) == []


def test_the_operator_has_threads_bound_one_by_one() -> None:
    """A thread on some of the planned CPUs is where it belongs then; one beside them is not."""
    bound = Planned((0, 1), 2, bound=True)
    assert cpu_differences(bound, tasks(({0}, 1), ({1}, 1)), Usable()) == []
    assert len(cpu_differences(bound, tasks(({0, 2}, 1), ({2}, 1)), Usable())) == 2


@pytest.mark.parametrize(
    ("environment", "binds"),
    [
        ({}, False),
        ({"OMP_PROC_BIND": "false"}, False),
        ({"OMP_PROC_BIND": "TRUE"}, True),
        ({"GOMP_CPU_AFFINITY": "0-3"}, True),
        ({"KMP_AFFINITY": "disabled"}, False),
        ({"OMP_NUM_THREADS": "2"}, False),
    ],
)
def test_variables_that_bind_threads(environment: dict[str, str], binds: bool) -> None:
    """Those of every OpenMP runtime, unless they say that they do not."""
    assert binds_threads(environment) is binds


def test_other_counts_and_versions() -> None:
    """Named with both sides; what the template does not have cannot differ."""
    (count,) = thread_differences(PLAN, [("libgomp.so.1", 1), ("libiomp5.so", 2)])
    assert count.reason == "libgomp.so.1 would compute with 1 thread; planned: 2"
    assert (count.planned, count.found, count.subject) == ("2", "1", "libgomp.so.1")
    plan = Planned((0,), 1, versions=(("numpy", "1.24"), ("torch", "2.0")))
    (version,) = version_differences(plan, {"numpy": "1.26", "mxnet": "1.9.1", "torch": "2.0"})
    assert version.reason == "numpy is 1.26; its template has 1.24"


# -- the worker's side ---------------------------------------------------------------------------------------------------


class _Runtime:
    name = "libgomp.so.1"

    @staticmethod
    def count() -> int:
        return 3


def test_a_worker_attests_every_thread() -> None:
    """Threads with the same CPUs are counted together; runtimes by name."""
    here = sorted(os.sched_getaffinity(0))
    one = here[:1]
    ended, moved = threading.Event(), threading.Event()

    def stray() -> None:
        os.sched_setaffinity(0, one)
        moved.set()
        ended.wait()

    thread = threading.Thread(target=stray)
    thread.start()
    moved.wait()
    try:
        facts = worker.attestation([_Runtime()], pinned=True)
    finally:
        ended.set()
        thread.join()
    counts = {tuple(each["cpus"]): each["count"] for each in facts["tasks"]}
    assert tuple(one) in counts
    assert sum(counts.values()) >= 2
    assert facts["openmp"] == [["libgomp.so.1", 3]]
    assert "python" in facts["versions"]


def test_a_worker_that_is_not_pinned_attests_no_cpus() -> None:
    """Nothing was planned for them."""
    assert worker.attestation([], pinned=False)["tasks"] == []


def test_a_worker_without_descriptors_attests_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler has used them up: that is no reason to die of a question."""

    def no_descriptors(path: str) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files", path)

    monkeypatch.setattr(worker.os, "listdir", no_descriptors)
    facts = worker.attestation([_Runtime()], pinned=True)
    assert (facts["tasks"], facts["openmp"]) == ([], [["libgomp.so.1", 3]])
