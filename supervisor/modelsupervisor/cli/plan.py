"""`plan`: which CPUs and threads each worker would get, and the reason for every number; and the settings in force.

It is worked out by the same functions as `start` uses, on this machine, by whoever asks: another
user, or another shell with other variables or another cgroup, may get another plan. Nothing is
started and no running supervisor is asked; what runs is in `status`.
"""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Any

import click

from modelsupervisor.cli import say
from modelsupervisor.cli.render import cpu_words, shown, size_words
from modelsupervisor.cli.terminal import on_terminal, one_line
from modelsupervisor.errors import EXIT_OK, RunDirectoryError
from modelsupervisor.log.harmless import harmless_json
from modelsupervisor.paths import resolve_run_dir

if TYPE_CHECKING:
    from modelsupervisor.config import ModelSettings, Settings, SupervisorSettings
    from modelsupervisor.core.topology import Topology
    from modelsupervisor.runtime.edge import ModelPlan
    from modelsupervisor.runtime.limits import Limit

WIDEST = 100  # columns of text below the table


@click.command()
@click.option("-c", "--config", metavar="FILE", required=True, help="The configuration file.")
@click.option("--json", "as_json", is_flag=True, help="The plan as one JSON object.")
def plan(config: str, as_json: bool) -> int:
    """Print which CPUs and how many threads each worker would get here, and why, and the settings
    in force, with what differs from its default; start nothing.

    Exits 78 when the file is wrong or names CPUs that may not be used.
    """
    import msgspec

    from modelsupervisor.config import load_settings
    from modelsupervisor.control import printable
    from modelsupervisor.runtime.machine import read_topology

    made = plan_report(load_settings(config), read_topology())
    if not as_json:
        say("\n".join(plan_lines(made)))
        return EXIT_OK
    made = printable(made)
    if on_terminal():
        say(harmless_json(msgspec.json.format(msgspec.json.encode(made), indent=2)))
    else:
        say(msgspec.json.encode(made))
    return EXIT_OK


def plan_report(settings: Settings, topology: Topology) -> dict[str, Any]:
    """The plan as `--json` prints it. Raises ConfigurationError for CPUs that may not be used."""
    from modelsupervisor.runtime.planning import plan_cpus, plan_fifos, plan_models

    placement = plan_cpus(settings, topology)
    plans = plan_models(settings, topology)
    fifos = plan_fifos(sum(model.workers for model in settings.models))
    quota = topology.quota
    return {
        "config": settings.source,
        "machine": {
            "cpus": [
                {"cpu": cpu.number, "core": cpu.core, "node": cpu.node, "kind": cpu.kind.value}
                for cpu in topology.cpus
            ],
            "quota": None if quota is None else {"cpus": quota.cpus, "source": quota.source},
            "used": list(placement.usable),
            "reasons": list(placement.reasons),
        },
        "models": [_model(plans[model.name]) for model in settings.models],
        "supervisor": {"settings": _settings(settings.supervisor)},
        "fifos": {"bytes": fifos.size, "count": fifos.count, "reason": fifos.reason},
        "limits": [
            {
                "name": each.name,
                "what": each.what,
                "needed": each.needed,
                "found": each.found,
                "holds": each.holds,
                "remedy": each.remedy,
            }
            for each in limits_here(settings)
        ],
    }


def limits_here(settings: Settings) -> tuple[Limit, ...]:
    """What `start` would need, by this user and on this machine; without its run directory where none is known."""
    from modelsupervisor.runtime.limits import read_limits

    try:
        run_dir = resolve_run_dir(settings.supervisor.run_dir)
    except RunDirectoryError:
        run_dir = None
    return read_limits(settings, run_dir)


def _model(made: ModelPlan) -> dict[str, Any]:
    from modelsupervisor.interpreters import left_behind
    from modelsupervisor.runtime.planning import explain_environment, explain_threads

    placed = made.placement
    variables = explain_environment(made.settings, placed, os.environ)
    return {
        "name": placed.name,
        "threads": made.threads,
        "reason": explain_threads(made),
        "shares_cpus": placed.shares_cpus,
        "preload": made.settings.preload,
        "python": {
            "path": made.interpreter.path,
            "version": made.interpreter.version,
            "left_behind": left_behind(made.settings, os.environ),
        },
        "workers": [
            {
                "index": worker.index,
                "cpus": None if worker.cpus is None else list(worker.cpus),
                "threads": made.threads,
                "gpu": made.gpu(worker.index),
                "reason": worker.reason,
            }
            for worker in placed.workers
        ],
        "environment": [
            {"name": each.name, "value": each.value, "set_by": each.origin, "reason": each.reason}
            for each in variables
        ],
        "settings": _settings(made.settings),
    }


def _settings(settings: SupervisorSettings | ModelSettings) -> list[dict[str, Any]]:
    from modelsupervisor.config import settings_in_force

    return [each._asdict() for each in settings_in_force(settings)]


