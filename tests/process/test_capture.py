"""Nothing that a worker printed is lost or changed: over its death, at any size, of any bytes, in every sink, and `seq` says so.

Sizes here are those at which buffers fill, lines are cut and turns end; the same at a hundred lines is test_output.py's.
"""

from __future__ import annotations

import filecmp
import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.capture import LongInstance, check_accounts, memory
from support.faults import (
    Caller,
    ask,
    crash,
    echo,
    kill_worker,
    ready,
    request,
    template_pid,
)
from support.instance import LIMIT, Event, Instance, state_of, wait_for

Running = Callable[..., Instance]

KILL: dict[str, Any] = {"do": "kill"}
MiB = 1024 * 1024


def of_stream(events: list[Event], stream: str = "stdout") -> list[Event]:
    """The events of one stream."""
    return [event for event in events if event["stream"] == stream]


# -- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("printer", "line"), [("print", "line"), ("printf", "from C")])
def test_ten_thousand_lines_and_an_unfinished_one_before_sigkill(
    running: Running, printer: str, line: str
) -> None:
    """Python's print, C's printf, no flush: every line is there before the exit; so is the flushed beginning of one, marked."""
    instance = running("worker.exited")
    crash(instance, "all", of=[{"do": printer, "lines": 10_000, "rest": "half a li"}, KILL])
    exited = instance.wait_event("worker.exited")
    *whole, last = instance.events("worker.output")
    assert [event["line"] for event in whole] == [f"{line} {n}" for n in range(10_000)]
    assert not any("partial" in event for event in whole)
    assert (last["line"], last["partial"]) == ("half a li", True)
    identity = (exited["pid"], exited["generation"])
    assert {(event["pid"], event["generation"]) for event in [*whole, last]} == {identity}
    assert last["seq"] < exited["seq"]


def last_words(index: int, death: int) -> dict[str, Any]:
    """What a worker says before it dies: some lines, buffered and not, of both streams."""
    return {
        "do": "all",
        "of": [
            {"do": "print", "lines": 3, "text": f"{index} dies for the {death}th time:"},
            {"do": "printf", "lines": 2},
            {"do": "print", "stream": "stderr", "text": f"{index} complains {death}"},
            {"do": "print", "lines": 0, "rest": f"{index} began {death}"},
            KILL,
        ],
    }


def die_and_answer(instance: Instance, index: int, deaths: int) -> None:
    """One slot's part: it dies again and again, and answers after each death."""
    for death in range(1, deaths + 1):
        words = last_words(index, death)
        with (
            Caller(instance.socket(index=index), request(**words)) as caller,
            pytest.raises(ConnectionError),
        ):
            caller.answer()
        assert echo(instance, b"alive", index) == b"alive"


