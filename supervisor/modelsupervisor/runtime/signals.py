"""Signals as events: the handler counts and a byte wakes the loop; everything else happens in the loop.

A signal may arrive between any two bytecodes, so its handler may do nothing that could be under way already: no log, no lock, no
decision. The interpreter's own C handler writes the byte (`set_wakeup_fd`), which is only a hint: signals coalesce and the socket
may be full. What counts is the tally, so that a flood of one signal cannot hide another.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections import Counter
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""QUIT and HUP too: by default they would end the supervisor and leave everything that it made."""

_LEFT_ALONE = frozenset(
    {
        *(signal.SIGKILL, signal.SIGSTOP),  # not ours to take
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),  # a fault: going on would
        *(signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT),  # make it again
        *(signal.SIGPIPE, signal.SIGXFSZ),  # ignored by the interpreter
        *(signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH),  # harmless by default
    }
)
UNUSED_SIGNALS = tuple(sorted(signal.valid_signals() - _LEFT_ALONE - frozenset(STOP_SIGNALS)))
"""Signals that mean nothing here but would by default end or stop the supervisor, the real-time ones too; reported and ignored."""


class Signals:
    """The tally and the wake-up socket. `install` once, from the main thread; `restore` at the end."""

    def __init__(self) -> None:
        self._tally: Counter[int] = Counter()
        self._previous: dict[int, object] = {}
        self._mask: set[int | signal.Signals] = set()
        self._awake: socket.socket
        self._wake: socket.socket

    def install(self) -> None:
        """Take over every signal that the supervisor answers or must survive. Raises OSError."""
        self._awake, self._wake = socket.socketpair()
        self._awake.setblocking(False)
        self._wake.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        for number in (*STOP_SIGNALS, *UNUSED_SIGNALS, signal.SIGCHLD):
            self._previous[number] = signal.signal(number, self._count)
        # A mask is inherited over exec: a launcher that blocks signals would leave a supervisor that nothing can stop.
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)

    def _count(self, number: int, _: FrameType | None) -> None:
        self._tally[number] += 1

    def fileno(self) -> int:
        """The descriptor that is readable after a signal."""
        return self._awake.fileno()

    def take(self) -> Counter[int]:
        """How often each signal came since the last call."""
        with contextlib.suppress(BlockingIOError):
            # Once: until nothing is there might never end, and what is left only wakes us again
            self._awake.recv(4096)
        # One reference for another: a handler that runs before this line counts into the old tally, one after it into the new.
        # Subtracting what was read instead would lose what a handler adds between the reading and the writing.
        taken, self._tally = self._tally, Counter()
        return taken

    def restore(self) -> None:
        """Give the signals back as they were."""
        if not self._previous:
            return  # it was never installed
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        signal.set_wakeup_fd(-1)
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]
        self._awake.close()
        self._wake.close()
