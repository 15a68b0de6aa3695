"""The machine, read from trees of /sys and /proc that are written down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupervisor.core.topology import Kind, Quota
from modelsupervisor.runtime.cgroup import read_cgroup
from modelsupervisor.runtime.kernel_text import LARGEST_FILE, cpu_list, read_text, whole_number
from modelsupervisor.runtime.machine import read_topology

CPU = "sys/devices/system/cpu/cpu"
NODE = "sys/devices/system/node/node"
V2_MOUNT = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
V1_GROUPS = "4:cpu,cpuacct:/jobs/a\n3:cpuset:/jobs\n1:name=systemd:/x\n0::/\n"


def write(root: Path, files: dict[str, str]) -> str:
    """The tree; returns its root as the reader takes it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


def machine(
    siblings: list[str], nodes: dict[int, str], group: str = "0::/", mounts: str = V2_MOUNT
) -> dict[str, str]:
    """The files of a machine: for each CPU its siblings, for each node its CPUs."""
    return {
        "proc/self/cgroup": group,
        "proc/self/mountinfo": mounts,
        **{f"{CPU}{n}/topology/thread_siblings_list": text for n, text in enumerate(siblings)},
        **{f"{NODE}{n}/cpulist": text for n, text in nodes.items()},
    }


PLAIN = machine(["0", "1", "2", "3"], {0: "0-3"})


def test_siblings_and_nodes(tmp_path: Path) -> None:
    """Two nodes of two cores with two hardware threads each: numbered as Linux does."""
    siblings = ["0,4", "1,5", "2,6", "3,7"] * 2
    root = write(tmp_path, machine(siblings, {0: "0-1,4-5", 1: "2-3,6-7"}))
    topology = read_topology(root, range(8))
    assert [cpu.core for cpu in topology.cpus] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [cpu.node for cpu in topology.cpus] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert {cpu.kind for cpu in topology.cpus} == {Kind.FAST}
    assert (topology.quota, topology.notes) == (None, ())


def test_siblings_under_their_newer_name(tmp_path: Path) -> None:
    """core_cpus_list serves where thread_siblings_list is missing; a node without CPUs is nothing."""
    files = machine([], {0: "0-1", 1: ""})
    files |= {f"{CPU}{n}/topology/core_cpus_list": "0-1" for n in (0, 1)}
    topology = read_topology(write(tmp_path, files), (0, 1))
    assert [(cpu.core, cpu.node) for cpu in topology.cpus] == [(0, 0), (0, 0)]
    assert topology.notes == ()


def test_kinds_of_an_intel_processor(tmp_path: Path) -> None:
    """Slow cores are those that /sys lists as such."""
    files = PLAIN | {"sys/devices/cpu_core/cpus": "0-1", "sys/devices/cpu_atom/cpus": "2-3"}
    kinds = [cpu.kind for cpu in read_topology(write(tmp_path, files), range(4)).cpus]
    assert kinds == [Kind.FAST, Kind.FAST, Kind.SLOW, Kind.SLOW]


@pytest.mark.parametrize(
    ("capacities", "slow"),
    [
        (["1024", "870", "512", "160"], {2, 3}),
        (["1024"] * 4, set()),
        (["1024", "160", "x", "160"], set()),
        (["0"] * 4, set()),
    ],
)
def test_kinds_by_capacity(tmp_path: Path, capacities: list[str], slow: set[int]) -> None:
    """Where the kernel rates its CPUs, half of the best is slow; without a rating of each all are alike."""
    files = PLAIN | {f"{CPU}{n}/cpu_capacity": text for n, text in enumerate(capacities)}
    cpus = read_topology(write(tmp_path, files), range(4)).cpus
    assert {cpu.number for cpu in cpus if cpu.kind is Kind.SLOW} == slow


def test_slow_cores_alone_are_alike(tmp_path: Path) -> None:
    """A process that may only use slow cores has no faster ones to prefer."""
    files = PLAIN | {"sys/devices/cpu_atom/cpus": "2-3"}
    cpus = read_topology(write(tmp_path, files), (2, 3)).cpus
    assert [cpu.kind for cpu in cpus] == [Kind.FAST, Kind.FAST]


