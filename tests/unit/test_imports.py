"""The arrows between the packages, and what must not stand in them, read from the source by `ast` (DESIGN §8).

Nothing is imported here: a module that would need a framework, or the wrong interpreter, is judged all the same.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPERVISOR = ROOT / "supervisor"
WORKER = ROOT / "worker"


class Module(NamedTuple):
    """One source file; `name` is its import name."""

    name: str
    path: Path
    tree: ast.Module


class Import(NamedTuple):
    """One imported name. `guarded`: inside a function, or inside a `try` that catches ImportError."""

    name: str
    line: int
    in_function: bool
    guarded: bool


def modules(root: Path, package: str) -> list[Module]:
    """Every module of a package and of its subpackages."""
    found = []
    for path in sorted((root / package.replace(".", "/")).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(path.read_text(encoding="utf-8"))))
    assert found, package
    return found


def imports(module: Module) -> Iterator[Import]:
    """Every import statement of a module, relative ones resolved, those under TYPE_CHECKING too."""
    yield from _imports(module, module.tree, in_function=False, guarded=False)


def _imports(
    module: Module, node: ast.AST, *, in_function: bool, guarded: bool
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, in_function, guarded)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                is_package = module.path.name == "__init__.py"
                parts = module.name.split(".")
                kept = parts[: len(parts) - child.level + is_package]
                base = ".".join([*kept, base] if base else kept)
            for alias in child.names:
                yield Import(f"{base}.{alias.name}", child.lineno, in_function, guarded)
        function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        catches = isinstance(child, ast.Try) and any(map(_catches_import, child.handlers))
        yield from _imports(
            module,
            child,
            in_function=in_function or function,
            guarded=guarded or function or catches,
        )


def _catches_import(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
    return not kinds.isdisjoint({"ImportError", "ModuleNotFoundError", "Exception"})


def within(name: str, *packages: str) -> bool:
    """The name is one of these packages, or lies in one."""
    return any(name == package or name.startswith(package + ".") for package in packages)


CORE = modules(SUPERVISOR, "modelsupervisor.core")
EVERY_SUPERVISOR = modules(SUPERVISOR, "modelsupervisor")
EVERY_WORKER = modules(WORKER, "modelworker")
EVERYTHING = EVERY_SUPERVISOR + EVERY_WORKER
PURE = ("__future__", "collections", "dataclasses", "enum", "typing")


def of_each(found: list[Module]) -> pytest.MarkDecorator:
    """One test case for each module, named by it."""
    return pytest.mark.parametrize("module", found, ids=lambda module: module.name)


# Arrows --------------------------------------------------------------------------------------------------------------


@of_each(CORE)
def test_core_is_pure(module: Module) -> None:
    """No clock, file, socket, process, thread, signal, chance or logger: values, and the error tree, which has none either."""
    allowed = (*PURE, "modelsupervisor.core", "modelsupervisor.errors")
    wrong = [found for found in imports(module) if not within(found.name, *allowed)]
    assert wrong == []


def test_the_error_tree_is_a_leaf() -> None:
    """The core may import it because it imports nothing but values."""
    (errors,) = [module for module in EVERY_SUPERVISOR if module.name == "modelsupervisor.errors"]
    assert [found for found in imports(errors) if not within(found.name, *PURE)] == []


@of_each(CORE)
def test_core_opens_nothing(module: Module) -> None:
    """The builtins that reach outside are not called either."""
    outside = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
    called = {
        node.func.id
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert called.isdisjoint(outside)


@of_each(EVERY_WORKER)
def test_worker_knows_no_supervisor(module: Module) -> None:
    """`modelworker` runs in a model's own environment, where there may be no `modelsupervisor`."""
    assert [found for found in imports(module) if within(found.name, "modelsupervisor")] == []


@of_each([module for module in EVERY_WORKER if not within(module.name, "modelworker.handlers")])
def test_worker_needs_only_the_standard_library(module: Module) -> None:
    """numpy and setproctitle where they are importable, a framework only inside a function; the rest is the interpreter's."""
    for found in imports(module):
        top = found.name.partition(".")[0]
        if top == "modelworker" or top in sys.stdlib_module_names:
            continue
        assert top in ("numpy", "setproctitle", "mxnet"), f"line {found.line} needs {top}"
        assert found.in_function if top == "mxnet" else found.guarded, f"line {found.line}: {top}"


@of_each(EVERY_WORKER)
def test_worker_is_written_for_python_3_8(module: Module) -> None:
    """The grammar of 3.8, and no annotation that 3.8 would have to evaluate."""
    ast.parse(module.path.read_text(encoding="utf-8"), feature_version=(3, 8))
    if any(isinstance(node, ast.AnnAssign | ast.arg) for node in ast.walk(module.tree)):
        assert "__future__.annotations" in {found.name for found in imports(module)}


LOG_PURE = ("lines", "recognise", "records", "render", "buffer", "outlet", "ring", "fields")


@of_each([m for m in EVERY_SUPERVISOR if m.name in {f"modelsupervisor.log.{n}" for n in LOG_PURE}])
def test_what_becomes_of_a_line_is_decided_without_looking(module: Module) -> None:
    """Splitting, recognising, rendering and accounting see bytes and the time they are given: no clock, file or logger."""
    standard = ("base64", "heapq", "itertools", "json", "math", "re", "sys")
    allowed = (*PURE, "modelsupervisor.log", "msgspec", *standard)
    wrong = [found for found in imports(module) if not within(found.name, *allowed)]
    assert wrong == []


