"""rundir.py: what the kernel refuses in the middle of it, and what is known by identity."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelworker.scoreboard import RECORD_SIZE

from modelsupervisor.errors import AlreadyRunningError, RunDirectoryError, StartError
from modelsupervisor.runtime import rundir
from modelsupervisor.runtime.rundir import ASIDE, CONTROL, SCOREBOARD, Access, RunDirectory


@pytest.fixture
def place(short_tmp: Path) -> Path:
    """Where the run directory is to be."""
    return short_tmp / "run"


@pytest.fixture
def directory(place: Path) -> Iterator[RunDirectory]:
    """An open and locked run directory."""
    made = RunDirectory(str(place), Access())
    made.open()
    made.lock("a test")
    yield made
    made.close()


def failing(error: int) -> Callable[..., int]:
    """A system call that fails."""

    def call(*_: object, **__: object) -> int:
        raise OSError(error, os.strerror(error))

    return call


def no_pause(_: float) -> None:
    """A wait that costs nothing."""


def test_one_holder_at_a_time(directory: RunDirectory, place: Path) -> None:
    """A second claim is refused naming the first one's pid, and the lock's text is as it was; after the end it succeeds."""
    second = RunDirectory(str(place), Access())
    second.open()
    with pytest.raises(AlreadyRunningError, match=f"pid {os.getpid()}"):
        second.lock("another")
    assert (place / "lock").read_text() == f"{os.getpid()}\na test\n"
    directory.close()
    second.lock("another")
    second.close()


def test_a_full_disk_is_no_reason_not_to_hold_the_lock(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text in the lock is a courtesy."""
    made = RunDirectory(str(place), Access())
    made.open()
    monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
    made.lock("a test")
    monkeypatch.undo()
    second = RunDirectory(str(place), Access())
    second.open()
    with pytest.raises(AlreadyRunningError, match="pid unknown"):
        second.lock("another")
    second.close()
    made.close()


