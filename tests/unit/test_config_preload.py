"""The keys preload, python, gpus and allow_load: their values, and what cannot stand together."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modelsupervisor.config import load_settings, render_settings
from modelsupervisor.config.settings import ModelSettings
from modelsupervisor.errors import ConfigurationError

SECTION = "[model:m]\npath = .\nhandler = service\n"
AFTER_FORK = (
    "preload = model loads the model before workers are forked, "
    "and what CUDA has set up in a process does not survive a fork; "
    "expected preload = import or none with it"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "service.py").write_text("")
    return tmp_path


def read(folder: Path, lines: str, environ: dict[str, str] | None = None) -> ModelSettings:
    path = folder / "workers.ini"
    path.write_text(SECTION + lines)
    return load_settings(str(path), environ or {}).models[0]


def mistakes(folder: Path, lines: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read(folder, lines, environ)
    return [str(each).replace(f"{folder}/", "") for each in caught.value.problems]


def test_the_keys_together(folder: Path) -> None:
    """GPUs in the order written; a path relative to the file, its links unresolved; and back into a file."""
    (folder / "python").symlink_to(sys.executable)
    lines = "preload = none\npython = ./python\ngpus = 3,0-1\nallow_load = true\n"
    model = read(folder, lines)
    assert (model.preload, model.gpus, model.allow_load) == ("none", (3, 0, 1), True)
    assert model.python == str(folder / "python")
    rendered = render_settings(load_settings(str(folder / "workers.ini"), {}))
    assert (
        f"preload = none\npython = {folder}/python\ngpus = 3,0-1\nallow_load = true\n" in rendered
    )


GPUS = "expected GPU numbers and ranges such as 0,2-3"
PYTHON = "expected a Python interpreter that exists, by its path"

BAD = [
    ("preload = Import", "expected one of model, import, none"),
    ("allow_load = yes", "expected true or false"),
    ("allow_load = True", "expected true or false"),
    ("gpus = all", GPUS),
    ("gpus = 0,", GPUS),
    ("gpus = GPU-8a1b", GPUS),
    ("gpus = 1,1", f"a GPU is named twice; {GPUS}"),
    ("gpus = 128", f"no machine has a GPU 128; {GPUS}"),
    (
        "python = python3",
        f"python3 does not exist; a path is meant, not a name to be looked for in PATH; {PYTHON}",
    ),
    ("python = ~/python", f"~/python does not exist; ~ is not expanded here; {PYTHON}"),
    ("python = .", f"{{dir}} is not a regular file; {PYTHON}"),
    ("python = service.py", f"service.py may not be executed by this user; {PYTHON}"),
]


@pytest.mark.parametrize(("line", "said"), BAD)
def test_a_bad_value(folder: Path, line: str, said: str) -> None:
    """One line of the report each."""
    expected = f"workers.ini:4: [model:m] {line}: {said}"
    assert mistakes(folder, line + "\n") == [expected.replace("{dir}", str(folder))]


def test_gpus_need_workers_that_load_themselves(folder: Path) -> None:
    """With preload = model, the default, they are refused, and the report says why."""
    for lines in ("gpus = 0\n", "gpus = 0\npreload = model\n"):
        assert mistakes(folder, lines) == [f"workers.ini:4: [model:m] gpus = 0: {AFTER_FORK}"]
    for preload in ("import", "none"):
        assert read(folder, f"gpus = 0\npreload = {preload}\n").gpus == (0,)


def test_gpus_and_a_variable_for_them_in_the_file(folder: Path) -> None:
    """One of the two says which GPUs there are, not both."""
    lines = "preload = none\ngpus = 0,1\nenv.CUDA_VISIBLE_DEVICES = 1\n"
    assert mistakes(folder, lines, {"CUDA_VISIBLE_DEVICES": "7"}) == [
        "workers.ini:6: [model:m] env.CUDA_VISIBLE_DEVICES = 1: gpus gives each worker a value of "
        "its own; expected one of the two lines left out"
    ]
    alone = "preload = none\nenv.CUDA_VISIBLE_DEVICES = 1\n"
    assert read(folder, alone, {"CUDA_VISIBLE_DEVICES": "7"}).env == {"CUDA_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize(
    ("visible", "denied"),
    [("1, 0,5", None), ("1", "0"), ("7", "0, 1"), ("", "0, 1"), ("GPU-8a1b,1", "0")],
)
def test_gpus_are_among_those_of_the_environment(
    folder: Path, visible: str, denied: str | None
) -> None:
    """What a job scheduler has set for the supervisor bounds what it may give to workers."""
    lines = "preload = none\ngpus = 0,1\n"
    environ = {"CUDA_VISIBLE_DEVICES": visible}
    if denied is None:
        assert read(folder, lines, environ).gpus == (0, 1)
        return
    assert mistakes(folder, lines, environ) == [
        f"workers.ini:5: [model:m] gpus = 0,1: the environment has CUDA_VISIBLE_DEVICES={visible}, "
        f"and {denied} is not in it; expected some of those, by number, or the variable unset"
    ]


@pytest.mark.parametrize("asked", ["spares = 1", "max_requests = 9", "memory_limit = 1GiB"])
def test_spares_and_several_gpus(folder: Path, asked: str) -> None:
    """A spare would have to know its GPU before it has a slot; with a single one it does."""
    lines = f"preload = none\ngpus = 0,1\n{asked}\n"
    (mistake,) = mistakes(folder, lines)
    assert mistake.startswith(f"workers.ini:6: [model:m] {asked}: a spare has loaded the model")
    assert read(folder, lines.replace("0,1", "0")).gpus == (0,)


@pytest.mark.parametrize("preload", ["import", "none"])
def test_the_naive_engine_where_the_template_does_not_compute(folder: Path, preload: str) -> None:
    """It is refused with preload = model alone."""
    environ = {"MXNET_ENGINE_TYPE": "NaiveEngine"}
    assert read(folder, f"preload = {preload}\n", environ)
    assert read(folder, f"preload = {preload}\nenv.MXNET_ENGINE_TYPE = NaiveEngine\n").env
