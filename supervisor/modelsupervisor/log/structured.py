"""structlog, without what it loads to draw tracebacks.

`import structlog` imports rich, and with it pygments, where they are installed. They draw tracebacks in colour, and no event of
ours has one to draw: it carries text. They are 60 ms of CPU of the 250 that a start takes before it has a template, and 4 MiB that
the supervisor keeps for life [measured]. Where rich is missing structlog does without it; so it is missing for the length of that
import, and only then: the tables of the command line are drawn by it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def _import_alone() -> ModuleType:
    hidden = "rich" not in sys.modules
    if hidden:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("structlog")
    finally:
        if hidden:
            del sys.modules["rich"]


structlog = _import_alone()
