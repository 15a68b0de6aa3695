"""The shape of the repository: where things lie, how large they may be, who may import whom, and nothing of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pages import ROOT

PACKAGES = (ROOT / "supervisor" / "modelsupervisor", ROOT / "worker" / "modelworker")
LONGEST_MODULE = 400  # lines
LONGEST_FUNCTION = 40  # lines, the `def` and the docstring among them
# A function that may be longer, with the reason. It is an upper bound: the entry goes when the function gets shorter.
LONG_FUNCTIONS = {
    "modelworker/wire.py:_commands": "the one loop over a frame's tokens: a call for each token costs more than the parsing",
    "modelworker/responses.py:_response": "the same on the client's side",
}
CODE = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    """`modelworker/wire.py`."""
    for package in PACKAGES:
        if path.is_relative_to(package.parent):
            return str(path.relative_to(package.parent))
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def repository_files() -> list[Path]:
    """What is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, or no git here")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in (ROOT / name for name in names) if path.is_file()]


# -- layout -----------------------------------------------------------------------------------------------------------


def test_source_roots_are_not_packages() -> None:
    """`supervisor/` and `worker/` hold packages and are none: a package called supervisor would overwrite supervisord's."""
    for package in PACKAGES:
        assert not (package.parent / "__init__.py").exists()
        assert (package / "__init__.py").exists()


@pytest.mark.parametrize(
    "name",
    [
        "supervisor/modelsupervisor/cli", "supervisor/modelsupervisor/config", "supervisor/modelsupervisor/core",
        "supervisor/modelsupervisor/runtime", "worker/modelworker", "tests/unit", "tests/property", "tests/process",
        "tests/system", "conf", "models", "docs", "benchmarks", "setup.cfg", "setup.py", "Makefile", "README.md", "CHANGELOG.md",
    ],
)  # fmt: skip
def test_everything_has_its_place(name: str) -> None:
    """The folders and files that the documentation names."""
    assert (ROOT / name).exists()


def test_every_package_is_in_the_wheel() -> None:
    """setup.cfg lists packages by name; one that is forgotten works in a checkout and fails when installed."""
    listed = re.search(
        r"^packages =\n((?: +\S+\n)+)",
        (ROOT / "setup.cfg").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert listed is not None
    here = {
        str(init.parent.relative_to(package.parent)).replace("/", ".")
        for package in PACKAGES
        for init in package.rglob("__init__.py")
    }
    assert set(listed[1].split()) == here


# -- size and form ----------------------------------------------------------------------------------------------------


def test_modules_are_short() -> None:
    """A module that grows past this is two."""
    counted = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in CODE}
    assert {name: count for name, count in counted.items() if count >= LONGEST_MODULE} == {}


def test_functions_are_short() -> None:
    """A longer function is on the list, with its reason, or is divided."""
    long = {
        f"{name_of(path)}:{function.name}"
        for path in CODE
        for function in functions(tree_of(path))
        if (function.end_lineno or 0) - function.lineno + 1 >= LONGEST_FUNCTION
    }
    assert long == set(LONG_FUNCTIONS)


def test_modules_open_with_their_theory() -> None:
    """Every module that holds code says first what it is about."""
    files = [*CODE, *TESTS, *(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    bare = [
        name_of(path)
        for path in files
        if tree_of(path).body and not ast.get_docstring(tree_of(path))
    ]
    assert bare == []


def test_every_test_states_its_fact() -> None:
    """A test's docstring is what a reader of a failure reads first."""
    silent = [
        f"{name_of(path)}:{function.name}"
        for path in TESTS
        for function in functions(tree_of(path))
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert silent == []


# -- arrows -----------------------------------------------------------------------------------------------------------


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it, under `if TYPE_CHECKING` too."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: a relative import"
            assert node.module is not None
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def within(module: str, packages: tuple[str, ...]) -> bool:
    """The module is one of these or lies in one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def test_the_worker_stands_alone() -> None:
    """modelworker runs in a model's own interpreter: the standard library and itself, the rest only where it is importable."""
    allowed = {*sys.stdlib_module_names, "modelworker", "setproctitle"}
    foreign = {
        f"{name_of(path)}: {module}"
        for path in (PACKAGES[1]).rglob("*.py")
        for module in imports_of(path)
        if module.partition(".")[0] not in allowed
    }
    assert foreign == set()


def test_the_worker_is_python_3_8() -> None:
    """Its syntax is what the oldest interpreter of a model can read."""
    for path in PACKAGES[1].rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 8))


def test_the_core_is_pure() -> None:
    """No clock, file, process or logger: the core gets time in its events and asks for effects in its actions."""
    pure = ("__future__", "collections", "dataclasses", "enum", "typing", "typing_extensions")
    ours = ("modelsupervisor.core", "modelsupervisor.errors")
    foreign = {
        f"{name_of(path)}: {module}"
        for path in (PACKAGES[0] / "core").rglob("*.py")
        for module in imports_of(path)
        if not within(module, pure + ours)
    }
    assert foreign == set()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        (
            "config",
            (
                "modelsupervisor.core",
                "modelsupervisor.runtime",
                "modelsupervisor.cli",
                "modelworker",
            ),
        ),
        ("runtime", ("modelsupervisor.cli", "modelsupervisor.client")),
        ("scaffold", ("modelsupervisor.runtime", "modelsupervisor.core", "modelsupervisor.cli")),
    ],
)
def test_arrows_between_packages(package: str, forbidden: tuple[str, ...]) -> None:
    """The command line is on top, the configuration knows nothing of what runs."""
    crossing = {
        f"{name_of(path)}: {module}"
        for path in (PACKAGES[0] / package).rglob("*.py")
        for module in imports_of(path)
        if within(module, forbidden)
    }
    assert crossing == set()


# -- nothing of one machine -------------------------------------------------------------------------------------------

# The home of a user, a work tree, a version switcher's store: right on one machine and wrong on every other.
MACHINE_PATH = re.compile(
    r"(?<![\w.$}/-])/(?:root|home|Users|work|opt)/[\w.]+|\.pyenv/|/site-packages/"
)


def test_no_path_of_a_machine() -> None:
    """Whoever clones the repository has other folders."""
    named = []
    for path in repository_files():
        text = path.read_bytes().decode("utf-8", "replace")
        if path != Path(__file__).resolve() and MACHINE_PATH.search(text):
            named.append(name_of(path))
    assert named == []


def test_files_are_small_text_or_models() -> None:
    """Nothing large is committed by mistake: the whole example model is below 200 kB."""
    assert [name_of(path) for path in repository_files() if path.stat().st_size > 200_000] == []


def test_scripts_are_executable() -> None:
    """A file that begins with #! can be run."""
    scripts = [path for path in repository_files() if path.read_bytes()[:2] == b"#!"]
    assert scripts
    assert [name_of(path) for path in scripts if not path.stat().st_mode & 0o111] == []
