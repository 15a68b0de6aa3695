"""modelworker/frameworks.py: each case in an interpreter of its own, since imports happen once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelworker import frameworks

from support.instance import ROOT


def run(code: str, *path: Path) -> Any:
    """The JSON that a piece of code prints, in a fresh interpreter."""
    folders = [str(ROOT / "worker"), *map(str, path)]
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(folders))
    prelude = "import json, sys\nfrom modelworker import frameworks\n"
    told = subprocess.run(
        [sys.executable, "-c", prelude + code],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


@pytest.fixture
def old_numpy(tmp_path: Path) -> Path:
    """A folder with a numpy that has no `bool`, as 1.24 to 1.26."""
    package = tmp_path / "numpy"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from numpy import inner\nat_import = 'bool' in globals()\n__version__ = '1.25'\n"
    )
    (package / "inner.py").write_text("")
    return tmp_path


def test_numpy_gets_its_bool_when_it_is_imported(old_numpy: Path) -> None:
    """At the end of its own import, and so before whoever imported it goes on."""
    code = "frameworks.prepare_numpy()\nimport numpy\nprint(json.dumps([numpy.bool is bool, numpy.at_import]))"
    assert run(code, old_numpy) == [True, False]


def test_numpy_that_is_there_already(old_numpy: Path) -> None:
    """It gets the name at once."""
    code = "import numpy\nframeworks.prepare_numpy()\nprint(json.dumps(numpy.bool is bool))"
    assert run(code, old_numpy) is True


def test_who_only_looks_whether_numpy_is_there(old_numpy: Path) -> None:
    """`find_spec` before the import does not use the alias up."""
    code = (
        "frameworks.prepare_numpy()\nimport importlib.util\n"
        "found = importlib.util.find_spec('numpy') is not None\n"
        "import numpy\nprint(json.dumps([found, numpy.bool is bool]))"
    )
    assert run(code, old_numpy) == [True, True]


def test_no_numpy_at_all(tmp_path: Path) -> None:
    """Its absence is the ImportError that it always is, and an import tried again finds it."""
    (tmp_path / "numpy.py").write_text("raise ImportError('broken')")
    code = (
        "frameworks.prepare_numpy()\n"
        "said = []\n"
        "for _ in range(2):\n"
        "    try:\n        import numpy\n    except ImportError as error:\n        said.append(str(error))\n"
        "open(sys.path[2] + '/numpy.py', 'w').write('x = 1')\n"
        "import importlib; importlib.invalidate_caches()\n"
        "import numpy\nprint(json.dumps([said, numpy.bool is bool]))"
    )
    assert run(code, tmp_path) == [["broken", "broken"], True]


def test_a_numpy_with_a_bool_keeps_it(tmp_path: Path) -> None:
    """2.0 has one of its own."""
    (tmp_path / "numpy.py").write_text("bool = 'its own'")
    code = "frameworks.prepare_numpy()\nimport numpy\nprint(json.dumps(numpy.bool))"
    assert run(code, tmp_path) == "its own"


def test_versions_of_what_is_imported(old_numpy: Path) -> None:
    """Python's always; a framework's only where the model imported it."""
    code = "first = frameworks.versions()\nimport numpy\nprint(json.dumps([first, frameworks.versions()]))"
    first, second = run(code, old_numpy)
    python = ".".join(map(str, sys.version_info[:3]))
    assert first == {"python": python}
    assert second == {"python": python, "numpy": "1.25"}


def test_mxnet_is_seeded_at_the_end_of_its_import(tmp_path: Path) -> None:
    """Before whoever imports it goes on, so that seeds of the handler's own stand; once, and with another number each time."""
    package = tmp_path / "mxnet"
    package.mkdir()
    (package / "__init__.py").write_text("seeds = []\nfrom mxnet import random\n")
    (package / "random.py").write_text(
        "def seed(n):\n    import mxnet\n    mxnet.seeds.append(n)\n"
    )
    code = (
        "frameworks.seed_mxnet_when_imported()\nframeworks.seed_mxnet_when_imported()\n"
        "import mxnet\nfirst = list(mxnet.seeds)\nframeworks.seed_mxnet_when_imported()\n"
        "print(json.dumps([first, mxnet.seeds]))"
    )
    drawn = [run(code, tmp_path) for _ in range(2)]
    assert [len(first) for first, _ in drawn] == [1, 1]
    assert all(first == after for first, after in drawn)
    assert drawn[0] != drawn[1]


def test_reseeding() -> None:
    """Forked siblings draw numbers of their own, from `random` and from NumPy."""
    pytest.importorskip("numpy")
    code = (
        "import os, random, numpy\n"
        "def draw():\n"
        "    reading, writing = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        frameworks.reseed()\n"
        "        os.write(writing, json.dumps([random.random(), float(numpy.random.rand())]).encode())\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    return json.loads(os.read(reading, 1000))\n"
        "print(json.dumps([draw(), draw()]))"
    )
    first, second = run(code)
    assert first[0] != second[0] and first[1] != second[1]


def test_no_openmp_no_setters() -> None:
    """An interpreter without an OpenMP runtime has nothing to set."""
    assert run("print(json.dumps(len(frameworks.thread_setters())))") == 0


@pytest.mark.parametrize("error", [MemoryError(), OSError(24, "Too many open files")])
def test_setters_are_not_worth_a_workers_life(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A worker that has used up its memory or its descriptors is asked for them, too: then none are known."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("builtins.open", refuse)
    assert frameworks.thread_setters() == []


def test_setters_are_called_with_the_count() -> None:
    """Each runtime gets it as a C int."""
    counts: list[int] = []
    frameworks.set_threads([lambda count: counts.append(count.value)] * 2, 3)
    assert counts == [3, 3]
