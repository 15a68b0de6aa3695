"""The supervisor's own standard output as a port: pipe, terminal or socket, never waited for.

O_NONBLOCK belongs to the open file and not to the descriptor, so it may not be set on what the shell handed us: the terminal would
be left non-blocking for everybody. A pipe or terminal is opened anew by way of /proc; a socket is written with MSG_DONTWAIT; where
opening anew is not allowed, it is asked first whether it has room, and then given no more than it must have. A regular
file has no such thing as not waiting; it is a log writer's (`logfile`).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat

from modelsupervisor.log.outlet import PortClosed, PortFailing

_PASSING = frozenset({errno.EINTR, errno.EAGAIN, errno.ENOBUFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_TERMINAL_TURN = 512  # bytes of one call where each is asked for: a millisecond


def needs_writer(fd: int) -> bool:
    """True for a file or disk, whose writes can only be waited for."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


class StandardOutput:
    """A port. `open` first, `close` at the end."""

    def __init__(self, fd: int) -> None:
        self._given = fd
        self._fd = fd
        self._socket: socket.socket | None = None
        self._ask_first = False
        self.pollable = False
        self.is_terminal = False

    def open(self) -> None:
        """Find out what standard output is and how to write to it without waiting."""
        try:
            mode = os.fstat(self._given).st_mode
        except OSError:
            return  # the first write says so
        self.is_terminal = os.isatty(self._given)
        # /dev/null and its like take everything and are refused by epoll
        self.pollable = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or self.is_terminal
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
        """The descriptor to poll for room, where it is `pollable`."""
        return self._socket.fileno() if self._socket is not None else self._fd

    def write(self, payloads: list[memoryview]) -> int:
        """Write some of it without waiting. Raises PortFailing where a device is full, PortClosed where its reader is gone."""
        try:
            if self._socket is not None:
                return self._socket.sendmsg(payloads, (), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            if self._ask_first:
                return self._write_asked(payloads[0])
            if self.is_terminal:
                return self._write_terminal(payloads)
            return os.writev(self._fd, payloads)
        except OSError as error:
            if error.errno in _PASSING:
                return 0
            reason = error.strerror or str(error)
            if error.errno in _FULL:
                raise PortFailing(reason) from None
            # EPIPE, EIO of a terminal that hung up: nobody will ever read this.
            raise PortClosed(reason) from None

    def _write_asked(self, payload: memoryview) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not self.is_terminal:
            return os.writev(self._fd, [payload[: select.PIPE_BUF]]) if poll.poll(0) else 0
        # A terminal that says that it has room need not have it for two bytes, and a write of more waits for its reader [measured].
        done = 0
        while done < min(len(payload), _TERMINAL_TURN) and poll.poll(0):
            done += self._write_terminal([payload[done : done + 1]])
        return done

    def _write_terminal(self, payloads: list[memoryview]) -> int:
        """Write to a terminal, also from its background under `stty tostop`.

        There a write raises SIGTTOU and fails with EINTR, and the interpreter tries again, for ever [measured]: blocked, the
        signal is not raised and the terminal takes the bytes.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            return os.writev(self._fd, payloads)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTTOU})

    def close(self) -> None:
        """Let go; the terminal's or pipe's flags are as they were found."""
        if self._socket is not None:
            self._socket.close()
        elif self._fd != self._given:
            os.close(self._fd)


def complain(text: str) -> None:
    """Write some words to standard error, as far as it takes them without waiting; a file on a disk could make us wait."""
    if needs_writer(2):
        return
    error = StandardOutput(2)
    error.open()
    try:
        error.write([memoryview(text.encode(errors="backslashreplace"))])
    except (PortClosed, PortFailing):
        return
    finally:
        error.close()
