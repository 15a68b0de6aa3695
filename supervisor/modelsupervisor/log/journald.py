"""The journal as a sink: events as entries of systemd's journal, and the socket that takes them.

An entry is one datagram of fields (https://systemd.io/JOURNAL_NATIVE_PROTOCOL): `NAME=value` and a newline, or, for a value that
holds a newline or bytes that are not text, the name, a newline, the length as 64 bits little-endian, the value, a newline. Every
fact of an event is a field of its own, so that `journalctl MODEL=digits EVENT=worker.exited` finds what it names.

journald says nothing about what it does not like: it leaves out a field whose name it does not allow (capitals, digits and
underscores, at most 64, a letter first), and a whole entry that has more than 1024 fields. Some names it, or journalctl, gives a
meaning to: a fact `unit` would put a worker's words under the name of another service. Hence the rules of `_field` and MOST_FACTS.

A datagram that is too large for the socket travels as a sealed memfd: journald maps it without a copy, and takes it from anybody
because nobody can change it any more. The socket is connected, since only then can it be polled for room in journald's queue. A
journald that is started again may have another socket at the same path: sending connects anew, on the same descriptor, so that
whoever polls it need not know. What lay in the queue of a killed journald is lost with it, unless systemd held its socket.

journald drops what a unit says beyond 10,000 entries in 30 s, with a count in its own words; `LogRateLimitIntervalSec=0` in the
unit turns that off.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import functools
import json
import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

SOCKET = "/run/systemd/journal/socket"
MOST_FACTS = 256  # of one event as fields of their own; the others share MORE_FACTS
SEND_BUFFER = (
    1024 * 1024
)  # bytes: about 512 entries, which is how many systemd lets wait for journald

_IDENTIFIER = "SYSLOG_IDENTIFIER=modelsupervisor\n"
_HEADS = {
    level: f"PRIORITY={priority}\n{_IDENTIFIER}"
    for level, priority in {"debug": 7, "info": 6, "warning": 4, "error": 3}.items()
}
_OUTPUT = frozenset({"worker.output", "template.output"})
# What is not a field because PRIORITY or MESSAGE says the same.
_SAID = frozenset({"level"})
_SAID_AS_LINE = frozenset({"level", "line", "line_b64"})

_ENVELOPE = {
    "timestamp": "TIMESTAMP",
    "event": "EVENT",
    "seq": "SEQ",
    "model": "MODEL",
    "worker": "WORKER",
    "pid": "WORKER_PID",
    "generation": "GENERATION",
    "more facts": "MORE_FACTS",  # no fact has a blank in its name
}
_TAKEN = frozenset(
    {
        *("MESSAGE", "MESSAGE_ID", "PRIORITY", "ERRNO", "TID", "DOCUMENTATION"),
        *("CODE_FILE", "CODE_LINE", "CODE_FUNC", "INVOCATION_ID", "USER_INVOCATION_ID"),
        *("UNIT", "USER_UNIT", *_ENVELOPE.values()),
    }
)
_TAKEN_FAMILIES = ("SYSLOG_", "OBJECT_", "COREDUMP_")
_LONGEST_NAME = 64
_NOT_IN_NAMES = re.compile(r"[^A-Z0-9_]")

_TOO_LARGE = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_AWAY = frozenset({errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE})
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


@functools.lru_cache(maxsize=4096)
def _field(name: str) -> str:
    known = _ENVELOPE.get(name)
    if known is not None:
        return known
    field = _NOT_IN_NAMES.sub("_", name.upper())
    taken = field in _TAKEN or field.startswith(_TAKEN_FAMILIES)
    if taken or not "A" <= field[:1] <= "Z":
        field = f"FACT_{field}"
    return field[:_LONGEST_NAME]


def _framed(field: str, value: bytes) -> bytes:
    return b"%b\n%b%b\n" % (field.encode(), len(value).to_bytes(8, "little"), value)


def _text(value: Any) -> str:
    """What is not text already, as JSON: `true`, `17`, `["a","b"]`."""
    try:
        return msgspec.json.encode(value, enc_hook=str).decode()
    except UnicodeEncodeError:  # a lone surrogate
        return json.dumps(value, default=str)


def _line(event: Mapping[str, Any]) -> str | bytes | None:
    """The line of an output event as the worker wrote it; None where there is none."""
    line = event.get("line")
    if isinstance(line, str):
        return line
    encoded = event.get("line_b64")
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError:  # a worker can send an event of our name that is not of our making
            return encoded
    return None


def _sentence(event: Mapping[str, Any]) -> str:
    """`worker.exited digits/0: killed by SIGKILL`: the event, whom it is about, and why."""
    said = str(event.get("event"))
    model, worker = event.get("model"), event.get("worker")
    if model is not None:
        said += f" {model}" if worker is None else f" {model}/{worker}"
    for name in ("reason", "message", "error"):
        why = event.get(name)
        if isinstance(why, str) and why:
            return f"{said}: {why}"
    traceback = event.get("traceback")
    if isinstance(traceback, str) and traceback.strip():
        return f"{said}: {traceback.strip().splitlines()[-1]}"
    return said


def _gathered(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event of more than MOST_FACTS facts with those beyond in one."""
    items = list(event.items())
    return dict(items[:MOST_FACTS]) | {"more facts": dict(items[MOST_FACTS:])}


