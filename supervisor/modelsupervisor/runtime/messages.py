"""The supervisor's side of a channel: whole messages in, whole messages out, and nothing believed.

What comes from a worker comes from a process that runs a model's code; so a message that is not what it should be is reported and
dropped, and costs nobody else anything. The other side of this is `modelworker.channel`.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from modelworker.channel import MAX_MESSAGE

Message = dict[str, Any]
MESSAGES_A_TURN = 256  # so that a worker in a loop of events cannot hold the supervisor


class Closed(Exception):
    """The other side closed its end."""


class BadMessage(Exception):
    """The other side sent something that is not a message."""


class SupervisorEnd:
    """One end of a channel, non-blocking."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._socket.setblocking(False)
        self.closed = False

    def fileno(self) -> int:
        """The descriptor, for the reactor."""
        return self._socket.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Send a message and descriptors. Raises BlockingIOError when the other side is behind, OSError when it is gone."""
        ancillary = []
        if descriptors:
            rights = array.array("i", descriptors).tobytes()
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        self._socket.sendmsg([msgspec.json.encode(message)], ancillary, socket.MSG_NOSIGNAL)

    def receive(self) -> Message | None:
        """The next message, None when there is none now. Raises Closed, or BadMessage for that one datagram."""
        try:
            # No room for ancillary bytes: descriptors that a worker tries to hand us are closed by the kernel.
            raw = self._socket.recv(MAX_MESSAGE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise Closed(str(error)) from None
        if not raw:
            raise Closed("end of file")
        try:
            # Not msgspec: it refuses the lone surrogates that stand for bytes which are no UTF-8, in a path or a request's id.
            message = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadMessage(f"not JSON: {error}") from None
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise BadMessage("a message without a kind")
        return message

    def close(self) -> None:
        """Close the end."""
        if not self.closed:
            self.closed = True
            self._socket.close()


def take_messages(
    end: SupervisorEnd | None, take: Callable[[Message], None], refuse: Callable[[str], None]
) -> bool:
    """Take one turn's worth of messages, and refuse what is none; False once the other side is seen to have closed."""
    for _ in range(MESSAGES_A_TURN):
        if end is None or end.closed:
            break
        try:
            message = end.receive()
        except BadMessage as error:
            refuse(str(error))
            continue
        except Closed:
            return False
        if message is None:
            break
        take(message)
    return True


def text_or_none(value: object) -> str | None:
    """What should be a text, where it is one."""
    return value if isinstance(value, str) else None


def channel_pair() -> tuple[SupervisorEnd, socket.socket]:
    """A new channel: our end, and the one to hand over."""
    kind = socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    return SupervisorEnd(ours), theirs
