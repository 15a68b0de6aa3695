"""Which CPUs and how many threads each worker gets."""

from __future__ import annotations

from random import Random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupervisor.core.placement import Demand, ModelPlacement, Placement, place
from modelsupervisor.core.reasons import show_cpus
from modelsupervisor.core.shares import share_cores
from modelsupervisor.core.topology import (
    Cpu,
    Kind,
    Quota,
    Topology,
    cores_of,
    flat_topology,
    usable_cpus,
)
from modelsupervisor.errors import InvariantError

EIGHT = tuple(range(8))
CPUS = flat_topology(EIGHT)


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
    assert (model.threads, model.cpus, model.shares_cpus) == (2, EIGHT, False)


def test_what_does_not_divide_stays_free() -> None:
    """Three workers on eight CPUs have two each; none is faster than its siblings."""
    model = only(place(CPUS, (Demand("a", 3),)))
    assert cpus_of(model) == [(0, 1), (2, 3), (4, 5)]
    assert model.cpus == (0, 1, 2, 3, 4, 5)


def test_surplus_workers_wrap_around() -> None:
    """Five workers on the CPUs 4 and 2 take turns, in the order of their numbers."""
    model = only(place(flat_topology((4, 2)), (Demand("a", 5),)))
    assert cpus_of(model) == [(2,), (4,), (2,), (4,), (2,)]
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
        flat_topology((0, 1, 2, 4)),
        (Demand("a", 1, (3, 4, 9, 10)), Demand("b", 1, (8,)), Demand("c", 1)),
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
        place(flat_topology(allowed), (demand,))


def test_show_cpus() -> None:
    """Runs are shortened, the order is kept."""
    assert show_cpus((0, 1, 2, 3, 6)) == "0-3,6"
    assert show_cpus((5, 4, 7, 8)) == "5,4,7-8"
    assert show_cpus(()) == ""


# -- machines that are written down -----------------------------------------------------------------------------------


