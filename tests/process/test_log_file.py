"""The log file in trouble, while a worker floods it: a disk that is full, slow or stuck, a file that is taken away, a writer
that is killed. Inference and standard output go on, everything is accounted for, and everything resumes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelsupervisor.log.writer import RETRY
from support.disks import block_disk, memory_disk
from support.flood import (
    Flooded,
    check_complete,
    check_gaps,
    check_whole,
    events_in,
    file_writer,
    flooding,
    lines_in,
    log_writers,
    said,
)
from support.instance import Event, Instance, marked_processes, state_of, wait_for
from support.unprivileged import launch_as_nobody

Make = Callable[..., Instance]

STOP_LIMIT = 6.0  # seconds for a stop with a sink that takes nothing: LAST_FLUSH is 2
NOT_TAKING = "it does not take what is written"
STALL = [("log.stalled", NOT_TAKING), ("log.resumed", NOT_TAKING)]
FULL = "it cannot be written: No space left on device"
MIB = 1024 * 1024


def configured(made: Instance, path: Path | str | None = None, supervisor: str = "") -> Path:
    """Configure a log file; standard output, which `made.events` reads, is the other sink. Returns the file's path."""
    file = Path(path or made.folder / "file.jsonl")
    flooding(made, f"log_file = {file}\n{supervisor}")
    return file


def stop_in_time(made: Instance) -> None:
    """TERM: the end comes in bounded time, whoever takes nothing."""
    begun = time.monotonic()
    assert made.stop() == 0
    assert time.monotonic() - begun < STOP_LIMIT


def check_both(made: Instance, copy: list[Event], lines: int) -> list[tuple[str, str]]:
    """Standard output has everything, the file's copy is missing what it says it is; returns what was said of the file."""
    assert check_gaps(copy, "file", lines) > 0
    told = said(check_complete(made.log, lines), "file")
    assert said(copy, "file") == told
    return told


# -- a disk that is slow ------------------------------------------------------------------------------------------------------

MOMENTS = [1.5, pytest.param(10.0, marks=pytest.mark.slow)]


@pytest.mark.parametrize("seconds", MOMENTS)
def test_a_writer_that_is_stopped_for_a_while(instance: Make, seconds: float) -> None:
    """It is as if a write took so long: the pipes and the buffer fill, the rest is counted, and then it goes on."""
    made = instance()
    file = configured(made)
    made.start()
    with Flooded(made) as flooded:
        writer = file_writer(made, file)
        os.kill(writer, signal.SIGSTOP)
        over = time.monotonic() + seconds
        flooded.wait_dropped("file")
        while time.monotonic() < over:
            flooded.goes_on()
        assert flooded.account("file")["state"] == "stalled"
        os.kill(writer, signal.SIGCONT)
        flooded.wait_open("file")
        flooded.goes_on()
        flooded.stop()
    stop_in_time(made)
    assert check_both(made, events_in(file), flooded.lines) == STALL


