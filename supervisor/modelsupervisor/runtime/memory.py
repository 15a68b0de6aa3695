"""How much memory the workers use, for `status`; read sparingly, because the loop waits for it.

RSS is one number in /proc/PID/statm, some ten microseconds, and always fresh. PSS has the kernel walk through every page of a
process: 0.2 ms for a small one, 4 to 5 ms with a large model [measured]. So a reading is kept for PSS_KEPT seconds, and all looks
within PSS_WINDOW together spend PSS_BUDGET on new ones, of the processes that have none first and then of the oldest; the others
are shown as they were last seen, or not at all. Who asks again a moment later sees more of them. Nothing is read unasked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

import psutil

from modelsupervisor.core.states import SlotKey
from modelsupervisor.runtime.edge import Edge

PSS_KEPT = 10.0  # seconds
PSS_WINDOW = 0.1  # seconds
PSS_BUDGET = 0.010  # seconds of reading in a window; the last reading may go beyond it
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NEVER = float("-inf")


class Living(NamedTuple):
    """A process that is looked at: by its generation too, since another may have its pid a moment later."""

    key: SlotKey
    generation: int
    pid: int


class _Seen(NamedTuple):
    generation: int
    at: float
    pss: int | None


class MemoryReadings:
    """The last PSS in each slot, and the time that reading it may take."""

    def __init__(self) -> None:
        self._seen: dict[SlotKey, _Seen] = {}
        self._window = _NEVER
        self._spent = 0.0

    def refresh(self, looked_at: Iterable[Living]) -> None:
        """Read the PSS of those whose turn it is, within the budget."""
        now = Edge.now()
        if now - self._window >= PSS_WINDOW:
            self._window, self._spent = now, 0.0
        ages = [(self._last(each.key, each.generation).at, each) for each in looked_at]
        due = [(at, each) for at, each in ages if now - at > PSS_KEPT]
        due.sort(key=lambda entry: entry[0])
        for _, each in due:
            if self._spent >= PSS_BUDGET:
                return
            begun = Edge.now()
            self._seen[each.key] = _Seen(each.generation, begun, read_pss(each.pid))
            self._spent += Edge.now() - begun

    def _last(self, key: SlotKey, generation: int) -> _Seen:
        seen = self._seen.get(key)
        if seen is None or seen.generation != generation:
            return _Seen(generation, _NEVER, None)
        return seen

    def pss(self, key: SlotKey, generation: int) -> int | None:
        """Bytes as last seen; None where they were not, or cannot be."""
        return self._last(key, generation).pss


def read_rss(pid: int) -> int | None:
    """The resident bytes of a process; None where it is gone."""
    try:
        statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(statm, 256).split()[1]) * _PAGE
        finally:
            os.close(statm)
    except (OSError, ValueError, IndexError):
        return None


def read_pss(pid: int) -> int | None:
    """The bytes of a process, each shared page divided among those who share it; None where it is gone or not to be read."""
    try:
        return int(psutil.Process(pid).memory_full_info().pss)
    except (psutil.Error, OSError):
        return None


def read_private(pid: int) -> int | None:
    """The bytes of a process that it shares with nobody; None where it is gone or not to be read. As dear as PSS."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except (psutil.Error, OSError):
        return None
