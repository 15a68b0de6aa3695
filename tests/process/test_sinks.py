"""Standard output in trouble, while a worker floods it: inference and the log file go on, and everything is accounted for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.faults import ask
from support.flood import (
    Flooded,
    check_complete,
    check_gaps,
    cpu_seconds,
    events_in,
    file_writer,
    flooding,
    log_writers,
    said,
)
from support.instance import Event, Instance, wait_for

Make = Callable[..., Instance]

STOP_LIMIT = 6.0  # seconds for a stop with a sink that takes nothing: LAST_FLUSH is 2
NOT_TAKING = "it does not take what is written"


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
        """Stop, continue or kill it."""
        self.process.send_signal(number)

    def events(self) -> list[Event]:
        """Everything that it got, once the supervisor has closed its end."""
        assert self.process.wait(30) == 0
        return events_in(self.copy)


def with_file(made: Instance, supervisor: str = "") -> Instance:
    """Configure a log file, which is the one that `made.events` reads."""
    log = made.folder / "file.jsonl"
    return flooding(made, f"log_file = {log}\n{supervisor}", log)


@contextlib.contextmanager
def read_by_cat(made: Instance) -> Iterator[Reader]:
    """A supervisor of the flooding model with a pipe to a reader, and a file."""
    reader = Reader(made.folder)
    try:
        with_file(made).start(stdout=reader.writing)
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


# -- a reader ---------------------------------------------------------------------------------------------------------------


def test_a_stopped_reader_and_its_return(instance: Make) -> None:
    """Lines for it are dropped and counted, nobody else notices; continued, it is told how many, and gets everything after that."""
    made = instance()
    with read_by_cat(made) as reader:
        with Flooded(made) as flooded:
            reader.signal(signal.SIGSTOP)
            flooded.wait_dropped("stdout")
            assert flooded.account("stdout")["state"] == "stalled"
            flooded.goes_on()
            reader.signal(signal.SIGCONT)
            flooded.wait_open("stdout")
            dropped = flooded.dropped("stdout")
            flooded.goes_on()
            flooded.stop()
            flooded.wait_drained("stdout")
            assert flooded.dropped("stdout") == dropped  # it takes what comes since it resumed
        stop_in_time(made)
        copy = reader.events()
    assert check_gaps(copy, "stdout", flooded.lines) == dropped
    whole = check_complete(made.log, flooded.lines)
    assert said(whole, "stdout") == [("log.stalled", NOT_TAKING), ("log.resumed", NOT_TAKING)]
    assert said(copy, "stdout") == said(whole, "stdout")


def test_a_reader_that_is_stopped_again_and_again(instance: Make) -> None:
    """Each stall is told, each return too, and the sum of all that was dropped is what is missing."""
    made = instance()
    with read_by_cat(made) as reader:
        with Flooded(made) as flooded:
            for _ in range(3):
                before = flooded.dropped("stdout")
                reader.signal(signal.SIGSTOP)
                flooded.wait_dropped("stdout", before + 500)
                reader.signal(signal.SIGCONT)
                flooded.wait_open("stdout")
            flooded.stop()
        stop_in_time(made)
        copy = reader.events()
    assert check_gaps(copy, "stdout", flooded.lines) > 1500
    stalls = [("log.stalled", NOT_TAKING), ("log.resumed", NOT_TAKING)]
    assert said(check_complete(made.log, flooded.lines), "stdout") == 3 * stalls


def test_a_reader_that_is_slow_but_reads(instance: Make) -> None:
    """Nothing is dropped for one that takes some megabytes a second: the worker that floods is slowed, its answers are not."""
    made = with_file(instance())
    reading, writing = os.pipe()
    made.start(stdout=writing)
    os.close(writing)
    chunks: list[bytes] = []

    def read_slowly() -> None:
        while chunk := os.read(reading, 65536):
            chunks.append(chunk)
            time.sleep(0.015)  # the reader's pace: 4 MB a second

    reader = threading.Thread(target=read_slowly)
    reader.start()
    with Flooded(made, rate=10_000_000) as flooded:
        wait_for(lambda: flooded.account("stdout")["buffered_bytes"] > 500_000, "it to be behind")
        flooded.goes_on()
        flooded.stop()
        assert flooded.dropped("stdout") == 0
    stop_in_time(made)
    reader.join()
    os.close(reading)
    check_complete(made.log, flooded.lines)
    assert b"".join(chunks) == made.log.read_bytes()


def test_the_end_does_not_wait_for_a_stopped_reader(instance: Make) -> None:
    """With a full pipe and a full buffer the stop is bounded; the file has all of it, the reader the beginning."""
    made = instance()
    with read_by_cat(made) as reader:
        with Flooded(made) as flooded:
            reader.signal(signal.SIGSTOP)
            flooded.wait_dropped("stdout")
            flooded.stop()
        stop_in_time(made)
        reader.signal(signal.SIGCONT)
        assert reader.process.wait(30) == 0
    text = reader.copy.read_bytes()
    whole = check_complete(made.log, flooded.lines)
    assert text.count(b"\n") > 0
    assert made.log.read_bytes().startswith(text)
    assert whole[-1]["event"] in ("supervisor.stopped", "log.dropped")


def test_a_reader_that_leaves(instance: Make) -> None:
    """EPIPE: said once, counted from then on, and no more tried; the file goes on."""
    made = instance("log.closed")
    with read_by_cat(made) as reader:
        with Flooded(made) as flooded:
            reader.signal(signal.SIGKILL)
            made.wait_event("log.closed")
            flooded.goes_on()
            flooded.stop()
            account = flooded.account("stdout")
        stop_in_time(made)
    assert (account["state"], account["reason"]) == ("closed", "Broken pipe")
    assert account["buffered_bytes"] == 0
    assert not any(tally["buffered"] for tally in account["streams"].values())
    whole = check_complete(made.log, flooded.lines)
    assert said(whole, "stdout") == [("log.closed", "Broken pipe")]


def test_standard_output_that_was_closed_before_the_start(instance: Make) -> None:
    """`>&-` is /dev/null: nothing of ours is opened under that number and written to."""
    made = with_file(instance())
    start = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(made.config)]
    made.start(command=["sh", "-c", 'exec "$@" >&-', "sh", *start])
    assert os.readlink(f"/proc/{made.pid}/fd/1") == os.devnull
    with Flooded(made) as flooded:
        flooded.goes_on()
        flooded.stop()
    stop_in_time(made)
    check_complete(made.log, flooded.lines)


def test_standard_output_on_a_full_device(instance: Make) -> None:
    """/dev/full: the reason is said, and nobody waits for it; the file goes on."""
    made = with_file(instance("log.failed"))
    with open("/dev/full", "wb") as full:
        made.start(stdout=full.fileno())
    with Flooded(made) as flooded:
        flooded.wait_dropped("stdout")
        flooded.goes_on()
        flooded.stop()
        account = flooded.account("stdout")
    stop_in_time(made)
    assert account["state"] == "stalled"
    reason = "it cannot be written: No space left on device"
    assert account["reason"] == reason
    whole = check_complete(made.log, flooded.lines)
    assert said(whole, "stdout") == [("log.failed", reason), ("log.stalled", reason)]


def test_no_standard_output_at_all(instance: Make) -> None:
    """`log_to = none` with a file: nothing is printed, everything is in the file."""
    made = with_file(instance(), "log_to = none")
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as printed:
        with os.fdopen(writing, "wb"):
            made.start(stdout=writing)
        with Flooded(made) as flooded:
            flooded.stop()
            assert [sink["name"] for sink in made.status()["log"]["sinks"]] == ["file"]
        stop_in_time(made)
        assert printed.read() == b""
    check_complete(made.log, flooded.lines)


# -- a regular file -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_APPEND], ids=["new", "appended"])
def test_standard_output_that_is_a_file(instance: Make, flags: int) -> None:
    """`> FILE` and `>> FILE` are a log writer's: stopped, it stops nobody; what was in the file stays where it is appended to."""
    made = with_file(instance())
    copy = made.folder / "copy.jsonl"
    copy.write_text("before\n")
    output = os.open(copy, os.O_WRONLY | flags)
    made.start(stdout=output)
    os.close(output)
    (writer,) = set(log_writers(made)) - {file_writer(made, made.log)}
    with Flooded(made) as flooded:
        os.kill(writer, signal.SIGSTOP)
        flooded.wait_dropped("stdout")
        flooded.goes_on()
        os.kill(writer, signal.SIGCONT)
        flooded.wait_open("stdout")
        flooded.goes_on()
        flooded.stop()
    stop_in_time(made)
    first, _, rest = copy.read_bytes().partition(b"\n")
    if flags == os.O_APPEND:
        assert first == b"before"
        copy.write_bytes(rest)
    assert check_gaps(events_in(copy), "stdout", flooded.lines) >= 2000
    whole = check_complete(made.log, flooded.lines)
    assert said(whole, "stdout") == [("log.stalled", NOT_TAKING), ("log.resumed", NOT_TAKING)]


