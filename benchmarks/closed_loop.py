"""A client that keeps one worker busy: it asks, waits for the whole answer, and asks again.

It is told its socket, and on standard input, a line each time, for how many seconds; it answers with how many requests a second.
The frame comes first, as its length on a line and its bytes.
"""

from __future__ import annotations

import socket
import sys
import time


def _run(connection: socket.socket, frame: bytes, size: int, seconds: float) -> float:
    begun = time.perf_counter()
    end = begun + seconds
    count = 0
    now = begun
    while now < end:
        connection.sendall(frame)
        left = size
        while left > 0:
            left -= len(connection.recv(65536))
        count += 1
        now = time.perf_counter()
    return count / (now - begun)


def main(address: str) -> None:
    """Serve standard input."""
    stdin = sys.stdin.buffer
    frame = stdin.read(int(stdin.readline()))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(frame)
        size = len(connection.recv(65536))  # of each answer: the handlers answer alike
        print("ready", flush=True)
        for line in stdin:
            print(_run(connection, frame, size, float(line)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
