"""standard_output.py: every kind of standard output, none of them waited for."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelsupervisor.log.outlet import PortClosed, PortFailing
from modelsupervisor.runtime import standard_output as module
from modelsupervisor.runtime.standard_output import StandardOutput, needs_writer


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


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: its other side, and the side that is written to."""
    master, slave = pty.openpty()
    yield master, slave
    for descriptor in (master, slave):
        try:
            os.close(descriptor)
        except OSError:
            continue


def opened(descriptor: int) -> StandardOutput:
    """A port on a descriptor."""
    made = StandardOutput(descriptor)
    made.open()
    return made


def refuse_to_open_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /proc is not mounted, or the descriptor came from another user."""

    def refused(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module.os, "open", refused)


def views(*chunks: bytes) -> list[memoryview]:
    """Payloads."""
    return [memoryview(each) for each in chunks]


def write_all(port: StandardOutput, reading: int, content: bytes) -> bytes:
    """Write it all, making room whenever nothing is taken; what came out at the other side."""
    taken, left = b"", memoryview(content)
    while left:
        size = port.write([left])
        left = left[size:]
        if not size:
            taken += os.read(reading, 4096)
    while select.select([reading], [], [], 0)[0]:
        chunk = os.read(reading, 65536)
        if not chunk:
            break
        taken += chunk
    return taken


# Files and disks -----------------------------------------------------------------------------------------------------


def test_what_can_only_be_waited_for(
    tmp_path: Path, pipe: tuple[int, int], terminal: tuple[int, int]
) -> None:
    """A regular file needs a log writer; pipes, terminals, sockets, devices and closed descriptors do not."""
    with (tmp_path / "log").open("wb") as file:
        assert needs_writer(file.fileno())
        gone = os.dup(file.fileno())
    os.close(gone)
    ours, theirs = socket.socketpair()
    with ours, theirs, Path("/dev/null").open("wb") as null:
        for descriptor in (pipe[1], terminal[1], ours.fileno(), null.fileno(), gone):
            assert not needs_writer(descriptor)


# Pipes ---------------------------------------------------------------------------------------------------------------


def test_a_full_pipe_keeps_nobody(pipe: tuple[int, int]) -> None:
    """It takes what it has room for and then nothing; when there is room again it goes on, and nothing is lost."""
    reading, writing = pipe
    port = opened(writing)
    assert port.pollable and not port.is_terminal
    content = os.urandom(30_000)
    assert port.write(views(content)) == 4096
    assert port.write(views(content)) == 0
    assert select.select([], [port.fd], [], 0)[1] == []
    assert os.read(reading, 65536) == content[:4096]
    assert select.select([], [port.fd], [], 0)[1] == [port.fd]
    assert write_all(port, reading, content) == content
    port.close()


def test_payloads_in_one_write(pipe: tuple[int, int]) -> None:
    """In order, and counted together."""
    port = opened(pipe[1])
    assert port.write(views(b"one\n", b"two\n", b"three\n")) == 14
    assert os.read(pipe[0], 100) == b"one\ntwo\nthree\n"
    port.close()


def test_the_shells_descriptor_stays_blocking(pipe: tuple[int, int]) -> None:
    """O_NONBLOCK is set on an open file of our own, which is closed in the end, and the shell's is not."""
    port = opened(pipe[1])
    ours = port.fd
    assert ours != pipe[1]
    assert not fcntl.fcntl(pipe[1], fcntl.F_GETFL) & os.O_NONBLOCK
    assert fcntl.fcntl(ours, fcntl.F_GETFL) & os.O_NONBLOCK
    port.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ours)
    os.fstat(pipe[1])


def test_a_reader_that_left(pipe: tuple[int, int]) -> None:
    """Nobody will ever read this, and the reason says why."""
    os.close(pipe[0])
    port = opened(pipe[1])
    with pytest.raises(PortClosed, match="Broken pipe"):
        port.write(views(b"line\n"))
    port.close()