def test_affinity_with_holes(tmp_path: Path) -> None:
    """Only what the process may use is in the result; a core keeps its name when its first CPU is not allowed."""
    root = write(tmp_path, machine(["0,2", "1,3", "0,2", "1,3"], {0: "0-3"}))
    assert [(c.number, c.core) for c in read_topology(root, (3, 2)).cpus] == [(2, 0), (3, 1)]


@pytest.mark.parametrize(
    ("limit", "cpus"), [("50000 100000", 0.5), ("150000 100000", 1.5), ("max 100000", None)]
)
def test_quota_of_version_2(tmp_path: Path, limit: str, cpus: float | None) -> None:
    """cpu.max of the process's own group."""
    files = PLAIN | {
        "proc/self/cgroup": "0::/jobs/a",
        "sys/fs/cgroup/jobs/a/cpu.max": limit,
        "sys/fs/cgroup/jobs/cpu.max": "max 100000",
    }
    quota = read_topology(write(tmp_path, files), range(4)).quota
    expected = Quota(cpus, "/sys/fs/cgroup/jobs/a/cpu.max") if cpus else None
    assert quota == expected


def test_the_smallest_quota_on_the_way_up(tmp_path: Path) -> None:
    """A group may not spend more than the one that it is in."""
    files = PLAIN | {
        "proc/self/cgroup": "0::/jobs/a",
        "sys/fs/cgroup/jobs/a/cpu.max": "400000 100000",
        "sys/fs/cgroup/jobs/cpu.max": "250000 100000",
    }
    quota = read_topology(write(tmp_path, files), range(4)).quota
    assert quota == Quota(2.5, "/sys/fs/cgroup/jobs/cpu.max")


@pytest.mark.parametrize(("limit", "cpus"), [("50000", 0.5), ("150000", 1.5), ("-1", None)])
def test_quota_of_version_1(tmp_path: Path, limit: str, cpus: float | None) -> None:
    """cpu.cfs_quota_us in the hierarchy of the controller cpu, and the cpuset in that of its own; version 2,
    mounted beside them without controllers, has nothing to say.
    """
    files = machine(["0", "1", "2", "3"], {0: "0-3"}, V1_GROUPS, V1_MOUNTS) | {
        "sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_quota_us": limit,
        "sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpuset/jobs/cpuset.cpus": "0,2-3",
    }
    topology = read_topology(write(tmp_path, files), range(4))
    source = "/sys/fs/cgroup/cpu,cpuacct/jobs/a/cpu.cfs_quota_us"
    assert topology.quota == (Quota(cpus, source) if cpus else None)
    assert topology.numbers == (0, 2, 3)
    assert topology.notes == ()


def test_a_container_without_a_namespace_of_cgroups(tmp_path: Path) -> None:
    """The group's name begins with what is mounted, which is its own group; a space in it is escaped."""
    mounts = r"32 31 0:29 /docker/a\040b /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu" + "\n"
    files = machine(["0", "1"], {0: "0-1"}, "4:cpu:/docker/a b\n", mounts) | {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    quota = read_topology(write(tmp_path, files), range(2)).quota
    assert quota == Quota(1.5, "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")


@pytest.mark.parametrize("name", ["/../other", "/elsewhere"])
def test_a_group_that_is_not_to_be_seen(tmp_path: Path, name: str) -> None:
    """What is at the mount is read instead, never what lies beside it."""
    mounts = "29 23 0:26 /mine /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    files = machine(["0", "1"], {0: "0-1"}, f"0::{name}", mounts) | {
        "sys/fs/cgroup/cpu.max": "100000 100000",
        "sys/fs/other/cpu.max": "1 100000",
    }
    topology = read_topology(write(tmp_path, files), range(2))
    assert topology.quota == Quota(1.0, "/sys/fs/cgroup/cpu.max")
    assert topology.notes == (
        f"The cgroup {name} is not under what is mounted at /sys/fs/cgroup; what is there is read.",
    )


def test_cpuset_of_version_2(tmp_path: Path) -> None:
    """The effective set of the nearest group that has one."""
    files = PLAIN | {
        "proc/self/cgroup": "0::/jobs/a",
        "sys/fs/cgroup/jobs/cpuset.cpus.effective": "1,3",
        "sys/fs/cgroup/cpuset.cpus.effective": "0-3",
    }
    assert read_topology(write(tmp_path, files), range(4)).numbers == (1, 3)


