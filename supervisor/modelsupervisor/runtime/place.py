"""A slot's place in the run directory: its socket, its two FIFOs and its scoreboard record, for the life of the slot.

They outlive every process in the slot. Clients that connect while a worker is being replaced wait in the socket's backlog; what a
dead worker wrote last is still in its FIFO. The supervisor holds the FIFOs open for reading and writing, so that they neither end
nor fill for want of a reader, and reads them by what is there, never until an end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Any

from modelsupervisor.core.states import SlotKey
from modelsupervisor.runtime.lines import Line, LineSplitter
from modelsupervisor.runtime.reactor import Rank, Reactor
from modelsupervisor.runtime.rundir import RunDirectory

TURN = 64 * 1024  # bytes that one stream may take of a turn of the loop (DESIGN §3)
# Lines of the story in `worker.exited`: the stack that faulthandler prints fits into it
LAST_LINES = 50
LAST_LINE_LENGTH = 2000  # characters of each

LEVEL_OF = {"stdout": "info", "stderr": "warning"}

OutputReport = Callable[[str, Line], None]


class Stream:
    """The reading side of one output stream, a FIFO or a pipe that this process holds both ends of."""

    def __init__(self, name: str, fd: int, max_line: int, report: OutputReport) -> None:
        self.name = name
        self.fd = fd
        self._splitter = LineSplitter(max_line)
        self._report = report

    def pending(self) -> int:
        """Bytes that are in the kernel's buffer now."""
        answer = fcntl.ioctl(self.fd, termios.FIONREAD, b"\0\0\0\0")
        return int(struct.unpack("i", answer)[0])

    def serve(self, _: int = 0) -> None:
        """Read one turn's worth and report its lines."""
        with contextlib.suppress(BlockingIOError):
            self.take(os.read(self.fd, TURN))

    def read_what_is_there(self) -> bytes:
        """Exactly the bytes that are there now: reading until nothing is left never ends while a helper still writes."""
        left = self.pending()
        chunks = []
        while left > 0:
            try:
                chunk = os.read(self.fd, left)
            except BlockingIOError:
                break
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)

    def take(self, chunk: bytes) -> None:
        """Report the lines that a chunk completes."""
        for line in self._splitter.feed(chunk):
            self._report(self.name, line)

    def finish(self, chunk: bytes) -> None:
        """The last bytes of a dead writer: report them, its unfinished line too."""
        self.take(chunk)
        for line in self._splitter.flush():
            self._report(self.name, line)


class LastLines:
    """The newest lines of a process, for the event that tells of its end."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LAST_LINES)

    def add(self, line: Line) -> None:
        """Remember a line as people read it."""
        text = line.content[: LAST_LINE_LENGTH * 4].decode(errors="backslashreplace")
        self._lines.append(text[:LAST_LINE_LENGTH])

    def take(self) -> list[str]:
        """The lines, oldest first; empties the store for the next process."""
        lines = list(self._lines)
        self._lines.clear()
        return lines


class Place:
    """The files of one slot. `make` creates them; the run directory removes them."""

    def __init__(self, key: SlotKey, number: int, rundir: RunDirectory, reactor: Reactor) -> None:
        self.key = key
        self.number = number  # of its scoreboard record
        self.last_lines = LastLines()
        self.last_exit: dict[str, Any] | None = None
        self.restarts = 0
        self.answered_before = 0  # requests of the generations that are gone
        # Whose output is being reported, if not the present one's
        self.speaker: tuple[int, int | None] | None = None
        self._rundir = rundir
        self._reactor = reactor
        self._refusing = False
        self.listener: socket.socket
        self.streams: tuple[Stream, Stream]

    def name(self, ending: str) -> str:
        """The file name of the slot with an ending: `sock`, `stdout` or `stderr`."""
        return f"{self.key.model}.{self.key.index}.{ending}"

    def path(self, ending: str) -> str:
        """The full path, for people and clients."""
        return f"{self._rundir.path}/{self.name(ending)}"

    def make(self, fifo_size: int, max_line: int, report: OutputReport) -> None:
        """Make the FIFOs first and the socket last: who sees the socket sees a whole place. Raises StartError."""

        def stream(name: str) -> Stream:
            return Stream(name, self._rundir.fifo(self.name(name), fifo_size), max_line, report)

        self.streams = (stream("stdout"), stream("stderr"))
        self.listener = self._rundir.listen(self.name("sock"))
        self.listener.setblocking(False)
        for each in self.streams:
            self._reactor.add(each.fd, Rank.OUTPUT, each.serve)

    def writing_ends(self) -> tuple[int, int]:
        """Fresh blocking writing ends of both FIFOs, for one generation; the caller closes them.

        Fresh for each: a worker that sets O_NONBLOCK on its stdout would set it for its successors too [supervisors.md 25].
        Opened by way of our own descriptors, so that nothing planted under the name is opened instead.
        """
        flags = os.O_WRONLY | os.O_CLOEXEC
        out = os.open(f"/proc/self/fd/{self.streams[0].fd}", flags)
        try:
            return out, os.open(f"/proc/self/fd/{self.streams[1].fd}", flags)
        except OSError:
            os.close(out)
            raise

    def refuse(self, refusing: bool) -> None:
        """While nobody will serve here, accept and close at once, so that nobody queues behind nobody."""
        if refusing == self._refusing:
            return
        self._refusing = refusing
        if refusing:
            self._reactor.add(
                self.listener.fileno(), Rank.OPERATOR, self._turn_away, select.EPOLLIN
            )
        else:
            self._reactor.remove(self.listener.fileno())

    def _turn_away(self, _: int) -> None:
        for _turn in range(64):
            try:
                client, _address = self.listener.accept()
            except OSError:
                return  # nobody waits, or no descriptor is free: the next turn asks again
            client.close()

    def close(self) -> None:
        """Close the descriptors."""
        self.refuse(False)
        for stream in getattr(self, "streams", ()):
            self._reactor.remove(stream.fd)
            os.close(stream.fd)
        if hasattr(self, "listener"):
            self.listener.close()