def datagram(event: Mapping[str, Any]) -> bytes:
    """An event as a journal entry; never raises, whatever facts a worker made up.

    `event` is what its JSON line decodes to. MESSAGE is a worker's line byte for byte, else a sentence; a fact is a field named in
    capitals, with FACT_ before it where that name has another meaning; `pid` is WORKER_PID. Null is left out, lists and objects
    are JSON. Takes 3.4 µs for a line of output of 100 bytes [measured].
    """
    message: str | bytes | None = None
    said = _SAID
    if event.get("event") in _OUTPUT:
        message = _line(event)
        said = _SAID if message is None else _SAID_AS_LINE
    if message is None:
        message = _sentence(event)
    if len(event) > MOST_FACTS:
        event = _gathered(event)
    plain = [_HEADS.get(str(event.get("level")), _HEADS["info"])]
    framed = b""
    if isinstance(message, bytes):
        framed = _framed("MESSAGE", message)
    elif "\n" in message:
        framed = _framed("MESSAGE", message.encode(errors="backslashreplace"))
    else:
        plain.append(f"MESSAGE={message}\n")
    for name, value in event.items():
        if value is None or name in said:
            continue
        text = value if isinstance(value, str) else _text(value)
        if "\n" in text:
            framed += _framed(_field(name), text.encode(errors="backslashreplace"))
        else:
            plain.append(f"{_field(name)}={text}\n")
    return "".join(plain).encode(errors="backslashreplace") + framed


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether a descriptor is the stream to the journal that systemd named in $JOURNAL_STREAM, `device:inode`.

    The variable alone does not say so: a shell in the unit may have redirected the descriptor since.
    """
    try:
        status = os.fstat(fd)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _sealed_file(content: bytes) -> int:
    """A descriptor of a file in memory that nobody can change. Raises OSError."""
    fd = os.memfd_create("modelsupervisor-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class JournalSocket:
    """The socket to journald. Never waits. `open` first; the descriptor stays the same until `close`."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def open(self) -> None:
        """Connect, or connect anew. Raises OSError: nobody is there (ENOENT, ECONNREFUSED) or may not be spoken to."""
        if self._socket is not None:
            self._socket.connect(self._path)
            return
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            made.connect(self._path)
        except BaseException:
            made.close()
            raise
        self._socket = made

    def fileno(self) -> int:
        """The descriptor to poll for room after `send` returned False; -1 while it is not open."""
        return self._socket.fileno() if self._socket is not None else -1

    def send(self, datagram: bytes) -> bool:
        """Send one entry; False where there is no room now.

        Raises OSError for what will not pass: journald is away and another connection was refused too, or there is neither memory
        nor a descriptor for an entry that is too large for the socket. The entry was not sent then.
        """
        if self._socket is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        try:
            return self._pass(self._socket, datagram)
        except OSError as error:
            if error.errno not in _AWAY:
                raise
        self.open()
        return self._pass(self._socket, datagram)

    @staticmethod
    def _pass(sock: socket.socket, datagram: bytes) -> bool:
        try:
            sock.send(datagram, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _TOO_LARGE:
                raise
        else:
            return True
        file = _sealed_file(datagram)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, file.to_bytes(4, sys.byteorder))
        try:
            # Without a byte beside it: journald looks at the file only where the datagram itself is empty.
            sock.sendmsg([], [rights], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True

    def close(self) -> None:
        """Let the descriptor go; `open` makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
