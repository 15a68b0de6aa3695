"""Which deaths the kernel's out-of-memory killer can have been: an unasked SIGKILL, and a counter that rose for it.

SIGKILL looks the same whoever sent it. But the kernel counts the processes that it kills for want of memory: in the control group
of the victim, whichever limit was hit (v2 memory.events.local or memory.events, v1 memory.oom_control), and for the whole machine
in /proc/vmstat. Workers are in the supervisor's own group, so the nearest counter counts them; only where there is none at all the
machine's is read, and the evidence says that it may have been anybody. No counter that rose, no claim: the cause stays `signal`.

Each rise is one death and is claimed once. A rise that nobody claims (a helper process, a neighbour in the group) is forgotten
after FRESH seconds, lest an operator's kill -9 hours later be called the kernel's; so the counter is read at the periodic looks
at workers (`refresh`), and not only when there is a death to explain, after the successor was asked for [measured: 0.03 ms].
"""

from __future__ import annotations

from collections import deque

from modelsupervisor.runtime.cgroup import KillCounter, kill_counters
from modelsupervisor.runtime.kernel_text import counted_in, read_text

FRESH = 10.0
"""Seconds for which a rise may be claimed: from the kernel's count to the end of a large process takes a second or two."""

MOST_RISES = 1024
READ_EVERY = 1.0  # seconds between two readings that are only taken in passing


class OomKills:
    """The counter, how far it was read, and the rises that no death has claimed yet."""

    def __init__(self, root: str = "/") -> None:
        self._root = root
        self._counter: KillCounter | None = None
        self._last = 0
        self._read_at = 0.0
        self._rises: deque[tuple[float, str]] = deque(maxlen=MOST_RISES)

    def open(self, now: float) -> str | None:
        """Find the counter and read where it stands; None, or a sentence for whoever wants to know that there is none."""
        for counter in kill_counters(self._root):
            count = self._read(counter)
            if count is not None:
                self._counter, self._last, self._read_at = counter, count, now
                return None
        return (
            "No counter of the kernel's out-of-memory kills can be read: an unasked SIGKILL is never "
            "said to be one."
        )

    def look(self, now: float) -> None:
        """Read the counter; a rise is there to be claimed from now on."""
        count = None if self._counter is None else self._read(self._counter)
        if self._counter is None or count is None:
            return
        words = (
            f"{self._counter.name} in {self._counter.path} rose from {self._last} to {count} within "
            f"{now - self._read_at:.1f} s; it counts {self._counter.scope}"
        )
        self._rises.extend([(now, words)] * min(count - self._last, MOST_RISES))
        self._last, self._read_at = count, now

    def refresh(self, now: float) -> None:
        """Look, unless that was done a moment ago."""
        if now - self._read_at >= READ_EVERY:
            self.look(now)

    def claim(self, now: float) -> str | None:
        """The evidence for one death by SIGKILL that nobody asked for; None where there is none."""
        self.look(now)
        while self._rises and now - self._rises[0][0] > FRESH:
            self._rises.popleft()
        return self._rises.popleft()[1] if self._rises else None

    def _read(self, counter: KillCounter) -> int | None:
        return counted_in(read_text(self._root.rstrip("/") + counter.path), counter.name)
