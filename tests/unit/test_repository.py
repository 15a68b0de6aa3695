"""The shape of the repository: where things lie, how large they may be, and that nothing of one machine is in it.

Who may import whom is test_imports.py's.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pages import ROOT

PACKAGES = (ROOT / "supervisor" / "modelsupervisor", ROOT / "worker" / "modelworker")
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


def test_functions_are_short() -> None:
    """A longer function is on the list, with its reason, or is divided."""
    long = {
        f"{name_of(path)}:{function.name}"
        for path in CODE
        for function in functions(tree_of(path))
        if (function.end_lineno or 0) - function.lineno + 1 >= LONGEST_FUNCTION
    }
    assert long == set(LONG_FUNCTIONS)


def test_modules_beside_the_packages_open_with_their_theory() -> None:
    """Tests, tools and benchmarks say first what they are about, as the packages do (test_imports.py)."""
    files = [*TESTS, *(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
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
