"""The supervisor's CPU time while all of eight workers crash in a loop, and clients ask for more without a pause.

Two loops, each held back by one bound on births alone. A worker that dies with its request in hand is charged to the request:
after five such deaths in a row its slot bears one a second. One that answers first and dies then has failed at nothing, and may be
replaced twenty times a second. Of both the supervisor's own CPU time is taken, by the scheduler's account; the forks are the
template's. A worker that dies without an answer and without a request, the usual crash loop, is FAILED after some seconds and then
costs a birth a minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.harness import (
    ROOT,
    Figure,
    Running,
    ask,
    cpu_seconds,
    median,
    predict_frame,
    spread,
    supervisor,
)

WORKERS = 8
ROUNDS = 5
SPAN = 4.0  # seconds of each round
WARM = 7.0  # seconds until the five free deaths of a row are over, and births at their bound
ASKED = {
    "with": 5.0,
    "after": 40.0,
}  # percent of one core; "small" was asked, and what that is, is ours
LOOPS = {
    "with": f"{WORKERS} workers that die with every request, one birth a second each: supervisor CPU, %",
    "after": f"{WORKERS} workers that die after every answer, at most 20 births a second each: supervisor CPU, %",
}


@contextmanager
def _clients(running: Running, body: str) -> Iterator[None]:
    """One client for each worker, that asks for its end as soon as it is there."""
    over = threading.Event()
    frame = predict_frame(body.encode(), "application/octet-stream")

    def call(index: int) -> None:
        path = str(running.run_dir / f"crasher.{index}.sock")
        while not over.is_set():
            ask(path, frame)

    callers = [threading.Thread(target=call, args=[index]) for index in range(WORKERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        over.set()
        for caller in callers:
            caller.join()


def _round(running: Running) -> tuple[float, float]:
    """Percent of one core, and deaths a second."""
    pid = running.process.pid
    deaths = len(running.events("worker.exited"))
    begun, used = time.perf_counter(), cpu_seconds(pid)
    time.sleep(SPAN)
    spent, passed = cpu_seconds(pid) - used, time.perf_counter() - begun
    return 100 * spent / passed, (len(running.events("worker.exited")) - deaths) / passed


def _loop(body: str) -> Figure:
    section = (
        f"[model:crasher]\npath = {ROOT / 'benchmarks' / 'models' / 'crasher'}\n"
        f"handler = service.py\nworkers = {WORKERS}\n"
    )
    with supervisor(section) as running, _clients(running, body):
        time.sleep(WARM)
        rounds = [_round(running) for _ in range(ROUNDS)]
    shares = [share for share, _ in rounds]
    deaths = median([rate for _, rate in rounds])
    each = 10 * median([share / rate for share, rate in rounds if rate])
    return Figure(
        LOOPS[body],
        f"{spread(shares)}: {deaths:.0f} deaths/s, {each:.2f} ms each",
        f"≤ {ASKED[body]:.0f}",
        median(shares) <= ASKED[body],
    )


def measure() -> list[Figure]:
    """One line for each loop."""
    return [_loop(body) for body in LOOPS]
