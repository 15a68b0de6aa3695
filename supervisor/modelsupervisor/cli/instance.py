"""Which running supervisor a command means, and the connection to it.

`-c FILE` means the instance of that file: its run directory, and what runs there has to have been
started from that file. Two files without a `run_dir` share the default directory, and `stop -c
mine.ini` must not stop somebody else's models.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from modelsupervisor.control import REFUSED, ControlConnection, printable, started_from
from modelsupervisor.errors import ControlError
from modelsupervisor.paths import resolve_run_dir

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Instance:
    """A run directory, and the file that what runs there has to be started from (None: any)."""

    run_dir: str
    config: str | None


def named_by(config: str | None, run_dir: str | None) -> str:
    """The options as they were given, for a command that is proposed; "" where there were none."""
    if config is not None:
        return f"-c {shlex.quote(config)}"
    return "" if run_dir is None else f"--run-dir {shlex.quote(run_dir)}"


def instance_options(function: _Function) -> _Function:
    """Adds `-c FILE` and `--run-dir DIR` to a command, which gets them as `config` and
    `run_dir`."""
    function = click.option(
        "--run-dir", metavar="DIR", default=None, help="The run directory of the supervisor."
    )(function)
    return click.option(
        "-c",
        "--config",
        metavar="FILE",
        default=None,
        help="The file that the supervisor was started from.",
    )(function)


def find_instance(config: str | None, run_dir: str | None) -> Instance:
    """The instance that the two options mean.

    UsageError for both at once, ConfigurationError for a file that is none, RunDirectoryError
    where nothing says where. Of the file only `run_dir` is read: what runs may be looked at and
    stopped although the file, or a model of it, is broken by now.
    """
    if config is not None and run_dir is not None:
        raise click.UsageError(
            "-c and --run-dir both say which supervisor is meant; give one of them"
        )
    if config is None:
        return Instance(resolve_run_dir(run_dir), None)
    from modelsupervisor.config import locate  # costs more than all the rest of `status`

    source, set_there = locate(config)
    return Instance(resolve_run_dir(set_there), os.path.realpath(source))


def connect(instance: Instance) -> ControlConnection:
    """A connection to the instance; NotRunningError, or ControlError when another file's
    supervisor runs there."""
    control = ControlConnection.open(instance.run_dir)
    try:
        if instance.config is not None:
            require_same_file(instance, control.call("status"))
        return control
    except BaseException:
        control.close()
        raise


def require_same_file(instance: Instance, status: dict[str, Any]) -> None:
    """ControlError(refused) when what runs there was started from another file than the one that
    was named."""
    runs = started_from(status)
    if instance.config is not None and runs != printable(instance.config):
        raise ControlError(
            REFUSED,
            f"the supervisor in {instance.run_dir} was started from {runs}, "
            f"not from {instance.config}",
        )
