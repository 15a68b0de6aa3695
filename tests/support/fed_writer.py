"""A log writer under test, and the supervisor's side of it: both pipes, the channel, and the count of what was sent.

The stream is made of numbered lines, so that the content between any two positions is known without keeping it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from modelsupervisor.log import writer
from support.instance import LIMIT, wait_for

PROGRAM = writer.__file__
LINE = 100
PIPE = 1 << 20


def stream(start: int, end: int) -> bytes:
    """The bytes of the stream between two positions: lines of LINE bytes that hold their number."""
    first, last = start // LINE, -(-end // LINE)
    whole = b"".join(b"%010d %s\n" % (number, b"x" * (LINE - 12)) for number in range(first, last))
    return whole[start - first * LINE : end - first * LINE]


def held(fd: int) -> int:
    """The bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


class FedWriter:
    """What the supervisor has of its log writer."""

    def __init__(self) -> None:
        self.outer = self._pipe()
        self.inner = self._pipe()
        os.set_blocking(self.outer[1], False)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sent = 0
        self.pid = 0
        self._open = {*self.outer, *self.inner}

    @staticmethod
    def _pipe() -> tuple[int, int]:
        ends = os.pipe()
        fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, PIPE)
        return ends

    def start(
        self, path: Path | None = None, target: int | None = None, before: Sequence[str] = ()
    ) -> FedWriter:
        """Start a writer that goes on where the stream stands; `before` is a command line that runs it."""
        where = ["--descriptor"] if path is None else ["--path", str(path)]
        line = [sys.executable, "-S", "-I", PROGRAM, "--written", str(self.written()), *where]
        line = [*before, *line]
        null = os.open(os.devnull, os.O_RDWR)
        given = [self.outer[0], null if target is None else target, null]
        given += [self.theirs.fileno(), *self.inner]
        # From numbers beyond those that they get, or one would be overwritten before it is passed on.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in given]
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(high)]
        self.pid = os.posix_spawnp(
            line[0], line, dict(os.environ), file_actions=actions, setsid=True
        )
        for fd in (null, *high):
            os.close(fd)
        return self

    def written(self) -> int:
        """What is in no pipe, where no writer lives: it is in the file."""
        return self.sent - held(self.outer[0]) - held(self.inner[0])

    # The stream ------------------------------------------------------------------------------------------------------

    def push_some(self, most: int) -> int:
        """Send what fits without waiting, at most so many bytes; how many."""
        try:
            count = os.write(self.outer[1], stream(self.sent, self.sent + most))
        except BlockingIOError:
            count = 0
        self.sent += count
        return count

    def push(self, count: int) -> int:
        """Send so many bytes, waiting for room; the position after them."""
        end = self.sent + count
        while self.sent < end:
            if not self.push_some(min(65536, end - self.sent)):
                assert select.select([], [self.outer[1]], [], LIMIT)[1], "the pipe stays full"
        return self.sent

    def push_until_full(self) -> int:
        """Send until nothing is taken for 0.3 s, never waiting in a write: whoever does hangs the test's thread, not the test."""

        def push() -> None:
            while select.select([], [self.outer[1]], [], 0.3)[1]:
                self.push_some(65536)

        pushing = threading.Thread(target=push, daemon=True)
        pushing.start()
        pushing.join(LIMIT)
        assert not pushing.is_alive(), "a non-blocking write waits for the writer"
        return self.sent

    def end(self) -> None:
        """No more will come."""
        self._close(self.outer[1])

    # Messages --------------------------------------------------------------------------------------------------------

    def hear(self, kind: str, limit: float = LIMIT) -> dict[str, Any]:
        """The next message, which is of this kind."""
        self.ours.settimeout(limit)
        message: dict[str, Any] = json.loads(self.ours.recv(65536))
        assert message.pop("kind") == kind, message
        return message

    def hear_any(self) -> dict[str, Any]:
        """The next message."""
        self.ours.settimeout(LIMIT)
        message: dict[str, Any] = json.loads(self.ours.recv(65536))
        return message

    def heard(self) -> list[dict[str, Any]]:
        """All messages that are there."""
        self.ours.setblocking(False)
        found = []
        with contextlib.suppress(BlockingIOError):
            while raw := self.ours.recv(65536):
                found.append(json.loads(raw))
        return found

    def ask_reopen(self, at: int, reason: str = "SIGUSR1") -> None:
        """Have the path opened anew at a position."""
        self.ours.send(json.dumps({"kind": "reopen", "at": at, "reason": reason}).encode())

    def push_until(self, kind: str) -> dict[str, Any]:
        """Send a line now and then until a message comes, which is of this kind."""
        deadline = time.monotonic() + LIMIT
        while not select.select([self.ours], [], [], 0.05)[0]:
            assert time.monotonic() < deadline, f"no {kind}"
            self.push(LINE)
        return self.hear(kind)

    # The end ---------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL, and reaped."""
        os.kill(self.pid, signal.SIGKILL)
        self.exit_code()

    def exit_code(self) -> int:
        """Wait for its end; negative for a signal."""

        def reaped() -> tuple[int, int] | None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            return (pid, status) if pid else None

        _, status = wait_for(reaped, "the writer's end")
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def finish(self) -> int:
        """End the stream; the exit code."""
        self.end()
        return self.exit_code()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.pid:
            self.kill()
        for fd in tuple(self._open):
            self._close(fd)
        self.ours.close()
        self.theirs.close()

    def _close(self, fd: int) -> None:
        self._open.remove(fd)
        os.close(fd)


@contextlib.contextmanager
def closing() -> Iterator[FedWriter]:
    """A writer's surroundings, removed at the end."""
    made = FedWriter()
    try:
        yield made
    finally:
        made.close()
