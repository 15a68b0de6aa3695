"""The journal as a port: one datagram for every event, over a socket that is never waited for.

The queue of a sink holds bytes, so the datagrams of a block travel through it with their length before each. A journal that is
away (it restarts on upgrades) is connected to again every second; what waits for it waits in its buffer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from modelsupervisor.log.console import decode_event
from modelsupervisor.log.journald import JournalSocket, datagram
from modelsupervisor.log.outlet import Outlet, Said
from modelsupervisor.log.render import Block

RETRY = 1.0  # seconds between two tries to connect
A_WRITE = 256  # datagrams of one write: some milliseconds
_LENGTH = struct.Struct("<I")


def as_datagrams(block: Block) -> bytes:
    """The events of a block as datagrams, each with its length (32 bits, little endian) before it."""
    framed = []
    for line in block.json.splitlines():
        each = datagram(decode_event(line))
        framed += [_LENGTH.pack(len(each)), each]
    return b"".join(framed)


class JournalPort:
    """A port. `open` once, `close` at the end."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.outlet: Outlet  # whose port this is
        self.path = None
        self.pollable = True
        self._now = now
        self._socket = JournalSocket()
        self._connected = False
        self._due: float | None = None

    def open(self) -> None:
        """Connect, or say that it cannot be done and try again later."""
        if self._connect():
            self.outlet.said.append(
                Said("info", "log.opened", {"sink": "journal", "kind": "journal", "path": None})
            )

    def _connect(self) -> bool:
        try:
            self._socket.open()
        except OSError as error:
            self._fail(error)
            return False
        self._connected = True
        self._due = None
        return True

    def _fail(self, error: OSError) -> None:
        self._connected = False
        self._due = self._now() + RETRY
        reason = f"the journal cannot be written: {error.strerror or error}"
        if self.outlet.trouble != reason:
            self.outlet.trouble = reason
            facts = {"sink": "journal", "path": None, "reason": reason}
            next_ = "it is tried again every second"
            self.outlet.said.append(Said("error", "log.failed", {**facts, "next": next_}))

    @property
    def fd(self) -> int:
        """The descriptor to poll for room; -1 while it is away."""
        return self._socket.fileno() if self._connected else -1

    def write(self, payloads: list[memoryview]) -> int:
        """Send whole datagrams, as many as are taken; the bytes of the queue that they were."""
        done = 0
        sent = 0
        for payload in payloads:
            start = 0
            while start < len(payload):
                (length,) = _LENGTH.unpack_from(payload, start)
                end = start + _LENGTH.size + length
                if sent == A_WRITE or not self._send(bytes(payload[start + _LENGTH.size : end])):
                    return done
                sent += 1
                done += end - start
                start = end
        return done

    def _send(self, each: bytes) -> bool:
        if not self._connected:
            return False
        try:
            taken = self._socket.send(each)
        except OSError as error:
            self._fail(error)
            return False
        if taken and self.outlet.trouble:
            reason, self.outlet.trouble = self.outlet.trouble, ""
            if not self.outlet.stall_told:  # else the outlet says so when it has room again
                resumed = {"sink": "journal", "reason": reason}
                self.outlet.said.append(Said("info", "log.resumed", resumed))
        return taken

    def due(self) -> float | None:
        """When `tick` has something to do."""
        return self._due

    def tick(self, now: float) -> None:
        """Connect again where it is time."""
        if self._due is not None and now >= self._due:
            self._connect()

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
