"""Round trips of the echo handler against two bare Python processes, everything on one core.

On one core, because a round trip over two measures the scheduler: waking another core costs 40 µs here, the same core 10. The
client is the same plain loop for both: send a frame that was made before, receive until the answer is as long as the first one was.
The worker's CPU time is the kernel's own account of its process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.harness import (
    ROOT,
    Figure,
    cpu_seconds,
    environment,
    median,
    predict_frame,
    spread,
    supervisor,
)

ROUNDS = 7
TRIPS = 20000
WARM = 2000
ASKED_RATIO = 0.45
BODY = b"x" * 100


def _trips(connection: socket.socket, frame: bytes, count: int) -> float:
    """Round trips a second."""
    send, recv = connection.sendall, connection.recv
    send(frame)
    size = len(recv(65536))
    begun = time.perf_counter()
    for _ in range(count):
        send(frame)
        left = size
        while left > 0:
            left -= len(recv(65536))
    return count / (time.perf_counter() - begun)


@contextmanager
def _bare() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.pingpong"], stdin=theirs, env=environment()
    )
    theirs.close()
    with ours:
        yield ours
    process.wait()


def measure() -> list[Figure]:
    """Both sides in turn; the report's lines."""
    core = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return _measure(core)
    finally:
        os.sched_setaffinity(0, before)


def _measure(core: int) -> list[Figure]:
    frame = predict_frame(BODY, "application/octet-stream")
    model = ROOT / "benchmarks" / "models" / "echo"
    section = f"[model:echo]\npath = {model}\nhandler = service\ncpus = {core}\n"
    ours: list[float] = []
    limit: list[float] = []
    costs: list[float] = []
    with _bare() as bare, supervisor(section) as running, socket.socket(socket.AF_UNIX) as served:
        served.connect(str(running.run_dir / "echo.0.sock"))
        pid = running.worker("echo")["pid"]
        _trips(bare, frame, WARM)
        _trips(served, frame, WARM)
        for _ in range(ROUNDS):
            limit.append(_trips(bare, frame, TRIPS))
            used = cpu_seconds(pid)
            ours.append(_trips(served, frame, TRIPS))
            costs.append(1e6 * (cpu_seconds(pid) - used) / TRIPS)
    ratio = median(ours) / median(limit)
    thousands = [rate / 1000 for rate in ours]
    return [
        Figure(
            "echo, client and worker on one core, 1,000 round trips/s",
            f"{spread(thousands)}; worker CPU {median(costs):.1f} µs a request",
            "the worker's CPU a request",
            True,
        ),
        Figure(
            "… against two bare Python processes",
            f"{ratio:.2f} × {median(limit) / 1000:.1f}",
            f"≥ {ASKED_RATIO}",
            ratio >= ASKED_RATIO,
        ),
    ]
