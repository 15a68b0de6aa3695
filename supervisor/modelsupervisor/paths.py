"""Where a supervisor lives: its run directory, and the names in it that clients form too.

Server and client have to come to the same directory without talking to each other, so the rule
stands here once: what the file says (`run_dir`), else the first entry of `$RUNTIME_DIRECTORY`
(systemd makes and owns it), else `$XDG_RUNTIME_DIR/modelsupervisor`, else `/run/modelsupervisor`
for root, else an error: a directory in the shared /tmp under a name that anybody can guess is what
we do not fall back to. A relative path in a variable is passed over, as the XDG specification
demands.

A worker's socket is `MODEL.INDEX.sock`. A model name may contain dots (`resnet.v2`), an index may
not: names are read from the right.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping

from modelsupervisor.errors import RunDirectoryError

CONTROL_SOCKET = "control.sock"

_WORKER_SOCKET = re.compile(
    r"(?P<model>[A-Za-z0-9][A-Za-z0-9_.-]*)\.(?P<index>0|[1-9][0-9]{0,8})\.sock"
)


def resolve_run_dir(
    configured: str | None, environ: Mapping[str, str] | None = None, uid: int | None = None
) -> str:
    """The absolute path of the run directory; it need not exist. RunDirectoryError where no rule
    gives one.

    `environ` and `uid` (the effective one) are this process's unless given.
    """
    if configured is not None:
        return os.path.abspath(configured)
    environ = os.environ if environ is None else environ
    first = environ.get("RUNTIME_DIRECTORY", "").split(":", 1)[0]
    if os.path.isabs(first):
        return os.path.normpath(first)
    session = environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(session):
        return os.path.join(os.path.normpath(session), "modelsupervisor")
    if (os.geteuid() if uid is None else uid) == 0:
        return "/run/modelsupervisor"
    raise RunDirectoryError(
        "no run directory: the configuration sets no run_dir, neither RUNTIME_DIRECTORY nor "
        "XDG_RUNTIME_DIR holds an absolute path, and only root may use /run/modelsupervisor; "
        "set run_dir in [supervisor]"
    )


def resolve_model_cache(
    configured: str | None, run_dir: str, environ: Mapping[str, str] | None = None
) -> str:
    """The absolute path of the folder that archives are unpacked into; it need not exist.

    What the file says (`model_cache`), else `models` in the first entry of `$CACHE_DIRECTORY`
    (systemd's, and open to others by default), else `$XDG_CACHE_HOME/modelsupervisor`, else
    `models` in the run directory: not in a home directory, which the user of a service often has
    not, and not in a place that others write to. The run directory is ours alone and there even
    where everything else is read-only; but it is often in memory.
    """
    if configured is not None:
        return os.path.abspath(configured)
    environ = os.environ if environ is None else environ
    first = environ.get("CACHE_DIRECTORY", "").split(":", 1)[0]
    if os.path.isabs(first):
        return os.path.join(os.path.normpath(first), "models")
    home = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(home):
        return os.path.join(os.path.normpath(home), "modelsupervisor")
    return os.path.join(run_dir, "models")


def control_socket(run_dir: str) -> str:
    """The path of the control socket."""
    return os.path.join(run_dir, CONTROL_SOCKET)


def parse_worker_socket(name: str) -> tuple[str, int] | None:
    """(model, index) of a worker socket's file name; None for any other name."""
    match = _WORKER_SOCKET.fullmatch(name)
    return (match["model"], int(match["index"])) if match else None


def list_worker_sockets(run_dir: str) -> dict[str, tuple[str, ...]]:
    """Model name → paths of its workers' sockets in the order of their indices; OSError where the
    directory is not readable.

    Only sockets count: a regular file or a symlink under such a name is not ours.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    with os.scandir(run_dir) as entries:
        for entry in entries:
            parsed = parse_worker_socket(entry.name)
            if parsed is not None and _is_socket(entry):
                found.setdefault(parsed[0], []).append((parsed[1], entry.path))
    return {model: tuple(path for _, path in sorted(found[model])) for model in sorted(found)}


def _is_socket(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)
    except FileNotFoundError:  # unlinked between the listing and the look
        return False
