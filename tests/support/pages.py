"""The documentation as the tests read it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
ENVELOPE = frozenset({"timestamp", "level", "event", "seq", "model", "worker", "pid", "generation"})

_ROW = re.compile(r"\| `(?P<event>[a-z]+\.[a-z_]+)` \| (?P<levels>[a-z, ]+) \| (?P<facts>[^|]*)\|")


def documented_events() -> dict[str, frozenset[str]]:
    """The facts of each event, beside the envelope, as docs/events.md has them."""
    text = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    return {
        row["event"]: frozenset(re.findall(r"`([a-z0-9_]+)`", row["facts"]))
        for row in _ROW.finditer(text)
    }
