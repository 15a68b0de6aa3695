"""`status`: a table for a person, one JSON object for a program."""

from __future__ import annotations

import sys

import click
import msgspec

from modelsupervisor.cli import say
from modelsupervisor.cli.instance import find_instance, instance_options, require_same_file
from modelsupervisor.control import ControlConnection
from modelsupervisor.errors import EXIT_OK


@click.command()
@instance_options
@click.option(
    "--json", "as_json", is_flag=True, help="JSON also on a terminal; elsewhere it is always JSON."
)
def status(config: str | None, run_dir: str | None, as_json: bool) -> int:
    """Show models and workers: a table on a terminal, otherwise one line of JSON."""
    instance = find_instance(config, run_dir)
    with ControlConnection.open(instance.run_dir) as control:
        result = control.call("status")
    require_same_file(instance, result)
    terminal = sys.stdout.isatty()
    if as_json or not terminal:
        encoded = msgspec.json.encode(result)
        say((msgspec.json.format(encoded, indent=2) if terminal else encoded).decode())
        return EXIT_OK
    from rich.console import Console

    from modelsupervisor.cli.render import read_status, status_view

    console = Console(highlight=False)
    console.print(status_view(read_status(result), console.width))
    return EXIT_OK
