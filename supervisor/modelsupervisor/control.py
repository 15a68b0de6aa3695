"""The control socket: one JSON object a line, asked and answered; the messages of both sides and
the asking side.

    → {"id": 1, "command": "status", "arguments": {}}
    ← {"id": 1, "ok": true, "result": {...}}, or
      {"id": 1, "ok": false, "error": {"code": "not_found", "message": "..."}}

A line holds at most MAX_LINE bytes either way, so that neither side can be made to collect without
end. The server (`modelsupervisor.runtime`) uses `LineBuffer`, `decode_request`, `decode_arguments`
and `encode_reply`; the bytes of a peer that are not the protocol become
`ControlError("bad_request", ...)`, which it answers and goes on. The asking side is
`ControlConnection`: blocking, every wait bounded by the caller.

`stop` is answered at once and is done when the connection ends: end of file is the one message that
a process cannot fail to send when it is gone.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from modelsupervisor.errors import ControlError, NotRunningError
from modelsupervisor.paths import control_socket
from modelsupervisor.unixsocket import BacklogFull, dial

MAX_LINE = 1024 * 1024  # bytes of one message with its newline
# Bytes of an event: the longest line of output that a configuration allows (max_line), every byte escaped
MAX_EVENT = 128 * 1024 * 1024
# Seconds for what the supervisor answers at once: it never blocks, but the machine may be busy.
ANSWER_TIMEOUT = 10.0

NOT_FOUND = "not_found"
BAD_REQUEST = "bad_request"
REFUSED = "refused"
FAILED = "failed"
CLOSED = "closed"  # said by this side alone: the supervisor went away before it answered
TIMEOUT = "timeout"  # said by this side alone

ErrorCode = Literal["not_found", "bad_request", "refused", "failed"]
RequestId = int | str
_Arguments = TypeVar("_Arguments")


class ControlRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One command to the supervisor."""

    id: RequestId
    command: str
    arguments: dict[str, Any] = {}


class ControlFault(msgspec.Struct, frozen=True):
    """Why a command was not carried out."""

    code: str
    message: str


class ControlReply(msgspec.Struct, frozen=True):
    """The answer to the request of the same id; `id` is None where the request could not be
    read."""

    id: RequestId | None
    ok: bool
    result: Any = msgspec.UNSET
    error: ControlFault | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def success(cls, id: RequestId, result: object) -> ControlReply:
        return cls(id=id, ok=True, result=result)

    @classmethod
    def failure(cls, id: RequestId | None, code: ErrorCode, message: str) -> ControlReply:
        return cls(id=id, ok=False, error=ControlFault(code, message))


class RestartArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`restart`: one worker, or with no index the whole model from a new template on."""

    model: str
    index: int | None = None


class LogsArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`logs`: the newest `lines` events of a worker, of a model, or of everything; with `follow` also those to come.

    The answer is `{"streaming": true}`; after it the connection carries events, as they stand in the log, one a line, until it is
    closed.
    """

    model: str | None = None
    index: int | None = None
    lines: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = (
        100  # put in order between two turns of the loop
    )
    follow: bool = False


class StatusArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`status`: of everything, of a model, or of one worker, from the `offset`-th worker of that on.

    One answer has room for some hundred workers; where there are more, it says as `next` with which offset to ask on.
    """

    model: str | None = None
    index: int | None = None
    offset: Annotated[int, msgspec.Meta(ge=0)] = 0


class NoArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`stop` takes none."""


class LineBuffer:
    """Bytes in, whole lines out; holds at most one unfinished line of `limit` bytes beside what
    one feed brought."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self.limit = limit
        self._held = bytearray()
        self._searched = 0  # no newline before here: a line trickled byte by byte costs O(n) in all

    def feed(self, chunk: bytes) -> None:
        """Takes what was read from the socket; empty it with `next_line` before reading on."""
        self._held += chunk

    def next_line(self) -> bytes | None:
        """The next whole line without its newline, None when there is none yet;
        ControlError(bad_request) when too long."""
        end = self._held.find(b"\n", self._searched)
        if (end if end >= 0 else len(self._held)) >= self.limit:
            raise ControlError(BAD_REQUEST, f"a line of more than {self.limit} bytes")
        if end < 0:
            self._searched = len(self._held)
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        self._searched = 0
        return line


def encode_request(request: ControlRequest) -> bytes:
    """The request as a line."""
    return msgspec.json.encode(request) + b"\n"


def decode_request(line: bytes) -> ControlRequest:
    """The request that a line (with or without its newline) holds; ControlError(bad_request)
    saying what is wrong."""
    try:
        return msgspec.json.decode(line, type=ControlRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(BAD_REQUEST, f"not a request: {error}") from None


def decode_arguments(request: ControlRequest, shape: type[_Arguments]) -> _Arguments:
    """The request's arguments as `shape`; ControlError(bad_request) naming the command and the
    argument."""
    try:
        return msgspec.convert(request.arguments, shape)
    except msgspec.ValidationError as error:
        raise ControlError(BAD_REQUEST, f"{request.command}: {error}") from None


def encode_reply(reply: ControlReply) -> bytes:
    """The reply as a line; one that would be too long for it becomes an error reply that says so.

    A path or a worker's last words may hold bytes that are not UTF-8 (surrogates in a str): they
    travel escaped, because an answer that cannot be encoded would be the supervisor's failure.
    """
    try:
        line = msgspec.json.encode(reply)
    except UnicodeEncodeError:
        line = msgspec.json.encode(printable(msgspec.to_builtins(reply)))
    if len(line) < MAX_LINE:
        return line + b"\n"
    return encode_reply(
        ControlReply.failure(reply.id, "failed", f"the answer has more than {MAX_LINE} bytes")
    )


def printable(value: Any) -> Any:
    """A JSON value as an answer carries it: what in a text is not UTF-8 is escaped."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {printable(key): printable(each) for key, each in value.items()}
        case list() | tuple():
            return [printable(each) for each in value]
        case _:
            return value


