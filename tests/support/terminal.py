"""A terminal with a supervisor in its foreground: a pseudo-terminal whose other side the test holds.

The supervisor is the leader of a session of its own with the terminal as its controlling one, as under a terminal emulator or
ssh; or, with a shell before it, a job of that shell's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading

from support.instance import Instance, environment, wait_for

_STEER = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
_COLOR = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The test's side. What is shown is read all the while, as an emulator does, and kept."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.shown = b""
        self._master = -1
        self._enough, self._stop = os.pipe()
        self._reader = threading.Thread(target=self._read)

    def start(
        self, line: list[str] | None = None, *, attributes: int = 0, **environ: str
    ) -> Terminal:
        """Run a command line (default: `start`) on the terminal; `attributes` are local modes to add, such as TOSTOP."""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        modes = termios.tcgetattr(slave)
        modes[3] |= attributes
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        instance = self.instance
        start = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(instance.config)]
        instance.process = subprocess.Popen(
            [sys.executable, "-c", _STEER, *(line or start)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=environment(instance.mark, TERM="xterm", **environ),
            cwd=instance.folder,
        )
        os.close(slave)
        self._reader.start()
        return self

    def _read(self) -> None:
        while True:
            ready, _, _ = select.select([self._master, self._enough], [], [])
            if self._enough in ready:
                return
            try:
                chunk = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the other side open any more
                return
            self.shown += chunk

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    @property
    def text(self) -> str:
        """What was shown, without colours and movements."""
        return _COLOR.sub(b"", self.shown).decode(errors="replace")

    @property
    def screen(self) -> list[str]:
        """The lines as they stand on the screen: of one that was taken away and written again, the last state."""
        lines = self.shown.split(b"\n")
        return [
            _COLOR.sub(b"", line.rpartition(b"\x1b[2K")[2]).decode(errors="replace").strip()
            for line in lines
        ]

    def wait_text(self, text: str, count: int = 1) -> None:
        """Wait until a text was shown so many times."""
        try:
            wait_for(lambda: self.text.count(text) >= count, f"{text!r} on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None

    def hang_up(self) -> None:
        """Take the terminal away, as an emulator does that is closed."""
        self._end_reading()
        os.close(self._master)
        self._master = -1

    def _end_reading(self) -> None:
        if self._stop >= 0:
            os.close(self._stop)
            self._reader.join()
            os.close(self._enough)
            self._stop = -1

    def close(self) -> None:
        """End what still runs on it, and close."""
        process = self.instance.process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        self._end_reading()
        if self._master >= 0:
            os.close(self._master)
