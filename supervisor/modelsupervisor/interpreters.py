"""The interpreter of a model's own environment: asked once, before anything is started, whether a worker could run in it.

The answer is a line of its own among whatever the interpreter, a wrapper around it or a site's start-up code says besides. The
question is Python 2's syntax as well as 3's, so that an old one can say how old it is. It is asked with the environment that the
model's processes will have, in a session of its own, for a bounded time and of a bounded amount of output: what stands behind
`python =` may be any program.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from modelsupervisor.config import ModelSettings, Settings, model_problem
from modelsupervisor.config.reports import quoted
from modelsupervisor.errors import Problem

MINIMUM = (3, 8)
EXPECTED = "a Python interpreter, 3.8 or later"
ANSWER_TIMEOUT = (
    10.0  # seconds; an interpreter on a slow network file system has been seen to need two
)
MOST_OUTPUT = 64 * 1024  # bytes that are looked at
_MARK = "modelworker-interpreter"
_QUESTION = """
import gc, os, sys
lacking = []
for name in ("ctypes", "json", "mmap", "select", "socket", "struct", "zlib"):
    try:
        __import__(name)
    except ImportError:
        lacking.append(name)
if not hasattr(gc, "freeze"):
    lacking.append("gc.freeze")
words = ["%s", str(os.getpid()), ".".join([str(part) for part in sys.version_info[:3]])]
sys.stdout.write("\\n" + " ".join(words + lacking) + "\\n")
"""
# They belong to the supervisor's interpreter, and would have another one import what was built for that.
FOREIGN_VARIABLES = ("PYTHONPATH", "PYTHONHOME")


@dataclass(frozen=True)
class Interpreter:
    """What a model's processes are started with: its path, and its version as `3.8.18`."""

    path: str
    version: str


class InterpreterError(Exception):
    """No worker could run in this interpreter; the sentence is for the operator."""


def own_interpreter() -> Interpreter:
    """The supervisor's own."""
    return Interpreter(sys.executable, ".".join(str(part) for part in sys.version_info[:3]))


def left_behind(model: ModelSettings, environ: Mapping[str, str]) -> list[str]:
    """The variables of the supervisor's environment that a model with an interpreter of its own does not get."""
    foreign = FOREIGN_VARIABLES if model.python is not None else ()
    return [name for name in foreign if name in environ]


def surroundings(model: ModelSettings, environ: Mapping[str, str]) -> dict[str, str]:
    """What a model's processes have of the supervisor's environment `environ`, and of the file."""
    foreign = left_behind(model, environ)
    inherited = {name: value for name, value in environ.items() if name not in foreign}
    return {**inherited, **model.env}


def interpreters(settings: Settings) -> tuple[dict[str, Interpreter], tuple[Problem, ...]]:
    """The interpreter of each model by name, and a mistake for each that cannot be used; each is asked once."""
    found: dict[str, Interpreter] = {}
    problems = []
    asked: dict[tuple[str, tuple[tuple[str, str], ...]], Interpreter | InterpreterError] = {}
    for model in settings.models:
        if model.python is None:
            found[model.name] = own_interpreter()
            continue
        environment = surroundings(model, os.environ)
        question = model.python, tuple(sorted(environment.items()))
        if question not in asked:
            asked[question] = _probed(model.python, environment)
        answer = asked[question]
        if isinstance(answer, Interpreter):
            found[model.name] = answer
        else:
            said = {"value": model.python, "expected": EXPECTED, "message": str(answer)}
            problems.append(model_problem(settings, model.name, "python", **said))
    return found, tuple(problems)


def _probed(path: str, environment: Mapping[str, str]) -> Interpreter | InterpreterError:
    try:
        return probe(path, environment)
    except InterpreterError as error:
        return error


def probe(
    path: str, environment: Mapping[str, str], timeout: float = ANSWER_TIMEOUT
) -> Interpreter:
    """Ask an interpreter what it is. Raises InterpreterError where no worker could run in it."""
    try:
        process = subprocess.Popen(
            [path, "-c", _QUESTION % _MARK],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd="/",  # -c has the working directory on the import path
            start_new_session=True,
        )
    except OSError as error:
        raise InterpreterError(f"it cannot be started: {error.strerror}") from None
    with process:
        try:
            output, code = _answer(process, timeout)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return _judged(path, process.pid, output, code)


def _answer(process: subprocess.Popen[bytes], timeout: float) -> tuple[bytes, int]:
    """What it wrote, and its exit code. Raises InterpreterError at the timeout, or past the amount."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    output = b""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while len(output) <= MOST_OUTPUT:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise InterpreterError(f"it gave no answer within {timeout:g} s")
        chunk = os.read(process.stdout.fileno(), MOST_OUTPUT)
        if not chunk:
            break
        output += chunk
    else:
        raise InterpreterError(f"it wrote more than {MOST_OUTPUT // 1024}KiB and no answer")
    try:
        return output, process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise InterpreterError(f"it did not end within {timeout:g} s") from None


def _judged(path: str, pid: int, output: bytes, code: int) -> Interpreter:
    lines = [line.split() for line in output.decode("utf-8", "replace").splitlines()]
    said = [words[1:] for words in lines if words[:1] == [_MARK] and len(words) >= 3]
    if not said:
        last = next((" ".join(words) for words in reversed(lines) if words), "")
        rest = f": {quoted(last)}" if last else ""
        end = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        raise InterpreterError(f"it is no Python, or a broken one; it {end}{rest}")
    own_pid, version, *lacking = said[-1]
    if _number(version) < MINIMUM:
        raise InterpreterError(f"it is Python {quoted(version)}")
    if own_pid != str(pid):
        raise InterpreterError("it starts Python in another process, and does not become it (exec)")
    if lacking:
        raise InterpreterError(f"it is Python {version} without {', '.join(map(quoted, lacking))}")
    return Interpreter(path, version)


def _number(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(int(part) if part.isdecimal() and len(part) < 5 else 0 for part in parts)
