"""Values that name something on disk: a model's folder, a warm-up file, the run directory, a
handler.

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

import msgspec

from modelsupervisor.config.values import BadValueError, ValueType, reason

MANIFEST = "MAR-INF/MANIFEST.json"
_LARGEST_MANIFEST = 1024 * 1024  # bytes; MMS's own are some hundreds


@dataclass(frozen=True)
class PathType(ValueType):
    """A value type whose text is a path. `resolve(folder, text)` gives it absolute, or raises
    BadValueError.
    """

    resolve: Callable[[str, str], str] = os.path.join


def folder_path() -> PathType:
    """A folder that exists, as its real path: the path by which MMS clients name the model."""
    return PathType("folder", "a folder that exists", str, str, _existing_folder)


def file_path() -> PathType:
    """A readable regular file that exists, as an absolute path."""
    return PathType("file", "a file that exists", str, str, _existing_file)


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


def _existing_folder(folder: str, text: str) -> str:
    path = _absolute(folder, text)
    status = _status(path, text)
    if stat.S_ISREG(status.st_mode) and path.endswith(".mar"):
        raise BadValueError(f"{path} is an archive", "the folder that it was unpacked into")
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


def handler_name() -> ValueType:
    """`module:function` or `module`; MMS lets `.py` be written after the module; a dotted module
    lies in a package.
    """

    def parse(text: str) -> str:
        _, colon, function = text.partition(":")
        if not all(map(str.isidentifier, _module(text))) or (colon and not function.isidentifier()):
            raise BadValueError
        return text

    return ValueType(
        "module:function", "module:function or module, of a file in the model's folder", parse
    )


def _module(handler: str) -> list[str]:
    return handler.partition(":")[0].removesuffix(".py").split(".")


def check_handler_file(folder: str, handler: str) -> None:
    """Raise BadValueError unless the module of `handler` has its file in `folder`. Nothing is
    opened or imported.
    """
    base = os.path.join(folder, *_module(handler))
    if not os.path.isfile(f"{base}.py") and not os.path.isfile(os.path.join(base, "__init__.py")):
        raise BadValueError(f"{base}.py does not exist")


class _ManifestModel(msgspec.Struct):
    handler: str


class _Manifest(msgspec.Struct):
    model: _ManifestModel


def manifest_handler(folder: str) -> str | None:
    """The handler that the model's own manifest names; None where there is no manifest;
    BadValueError where it is unusable.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        # A regular file, or nothing: opening a FIFO would wait for a writer for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadValueError(f"{path} is not a regular file")
        with open(path, "rb") as file:
            text = file.read(_LARGEST_MANIFEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BadValueError(f"{path} cannot be read: {reason(error)}") from None
    if len(text) > _LARGEST_MANIFEST:
        raise BadValueError(f"{path} is larger than 1MiB")
    try:
        return msgspec.json.decode(text, type=_Manifest).model.handler
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadValueError(f"{path} names no handler: {error}") from None
