"""report.py: what is told of many ends fits into one answer."""

from __future__ import annotations

from typing import Any

import pytest

from modelworker.scoreboard import Reading

from modelsupervisor.control import MAX_LINE
from modelsupervisor.log.render import json_text
from modelsupervisor.runtime.report import PAGE, STORIES, _busy, _some, _within

TOLD: dict[str, Any] = {
    "cause": "signal",
    "reason": "could not start: " + "why " * 500,
    "in_hand": [f"{number:036d}" for number in range(64)],
    "traceback": "Traceback:\n" + "  frame\n" * 200 + "ValueError: the end",
    "last_lines": [f"{number} " + "x" * 1990 for number in range(50)],
}


def test_a_thousand_ends_fit() -> None:
    """Reason, ids, traceback and lines are all counted."""
    room = STORIES // 1000
    assert 1000 * len(json_text(_within(room, TOLD))) < MAX_LINE


def test_the_newest_is_shown_where_there_is_little_room() -> None:
    """At least the end of the last line and of the traceback: nobody is told that there was none."""
    shown = _within(200, TOLD)
    assert shown is not None
    assert [line[-5:] for line in shown["last_lines"]] == ["xxxxx"]
    assert shown["traceback"].endswith("ValueError: the end")
    assert shown["in_hand"] == [TOLD["in_hand"][-1]]
    assert shown["reason"].startswith("could not start: why")


def test_what_fits_is_untouched() -> None:
    """With room for it, everything is there."""
    assert _within(1 << 20, TOLD) == TOLD
    assert _within(100, None) is None


def test_what_differs_from_the_plan_is_bounded_too() -> None:
    """A page of workers that all say as much as they can fits beside the ends; nothing is still nothing."""
    differences = ["\udcff" * 64 + " would compute with 5 threads; planned: 1"] * 32
    room = STORIES // (2 * PAGE)
    assert PAGE * len(json_text(_some(room, differences))) < STORIES
    assert _some(room, None) is None


@pytest.mark.parametrize(
    ("since", "seconds"), [(0.0, None), (98.5, 1.5), (1e300, 0.0), (5e-324, 100.0)]
)
def test_for_how_long_a_worker_is_busy(since: float, seconds: float | None) -> None:
    """Null for an idle one; a record that claims a time of the future shows no negative one."""
    assert _busy(Reading(1, 0, since, 1, ()), 100.0) == seconds
