"""structlog's import, and what it does not bring."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import modelsupervisor.runtime.start
loaded = sorted({name.split(".")[0] for name in sys.modules} & {"structlog", "rich", "pygments"})
print(*loaded, "rich" in sys.modules)
import rich.console
print(rich.console.Console.__name__)
"""


def test_the_supervisor_runs_without_rich() -> None:
    """It has structlog and neither rich nor pygments; who imports rich afterwards gets it."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split("\n")[:2] == ["structlog False", "Console"]
