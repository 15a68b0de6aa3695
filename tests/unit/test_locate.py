"""config/locate.py: the instance of a file is found by `run_dir` alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelsupervisor.config import load_settings, locate
from modelsupervisor.errors import ConfigurationError

BROKEN_ELSEWHERE = """
[supervisor]
log_level = loud
run_dir = somewhere/below
unheard_of = 1

[model:gone]
path = gone.mar
handler = no such: handler
workers = minus one
workers = 2

[modle:typo]
"""


def write(folder: Path, text: str) -> str:
    """A file in a folder."""
    path = folder / "workers.ini"
    path.write_text(text)
    return str(path)


def problems(path: str) -> list[str]:
    """What is said of a file that leads nowhere."""
    with pytest.raises(ConfigurationError) as raised:
        locate(path)
    return [str(problem) for problem in raised.value.problems]


def test_a_file_that_is_broken_elsewhere(tmp_path: Path) -> None:
    """Models that are gone, values and keys that are wrong: the instance is found where `load_settings` finds mistakes."""
    path = write(tmp_path, BROKEN_ELSEWHERE)
    with pytest.raises(ConfigurationError):
        load_settings(path)
    assert locate(path) == (path, str(tmp_path / "somewhere" / "below"))


@pytest.mark.parametrize(
    "text", ["", "[supervisor]\nlog_level = info\n", "[model:a]\nrun_dir = x\n"]
)
def test_a_file_without_a_run_dir(tmp_path: Path, text: str) -> None:
    """The usual places are tried then."""
    assert locate(write(tmp_path, text))[1] is None


def test_the_same_place_as_the_start_makes(tmp_path: Path) -> None:
    """Absolute, relative to the file, without the dots."""
    (tmp_path / "service.py").write_text("")
    text = "[supervisor]\nrun_dir = ../run\n[model:a]\npath = .\nhandler = service:f\n"
    path = write(tmp_path, text)
    settings = load_settings(path)
    assert locate(path) == (settings.source, settings.supervisor.run_dir)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run_dir = x\n", "stands before the first section"),
        ("[supervisor]\nrun_dir x\n", "has no ="),
        ("[supervisor\nrun_dir = x\n", "stands before the first section"),
        ("[supervisor]\nrun_dir = a\nrun_dir = b\n", "a second time"),
        ("[supervisor]\nrun_dir = a\n[supervisor]\nrun_dir = b\n", "a second time"),
        ("[supervisor]\nrun_dir =\n", "is not one path"),
        ("[supervisor]\nrun_dri = x\n", "did you mean run_dir?"),
    ],
)
def test_a_file_that_nobody_can_read_is_an_error(tmp_path: Path, text: str, said: str) -> None:
    """It may say anything of `run_dir`."""
    found = problems(write(tmp_path, text))
    assert any(said in problem for problem in found), found


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Named as it was asked for."""
    assert "does not exist" in problems(str(tmp_path / "missing.ini"))[0]
