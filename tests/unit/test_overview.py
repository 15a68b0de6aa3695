"""overview.py: how a thousand workers look on a terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from modelsupervisor.cli import render
from modelsupervisor.cli.overview import MOST_CRASHES, MOST_ROWS, MOST_UNREADY


def worker(index: int, **facts: object) -> dict[str, Any]:
    """A healthy worker, but for what is said otherwise."""
    healthy = {"phase": "READY", "pid": 1000 + index, "generation": 1, "requests": 2}
    memory = {"rss_bytes": 30 << 20, "pss_bytes": 1 << 20}
    return {"index": index, **healthy, **memory, "restarts": 0, **facts}


def drawn(workers: list[dict[str, Any]], width: int = 100) -> list[str]:
    """The lines of the status of one model with these workers, the headline left out."""
    status = {"supervisor": {}, "models": [{"name": "echo", "workers": workers}]}
    out = io.StringIO()
    view = render.status_view(render.read_status(status), width)
    Console(file=out, width=width, highlight=False).print(view)
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert all(len(line) <= width for line in lines)
    return lines[2:]


def test_a_thousand_healthy_workers_are_one_line() -> None:
    """Their number, what phase they are in, what they hold together, and what they did."""
    assert drawn([worker(index) for index in range(1000)]) == [
        "model workers phases pss requests restarts",
        "echo 1000 1000 READY 1.0 GiB 2000 0",
        "",
        "Of one worker: modelsupervisor status MODEL/N; of every worker: status --json.",
    ]


def test_a_few_workers_are_rows() -> None:
    """Up to MOST_ROWS each has its own."""
    assert len(drawn([worker(index) for index in range(MOST_ROWS)])) == MOST_ROWS + 1


def test_those_that_do_not_serve_are_shown() -> None:
    """As rows, and of very many the first, with how many more there are."""
    workers = [worker(index) for index in range(900)]
    workers += [worker(900 + n, phase="FAILED", pid=None, pss_bytes=None) for n in range(100)]
    lines = drawn(workers)
    assert lines[1].startswith("echo 1000 900 READY, 100 FAILED 900 MiB")
    assert "100 workers not READY:" in lines
    assert lines.count("echo/900 FAILED – 1 – – 30.0 MiB – 2 0") == 1
    assert f"… and {100 - MOST_UNREADY} more" in lines


def test_the_newest_crashes_are_shown() -> None:
    """In words, newest first, whatever the worker's number."""
    crash = {"reason": "killed by SIGSEGV", "uptime_s": 3.0}
    workers = [
        worker(index, last_crash={**crash, "at": f"2026-11-23T05:00:{index % 60:02d}+00:00"})
        for index in range(70)
    ]
    lines = drawn(workers)
    at = lines.index("70 workers crashed so far, the newest:")
    assert lines[at + 1] == "echo/59: killed by SIGSEGV, after 3.0 s"
    assert lines[at + 1 + MOST_CRASHES] == ""


def test_a_sum_of_memory_is_whole_or_not_there() -> None:
    """While a part of it is unknown, nothing is shown that looks like all of it."""
    workers = [worker(index) for index in range(99)] + [worker(99, pss_bytes=None)]
    assert "echo 100 100 READY – 200 0" in drawn(workers)
