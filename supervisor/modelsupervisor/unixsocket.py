"""Connecting to a Unix stream socket within a deadline, also when its backlog is full.

For these sockets a full backlog is ordinary: while a worker is being replaced, clients queue there.
A *non-blocking* connect then fails with EAGAIN and nothing can be polled for; trying again and
again would either burn a core or lose the place in the queue. A *blocking* connect waits in the
kernel and is woken when the listener accepts, and `SO_SNDTIMEO` bounds that wait. Python's own
`settimeout` makes the socket non-blocking underneath, so the option is set by hand.

CPython bug to step around: a signal that interrupts a blocking connect (EINTR) makes
`socket.connect` wait for the socket to become writable, which an unconnected Unix socket is at
once, and report success. Hence the look at the peer's name.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
import time


class BacklogFull(Exception):
    """The listener lives but did not take the connection in time."""


def dial(path: str, wait: float = 0.0) -> socket.socket:
    """A connected, non-blocking socket to `path`.

    Waits at most `wait` seconds for room in the backlog (0: not at all) and raises BacklogFull
    after that; OSError for everything else (ENOENT, ECONNREFUSED, EACCES, a path that is too long,
    no descriptor left).
    """
    deadline = time.monotonic() + wait
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while not _connected(sock, path, deadline - time.monotonic()):
            pass  # interrupted by a signal: again, with what is left of the time
        sock.setblocking(False)
        return sock
    except BaseException:
        sock.close()
        raise


def _connected(sock: socket.socket, path: str, left: float) -> bool:
    try:
        if left > 0:
            sock.setblocking(True)
            # 0 would mean for ever, and the kernel counts in ticks of some milliseconds anyway.
            micros = max(1000, math.ceil(left * 1e6))
            timeval = struct.pack("ll", *divmod(micros, 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        else:
            sock.setblocking(False)
        sock.connect(path)
    except BlockingIOError:
        raise BacklogFull(path) from None
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True
