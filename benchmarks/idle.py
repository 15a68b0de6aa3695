"""What a supervisor costs while nothing happens: CPU, wake-ups and memory, with eight workers that nobody asks anything.

CPU time is the scheduler's own account of the supervisor's one thread, wake-ups are its voluntary context switches: each is a wait
that has ended. The log goes to a file, as under most of its users, and nobody asks for `status` meanwhile.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.harness import ROOT, Figure, cpu_seconds, supervisor

WORKERS = 8
SETTLED = 2.0  # seconds until heirs are born and the start's last lines are written
SPAN = 20.0  # seconds
ASKED_PERCENT = 0.1
ASKED_WAKEUPS = 4.0
ASKED_MIB = 45.0


def _voluntary_switches(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("voluntary")).split()[1])


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure() -> list[Figure]:
    """One look at an idle supervisor; the report's lines."""
    path = ROOT / "benchmarks" / "models" / "echo"
    section = f"[model:echo]\npath = {path}\nhandler = service\nworkers = {WORKERS}\nthreads = 1\n"
    with supervisor(section) as running:
        pid = running.process.pid
        time.sleep(SETTLED)
        begun, used, switched = time.monotonic(), cpu_seconds(pid), _voluntary_switches(pid)
        time.sleep(SPAN)
        passed = time.monotonic() - begun
        percent = 100 * (cpu_seconds(pid) - used) / passed
        wakeups = (_voluntary_switches(pid) - switched) / passed
        resident = _resident_mib(pid)
    name = f"idle, {WORKERS} workers, {SPAN:.0f} s: supervisor's"
    return [
        Figure(f"{name} CPU, %", f"{percent:.3f}", f"< {ASKED_PERCENT}", percent < ASKED_PERCENT),
        Figure(
            f"{name} wake-ups a second",
            f"{wakeups:.2f}",
            f"≤ {ASKED_WAKEUPS:.0f}",
            wakeups <= ASKED_WAKEUPS,
        ),
        Figure(f"{name} RSS, MiB", f"{resident:.1f}", f"≤ {ASKED_MIB:.0f}", resident <= ASKED_MIB),
    ]
