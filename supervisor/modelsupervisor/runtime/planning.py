"""What every process of a model is started by: its CPUs, its threads, its environment, and the size
of the FIFOs. Read by `start`, and printed by `plan`, from the same functions.

What the operator has set goes before what is planned: a variable in the supervisor's environment,
and before it one of the file (`env.NAME`). Everything that is added has its reason beside it.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from modelworker.threads import (
    OPENMP_VARIABLE,
    THREAD_VARIABLES,
    openmp_threads,
    thread_environment,
)

from modelsupervisor.config import ModelSettings, Settings, is_secret, model_problem
from modelsupervisor.config.combinations import GPU_VARIABLE
from modelsupervisor.config.reports import MASK, printable
from modelsupervisor.core.placement import (
    Demand,
    ModelPlacement,
    Placement,
    PlacementProblem,
    place,
)
from modelsupervisor.core.reasons import show_cpus
from modelsupervisor.core.topology import Topology
from modelsupervisor.errors import ConfigurationError, Problem
from modelsupervisor.interpreters import interpreters, surroundings
from modelsupervisor.runtime.edge import ModelPlan

FIFO_SIZE = 256 * 1024  # bytes (DESIGN §2)
SMALLEST_FIFO = 64 * 1024  # the kernel's own default
PIPE_BUDGET = "/proc/sys/fs/pipe-user-pages-soft"
# Variables of the libraries that compute: where the operator has set one, `plan` shows it.
THREADING_PREFIXES = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "BLIS_")
ORDER_VARIABLE = "CUDA_DEVICE_ORDER"
GPU_ORDER = "PCI_BUS_ID"
_GPU_REASONS = {
    ORDER_VARIABLE: "A GPU then has the number that nvidia-smi shows; CUDA by itself puts the "
    "fastest first.",
    GPU_VARIABLE: "What the template is shown; each worker is shown one of these alone, and that "
    "is number 0 to it: gpu_id in its context.",
}
OURS = {variable.name: variable.reason for variable in THREAD_VARIABLES}


@dataclass(frozen=True)
class Variable:
    """One variable of a model's processes: its value, who set it, and why or with what effect."""

    name: str
    value: str
    origin: Literal["plan", "file", "environment"]
    reason: str


@dataclass(frozen=True)
class FifoPlan:
    """The buffer of each of `count` FIFOs, in bytes, and why it is that large; `note` says what could not be read."""

    size: int
    count: int
    reason: str
    note: str = ""


def plan_models(
    settings: Settings, topology: Topology, model_cache: str | None = None
) -> dict[str, ModelPlan]:
    """Placement and environment of every model; `model_cache` is where archives are unpacked. Raises
    ConfigurationError for CPUs that we may not use, and for interpreters that cannot be used.
    """
    placement = plan_cpus(settings, topology)
    found, problems = interpreters(settings)
    if problems:
        raise ConfigurationError(problems)
    plans = {}
    for model in settings.models:
        placed = placement.model(model.name)
        operator = surroundings(model, os.environ)
        added = thread_environment(placed.threads, placed.shares_cpus, operator)
        environment = {**operator, **added, **gpu_environment(model, operator)}
        threads = openmp_threads(placed.threads, environment)
        cache = model_cache if model.archive else None
        plans[model.name] = ModelPlan(model, placed, environment, cache, threads, found[model.name])
    return plans


def gpu_environment(model: ModelSettings, operator: Mapping[str, str]) -> dict[str, str]:
    """The variables of CUDA that the plan sets: those of the template, which is shown all of a model's GPUs.

    A worker is shown one of them, by the same variable. `gpus` has gone before the operator's environment by then: the reader of
    the file has seen to it that it names none but the operator's.
    """
    if not model.gpus:
        return {}
    order = {} if ORDER_VARIABLE in operator else {ORDER_VARIABLE: GPU_ORDER}
    return {**order, GPU_VARIABLE: ",".join(map(str, model.gpus))}


def plan_cpus(settings: Settings, topology: Topology) -> Placement:
    """Which worker runs where. Raises ConfigurationError."""
    demands = tuple(Demand(m.name, m.workers, m.cpus, m.threads) for m in settings.models)
    placement = place(topology, demands)
    problems = _own_problems(settings, topology) + tuple(
        model_problem(settings, p.model, "cpus", message=p.message, expected=p.expected)
        for p in placement.problems
    )
    if problems:
        raise ConfigurationError(problems)
    return placement


