"""The message descriptor between the supervisor and each of its processes.

A channel is one end of an AF_UNIX SOCK_SEQPACKET pair: the kernel keeps message borders, so that a message is whole or absent and
a process that dies while it speaks leaves no half of one. A message is one JSON object of at most MAX_MESSAGE bytes with the field
`kind`. The channel is the lifeline, too: end of file on it means that the other side is gone, whatever signals were lost.

Sending never blocks and never raises for the state of the other side: a worker must not wait for its supervisor's attention. What
the socket does not take is counted, and the next event that goes through says how many were lost before it.
"""

from __future__ import annotations

import array
import json
import socket
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

MAX_MESSAGE = 65536
TEXT_KEPT = 32768
"""Bytes of a traceback that a message carries: its end, where the cause is, twice within MAX_MESSAGE even when escaped."""

MAX_DESCRIPTORS = 8

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make an encoder for each message


class ChannelClosed(Exception):
    """The other side is gone: end of file, or a reset."""


def tail(text: str, limit: int = TEXT_KEPT) -> str:
    """The end of a text, at most `limit` characters, saying so where something was cut."""
    return text if len(text) <= limit else "[…] " + text[-limit:]


def encode(kind: str, fields: Dict[str, Any]) -> bytes:
    """One message. ASCII JSON, so that lone surrogates from undecodable bytes survive; fields that are too long are cut."""
    message = dict(fields, kind=kind)
    raw = _encode(message).encode("ascii")
    limit = TEXT_KEPT
    while len(raw) > MAX_MESSAGE and limit > 64:
        limit //= 2
        raw = _encode(_cut(message, limit)).encode("ascii")
    return raw


def _cut(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return tail(value, limit)
    if isinstance(value, dict):
        return {key: _cut(item, limit) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_cut(item, limit) for item in value[: max(1, limit // 16)]]
    return value


class Channel:
    """One end, seen from a template or a worker."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lost = 0
        self._answers: Dict[str, Tuple[str, Callable[[], Dict[str, Any]]]] = {}

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self._socket.close()

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message, if the other side can take it now.

        Every message but `event` is one of a handful in a process's life, far fewer than the socket's buffer holds, so that
        only a flood of events can fill it.
        """
        try:
            self._socket.send(encode(kind, fields), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            self._lost += 1

    def hand_over(self, descriptors: Sequence[int], kind: str, **fields: Any) -> None:
        """Send a message with descriptors, waiting for room. Raises OSError where the other side is gone."""
        rights = array.array("i", descriptors).tobytes()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        self._socket.sendmsg([encode(kind, fields)], ancillary, socket.MSG_NOSIGNAL)

    def event(self, level: str, event: str, **fields: Any) -> None:
        """Have the supervisor log an event; only it counts `seq`. Lost ones are reported with the next."""
        lost, self._lost = self._lost, 0
        if lost:
            fields["lost_before"] = lost
        self.send("event", level=level, event=event, fields=fields)
        if self._lost:
            self._lost += lost

    def answer(self, asked: str, kind: str, fields: Callable[[], Dict[str, Any]]) -> None:
        """From here on `receive` answers messages of the kind `asked` itself: what needs no decision is not the caller's affair."""
        self._answers[asked] = (kind, fields)

    def receive(self) -> Optional[Dict[str, Any]]:
        """The next message, or None when none is there. Raises ChannelClosed at the end of file."""
        while True:
            message, _ = self._receive(socket.MSG_DONTWAIT)
            known = None if message is None else self._answers.get(message["kind"])
            if known is None:
                return message
            kind, fields = known
            self.send(kind, **fields())

    def wait(self) -> Tuple[Optional[Dict[str, Any]], List[int]]:
        """Block for the next message and the descriptors that came with it. Raises ChannelClosed at the end of file."""
        return self._receive(0)

    def _receive(self, flags: int) -> Tuple[Optional[Dict[str, Any]], List[int]]:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            raw, ancillary, _, _ = self._socket.recvmsg(
                MAX_MESSAGE, space, flags | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return None, []
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        if not raw:
            raise ChannelClosed("end of file")
        message: Dict[str, Any] = json.loads(raw)
        return message, list(descriptors)
