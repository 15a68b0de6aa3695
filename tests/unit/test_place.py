"""place.py: a slot's listener, which its worker holds too."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from modelsupervisor.core.states import SlotKey
from modelsupervisor.runtime.intake import Intake
from modelsupervisor.runtime.place import Place
from modelsupervisor.runtime.reactor import Reactor
from modelsupervisor.runtime.rundir import Access, RunDirectory


class _Intake:
    """Reads nothing."""

    def add(self, _: object) -> None:
        pass

    def remove(self, _: object) -> None:
        pass


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    """An open one."""
    made = Reactor()
    made.open()
    yield made
    made.close()


@pytest.fixture
def place(tmp_path: Path, reactor: Reactor) -> Iterator[Place]:
    """A slot's place, made."""
    directory = RunDirectory(str(tmp_path / "run"), Access())
    directory.open()
    made = Place(SlotKey("a", 0), 0, directory, reactor, cast(Intake, _Intake()))
    made.make(65536, 1000, cast(Any, None), lambda: None)
    yield made
    made.close()
    directory.close()


def turns(reactor: Reactor) -> int:
    """How many of ten turns found something to do."""
    found = 0
    for _ in range(10):
        for watch, events in reactor.wait(0.0):
            found += 1
            watch.callback(events)
    return found


@pytest.mark.parametrize("refusing", [False, True])
def test_a_listener_that_the_worker_shut_down_does_not_spin(
    place: Place, reactor: Reactor, refusing: bool
) -> None:
    """It hangs up for good, and the kernel says so to whoever watches for anything: once is enough."""
    place.refuse(refusing)
    theirs = socket.socket(fileno=os.dup(place.listener.fileno()))
    with theirs:
        theirs.shutdown(socket.SHUT_RDWR)
    assert turns(reactor) <= 1
    place.refuse(not refusing)
    place.refuse(refusing)
    assert turns(reactor) <= 1


def test_whom_nobody_will_serve_is_turned_away(place: Place, reactor: Reactor) -> None:
    """While the slot refuses; otherwise a client waits in the backlog."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(place.path("sock"))
        assert turns(reactor) == 0
        place.refuse(True)
        assert turns(reactor) == 1
        assert client.recv(1) == b""