def _own_problems(settings: Settings, topology: Topology) -> tuple[Problem, ...]:
    """What is wrong with the CPUs that the supervisor itself is to keep to."""
    asked = settings.supervisor.cpus or ()
    refused = tuple(sorted(set(asked) - set(topology.numbers)))
    if not refused:
        return ()
    wrong = PlacementProblem("", refused, topology.numbers)
    where = (printable(settings.source), 0, "supervisor", "cpus", show_cpus(asked))
    return (Problem(*where, wrong.expected, wrong.message),)


def explain_environment(
    model: ModelSettings, placed: ModelPlacement, environ: Mapping[str, str]
) -> tuple[Variable, ...]:
    """The variables that the plan adds for a model, and those of the operator that matter to
    threads, which it leaves alone. `environ` is the supervisor's own environment.
    """
    operator = surroundings(model, environ)
    added = thread_environment(placed.threads, placed.shares_cpus, operator)
    shown = [Variable(name, value, "plan", OURS[name]) for name, value in added.items()]
    for name, value in gpu_environment(model, operator).items():
        shown.append(Variable(name, value, "plan", _GPU_REASONS[name] + _narrowed(name, operator)))
    # Of the order alone the operator's goes first: what GPUs are shown is up to the plan
    theirs = {*OURS, ORDER_VARIABLE} if model.gpus else {*OURS}
    for name in sorted(operator):
        if name in theirs or name.startswith(THREADING_PREFIXES):
            origin: Literal["file", "environment"] = "file" if name in model.env else "environment"
            instead = _instead(name, placed)
            value = MASK if is_secret(name) else operator[name]
            shown.append(Variable(name, value, origin, f"Set by the operator{instead}."))
    return tuple(shown)


def _narrowed(name: str, operator: Mapping[str, str]) -> str:
    """What of the operator's a variable for GPUs stands in the place of."""
    if name not in operator:
        return ""
    return f" Chosen among {operator[name]}, which the environment has."


def _instead(name: str, placed: ModelPlacement) -> str:
    """What an operator's variable stands in the place of."""
    if name == ORDER_VARIABLE:
        return f"; the plan would say {GPU_ORDER}"
    if name not in OURS:
        return ", and left alone; the plan has nothing of that name"
    wanted = thread_environment(placed.threads, placed.shares_cpus, {}).get(name)
    return "; the plan would not set it" if wanted is None else f"; the plan would say {wanted}"


def explain_threads(plan: ModelPlan) -> str:
    """Why a model's workers have the number of OpenMP threads that they have."""
    placed = plan.placement
    if plan.threads == placed.threads:
        return placed.reason
    origin = "the file" if OPENMP_VARIABLE in plan.settings.env else "the environment"
    value = plan.environment[OPENMP_VARIABLE]
    return (
        f"{OPENMP_VARIABLE}={value} in {origin} goes first; "
        f"the plan would say {placed.threads}: {placed.reason}"
    )


def fifo_size(slots: int) -> int:
    """The buffer that each of `2 × slots` FIFOs is given, in bytes, a power of two."""
    return plan_fifos(slots).size


def plan_fifos(slots: int) -> FifoPlan:
    """How large the FIFOs of so many slots are made by the user who asks.

    An unprivileged user's pipes may hold pipe-user-pages-soft pages in all; past that new ones
    silently shrink to two pages [measured], so half of the budget is left to the workers' own
    pipes.
    """
    count = 2 * slots
    if os.geteuid() == 0:
        return FifoPlan(FIFO_SIZE, count, "the full size: root has no limit of pipe buffers")
    try:
        with open(PIPE_BUDGET, encoding="utf-8") as limit:
            budget = int(limit.read()) * resource.getpagesize() // 2
    except (OSError, ValueError):
        unread = "fs.pipe-user-pages-soft cannot be read"
        note = f"{unread}: the FIFOs of the workers' output are kept at the kernel's default size."
        return FifoPlan(SMALLEST_FIFO, count, f"the kernel's default: {unread}", note)
    size = FIFO_SIZE
    while size > SMALLEST_FIFO and budget and size * count > budget:
        size //= 2
    if not budget:
        return FifoPlan(size, count, "the full size: fs.pipe-user-pages-soft sets no limit")
    half = f"half of what this user's pipes may hold (fs.pipe-user-pages-soft), {budget} bytes"
    if size * count > budget:
        return FifoPlan(size, count, f"the smallest that is used, although together above {half}")
    full = "the full size" if size == FIFO_SIZE else "the largest that keeps all together"
    return FifoPlan(size, count, f"{full}, within {half}")
