"""What may stand behind `python =`, and what is said of what may not."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelsupervisor.config import ModelSettings, Settings, SupervisorSettings
from modelsupervisor.interpreters import (
    Interpreter,
    InterpreterError,
    interpreters,
    probe,
    surroundings,
)

VERSION = ".".join(map(str, sys.version_info[:3]))
Script = Callable[[str], str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Makes an executable shell script of some lines; its path."""

    def make(text: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return make


def said_of(path: str, timeout: float = 10.0) -> str:
    with pytest.raises(InterpreterError) as caught:
        probe(path, os.environ, timeout)
    return str(caught.value)


def test_an_interpreter_says_its_version() -> None:
    """Its path stays as it was given: an environment is found by it."""
    assert probe(sys.executable, os.environ) == Interpreter(sys.executable, VERSION)


def test_a_wrapper_that_becomes_an_interpreter_is_one(script: Script) -> None:
    """It may say what it likes beside, on both streams."""
    path = script(f'echo modelworker-interpreter\necho hello >&2\nexec {sys.executable} "$@"')
    assert probe(path, os.environ) == Interpreter(path, VERSION)


def answer(rest: str) -> str:
    """A line of a script that answers as an interpreter would."""
    return f"echo modelworker-interpreter {rest}"


FAULTS = [
    ("exit 0", "it is no Python, or a broken one; it exited with code 0"),
    (
        "echo; echo 'unknown option -c'; exit 2",
        "it is no Python, or a broken one; it exited with code 2: unknown option -c",
    ),
    ("kill -9 $$", "it is no Python, or a broken one; it was killed by signal 9"),
    (answer("$$ 3.7.16"), "it is Python 3.7.16"),
    (answer("$$ 2.7.18"), "it is Python 2.7.18"),
    (answer("$$ three"), "it is Python three"),
    (answer("$$ 3.9.1 ctypes zlib"), "it is Python 3.9.1 without ctypes, zlib"),
    (answer("$$ 3.11.2 gc.freeze"), "it is Python 3.11.2 without gc.freeze"),
    ("yes", "it wrote more than 64KiB and no answer"),
    (
        f'{sys.executable} "$@"',
        "it starts Python in another process, and does not become it (exec)",
    ),
]


@pytest.mark.parametrize(("lines", "said"), FAULTS)
def test_what_is_no_interpreter_for_a_worker(script: Script, lines: str, said: str) -> None:
    """Each in its own words; garbage is quoted, shortened and printable."""
    assert said_of(script(lines)) == said


def test_garbage_is_made_printable(script: Script) -> None:
    """What a program prints has no power over the terminal."""
    said = said_of(script("printf '\\033[2J\\377%0200d' 0; exit 1"))
    assert said.isprintable()
    assert len(said) < 200


def test_what_hangs_is_ended(script: Script, tmp_path: Path) -> None:
    """At the limit, with what it has started; neither an open pipe nor a lingering exit holds the check up."""
    begun = time.monotonic()
    said = said_of(script(f"sleep 1000 & echo $! > {tmp_path}/pid\nsleep 1000"), 0.3)
    assert said == "it gave no answer within 0.3 s"
    child = int((tmp_path / "pid").read_text())
    assert said_of(script("exec >/dev/null 2>&1; sleep 1000"), 0.3) == "it did not end within 0.3 s"
    assert time.monotonic() - begun < 5
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_what_cannot_be_started(tmp_path: Path) -> None:
    """The operating system's words."""
    bad = tmp_path / "python"
    bad.write_bytes(b"\x7fELF no more")
    bad.chmod(0o755)
    assert said_of(str(bad)) == "it cannot be started: Exec format error"
    bad.write_text("#!/nowhere/python\n")
    assert said_of(str(bad)) == "it cannot be started: No such file or directory"


def settings(*models: ModelSettings) -> Settings:
    return Settings(source="/etc/w.ini", supervisor=SupervisorSettings(), models=models)


def test_a_mistake_names_file_section_key_and_value(script: Script, tmp_path: Path) -> None:
    """And what is expected; a model without the key has the supervisor's own interpreter; each one is asked once."""
    count = tmp_path / "count"
    path = script(f"echo . >> {count}; {answer('$$ 3.6.15')}")
    models = [
        ModelSettings(name=name, path="/m", handler="s", python=path, line=line)
        for name, line in (("a", 3), ("b", 7))
    ]
    own = ModelSettings(name="own", path="/m", handler="s")
    found, problems = interpreters(settings(*models, own))
    assert found == {"own": Interpreter(sys.executable, VERSION)}
    assert [str(problem) for problem in problems] == [
        f"/etc/w.ini:{line}: [model:{name}] python = {path}: it is Python 3.6.15; "
        "expected a Python interpreter, 3.8 or later"
        for name, line in (("a", 3), ("b", 7))
    ]
    assert count.read_text() == ".\n"


def test_the_supervisors_import_path_is_not_another_interpreters() -> None:
    """PYTHONPATH and PYTHONHOME are left behind, unless the file gives them; the supervisor's own interpreter keeps them."""
    environ = {"PYTHONPATH": "/ours", "PYTHONHOME": "/home", "LANG": "C"}
    plain = ModelSettings(name="m", path="/m", handler="s", env={"A": "b"})
    assert surroundings(plain, environ) == {**environ, "A": "b"}
    other = ModelSettings(
        name="m", path="/m", handler="s", python="/p", env={"PYTHONPATH": "/theirs"}
    )
    assert surroundings(other, environ) == {"LANG": "C", "PYTHONPATH": "/theirs"}