@contextlib.contextmanager
def slowed(pid: int, seconds: float) -> Iterator[None]:
    """Every system call by which a process moves bytes takes so long; skips where that cannot be had."""
    if shutil.which("strace") is None:
        pytest.skip("there is no strace")
    calls = "splice,write,writev"
    inject = f"inject={calls}:delay_enter={int(seconds * 1e6)}"
    line = ["strace", "-f", "-qq", "-e", f"trace={calls}", "-e", inject, "-p", str(pid)]
    with subprocess.Popen(line, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None

        def attached() -> bool:
            status = Path(f"/proc/{pid}/status").read_text()
            return f"TracerPid:\t{strace.pid}\n" in status or strace.poll() is not None

        wait_for(attached, "strace to attach")
        if strace.poll() is not None:
            pytest.skip(f"strace may not attach: {strace.stderr.read().decode().strip()}")
        try:
            yield
        finally:
            strace.terminate()
            strace.stderr.read()


@pytest.mark.parametrize("seconds", MOMENTS)
def test_writes_that_take_long(instance: Make, seconds: float) -> None:
    """Each call of the log writer is delayed: it stops nobody, and goes on at full speed afterwards."""
    made = instance()
    file = configured(made)
    made.start()
    with Flooded(made) as flooded:
        with slowed(file_writer(made, file), seconds):
            over = time.monotonic() + seconds
            flooded.wait_dropped("file")
            while time.monotonic() < over:
                flooded.goes_on()
        flooded.wait_open("file")
        flooded.stop()
    stop_in_time(made)
    told = check_both(made, events_in(file), flooded.lines)
    assert told == STALL * (len(told) // 2)


def test_a_disk_that_is_stuck(instance: Make) -> None:
    """A write that waits in the kernel, where no signal reaches it: nobody waits with it."""
    made = instance()
    with block_disk(made.folder / "disk", 64 * MIB) as disk:
        configured(made, disk.folder / "file.jsonl")
        disk.start(made)
        with Flooded(made) as flooded:
            writer = file_writer(made, disk.folder / "file.jsonl")
            disk.freeze()
            flooded.wait_dropped("file")
            assert state_of(writer) == "D"
            flooded.goes_on()
            disk.thaw()
            flooded.wait_open("file")
            flooded.stop()
        stop_in_time(made)
        assert check_both(made, events_in(disk.seen("file.jsonl")), flooded.lines) == STALL


def test_the_end_does_not_wait_for_a_stuck_disk(instance: Make) -> None:
    """The stop is bounded, and standard output says what the file did not get; thawed, the disk has no broken writer on it."""
    made = instance("log.closed")
    with block_disk(made.folder / "disk", 64 * MIB) as disk:
        configured(made, disk.folder / "file.jsonl")
        disk.start(made)
        with Flooded(made) as flooded:
            disk.freeze()
            flooded.wait_dropped("file")
            flooded.stop()
        stop_in_time(made)
        disk.thaw()
        wait_for(lambda: not marked_processes(made.mark), "the writer to be gone")
    whole = check_complete(made.log, flooded.lines)
    (closed,) = [event for event in whole if event["event"] == "log.closed"]
    assert closed["sink"] == "file"
    assert "were not written in time" in closed["reason"]


# -- a disk that is full ------------------------------------------------------------------------------------------------------


def test_a_full_disk(instance: Make) -> None:
    """Why is said once; what waits is kept; with room again it goes on where it stopped, in the middle of a line too."""
    made = instance("log.failed")
    with memory_disk(made.folder / "disk", 64 * MIB) as disk:
        configured(made, disk.folder / "file.jsonl")
        disk.start(made)
        filling = disk.seen("filling")
        filling.write_bytes(bytes(62 * MIB))
        with Flooded(made) as flooded:
            flooded.wait_dropped("file")
            account = flooded.account("file")
            assert (account["state"], account["reason"]) == ("stalled", FULL)
            flooded.goes_on()
            filling.unlink()
            flooded.wait_open("file")
            flooded.goes_on()
            flooded.stop()
        stop_in_time(made)
        told = check_both(made, events_in(disk.seen("file.jsonl")), flooded.lines)
    assert told == [("log.failed", FULL), ("log.stalled", FULL), ("log.resumed", FULL)]


def test_a_disk_that_is_full_for_a_moment(instance: Make) -> None:
    """As long as the pipes and the buffer hold what comes meanwhile, nothing is lost."""
    made = instance("log.failed")
    with memory_disk(made.folder / "disk", 64 * MIB) as disk:
        configured(made, disk.folder / "file.jsonl")
        disk.start(made)
        filling = disk.seen("filling")
        with Flooded(made, rate=100_000) as flooded:
            with contextlib.suppress(OSError), filling.open("wb") as file:
                while True:
                    file.write(bytes(MIB))
            made.wait_event("log.failed")
            filling.unlink()
            made.wait_event("log.resumed")
            flooded.stop()
        stop_in_time(made)
        check_complete(disk.seen("file.jsonl"), flooded.lines)
    told = said(check_complete(made.log, flooded.lines), "file")
    assert told == [("log.failed", FULL), ("log.resumed", FULL)]


def test_a_full_device(instance: Make) -> None:
    """/dev/full as the log file never takes anything; nobody waits for it, and the end does not."""
    made = instance("log.failed", "log.closed")
    configured(made, "/dev/full")
    made.start()
    with Flooded(made) as flooded:
        flooded.wait_dropped("file")
        flooded.goes_on()
        flooded.stop()
        assert flooded.account("file")["reason"] == FULL
    stop_in_time(made)
    told = said(check_complete(made.log, flooded.lines), "file")
    assert told[:2] == [("log.failed", FULL), ("log.stalled", FULL)]
    assert [event for event, _ in told[2:]] == ["log.closed"]


# -- a file that is taken away ------------------------------------------------------------------------------------------------


def test_a_file_that_is_renamed(instance: Make) -> None:
    """Within about a second the path has a new file; each event is whole, in one of the two."""
    made = instance()
    file = configured(made)
    made.start()
    with Flooded(made) as flooded:
        away = file.rename(made.folder / "file.1")
        made.wait_event("log.reopened")
        flooded.goes_on()
        flooded.stop()
    stop_in_time(made)
    assert said(check_complete(made.log, flooded.lines), "file") == [
        ("log.reopened", "it was renamed")
    ]
    check_files([away, file], flooded.lines)
    assert os.stat(file).st_mode & 0o777 == 0o640


def test_a_file_that_is_deleted(instance: Make) -> None:
    """Within about a second there is a new one; each event is whole, in one of the two."""
    made = instance()
    file = configured(made)
    made.start()
    with file.open("rb") as deleted:
        with Flooded(made) as flooded:
            file.unlink()
            made.wait_event("log.reopened")
            flooded.goes_on()
            flooded.stop()
        stop_in_time(made)
        check_files([Path(f"/proc/self/fd/{deleted.fileno()}"), file], flooded.lines)
    told = said(check_complete(made.log, flooded.lines), "file")
    assert told == [("log.reopened", "it was deleted")]


def test_a_file_that_is_deleted_in_a_silence(instance: Make) -> None:
    """The next event, which may be the only one of the night, is in the new file."""
    made = instance("worker.exited")
    file = configured(made)
    made.start()
    wait_for(lambda: b"supervisor.ready" in file.read_bytes(), "the start to be written")
    begun = time.monotonic()
    wait_for(lambda: time.monotonic() > begun + RETRY, "a silence")
    file.unlink()
    os.kill(made.worker()["pid"], signal.SIGKILL)
    made.wait_event("log.reopened", reason="it was deleted")
    made.wait_event("worker.ready", generation=2)
    stop_in_time(made)
    first = events_in(file)[0]
    assert (first["event"], first["signal"]) == ("worker.exited", "SIGKILL")


def test_two_supervisors_and_one_file(instance: Make) -> None:
    """The second is refused the file, says why, serves all the same, and has it when the first is gone."""
    first, second = instance(), instance("log.failed")
    file = configured(first)
    first.start()
    wait_for(lambda: b"supervisor.ready" in file.read_bytes(), "the start to be written")
    flooding(second, f"log_file = {file}")
    second.start()
    refused = second.wait_event("log.failed", sink="file")
    assert "locked" in refused["reason"]
    stop_in_time(first)
    second.wait_event("log.opened", sink="file")
    stop_in_time(second)
    seqs = [event["seq"] for event in events_in(file)]
    taken_over = seqs.index(1, 1)
    assert seqs == [*range(1, taken_over + 1), *range(1, len(seqs) - taken_over + 1)]


def test_a_file_that_is_standard_output_already(instance: Make) -> None:
    """Each event would be in it twice: nothing is started, and it is said why."""
    made = instance()
    flooding(made, f"log_file = {made.log}")
    made.launch()
    assert made.wait() == 78
    complaint = (made.folder / "stderr").read_text()
    assert f"log_file = {made.log}: standard output goes there already" in complaint


def test_nobody_takes_the_log(instance: Make) -> None:
    """With the last sink failing, one line on standard error, here not a file, says what fails."""
    made = instance("log.failed")
    flooding(made, "log_file = /dev/full\nlog_to = none")
    errors, kept = made.folder / "errors", made.folder / "kept"
    os.mkfifo(errors)
    with kept.open("wb") as file, subprocess.Popen(["cat", errors], stdout=file):
        start = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(made.config)]
        made.launch(command=["sh", "-c", f'exec "$@" 2>"{errors}"', "sh", *start])
        complaint = (
            "modelsupervisor: nobody takes the log, and workers go on; file: it cannot be written"
        )
        wait_for(lambda: complaint in kept.read_text(), "the complaint")
        wait_for(lambda: (made.run_dir / "control.sock").exists(), "the control socket")
        assert made.stop() == 0
    assert kept.read_text().count("nobody takes the log") == 1


def check_files(files: list[Path], lines: int) -> None:
    """Files in the order in which they were written have every event once, none of them cut."""
    events = events_in(*files)
    check_whole(events)
    assert lines_in(events) == lines
    assert all(path.stat().st_size for path in files)


def test_rotation_by_signal(instance: Make) -> None:
    """Renamed and SIGUSR1, ten times under flood: each event is whole, in exactly one of the files, none lost, none doubled."""
    made = instance()
    file = configured(made)
    made.start()
    files = []
    with Flooded(made) as flooded:
        for number in range(10):
            files.append(file.rename(made.folder / f"file.{number}"))
            made.signal(signal.SIGUSR1)
            wait_for(file.exists, "a new file")
            flooded.pinger.wait_answers(5)
        flooded.stop()
    stop_in_time(made)
    told = said(check_complete(made.log, flooded.lines), "file")
    assert told.count(("log.reopened", "SIGUSR1")) == 10
    check_files([*files, file], flooded.lines)


def test_signals_without_a_rotation(instance: Make) -> None:
    """SIGUSR1 where nothing was moved: the same file is opened again and gone on with."""
    made = instance()
    file = configured(made)
    made.start()
    with Flooded(made) as flooded:
        for number in range(1, 6):
            made.signal(signal.SIGUSR1)
            made.wait_event("log.reopened", count=number)
        flooded.stop()
    stop_in_time(made)
    check_complete(file, flooded.lines)
    check_complete(made.log, flooded.lines)


def test_the_logrotate_example(instance: Make) -> None:
    """conf/logrotate, with its paths replaced, by logrotate where there is one, else by what its script says."""
    made = instance()
    folder = made.folder / "log"
    folder.mkdir(mode=0o755)
    file = configured(made, folder / "digits.jsonl")
    made.start()
    example = Path(__file__).parents[2] / "conf" / "logrotate" / "modelsupervisor"
    text = example.read_text()
    for installed, ours in (
        ("/var/log/modelsupervisor", folder),
        ("/run/modelsupervisor", made.run_dir),
    ):
        assert installed in text
        text = text.replace(installed, str(ours))
    with Flooded(made) as flooded:
        rotate(text, file, made.folder)
        made.wait_event("log.reopened", reason="SIGUSR1")
        flooded.goes_on()
        flooded.stop()
    stop_in_time(made)
    (away,) = set(folder.iterdir()) - {file}
    check_files([away, file], flooded.lines)
    check_complete(made.log, flooded.lines)


def rotate(text: str, file: Path, folder: Path) -> None:
    """One rotation as the configuration says."""
    logrotate = shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if logrotate is not None:
        config = folder / "logrotate.conf"
        config.write_text(text)
        config.chmod(0o644)
        line = [logrotate, "--force", "--state", str(folder / "logrotate.state"), str(config)]
    else:
        file.rename(file.with_name(file.name + "-20260101"))
        script = text.partition("postrotate\n")[2].partition("endscript")[0]
        line = ["sh", "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_goes_and_comes_back(instance: Make) -> None:
    """It is said that no new file can be made; the old one is gone on with until there is a place for a new one."""
    made = instance("log.failed")
    folder = made.folder / "log"
    folder.mkdir()
    file = configured(made, folder / "file.jsonl")
    made.start()
    away = made.folder / "away"
    with Flooded(made) as flooded:
        folder.rename(away)
        made.wait_event("log.failed")
        flooded.goes_on()
        folder.mkdir()
        made.wait_event("log.reopened")
        flooded.goes_on()
        flooded.stop()
    stop_in_time(made)
    reason = "it cannot be opened: No such file or directory"
    told = said(check_complete(made.log, flooded.lines), "file")
    assert sorted(told) == sorted(
        [("log.failed", reason), ("log.resumed", reason), ("log.reopened", "it was renamed")]
    )
    check_files([away / "file.jsonl", file], flooded.lines)


def test_a_folder_where_nothing_may_be_made_for_a_while(instance: Make) -> None:
    """A rotation that cannot be carried out is said, and is carried out once it can be; nothing is lost meanwhile."""
    made = instance("log.failed")
    folder = made.folder / "log"
    folder.mkdir()
    folder.chmod(0o777)
    file = configured(made, folder / "file.jsonl")
    launch_as_nobody(made).wait_event("supervisor.ready")
    with Flooded(made) as flooded:
        folder.chmod(0o755)
        away = file.rename(folder / "file.1")
        made.signal(signal.SIGUSR1)
        made.wait_event("log.failed", reason="it cannot be opened: Permission denied")
        flooded.goes_on()
        folder.chmod(0o777)
        made.wait_event("log.reopened", reason="SIGUSR1")
        flooded.stop()
    stop_in_time(made)
    check_files([away, file], flooded.lines)
    check_complete(made.log, flooded.lines)


# -- a log writer that is killed ----------------------------------------------------------------------------------------------


def test_a_writer_that_is_killed_again_and_again(instance: Make) -> None:
    """Each end is told, the next writer goes on at the very byte: nothing is lost, nothing doubled, no line is cut."""
    made = instance()
    file = configured(made)
    made.start()
    with Flooded(made, rate=300_000) as flooded:
        for number in range(1, 4):
            os.kill(file_writer(made, file), signal.SIGKILL)
            made.wait_event("log.resumed", count=number)
            flooded.goes_on()
        flooded.stop()
        flooded.wait_open("file")
    stop_in_time(made)
    gone = [("log.writer_exited", "killed by SIGKILL"), ("log.resumed", "its log writer is gone")]
    assert said(check_complete(made.log, flooded.lines), "file") == 3 * gone
    check_complete(file, flooded.lines)


def test_a_writer_that_is_killed_while_everything_waits_for_it(instance: Make) -> None:
    """What the pipes and the buffer hold is written by its successor; what they could not hold is counted."""
    made = instance()
    file = configured(made)
    made.start()
    with Flooded(made) as flooded:
        writer = file_writer(made, file)
        os.kill(writer, signal.SIGSTOP)
        flooded.wait_dropped("file")
        os.kill(writer, signal.SIGKILL)
        flooded.wait_open("file")
        flooded.stop()
    stop_in_time(made)
    told = check_both(made, events_in(file), flooded.lines)
    assert told[0] == ("log.stalled", NOT_TAKING)
    assert ("log.writer_exited", "killed by SIGKILL") in told


def test_a_writer_that_is_killed_at_the_end(instance: Make) -> None:
    """Dead when the supervisor ends, it gets a successor for what is left: the file has the last event."""
    made = instance()
    file = configured(made)
    made.start()
    with Flooded(made) as flooded:
        flooded.stop()
    writer = file_writer(made, file)
    os.kill(writer, signal.SIGSTOP)
    made.cli("restart", "echo/0", "-c", str(made.config))
    os.kill(writer, signal.SIGKILL)
    made.signal(signal.SIGTERM)
    assert made.wait() == 0
    whole = check_complete(file, flooded.lines)
    assert "supervisor.stopped" in [event["event"] for event in whole]


@pytest.mark.parametrize("which", ["stdout", "file"])
def test_the_end_does_not_wait_for_a_stopped_writer(instance: Make, which: str) -> None:
    """The stop is bounded and leaves no process; the other sink has everything, and is told what this one did not get."""
    made = instance("log.closed")
    file = configured(made)
    copy = made.log
    made.start()
    with Flooded(made) as flooded:
        writers = {"file": file_writer(made, file)}
        (writers["stdout"],) = set(log_writers(made)) - {writers["file"]}
        made.log = copy if which == "file" else file
        os.kill(writers[which], signal.SIGSTOP)
        flooded.wait_dropped(which)
        flooded.stop()
    stop_in_time(made)
    assert state_of(writers[which]) is None
    whole = check_complete(made.log, flooded.lines)
    assert [event for event, _ in said(whole, which)] == ["log.stalled", "log.closed"]
