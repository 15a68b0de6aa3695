"""A fault of the test model that can be set and mended while its supervisor runs."""

from __future__ import annotations

import json
from pathlib import Path


class Mendable:
    """A fault at load, of a model with `env__FAULT_FILE=mendable.path`, or after the fork with `env__FAULT_AFTER_FORK_FILE`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fault"

    def set(self, do: str, **fault: object) -> None:
        """The next load meets this fault. Replaced as a whole: a template may be reading it."""
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps({"do": do, **fault}))
        aside.replace(self.path)

    def mend(self) -> None:
        """The next load meets none."""
        self.set("nothing")
