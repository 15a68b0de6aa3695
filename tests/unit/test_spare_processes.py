"""runtime/spares.py: what the core is told of a spare whose process lives no more."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modelsupervisor.core.actions import ForkSpare
from modelsupervisor.core.events import Event, SpareBorn, SpareExited
from modelsupervisor.core.states import SpareKey, TemplateKey
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.messages import SupervisorEnd
from modelsupervisor.runtime.reactor import Reactor
from modelsupervisor.runtime.spares import Spares
from modelsupervisor.runtime.templates import Templates

KEY, TEMPLATE = SpareKey("echo", 1), TemplateKey("echo", 1)


class _Template:
    """Hands its end of the spare's channel to the test."""

    def __init__(self) -> None:
        self.theirs: socket.socket

    def request_fork(self, _: TemplateKey, request: Callable[[SupervisorEnd], bool]) -> bool:
        return request(cast(SupervisorEnd, self))

    def send(self, _: dict[str, Any], descriptors: list[int]) -> None:
        self.theirs = socket.socket(fileno=os.dup(descriptors[0]))


class Case:
    """A spare, born of a template, whose process is a real child."""

    def __init__(self) -> None:
        self.posted: list[Event] = []
        self.reactor = Reactor()
        self.reactor.open()
        edge = SimpleNamespace(
            reactor=self.reactor,
            post=self.posted.append,
            plans={"echo": SimpleNamespace(threads=1)},
            now=lambda: 1.0,
            doomed=set(),
            servants=set(),
        )
        self.template = _Template()
        self.spares = Spares(cast(Edge, edge), cast(Templates, self.template), set)
        self.spares.fork(ForkSpare(KEY, TEMPLATE))
        reading, self.life = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_CLOSE, self.life)]
        self.pid = os.posix_spawn("/bin/cat", ["cat"], {}, file_actions=actions, setsid=True)
        os.close(reading)
        answer = {"kind": "forked", "spare": KEY.number, "pid": self.pid}
        self.spares.on_template_answer(TEMPLATE, answer)

    def say(self, text: bytes) -> None:
        """Have the spare say this on its channel."""
        self.template.theirs.send(text)

    def die(self) -> None:
        """End the process; whoever waits for that is told in the next turn."""
        os.close(self.life)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def serve(self, fd: int) -> None:
        """Serve this descriptor alone, as where it comes first in a turn."""
        for watch, events in self.reactor.wait(1.0):
            if watch.fd == fd:
                watch.callback(events)


@pytest.fixture
def case() -> Iterator[Case]:
    """A spare that is born."""
    made = Case()
    yield made
    made.reactor.close()
    made.template.theirs.close()


def test_one_that_died_after_its_last_word_is_no_spare_to_seat(case: Case) -> None:
    """It said that it is ready, and both are found at once: a slot that waits may not be handed a process that is gone."""
    case.say(b'{"kind": "parked"}')
    case.die()
    case.serve(case.spares.of("echo")[0].pidfd)
    assert [type(event) for event in case.posted] == [SpareBorn, SpareExited]
    assert case.spares.pids() == set()
