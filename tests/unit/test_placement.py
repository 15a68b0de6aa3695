"""Which CPUs and how many threads each worker gets."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupervisor.core.placement import (
    Demand,
    ModelPlacement,
    Placement,
    place,
    share_out,
    show_cpus,
)
from modelsupervisor.errors import InvariantError

CPUS = tuple(range(8))


def cpus_of(model: ModelPlacement) -> list[tuple[int, ...] | None]:
    return [worker.cpus for worker in model.workers]


def only(plan: Placement) -> ModelPlacement:
    (model,) = plan.models
    return model


def test_equal_shares_in_order() -> None:
    """Four workers on eight CPUs: two each, in the order of the CPUs."""
    model = only(place(CPUS, (Demand("a", 4),)))
    assert cpus_of(model) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [(w.model, w.index, w.threads) for w in model.workers] == [("a", i, 2) for i in range(4)]
    assert (model.threads, model.cpus, model.shares_cpus) == (2, CPUS, False)


def test_what_does_not_divide_stays_free() -> None:
    """Three workers on eight CPUs have two each; none is faster than its siblings."""
    model = only(place(CPUS, (Demand("a", 3),)))
    assert cpus_of(model) == [(0, 1), (2, 3), (4, 5)]
    assert model.cpus == (0, 1, 2, 3, 4, 5)


def test_surplus_workers_wrap_around() -> None:
    """Five workers on the CPUs 4 and 2 take turns, in the order in which the CPUs were given."""
    model = only(place((4, 2), (Demand("a", 5),)))
    assert cpus_of(model) == [(4,), (2,), (4,), (2,), (4,)]
    assert (model.threads, model.cpus, model.shares_cpus) == (1, (2, 4), True)


def test_models_stand_in_one_line() -> None:
    """The workers of all models with auto divide the CPUs together."""
    plan = place(CPUS, (Demand("a", 1), Demand("b", 2), Demand("c", 1)))
    assert [cpus_of(model) for model in plan.models] == [[(0, 1)], [(2, 3), (4, 5)], [(6, 7)]]
    assert plan.model("c").cpus == (6, 7)
    with pytest.raises(KeyError):
        plan.model("d")


def test_a_list_is_divided_among_its_own_workers() -> None:
    """A list keeps the order in which it was written; a model with auto is not told of it."""
    plan = place(CPUS, (Demand("a", 2, (6, 7, 0, 1)), Demand("b", 4)))
    assert [cpus_of(m) for m in plan.models] == [[(6, 7), (0, 1)], [(0, 1), (2, 3), (4, 5), (6, 7)]]
    assert [m.shares_cpus for m in plan.models] == [True, True]
    assert plan.problems == ()


def test_sharing_is_said_of_the_models_that_meet() -> None:
    """Two of three models meet on a CPU; the third keeps its CPUs to itself."""
    plan = place(CPUS, (Demand("a", 2, (0,)), Demand("b", 1, (0, 1)), Demand("c", 1, (2, 3))))
    assert [model.shares_cpus for model in plan.models] == [True, True, False]


def test_none_is_not_pinned() -> None:
    """Workers that float have no CPUs, the threads of an equal share, and meet everyone."""
    plan = place(CPUS, (Demand("a", 2, "none"), Demand("b", 2)))
    floating, pinned = plan.models
    assert cpus_of(floating) == [None, None]
    assert (floating.threads, floating.cpus, floating.shares_cpus) == (2, None, True)
    assert cpus_of(pinned) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert pinned.shares_cpus
    assert not only(place(CPUS, (Demand("a", 1, "none"),))).shares_cpus


def test_threads_as_told() -> None:
    """A number of threads goes before the share, pinned or not."""
    plan = place(CPUS, (Demand("a", 2, "none", 3), Demand("b", 2, "auto", 7)))
    assert [[worker.threads for worker in model.workers] for model in plan.models] == [
        [3, 3],
        [7, 7],
    ]


def test_cpus_that_may_not_be_used_are_a_problem() -> None:
    """Each model with such a CPU is named once; the plan itself stays within what is allowed."""
    plan = place(
        (0, 1, 2, 4), (Demand("a", 1, (3, 4, 9, 10)), Demand("b", 1, (8,)), Demand("c", 1))
    )
    assert [(p.model, p.message, p.expected) for p in plan.problems] == [
        ("a", "the supervisor may not use CPUs 3,9-10", "CPUs out of 0-2,4"),
        ("b", "the supervisor may not use CPU 8", "CPUs out of 0-2,4"),
    ]
    assert [cpus_of(model) for model in plan.models] == [[(4,)], [(0, 1, 2, 4)], [(0, 1, 2, 4)]]


@pytest.mark.parametrize(
    ("allowed", "demand"),
    [((), Demand("a", 1)), ((1, 1), Demand("a", 1)), ((1,), Demand("a", 0))],
    ids=["no CPU", "twice", "no worker"],
)
def test_what_a_caller_cannot_have(allowed: tuple[int, ...], demand: Demand) -> None:
    """A plan without CPUs or workers is a bug of the caller."""
    with pytest.raises(InvariantError):
        place(allowed, (demand,))


def test_show_cpus() -> None:
    """Runs are shortened, the order is kept."""
    assert show_cpus((0, 1, 2, 3, 6)) == "0-3,6"
    assert show_cpus((5, 4, 7, 8)) == "5,4,7-8"
    assert show_cpus(()) == ""


allowed_sets = st.lists(st.integers(0, 300), min_size=1, max_size=40, unique=True).map(tuple)
cpu_choices: st.SearchStrategy[Literal["auto", "none"] | tuple[int, ...]] = st.one_of(
    st.just("auto"),
    st.just("none"),
    st.lists(st.integers(0, 60), min_size=1, max_size=9).map(tuple),
)
thread_choices: st.SearchStrategy[Literal["auto"] | int] = st.one_of(
    st.just("auto"), st.integers(1, 64)
)
demand_lists = st.lists(
    st.builds(Demand, st.just("m"), st.integers(1, 40), cpu_choices, thread_choices), max_size=5
).map(lambda some: tuple(Demand(f"m{i}", d.workers, d.cpus, d.threads) for i, d in enumerate(some)))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(allowed_sets, demand_lists)
def test_any_plan(allowed: tuple[int, ...], demands: tuple[Demand, ...]) -> None:
    """In every plan: CPUs are allowed ones, shares of a model are equal, threads are one number,
    load is level over the auto models, problems are exactly the lists with a foreign CPU; and the
    same question has the same answer.
    """
    plan = place(allowed, demands)
    assert plan == place(allowed, demands)
    assert [model.name for model in plan.models] == [demand.name for demand in demands]
    for demand, model in zip(demands, plan.models, strict=True):
        assert [worker.index for worker in model.workers] == list(range(demand.workers))
        assert {worker.threads for worker in model.workers} == {model.threads}
        assert model.threads >= 1
        if demand.cpus == "none":
            assert {worker.cpus for worker in model.workers} == {None}
            continue
        shares = [worker.cpus or () for worker in model.workers]
        assert all(shares)
        assert len({len(share) for share in shares}) == 1
        assert all(len(set(share)) == len(share) and set(share) <= set(allowed) for share in shares)
        assert model.cpus == tuple(sorted({cpu for share in shares for cpu in share}))
        if demand.threads == "auto":
            assert model.threads == len(shares[0])
    foreign = {d.name for d in demands if isinstance(d.cpus, tuple) and set(d.cpus) - set(allowed)}
    assert {problem.model for problem in plan.problems} == foreign
    given_out = [
        cpu
        for d, m in zip(demands, plan.models, strict=True)
        if d.cpus == "auto"
        for worker in m.workers
        for cpu in worker.cpus or ()
    ]
    load = [given_out.count(cpu) for cpu in allowed]
    assert max(load) - min(load) <= 1


@settings(derandomize=True, deadline=None, max_examples=200)
@given(allowed_sets, st.integers(1, 600))
def test_shares(cpus: tuple[int, ...], workers: int) -> None:
    """Nobody shares where there is enough; where there is not, every CPU is used."""
    shares = share_out(cpus, workers)
    used = [cpu for share in shares for cpu in share]
    if workers <= len(cpus):
        assert len(set(used)) == len(used)
        assert len(cpus) - len(used) < workers
    else:
        assert set(used) == set(cpus)
        assert all(len(share) == 1 for share in shares)
