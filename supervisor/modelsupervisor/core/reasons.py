"""The plan in words: why these CPUs, why so many threads. Pure text from the values that the plan
was made of; what is true of the machine alone is said once, not for each worker.
"""

from __future__ import annotations

from typing import Literal

from modelsupervisor.core.shares import Share
from modelsupervisor.core.topology import Cpu, Kind, Quota, Topology, cores_of


def show_cpus(cpus: tuple[int, ...]) -> str:
    """`0-3,6`: CPU numbers in the order given, as the kernel and the configuration write them."""
    runs: list[tuple[int, int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], cpu)
        else:
            runs.append((cpu, cpu))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def counted(word: str, numbers: tuple[int, ...]) -> str:
    """`CPU 3`, `CPUs 3,9-10`."""
    return f"{word}{'s' if len(numbers) > 1 else ''} {show_cpus(numbers)}"


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def usable_reasons(
    topology: Topology, usable: tuple[Cpu, ...], left_over: tuple[int, ...]
) -> tuple[str, ...]:
    """What is divided, in sentences: what is allowed, what of it the quota pays for, what the
    division leaves free, and what could not be read.
    """
    said = [f"This process may use {counted('CPU', topology.numbers)}: {_machine(topology)}."]
    if topology.quota is None:
        said.append("No CPU quota is set.")
    elif len(usable) < len(topology.cpus):
        said.append(_trimmed(topology, topology.quota, usable))
    else:
        said.append(f"{_quota(topology.quota)}, enough for all of them.")
    if left_over:
        said.append(
            f"{counted('CPU', left_over)} {_are(left_over)} given to nobody: "
            "all shares are equal, of whole cores, of one kind and on one NUMA node."
        )
    return (*said, *topology.notes)


def _trimmed(topology: Topology, quota: Quota, usable: tuple[Cpu, ...]) -> str:
    numbers = tuple(sorted(cpu.number for cpu in usable))
    words = f"{_quota(quota)}; {counted('CPU', numbers)} {_are(numbers)} divided"
    if quota.cpus >= 1:
        words += ", so that workers with cpus = auto cannot overdraw it"
    else:
        words += ", and what runs there is stopped whenever the quota is spent"
    if any(cpu.kind is Kind.SLOW for cpu in topology.cpus):
        words += "; fast cores come first"
    if len(cores_of(topology.cpus)) < len(topology.cpus):
        words += "; first hardware threads come before second ones"
    return words + "."


def _are(numbers: tuple[int, ...]) -> str:
    return "is" if len(numbers) == 1 else "are"


def _machine(topology: Topology) -> str:
    cores = cores_of(topology.cpus)
    words = [_many(len(cores), "core")]
    if len(cores) < len(topology.cpus):
        words[0] += f" with {len(topology.cpus)} hardware threads"
    slow = sum(core.kind is Kind.SLOW for core in cores)
    if slow:
        words.append(f"{len(cores) - slow} fast (P), {slow} slow (E)")
    words.append(_many(len({core.node for core in cores}), "NUMA node"))
    return ", ".join(words)


def _quota(quota: Quota) -> str:
    rounded = "" if quota.cpus == quota.whole else f", counted as {quota.whole}"
    return f"{quota.source} sets a quota of {_many_cpus(quota.cpus)}{rounded}"


def _many_cpus(cpus: float) -> str:
    return f"{cpus:.4g} CPU{'' if cpus == 1 else 's'}"


def share_reason(
    topology: Topology, share: Share | None, listed: tuple[int, ...] | None, crowded: bool
) -> str:
    """Why a worker has these cores."""
    if share is None:
        return "not pinned: cpus = none"
    words = [_many(len(share), "whole core")]
    if listed is not None:
        words = [f"its share of the model's own list {show_cpus(listed)}, in that order"]
    kinds = {core.kind for core in share}
    if any(cpu.kind is Kind.SLOW for cpu in topology.cpus):
        words.append(
            "fast and slow cores" if len(kinds) > 1 else f"{next(iter(kinds)).value} cores"
        )
    if len({cpu.node for cpu in topology.cpus}) > 1:
        nodes = tuple(sorted({core.node for core in share}))
        words.append(counted("NUMA node", nodes))
    if any(len(core.cpus) > 1 for core in share):
        words.append("SMT siblings together")
    if crowded:
        words.append("shared with other workers")
    return ", ".join(words)


def threads_reason(
    asked: Literal["auto"] | int,
    share: int,
    paid: int,
    shares: tuple[Share, ...] | None,
    quota: Quota | None,
) -> str:
    """Why a model's workers compute with so many threads: `share` is the smallest number of cores
    of a worker, `paid` what of it the quota allows.
    """
    if asked != "auto":
        words = f"threads = {asked} in the file"
        return words if asked <= share else f"{words}, more than {_a_share(share)}"
    if paid < share and quota is not None:
        return (
            f"{quota.source} pays for {_many(quota.whole, 'CPU')}, "
            f"which is {paid} for each worker; a share would have {_many(share, 'core')}"
        )
    if shares is None:
        return f"not pinned, and given what an equal share would have: {_many(share, 'core')}"
    smt = any(len(core.cpus) > 1 for cores in shares for core in cores)
    because = ": hardware threads of a core share its arithmetic units" if smt else ""
    return f"one for each core of its smallest share, {_many(share, 'core')}{because}"


def _a_share(share: int) -> str:
    return f"the {_many(share, 'core')} of its smallest share: they will take turns"
