"""What points to memory in a death that nobody asked for: the kernel's counter for SIGKILL, limits for a crash.

A crash by SIGABRT or SIGSEGV may be a C++ `bad_alloc` or an unchecked `malloc` below RLIMIT_AS or RLIMIT_DATA, or any other bug.
The limits are told where there are some, beside the peak of resident memory; no cause is claimed of them. They are read of the
zombie, which still has its limits though its memory is gone, because a handler may have set them.
"""

from __future__ import annotations

import resource
import signal
from dataclasses import dataclass
from typing import Protocol

from modelsupervisor.core.states import Blame
from modelsupervisor.runtime.oom import OomKills
from modelsupervisor.runtime.processes import ExitStatus, reap_measured

OOM_SUSPECTED = "oom_suspected"
_CRASHES = (signal.SIGABRT, signal.SIGSEGV)
_LIMITS = (("RLIMIT_AS", resource.RLIMIT_AS), ("RLIMIT_DATA", resource.RLIMIT_DATA))


@dataclass(frozen=True)
class Evidence:
    """`cause` replaces `signal` where the evidence allows that; `words` is None where nothing was found."""

    cause: str | None = None
    words: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """As a field of an event, where there is something to tell."""
        return {} if self.words is None else {"evidence": self.words}


@dataclass(frozen=True)
class Remains:
    """What a zombie still tells: its memory `limits` in words where it crashed below some, and the `peak` of its resident memory
    in bytes; None where that is not known.
    """

    limits: str | None = None
    peak: int | None = None


def bury(pid: int, status: ExitStatus) -> Remains:
    """Reap a child whose exit was looked at, and keep what it tells of memory."""
    limits = _limits(pid) if status.signal in _CRASHES else None
    return Remains(limits, reap_measured(pid))


def _limits(pid: int) -> str | None:
    found = []
    for name, number in _LIMITS:
        try:
            soft, _ = resource.prlimit(pid, number)
        except (OSError, ValueError):
            continue
        if soft != resource.RLIM_INFINITY:
            found.append(f"{name} was {_size(soft)}")
    return ", ".join(found) or None


class End(Protocol):
    """What the core says of an end: whether it was asked for, and whether it was we who ended it, and why."""

    @property
    def asked(self) -> bool: ...
    @property
    def blame(self) -> Blame | None: ...


def evidence_of(
    end: End, status: ExitStatus | None, remains: Remains, kills: OomKills, now: float
) -> Evidence:
    """What is known of a death; nothing of one that we asked for or brought about, or where there was no process."""
    if end.asked or end.blame is not None or status is None:
        return Evidence()
    if status.signal == signal.SIGKILL:
        words = kills.claim(now)
        return Evidence(OOM_SUSPECTED, words) if words is not None else Evidence()
    if remains.limits is None:
        return Evidence()
    peak = "" if remains.peak is None else f"; at most {_size(remains.peak)} were resident"
    return Evidence(None, remains.limits + peak)


def _size(count: int) -> str:
    return f"{count / 1024**3:.2f} GiB" if count >= 1024**3 else f"{count / 1024**2:.1f} MiB"