def test_where_opening_anew_is_not_allowed(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the pipe is asked first, and given PIPE_BUF bytes at most: never a wait either, and its flags are left alone."""
    reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 8192)
    refuse_to_open_anew(monkeypatch)
    port = opened(writing)
    monkeypatch.undo()
    assert port.fd == writing and port.pollable
    content = os.urandom(20_000)
    assert [port.write(views(content)) for _ in range(3)] == [4096, 4096, 0]
    assert not fcntl.fcntl(writing, fcntl.F_GETFL) & os.O_NONBLOCK
    os.read(reading, 65536)
    assert write_all(port, reading, content) == content
    os.close(reading)
    with pytest.raises(PortClosed):
        port.write(views(b"line\n"))
    port.close()
    os.fstat(writing)


# Sockets -------------------------------------------------------------------------------------------------------------


def test_a_socket() -> None:
    """Written without waiting and without touching its flags; a peer that left is an end, and no SIGPIPE."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        port = opened(ours.fileno())
        assert port.pollable
        assert port.write(views(b"one\n", b"two\n")) == 8
        assert theirs.recv(100) == b"one\ntwo\n"
        while port.write(views(b"x" * 100_000)):
            pass
        assert not fcntl.fcntl(ours.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
        assert select.select([], [port.fd], [], 0)[1] == []
        theirs.close()
        usual = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        try:
            with pytest.raises(PortClosed, match="Broken pipe"):
                port.write(views(b"line\n"))
        finally:
            signal.signal(signal.SIGPIPE, usual)
        port.close()
        os.fstat(ours.fileno())


# Terminals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anew", [True, False])
def test_a_terminal(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch, anew: bool) -> None:
    """It is known as one, written to without waiting, and an end when it hangs up."""
    master, slave = terminal
    if not anew:
        refuse_to_open_anew(monkeypatch)
    port = opened(slave)
    monkeypatch.undo()
    assert port.is_terminal and port.pollable
    assert port.write(views(b"line\n")) == 5
    shown = b""
    while len(shown) < 6:
        shown += os.read(master, 100)
    assert shown == b"line\r\n"
    while port.write(views(b"x\n" * 2048)):
        pass
    assert not fcntl.fcntl(slave, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(master)
    with pytest.raises(PortClosed):
        while not port.write(views(b"line\n")):
            pass
    port.close()


def test_a_terminal_that_stops_its_background(terminal: tuple[int, int]) -> None:
    """The signal for that is blocked while it is written to, and only then: else the write is interrupted for ever."""
    seen: list[set[int]] = []
    port = opened(terminal[1])
    writev = os.writev

    def watched(fd: int, payloads: list[memoryview]) -> int:
        seen.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())})
        return writev(fd, payloads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.os, "writev", watched)
        port.write(views(b"line\n"))
    assert signal.SIGTTOU in seen[0]
    assert signal.SIGTTOU not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    port.close()


# The rest ------------------------------------------------------------------------------------------------------------


def test_a_device_that_takes_everything() -> None:
    """It is not polled, which epoll would refuse."""
    with Path("/dev/null").open("wb") as null:
        port = opened(null.fileno())
        assert not port.pollable
        assert port.write(views(b"one\n", b"two\n")) == 8
        port.close()
        os.fstat(null.fileno())


def test_a_device_that_is_full() -> None:
    """No room is no end, for there may be some later; the reason says so."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        port = opened(full.fileno())
        with pytest.raises(PortFailing, match="No space left on device"):
            port.write(views(b"line\n"))
        port.close()


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS, errno.EINTR])
def test_what_may_pass(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Is no end either, and no failure."""
    port = opened(pipe[1])

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.os, "writev", fails)
    assert port.write(views(b"line\n")) == 0
    monkeypatch.undo()
    assert port.write(views(b"line\n")) == 5
    port.close()


def test_nothing_there() -> None:
    """A closed descriptor is a log that nobody reads; the first write says so."""
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    port = opened(writing)
    assert not port.pollable and not port.is_terminal
    with pytest.raises(PortClosed, match="Bad file descriptor"):
        port.write(views(b"line\n"))
    port.close()
