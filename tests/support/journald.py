"""Reading journal entries: a reader of the protocol of our own, and a real journald in a mount namespace that ends with it.

journald needs no systemd: started by itself it makes its own sockets. It gets a /run that is a folder of the test's, so that its
socket and its files are reachable from outside while the machine's own journal, if there is one, never hears of it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.instance import wait_for

_PROGRAMS = ("/usr/lib/systemd/systemd-journald", "/lib/systemd/systemd-journald")
# Nothing from the machine, nothing to it; no limit on how much is said.
_CONFIGURATION = """[Journal]
Storage=volatile
RateLimitBurst=0
ReadKMsg=no
Audit=
ForwardToSyslog=no
ForwardToWall=no
"""


def fields_of(entry: bytes) -> Iterator[tuple[str, bytes]]:
    """The fields of an entry in the native protocol; ValueError or AssertionError where it is not that."""
    at = 0
    while at < len(entry):
        end = entry.index(b"\n", at)
        name, equals, value = entry[at:end].partition(b"=")
        at = end + 1
        if not equals:
            size = int.from_bytes(entry[at : at + 8], "little")
            value = entry[at + 8 : at + 8 + size]
            at += 8 + size + 1
            assert len(value) == size and entry[at - 1 : at] == b"\n"
        yield name.decode("ascii"), value


def fields(entry: bytes) -> dict[str, bytes]:
    """The same of an entry that has each field once."""
    listed = list(fields_of(entry))
    found = dict(listed)
    assert len(found) == len(listed)
    return found


def journald_program() -> str:
    """The path of systemd-journald; skips the test where it cannot be run as we do."""
    if os.getuid() != 0:
        pytest.skip("only root can start a journald in a namespace")
    program = next((each for each in _PROGRAMS if os.access(each, os.X_OK)), None)
    if program is None or shutil.which("journalctl") is None:
        pytest.skip("systemd's journald is not installed")
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("util-linux is not installed")
    if not Path("/etc/machine-id").is_file() or not Path("/etc/machine-id").read_text().strip():
        pytest.skip("journald wants an /etc/machine-id")
    line = ["unshare", "--mount", "mount", "--bind", "/run", "/run"]
    tried = subprocess.run(line, capture_output=True, check=False, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no mount namespace can be made here: {tried.stderr.strip()}")
    return program


class Journald:
    """One journald, whose /run is a folder under `folder`. It may be killed and started again; its journal stays."""

    def __init__(self, folder: Path) -> None:
        self._run = folder / "run"
        self._log = folder / "journald.log"
        self._program = journald_program()
        self.socket = str(self._run / "systemd" / "journal" / "socket")
        self.process: subprocess.Popen[bytes] | None = None
        settings = self._run / "systemd" / "journald.conf.d" / "test.conf"
        settings.parent.mkdir(parents=True)
        settings.write_text(_CONFIGURATION)

    def start(self) -> None:
        """Return when its socket takes connections."""
        inside = f'mount --bind "{self._run}" /run && exec "{self._program}"'
        # One process through every exec: its pid is journald's, and it dies with the test run.
        line = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "sh", "-c", inside]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(self._answers, "journald's socket")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self._log.read_text()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            return probe.connect_ex(self.socket) == 0

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it and wait for its end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def journalctl(self, *arguments: str) -> str:
        """What journalctl prints about this journal."""
        journal = self._run / "log" / "journal"
        line = ["journalctl", "--directory", str(journal), "--quiet", "--no-pager", *arguments]
        return subprocess.run(line, capture_output=True, check=True, text=True).stdout

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        """The entries with these fields; text as str, other bytes as bytes."""
        # --all: otherwise a field over 4096 bytes is shown as null.
        printed = self.journalctl("--all", "--output=json", *matches)
        return [
            {name: _value(value) for name, value in json.loads(line).items()}
            for line in printed.splitlines()
        ]

    def wait_entries(self, count: int, *matches: str) -> list[dict[str, Any]]:
        """The same, once there are `count` of them."""

        def enough() -> list[dict[str, Any]]:
            found = self.entries(*matches)
            return found if len(found) >= count else []

        return wait_for(enough, f"{count} entries {' '.join(matches)}")


def _value(value: Any) -> Any:
    """journalctl shows bytes that are not printable text as a list of numbers."""
    if isinstance(value, list) and all(isinstance(each, int) for each in value):
        return bytes(value)
    return value
