"""Values that name something on disk: a model's folder or archive, a warm-up file, the run directory.

Relative paths start at the folder of the configuration file, never at the working directory, so
that `start -c` means the same from everywhere. What has to be there is looked for now: a missing
file found at the first start of a worker costs a start; found here, it costs a line. What is found
may change later; the worker's own loader copes with that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from modelsupervisor.config.values import BadValueError, ValueType, reason


@dataclass(frozen=True)
class PathType(ValueType):
    """A value type whose text is a path. `resolve(folder, text)` gives it absolute, or raises
    BadValueError.
    """

    resolve: Callable[[str, str], str] = os.path.join


def model_path() -> PathType:
    """A folder that exists, as its real path: the path by which MMS clients name the model; or an
    archive, as its absolute path.
    """
    return PathType("folder | archive", "a folder or .mar archive that exists", str, str, _model)


def file_path() -> PathType:
    """A readable regular file that exists, as an absolute path."""
    return PathType("file", "a file that exists", str, str, _existing_file)


def program_path() -> PathType:
    """A file that this user may execute, as an absolute path; a link to it stays one, since Python finds its environment by it."""
    return PathType("program", "a Python interpreter that exists, by its path", str, str, _program)


def place_path() -> PathType:
    """A place that need not exist yet, as an absolute path."""
    return PathType("path", "a path", str, str, _absolute)


def log_path() -> PathType:
    """A file, or the name of one in a folder that exists, as an absolute path.

    Whether it may be written is for `start` to find out: `status -c` may be another user's.
    """
    return PathType("path", "a file in a folder that exists", str, str, _file_or_place)


def _absolute(folder: str, text: str) -> str:
    return os.path.normpath(os.path.join(folder, text))


def _model(folder: str, text: str) -> str:
    path = _absolute(folder, text)
    status = _status(path, text)
    if stat.S_ISREG(status.st_mode) and is_archive(path):
        if not os.access(path, os.R_OK):
            raise BadValueError(f"{path} may not be read by this user")
        return path
    if not stat.S_ISDIR(status.st_mode):
        raise BadValueError(f"{path} is not a folder")
    if not os.access(path, os.R_OK | os.X_OK):
        raise BadValueError(f"{path} may not be read by this user")
    return os.path.realpath(path)


def _existing_file(folder: str, text: str) -> str:
    path = _absolute(folder, text)
    if not stat.S_ISREG(_status(path, text).st_mode):
        raise BadValueError(f"{path} is not a regular file")
    if not os.access(path, os.R_OK):
        raise BadValueError(f"{path} may not be read by this user")
    return path


def _program(folder: str, text: str) -> str:
    path = _absolute(folder, text)
    try:
        status = _status(path, text)
    except BadValueError as bad:
        hint = "" if os.sep in text else "; a path is meant, not a name to be looked for in PATH"
        raise BadValueError(f"{bad.message}{hint}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadValueError(f"{path} is not a regular file")
    if not os.access(path, os.X_OK):
        raise BadValueError(f"{path} may not be executed by this user")
    return path


def _file_or_place(folder: str, text: str) -> str:
    path = _absolute(folder, text)
    parent = os.path.dirname(path)
    if not stat.S_ISDIR(_status(parent, text).st_mode):
        raise BadValueError(f"{parent} is not a folder")
    if os.path.isdir(path):
        raise BadValueError(f"{path} is a folder")
    return path


def _status(path: str, text: str) -> os.stat_result:
    try:
        return os.stat(path)
    except FileNotFoundError:
        hint = "; ~ is not expanded here" if text.startswith("~") else ""
        raise BadValueError(f"{path} does not exist{hint}") from None
    except (OSError, ValueError) as error:
        raise BadValueError(f"{path} cannot be used: {reason(error)}") from None


def is_archive(path: str) -> bool:
    """True for the name of an archive that is not a folder."""
    return path.endswith(".mar") and not os.path.isdir(path)