@pytest.mark.parametrize("call", ["listen", "link", "chmod"])
def test_a_socket_that_comes_half_way(
    directory: RunDirectory, place: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whatever step fails, the error names the path, and the end removes what there is of it."""
    if call == "listen":
        monkeypatch.setattr(rundir.socket.socket, "listen", failing(errno.ENOBUFS), raising=False)
    else:
        monkeypatch.setattr(os, call, failing(errno.EPERM))
    with pytest.raises(StartError, match=str(place / CONTROL)):
        directory.listen(CONTROL)
    monkeypatch.undo()
    assert not (place / CONTROL).exists()
    directory.close()
    assert os.listdir(place) == ["lock"]


def test_no_room_for_the_scoreboard(
    directory: RunDirectory, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hole in a full file system would be a SIGBUS later: it is an error now, and the file goes."""
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(StartError, match="No space left"):
        directory.scoreboard(8192)
    assert directory.close() == []
    assert os.listdir(place) == ["lock"]


def test_a_pipe_over_the_budget_serves_too(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel does not grant the size asked for, the FIFO is as large as it is."""
    monkeypatch.setattr(rundir.fcntl, "fcntl", failing(errno.EPERM))
    descriptor = directory.fifo("a.0.stdout", 1 << 20)
    assert stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    os.close(descriptor)


def test_a_name_that_is_taken(directory: RunDirectory, place: Path) -> None:
    """What appeared between the sweep and the making is not replaced."""
    for name, make in (
        ("a.0.sock", lambda: directory.listen("a.0.sock")),
        ("a.0.stdout", lambda: directory.fifo("a.0.stdout", 4096)),
        (SCOREBOARD, lambda: directory.scoreboard(4096)),
    ):
        (place / name).write_text("precious")
        with pytest.raises(StartError, match="File exists"):
            make()
        assert (place / name).read_text() == "precious"
    directory.close()
    assert set(os.listdir(place)) == {"lock", "a.0.sock", "a.0.stdout", SCOREBOARD}


def test_only_what_was_made_is_removed(directory: RunDirectory, place: Path) -> None:
    """By device and inode: a file in our place stays and is named; one that is gone is not missed."""
    listeners = [directory.listen(name) for name in ("a.0.sock", "b.0.sock", "c.0.sock")]
    assert directory.identity("a.0.sock") is not None
    (place / "b.0.sock").unlink()
    (place / "b.0.sock").write_text("precious")
    (place / "c.0.sock").unlink()
    assert [left.name for left in directory.close()] == ["b.0.sock"]
    assert set(os.listdir(place)) == {"lock", "b.0.sock"}
    for listener in listeners:
        listener.close()


def test_a_socket_appears_listening(directory: RunDirectory, place: Path) -> None:
    """Under its name it takes connections, with its mode, and nothing is left aside."""
    with directory.listen(CONTROL), socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(place / CONTROL))
        assert stat.S_IMODE((place / CONTROL).stat().st_mode) == 0o600
        assert not (place / ASIDE).exists()


def test_a_socket_that_answers_for_a_moment_longer(directory: RunDirectory, place: Path) -> None:
    """A dying worker may hold its socket for a while: it is asked again, and then swept."""
    dying = socket.socket(socket.AF_UNIX)
    dying.bind(str(place / "a.0.sock"))
    dying.listen()
    pauses = 0

    def pause(_: float) -> None:
        nonlocal pauses
        pauses += 1
        if pauses == 5:
            dying.close()

    (left,) = directory.sweep(lambda name: name.endswith(".sock"), ["a.0.sock"], pause)
    assert (left.name, left.removed, pauses) == ("a.0.sock", True, 5)


def test_a_stop_while_sweeping(directory: RunDirectory, place: Path) -> None:
    """What `pause` raises ends the sweep; the living socket stays."""

    class Stopped(Exception):
        pass

    def pause(_: float) -> None:
        raise Stopped

    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(place / "a.0.sock"))
        living.listen()
        with pytest.raises(Stopped):
            directory.sweep(lambda name: name.endswith(".sock"), ["a.0.sock"], pause)
    assert (place / "a.0.sock").exists()


@pytest.mark.parametrize(
    ("mode", "size", "removed"),
    [
        (0o600, 3 * RECORD_SIZE, True),
        (0o600, 0, True),
        (0o600, 5, False),
        (0o644, RECORD_SIZE, False),
    ],
)
def test_what_counts_as_a_scoreboard(
    directory: RunDirectory, place: Path, mode: int, size: int, removed: bool
) -> None:
    """A regular file is a leftover only as we make it: closed to others, and whole records."""
    (place / SCOREBOARD).write_bytes(bytes(size))
    (place / SCOREBOARD).chmod(mode)
    try:
        directory.sweep(lambda name: name == SCOREBOARD, [SCOREBOARD], no_pause)
    except RunDirectoryError as error:
        assert not removed and "regular file" in str(error)
    assert (place / SCOREBOARD).exists() is not removed


def test_a_second_name_of_a_file_is_no_scoreboard(directory: RunDirectory, place: Path) -> None:
    """A hard link is somebody's file."""
    (place / "theirs").touch(mode=0o600)
    os.link(place / "theirs", place / SCOREBOARD)
    with pytest.raises(RunDirectoryError):
        directory.sweep(lambda name: name == SCOREBOARD, [SCOREBOARD], no_pause)


def test_what_is_in_nobodys_way_is_left(directory: RunDirectory, place: Path) -> None:
    """A foreign thing under a name that is formed but not needed now is kept and told, not refused."""
    (place / "old.0.sock").symlink_to("/dev/null")
    (left,) = directory.sweep(lambda name: name.endswith(".sock"), ["a.0.sock"], no_pause)
    assert (left.removed, "symbolic link" in left.reason) == (False, True)


def test_closing_twice(directory: RunDirectory) -> None:
    """It is closed on every path out, some of which meet."""
    directory.close()
    assert directory.close() == []