def test_a_cpuset_that_contradicts_the_affinity(tmp_path: Path) -> None:
    """The scheduler's word is the one that counts, and a note says so."""
    files = PLAIN | {"sys/fs/cgroup/cpuset.cpus.effective": "8-9"}
    topology = read_topology(write(tmp_path, files), range(2))
    assert topology.numbers == (0, 1)
    assert topology.notes == (
        "The cpuset 8-9 has no CPU of this process's affinity; the affinity is gone by.",
    )


def test_nothing_to_read(tmp_path: Path) -> None:
    """No /sys and no /proc: each CPU a core, one node, no quota, and a note for each."""
    topology = read_topology(str(tmp_path), (1, 4))
    assert [(c.number, c.core, c.node, c.kind) for c in topology.cpus] == [
        (1, 1, 0, Kind.FAST),
        (4, 4, 0, Kind.FAST),
    ]
    assert topology.quota is None
    assert topology.notes == (
        "/proc/self/cgroup or mountinfo cannot be read: no CPU quota is assumed.",
        "/sys/devices/system/cpu does not say which hardware threads share a core with CPU 1,4; "
        "each counts as a core.",
        "There is no /sys/devices/system/node: one NUMA node is assumed.",
    )


def test_what_is_odd(tmp_path: Path) -> None:
    """A quota that is none, a CPU on no node, siblings without the CPU itself, a hierarchy that is not mounted."""
    files = machine(["1", "x"], {0: "0"}, "4:cpu:/\n3:cpuset:/\nnonsense\n0::/", V2_MOUNT)
    files |= {"sys/fs/cgroup/cpu.max": "soon 100000"}
    topology = read_topology(write(tmp_path, files), range(2))
    assert [cpu.core for cpu in topology.cpus] == [0, 1]
    assert topology.notes == (
        "The cgroup hierarchy of cpu is not mounted here.",
        "The cgroup hierarchy of cpuset is not mounted here.",
        "/sys/fs/cgroup/cpu.max is not understood ('soon'): no quota is taken from it.",
        "/sys/devices/system/cpu does not say which hardware threads share a core with CPU 0-1; "
        "each counts as a core.",
        "/sys/devices/system/node does not say which NUMA node CPU 1 is of; node 0 is assumed.",
    )


def test_this_machine() -> None:
    """The real one is read, whatever it is: what the scheduler allows and nothing else."""
    assert set(read_topology().numbers) <= os.sched_getaffinity(0)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.lists(
        st.sampled_from([*PLAIN, "sys/fs/cgroup/cpu.max", "sys/fs/cgroup/cpuset.cpus.effective"])
    ),
    st.text("0123456789-,: /.maxcpu\\\n", max_size=40),
)
def test_no_text_raises(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], text: str
) -> None:
    """Any file with any text: the process's CPUs are among the allowed ones, and there is at least one."""
    root = write(tmp_path_factory.mktemp("root"), PLAIN | dict.fromkeys(names, text))
    topology = read_topology(root, range(4))
    assert set(topology.numbers) <= set(range(4))
    assert topology.quota is None or topology.quota.cpus > 0
    read_cgroup(root)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-2,5", {0, 1, 2, 5}), ("7", {7}), ("1, 3", {1, 3})]
    + [(odd, None) for odd in ("", "a", "3-1", "0-", "-1", "0-99999999", "1,,2", "٣", None)],
)
def test_lists_of_cpus(text: str | None, cpus: set[int] | None) -> None:
    """What the kernel writes is a set; everything else is none, however long it would be."""
    assert cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), ("-1", -1), ("", None), ("--1", None), ("1.5", None), ("9" * 20, None)],
)
def test_numbers(text: str, number: int | None) -> None:
    """A number as the kernel writes it, or none."""
    assert whole_number(text) == number


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, a name that is none; and one that has no end is read so far."""
    for path in (tmp_path / "missing", tmp_path):
        assert read_text(str(path)) is None
    assert read_text("a\0b") is None
    assert len(read_text("/dev/zero") or "") == LARGEST_FILE
