"""signals.py: counting in a handler, without losing one."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from modelsupervisor.runtime.signals import STOP_SIGNALS, UNUSED_SIGNALS, Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Installed in this process, and given back."""
    made = Signals()
    made.install()
    yield made
    made.restore()


def readable(signals: Signals) -> bool:
    """Whether the descriptor wakes a loop."""
    return bool(select.select([signals], [], [], 0)[0])


def test_a_signal_wakes_and_is_counted(signals: Signals) -> None:
    """The descriptor is readable after a signal and not after it was taken."""
    assert not readable(signals)
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert readable(signals)
    assert signals.take() == {signal.SIGUSR1: 1, signal.SIGTERM: 2}
    assert not readable(signals)
    assert signals.take() == {}


def test_a_flood_hides_nothing(signals: Signals) -> None:
    """The wake-up socket overflows; the tally does not."""
    for _ in range(20000):
        signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    assert readable(signals)
    assert signals.take() == {signal.SIGUSR1: 20000, signal.SIGTERM: 1}
    assert signals.take() == {}


def test_a_signal_between_any_two_steps_of_take(signals: Signals) -> None:
    """A handler may run at every bytecode of `take`: each signal is in this count or in the next."""
    sent = 0
    inside = Signals.take.__code__

    def disturb(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal sent
        if frame.f_code is not inside:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            sent += 1
            signal.raise_signal(signal.SIGUSR2)
        return disturb

    counted: Counter[int] = Counter()
    before = sys.gettrace()
    for _ in range(20):
        sys.settrace(disturb)
        try:
            taken = signals.take()
        finally:
            sys.settrace(before)
        counted += taken
    counted += signals.take()
    assert sent > 100
    assert counted == {signal.SIGUSR2: sent}


def test_everything_is_given_back() -> None:
    """`restore` leaves handlers, wake-up descriptor and mask as `install` found them."""
    numbers = [*STOP_SIGNALS, *UNUSED_SIGNALS, signal.SIGCHLD]
    before = [signal.getsignal(number) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    open_before = len(os.listdir("/proc/self/fd"))
    signals = Signals()
    signals.install()
    assert [signal.getsignal(number) for number in numbers] != before
    signals.restore()
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert signal.set_wakeup_fd(-1) == -1
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_which_signals() -> None:
    """Every signal that would end or stop a process by default is taken, but for faults and what cannot be taken."""
    taken = {*STOP_SIGNALS, *UNUSED_SIGNALS}
    assert not set(STOP_SIGNALS) & set(UNUSED_SIGNALS)
    left = signal.valid_signals() - taken
    assert {signal.Signals(number).name for number in left} == {
        *(
            "SIGKILL",
            "SIGSTOP",
            "SIGSEGV",
            "SIGBUS",
            "SIGFPE",
            "SIGILL",
            "SIGTRAP",
            "SIGSYS",
            "SIGABRT",
        ),
        *("SIGPIPE", "SIGXFSZ", "SIGCHLD", "SIGCONT", "SIGURG", "SIGWINCH"),
    }
