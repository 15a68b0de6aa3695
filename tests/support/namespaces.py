"""A supervisor in a pid namespace of its own, as in a container, and strangers beside it there.

The instance's process is then a wrapper outside, which passes signals on and ends as the namespace's PID 1 does; killed, it takes
the namespace along. Pids in the log are those of the namespace. What needs privileges that are not there skips the test.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.instance import LIMIT, Instance, environment, wait_for

# argv: a shell command to run inside first, whether a small init is PID 1 (else the program itself is), and the program
_WRAPPER = """
import ctypes, os, signal, subprocess, sys
NEWNS, NEWPID = 0x20000, 0x20000000
libc = ctypes.CDLL(None, use_errno=True)
def check(result):
    if result != 0:
        sys.exit("namespace: " + os.strerror(ctypes.get_errno()))
check(libc.unshare(NEWNS | NEWPID))
child = os.fork()
if child == 0:
    libc.prctl(1, 9, 0, 0, 0)  # PDEATHSIG: SIGKILL
    check(libc.mount(None, b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
    check(libc.mount(b"proc", b"/proc", b"proc", 0, None))
    subprocess.run(sys.argv[1], shell=True, check=True)
    if sys.argv[2] == "init":
        program = os.fork()
        if program:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda taken, _: os.kill(program, taken))
            while True:
                pid, status = os.wait()
                if pid == program:
                    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.execv(sys.argv[3], sys.argv[3:])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda taken, _: os.kill(child, taken))
_, status = os.waitpid(child, 0)
os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
"""


@functools.lru_cache(maxsize=1)
def require_namespaces() -> None:
    """Skip the test where a pid namespace cannot be had."""
    line = [sys.executable, "-c", _WRAPPER, ":", "itself", sys.executable, "-c", "pass"]
    tried = subprocess.run(line, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"a pid namespace cannot be had here: {tried.stderr.strip()[-200:]}")


def launch_in_namespace(instance: Instance, first: str = ":", *, init: bool = False) -> Instance:
    """Start the instance in a new pid namespace, as PID 1 or, with `init`, beside a small one; `first` is run in there before."""
    require_namespaces()
    start = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(instance.config)]
    line = [sys.executable, "-c", _WRAPPER, first, "init" if init else "itself", *start]
    return instance.launch(command=line)


def first_process(instance: Instance) -> int:
    """The pid, out here, of the namespace's PID 1."""
    children = Path(f"/proc/{instance.pid}/task/{instance.pid}/children")
    (pid,) = wait_for(lambda: children.read_text().split(), "the namespace's first process")
    return int(pid)


@contextmanager
def inside(instance: Instance, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in the instance's namespace, no child of anybody there; its standard input and output are pipes."""
    line = ["nsenter", "-t", str(first_process(instance)), "-p", "-m", "--", sys.executable, "-c"]
    with subprocess.Popen(
        [*line, program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment("stranger-" + instance.mark),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line that a program says."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, f"it ended: {process.wait(LIMIT)}"
    return line.strip()


def pids_inside(instance: Instance) -> dict[int, int]:
    """The processes of the namespace: pid in there to pid out here."""
    first = first_process(instance)
    space = os.readlink(f"/proc/{first}/ns/pid")
    found = {}
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/ns/pid") == space:
                status = Path(f"/proc/{name}/status").read_text()
                inner = next(row for row in status.splitlines() if row.startswith("NSpid:"))
                found[int(inner.split()[-1])] = int(name)
        except OSError:
            continue
    return found
