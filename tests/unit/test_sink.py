"""sink.py: every kind of standard output, none of them waited for."""

from __future__ import annotations

import fcntl
import os
import pty
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelsupervisor.runtime import sink as module
from modelsupervisor.runtime.sink import BUFFER, RESERVED, StdoutSink


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of one page."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            continue


def opened(descriptor: int) -> StdoutSink:
    """A sink on a descriptor."""
    made = StdoutSink(descriptor)
    made.open()
    return made


def test_a_file(tmp_path: Path) -> None:
    """It takes everything at once and is not polled."""
    with (tmp_path / "log").open("wb") as file:
        sink = opened(file.fileno())
        assert not sink.pollable
        assert sink.put(b"one\n", reserved=False)
        sink.flush()
        assert not sink.backlog
        sink.close()
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_a_full_pipe_keeps_nobody(pipe: tuple[int, int]) -> None:
    """What it does not take waits; when there is room again it goes on where it stopped, and nothing is lost."""
    reading, writing = pipe
    sink = opened(writing)
    assert sink.pollable
    lines = [b"%d %s\n" % (number, b"x" * 90) for number in range(300)]
    for line in lines:
        assert sink.put(line, reserved=False)
    sink.flush()
    assert sink.backlog
    taken = b""
    while sink.backlog:
        taken += os.read(reading, 1000)
        sink.flush()
    sink.close()
    os.close(writing)
    while chunk := os.read(reading, 65536):
        taken += chunk
    assert taken == b"".join(lines)


def test_the_shells_descriptor_stays_blocking(pipe: tuple[int, int]) -> None:
    """O_NONBLOCK is set on an open file of our own."""
    sink = opened(pipe[1])
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK
    assert fcntl.fcntl(sink.fd, fcntl.F_GETFL) & os.O_NONBLOCK
    sink.close()


def test_over_the_buffer_lines_are_counted(pipe: tuple[int, int]) -> None:
    """Past BUFFER output is dropped and counted, life-cycle events have RESERVED bytes more, and the count is told once
    there is room for that."""
    reading, writing = pipe
    sink = opened(writing)
    line = b"x" * (1024 * 1024)
    for _ in range(BUFFER // len(line)):
        assert sink.put(line, reserved=False)
    assert not sink.put(b"more\n", reserved=False)
    assert not sink.put(b"more\n", reserved=False)
    assert sink.put(b"y" * RESERVED, reserved=True)
    assert not sink.put(b"event\n", reserved=True)
    assert sink.take_dropped() == 0
    sink.flush()
    while sink.backlog:
        os.read(reading, 65536)
        sink.flush()
    assert sink.take_dropped() == 3
    assert sink.take_dropped() == 0
    sink.close()


def test_a_reader_that_left(pipe: tuple[int, int]) -> None:
    """EPIPE is the end of the log: nothing waits any more, nothing is raised."""
    os.close(pipe[0])
    sink = opened(pipe[1])
    sink.put(b"line\n", reserved=True)
    sink.flush()
    assert sink.dead and not sink.backlog
    assert not sink.put(b"line\n", reserved=True)
    sink.drain(10)
    sink.close()


def test_a_full_disk_may_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC is no end: the line waits and is written when there is room."""
    with (tmp_path / "log").open("wb") as file:
        sink = opened(file.fileno())

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module.os, "write", full)
        sink.put(b"line\n", reserved=True)
        sink.flush()
        assert sink.backlog and not sink.dead
        monkeypatch.undo()
        sink.flush()
        assert not sink.backlog
        sink.close()
    assert (tmp_path / "log").read_bytes() == b"line\n"


def test_a_socket() -> None:
    """Written without waiting and without touching its flags; a peer that left is an end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = opened(ours.fileno())
        sink.put(b"line\n", reserved=False)
        sink.flush()
        assert theirs.recv(100) == b"line\n"
        sink.put(b"x" * 8_000_000, reserved=False)
        sink.flush()
        assert sink.backlog
        assert not fcntl.fcntl(ours.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
        theirs.close()
        sink.flush()
        assert sink.dead
        sink.close()


def test_where_opening_anew_is_not_allowed(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the pipe is asked first, and given PIPE_BUF bytes at most: never a wait either."""
    reading, writing = pipe

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "open", refused)
    sink = opened(writing)
    monkeypatch.undo()
    data = os.urandom(20000)
    sink.put(data, reserved=False)
    begun = time.monotonic()
    sink.flush()
    assert sink.backlog
    assert time.monotonic() - begun < 2
    taken = b""
    while sink.backlog:
        taken += os.read(reading, 4096)
        sink.flush()
    taken += os.read(reading, 65536)
    assert taken == data


def test_a_terminal() -> None:
    """It is known as one."""
    master, slave = pty.openpty()
    sink = opened(slave)
    assert sink.is_terminal
    sink.put(b"line\n", reserved=True)
    sink.flush()
    assert os.read(master, 100) == b"line\r\n"
    sink.close()
    os.close(master)
    os.close(slave)


def test_nothing_there() -> None:
    """A closed descriptor is a log that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    sink = opened(writing)
    assert sink.dead
    assert not sink.put(b"line\n", reserved=True)
    assert not sink.backlog
    sink.drain(1)
    sink.close()


def test_the_end_has_a_limit(pipe: tuple[int, int]) -> None:
    """`drain` gives a reader that does not read so many seconds and no more."""
    sink = opened(pipe[1])
    sink.put(b"x" * 100000, reserved=True)
    begun = time.monotonic()
    sink.drain(0.2)
    assert 0.15 < time.monotonic() - begun < 5
    assert sink.backlog
    sink.close()
