"""followers.py: operators that read the log, each one a sink of its own, with real connections and a loop that the test turns."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelsupervisor.control import ControlRequest, LogsArguments
from modelsupervisor.log.journal import Journal
from modelsupervisor.log.ring import Rings
from modelsupervisor.runtime.followers import Followers
from modelsupervisor.runtime.operators import Operator, Operators
from modelsupervisor.runtime.reactor import Reactor
from support.schema import check

LIMIT = 200_000


class Supervisor:
    """A journal, its followers, and the control socket that they come by."""

    def __init__(self, path: Path) -> None:
        self.reactor = Reactor()
        self.reactor.open()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(10)
        self._path = str(path)
        self.journal = Journal("info", Rings(1 << 20))
        self.followers = Followers(self.journal, LIMIT)
        self.operators = Operators(self.reactor, listener, None, self._serve)
        self.operators.open()
        self.peers: list[socket.socket] = []
        self.answer: Any = {"streaming": True}

    def _serve(self, operator: Operator, request: ControlRequest) -> None:
        asked = msgspec.convert(request.arguments, LogsArguments)
        self.operators.reply(operator, request.id, self.answer)
        self.followers.add(self.operators, operator, asked)

    def turn(self) -> None:
        """One turn of the loop, as the supervisor makes it."""
        for watch, events in self.reactor.wait(0):
            if self.reactor.still(watch):
                watch.callback(events)
        self.followers.flush(self.operators, 0.0)
        self.journal.tell_of_outlets(pid=1)
        self.followers.flush(self.operators, 0.0)

    def logs(self, **arguments: Any) -> socket.socket:
        """`modelsupervisor logs`."""
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(self._path)
        peer.setblocking(False)
        self.peers.append(peer)
        request = {"id": 1, "command": "logs", "arguments": arguments}
        peer.sendall(json.dumps(request).encode() + b"\n")
        self.turn()
        self.turn()
        return peer

    def event(self, model: str = "a", worker: int = 0, **facts: Any) -> None:
        """Something happens to a worker."""
        self.journal.emit("info", "worker.ready", model=model, worker=worker, **facts)

    def received(self, peer: socket.socket) -> list[dict[str, Any]]:
        """The answer and the events that came until there are no more."""
        found = b""
        while True:
            try:
                chunk = peer.recv(1 << 20)
            except BlockingIOError:
                self.turn()
                with contextlib.suppress(BlockingIOError):
                    found += peer.recv(1 << 20)
                    continue
                break
            if not chunk:
                break
            found += chunk
        return [json.loads(line) for line in found.splitlines()]

    def close(self) -> None:
        """Let everything go."""
        self.operators.close()
        self.reactor.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def supervisor(short_tmp: Path) -> Iterator[Supervisor]:
    """One that has said three things."""
    made = Supervisor(short_tmp / "control.sock")
    made.event(worker=0)
    made.event(worker=1)
    made.event(model="b")
    yield made
    made.close()


def seqs(events: list[dict[str, Any]]) -> list[int]:
    """Numbers of the events behind the answer."""
    assert events[0] == {"id": 1, "ok": True, "result": {"streaming": True}}
    return [event["seq"] for event in events[1:]]


def test_what_there_is_and_the_end(supervisor: Supervisor) -> None:
    """Without `follow`: the answer, what the rings hold of whom it asked for, and the connection is closed."""
    for arguments, expected in (
        ({}, [1, 2, 3]),
        ({"lines": 2}, [2, 3]),
        ({"lines": 0}, []),
        ({"model": "a"}, [1, 2]),
        ({"model": "a", "index": 1}, [2]),
        ({"model": "c"}, []),
    ):
        peer = supervisor.logs(**arguments)
        assert seqs(supervisor.received(peer)) == expected
        assert peer.recv(1) == b""
    assert supervisor.journal.outlets == []


def test_a_follower_gets_what_comes(supervisor: Supervisor) -> None:
    """Of whom it asked for, behind what there was, without a gap and without a repetition."""
    everything, one = supervisor.logs(follow=True), supervisor.logs(follow=True, model="a", index=1)
    for worker in (0, 1):
        supervisor.event(worker=worker)
    supervisor.turn()
    assert seqs(supervisor.received(everything)) == [1, 2, 3, 4, 5]
    assert seqs(supervisor.received(one)) == [2, 5]


def test_a_follower_that_left(supervisor: Supervisor) -> None:
    """Its sink goes with it and nothing is said of it; the others go on."""
    leaves, stays = supervisor.logs(follow=True), supervisor.logs(follow=True)
    leaves.close()
    for _ in range(3):
        supervisor.event()
        supervisor.turn()
    assert len(supervisor.journal.outlets) == 1
    assert seqs(supervisor.received(stays)) == [1, 2, 3, 4, 5, 6]


def test_a_follower_that_does_not_read(supervisor: Supervisor) -> None:
    """It slows nobody; what it misses is counted, and it is told when it reads again, whatever it asked for."""
    peer = supervisor.logs(follow=True, model="b", lines=0)

    def render(seq: int) -> bytes:
        return b'{"event":"x","seq":%d,"line":"%s"}\n' % (seq, b"x" * 10_000)

    for _ in range(200):
        supervisor.journal.emit_block(("b", 0), "b/0 stdout", 1, render)
        supervisor.turn()
    (outlet,) = supervisor.journal.outlets
    assert outlet.buffer.stalled and not outlet.holds(0.0)
    events = supervisor.received(peer)[1:]
    supervisor.event(model="b")
    events += supervisor.received(peer)
    told = [event for event in events if event["event"].startswith("log.")]
    assert [event["event"] for event in told] == ["log.stalled", "log.resumed", "log.dropped"]
    for event in told:
        check(event)
        assert event["sink"] == f"logs of pid {os.getpid()}"
    assert told[2]["streams"] == {"b/0 stdout": told[2]["lines"]}
    lines = [event for event in events if event["event"] == "x"]
    assert len(lines) + told[2]["lines"] == 200


def test_a_history_that_is_too_much(supervisor: Supervisor) -> None:
    """The newest of it is sent that half of a follower's buffer holds."""
    for _ in range(100):
        supervisor.event(text="x" * 5000)
    found = seqs(supervisor.received(supervisor.logs(lines=1000)))
    assert found == list(range(found[0], 104))
    assert LIMIT // 2 - 6000 < len(found) * 5150 < LIMIT // 2 + 6000


