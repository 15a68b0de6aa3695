"""What this process's control groups let it have, of version 1 or 2: CPU quota, cpuset, number of tasks; and where the kernel
counts whom it killed in them for want of memory.

/proc/self/cgroup names the group in each hierarchy, /proc/self/mountinfo where the hierarchy is
mounted and which of its groups that mount shows. A quota holds for a whole subtree, so the groups
above are asked too, up to the mount, and the smallest goes. In a container without a cgroup
namespace the group's name begins with the mount's root; where the two do not fit, what is at the
mount itself is read, and a note says so.
"""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import dataclass

from modelsupervisor.core.topology import Quota
from modelsupervisor.runtime.kernel_text import cpu_list, read_text, whole_number


@dataclass(frozen=True)
class CgroupLimits:
    """`cpus`: the cpuset, None where none is known. `notes`: what could not be read."""

    quota: Quota | None
    cpus: frozenset[int] | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Mount:
    root: str  # the group that is seen at `point`
    point: str
    version: int
    controllers: frozenset[str]


def read_cgroup(root: str) -> CgroupLimits:
    """The limits of the process whose /proc and /sys lie under `root`."""
    groups = read_text(os.path.join(root, "proc/self/cgroup"))
    mounted = read_text(os.path.join(root, "proc/self/mountinfo"))
    if groups is None or mounted is None:
        note = "/proc/self/cgroup or mountinfo cannot be read: no CPU quota is assumed."
        return CgroupLimits(None, None, (note,))
    notes: list[str] = []
    mounts = _mounts(mounted)
    quotas: list[Quota] = []
    cpus: frozenset[int] | None = None
    for version, controllers, name in _groups(groups):
        for controller in ("cpu", "cpuset"):
            if version == 1 and controller not in controllers:
                continue
            mount = _mount(mounts, version, controller)
            if mount is None:
                if version == 1:
                    notes.append(f"The cgroup hierarchy of {controller} is not mounted here.")
                continue
            folders = _folders(mount, name, notes)
            if controller == "cpu":
                quotas += _quotas(root, folders, version, notes)
            else:
                cpus = _cpuset(root, folders, version) or cpus
    smallest = min(quotas, key=lambda quota: quota.cpus, default=None)
    return CgroupLimits(smallest, cpus, tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class KillCounter:
    """Where the kernel counts its out-of-memory kills: the line `name` of the file `path`, and whom it counts."""

    path: str
    name: str
    scope: str


_KILL_FILES = {
    1: (("memory.oom_control", "this control group"),),
    2: (
        ("memory.events.local", "this control group"),
        ("memory.events", "this control group and those below it"),  # before Linux 5.2
    ),
}


def kill_counters(root: str) -> list[KillCounter]:
    """The places to look for a counter of this process's own group, the nearest first and the whole machine last.

    Of a group that has none the nearest above it counts, because that is the one whose memory it uses (v2 without the
    controller); and where the group is not to be seen, nothing of another's is read.
    """
    counters = []
    groups = read_text(os.path.join(root, "proc/self/cgroup")) or ""
    mounts = _mounts(read_text(os.path.join(root, "proc/self/mountinfo")) or "")
    for version, controllers, name in sorted(_groups(groups), key=lambda group: group[0]):
        mount = _mount(mounts, version, "memory")
        if mount is None or (version == 1 and "memory" not in controllers):
            continue
        unseen: list[str] = []
        folders = _folders(mount, name, unseen)
        if unseen:
            continue
        counters += [
            KillCounter(f"/{folder}/{file}", "oom_kill", f"the kernel's kills in {scope}")
            for folder in folders
            for file, scope in _KILL_FILES[version]
        ]
    anybody = "the kernel's kills of anybody's processes on the whole machine"
    return [*counters, KillCounter("/proc/vmstat", "oom_kill", anybody)]


def read_pids_room(root: str) -> tuple[int | None, str]:
    """How many more tasks this process's control groups allow, and the file that says so; (None, "") where none limits them."""
    rooms: list[tuple[int, str]] = []
    mounts = _mounts(read_text(os.path.join(root, "proc/self/mountinfo")) or "")
    for version, controllers, name in _groups(
        read_text(os.path.join(root, "proc/self/cgroup")) or ""
    ):
        mount = _mount(mounts, version, "pids")
        if mount is None or (version == 1 and "pids" not in controllers):
            continue
        unseen: list[str] = []
        for folder in _folders(mount, name, unseen):
            if unseen:
                continue  # what is there instead is another group's
            most = whole_number(read_text(os.path.join(root, folder, "pids.max")))
            there = whole_number(read_text(os.path.join(root, folder, "pids.current")))
            if most is not None and there is not None:
                rooms.append((most - there, f"/{folder}/pids.max"))
    return min(rooms, default=(None, ""))


def _groups(text: str) -> list[tuple[int, frozenset[str], str]]:
    """Version, controllers and name of each line `4:cpu,cpuacct:/a/b`; version 2 is `0::/a/b`."""
    found = []
    for line in text.splitlines():
        number, first, rest = line.partition(":")
        controllers, second, name = rest.partition(":")
        if first and second and name.startswith("/"):
            version = 2 if number == "0" and not controllers else 1
            found.append((version, frozenset(controllers.split(",")), name))
    return found


def _mounts(text: str) -> list[_Mount]:
    """The cgroup mounts of a mountinfo: `31 23 0:28 /root /point options - type source options`."""
    mounts = []
    for line in text.splitlines():
        front, _, back = line.partition(" - ")
        fields, types = front.split(" "), back.split(" ")
        if len(fields) >= 5 and len(types) >= 3 and types[0] in ("cgroup", "cgroup2"):
            version = 2 if types[0] == "cgroup2" else 1
            controllers = frozenset(types[2].split(","))
            mounts.append(
                _Mount(_unescaped(fields[3]), _unescaped(fields[4]), version, controllers)
            )
    return mounts


def _unescaped(field: str) -> str:
    """The kernel writes a space in a path as `\\040`."""
    return re.sub(r"\\([0-3][0-7]{2})", lambda octal: chr(int(octal[1], 8)), field)


def _mount(mounts: list[_Mount], version: int, controller: str) -> _Mount | None:
    for mount in mounts:
        if mount.version == version and (version == 2 or controller in mount.controllers):
            return mount
    return None


def _folders(mount: _Mount, name: str, notes: list[str]) -> list[str]:
    """The folders of the group and of those above it, up to the mount, without the leading `/`."""
    base = mount.root.rstrip("/")
    inside = name == base or name.startswith(base + "/")
    # A group outside of the namespace is named `/../other`: it is not to be seen from here.
    if not inside or ".." in name.split("/"):
        notes.append(
            f"The cgroup {name} is not under what is mounted at {mount.point}; what is there is read."
        )
        return [mount.point.lstrip("/")]
    parts = [part for part in name[len(base) :].split("/") if part]
    return [
        posixpath.join(mount.point, *parts[:depth]).lstrip("/")
        for depth in range(len(parts), -1, -1)
    ]


def _quotas(root: str, folders: list[str], version: int, notes: list[str]) -> list[Quota]:
    quotas = []
    for folder in folders:
        if version == 2:
            source = f"/{folder}/cpu.max"
            limit, _, period = (
                read_text(os.path.join(root, folder, "cpu.max")) or "max"
            ).partition(" ")
        else:
            source = f"/{folder}/cpu.cfs_quota_us"
            limit = read_text(os.path.join(root, folder, "cpu.cfs_quota_us")) or "-1"
            period = read_text(os.path.join(root, folder, "cpu.cfs_period_us")) or ""
        if limit in ("max", "-1"):
            continue
        granted, each = whole_number(limit), whole_number(period)
        if granted is None or each is None or granted <= 0 or each <= 0:
            notes.append(f"{source} is not understood ({limit[:40]!r}): no quota is taken from it.")
        else:
            quotas.append(Quota(granted / each, source))
    return quotas


def _cpuset(root: str, folders: list[str], version: int) -> frozenset[int] | None:
    """The set that holds for the group: its own, or that of the nearest group above that has one."""
    names = ("cpuset.cpus.effective",) if version == 2 else ("cpuset.effective_cpus", "cpuset.cpus")
    for folder in folders:
        for name in names:
            cpus = cpu_list(read_text(os.path.join(root, folder, name)))
            if cpus is not None:
                return cpus
    return None
