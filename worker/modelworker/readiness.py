"""What a forked process does about its model before it can answer; nothing in here needs to know a slot.

Apart from `boot.take_slot`, so that a process can do this part before it has a slot.
"""

from __future__ import annotations

import ctypes
from typing import Any, FrozenSet, List, NamedTuple

from modelworker import frameworks, loader


class Inheritance(NamedTuple):
    """What every worker of a template has from it; `kept` are the descriptors that the model opened while it loaded."""

    supervisor: int
    libc: ctypes.CDLL
    model: loader.LoadedModel
    thread_setters: List[Any]
    kept: FrozenSet[int]


def make_ready(inheritance: Inheritance, threads: int, freshly_seeded: bool) -> loader.LoadedModel:
    """The model, ready to answer in this process. Raises whatever the handler raises.

    `freshly_seeded` says that no sibling was forked since the template seeded MXNet.
    """
    frameworks.set_threads(inheritance.thread_setters, threads)
    frameworks.reseed()
    if not freshly_seeded:
        frameworks.reseed_mxnet()
    loader.after_fork(inheritance.model)
    return inheritance.model
