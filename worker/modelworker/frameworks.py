"""What particular frameworks need around a fork: an alias that MXNet misses in NumPy, thread counts and seeds in the child.

Nothing here imports a framework: it acts on what the handler has imported, so that a model without NumPy starts without it.
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Sequence

_OPENMP_RUNTIMES = ("libgomp", "libiomp5", "libomp")


def _alias_bool(numpy: ModuleType) -> None:
    # MXNet 1.9.1 says `bool = onp.bool`; NumPy 1.24 took the name away and 2.0 brought it back.
    if "bool" not in vars(numpy):
        numpy.bool = bool  # type: ignore[attr-defined]


class _AfterImport(importlib.abc.MetaPathFinder):
    """Acts at the end of one module's own import, so that it is done before any code of whoever imports it.

    It stays until that import has succeeded: who only asks whether the module is there must not use it up.
    """

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self.name = name
        self._act = act
        self._searching = False

    def find_spec(
        self,
        fullname: str,
        path: Optional[Sequence[str]],
        target: Optional[ModuleType] = None,
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != self.name or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return None
        execute: Callable[[ModuleType], None] = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            self._act(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
        return spec


def prepare_numpy() -> None:
    """Have `numpy.bool` there whenever NumPy is imported, now or later."""
    if "numpy" in sys.modules:
        _alias_bool(sys.modules["numpy"])
    else:
        _act_after_import("numpy", _alias_bool)


def _act_after_import(name: str, act: Callable[[ModuleType], None]) -> None:
    awaited = (each.name for each in sys.meta_path if isinstance(each, _AfterImport))
    if name not in awaited:
        sys.meta_path.insert(0, _AfterImport(name, act))


def versions() -> Dict[str, str]:
    """The versions of Python and of the frameworks that the model has imported."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in ("numpy", "mxnet", "onnxruntime", "torch"):
        module = sys.modules.get(name)
        if module is not None:
            found[name] = str(getattr(module, "__version__", "unknown"))
    return found


class ThreadSetter:
    """One OpenMP runtime that is loaded: called with a C int it sets its thread count, and `count` asks for it."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        self.name = os.path.basename(path)
        self._set = library.omp_set_num_threads
        self._get = library.omp_get_max_threads

    def __call__(self, threads: ctypes.c_int) -> None:
        self._set(threads)

    def count(self) -> int:
        """How many threads a parallel region of the calling thread would have."""
        return int(self._get())


def thread_setters() -> List[ThreadSetter]:
    """Every OpenMP runtime that is loaded.

    Looked up once in the template, since reading the maps takes about a millisecond of every birth otherwise. A child needs
    the call: MXNet's fork handler sets the count to 1 there (src/initialize.cc), and the workers would be silently slow.
    """
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
            paths = {line.split(None, 5)[5].rstrip("\n") for line in maps if line.count("/")}
    except (OSError, MemoryError):
        return []
    setters = []
    for path in sorted(paths):
        if os.path.basename(path).startswith(_OPENMP_RUNTIMES):
            try:
                setters.append(ThreadSetter(path))
            except (OSError, AttributeError):
                continue
    return setters


def set_threads(setters: Sequence[Any], threads: int) -> None:
    """Give every OpenMP runtime its thread count; acts on the calling thread's default, as OpenMP has it."""
    for setter in setters:
        setter(ctypes.c_int(threads))


def thread_counts(setters: Sequence[Any]) -> List[List[Any]]:
    """The name and the present thread count of each OpenMP runtime."""
    return [[setter.name, setter.count()] for setter in setters]


def reseed() -> None:
    """Give the child random numbers of its own; forked siblings have identical ones otherwise [measured]."""
    if "random" in sys.modules:
        sys.modules["random"].seed(os.urandom(32))
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(_seed())


def seed_mxnet_when_imported() -> None:
    """Where MXNet is not imported yet, seed it at the end of its import.

    `random` and NumPy begin with numbers of the kernel's, MXNet always with the same ones: workers that each import it
    themselves would be as alike as forked ones [measured].
    """
    if "mxnet" not in sys.modules:
        _act_after_import("mxnet", lambda _: reseed_mxnet())


def reseed_mxnet() -> None:
    """Seed MXNet's generators, where it is imported.

    Apart from `reseed`, since MXNet seeds a thousand Mersenne twisters in its engine: the first answer of a child that did this
    itself came 8 ms later [measured: 23 instead of 14 ms from kill -9 to the answer].
    """
    mxnet_random = sys.modules.get("mxnet.random")
    if mxnet_random is not None:
        mxnet_random.seed(_seed())


def _seed() -> int:
    return int.from_bytes(os.urandom(4), "little") & 0x7FFFFFFF
