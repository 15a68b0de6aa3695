"""A stream of output with a real pipe, and the log that its events come to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from modelsupervisor.log.journal import Journal
from modelsupervisor.log.outlet import Outlet
from modelsupervisor.log.ring import Rings
from modelsupervisor.runtime.streams import LastLines, Stream, Voice
from support.schema import check
from support.sinks import ScriptedPort

SOURCE = "digits/0 stdout"


def never() -> bool:
    """No sink is behind."""
    return False


def always() -> bool:
    """Some sink is behind, after each block."""
    return True


class Source:
    """A pipe that somebody prints into, the stream that reads it, and the log that gets it."""

    def __init__(self, name: str = "stdout", level: str = "info", max_line: int = 65536) -> None:
        reading, self.writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(self.writing, False)
        self.port = ScriptedPort()
        self.outlet = Outlet("stdout", self.port, 1 << 30)
        self.journal = Journal(level, Rings(1 << 20))
        self.journal.outlets.append(self.outlet)
        self.last_lines = LastLines()
        self.generation = 1
        self.in_hand: tuple[str, ...] = ()
        self.known = True  # whose the words are
        self.ends: list[int] = []  # how many events there were when an end was told
        self.stream = Stream(name, SOURCE, reading, max_line, self.journal, self.voice)

    def voice(self) -> Voice | None:
        """Who writes now, as far as it is known."""
        return self.writer() if self.known else None

    def writer(self) -> Voice:
        """Who writes now."""
        identity = {"model": "digits", "worker": 0, "pid": 7, "generation": self.generation}
        return Voice("worker.output", ("digits", 0), identity, self.last_lines, self.in_hand)

    def prints(self, content: bytes) -> None:
        """Into the pipe."""
        assert os.write(self.writing, content) == len(content)

    def serve(self, pressed: Callable[[], bool] = never) -> int:
        """One turn."""
        return self.stream.serve(pressed)

    def finish(self, chunk: bytes = b"", pressed: Callable[[], bool] = never) -> None:
        """The end of the writer."""
        self.stream.finish(chunk, self.writer(), self.on_end)
        self.stream.give_out(pressed, None)

    def on_end(self) -> None:
        """Note when the end was told."""
        self.ends.append(self.stream.events)

    def events(self) -> list[dict[str, Any]]:
        """Everything that was made of it so far, each as the schema has it."""
        while self.outlet.backlog:
            self.outlet.flush(0.0)
        events = self.port.events()
        for event in events:
            check(event)
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        return events

    def lines(self) -> list[str]:
        """The same, the lines alone."""
        return [event["line"] for event in self.events()]

    def blocks(self) -> list[int]:
        """Events of each block."""
        return [count for _, _, count in self.outlet.buffer._queue]

    def close(self) -> None:
        """Let the pipe go."""
        os.close(self.stream.fd)
        os.close(self.writing)
