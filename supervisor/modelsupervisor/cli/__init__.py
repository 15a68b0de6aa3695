"""The command `modelsupervisor`: what an operator types, and the exit code that a script gets.

One module per group of commands, imported when one of its commands is asked for: `status` is run in
loops and by shells that complete, so it must not pay for what `start` needs. A command is a
function that returns an exit code or raises.

All endings meet in `main`: an error of our own tree (modelsupervisor.errors) is one clear message
on stderr and the exit code of its class; wrong usage is 2; a reader that went away (`| head`) is
silence. Everything else is a bug and keeps its traceback.

    0 as asked · 1 failed · 2 usage · 3 not running · 75 already running · 78 configuration
    130 interrupted by Ctrl-C before a command had its own answer to that
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from modelsupervisor import __version__
from modelsupervisor.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, ModelSupervisorError

_EXIT_INTERRUPTED = 130  # as a shell says it of a command that SIGINT ended


class _Place(NamedTuple):
    module: str
    function: str
    help: str


_COMMANDS = {
    "start": _Place(
        "lifecycle", "start", "Run the models of a configuration file, in the foreground."
    ),
    "check": _Place(
        "files",
        "check",
        "Say what a configuration file means, or everything that is wrong with it.",
    ),
    "plan": _Place(
        "plan", "plan", "Show which CPUs and threads each worker would get here, and why."
    ),
    "init": _Place("files", "init", "Make a model of your own that runs as it is."),
    "status": _Place(
        "status", "status", "Show models and workers, or tell the story of one's last crash."
    ),
    "logs": _Place("logs", "logs", "Print the newest events and lines of output, or follow them."),
    "stop": _Place(
        "lifecycle", "stop", "Stop the supervisor, gracefully, and wait until it is gone."
    ),
    "restart": _Place(
        "lifecycle", "restart", "Load a model anew and replace its workers, or replace one worker."
    ),
    "predict": _Place("predict", "predict", "Send files to a model and print its answers."),
}


class _Commands(click.Group):
    """The commands by name; help and order come from the table, without importing any of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        command = getattr(
            importlib.import_module(f"modelsupervisor.cli.{place.module}"), place.function
        )
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in _COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="modelsupervisor")
def commands() -> None:
    """Runs inference models in supervised, preforked worker processes.

    status, logs, stop, restart and predict find the supervisor by -c FILE (the file it was started
    from), else by --run-dir, else where one runs by default.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; `argv` is without the program's name. Returns the exit code."""
    return max(_run(argv), _flush())


def _run(argv: Sequence[str] | None) -> int:
    try:
        outcome = commands.main(args=argv, prog_name="modelsupervisor", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except ModelSupervisorError as error:
        complain(str(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _EXIT_INTERRUPTED
    return outcome if isinstance(outcome, int) else EXIT_OK


def _flush() -> int:
    # Now, not at the interpreter's exit, where what is still buffered would be tried again, and end
    # in a complaint that nobody understands. What failed has been said, or is a reader that left.
    if sys.stdout is None:  # it was closed when we started (>&-)
        return EXIT_OK
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return EXIT_FAILED
    return EXIT_OK


class OutputError(ModelSupervisorError):
    """What a command had to say could not be written (a full disk under `> file`)."""


def say(message: str | bytes, *, newline: bool = True) -> None:
    """Output of a command, on stdout; OutputError where it cannot be written."""
    try:
        click.echo(message, nl=newline)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        raise OutputError(f"cannot write the output: {error.strerror}") from None


def complain(message: str) -> None:
    """One message to the operator on stderr."""
    click.echo(f"modelsupervisor: {message}", err=True)
