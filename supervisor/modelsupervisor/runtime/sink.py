"""Where log lines go: the standard output of the supervisor, which may be slow, stopped, full or gone.

Lines are gathered during a turn of the loop and written at its end in one call that does not block. What standard output does not
take waits here, at most BUFFER bytes; beyond that lines of output are counted and dropped, while life-cycle events have RESERVED
bytes more. Once there is room again the owner is told how many were lost, so that it can say so in the log itself.

O_NONBLOCK belongs to the open file and not to the descriptor, so it may not be set on what the shell handed us: the terminal would
be left non-blocking for everybody. A pipe or terminal is opened anew by way of /proc; a socket is written with MSG_DONTWAIT; where
opening anew is not allowed, it is asked first whether it would take PIPE_BUF bytes, and then given no more than that.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import time

BUFFER = 8 * 1024 * 1024  # bytes; DESIGN §5 log_buffer
RESERVED = 1024 * 1024
CHUNK = 1024 * 1024
_PASSING = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT})


class StdoutSink:
    """A buffered, never blocking writer. `open` first; `drain`, with a deadline, and `close` at the end."""

    def __init__(self, fd: int) -> None:
        self._given = fd
        self._fd = fd
        self._socket: socket.socket | None = None
        self._ask_first = False
        self._pending: list[bytes] = []
        self._size = 0
        self.dropped = 0  # lines since `take_dropped`
        self.dead = False  # it was closed by its reader: EPIPE
        self.pollable = False
        self.is_terminal = False

    def open(self) -> None:
        """Find out what standard output is and how to write to it without waiting."""
        try:
            mode = os.fstat(self._given).st_mode
        except OSError:
            self.dead = True
            return
        self.pollable = not stat.S_ISREG(mode) and not stat.S_ISBLK(mode)
        self.is_terminal = stat.S_ISCHR(mode) and os.isatty(self._given)
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self._given))
        elif self.pollable:
            try:
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd = os.open(f"/proc/self/fd/{self._given}", flags)
            except OSError:
                self._ask_first = True

    @property
    def fd(self) -> int:
        """The descriptor to poll for room while `backlog` is true and it is `pollable`."""
        return self._socket.fileno() if self._socket is not None else self._fd

    @property
    def backlog(self) -> bool:
        """Something waits for room."""
        return bool(self._pending) and not self.dead

    def put(self, line: bytes, *, reserved: bool) -> bool:
        """Take a line for the end of the turn; False where it had to be dropped."""
        if self.dead or self._size + len(line) > BUFFER + (RESERVED if reserved else 0):
            self.dropped += 1
            return False
        self._pending.append(line)
        self._size += len(line)
        return True

    def take_dropped(self) -> int:
        """The number of lines dropped since the last call, once there is room to say so; else 0."""
        if not self.dropped or self._size > BUFFER // 2 or self.dead:
            return 0
        count, self.dropped = self.dropped, 0
        return count

    def flush(self) -> None:
        """Write what can be written without waiting."""
        while self._pending and not self.dead:
            chunk = b"".join(self._pending)
            written = self._write(memoryview(chunk)[:CHUNK])
            if written == 0:
                self._pending = [chunk]
                return
            self._size -= written
            self._pending = [chunk[written:]] if written < len(chunk) else []

    def _write(self, chunk: memoryview) -> int:
        try:
            if self._socket is not None:
                return self._socket.send(chunk, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._ask_first:
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                if not poll.poll(0):
                    return 0
                chunk = chunk[: select.PIPE_BUF]
            if self.is_terminal:
                return self._write_terminal(chunk)
            return os.write(self._fd, chunk)
        except BlockingIOError:
            return 0
        except OSError as error:
            # EPIPE, EIO of a terminal that hung up: nobody will ever read this. ENOSPC and the like may pass.
            self.dead = error.errno not in _PASSING
            return 0

    def _write_terminal(self, chunk: memoryview) -> int:
        """Write to a terminal, also from its background under `stty tostop`.

        There a write raises SIGTTOU and fails with EINTR, and the interpreter tries again, for ever [measured]: blocked, the
        signal is not raised and the terminal takes the bytes.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            return os.write(self._fd, chunk)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})

    def drain(self, seconds: float) -> None:
        """Write out what waits, for at most so long."""
        deadline = time.monotonic() + seconds
        self.flush()
        while self.backlog and (left := deadline - time.monotonic()) > 0:
            if not self.pollable:
                break
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            poll.poll(left * 1000)
            self.flush()

    def close(self) -> None:
        """Let go; the terminal's or pipe's flags are as they were found."""
        if self._socket is not None:
            self._socket.close()
        elif self._fd != self._given:
            os.close(self._fd)
