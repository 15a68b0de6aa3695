"""Standard output in trouble, while a worker floods it: inference and the log file go on, and everything is accounted for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.flood import (
    Flooded,
    check_gaps,
    check_whole,
    events_in,
    flooding,
    lines_in,
    log_writers,
    said,
)
from support.instance import Event, Instance, wait_for

Make = Callable[..., Instance]

STOP_LIMIT = 6.0  # seconds for a stop with a sink that takes nothing: LAST_FLUSH is 2


class Reader:
    """`cat > copy` behind a pipe: a reader of standard output."""

    def __init__(self, folder: Path) -> None:
        self.copy = folder / "copy.jsonl"
        with self.copy.open("wb") as copy:
            self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=copy)

    @property
    def writing(self) -> int:
        """The end that is the supervisor's standard output."""
        assert self.process.stdin is not None
        return self.process.stdin.fileno()

    def hand_over(self) -> None:
        """Keep no end of our own."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Stop or continue it."""
        self.process.send_signal(number)

    def events(self) -> list[Event]:
        """Everything that it got, once the supervisor has closed its end."""
        assert self.process.wait(30) == 0
        return events_in(self.copy)


@contextlib.contextmanager
def read_by_cat(made: Instance, supervisor: str = "") -> Iterator[Reader]:
    """A supervisor of the flooding model with a pipe to a reader, and a file, which is `made.log`."""
    log = made.folder / "file.jsonl"
    flooding(made, f"log_file = {log}\n{supervisor}", log)
    reader = Reader(made.folder)
    try:
        made.start(stdout=reader.writing)
        reader.hand_over()
        yield reader
    finally:
        reader.process.kill()
        reader.process.wait()


def stop_in_time(made: Instance) -> None:
    """TERM: the end comes in bounded time, whoever takes nothing."""
    begun = time.monotonic()
    assert made.stop() == 0
    assert time.monotonic() - begun < STOP_LIMIT


def test_a_stopped_reader_and_its_return(instance: Make) -> None:
    """Lines for it are dropped and counted, nobody else notices; continued, it is told how many, and gets everything from then on."""
    made = instance()
    with read_by_cat(made) as reader:
        with Flooded(made) as flooded:
            flooded.pinger.wait_answers()
            reader.signal(signal.SIGSTOP)
            flooded.wait_dropped("stdout", 10_000)
            assert flooded.account("stdout")["state"] == "stalled"
            flooded.pinger.wait_answers()
            reader.signal(signal.SIGCONT)
            made.wait_event("log.dropped", sink="stdout")
            flooded.wait_state("stdout", "open")
            dropped = flooded.account("stdout")["streams"]["echo/0 stdout"]["dropped"]
            flooded.pinger.wait_answers()
            flooded.stop()
            flooded.wait_drained("stdout")
            # Nothing more since it resumed: it takes what comes.
            assert flooded.account("stdout")["streams"]["echo/0 stdout"]["dropped"] == dropped
        stop_in_time(made)
        copy = reader.events()
    assert check_gaps(copy, "stdout", flooded.lines) == dropped
    whole = events_in(made.log)
    check_whole(whole)
    assert lines_in(whole) == flooded.lines
    reason = "it does not take what is written"
    assert said(whole, "stdout") == [("log.stalled", reason), ("log.resumed", reason)]
    assert said(copy, "stdout") == said(whole, "stdout")
