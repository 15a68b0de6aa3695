"""Values that are right by themselves and cannot work together; each says why, where the file says it.

They are refused because nothing later would say it: a pair of settings that hangs a worker, or hands a GPU to a process that cannot
use it, looks like a fault of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from modelsupervisor.config.ini import Entry, Section
from modelsupervisor.config.reports import Report

ENGINE_VARIABLE = "MXNET_ENGINE_TYPE"
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
_ENGINE_REFUSED = (
    "MXNet's NaiveEngine and preload = model exclude each other: "
    "a worker forked from a warm template hangs for ever"
)
_GPU_AFTER_FORK = (
    "preload = model loads the model before workers are forked, "
    "and what CUDA has set up in a process does not survive a fork"
)


# max_requests and memory_limit replace a worker by a spare that is born for it
_GPU_OF_SPARE = (
    "a spare has loaded the model before anybody knows in which worker's place it will be, "
    "and so on which of several gpus"
)


class Value(NamedTuple):
    """A value that is right, and the entry it came from (None: the default)."""

    value: object
    entry: Entry | None


class ModelSection(NamedTuple):
    """What a section [model:NAME] says, as far as it is right, and `environ`, what its processes will inherit."""

    section: Section
    values: Mapping[str, Value]
    environment: Mapping[str, Entry]  # of env.NAME, by NAME
    environ: Mapping[str, str]
    add: Callable[[Entry, str, str], None]  # a mistake of an entry: what is wrong, what is expected
    report: Report

    def preloads_model(self) -> bool:
        """True where the template is to load the model; not where what was asked for is no preload at all."""
        preload = self.values.get("preload")
        return preload is not None and preload.value == "model"


def check_combinations(model: ModelSection) -> None:
    """Report what excludes each other."""
    _check_engine(model)
    _check_gpus(model)


def _check_engine(model: ModelSection) -> None:
    """DESIGN's measurement: that pair never answers, and nothing in a log would say why."""
    if not model.preloads_model():
        return
    entry = model.environment.get(ENGINE_VARIABLE)
    if entry is not None:
        if entry.value == "NaiveEngine":
            model.add(entry, _ENGINE_REFUSED, "another engine, or the line left out")
    elif model.environ.get(ENGINE_VARIABLE) == "NaiveEngine":
        model.report.add(
            f"the environment has {ENGINE_VARIABLE}=NaiveEngine; {_ENGINE_REFUSED}",
            line=model.section.line,
            section=model.section.name,
            expected=f"the variable unset, or env.{ENGINE_VARIABLE} = ThreadedEnginePerDevice here",
        )


def _check_gpus(model: ModelSection) -> None:
    gpus = model.values.get("gpus")
    if gpus is None or gpus.entry is None or not isinstance(gpus.value, tuple):
        return
    if model.preloads_model():
        model.add(gpus.entry, _GPU_AFTER_FORK, "preload = import or none with it")
    for name in ("spares", "max_requests", "memory_limit") if len(gpus.value) > 1 else ():
        asked = model.values.get(name)
        if asked is not None and asked.entry is not None and asked.value:
            model.add(asked.entry, _GPU_OF_SPARE, f"no {name}, or a single GPU")
    own = model.environment.get(GPU_VARIABLE)
    if own is not None:
        model.add(own, "gpus gives each worker a value of its own", "one of the two lines left out")
        return
    visible = model.environ.get(GPU_VARIABLE)
    if visible is None:
        return
    allowed = {part.strip() for part in visible.split(",")}
    denied = [str(gpu) for gpu in gpus.value if str(gpu) not in allowed]
    if denied:
        model.add(
            gpus.entry,
            f"the environment has {GPU_VARIABLE}={visible}, and {', '.join(denied)} is not in it",
            "some of those, by number, or the variable unset",
        )
