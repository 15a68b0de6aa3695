"""Which files a configuration leads to in the run directory, and what can be wrong with their
names. Pure.

Worker I of model NAME has NAME.I.sock, NAME.I.stdout and NAME.I.stderr, besides the instance's own
lock, control.sock and scoreboard. Two different names never form the same file: I is digits only,
so what stands before the last two dots is NAME, whatever dots it holds itself (`a.0` and `a` give
a.0.0.sock and a.0.sock), and each of the instance's own names has less than two dots. Only a file
system that ignores letter case (a bind mount from such a host into a container) folds `Digits` and
`digits` into one; those are refused everywhere, since a configuration moves between hosts.
"""

from __future__ import annotations

import os
import re

from modelsupervisor.config.reports import printable
from modelsupervisor.config.settings import Settings
from modelsupervisor.errors import Problem

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MODEL_NAME_EXPECTED = (
    "a name of at most 64 letters, digits, _ . and -, the first one a letter or digit"
)

# sockaddr_un.sun_path holds 108 bytes with the final NUL. The name under which a socket is bound
# aside is shorter than the shortest socket name of a worker, and it is bound relative to a
# descriptor: the longest path is a client's.
SOCKET_PATH_LIMIT = 107

CONTROL_SOCKET = "control.sock"


def worker_socket(model: str, index: int) -> str:
    """The file name of the socket of worker `index` of `model`."""
    return f"{model}.{index}.sock"


def socket_path_problems(run_dir: str, settings: Settings) -> tuple[Problem, ...]:
    """One problem for each model (and the control socket) whose path a client could not connect to.

    `run_dir` is the directory chosen in the end, absolute. The last worker's path is a model's
    longest.
    """
    file = printable(settings.source)
    problems = []
    control = _too_long(run_dir, CONTROL_SOCKET)
    if control:
        problems.append(
            Problem(
                file=file,
                section="supervisor",
                key="run_dir",
                message=control[0],
                expected=control[1],
            )
        )
    for model in settings.models:
        said = _too_long(run_dir, worker_socket(model.name, model.workers - 1))
        if said:
            section = f"model:{model.name}"
            problems.append(
                Problem(
                    file=file, line=model.line, section=section, message=said[0], expected=said[1]
                )
            )
    return tuple(problems)


def _too_long(run_dir: str, name: str) -> tuple[str, str] | None:
    path = os.path.join(run_dir, name)
    length = len(os.fsencode(path))
    if length <= SOCKET_PATH_LIMIT:
        return None
    message = f"the socket path {printable(path)} has {length} bytes"
    return message, f"at most {SOCKET_PATH_LIMIT}; choose a shorter run_dir or model name"