def smt(nodes: int, cores: int, threads: int = 2) -> tuple[Cpu, ...]:
    """As Linux numbers them: first all first hardware threads, node by node, then all second ones."""
    whole = nodes * cores
    return tuple(
        Cpu(thread * whole + core, core, core // cores)
        for thread in range(threads)
        for core in range(whole)
    )


# Two fast cores of two hardware threads each, numbered as on a laptop, and four slow ones.
HYBRID = (
    *(Cpu(n, n // 2 * 2) for n in range(4)),
    *(Cpu(n, n, kind=Kind.SLOW) for n in range(4, 8)),
)
HALF = Quota(0.5, "/sys/fs/cgroup/cpu.max")
ONE_AND_A_HALF = Quota(1.5, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


@pytest.mark.parametrize(
    ("topology", "workers", "cpus", "threads"),
    [
        (Topology(smt(1, 4)), 1, ["0-7"], 4),
        (Topology(smt(1, 4)), 2, ["0-1,4-5", "2-3,6-7"], 2),
        (Topology(smt(1, 4)), 3, ["0,4", "1,5", "2,6"], 1),
        (Topology(smt(1, 2)), 3, ["0,2", "1,3", "0,2"], 1),
        (Topology(smt(2, 4, 1)), 1, ["0-3"], 4),
        (Topology(smt(2, 4, 1)), 2, ["0-3", "4-7"], 4),
        (Topology(smt(2, 4, 1)), 3, ["0-1", "2-3", "4-5"], 2),
        (Topology(smt(2, 3, 1)), 3, ["0", "1", "3"], 1),
        (Topology(smt(2, 2)), 2, ["0-1,4-5", "2-3,6-7"], 2),
        (Topology(HYBRID), 1, ["0-3"], 2),
        (Topology(HYBRID), 2, ["0-3", "4-5"], 2),
        (Topology(HYBRID), 3, ["0-3", "4-5", "6-7"], 2),
        (Topology(HYBRID), 4, ["0-1", "2-3", "4", "5"], 1),
        (Topology(HYBRID), 7, ["0-1", "2-3", "4", "5", "6", "7", "0-1"], 1),
        (flat_topology((5,)), 1, ["5"], 1),
        (flat_topology((5,)), 3, ["5", "5", "5"], 1),
        (Topology(smt(1, 8, 1), HALF), 2, ["0", "0"], 1),
        (Topology(smt(1, 8, 1), ONE_AND_A_HALF), 2, ["0", "0"], 1),
        (Topology(smt(1, 8, 1), Quota(3.99, "")), 3, ["0", "1", "2"], 1),
        (Topology(smt(1, 4), Quota(3, "")), 1, ["0-2"], 3),
        (Topology(smt(1, 2), Quota(3, "")), 1, ["0-2"], 2),
        (Topology(smt(1, 4, 1), Quota(64, "")), 1, ["0-3"], 4),
        (flat_topology((1, 4, 5, 9, 11)), 2, ["1,4", "5,9"], 2),
        (Topology(tuple(c for c in smt(1, 4) if c.number not in (1, 4))), 3, ["0", "2,6", "3,7"], 1),
        (flat_topology(EIGHT), 3, ["0-1", "2-3", "4-5"], 2),
    ],
)  # fmt: skip
def test_tables(topology: Topology, workers: int, cpus: list[str], threads: int) -> None:
    """SMT siblings go together, one node and one kind of core for a worker, fast cores first, a quota rounded down."""
    model = only(place(topology, (Demand("a", workers),)))
    assert [show_cpus(worker.cpus or ()) for worker in model.workers] == cpus
    assert model.threads == threads


def test_several_models_on_two_nodes() -> None:
    """Models stand in one line, over nodes too; a list and a model that floats take nothing from it."""
    plan = place(
        Topology(smt(2, 4)),
        (Demand("a", 1), Demand("b", 2, (15, 7, 6)), Demand("c", 3), Demand("d", 2, "none")),
    )
    shown = [[show_cpus(each or ()) for each in cpus_of(model)] for model in plan.models]
    assert shown == [
        ["0-1,8-9"],
        ["7,15", "6"],
        ["2-3,10-11", "4-5,12-13", "6-7,14-15"],
        ["", ""],
    ]
    assert [model.threads for model in plan.models] == [2, 1, 2, 1]


def test_a_quota_limits_the_threads_of_a_list_and_of_what_floats() -> None:
    """The CPUs of a list are the operator's; how many compute on them is what the quota pays for."""
    quota = Quota(4, "/sys/fs/cgroup/cpu.max")
    plan = place(
        Topology(smt(1, 8, 1), quota),
        (Demand("a", 2, EIGHT), Demand("b", 2, "none"), Demand("c", 2, EIGHT, 4)),
    )
    assert [model.threads for model in plan.models] == [2, 2, 4]
    assert cpus_of(plan.models[0]) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_a_list_keeps_siblings_together() -> None:
    """Half of a machine's list is half of its cores, not one hardware thread of each."""
    model = only(place(Topology(smt(1, 4)), (Demand("a", 2, EIGHT),)))
    assert cpus_of(model) == [(0, 1, 4, 5), (2, 3, 6, 7)]


# -- reasons ----------------------------------------------------------------------------------------------------------


def test_the_reasons_of_a_plain_machine() -> None:
    """What is allowed, that there is no quota, and what is left over."""
    plan = place(CPUS, (Demand("a", 3), Demand("b", 1, "none"), Demand("c", 1, (1, 0), 3)))
    assert plan.reasons == (
        "This process may use CPUs 0-7: 8 cores, 1 NUMA node.",
        "No CPU quota is set.",
        "CPUs 6-7 are given to nobody: all shares are equal, of whole cores, of one kind and on "
        "one NUMA node.",
    )
    a, b, c = plan.models
    assert a.reason == "one for each core of its smallest share, 2 cores"
    assert a.workers[2].reason == "2 whole cores, shared with other workers"  # with b, which floats
    assert b.reason == "not pinned, and given what an equal share would have: 2 cores"
    assert b.workers[0].reason == "not pinned: cpus = none"
    assert c.reason == (
        "threads = 3 in the file, more than the 2 cores of its smallest share: they will take turns"
    )
    assert c.workers[0].reason == (
        "its share of the model's own list 1,0, in that order, shared with other workers"
    )


def test_the_reasons_of_an_odd_machine() -> None:
    """Kinds, nodes, siblings, a quota and what could not be read are all told."""
    plan = place(Topology(HYBRID, Quota(2.5, "/a/cpu.max"), ("A note.",)), (Demand("a", 1),))
    assert plan.reasons == (
        "This process may use CPUs 0-7: 6 cores with 8 hardware threads, 2 fast (P), 4 slow (E), "
        "1 NUMA node.",
        "/a/cpu.max sets a quota of 2.5 CPUs, counted as 2; CPUs 0,2 are divided, so that workers "
        "with cpus = auto cannot overdraw it; fast cores come first; first hardware threads come before "
        "second ones.",
        "A note.",
    )
    assert only(plan).workers[0].reason == "2 whole cores, P cores"
    plan = place(Topology(smt(2, 2), Quota(64, "/a/cpu.max")), (Demand("a", 2),))
    assert plan.reasons[1] == "/a/cpu.max sets a quota of 64 CPUs, enough for all of them."
    assert only(plan).workers[1].reason == "2 whole cores, NUMA node 1, SMT siblings together"
    assert only(plan).reason == (
        "one for each core of its smallest share, 2 cores: hardware threads of a core share its "
        "arithmetic units"
    )
    plan = place(Topology(smt(1, 2, 1), HALF), (Demand("a", 1), Demand("b", 1, (0, 1))))
    assert plan.reasons[1].endswith(
        "quota of 0.5 CPUs, counted as 1; CPU 0 is divided, and what runs there is stopped whenever "
        "the quota is spent."
    )
    assert plan.model("b").reason == (
        "/sys/fs/cgroup/cpu.max pays for 1 CPU, which is 1 for each worker; a share would have "
        "2 cores"
    )


# -- properties -------------------------------------------------------------------------------------------------------


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Any machine: nodes, kinds, hardware threads, holes in the numbers and in the cores, a quota."""
    cpus: list[Cpu] = []
    numbers = iter(draw(st.permutations(range(96))))
    for core in range(draw(st.integers(1, 24))):
        node, kind = draw(st.integers(0, 3)), draw(st.sampled_from(Kind))
        threads = draw(st.integers(1, 4))
        cpus += [Cpu(next(numbers), core, node, kind) for _ in range(threads)]
    quota = draw(st.none() | st.floats(0.01, 100))
    return Topology(tuple(cpus), None if quota is None else Quota(quota, "/cpu.max"))


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
many = settings(derandomize=True, deadline=None, max_examples=200)


@many
@given(topologies(), demand_lists)
def test_any_plan(topology: Topology, demands: tuple[Demand, ...]) -> None:
    """In every plan: every worker has CPUs, CPUs are allowed ones, cores of a model's shares are equally many, threads are one
    number, each number has its reason, and problems are exactly the lists with a foreign CPU.
    """
    plan = place(topology, demands)
    assert [model.name for model in plan.models] == [demand.name for demand in demands]
    assert all(plan.reasons)
    core = {cpu.number: cpu.core for cpu in topology.cpus}
    for demand, model in zip(demands, plan.models, strict=True):
        assert [worker.index for worker in model.workers] == list(range(demand.workers))
        assert {worker.threads for worker in model.workers} == {model.threads}
        assert model.threads >= 1
        assert model.reason
        assert all(worker.reason for worker in model.workers)
        if demand.cpus == "none":
            assert {worker.cpus for worker in model.workers} == {None}
            continue
        shares = [worker.cpus or () for worker in model.workers]
        assert all(shares)
        cores = [len({core[cpu] for cpu in share}) for share in shares]
        assert len(set(cores)) == 1
        assert all(len(set(share)) == len(share) for share in shares)
        assert model.cpus == tuple(sorted({cpu for share in shares for cpu in share}))
        assert set(model.cpus) <= set(topology.numbers)
        if demand.cpus == "auto":
            assert set(model.cpus) <= set(plan.usable)
            assert demand.threads != "auto" or model.threads == cores[0]
    foreign = {
        d.name for d in demands if isinstance(d.cpus, tuple) and set(d.cpus) - set(topology.numbers)
    }
    assert {problem.model for problem in plan.problems} == foreign


@many
@given(topologies(), st.integers(1, 60))
def test_any_share(topology: Topology, workers: int) -> None:
    """Whole cores of one node and one kind; nobody meets anybody while there are enough cores, the load is level while there are
    not; and no slow core is used while a fast one could have held its worker.
    """
    usable = usable_cpus(topology)
    cores = cores_of(usable)
    shares = share_cores(cores, workers)
    assert len(shares) == workers
    given_out = [core for share in shares for core in share]
    assert set(given_out) <= set(cores)
    assert all(len({(core.node, core.kind) for core in share}) == 1 for share in shares)
    load = [given_out.count(core) for core in cores]
    assert max(load) - min(load) <= 1
    if workers <= len(cores):
        assert max(load) == 1
    else:
        assert min(load) >= 1
    if Kind.SLOW in {core.kind for core in given_out}:
        size = len(shares[0])
        for node in {core.node for core in cores}:
            idle = [
                core
                for core in cores
                if core.kind is Kind.FAST and core.node == node and core not in given_out
            ]
            assert len(idle) < size


@many
@given(topologies())
def test_what_is_usable(topology: Topology) -> None:
    """All that is allowed, or what the quota pays for, rounded down, at least one CPU; and no second hardware thread while a
    first one is left.
    """
    usable = usable_cpus(topology)
    whole = len(topology.cpus) if topology.quota is None else max(1, int(topology.quota.cpus))
    assert set(usable) <= set(topology.cpus)
    assert len(usable) == min(len(topology.cpus), whole)
    if len({cpu.core for cpu in topology.cpus}) >= len(usable) < len(topology.cpus):
        assert len({cpu.core for cpu in usable}) == len(usable)


@many
@given(topologies(), demand_lists, st.randoms(use_true_random=False))
def test_what_changes_nothing(
    topology: Topology, demands: tuple[Demand, ...], chance: Random
) -> None:
    """The same question has the same answer, in whatever order the CPUs were read. Threads, and models that are not in the
    line, are nothing to the CPUs of a slot.
    """
    plan = place(topology, demands)
    mixed = Topology(tuple(chance.sample(topology.cpus, len(topology.cpus))), topology.quota)
    assert place(mixed, demands) == plan
    others = tuple(Demand(d.name, d.workers, d.cpus, 7) for d in demands)
    with_more = (Demand("x", 3, "none"), *others, Demand("y", 2, (0, 1)))
    changed = place(topology, with_more)
    assert [cpus_of(changed.model(d.name)) for d in demands] == [
        cpus_of(plan.model(d.name)) for d in demands
    ]