def test_the_writer_of_standard_output_is_killed(instance: Make) -> None:
    """The next one goes on at the very byte: nothing is lost, nothing doubled."""
    made = flooding(instance(), "").start()
    with Flooded(made, rate=300_000) as flooded:
        for number in range(1, 4):
            (writer,) = wait_for(lambda: log_writers(made), "the log writer")
            os.kill(writer, signal.SIGKILL)
            made.wait_event("log.resumed", count=number)
            flooded.goes_on()
        flooded.stop()
        flooded.wait_drained("stdout")
    stop_in_time(made)
    events = check_complete(made.log, flooded.lines)
    gone = [("log.writer_exited", "killed by SIGKILL"), ("log.resumed", "its log writer is gone")]
    assert said(events, "stdout") == 3 * gone


def wait_read(made: Instance, size: int) -> None:
    """Return when so many bytes of the worker's stdout were read."""
    wait_for(lambda: made.worker()["output"]["stdout"]["bytes"] == size, f"{size} bytes")


def test_a_reader_that_is_behind_costs_nothing(instance: Make) -> None:
    """A worker falls silent while the buffer is more than half full, and not full: the supervisor sleeps."""
    made = instance("log.closed")
    reading, writing = os.pipe()
    log = made.folder / "file.jsonl"
    made.write(made.model(), f"log_file = {log}\nlog_buffer = 1MiB")
    made.log = log
    made.start(stdout=writing)
    os.close(writing)
    burst = ("x" * 99 + "\n") * 160
    written = 0
    while made.status()["log"]["sinks"][0]["buffered_bytes"] < 512 * 1024:
        made.signal(signal.SIGSTOP)  # it finds the burst as a whole
        ask(made, "write", text=burst)
        made.signal(signal.SIGCONT)
        written += len(burst)
        wait_read(made, written)
    assert made.status()["log"]["sinks"][0]["state"] == "open"
    time.sleep(0.3)  # past PATIENCE, from where on nobody waits for this reader
    before = cpu_seconds(made.pid)
    time.sleep(0.5)  # a stretch to measure, not a wait
    assert cpu_seconds(made.pid) - before < 0.1
    os.close(reading)
    stop_in_time(made)
