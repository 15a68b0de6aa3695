"""`logs`: what the supervisor keeps of the log in memory, and with -f what comes.

People get the form of the supervisor's own console wherever it goes, since `logs | grep` is a person too; programs ask for --json.
A reader that is slow here slows nobody: the supervisor drops for it, and counts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

from modelsupervisor.cli import complain, say
from modelsupervisor.cli.instance import connect, find_instance, instance_options
from modelsupervisor.cli.target import parse_target
from modelsupervisor.cli.terminal import on_terminal
from modelsupervisor.control import ControlConnection
from modelsupervisor.errors import EXIT_OK
from modelsupervisor.log.harmless import harmless_json


@click.command()
@click.argument("target", metavar="[MODEL[/N]]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0, max=100_000),
    default=100,
    show_default=True,
    metavar="N",
    help="Begin with the newest N events.",
)
@click.option("--json", "as_json", is_flag=True, help="Events as they are: one JSON object a line.")
@instance_options
def logs(
    target: str | None,
    follow: bool,
    lines: int,
    as_json: bool,
    config: str | None,
    run_dir: str | None,
) -> int:
    """Print the newest events and lines of output: of a worker, of a model, or of everything.

    The supervisor keeps about 1 MiB of them for each worker.
    """
    asked: dict[str, object] = {"lines": lines, "follow": follow}
    if target is not None:
        asked.update(parse_target(target).arguments())
    instance = find_instance(config, run_dir)
    with connect(instance) as control:
        control.call("logs", asked)
        try:
            _show(control, as_json)
        except KeyboardInterrupt:
            if not follow:
                raise
            return EXIT_OK  # the end of a follow that was meant
    if follow:
        complain(f"the supervisor in {instance.run_dir} is gone")
    return EXIT_OK


def _show(control: ControlConnection, as_json: bool) -> None:
    form = _json_form() if as_json else _text_form()
    for line in control.events(_reader()):
        say(form(line))


def _reader() -> int:
    """The descriptor of standard output, -1 where it has none."""
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError):
        return -1


def _text_form() -> Callable[[bytes], bytes]:
    from modelsupervisor.log.console import Console

    console = Console(colors=on_terminal() and "NO_COLOR" not in os.environ, dates=True)
    # A name that is not UTF-8 is a lone surrogate in an event, which no stream takes.
    return lambda line: console.line(line).encode(errors="backslashreplace")


def _json_form() -> Callable[[bytes], bytes]:
    return harmless_json if on_terminal() else lambda line: line
