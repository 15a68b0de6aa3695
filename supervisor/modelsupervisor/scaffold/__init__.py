"""The folder that `modelsupervisor init NAME` writes: a model that runs as it is, to be changed
into one's own.

The files lie in `template/` beside this module, as package data with `.in` at the end of their
names, so that no tool takes them for a part of modelsupervisor; `@NAME@` in them stands for the
model's name, which cannot hold a character that means something in Python, INI or JSON. They are
written into a folder aside, which then gets the target's name by one rename: somebody who looks
sees all of the model or nothing, and a rename onto a folder that is not empty is refused by the
kernel, even if it was empty when we looked.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path

from modelsupervisor.config.names import MODEL_NAME, MODEL_NAME_EXPECTED
from modelsupervisor.errors import EXIT_USAGE, ModelSupervisorError

FILES = ("handler.py", "workers.ini", "sample.json")

_NAME = "@NAME@"


class ScaffoldError(ModelSupervisorError):
    """The model was not written, and nothing else was."""


class ModelNameError(ScaffoldError):
    """The name cannot be a model's."""

    exit_code = EXIT_USAGE


class TargetError(ScaffoldError):
    """The target exists already, or cannot be written."""


def write_model(target: Path, name: str) -> list[Path]:
    """Write a model called `name` as the folder `target`; the paths of its files, in the order of
    FILES.

    The target may be an empty folder; its parent must exist. Raises ModelNameError or TargetError.
    """
    if not MODEL_NAME.fullmatch(name):
        raise ModelNameError(f"{name!r} cannot be a model's name: expected {MODEL_NAME_EXPECTED}")
    target = Path(os.path.abspath(target))
    _refuse_occupied(target)
    contents = {file: _template(file).replace(_NAME, name) for file in FILES}
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{name[:32]}.", dir=target.parent))
    except FileNotFoundError as error:
        raise TargetError(f"{target.parent} does not exist: make it first") from error
    except OSError as error:
        raise TargetError(f"cannot write in {target.parent}: {error.strerror}") from error
    try:
        # mkdtemp's folder is for its maker alone; the one inside has the umask's permissions.
        built = aside / "model"
        built.mkdir()
        for file, text in contents.items():
            (built / file).write_text(text, encoding="utf-8")
        os.rename(built, target)
    except OSError as error:
        raise _target_error(target, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [target / file for file in FILES]


def _refuse_occupied(target: Path) -> None:
    """Raise TargetError where something lies at the target. The rename would refuse it too; this
    says it kindly.
    """
    try:
        with os.scandir(target) as entries:
            if next(entries, None) is not None:
                raise TargetError(f"{target} exists and is not empty: choose another name")
    except FileNotFoundError:
        pass
    except NotADirectoryError as error:
        raise TargetError(f"{target} exists and is not a folder: choose another name") from error
    except OSError as error:
        raise TargetError(f"cannot look into {target}: {error.strerror}") from error


def _target_error(target: Path, error: OSError) -> TargetError:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
        return TargetError(f"{target} exists: choose another name")
    return TargetError(f"cannot write {target}: {error.strerror}")


def _template(file: str) -> str:
    source = resources.files(__name__) / "template" / f"{file}.in"
    return source.read_text(encoding="utf-8")
