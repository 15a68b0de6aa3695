"""workers.py: what a template says of a birth is a process's word, and is not acted on before it is checked."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from modelsupervisor.core.actions import ForkWorker
from modelsupervisor.core.events import BirthFailed, Event, WorkerBorn
from modelsupervisor.core.states import SlotKey, TemplateKey
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.oom import OomKills
from modelsupervisor.runtime.reactor import Reactor
from modelsupervisor.runtime.templates import Templates
from modelsupervisor.runtime.workers import Workers
from support.instance import alive

KEY, TEMPLATE = SlotKey("echo", 0), TemplateKey("echo", 1)


class _Templates:
    """A template that takes every request and answers when the test does."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.on_birth: Callable[[TemplateKey, dict[str, Any]], None]
        self.on_gone: Callable[[TemplateKey], None]

    def pids(self) -> set[int]:
        return {self._pid}

    def request_fork(self, *_: object) -> bool:
        return True


class Birth:
    """One birth that was asked for, with real children to be named in its answer."""

    def __init__(self) -> None:
        self.template_pid, self.child = self._sleeper(), self._sleeper()
        self.posted: list[Event] = []
        self.servants: set[int] = set()
        self.reactor = Reactor()
        self.reactor.open()
        edge = Edge(
            settings=cast(Any, None),
            reactor=self.reactor,
            journal=cast(Any, None),
            post=self.posted.append,
            plans={},
            places={KEY: cast(Any, SimpleNamespace(streams=()))},
            board=cast(Any, None),
            pid=os.getpid(),
            config_path="workers.ini",
            allowed_cpus=(0,),
            intake=cast(Any, None),
            outlets=cast(Any, None),
            oom=OomKills(),
            servants=self.servants,
            doomed=set(),
        )
        templates = _Templates(self.template_pid)
        self.workers = Workers(edge, cast(Templates, templates))
        self._templates = templates
        self.workers.fork(ForkWorker(KEY, 1, TEMPLATE))

    @staticmethod
    def _sleeper() -> int:
        return os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})

    def answer(self, **answer: Any) -> None:
        """Have the template say this."""
        self._templates.on_birth(
            TEMPLATE, {"kind": "forked", "index": 0, "generation": 1, **answer}
        )

    def close(self) -> None:
        """End the children, and everything else."""
        self.reactor.close()
        for pid in (self.template_pid, self.child):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.fixture
def birth() -> Iterator[Birth]:
    """A birth under way."""
    made = Birth()
    yield made
    made.close()


def test_a_child_of_ours_is_adopted(birth: Birth) -> None:
    """It is known by its pid from then on; being told of it again changes nothing."""
    birth.answer(pid=birth.child)
    birth.answer(pid=birth.child)
    (born,) = birth.posted
    assert isinstance(born, WorkerBorn)
    assert birth.workers.pids() == {birth.child}
    worker = birth.workers.present(KEY)
    assert worker is not None
    birth.reactor.remove(worker.pidfd)
    os.close(worker.pidfd)


@pytest.mark.parametrize("pid", [1, 0, -1, 2**40, 2**70])
def test_somebody_elses_process_is_not(birth: Birth, pid: int) -> None:
    """Whom the number names would be signalled one day: the birth failed instead, and the slot goes on."""
    birth.answer(pid=pid)
    (failed,) = birth.posted
    assert isinstance(failed, BirthFailed)
    assert str(pid) in failed.reason
    assert birth.workers.present(KEY) is None


def test_the_template_itself_is_not(birth: Birth) -> None:
    """A child, but known as something else."""
    birth.answer(pid=birth.template_pid)
    assert isinstance(birth.posted[0], BirthFailed)


def test_a_child_that_nobody_asked_for_is_ended(birth: Birth) -> None:
    """The answer to a birth that was given up; the template and strangers are left alone whatever is said of them."""
    birth.answer(generation=7, pid=birth.template_pid)
    birth.answer(generation=7, pid=os.getppid())
    assert alive(birth.template_pid)
    birth.answer(generation=7, pid=birth.child)
    os.waitid(os.P_PID, birth.child, os.WEXITED | os.WNOWAIT)
    assert birth.posted == []


def test_a_log_writer_is_nobodys_newborn(birth: Birth) -> None:
    """A child of ours, but no model's: it is neither ended for a birth that was given up, nor adopted."""
    birth.servants.add(birth.child)
    birth.answer(generation=7, pid=birth.child)
    assert alive(birth.child)
    birth.answer(pid=birth.child)
    assert isinstance(birth.posted[0], BirthFailed)
    assert birth.workers.pids() == set()


@pytest.mark.parametrize(
    "answer", [{"pid": None}, {"pid": "5"}, {"index": []}, {"index": 9}, {"generation": {}}]
)
def test_answers_that_are_none(birth: Birth, answer: dict[str, Any]) -> None:
    """They fail the birth or change nothing; nobody is signalled."""
    birth.answer(**{"pid": 1, **answer})
    assert all(isinstance(event, BirthFailed) for event in birth.posted)
    assert alive(birth.child) and alive(birth.template_pid)
