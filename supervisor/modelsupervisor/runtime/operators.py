"""The control socket's serving side: commands of operators, one JSON object a line, never a wait.

Whoever may connect may stop the service, so the kernel is asked who it is: SO_PEERCRED and SO_PEERGROUPS, the credentials at
connect time, since /proc would tell of whoever has the peer's pid by now. Our own uid, root, or where a `socket_group` is set a
process of that group. A client that reads nothing has its answers kept up to a bound and is then dropped; one that never finishes
its line holds a buffer of at most a line.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import Any

from modelsupervisor.control import (
    ControlReply,
    ControlRequest,
    LineBuffer,
    decode_request,
    encode_reply,
)
from modelsupervisor.errors import ControlError
from modelsupervisor.runtime.reactor import Rank, Reactor

MAX_OPERATORS = 64
SO_PEERGROUPS = (
    59  # socket(7); the same on every architecture that CPython supports but parisc and sparc
)
MOST_GROUPS = 65536  # NGROUPS_MAX
ANSWERS_KEPT = 4 * 1024 * 1024  # bytes of answers that a client may leave unread
READ_A_TURN = 4096  # bytes of one connection: some hundred commands at most, all served in the turn

Command = Callable[["Operator", ControlRequest], None]


class Operator:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.pid = 0
        self.streaming = False  # it reads events now and asks nothing any more
        self.lines = LineBuffer()
        self.unsent = bytearray()
        self.awaits_room = False  # events wait for it
        self.closing = False  # close once everything is sent

    def fileno(self) -> int:
        """The descriptor of the connection; -1 once it is closed."""
        return self.connection.fileno()


class Operators:
    """All connections of the control socket. `serve` is called with each request and answers by `reply`."""

    def __init__(
        self, reactor: Reactor, listener: socket.socket, gid: int | None, serve: Command
    ) -> None:
        self._reactor = reactor
        self._listener = listener
        self._gid = gid
        self._serve = serve
        self._all: dict[int, Operator] = {}

    def open(self) -> None:
        """Begin to accept."""
        self._listener.setblocking(False)
        self._reactor.add(self._listener.fileno(), Rank.OPERATOR, self._accept)

    def _accept(self, _: int) -> None:
        try:
            connection, _address = self._listener.accept()
        except OSError:
            return
        operator = Operator(connection)
        try:
            connection.setblocking(False)
            refusal = self._refusal(operator)
            self._reactor.add(
                connection.fileno(), Rank.OPERATOR, lambda events: self._on(operator, events)
            )
        except OSError:
            connection.close()  # its end of file says at once that it will not be served
            return
        self._all[connection.fileno()] = operator
        if refusal:
            self.fail(operator, None, "refused", refusal)
            self._close_when_sent(operator)

    def _refusal(self, operator: Operator) -> str:
        if len(self._all) >= MAX_OPERATORS:
            return f"{MAX_OPERATORS} connections are open already"
        size = struct.calcsize("3i")
        credentials = operator.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid, uid, gid = struct.unpack("3i", credentials)
        operator.pid = pid
        if uid in (0, os.geteuid()):
            return ""
        if self._gid is not None and self._gid in (gid, *_groups(operator.connection)):
            return ""
        return f"uid {uid} may not command this supervisor"

    def _on(self, operator: Operator, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush(operator)
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR) and operator.fileno() >= 0:
            self._read(operator)

    def _read(self, operator: Operator) -> None:
        try:
            chunk = operator.connection.recv(READ_A_TURN)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self._drop(operator)
            return
        if operator.closing or operator.streaming:
            return
        operator.lines.feed(chunk)
        while operator.fileno() >= 0 and not operator.streaming and self._serve_line(operator):
            pass

    def _serve_line(self, operator: Operator) -> bool:
        """Serve one whole line; False when there is none."""
        try:
            line = operator.lines.next_line()
        except ControlError as error:
            self.fail(operator, None, error.code, str(error))
            self._close_when_sent(operator)
            return False
        if line is None:
            return False
        request: ControlRequest | None = None
        try:
            request = decode_request(line)
            self._serve(operator, request)
        except ControlError as error:
            self.fail(operator, request.id if request else None, error.code, str(error))
        return True

    def reply(self, operator: Operator, id_: int | str, result: Any) -> None:
        """Answer a command that was carried out."""
        self._send(operator, encode_reply(ControlReply.success(id_, result)))

    def fail(self, operator: Operator, id_: int | str | None, code: Any, message: str) -> None:
        """Answer a command that was not."""
        self._send(operator, encode_reply(ControlReply.failure(id_, code, message)))

    def _send(self, operator: Operator, line: bytes) -> None:
        if operator.fileno() < 0:
            return  # it left before its answer came
        operator.unsent += line
        if len(operator.unsent) > ANSWERS_KEPT:
            self._drop(operator)
            return
        self._flush(operator)

    def _flush(self, operator: Operator) -> None:
        try:
            sent = operator.connection.send(operator.unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(operator)
            return
        del operator.unsent[:sent]
        if not operator.unsent and operator.closing:
            self._drop(operator)
            return
        self._await(operator)

    def _await(self, operator: Operator) -> None:
        room = operator.unsent or operator.awaits_room
        self._reactor.change(operator.fileno(), select.EPOLLIN | (select.EPOLLOUT if room else 0))

    def stream(self, operator: Operator) -> None:
        """From now on the connection carries events, and what comes from the other side is not read as commands."""
        operator.streaming = True

    def await_room(self, operator: Operator, awaited: bool) -> None:
        """Wake the loop when the connection takes more, or not any longer."""
        if awaited != operator.awaits_room and operator.fileno() >= 0:
            operator.awaits_room = awaited
            self._await(operator)

    def end_stream(self, operator: Operator) -> None:
        """All events are said."""
        self._close_when_sent(operator)

    def _close_when_sent(self, operator: Operator) -> None:
        operator.closing = True
        if operator.fileno() >= 0 and not operator.unsent:
            self._drop(operator)

    def _drop(self, operator: Operator) -> None:
        if operator.fileno() >= 0:
            self._all.pop(operator.fileno(), None)
            self._reactor.remove(operator.fileno())
            operator.connection.close()

    def close(self) -> None:
        """Close everything: for who asked to stop, this end of file is the answer that it is done."""
        for operator in list(self._all.values()):
            self._drop(operator)
        self._reactor.remove(self._listener.fileno())
        self._listener.close()


def _groups(connection: socket.socket) -> tuple[int, ...]:
    """The supplementary groups of the peer when it connected; none where the kernel (before 4.13) does not say.

    By ctypes, because Python's own getsockopt takes 1024 bytes at most, and a directory service gives people more groups.
    """
    libc = ctypes.CDLL(None)
    told = (ctypes.c_uint32 * MOST_GROUPS)()
    size = ctypes.c_uint32(ctypes.sizeof(told))
    address, length = ctypes.byref(told), ctypes.byref(size)
    if libc.getsockopt(connection.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, address, length) != 0:
        return ()
    return tuple(told[: size.value // 4])
