"""`make bench`: every measurement, as a table of what was measured beside what was asked.

Without arguments all of them; with names, those. Exits 0 whatever the figures are: a benchmark reports, a test judges.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable

from benchmarks import capture, crashloop, idle, memory, restart, roundtrip, threads
from benchmarks.harness import Figure

MEASUREMENTS: dict[str, Callable[[], list[Figure]]] = {
    "restart": restart.measure,
    "roundtrip": roundtrip.measure,
    "capture": capture.measure,
    "crashloop": crashloop.measure,
    "memory": memory.measure,
    "idle": idle.measure,
    "threads": threads.measure,
}


def main(names: list[str]) -> int:
    """Run and print."""
    unknown = set(names) - set(MEASUREMENTS)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(MEASUREMENTS)}")
        return 2
    machine = f"{len(os.sched_getaffinity(0))} cores, Linux {platform.release().split('-')[0]}"
    print(f"{machine}, Python {platform.python_version()}; medians (least–most)\n")
    print("| what | measured | asked | holds |\n| --- | --- | --- | --- |")
    for name in names or MEASUREMENTS:
        for figure in MEASUREMENTS[name]():
            holds = "yes" if figure.holds else "no"
            print(f"| {figure.name} | {figure.measured} | {figure.asked} | {holds} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
