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
from modelsupervisor.runtime.supervisor import FAULTS_BORNE, Supervisor

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


def edge_at(clock: list[float], told: list[str]) -> Any:
    """What the loop needs of an edge: a clock that the test sets, and the names of the events that it emits."""
    return SimpleNamespace(
        now=lambda: clock[0],
        journal=SimpleNamespace(emit=lambda _, event, **__: told.append(event)),
        intake=Nothing(),
        outlets=Nothing(),
        places={SlotKey("m", 0): Nothing()},
        plans={},
        settings=SimpleNamespace(models=(), supervisor=SimpleNamespace(log_buffer=1)),
        pid=1,
    )


def test_a_long_turn_makes_nobody_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template bears a worker while the supervisor is busy for longer than that may take: heard in the next turn, it lives."""
    clock = [100.0]
    edge = edge_at(clock, [])
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


@pytest.mark.parametrize(("faults", "ends"), [(1, False), (FAULTS_BORNE - 1, False), (10**6, True)])
def test_a_fault_of_ours_at_a_deadline(
    monkeypatch: pytest.MonkeyPatch, faults: int, ends: bool
) -> None:
    """It is told and borne, like one at a descriptor; one that comes again and again ends the supervisor in order."""
    clock, told = [100.0], [""]
    edge = edge_at(clock, told)
    supervisor = Supervisor(edge, initial_state({"m": Policy(1)}), Nothing())  # type: ignore[arg-type]
    monkeypatch.setattr(supervisor, "_perform", lambda _: None)
    left = [faults]

    def stumble(_: float) -> None:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("a fault of ours")

    def end() -> None:
        supervisor._exit = 0

    edge.intake = SimpleNamespace(tick=stumble, deadline=lambda: None)
    turns = min(faults, 2 * FAULTS_BORNE)
    edge.reactor = Turns([*[lambda: None] * turns, end])
    if ends:
        with pytest.raises(RuntimeError):
            supervisor.run()
    else:
        assert supervisor.run() == 0
    assert told.count("supervisor.fault") == min(faults, FAULTS_BORNE)
