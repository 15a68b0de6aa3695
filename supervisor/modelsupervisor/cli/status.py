"""`status`: a table for a person, one JSON object for a program, and the story of a worker for who asks what happened."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import click
import msgspec

from modelsupervisor.cli import say
from modelsupervisor.cli.instance import (
    connect,
    find_instance,
    instance_options,
    named_by,
    require_same_file,
)
from modelsupervisor.cli.target import Target, parse_target
from modelsupervisor.cli.terminal import on_terminal
from modelsupervisor.control import NOT_FOUND, ControlConnection
from modelsupervisor.errors import EXIT_OK, ControlError
from modelsupervisor.log.harmless import harmless_json
from modelsupervisor.paging import patient_status, whole_status


@click.command()
@click.argument("target", metavar="[MODEL[/N]]", required=False)
@instance_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="JSON, of what was named alone. Of everything, it is JSON anyhow elsewhere than on a terminal.",
)
def status(target: str | None, config: str | None, run_dir: str | None, as_json: bool) -> int:
    """Show models and workers: a table on a terminal, otherwise one line of JSON.

    With MODEL/N, tell the story of that worker: how it is, and of its last crash what happened, the
    evidence and what was done. With MODEL, that of each of its workers.
    """
    asked = None if target is None else parse_target(target)
    instance = find_instance(config, run_dir)
    if asked is not None:
        with connect(instance) as control:
            _tell(
                whole_status(control, asked.arguments()), asked, as_json, named_by(config, run_dir)
            )
        return EXIT_OK
    with ControlConnection.open(instance.run_dir) as control:
        result = patient_status(control)
    require_same_file(instance, result)
    if as_json or not on_terminal():
        _say_json(result)
    else:
        _draw(result)
    return EXIT_OK


def _say_json(result: object) -> None:
    encoded = msgspec.json.encode(result)
    if on_terminal():
        encoded = harmless_json(msgspec.json.format(encoded, indent=2))
    say(encoded)


def _draw(result: object) -> None:
    from rich.console import Console

    from modelsupervisor.cli.render import read_status, status_view

    console = Console(highlight=False)
    console.print(status_view(read_status(result), console.width))


def _tell(result: dict[str, Any], asked: Target, as_json: bool, where: str) -> None:
    from modelsupervisor.cli.render import read_status
    from modelsupervisor.cli.story import story

    models = read_status(result).models
    place = next((at for at, model in enumerate(models) if model.name == asked.model), None)
    if place is None:
        there = ", ".join(model.name for model in models)
        raise ControlError(NOT_FOUND, f"no model {asked.model!r}; there are: {there}")
    workers = models[place].workers
    chosen = [
        at for at, each in enumerate(workers) if asked.index is None or each.index == asked.index
    ]
    if not chosen and asked.index is not None:
        name = f"{asked.model}/{asked.index}"
        raise ControlError(NOT_FOUND, f"no worker {name}; there are {len(workers)}")
    if as_json:
        whole = result["models"][place]
        _say_json(whole if asked.index is None else whole["workers"][chosen[0]])
        return
    now = datetime.now(timezone.utc)
    stories = [
        story(f"{asked.model}/{workers[at].index}", workers[at], now, where) for at in chosen
    ]
    say("\n\n".join(stories))