def decode_reply(line: bytes) -> ControlReply:
    """The reply that a line holds; ControlError(failed) when it is not one."""
    try:
        return msgspec.json.decode(line, type=ControlReply)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(
            FAILED, f"the supervisor's answer is not the protocol: {error}"
        ) from None


class ControlConnection:
    """One connection to a running supervisor; a context manager. Not for use by several threads."""

    def __init__(self, sock: socket.socket, run_dir: str) -> None:
        self._sock = sock
        self._run_dir = run_dir
        self._lines = LineBuffer()
        self._last_id = 0

    @classmethod
    def open(cls, run_dir: str, timeout: float = ANSWER_TIMEOUT) -> ControlConnection:
        """Connects; NotRunningError where nothing answers there, ControlError where it does but
        not to us."""
        try:
            return cls(dial(control_socket(run_dir), timeout), run_dir)
        except (FileNotFoundError, NotADirectoryError):
            raise NotRunningError(f"no supervisor runs in {run_dir}: no control socket") from None
        except ConnectionRefusedError:
            # What a supervisor leaves that was killed with -9; the next start sweeps it.
            raise NotRunningError(
                f"no supervisor runs in {run_dir}: the control socket there is a leftover"
            ) from None
        except BacklogFull:
            raise ControlError(TIMEOUT, _silent(run_dir, timeout)) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise ControlError(REFUSED, f"{control_socket(run_dir)}: {reason}") from None

    def __enter__(self) -> ControlConnection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def call(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        timeout: float | None = ANSWER_TIMEOUT,
    ) -> Any:
        """The result of a command; waits `timeout` seconds for it (None: as long as the supervisor
        lives).

        ControlError with the supervisor's code when it said no; with `closed` when it went away
        first and `timeout` when it kept silent: in both cases the command may or may not have been
        carried out.
        """
        self._last_id += 1
        request = ControlRequest(self._last_id, command, dict(arguments or {}))
        deadline = None if timeout is None else time.monotonic() + timeout
        self._send(encode_request(request), deadline, timeout)
        reply = decode_reply(self._line(deadline, timeout))
        if isinstance(reply.error, ControlFault):
            raise ControlError(reply.error.code, reply.error.message)
        if reply.id != request.id or not reply.ok or reply.result is msgspec.UNSET:
            raise ControlError(FAILED, "the supervisor's answer does not belong to what was asked")
        return reply.result

    def events(self, reader: int = -1) -> Iterator[bytes]:
        """The JSON lines of the events that the supervisor sends after the answer to `logs`, until it closes; waits for each.

        `reader` is the descriptor that the caller writes them to: BrokenPipeError when nobody reads there any more, also while no
        event comes.
        """
        self._lines.limit = MAX_EVENT
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if reader >= 0:
            poll.register(reader, 0)
        while True:
            line = self._lines.next_line()
            if line is not None:
                yield line
                continue
            if any(fd == reader for fd, _ in poll.poll()):
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            try:
                chunk = self._sock.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionError:
                return
            if not chunk:
                return
            self._lines.feed(chunk)

    def wait_closed(self, timeout: float | None) -> bool:
        """True once the supervisor is gone, False when it is still there after `timeout` seconds
        (None: no limit)."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._wait(select.POLLIN, deadline):
            try:
                if not self._sock.recv(65536):
                    return True
            except BlockingIOError:
                continue
            except ConnectionError:
                return True
        return False

    def _send(self, line: bytes, deadline: float | None, timeout: float | None) -> None:
        unsent = memoryview(line)
        while unsent:
            try:
                unsent = unsent[self._sock.send(unsent, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                if not self._wait(select.POLLOUT, deadline):
                    raise ControlError(TIMEOUT, _silent(self._run_dir, timeout)) from None
            except ConnectionError:
                return  # a refusal may lie there to be read; if not, reading says that it is gone

    def _line(self, deadline: float | None, timeout: float | None) -> bytes:
        while self._wait(select.POLLIN, deadline):
            try:
                chunk = self._sock.recv(65536)
            except BlockingIOError:
                continue
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise ControlError(
                    CLOSED,
                    f"the supervisor in {self._run_dir} closed the connection before it answered",
                )
            self._lines.feed(chunk)
            line = self._lines.next_line()
            if line is not None:
                return line
        raise ControlError(TIMEOUT, _silent(self._run_dir, timeout))

    def _wait(self, events: int, deadline: float | None) -> bool:
        poll = select.poll()
        poll.register(self._sock, events)
        if deadline is None:
            return bool(poll.poll())
        left = deadline - time.monotonic()
        return left > 0 and bool(poll.poll(left * 1000))


def _silent(run_dir: str, timeout: float | None) -> str:
    return f"the supervisor in {run_dir} did not answer within {timeout or 0:g} s"


def started_from(status: Mapping[str, Any]) -> str:
    """The real path of the file that a supervisor's `status` says it was started from; "" where
    it says none."""
    supervisor = status.get("supervisor")
    config = supervisor.get("config") if isinstance(supervisor, Mapping) else None
    return os.path.realpath(config) if isinstance(config, str) and config else ""