def plan_lines(made: dict[str, Any]) -> list[str]:
    """The plan for a person: the table of workers, and below it each number's reason. Every worker
    has its row; reasons that are the same for neighbours are said once.
    """
    lines = [one_line(made["config"]), "", *_table(made["models"]), "", "CPUs"]
    for reason in made["machine"]["reasons"]:
        lines += _folded(reason, "  ")
    for model in made["models"]:
        for names, reason in _together(model):
            lines += _folded(f"{names}: {reason}.", "  ")
    lines += ["", "Threads"]
    for model in made["models"]:
        lines += _folded(f"{model['name']}: {model['threads']}, {model['reason']}.", "  ")
    lines += ["", "Interpreters"]
    for model in made["models"]:
        python = model["python"]
        words = f"{model['name']}: {python['path']}, Python {python['version']}, preload = "
        behind = "".join(f"; without {name} of the environment" for name in python["left_behind"])
        lines += _folded(f"{words}{model['preload']}{behind}.", "  ")
    for model in made["models"]:
        lines += ["", f"Environment of {model['name']}"]
        for each in model["environment"]:
            lines += _variable(each)
    fifos = made["fifos"]
    lines += ["", "Output"]
    words = f"{fifos['count']} FIFOs of {size_words(fifos['bytes'])} each: {fifos['reason']}."
    lines += [*_folded(words, "  "), "", "Limits"]
    for each in made["limits"]:
        lines += _folded(_limit_words(each), "  ")
    lines += _settings_lines("the supervisor", made["supervisor"]["settings"])
    for model in made["models"]:
        lines += _settings_lines(model["name"], model["settings"])
    return lines


def _settings_lines(of: str, settings: list[dict[str, Any]]) -> list[str]:
    """What is not at its default with its meaning, a line each; the rest together, since it is many."""
    lines = ["", f"Settings of {of}"]
    for each in settings:
        if each["differs"]:
            lines += [f"  {each['key']} = {one_line(each['value'] or '')}"]
            default = "" if each["default"] is None else f" Default: {each['default']}."
            lines += _folded(each["sentence"] + default, "      ", "")
    same = [f"{each['key']} = {each['value']}" for each in settings if _at_default(each)]
    unset = [f"{each['key']} ({each['unset']})" for each in settings if each["value"] is None]
    for title, words in (("At their defaults", same), ("Not set", unset)):
        if words:
            lines += _folded(f"{title}: {', '.join(words)}.", "  ")
    return lines


def _at_default(setting: dict[str, Any]) -> bool:
    return setting["value"] is not None and not setting["differs"]


def _limit_words(limit: dict[str, Any]) -> str:
    """One limit; what helps only where it does not hold."""
    sizes = (limit["needed"], max(0, limit["found"] or 0))
    needed, found = map(size_words if limit["what"] == "bytes" else str, sizes)
    kind = "" if limit["what"] == "bytes" else f" {limit['what']}"
    had = "no limit" if limit["found"] is None else f"{found} to be had"
    words = f"{limit['name']}: {needed}{kind} needed, {had}"
    return words + ("." if limit["holds"] else f": start would fail here; {limit['remedy']}.")


def _table(models: list[dict[str, Any]]) -> list[str]:
    workers = [(model["name"], each) for model in models for each in model["workers"]]
    rows = [["worker", "cpus", "threads"]]
    rows += [
        [f"{name}/{each['index']}", cpu_words(each["cpus"]), str(each["threads"])]
        for name, each in workers
    ]
    if any(each["gpu"] is not None for _, each in workers):
        rows[0].append("gpu")
        for row, (_, each) in zip(rows[1:], workers, strict=True):
            row.append(shown(each["gpu"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _together(model: dict[str, Any]) -> list[tuple[str, str]]:
    """`digits/0-3` and their reason, for runs of workers that have one reason."""
    runs: list[tuple[int, int, str]] = []
    for worker in model["workers"]:
        index, reason = worker["index"], worker["reason"]
        if runs and runs[-1][2] == reason:
            runs[-1] = (runs[-1][0], index, reason)
        else:
            runs.append((index, index, reason))
    name = model["name"]
    return [
        (f"{name}/{first}" if first == last else f"{name}/{first}-{last}", reason)
        for first, last, reason in runs
    ]


def _variable(variable: dict[str, Any]) -> list[str]:
    by = {"plan": "", "file": " (env. in the file)", "environment": " (environment)"}
    return [
        f"  {variable['name']}={one_line(variable['value'])}{by[variable['set_by']]}",
        *_folded(variable["reason"], "      ", hanging=""),
    ]


def _folded(text: str, margin: str, hanging: str = "  ") -> list[str]:
    return textwrap.wrap(
        one_line(text),
        WIDEST,
        initial_indent=margin,
        subsequent_indent=margin + hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
