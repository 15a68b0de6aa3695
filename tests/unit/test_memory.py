"""memory.py: what /proc says of a process, and how much of the loop's time that may take."""

from __future__ import annotations

import os

import pytest

from modelsupervisor.core.states import SlotKey
from modelsupervisor.runtime import memory
from modelsupervisor.runtime.memory import Living, MemoryReadings, read_pss, read_rss

NOBODY = 2**22 + 1  # above every pid


class Clock:
    """Time that passes only where a test says so; each reading of PSS takes `cost` seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.now = 1000.0
        self.read: list[int] = []
        monkeypatch.setattr(memory.Edge, "now", lambda: self.now)

        def read_pss(pid: int) -> int:
            self.now += cost
            self.read.append(pid)
            return pid * 1000

        monkeypatch.setattr(memory, "read_pss", read_pss)


def living(count: int, generation: int = 1) -> list[Living]:
    """So many processes, their pids from 1 on."""
    return [Living(SlotKey("m", number), generation, number + 1) for number in range(count)]


def test_our_own_memory() -> None:
    """Bytes, the proportional part at most the resident one."""
    rss, pss = read_rss(os.getpid()), read_pss(os.getpid())
    assert rss is not None and pss is not None
    assert 1 << 20 < pss <= rss + (1 << 20)


def test_nobodys_memory() -> None:
    """A process that is gone has none, and that is no error."""
    assert read_rss(NOBODY) is None
    assert read_pss(NOBODY) is None


def test_cheap_ones_are_all_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight small workers: the first look shows every PSS, the next one reads none."""
    clock = Clock(monkeypatch, 0.0003)
    readings = MemoryReadings()
    for _ in range(2):
        readings.refresh(living(8))
    assert [readings.pss(each.key, 1) for each in living(8)] == [1000 * n for n in range(1, 9)]
    assert len(clock.read) == 8


def test_dear_ones_are_read_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks in a row share one budget, and those that were not seen yet come first, until all were."""
    clock = Clock(monkeypatch, 0.004)
    readings = MemoryReadings()
    for _ in range(5):
        readings.refresh(living(8))
    assert clock.read == [1, 2, 3]
    assert readings.pss(SlotKey("m", 7), 1) is None
    for _ in range(2):
        clock.now += memory.PSS_WINDOW
        readings.refresh(living(8))
    assert sorted(clock.read) == list(range(1, 9))


def test_the_oldest_reading_is_made_anew_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """After PSS_KEPT seconds a reading is due again; until its turn comes, the old one is shown."""
    clock = Clock(monkeypatch, 0.02)
    readings = MemoryReadings()
    for _ in range(3):
        readings.refresh(living(3))
        clock.now += memory.PSS_WINDOW
    clock.now += memory.PSS_KEPT
    readings.refresh(living(3))
    assert clock.read == [1, 2, 3, 1]
    assert readings.pss(SlotKey("m", 2), 1) == 3000


def test_a_generation_is_not_taken_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor has no PSS until it was looked at itself, and is looked at before those that were."""
    clock = Clock(monkeypatch, 0.02)
    readings = MemoryReadings()
    readings.refresh(living(1))
    successor = Living(SlotKey("m", 0), 2, 77)
    assert readings.pss(successor.key, 2) is None
    clock.now += memory.PSS_WINDOW
    readings.refresh([successor])
    assert readings.pss(successor.key, 2) == 77000