def test_the_answer_goes_first(supervisor: Supervisor) -> None:
    """Also where it has to wait for room itself."""
    supervisor.answer = "x" * 1_000_000
    peer = supervisor.logs(follow=True)
    supervisor.event()
    supervisor.turn()
    events = supervisor.received(peer)
    assert events[0]["result"] == "x" * 1_000_000
    assert [event["seq"] for event in events[1:]] == [1, 2, 3, 4]


def test_at_the_end_who_reads_gets_everything(supervisor: Supervisor) -> None:
    """What waits is sent out, to those that take it, within the time that there is."""
    reads, sleeps = supervisor.logs(follow=True), supervisor.logs(follow=True)
    sleeps.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(60):
        supervisor.event(text="x" * 5000)
    found = bytearray()

    def read() -> None:
        reads.setblocking(True)
        while found.count(b"\n") < 64:
            found.extend(reads.recv(65536))

    reader = threading.Thread(target=read)
    reader.start()
    begun = time.monotonic()
    supervisor.followers.end(time.monotonic, 1.0)
    assert 0 < time.monotonic() - begun < 5
    reader.join(10)
    assert seqs([json.loads(line) for line in found.splitlines()])[-1] == 63


def test_an_end_without_followers(supervisor: Supervisor) -> None:
    """Takes no time, nor does one with a follower that has everything or left."""
    supervisor.logs(follow=True)
    supervisor.logs(follow=True).close()
    begun = time.monotonic()
    supervisor.followers.end(time.monotonic, 30.0)
    assert time.monotonic() - begun < 5
