"""`python =`: a model in a virtual environment of another version of Python, where nothing of ours is installed."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.client import Client
from support.faults import crash, echo, ready
from support.instance import ROOT, Instance

Make = Callable[..., Instance]

VERSIONS = [(3, minor) for minor in range(8, 15)]
# Beside the one that runs this, as version switchers keep them, and where systems do
PLACES = (
    str(Path(sys.base_prefix).parent / "{0}.*" / "bin" / "python{0}"),
    "/usr/bin/python{0}",
    "/usr/local/bin/python{0}",
)
WHO = "import json, sys; print(json.dumps(list(sys.version_info[:2])))"


def _interpreter(version: tuple[int, int]) -> str | None:
    """An interpreter of that version that starts; None where there is none."""
    text = f"{version[0]}.{version[1]}"
    found = [shutil.which(f"python{text}")]
    for place in PLACES:
        found += sorted(glob.glob(place.format(text)))
    for path in filter(None, found):
        asked = subprocess.run([path, "-c", WHO], capture_output=True, text=True, check=False)
        if asked.returncode == 0 and json.loads(asked.stdout) == list(version):
            return path
    return None


def _others() -> Iterator[tuple[str, str]]:
    """Version and path of each other interpreter here, the oldest first."""
    for version in VERSIONS:
        path = None if version == sys.version_info[:2] else _interpreter(version)
        if path is not None:
            yield f"{version[0]}.{version[1]}", path


def _environment(path: str, folder: Path) -> Path:
    """A virtual environment of that interpreter, empty; the path of its own."""
    command = [path, "-m", "venv", "--without-pip", str(folder)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"{path} makes no virtual environment: {made.stderr or made.stdout}")
    return folder / "bin" / "python"


def _serve_in(instance: Make, folder: Path, version: str, path: str) -> None:
    """A model of each preload, in one environment."""
    python = _environment(path, folder / f"venv{version}")
    made = instance("worker.exited")
    early = ROOT / "tests" / "models" / "early"
    modes = ("model", "import", "none")
    made.write(
        "".join(made.model(mode, folder=early, python=python, preload=mode) for mode in modes)
    )
    made.start()
    for mode in modes:
        _crash_and_check(made, mode, version, python, early)
    planned = " ".join(made.cli("plan", "-c", str(made.config)).stdout.split())
    assert f"{python}, Python {version}." in planned


def _crash_and_check(made: Instance, mode: str, version: str, python: Path, model: Path) -> None:
    told = _told(made, mode)
    assert told["version"].startswith(f"{version}.")
    assert made.wait_event("template.ready", model=mode)["python"] == told["version"]
    assert told["prefix"] == str(python.parent.parent)
    assert told["path"][0] == str(model)
    assert not [path for path in told["path"] if path.startswith(str(ROOT)) and path != str(model)]
    assert told["ours"] == []
    os.kill(made.worker(mode)["pid"], 9)
    ready(made, 2, model=mode)
    assert _told(made, mode)["version"] == told["version"]


def _told(made: Instance, model: str) -> dict[str, Any]:
    with Client([str(made.socket(model))], timeout=30) as client:
        told: dict[str, Any] = json.loads(client.predict(b"say").body)
        return told


def test_a_model_in_an_environment_of_an_older_python(instance: Make, short_tmp: Path) -> None:
    """The oldest that is here: each preload serves there and comes back after a crash; nothing of ours is importable, although the
    supervisor's PYTHONPATH has it."""
    other = next(_others(), None)
    if other is None:
        pytest.skip("there is no other Python, 3.8 or later, on this machine")
    _serve_in(instance, short_tmp, *other)


@pytest.mark.slow
def test_a_model_in_an_environment_of_every_other_python(instance: Make, short_tmp: Path) -> None:
    """All the others that are here."""
    others = list(_others())[1:]
    if not others:
        pytest.skip("there are no two other Pythons, 3.8 or later, on this machine")
    for version, path in others:
        _serve_in(instance, short_tmp, version, path)


def test_the_faults_of_handlers_are_told_in_an_older_python(
    instance: Make, short_tmp: Path
) -> None:
    """What a worker does beside serving runs there too: tracebacks, metrics, events, the last lines of a crash."""
    other = next(_others(), None)
    if other is None:
        pytest.skip("there is no other Python, 3.8 or later, on this machine")
    made = instance("worker.exited", "request.failed")
    # The model's own syntax is its author's affair: this one is of Python 3.8
    made.write(made.model(python=other[1], preload="none", allow_load="true"))
    made.start()
    assert echo(made) == b"are you there"
    crash(made, "segfault")
    exited = made.wait_event("worker.exited")
    assert exited["signal"] == "SIGSEGV"
    assert any("Segmentation fault" in line for line in exited["last_lines"])
    assert echo(made) == b"are you there"


def test_a_python_that_is_too_old_is_refused(instance: Make) -> None:
    """By `check`, `plan` and `start`, each with 78 and the line; nothing is started."""
    old = next(filter(None, map(_interpreter, [(2, 7), (3, 6), (3, 7)])), None)
    if old is None:
        pytest.skip("there is no Python older than 3.8 on this machine")
    made = instance()
    made.write(made.model(python=old))
    for command in ("check", "plan", "start"):
        done = made.cli(command, "-c", str(made.config))
        assert done.returncode == 78
        assert re.search(
            rf"workers.ini:5: \[model:echo\] python = {old}: it is Python [23]\.\d+\.\d+; "
            "expected a Python interpreter, 3.8 or later",
            done.stderr,
        ), done.stderr
    assert not made.run_dir.exists()
