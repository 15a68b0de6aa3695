"""`start`, `stop` and `restart`."""

from __future__ import annotations

import time

import click

from modelsupervisor.cli import say
from modelsupervisor.cli.instance import connect, find_instance, instance_options
from modelsupervisor.cli.target import parse_target
from modelsupervisor.control import ANSWER_TIMEOUT, CLOSED, TIMEOUT, ControlConnection
from modelsupervisor.errors import EXIT_OK, ControlError, NotRunningError
from modelsupervisor.paths import resolve_run_dir


@click.command()
@click.option("-c", "--config", metavar="FILE", required=True, help="The configuration file.")
def start(config: str) -> int:
    """Run the models of a configuration file, in the foreground, until TERM, Ctrl-C or `stop`.

    Exits 1 when a model does not load, 75 when this run directory is in use, 78 when the file is
    wrong.
    """
    from modelsupervisor.config import load_settings, socket_path_problems
    from modelsupervisor.errors import ConfigurationError
    from modelsupervisor.runtime.start import run

    settings = load_settings(config)
    run_dir = resolve_run_dir(settings.supervisor.run_dir)
    problems = socket_path_problems(run_dir, settings)
    if problems:
        raise ConfigurationError(problems)
    return run(settings, run_dir)


@click.command()
@instance_options
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="SECONDS",
    help="Stop waiting after so long and exit 1; by default, wait until the supervisor is gone.",
)
def stop(config: str | None, run_dir: str | None, timeout: float | None) -> int:
    """Stop the supervisor, gracefully, and wait until it is gone."""
    instance = find_instance(config, run_dir)
    begun = time.monotonic()
    with connect(instance) as control:
        try:
            control.call("stop", timeout=ANSWER_TIMEOUT if timeout is None else timeout)
        except ControlError as error:
            # Gone before it could answer is gone; one that is still there had no room for us
            if error.code != CLOSED or _answers(instance.run_dir):
                raise
        else:
            left = None if timeout is None else max(0.0, begun + timeout - time.monotonic())
            if not control.wait_closed(left):
                raise ControlError(
                    TIMEOUT,
                    f"the supervisor in {instance.run_dir} is stopping, "
                    f"but still there after {timeout:g} s",
                )
    say(f"stopped {instance.run_dir}")
    return EXIT_OK


def _answers(run_dir: str) -> bool:
    """False also for one that is just being torn down: it takes a connection still, and closes it."""
    try:
        with ControlConnection.open(run_dir) as control:
            control.call("status")
    except NotRunningError:
        return False
    except ControlError as error:
        return error.code != CLOSED
    return True


@click.command()
@click.argument("target", metavar="MODEL[/N]")
@instance_options
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    metavar="SECONDS",
    help="Stop waiting after so long and exit 1; by default, wait until the restart has ended.",
)
def restart(target: str, config: str | None, run_dir: str | None, timeout: float | None) -> int:
    """Load MODEL anew and replace all its workers, or replace only its worker N; wait until that
    is done."""
    asked = parse_target(target).arguments()
    with connect(find_instance(config, run_dir)) as control:
        result = control.call("restart", asked, timeout)
    for worker in result["workers"]:
        say(
            f"{result['model']}/{worker['index']}\t"
            f"generation {worker['generation']}\tpid {worker['pid']}"
        )
    return EXIT_OK
