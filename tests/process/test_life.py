"""The life of a worker, seen from outside: it dies in every way, and is back on the same socket."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from modelsupervisor.client import Client
from support.instance import Instance

Make = Callable[..., Instance]


def test_a_supervisor_starts_serves_and_stops(make_echo: Callable[..., Instance]) -> None:
    """Ready means served; TERM means exit 0 and nothing left."""
    echo = make_echo()
    with Client.from_run_dir(str(echo.run_dir), "echo") as client:
        assert client.predict(b"hello").body == b"hello"
    assert echo.stop() == 0


@pytest.fixture
def make_echo(instance: Make) -> Callable[..., Instance]:
    """A running supervisor of the test model under the name echo."""

    def make(*expected: str, **keys: object) -> Instance:
        made = instance(*expected)
        made.write(made.model(**keys))
        return made.start()

    return make


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_from_outside(make_echo: Callable[..., Instance], number: signal.Signals) -> None:
    """One worker.exited with the signal, and a successor on the same socket inode."""
    echo = make_echo("worker.exited")
    inode = os.stat(echo.socket()).st_ino
    pid = echo.worker()["pid"]
    os.kill(pid, number)
    exited = echo.wait_event("worker.exited")
    assert (exited["cause"], exited["signal"], exited["pid"]) == ("signal", number.name, pid)
    echo.wait_event("worker.ready", generation=2)
    with Client.from_run_dir(str(echo.run_dir), "echo") as client:
        assert client.predict(b"again").body == b"again"
    assert os.stat(echo.socket()).st_ino == inode
    assert len(echo.events("worker.exited")) == 1
