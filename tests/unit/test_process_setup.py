"""modelworker/process.py: what a process does to itself, in forked children that report and exit."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelworker import process

from support.instance import state_of, wait_for

LIBC = ctypes.CDLL(None, use_errno=True)


def in_child(work: Callable[[], Any]) -> Any:
    """Run a function in a forked child; its result, by way of JSON."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the parent is told
            os.write(writing, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
        os._exit(0)
    os.close(writing)
    told = b""
    while chunk := os.read(reading, 65536):
        told += chunk
    os.close(reading)
    os.waitpid(pid, 0)
    return json.loads(told)


def test_dying_with_the_parent(tmp_path: Path) -> None:
    """The kernel kills it when its parent dies, busy in C as it may be."""
    note = tmp_path / "pid"
    parent = os.fork()
    if parent == 0:
        child = os.fork()
        if child == 0:
            process.die_with_parent(LIBC, os.getppid())
            aside = note.with_suffix(".new")
            aside.write_text(str(os.getpid()))
            aside.rename(note)
            ctypes.PyDLL(None).sleep(1000)
        time.sleep(1000)
    wait_for(note.exists, "the child to be set up")
    child = int(note.read_text())
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_for(lambda: state_of(child) in (None, "Z"), "the child to die with it", 5)


def test_another_parent_than_the_supervisor() -> None:
    """Who was orphaned before the death signal was set is told so."""
    told = in_child(lambda: process.die_with_parent(LIBC, 1 if os.getppid() != 1 else 2))
    assert told["error"].startswith("Orphaned: parent is ")


def test_waiting_for_the_new_parent() -> None:
    """It returns when the supervisor is the parent already; a third one, or a wait too long, is Orphaned."""
    supervisor = os.getpid()
    assert in_child(lambda: process.await_reparenting(-1, supervisor)) is None
    assert "Orphaned" in in_child(lambda: process.await_reparenting(-1, -2))["error"]
    begun = time.monotonic()
    told = in_child(lambda: process.await_reparenting(supervisor, -2, limit=0.1))
    assert "Orphaned" in told["error"]
    assert 0.1 <= time.monotonic() - begun < 5


def masks() -> dict[str, int]:
    """The signal masks of this process, as the kernel has them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":\t") for line in lines if line.startswith("Sig") and "/" not in line)
    return {name: int(mask, 16) for name, mask in found.items()}


def test_default_signals() -> None:
    """Whatever was blocked, ignored or handled is not any more, but PIPE and XFSZ are ignored, as CPython has them."""

    def work() -> dict[str, int]:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.signal(signal.SIGRTMIN, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        process.default_signals()
        return masks()

    told = in_child(work)
    assert told["SigBlk"] == 0
    ignored = {number for number in range(1, 65) if told["SigIgn"] >> (number - 1) & 1}
    ignored -= {32, 33}  # reserved by the C library, which lets nobody set them
    assert ignored == {signal.SIGPIPE, signal.SIGXFSZ}
    caught = {number for number in range(1, 65) if told["SigCgt"] >> (number - 1) & 1}
    assert signal.SIGUSR1 not in caught and signal.SIGINT not in caught


def test_no_core_files() -> None:
    """The soft limit is nothing; the hard one is left for who wants to raise it."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]

    def work() -> list[int]:
        process.limit_core_files()
        return list(resource.getrlimit(resource.RLIMIT_CORE))

    assert in_child(work) == [0, hard]


def test_lines_are_in_the_kernel_when_they_end() -> None:
    """Python's and C's output survives SIGKILL line by line, on a pipe too."""
    code = (
        "import ctypes, os, signal, sys\n"
        "from modelworker import process\n"
        "libc = ctypes.CDLL(None)\n"
        "process.line_buffer(libc)\n"
        "print('from python')\n"
        "libc.printf(b'from c %d\\n', 1)\n"
        "print('not ended', end='')\n"
        "print('\\udcff', file=sys.stderr)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    environ.pop("PYTHONUNBUFFERED", None)
    told = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, check=False
    )
    assert told.stdout == b"from python\nfrom c 1\n"
    assert told.stderr == b"\\udcff\n"


def test_pinning_binds_every_thread() -> None:
    """Threads that a fork handler started carry the template's mask otherwise; None leaves them all."""
    cpus = sorted(os.sched_getaffinity(0))

    def work() -> list[Any]:
        started = threading.Event()
        threading.Thread(target=lambda: (started.set(), time.sleep(1000)), daemon=True).start()
        started.wait()
        told = process.pin([cpus[0]])
        tasks = os.listdir("/proc/self/task")
        masks = [sorted(os.sched_getaffinity(int(task))) for task in tasks]
        return [told, len(tasks), masks, process.pin(None)]

    told, tasks, masks, left = in_child(work)
    assert tasks >= 2  # a library of another test may have threads that it starts after a fork
    assert [told, masks, left] == [[cpus[0]], [[cpus[0]]] * tasks, [cpus[0]]]


def test_a_cpu_that_is_not_there() -> None:
    """Is the caller's to report."""
    assert "OSError" in in_child(lambda: process.pin([1000000]))["error"]


def test_flushing_what_is_broken() -> None:
    """A handler that closed or replaced its stdout does not break the exit."""

    def work() -> str:
        sys.stdout = None  # type: ignore[assignment]
        process.flush_output()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        sys.stdout.close()
        process.flush_output()
        return "lived"

    assert in_child(work) == "lived"


@pytest.mark.parametrize(
    ("argument", "code"), [(None, 0), (0, 0), (7, 7), (256 + 3, 3), ("a text", 1), (True, 1)]
)
def test_leaving_as_the_handler_asked(argument: object, code: int) -> None:
    """sys.exit's argument means what it means to Python itself."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        process.leave(SystemExit(argument))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
