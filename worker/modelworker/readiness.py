"""What a process does about its model before it can answer; nothing in here needs to know a slot.

A template has loaded the model, has imported its handler, or has done neither (`preload = model | import | none`), and its workers
do the rest. In each of the three the handler sees one order: its module's import, `initialize`, the warm-up, and then
`after_fork(context)`, once in every worker, so that what it makes there (connections, threads, seeds of its own) is made whatever
the configuration says. Random numbers are the worker's own before any code of the handler runs in it.

Apart from `boot`, which takes a slot, so that a process can do this part before it has one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from typing import Any, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple, Union

from modelworker import frameworks, loader, process

Source = Union[loader.LoadedModel, loader.ImportedHandler, loader.ModelSpec]
"""What a process begins with: the model, its handler's module, or the knowledge of where both lie."""


class Inheritance(NamedTuple):
    """What every worker of a template has from it; `kept` are the descriptors that the model opened while it loaded."""

    supervisor: int
    libc: ctypes.CDLL
    spec: loader.ModelSpec
    source: Source
    thread_setters: List[Any]
    interpreter: Optional[str]  # what a worker executes before it does anything else
    kept: FrozenSet[int]


class Ready(NamedTuple):
    """A model that can answer in this process; `facts` are of what this process did for that, none where it inherited it all."""

    model: loader.LoadedModel
    facts: Dict[str, Any]


def make_ready(inheritance: Inheritance, threads: int, freshly_seeded: bool) -> Ready:
    """The model, ready to answer in this process. Raises LoadError, or whatever the handler raises.

    `freshly_seeded` says that no sibling was forked since the template seeded MXNet.
    """
    frameworks.set_threads(inheritance.thread_setters, threads)
    frameworks.reseed()
    if not freshly_seeded:
        frameworks.reseed_mxnet()
    frameworks.seed_mxnet_when_imported()
    source = inheritance.source
    with _leaving_is_failing():
        if isinstance(source, loader.LoadedModel):
            ready = Ready(source, {})
        else:
            ready = load_and_warm(source)
        loader.after_fork(ready.model)
    return ready


@contextlib.contextmanager
def _leaving_is_failing() -> Iterator[None]:
    """A handler that calls sys.exit before there is a request to have called it on: a failed load, told as any other."""
    try:
        yield
    except SystemExit as leaving:
        raise loader.LoadError(f"the handler left by sys.exit({leaving.code!r})") from leaving


def import_only(spec: loader.ModelSpec) -> loader.ImportedHandler:
    """Import the handler's module, with NumPy as MXNet wants it."""
    frameworks.prepare_numpy()
    return loader.import_handler(spec)


def load_and_warm(source: Union[loader.ImportedHandler, loader.ModelSpec]) -> Ready:
    """Load and warm a model here. Raises LoadError, or whatever the handler raises."""
    begun = time.monotonic()
    handler = import_only(source) if isinstance(source, loader.ModelSpec) else source
    model = loader.initialize(handler)
    loaded = time.monotonic()
    warmed = loader.warm_up(model, handler.spec.warmup)
    facts = _facts(loaded - begun, time.monotonic() - loaded, warmed)
    settle()
    return Ready(model, facts)


def prepare(spec: loader.ModelSpec, preload: str) -> Tuple[Source, Dict[str, Any]]:
    """What a template does ahead of its workers, and its facts. Raises LoadError, or whatever the handler raises."""
    if preload == "model":
        with _leaving_is_failing():
            return load_and_warm(spec)
    begun = time.monotonic()
    with _leaving_is_failing():
        source = import_only(spec) if preload == "import" else spec
    facts = _facts(time.monotonic() - begun, 0.0, False)
    settle()
    return source, facts


def _facts(load_s: float, warmup_s: float, warmed: bool) -> Dict[str, Any]:
    return {"load_s": round(load_s, 4), "warmup_s": round(warmup_s, 4), "warmed": warmed}


def settle() -> None:
    """After any code of the handler's that loads or imports: what it left to be collected, in its signals, in its buffers."""
    gc.collect()
    # A collection in a child would write to every object's header, and copy its page
    gc.freeze()
    # What the model did to its signals is undone here once, not in every child
    process.default_signals()
    process.flush_output()  # what is buffered here would be printed again by each child
