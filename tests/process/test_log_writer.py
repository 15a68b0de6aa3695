"""The log writer: what the supervisor sent is in the file, byte for byte, once, whatever happens to disk, file and writer."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import resource
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelsupervisor.log.writer import LAST_CHANCE, RETRY, main, quoted
from support.fed_writer import LINE, PIPE, FedWriter, closing, held, stream
from support.instance import LIMIT, state_of, wait_for

FULL = "No space left on device"


@pytest.fixture
def fed() -> Iterator[FedWriter]:
    """A writer's surroundings."""
    with closing() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The log's path."""
    return tmp_path / "log.json"


def arrives(path: Path, content: bytes) -> None:
    """Wait until the file is so long, and hold that this is what it contains."""
    wait_for(lambda: path.exists() and path.stat().st_size >= len(content), f"it all in {path}")
    assert path.read_bytes() == content


def size_limit(fed: FedWriter, limit: int) -> None:
    """From now on no file of the writer's may grow beyond this: EFBIG, without root."""
    _, hard = resource.prlimit(fed.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(fed.pid, resource.RLIMIT_FSIZE, (limit, hard))


def ends_in_time(fed: FedWriter) -> None:
    """It tries for LAST_CHANCE and then says that it failed."""
    began = time.monotonic()
    assert fed.exit_code() == 1
    assert LAST_CHANCE - 0.1 < time.monotonic() - began < LAST_CHANCE + 3


# The stream ----------------------------------------------------------------------------------------------------------


def test_what_is_sent_is_written(fed: FedWriter, path: Path) -> None:
    """All of 20 MB; the file is the owner's to write and the group's to read."""
    fed.start(path)
    assert fed.hear("opened") == {"path": str(path)}
    assert path.stat().st_mode & 0o777 == 0o640 & ~current_umask()
    fed.push(20_000_000)
    assert fed.finish() == 0
    assert path.read_bytes() == stream(0, 20_000_000)
    assert fed.heard() == []


def current_umask() -> int:
    """Ours, which is the writer's."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_line_does_not_wait(fed: FedWriter, path: Path) -> None:
    """One line is in the file before another comes; and a file that was there goes on."""
    path.write_bytes(b"before\n")
    fed.start(path)
    fed.push(LINE)
    arrives(path, b"before\n" + stream(0, LINE))
    fed.push(LINE)
    arrives(path, b"before\n" + stream(0, 2 * LINE))


def test_a_killed_writer_loses_and_doubles_nothing(fed: FedWriter, path: Path) -> None:
    """kill -9 in mid-flood, forty times: the next one goes on at the byte where it stopped, and knows the position."""
    for _ in range(40):
        fed.start(path)
        fed.hear("opened")
        fed.push(2 * PIPE)
        fed.kill()
        assert fed.written() == path.stat().st_size
    fed.start(path)
    fed.hear("opened")
    end = fed.push(PIPE)
    path.rename(path.with_suffix(".1"))
    fed.ask_reopen(end)
    fed.push(10 * LINE)
    assert fed.finish() == 0
    assert path.with_suffix(".1").read_bytes() == stream(0, end)
    assert path.read_bytes() == stream(end, end + 10 * LINE)


def test_a_stopped_writer_goes_on(fed: FedWriter, path: Path) -> None:
    """While it is stopped the pipe fills and says so at once; continued, it writes everything."""
    fed.start(path)
    fed.hear("opened")
    os.kill(fed.pid, signal.SIGSTOP)
    wait_for(lambda: state_of(fed.pid) == "T", "the writer to stand")
    assert fed.push_until_full() >= PIPE
    assert path.stat().st_size == 0
    os.kill(fed.pid, signal.SIGCONT)
    fed.push(PIPE)
    assert fed.finish() == 0
    assert path.read_bytes() == stream(0, fed.sent)


def test_signals_do_not_end_it(fed: FedWriter, path: Path) -> None:
    """Only the end of the pipe does: what goes to a whole group or container finds the log unfinished."""
    fed.start(path)
    fed.hear("opened")
    for name in ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "PIPE", "ALRM", "TSTP", "TTOU"):
        os.kill(fed.pid, getattr(signal, "SIG" + name))
    fed.push(PIPE)
    assert fed.finish() == 0
    assert path.read_bytes() == stream(0, PIPE)


def test_the_supervisors_end_is_not_the_logs(fed: FedWriter, path: Path) -> None:
    """With the channel closed, what is in the pipe is still written, to the last byte."""
    fed.start(path)
    fed.hear("opened")
    fed.ours.close()
    fed.push(3 * PIPE)
    assert fed.finish() == 0
    assert path.read_bytes() == stream(0, 3 * PIPE)


def test_a_write_that_hangs_hangs_only_the_writer(fed: FedWriter) -> None:
    """The supervisor's writes return while one of the writer's does not; killed in it, the writer leaves nothing undone.

    A full socket stands for the disk: a splice into it holds the lock of the pipe that it reads from, as one into a file does.
    """
    target, reader = socket.socketpair()
    with target, reader:
        fed.start(target=target.fileno())
        assert fed.hear("opened") == {"path": None}
        assert fed.push_until_full() > PIPE
        fed.kill()
        assert 0 < fed.written() == queued(reader)
        fed.start(target=target.fileno())
        fed.end()
        got = receive(reader, fed.sent)
        assert fed.exit_code() == 0
    assert got == stream(0, fed.sent)


def queued(reader: socket.socket) -> int:
    """The bytes that wait in a socket."""
    return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), "little")


def receive(reader: socket.socket, count: int) -> bytes:
    """So many bytes."""
    reader.settimeout(LIMIT)
    got = bytearray()
    while len(got) < count:
        got += reader.recv(1 << 20)
    return bytes(got)


# Files that change ---------------------------------------------------------------------------------------------------


def test_a_file_is_reopened_at_exactly_that_byte(fed: FedWriter, path: Path) -> None:
    """Rotated ten times in a flood: each file holds exactly what lies between two positions."""
    fed.start(path)
    fed.hear("opened")
    borders = [0]
    for number in range(10):
        fed.push(2 * PIPE // LINE * LINE)
        path.rename(path.with_suffix(f".{number}"))
        fed.ask_reopen(fed.sent)
        borders.append(fed.sent)
        fed.push(50 * LINE)
        assert fed.hear("reopened") == {"path": str(path), "reason": "SIGUSR1"}
    assert fed.finish() == 0
    for number, (start, end) in enumerate(itertools.pairwise(borders)):
        assert path.with_suffix(f".{number}").read_bytes() == stream(start, end)
    assert path.read_bytes() == stream(borders[-1], fed.sent)


def test_reopenings_keep_their_order(fed: FedWriter, path: Path) -> None:
    """Several that were asked for at once are done each at its byte, without waiting for the next one."""
    fed.start(path)
    fed.hear("opened")
    for at in (LINE, 3 * LINE, 3 * LINE, 5 * LINE):
        fed.ask_reopen(at, f"at {at}")
    fed.push(5 * LINE)
    reasons = [fed.hear("reopened")["reason"] for _ in range(4)]
    assert reasons == ["at 100", "at 300", "at 300", "at 500"]
    assert fed.finish() == 0
    assert path.read_bytes() == stream(0, 5 * LINE)


@pytest.mark.parametrize("fate", ["deleted", "renamed", "replaced"])
def test_a_file_that_is_gone_is_told(fed: FedWriter, path: Path, fate: str) -> None:
    """Once, with what became of it; the old file goes on up to the byte that the supervisor names."""
    fed.start(path)
    fed.hear("opened")
    fed.push(LINE)
    arrives(path, stream(0, LINE))
    with path.open("rb") as old:
        if fate == "renamed":
            path.rename(path.with_suffix(".1"))
        else:
            path.unlink()
        if fate == "replaced":
            path.write_bytes(b"")
        told = fed.push_until("gone")
        place = int(told.pop("at"))
        assert told == {"reason": "it was renamed" if fate == "renamed" else "it was deleted"}
        assert old.read() == stream(0, place)  # what came since waits for an answer
        old.seek(0)
        at = fed.push(10 * LINE)
        fed.ask_reopen(at, told["reason"])
        fed.push(LINE)
        assert fed.hear("reopened") == {"path": str(path), "reason": told["reason"]}
        arrives(path, stream(at, at + LINE))
        assert old.read() == stream(0, at)


def test_copytruncate_leaves_no_hole(fed: FedWriter, path: Path) -> None:
    """A file that someone truncated goes on at its new end."""
    fed.start(path)
    fed.push(PIPE)
    arrives(path, stream(0, PIPE))
    os.truncate(path, 0)
    fed.push(PIPE)
    arrives(path, stream(PIPE, 2 * PIPE))


# Failures ------------------------------------------------------------------------------------------------------------


def test_a_path_that_cannot_be_opened_is_tried_again(fed: FedWriter, path: Path) -> None:
    """It is told once; nothing is taken off the way, and all is there once it is mended."""
    deep = path / "deep" / "log.json"
    fed.start(deep)
    assert fed.hear("failed") == {"what": "open", "error": "No such file or directory"}
    fed.push(PIPE)
    assert held(fed.outer[0]) + held(fed.inner[0]) == PIPE
    deep.parent.mkdir(parents=True)
    assert fed.hear("opened") == {"path": str(deep)}
    arrives(deep, stream(0, PIPE))


@pytest.mark.parametrize("answered", [True, False])
def test_a_reopening_that_fails_keeps_the_old_file(
    fed: FedWriter, path: Path, answered: bool
) -> None:
    """Once it would succeed, the supervisor is asked for the end of a line; if it does not answer, any byte will do."""
    folder, aside = path.parent / "logs", path.parent / "aside"
    folder.mkdir()
    path, old = folder / "log.json", aside / "log.json"
    fed.start(path)
    fed.hear("opened")
    folder.rename(aside)
    fed.ask_reopen(fed.push(LINE), "SIGUSR1")
    assert fed.hear("failed") == {"what": "open", "error": "No such file or directory"}
    fed.push(9 * LINE)
    arrives(old, stream(0, 10 * LINE))
    folder.mkdir()
    assert fed.hear("gone") == {"reason": "SIGUSR1"}
    at = fed.push(10 * LINE)
    if answered:
        fed.ask_reopen(at)
        fed.push(10 * LINE)
    assert fed.hear("reopened") == {"path": str(path), "reason": "SIGUSR1"}
    assert fed.finish() == 0
    assert old.read_bytes() + path.read_bytes() == stream(0, fed.sent)
    if answered:
        assert path.read_bytes() == stream(at, fed.sent)


def test_a_write_that_fails_is_tried_again(fed: FedWriter, path: Path) -> None:
    """A file that may not grow: told once, the rest stays in the pipes; and it goes on by itself, told once."""
    fed.start(path)
    fed.hear("opened")
    size_limit(fed, 12345)
    fed.push(PIPE)
    assert fed.hear("failed") == {"what": "write", "error": "File too large"}
    assert path.read_bytes() == stream(0, 12345)
    assert held(fed.outer[0]) + held(fed.inner[0]) == PIPE - 12345
    size_limit(fed, 2 * 12345)
    arrives(path, stream(0, 2 * 12345))  # some room is not the end of it: nothing is said
    size_limit(fed, resource.RLIM_INFINITY)
    assert fed.hear("resumed") == {}
    arrives(path, stream(0, PIPE))
    assert fed.heard() == []


def test_a_full_file_that_is_deleted_is_let_go(fed: FedWriter, path: Path) -> None:
    """Its space is free only when it is closed: while writes fail, a reopening does not wait for its byte."""
    fed.start(path)
    fed.hear("opened")
    size_limit(fed, 100_000)
    fed.push(150_000)
    assert fed.hear("failed") == {"what": "write", "error": "File too large"}
    path.unlink()
    assert fed.hear("gone") == {"reason": "it was deleted", "at": "100000"}
    fed.ask_reopen(fed.sent, "it was deleted")
    assert fed.hear("reopened") == {"path": str(path), "reason": "it was deleted"}
    assert fed.hear("resumed") == {}
    arrives(path, stream(100_000, 150_000))


def test_a_line_cut_by_a_full_disk_does_not_begin_the_next_file(fed: FedWriter, path: Path) -> None:
    """Its beginning went with the file that was deleted: the rest goes too, and that is told."""
    fed.start(path)
    fed.hear("opened")
    size_limit(fed, 100_050)
    fed.push(150_000)
    assert fed.hear("failed") == {"what": "write", "error": "File too large"}
    path.unlink()
    assert fed.hear("gone") == {"reason": "it was deleted", "at": "100050"}
    fed.ask_reopen(fed.sent, "it was deleted")
    assert fed.hear("reopened") == {"path": str(path), "reason": "it was deleted"}
    assert {fed.hear_any()["kind"], fed.hear_any()["kind"]} == {"torn", "resumed"}
    arrives(path, stream(100_100, 150_000))


def test_after_a_silence_the_path_is_looked_at_first(fed: FedWriter, path: Path) -> None:
    """A file that was taken away while nothing was written gets nothing any more: the new one does."""
    fed.start(path)
    fed.hear("opened")
    fed.push(LINE)
    arrives(path, stream(0, LINE))
    begun = time.monotonic()
    wait_for(lambda: time.monotonic() > begun + RETRY, "a silence")
    with path.open("rb") as old:
        path.unlink()
        fed.push(LINE)
        told = fed.hear("gone")
        fed.ask_reopen(int(told["at"]), told["reason"])
        fed.hear("reopened")
        arrives(path, stream(LINE, 2 * LINE))
        assert old.read() == stream(0, LINE)


def test_an_answer_that_comes_too_late_is_asked_for_again(fed: FedWriter, path: Path) -> None:
    """Nothing waits for it longer than ANSWER, and no file is changed within a line."""
    fed.start(path)
    fed.hear("opened")
    fed.push(LINE)
    arrives(path, stream(0, LINE))
    with path.open("rb") as old:
        path.unlink()
        told = fed.push_until("gone")
        wait_for(
            lambda: held(fed.outer[0]) + os.fstat(old.fileno()).st_size >= fed.sent, "the rest"
        )
        fed.push(LINE)
        wait_for(lambda: os.fstat(old.fileno()).st_size == fed.sent, "the old file to go on")
        fed.ask_reopen(int(told["at"]), told["reason"])
        again = fed.push_until("gone")
        assert int(again["at"]) % LINE == 0
        fed.ask_reopen(int(again["at"]), again["reason"])
        fed.hear("reopened")
        arrives(path, stream(int(again["at"]), fed.sent))


def test_a_file_has_one_log_writer(path: Path) -> None:
    """Two would cut each other's lines: the second is refused, says why, and takes over when the first is gone."""
    with closing() as first, closing() as second:
        first.start(path)
        first.hear("opened")
        second.start(path)
        refused = second.hear("failed")
        assert refused["what"] == "open"
        assert "locked" in refused["error"]
        second.push(LINE)
        first.push(LINE)
        assert first.finish() == 0
        assert second.hear("opened") == {"path": str(path)}
        arrives(path, stream(0, LINE) * 2)


def test_a_file_that_is_locked_by_us_is_opened_anew(fed: FedWriter, path: Path) -> None:
    """SIGUSR1 without a rename: the same file, and still ours alone."""
    fed.start(path)
    fed.hear("opened")
    fed.ask_reopen(fed.push(LINE))
    fed.hear("reopened")
    fed.push(LINE)
    arrives(path, stream(0, 2 * LINE))
    with path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_full_disk(fed: FedWriter, tmp_path: Path) -> None:
    """ENOSPC on a file system of 1 MiB: told, nothing lost, and on it goes when there is room."""
    mount = 'mount -t tmpfs -o size=1m none "$0" && head -c 500000 /dev/zero > "$0/ballast" && exec "$@"'
    alone = ["unshare", "-m", "sh", "-c", mount, str(tmp_path)]
    tried = ["env", *alone, "true"]  # `env` fails where there is no `unshare`
    if subprocess.run(tried, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here: that needs root")
    fed.start(tmp_path / "log.json", before=alone)
    fed.hear("opened")
    inside = Path(f"/proc/{fed.pid}/root{tmp_path}")
    fed.push(900_000)
    assert fed.hear("failed") == {"what": "write", "error": FULL}
    full = (inside / "log.json").stat().st_size
    assert full + held(fed.outer[0]) + held(fed.inner[0]) == 900_000
    (inside / "ballast").unlink()
    assert fed.hear("resumed") == {}
    arrives(inside / "log.json", stream(0, 900_000))


def test_a_full_disk_at_the_end_of_the_stream(fed: FedWriter) -> None:
    """What cannot be written when nobody feeds it any more is given up in bounded time."""
    fed.start(Path("/dev/full"))
    fed.hear("opened")
    fed.push(LINE)
    assert fed.hear("failed") == {"what": "write", "error": FULL}
    fed.end()
    ends_in_time(fed)


def test_no_file_at_the_end_of_the_stream(fed: FedWriter, path: Path) -> None:
    """The same where the file never opened."""
    fed.start(path / "deep")
    fed.push(2 * PIPE)
    fed.hear("failed")
    fed.end()
    ends_in_time(fed)


def test_a_full_disk_after_the_supervisors_end(fed: FedWriter) -> None:
    """The channel's end is enough: whoever still holds the pipe will not mend the disk."""
    fed.start(Path("/dev/full"))
    fed.push(LINE)
    fed.hear("opened")
    fed.hear("failed")
    fed.ours.close()
    ends_in_time(fed)


def test_a_fifo_without_a_reader(fed: FedWriter, path: Path) -> None:
    """It neither holds the writer in open, nor, with a reader that does not read, in write."""
    os.mkfifo(path)
    fed.start(path)
    assert fed.hear("failed")["what"] == "open"
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fed.hear("opened")
    fed.push_until_full()
    got = os.read(reader, 1000)
    fed.end()
    ends_in_time(fed)
    while some := os.read(reader, 65536):
        got += some
    os.close(reader)
    assert got == stream(0, len(got))
    assert fed.written() == len(got)


# A file that somebody else opened ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [0, os.O_APPEND], ids=["plain", "append"])
def test_a_given_file(fed: FedWriter, path: Path, how: int) -> None:
    """As the shell's > and >> give it: written to its end, and killed without loss."""
    path.write_bytes(b"before\n")
    target = os.open(path, os.O_WRONLY | how)
    fed.start(target=target)
    assert fed.hear("opened") == {"path": None}
    fed.push(2 * PIPE)
    fed.kill()
    assert fed.written() == path.stat().st_size - len(b"before\n")
    path.rename(path.with_suffix(".1"))  # is no concern of a writer that knows no path
    fed.start(target=target)
    fed.push(PIPE)
    os.close(target)
    assert fed.finish() == 0
    assert path.with_suffix(".1").read_bytes() == b"before\n" + stream(0, 3 * PIPE)
    assert fed.heard() == [{"kind": "opened", "path": None}]


def test_where_splice_is_refused(fed: FedWriter) -> None:
    """An O_APPEND descriptor that cannot be opened anew is written to all the same, byte for byte."""
    target, reader = socket.socketpair()
    with target, reader:
        flags = fcntl.fcntl(target, fcntl.F_GETFL)
        fcntl.fcntl(target, fcntl.F_SETFL, flags | os.O_APPEND)
        fed.start(target=target.fileno())
        fed.push_until_full()
        fed.end()
        assert receive(reader, fed.sent) == stream(0, fed.sent)
        assert fed.exit_code() == 0
    assert fed.heard() == [{"kind": "opened", "path": None}]


# The program ---------------------------------------------------------------------------------------------------------


def test_texts_are_json() -> None:
    """As the json module would write them, without it."""
    for text in ("", "plain", 'a "b" \\', "\n\t\x00\x7f", "é€😀", os.fsdecode(b"/a/\xff")):
        assert json.loads(quoted(text)) == text
        assert quoted(text).isascii()


def test_a_wrong_command_line_is_refused() -> None:
    """Exit code 2, as every program's."""
    assert main([]) == main(["--path", "x"]) == 2
