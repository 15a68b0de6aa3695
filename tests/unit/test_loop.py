"""supervisor.py: when a deadline counts as passed, seen by a loop whose turns take as long as a test says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from modelsupervisor.core import initial_state
from modelsupervisor.core.actions import Action, ForkWorker, SignalTemplate
from modelsupervisor.core.events import TemplateLoaded, WorkerBorn
from modelsupervisor.core.slots import FORK_TIMEOUT
from modelsupervisor.core.states import Policy, SlotKey, TemplateKey
from modelsupervisor.runtime.reactor import Rank, Watch
from modelsupervisor.runtime.supervisor import Supervisor

TEMPLATE = TemplateKey("m", 1)


class Nothing:
    """Does nothing, whatever is asked, and is due never."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


class Turns:
    """A reactor whose turns are the functions that a test gives, each of which may take its time."""

    def __init__(self, turns: list[Any]) -> None:
        self.turns = turns

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: True

    def wait(self, _: float | None) -> list[tuple[Watch, int]]:
        turn = self.turns.pop(0)
        return [(Watch(9, Rank.LIFE, lambda _: turn(), 1), 1)]


def test_a_long_turn_makes_nobody_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template bears a worker while the supervisor is busy for longer than that may take: heard in the next turn, it lives."""
    clock = [100.0]
    journal = SimpleNamespace(emit=lambda *_, **__: None)
    edge: Any = SimpleNamespace(
        now=lambda: clock[0],
        journal=journal,
        intake=Nothing(),
        outlets=Nothing(),
        places={SlotKey("m", 0): Nothing()},
        plans={},
        settings=SimpleNamespace(models=(), supervisor=SimpleNamespace(log_buffer=1)),
        pid=1,
    )
    supervisor = Supervisor(edge, initial_state({"m": Policy(1)}), Nothing())  # type: ignore[arg-type]
    done: list[Action] = []

    def busy_for_long() -> None:
        supervisor.post(TemplateLoaded(TEMPLATE, clock[0]))
        supervisor._settle()
        clock[0] += 2 * FORK_TIMEOUT  # other exits, and other processes of the machine

    def heard() -> None:
        supervisor.post(WorkerBorn(SlotKey("m", 0), 1, clock[0]))

    def end() -> None:
        supervisor._exit = 0

    monkeypatch.setattr(supervisor, "_perform", done.append)
    edge.reactor = Turns([busy_for_long, heard, end])
    assert supervisor.run() == 0
    assert any(isinstance(action, ForkWorker) for action in done)
    assert not any(isinstance(action, SignalTemplate) for action in done)
