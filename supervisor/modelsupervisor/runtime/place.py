"""A slot's place in the run directory: its socket, its two FIFOs and its scoreboard record, for the life of the slot.

They outlive every process in the slot. Clients that connect while a worker is being replaced wait in the socket's backlog; what a
dead worker wrote last is still in its FIFO. The supervisor holds the FIFOs open for reading and writing, so that they neither end
nor fill for want of a reader, and reads them by what is there, never until an end.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from modelsupervisor.core.states import SlotKey
from modelsupervisor.log.journal import Journal
from modelsupervisor.runtime.intake import Intake
from modelsupervisor.runtime.reactor import Rank, Reactor
from modelsupervisor.runtime.rundir import RunDirectory
from modelsupervisor.runtime.streams import LastLines, Stream, Voice

OnVoice = Callable[[], Voice | None]


class Place:
    """The files of one slot. `make` creates them; the run directory removes them."""

    def __init__(
        self, key: SlotKey, number: int, rundir: RunDirectory, reactor: Reactor, intake: Intake
    ) -> None:
        self.key = key
        self.number = number  # of its scoreboard record
        self.last_lines = LastLines()
        self.last_exit: dict[str, Any] | None = None
        # The newest exit that nobody asked for, and the successor that became ready after it
        self.last_crash: dict[str, Any] | None = None
        self.restarts = 0
        self.answered_before = 0  # requests of the generations that are gone
        self._rundir = rundir
        self._reactor = reactor
        self._intake = intake
        self._shut = False
        self.listener: socket.socket
        self.streams: tuple[Stream, Stream]

    def name(self, ending: str) -> str:
        """The file name of the slot with an ending: `sock`, `stdout` or `stderr`."""
        return f"{self.key.model}.{self.key.index}.{ending}"

    def path(self, ending: str) -> str:
        """The full path, for people and clients."""
        return f"{self._rundir.path}/{self.name(ending)}"

    def make(self, fifo_size: int, max_line: int, journal: Journal, voice: OnVoice) -> None:
        """Make the FIFOs first and the socket last: who sees the socket sees a whole place. Raises StartError."""

        def stream(name: str) -> Stream:
            fifo = self._rundir.fifo(self.name(name), fifo_size)
            source = f"{self.key.model}/{self.key.index} {name}"
            return Stream(name, source, fifo, max_line, journal, voice)

        self.streams = (stream("stdout"), stream("stderr"))
        self.listener = self._rundir.listen(self.name("sock"))
        self.listener.setblocking(False)
        # In the set from the start, for no events: to join it when a slot has failed could be refused for want of memory
        self._reactor.add(self.listener.fileno(), Rank.OPERATOR, self._turn_away, 0)
        for each in self.streams:
            self._intake.add(each)

    @property
    def made(self) -> bool:
        """Its files are there."""
        return hasattr(self, "listener")

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
        if not self._shut:
            self._reactor.change(self.listener.fileno(), select.EPOLLIN if refusing else 0)

    def _turn_away(self, events: int) -> None:
        if events & select.EPOLLHUP:
            # The worker holds the listener too, and shut it down: the kernel turns clients away, and would wake us for ever
            self._shut = True
            self._reactor.remove(self.listener.fileno())
            return
        for _turn in range(64):
            try:
                client, _address = self.listener.accept()
            except OSError:
                return  # nobody waits, or no descriptor is free: the next turn asks again
            client.close()

    def recovered(self, generation: int, pid: int | None, facts: dict[str, Any]) -> None:
        """A worker is READY here: note with the slot's last crash, the first time after it, what came of it."""
        crash = self.last_crash
        if crash is not None and "successor" not in crash:
            at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            crash["successor"] = {"generation": generation, "pid": pid, "at": at, **facts}

    def close(self) -> None:
        """Close the descriptors."""
        for stream in getattr(self, "streams", ()):
            self._intake.remove(stream)
            os.close(stream.fd)
        if hasattr(self, "listener"):
            self._reactor.remove(self.listener.fileno())
            self.listener.close()
