"""`check` and `init`: the commands that deal with files alone and need no supervisor."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from modelsupervisor.cli import say
from modelsupervisor.errors import EXIT_OK, ConfigurationError
from modelsupervisor.paths import resolve_model_cache, resolve_run_dir

if TYPE_CHECKING:
    from modelsupervisor.config import Settings


@click.command()
@click.option("-c", "--config", metavar="FILE", required=True, help="The configuration file.")
def check(config: str) -> int:
    """Print the settings that a configuration file results in, secrets masked; or all its
    mistakes, and exit 78."""
    from modelsupervisor.config import load_settings, render_settings, socket_path_problems
    from modelsupervisor.interpreters import interpreters

    settings = load_settings(config)
    run_dir = resolve_run_dir(settings.supervisor.run_dir)
    problems = socket_path_problems(run_dir, settings) + interpreters(settings)[1]
    if problems:
        raise ConfigurationError(problems)
    say(render_settings(settings), newline=False)
    say(f"\n# run directory: {click.format_filename(run_dir)}")
    if any(model.archive for model in settings.models):
        cache = resolve_model_cache(settings.supervisor.model_cache, run_dir)
        say(f"# model cache: {click.format_filename(cache)}")
    for obstacle in _obstacles(settings, run_dir):
        say(f"# start would fail here: {click.format_filename(obstacle)}")
    say("# OK")
    return EXIT_OK


def _obstacles(settings: Settings, run_dir: str) -> Iterator[str]:
    """What of this machine and user does not go with a file, which is right by itself."""
    from modelsupervisor.runtime.limits import read_limits
    from modelsupervisor.runtime.machine import read_topology
    from modelsupervisor.runtime.planning import plan_cpus

    try:
        plan_cpus(settings, read_topology())
    except ConfigurationError as error:
        yield from map(str, error.problems)
    yield from (str(limit) for limit in read_limits(settings, run_dir) if not limit.holds)


@click.command()
@click.argument("name")
@click.option(
    "--directory",
    metavar="DIR",
    default=None,
    help="The folder to make; the default is NAME, here.",
)
def init(name: str, directory: str | None) -> int:
    """Make a model of your own called NAME: a handler, a configuration file and a sample, that
    run as they are."""
    from pathlib import Path

    from modelsupervisor.scaffold import write_model

    target = Path(name if directory is None else directory)
    for path in write_model(target, name):
        say(click.format_filename(target / path.name))
    config, sample = (shlex.quote(str(target / file)) for file in ("workers.ini", "sample.json"))
    say(
        f"\nNext:\n  modelsupervisor start -c {config}\n"
        f"and in another terminal:\n  modelsupervisor predict -c {config} {name} {sample}"
    )
    return EXIT_OK
