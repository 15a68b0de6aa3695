"""`MODEL` and `MODEL/N`: how the command line names a model or one of its workers."""

from __future__ import annotations

import re
from dataclasses import dataclass

import click

_MODEL_OR_WORKER = re.compile(r"(?P<model>[^/]+)(?:/(?P<index>[0-9]{1,9}))?")


@dataclass(frozen=True)
class Target:
    """A model, or with an index one of its workers."""

    model: str
    index: int | None

    def arguments(self) -> dict[str, object]:
        """As the control protocol names it."""
        return {"model": self.model, "index": self.index}


def parse_target(text: str) -> Target:
    """What `MODEL[/N]` names; UsageError for what has another form. Whether it exists, the supervisor knows."""
    match = _MODEL_OR_WORKER.fullmatch(text)
    if match is None:
        raise click.UsageError(f"{text!r} is neither MODEL nor MODEL/N")
    return Target(match["model"], None if match["index"] is None else int(match["index"]))