@pytest.mark.parametrize(
    "deaths", [4, pytest.param(40, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_deaths_with_small_output_lose_nothing(running: Running, deaths: int) -> None:
    """25 workers die 4 (slow: 40) times each, and answer in between: every line of each death has its generation, pid and place."""
    slots = 25
    instance = running("worker.exited", workers=slots, cpus="none")
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(die_and_answer, instance, n, deaths) for n in range(slots)]:
            done.result()
    instance.wait_event("worker.exited", count=slots * deaths)
    heard: dict[tuple[int, int], list[Event]] = {}
    for event in instance.events("worker.output"):
        heard.setdefault((event["worker"], event["generation"]), []).append(event)
    pairs = list(itertools.product(range(slots), range(1, deaths + 1)))
    assert sorted(heard) == pairs
    for exited in instance.events("worker.exited"):
        index, death = exited["worker"], exited["generation"]
        events = heard[index, death]
        out = [f"{index} dies for the {death}th time: {n}" for n in range(3)]
        out += ["from C 0", "from C 1", f"{index} began {death}"]
        assert [event["line"] for event in of_stream(events)] == out
        assert [event["line"] for event in of_stream(events, "stderr")] == [
            f"{index} complains {death} 0"
        ]
        assert [event["line"] for event in events if "partial" in event] == out[-1:]
        assert {event["pid"] for event in events} == {exited["pid"]}
        assert all(event["seq"] < exited["seq"] for event in events)
    check_accounts(instance.status())


# -- any bytes, any amount --------------------------------------------------------------------------------------------


def numbered_lines(count: int) -> Iterator[bytes]:
    """Lines of 100 bytes, the newline among them."""
    for number in range(count):
        yield b"%08d %s\n" % (number, b"abcdefghij klmnopqrs" * 4 + b"0123456789")


def junk(size: int) -> Iterator[bytes]:
    """Random bytes."""
    yield random.Random(size).randbytes(size)


def nul_bytes() -> Iterator[bytes]:
    """NULs alone, between newlines, and as a long line."""
    yield (b"\0" * 30 + b"\n") * 10_000
    yield b"\0\n" * 50_000
    yield b"\0" * 300_000 + b"\n"


def broken_text() -> Iterator[bytes]:
    """What is nearly UTF-8: cut characters, surrogates, overlong forms, stray continuations, between good lines."""
    bad = [b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf", b"\x80\x81", b"\xf5\x90", b"\xe2\x82", b"\xff"]
    for number in range(20_000):
        yield b"%d \xe2\x82\xac %s \r\n" % (number, bad[number % 7] if number % 3 else b"good")


def long_line(size: int) -> Iterator[bytes]:
    """One line, in which a character of three bytes is cut at every place where it can be."""
    pattern = "a quick brown fox for € 1 ".encode()
    yield b"before\n"
    for _ in range(size // len(pattern) + 1):
        yield pattern
    yield b"\nafter\n"


def empty_lines() -> Iterator[bytes]:
    """Nothing, a hundred thousand times."""
    yield b"\n" * 100_000


def endless() -> Iterator[bytes]:
    """No newline at all."""
    yield random.Random(5).randbytes(5 * MiB).replace(b"\n", b"N")


STREAMS: list[Any] = [
    pytest.param(lambda: numbered_lines(200_000), id="200,000 lines"),
    pytest.param(
        lambda: numbered_lines(1_000_000),
        id="a million lines",
        marks=[pytest.mark.slow, pytest.mark.timeout(600)],
    ),
    pytest.param(lambda: junk(8 * MiB), id="binary junk"),
    pytest.param(nul_bytes, id="NULs"),
    pytest.param(broken_text, id="broken UTF-8"),
    pytest.param(lambda: long_line(50_000_000), id="a line of 50 MB"),
    pytest.param(empty_lines, id="empty lines"),
    pytest.param(endless, id="no newline"),
]


@pytest.fixture
def long_instance(short_tmp: Path) -> Iterator[LongInstance]:
    """An instance with both sinks, whose output is not kept."""
    made = LongInstance(short_tmp, ("worker.exited",))
    made.write(made.model(), f"log_file = {short_tmp}/sink.jsonl")
    yield made
    made.finish()


@pytest.mark.parametrize("stream", STREAMS)
def test_any_stream_comes_out_of_the_log_as_it_went_in(
    long_instance: LongInstance, short_tmp: Path, stream: Callable[[], Iterator[bytes]]
) -> None:
    """Both sinks give back every byte of both streams, up to the last before SIGKILL; the supervisor grows by less than 20 MB."""
    printed = short_tmp / "printed"
    with printed.open("wb") as file:
        file.writelines(stream())
    instance = long_instance.start()
    ask(instance, "print")
    before = memory(instance.pid, "VmRSS")
    copies: list[dict[str, Any]] = [
        {"do": "copy", "path": str(printed), "fd": fd, "chunk": chunk}
        for fd, chunk in ((1, 65536), (2, 10_000))
    ]
    with Caller(instance.socket(), request("all", of=[*copies, KILL])) as caller:
        instance.wait_event("worker.exited", limit=300)
        with pytest.raises(ConnectionError):
            caller.answer()
    grown = memory(instance.pid, "VmHWM") - before
    assert echo(instance)
    status = instance.status()
    made = check_accounts(status)
    assert instance.stop() == 0
    instance.events()
    assert instance.output_events == made
    expected = printed.read_bytes()
    assert instance.carried["echo/0 stdout"] == b"line 0\n" + expected
    assert instance.carried["echo/0 stderr"] == expected
    bytes_read = {
        f"echo/0 {name}": told["bytes"]
        for name, told in status["models"][0]["workers"][0]["output"].items()
    }
    assert bytes_read == {source: len(carried) for source, carried in instance.carried.items()}
    assert filecmp.cmp(instance.log, short_tmp / "sink.jsonl", shallow=False)
    assert grown < 20_000_000, f"{grown} bytes"


SLOW_READER = """
import sys, time
taken = bytearray()
while chunk := sys.stdin.buffer.raw.read(65536):
    taken += chunk
    time.sleep(0.004)  # its pace
with open(sys.argv[1], "wb") as copy:
    copy.write(taken)
"""


@contextmanager
def slow_reader(copy: Path) -> Iterator[int]:
    """A pipe whose reader takes some 16 MB a second and writes them down at the end; gives the writing end.

    At the end, since a disk that is busy for a quarter of a second would make it a reader that takes nothing; a process of its
    own, since a test that parses a long log lets no other thread of its process run for as long.
    """
    reading, writing = os.pipe()
    reader = subprocess.Popen([sys.executable, "-c", SLOW_READER, str(copy)], stdin=reading)
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)
        assert reader.wait(LIMIT) == 0


def test_a_fifo_full_of_empty_lines_at_a_death_fits_into_no_buffer(
    long_instance: LongInstance, short_tmp: Path
) -> None:
    """Its events are some hundred times its size, and all of it is there at the end: still no sink that takes misses one."""
    lines = 120_000
    instance, copy = long_instance, short_tmp / "copy.jsonl"
    instance.log = short_tmp / "sink.jsonl"
    with slow_reader(copy) as writing:
        instance.start(stdout=writing)
        before = memory(instance.pid, "VmRSS")
        pid = instance.worker()["pid"]
        words = {"do": "write", "text": "\n" * lines}
        instance.signal(signal.SIGSTOP)
        try:
            with Caller(instance.socket(), request("all", of=[words, KILL])):
                wait_for(lambda: state_of(pid) == "Z", "the worker to have died")
        finally:
            instance.signal(signal.SIGCONT)
        exited = instance.wait_event("worker.exited")
        assert (exited["pid"], exited["signal"]) == (pid, "SIGKILL")
        assert echo(instance)
        assert memory(instance.pid, "VmHWM") - before < 20_000_000
        check_accounts(instance.status())
        assert instance.stop() == 0
    instance.events()
    assert instance.carried["echo/0 stdout"] == b"\n" * lines
    assert filecmp.cmp(copy, instance.log, shallow=False)


# -- seq --------------------------------------------------------------------------------------------------------------


def chat(instance: Instance) -> None:
    """Have every worker print from now on, and wait until the log has something of each."""
    for index in range(3):
        pid = wait_for(lambda index=index: instance.worker(index=index)["pid"], "a process")
        ask(instance, "chatter", index=index)
        instance.wait_event("worker.output", count=20, worker=index, pid=pid)


def test_seq_counts_every_event_over_restarts_of_everything(
    running: Running, short_tmp: Path
) -> None:
    """Workers and templates are killed and restarted while all print: no number is missing in either sink, and no line."""
    sink = short_tmp / "sink.jsonl"
    expected = ("worker.exited", "template.exited")
    instance = running(*expected, supervisor=f"log_file = {sink}", workers=3, cpus="none")
    chat(instance)
    kill_worker(instance, signal.SIGKILL, index=1)
    ready(instance, 2, 1)
    os.kill(template_pid(instance), signal.SIGKILL)
    instance.wait_event("template.ready", generation=2)
    kill_worker(instance, signal.SIGKILL, index=2)
    ready(instance, 2, 2)
    assert instance.cli("restart", "-c", str(instance.config), "echo").returncode == 0
    chat(instance)
    assert instance.cli("restart", "-c", str(instance.config), "echo/0").returncode == 0
    check_accounts(instance.status())
    assert instance.stop() == 0
    events = instance.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert filecmp.cmp(instance.log, sink, shallow=False)
    check_nobody_lost_a_line(events)


def check_nobody_lost_a_line(events: list[Event]) -> None:
    """What each process counted has no gap, but is ended wherever it was."""
    by_process: dict[int, list[str]] = {}
    for event in events:
        if event["event"] == "worker.output" and "partial" not in event:
            by_process.setdefault(event["pid"], []).append(event["line"])
    assert len(by_process) == 6  # three before the restart, three after it
    for lines in by_process.values():
        assert lines == [f"chatter {number}" for number in range(len(lines))]
