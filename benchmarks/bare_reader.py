"""The limit of reading output: a bare process that takes what comes, 64 KiB at a time, and says when a last line came.

    python -m benchmarks.bare_reader CPU PATH ENDING

PATH is a FIFO, of the size that the supervisor gives its own and held open for writing too, so that it never ends; or `-` for
standard input, read until its end. For each ENDING at the end of what was read, a reading of the monotonic clock is printed.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

AT_ONCE = 64 * 1024  # what the supervisor takes in a turn
FIFO_SIZE = 256 * 1024


def _open(path: str) -> int:
    if path == "-":
        return 0
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, FIFO_SIZE)
    return fd


def main(cpu: str, path: str, ending: str) -> None:
    """Read until the end."""
    os.sched_setaffinity(0, {int(cpu)})
    fd, awaited = _open(path), ending.encode()
    print("ready", flush=True)
    tail = b""
    while chunk := os.read(fd, AT_ONCE):
        tail = chunk[-256:] if len(chunk) >= 256 else (tail + chunk)[-256:]
        if tail.endswith(awaited):
            print(time.monotonic(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
