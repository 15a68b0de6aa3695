"""One system call of a running process failed on purpose, by `strace --inject`, and all the others counted.

strace is attached to a process at a moment that the test chooses, so that it sees neither an interpreter's start nor, unless it is
told to follow, any child: the n-th `openat` from then on is the same call in every run. Its own log says afterwards what it hit.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pytest

from support.instance import Instance, wait_for

ERRORS = {
    "accept4": ("EMFILE", "ENFILE"),
    "bind": ("EADDRINUSE", "EACCES"),
    "chmod": ("EPERM",),
    "clone": ("EAGAIN", "ENOMEM"),
    "clone3": ("EAGAIN", "ENOMEM"),
    "dup2": ("EBADF",),
    "dup3": ("EBADF",),
    "epoll_create1": ("EMFILE",),
    "epoll_ctl": ("ENOSPC", "ENOMEM"),
    "fallocate": ("ENOSPC", "EIO"),
    "fchmod": ("EPERM", "EIO"),
    "fcntl": ("EMFILE", "EPERM"),
    "flock": ("ENOLCK", "EINTR"),
    "fork": ("EAGAIN", "ENOMEM"),
    "linkat": ("EPERM", "ENOSPC"),
    "listen": ("EADDRINUSE",),
    "mkdir": ("EACCES", "ENOSPC"),
    "mknodat": ("ENOSPC", "EACCES"),
    "mmap": ("ENOMEM",),
    "openat": ("EMFILE", "EACCES", "ENOMEM"),
    "pidfd_open": ("EMFILE", "ENOMEM"),
    "pipe2": ("EMFILE", "ENFILE"),
    "prctl": ("EINVAL",),
    "pwrite64": ("ENOSPC", "EIO"),
    "sched_setaffinity": ("EINVAL",),
    "sendmsg": ("ENOBUFS", "ENOMEM"),
    "setsid": ("EPERM",),
    "socket": ("EMFILE", "ENOBUFS"),
    "socketpair": ("EMFILE", "ENOBUFS"),
    "unlinkat": ("EIO", "EBUSY"),
    "vfork": ("EAGAIN", "ENOMEM"),
    "waitid": ("ECHILD", "EINTR"),
    "write": ("EINTR",),
    "writev": ("EIO", "EAGAIN"),
}
"""The errors that each call is failed with, in turn: what a machine in trouble says there."""

OFTEN = 3  # calls of one site that are failed, each once

_LINE = re.compile(r"(?:(\d+) +)?(\w+)\(")
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(frozen=True)
class Call:
    """One system call: the `number`-th of its name since strace was attached, from 1, of its process. `site` stands for the line
    of code: the call with its arguments, without numbers.
    """

    name: str
    number: int
    site: str

    @property
    def error(self) -> str:
        """The name of the error that it is failed with."""
        errors = ERRORS[self.name]
        return errors[self.number % len(errors)]

    @property
    def injection(self) -> str:
        """What strace is to be told."""
        return f"{self.name}:error={self.error}:when={self.number}"

    @property
    def reason(self) -> str:
        """What people read of it."""
        return os.strerror(getattr(errno, self.error))

    def __str__(self) -> str:
        return f"{self.name} number {self.number} failed with {self.error}: {self.site}"


class Strace:
    """strace, attached to a process while the context lasts, and to what it forks where it follows; fails what `injection` says."""

    def __init__(self, pid: int, log: Path, injection: str = "", follow: bool = False) -> None:
        self._pid = pid
        self._log = log
        self._injection = injection
        self._follow = follow
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Strace:
        line = ["strace", "-qq", "-y", "-s", "48", "-o", str(self._log), "-p", str(self._pid)]
        line += ["-f"] * self._follow
        line += ["-e", "trace=" + ",".join(f"?{name}" for name in ERRORS)]
        if self._injection:
            line += ["-e", f"inject={self._injection}"]
        self._process = subprocess.Popen(line, stderr=subprocess.DEVNULL)
        wait_for(lambda: is_traced(self._pid) or self._process.poll() is not None, "the tracer")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()  # it lets go of the process
        self._process.wait()

    def _lines(self) -> list[str]:
        return self._log.read_text(errors="replace").splitlines() if self._log.exists() else []

    def calls(self) -> list[Call]:
        """What was called so far, in order."""
        counts: Counter[tuple[str | None, str]] = Counter()
        calls = []
        for line in self._lines():
            found = _LINE.match(line)
            if found is not None and found[2] in ERRORS:
                counts[found[1], found[2]] += 1
                calls.append(Call(found[2], counts[found[1], found[2]], _site(line)))
        return calls

    @property
    def hit(self) -> bool:
        """A call was failed."""
        return any(line.endswith("(INJECTED)") for line in self._lines())


def _site(line: str) -> str:
    call = line[line.index(line.lstrip("0123456789 ")) :].rpartition(" = ")[0] or line
    return _NUMBERS.sub("N", re.sub(r"/tmp/\w+/\d+", "", call)).strip()


def chosen(calls: Iterable[Call]) -> list[Call]:
    """The calls that are worth failing: each site OFTEN times at most, and of a table in /sys, which may be missing, one.

    Maps of memory that is nobody else's are the allocator's.
    """
    taken: Counter[str] = Counter()
    worth = []
    for call in dict.fromkeys(calls):
        private = call.name == "mmap" and "MAP_SHARED" not in call.site
        site = "/sys" if '"/sys/' in call.site else call.site
        most = 1 if site == "/sys" else OFTEN
        if not private and taken[site] < most:
            taken[site] += 1
            worth.append(call)
    return worth


def every_fork(error: str) -> str:
    """The injection that fails each fork, by whatever call."""
    return f"?clone,?clone3,?fork,?vfork:error={error}"


def is_traced(pid: int) -> bool:
    """True while somebody traces the process, or where it is gone."""
    try:
        return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@functools.lru_cache(maxsize=1)
def need_strace() -> None:
    """Skip the test where there is no strace, or no tracing is permitted."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with Strace(sleeper.pid, Path(os.devnull)):
            if not is_traced(sleeper.pid):
                pytest.skip("strace may not trace processes of its own user here")
    finally:
        sleeper.kill()
        sleeper.communicate()


def launch_marked(instance: Instance) -> Instance:
    """Start the supervisor up to its mark: everything imported, nothing done; it goes on once it is traced."""
    mark = instance.folder / "imported"
    mark.unlink(missing_ok=True)
    program = Path(__file__).with_name("marked_start.py")
    instance.launch(command=[sys.executable, str(program), "start", "-c", str(instance.config)])
    wait_for(lambda: mark.exists() or instance.over, "everything to be imported")
    return instance
