"""All sinks of the log: made from the settings, written without waiting, watched for room, spoken for.

What a sink has to say of itself becomes an event like any other, made between two turns of the loop. A sink's descriptor is in the
loop's set only while something waits for it: a pipe that has room would wake the loop for ever.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Any, Protocol

from modelsupervisor.config import SupervisorSettings
from modelsupervisor.log.console import Console
from modelsupervisor.log.harmless import harmless_json
from modelsupervisor.log.journal import Journal
from modelsupervisor.log.journald import is_journal
from modelsupervisor.log.outlet import WRITE, Outlet, Port, as_json
from modelsupervisor.log.render import Block
from modelsupervisor.runtime.journald import JournalPort, as_datagrams
from modelsupervisor.runtime.logfile import LogFile
from modelsupervisor.runtime.processes import own_time
from modelsupervisor.runtime.reactor import Rank, Reactor
from modelsupervisor.runtime.standard_output import StandardOutput, complain, needs_writer

UNBOUNDED = 1 << 40
LEAST = 0.5  # seconds that each file has at the end, also when another has used up all the time


class WatchedPort(Port, Protocol):
    """A port with a descriptor that epoll takes, where `pollable`."""

    @property
    def fd(self) -> int:
        """The descriptor to poll for room; -1 where there is none now."""

    @property
    def pollable(self) -> bool:
        """Whether waiting for room by that descriptor has a meaning."""


class Outlets:
    """The sinks of one supervisor. `open` once; `end` at the end."""

    def __init__(
        self,
        settings: SupervisorSettings,
        journal: Journal,
        reactor: Reactor,
        servants: set[int],
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._reactor = reactor
        self._servants = servants
        self._now = now
        self._watched: dict[Outlet, int] = {}
        self._ports: dict[Outlet, WatchedPort] = {}
        self._files: list[LogFile] = []
        self._journald: JournalPort | None = None
        self._standard = StandardOutput(1)
        self.console: Console | None = None
        self._alarmed = False

    # -- making ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the sinks that the settings ask for. Raises OSError where a pipe or process cannot be had."""
        settings = self._settings
        wanted = settings.log_to
        if wanted == ("auto",):
            wanted = ("journal",) if is_journal(1, os.environ) else ("stdout",)
        if "stdout" in wanted:
            self._open_standard_output()
        if "journal" in wanted:
            self._journald = JournalPort(self._now)
            outlet = self._add("journal", self._journald, as_datagrams, UNBOUNDED, 1)
            self._journald.outlet = outlet
            self._journald.open()
        if settings.log_file is not None:
            self._open_file("file", settings.log_file)

    def _add(
        self,
        name: str,
        port: WatchedPort,
        encode: Callable[..., bytes] | None = None,
        most: int = WRITE,
        writes: int = 16,
    ) -> Outlet:
        limit = self._settings.log_buffer
        form = as_json if encode is None else encode
        outlet = Outlet(name, port, limit, form, most=most, writes=writes, own_time=own_time)
        self._ports[outlet] = port
        self._journal.outlets.append(outlet)
        return outlet

    def _open_standard_output(self) -> None:
        form = self._settings.log_format
        terminal = os.isatty(1)
        if form == "console" or (form == "auto" and terminal):
            self.console = Console(colors=terminal and "NO_COLOR" not in os.environ)
        encode: Callable[..., bytes] | None = None
        if self.console is not None:
            encode = self.console.encode
        elif terminal:
            encode = _harmless
        if needs_writer(1):
            self._open_file("stdout", None, encode)
            return
        self._standard.open()
        self._add("stdout", self._standard, encode)

    def _open_file(
        self, name: str, path: str | None, encode: Callable[..., bytes] | None = None
    ) -> None:
        port = LogFile(path, self._reactor, self._servants, self._now)
        port.outlet = self._add(name, port, encode)
        self._files.append(port)
        port.open()

    # -- writing --------------------------------------------------------------------------------------------------

    @property
    def terminal(self) -> bool:
        """Events are shown to a person who watches, on a terminal that may be drawn on."""
        return self._standard.is_terminal and self.console is not None and self.console.colors

    def progress(self, text: str) -> None:
        """Show, on a terminal, what is being waited for; an empty text takes it away. Not an event."""
        if self.terminal and self.console is not None:
            drawn = self.console.progress(text)
            if drawn:
                for outlet, port in self._ports.items():
                    if port is self._standard and not outlet.closed:
                        outlet.buffer.put(None, 0, drawn)

    def flush(self, **identity: Any) -> None:
        """Write what is taken without waiting, watch for room where something is left, and say what there is to say."""
        now = self._now()
        for outlet in self._ports:
            outlet.flush(now)
        self._journal.tell_of_outlets(**identity)
        self._alarm()
        for outlet, port in self._ports.items():
            outlet.flush(now)
            wanted = outlet.backlog and port.pollable and not outlet.closed
            self._watch(outlet, port.fd if wanted else -1)

    def _alarm(self) -> None:
        """Where no sink is left that could carry the news, say so on standard error, once each time."""
        troubles = {outlet.name: outlet.closed or outlet.trouble for outlet in self._ports}
        alarmed = bool(troubles) and all(troubles.values())
        if alarmed and not self._alarmed:
            said = "; ".join(f"{name}: {trouble}" for name, trouble in troubles.items())
            complain(f"modelsupervisor: nobody takes the log, and workers go on; {said}\n")
        self._alarmed = alarmed

    def _watch(self, outlet: Outlet, fd: int) -> None:
        watched = self._watched.get(outlet, -1)
        if watched == fd:
            return
        if watched >= 0:
            self._reactor.remove(watched)
        self._watched[outlet] = fd
        if fd >= 0:
            # Being woken is all: every turn of the loop flushes.
            self._reactor.add(fd, Rank.OUTPUT, lambda _: None, select.EPOLLOUT)

    def holds(self, now: float) -> bool:
        """Whether reading output should wait for a sink."""
        # Each is asked: asking is what it measures its sink's pace by.
        asked = [outlet.holds(now) for outlet in self._journal.outlets]
        return any(asked)

    def pressed(self) -> bool:
        """Let a sink that much waits for write, in the midst of a turn; whether reading should still wait for one."""
        now = self._now()
        for outlet in self._journal.outlets:
            if outlet.buffer.size > WRITE:
                outlet.flush(now)
        return self.holds(now)

    def brimming(self) -> bool:
        """The same, but only whether there would soon be no room at all: for what should not wait otherwise."""
        return self.pressed() and any(outlet.brimming for outlet in self._journal.outlets)

    def deadline(self) -> float | None:
        """When `tick` has something to do, or `holds` is to be asked again."""
        due = [outlet.hold_ends() for outlet in self._journal.outlets]
        due += [file.due() for file in self._files]
        if self._journald is not None:
            due.append(self._journald.due())
        return min((each for each in due if each is not None), default=None)

    def tick(self, now: float) -> None:
        """Start again what went wrong, and look again at who was behind, where it is time."""
        for outlet in self._journal.outlets:
            ends = outlet.hold_ends()
            if ends is not None and ends <= now:
                outlet.holds(now)  # else its time stays over, and the loop never rests
        for file in self._files:
            file.tick(now)
        if self._journald is not None:
            self._journald.tick(now)

    def reopen(self, reason: str) -> bool:
        """Have every file that has a name opened anew; False where there is none."""
        named = [file for file in self._files if file.path is not None]
        for file in named:
            file.reopen(reason)
        return bool(named)

    # -- looking --------------------------------------------------------------------------------------------------

    def report(self, shown: Callable[[str | None], bool]) -> list[dict[str, Any]]:
        """Every sink as `status` shows it: its state and, by stream that is `shown`, what became of its events."""
        return [
            {
                "name": outlet.name,
                "path": getattr(outlet.port, "path", None),
                "state": _state(outlet),
                "reason": _reason(outlet),
                "buffered_bytes": outlet.buffer.size,
                "streams": {
                    source or "events": {
                        "logged": tally.logged,
                        "dropped": tally.dropped,
                        "buffered": tally.buffered,
                    }
                    for source, tally in outlet.buffer.tallies.items()
                    # Of a follower only what it missed or still waits for: sixty of them have to fit into one answer.
                    if (outlet in self._ports or tally.dropped or tally.buffered) and shown(source)
                },
            }
            for outlet in self._journal.outlets
        ]

    # -- the end --------------------------------------------------------------------------------------------------

    def end(self, seconds: float, **identity: Any) -> None:
        """Write out what waits, for at most so long, and let go of everything."""
        deadline = self._now() + seconds
        self.drain(deadline, **identity)
        for outlet in list(self._ports):
            outlet.tell_dropped()
        self.drain(deadline, **identity)
        for outlet in self._ports:
            self._watch(outlet, -1)
        # One that is behind goes first, so that the others are still told of it.
        for file in sorted(self._files, key=LogFile.behind, reverse=True):
            self._finish(file, deadline, **identity)
        self._standard.close()
        if self._journald is not None:
            self._journald.close()

    def _finish(self, file: LogFile, deadline: float, **identity: Any) -> None:
        left = file.finish(max(deadline, self._now() + LEAST))
        if left:
            file.outlet.close(left)
        else:
            self._journal.outlets.remove(file.outlet)
        del self._ports[file.outlet]
        self._journal.tell_of_outlets(**identity)
        self.drain(self._now() + LEAST, **identity)

    def drain(self, deadline: float, **identity: Any) -> None:
        """Flush until nothing waits or it is time."""
        while True:
            self.flush(**identity)
            poll = select.poll()
            waiting = [
                port for outlet, port in self._ports.items() if outlet.backlog and not outlet.closed
            ]
            for port in waiting:
                if port.pollable and port.fd >= 0:
                    poll.register(port.fd, select.POLLOUT)
            left = deadline - self._now()
            if not waiting or left <= 0:
                return
            poll.poll(min(left, 0.1) * 1000)


def _reason(outlet: Outlet) -> str | None:
    known = outlet.closed or outlet.trouble
    return known or (outlet.reason if outlet.buffer.stalled else None)


def _harmless(block: Block) -> bytes:
    """JSON for somebody's terminal."""
    return harmless_json(block.json)


def _state(outlet: Outlet) -> str:
    if outlet.closed:
        return "closed"
    if outlet.buffer.stalled:
        return "stalled"
    return "failing" if outlet.trouble else "open"