@of_each(EVERY_SUPERVISOR)
def test_supervisor_arrows(module: Module) -> None:
    """The command line is on top, the gateway never uses the runtime, configuration and clients need neither."""
    below_cli = not within(module.name, "modelsupervisor.cli", "modelsupervisor.__main__")
    forbidden = {
        "modelsupervisor.gateway": ("modelsupervisor.runtime", "modelsupervisor.core"),
        "modelsupervisor.config": ("modelsupervisor.runtime", "modelsupervisor.core"),
        "modelsupervisor.client": ("modelsupervisor.runtime", "modelsupervisor.core"),
        "modelsupervisor.log": ("modelsupervisor.runtime", "modelsupervisor.core"),
    }
    for found in imports(module):
        assert not (below_cli and within(found.name, "modelsupervisor.cli")), found
        for package, others in forbidden.items():
            assert not (within(module.name, package) and within(found.name, *others)), found


# What must not stand there -------------------------------------------------------------------------------------------


def calls(tree: ast.AST, dotted: str) -> list[int]:
    """The lines on which a function of a module is called, however it was imported."""
    owner, _, name = dotted.rpartition(".")
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == name:
            if isinstance(node.value, ast.Name) and node.value.id == owner:
                lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == owner:
            lines.extend(node.lineno for alias in node.names if alias.name == name)
    return lines


@of_each(modules(SUPERVISOR, "modelsupervisor.runtime"))
def test_the_supervisor_never_sleeps_or_threads(module: Module) -> None:
    """One wait, no sleep, no thread: whatever blocks the loop blocks every worker's restart."""
    assert calls(module.tree, "time.sleep") == []
    banned = ("threading", "concurrent", "multiprocessing", "asyncio", "subprocess", "numpy")
    assert [found for found in imports(module) if within(found.name, *banned)] == []


def test_signal_handlers_only_count() -> None:
    """In one module, one method, one statement: nothing that a signal could find half done."""
    installing = [m for m in EVERY_SUPERVISOR if calls(m.tree, "signal.signal")]
    runtime = [m for m in installing if within(m.name, "modelsupervisor.runtime")]
    assert [module.name for module in runtime] == ["modelsupervisor.runtime.signals"]
    (module,) = runtime
    handlers = {
        node.args[1].attr
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "signal"
        and isinstance(node.args[1], ast.Attribute)
    }
    assert len(handlers) == 1
    (body,) = [
        node.body
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and node.name in handlers
    ]
    assert [type(statement) for statement in body] == [ast.AugAssign]


@of_each(EVERYTHING)
def test_no_bare_except(module: Module) -> None:
    """Exceptions are caught by type."""
    handlers = [node for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler)]
    assert [handler.lineno for handler in handlers if handler.type is None] == []


@of_each(EVERYTHING)
def test_names_say_what_a_thing_is(module: Module) -> None:
    """No module is a drawer for the rest, and no function only handles something."""
    banned = {"manager", "managers", "helper", "helpers", "utils", "util", "misc", "info", "data"}
    assert banned.isdisjoint(module.name.split("."))
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names = [node.name for node in ast.walk(module.tree) if isinstance(node, named)]
    assert [name for name in names if name.lstrip("_").startswith("handle_")] == []
    assert [name for name in names if name.endswith(("Manager", "Helper", "Utils"))] == []


@of_each(EVERYTHING)
def test_every_module_opens_with_its_theory(module: Module) -> None:
    """A module says at its top what it is for."""
    assert ast.get_docstring(module.tree)


@of_each(EVERYTHING)
def test_modules_are_small(module: Module) -> None:
    """Under 400 lines each."""
    assert len(module.path.read_text(encoding="utf-8").splitlines()) < 400


# The judge -----------------------------------------------------------------------------------------------------------


def judged(source: str, name: str = "modelworker.a.b", path: str = "b.py") -> list[Import]:
    """The imports of a piece of source."""
    return list(imports(Module(name, Path(path), ast.parse(source))))


@pytest.mark.parametrize(
    ("source", "name", "guarded"),
    [
        ("import numpy.random", "numpy.random", False),
        ("from os import path", "os.path", False),
        ("from . import c", "modelworker.a.c", False),
        ("from ..d import e", "modelworker.d.e", False),
        ("try:\n import numpy\nexcept ImportError:\n pass", "numpy", True),
        ("try:\n import numpy\nexcept OSError:\n pass", "numpy", False),
        ("def f():\n if f:\n  import numpy", "numpy", True),
        ("class C:\n import numpy", "numpy", False),
    ],
)
def test_the_reader_of_imports(source: str, name: str, guarded: bool) -> None:
    """What the tests above rely on: every form of import is found, and whether it is guarded."""
    (found,) = judged(source)
    assert (found.name, found.guarded) == (name, guarded)


@pytest.mark.parametrize("source", ["import time\ntime.sleep(1)", "from time import sleep"])
def test_the_reader_of_calls(source: str) -> None:
    """A sleep is found under both of its names."""
    assert calls(ast.parse(source), "time.sleep") == [len(source.splitlines())]
