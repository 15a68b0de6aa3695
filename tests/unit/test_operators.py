"""operators.py: one connection's lines, answers and end, with a loop that the test turns."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.control import ControlRequest
from modelsupervisor.errors import ControlError
from modelsupervisor.runtime import operators as module
from modelsupervisor.runtime.operators import ANSWERS_KEPT, MAX_OPERATORS, Operator, Operators
from modelsupervisor.runtime.reactor import Reactor


class Loop:
    """A control socket whose turns the test makes; commands are `echo`, `refuse`, `later` and `big`."""

    def __init__(self, path: Path, gid: int | None = None) -> None:
        self.path = str(path)
        self.reactor = Reactor()
        self.reactor.open()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(200)
        self.operators = Operators(self.reactor, listener, gid, self.serve)
        self.operators.open()
        self.later: list[tuple[Operator, int | str]] = []
        self.peers: list[socket.socket] = []

    def serve(self, operator: Operator, request: ControlRequest) -> None:
        """Carry out a command of the test's own."""
        if request.command == "refuse":
            raise ControlError("refused", "no")
        if request.command == "later":
            self.later.append((operator, request.id))
        else:
            result = "x" * 500_000 if request.command == "big" else request.arguments
            self.operators.reply(operator, request.id, result)

    def turn(self) -> None:
        """Serve until nothing is ready."""
        while ready := self.reactor.wait(0):
            for watch, events in ready:
                if self.reactor.still(watch):
                    watch.callback(events)

    def dial(self) -> socket.socket:
        """A client that does not wait."""
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(self.path)
        peer.setblocking(False)
        self.peers.append(peer)
        return peer

    def close(self) -> None:
        """Let everything go."""
        self.operators.close()
        self.reactor.close()
        for peer in self.peers:
            peer.close()


@pytest.fixture
def loop(short_tmp: Path) -> Iterator[Loop]:
    """A loop of our own uid's."""
    made = Loop(short_tmp / "control.sock")
    yield made
    made.close()


def line(command: str, number: int = 1, **arguments: Any) -> bytes:
    """One request."""
    return json.dumps({"id": number, "command": command, "arguments": arguments}).encode() + b"\n"


def replies(peer: socket.socket) -> list[dict[str, Any]]:
    """What came so far."""
    return [json.loads(each) for each in peer.recv(1 << 20).splitlines()]


def test_a_command_and_its_answer(loop: Loop) -> None:
    """Asked, answered with its id; a refusal is an answer as well."""
    peer = loop.dial()
    peer.sendall(line("echo", 7, a=1) + line("refuse", 8))
    loop.turn()
    assert replies(peer) == [
        {"id": 7, "ok": True, "result": {"a": 1}},
        {"id": 8, "ok": False, "error": {"code": "refused", "message": "no"}},
    ]


def test_a_line_in_pieces(loop: Loop) -> None:
    """Nothing happens before its newline."""
    peer = loop.dial()
    for byte in line("echo"):
        with pytest.raises(BlockingIOError):
            peer.recv(1)
        peer.sendall(bytes([byte]))
        loop.turn()
    assert replies(peer)[0]["ok"]


def test_an_answer_that_comes_later(loop: Loop) -> None:
    """The connection waits for it and goes on meanwhile; who left before it gets none, and that is no error."""
    stays, leaves = loop.dial(), loop.dial()
    stays.sendall(line("later", 1) + line("echo", 2))
    leaves.sendall(line("later", 3))
    loop.turn()
    assert [reply["id"] for reply in replies(stays)] == [2]
    leaves.close()
    loop.turn()
    for operator, id_ in loop.later:
        loop.operators.reply(operator, id_, "done")
    assert replies(stays) == [{"id": 1, "ok": True, "result": "done"}]


def test_answers_that_are_not_taken(loop: Loop) -> None:
    """They are kept and sent when there is room; past ANSWERS_KEPT the client is dropped."""
    slow, deaf = loop.dial(), loop.dial()
    slow.sendall(line("big") * 4)
    loop.turn()
    taken = b""
    for _ in range(10000):
        try:
            taken += slow.recv(65536)
        except BlockingIOError:
            if taken.count(b"\n") == 4:
                break
            loop.turn()
    assert [len(json.loads(each)["result"]) for each in taken.splitlines()] == [500_000] * 4
    deaf.sendall(line("big") * (ANSWERS_KEPT // 500_000 + 2))
    loop.turn()
    read = b""
    while chunk := deaf.recv(1 << 20):
        read += chunk
    assert len(read) < ANSWERS_KEPT


def test_a_last_word_behind_answers_that_wait(loop: Loop) -> None:
    """A client that is to be closed gets all that it is owed first, and nothing more that it sends is served."""
    peer = loop.dial()
    peer.sendall(line("big") * 2)
    loop.turn()
    with contextlib.suppress(BlockingIOError):
        while True:
            peer.send(b"x" * 65536)
            loop.turn()
            if next(iter(loop.operators._all.values())).closing:
                break
    peer.sendall(b"\n" + line("echo", 5))
    loop.turn()
    read = b""
    with contextlib.suppress(ConnectionResetError):
        while True:
            try:
                chunk = peer.recv(1 << 20)
            except BlockingIOError:
                loop.turn()
                continue
            if not chunk:
                break
            read += chunk
    told = [json.loads(each) for each in read.splitlines()]
    assert [reply["ok"] for reply in told] == [True, True, False]
    assert told[-1]["error"]["code"] == "bad_request"


def test_too_many_connections(loop: Loop) -> None:
    """The one too many is told why and closed; those before it are served; there is room again when one leaves."""
    peers = [loop.dial() for _ in range(MAX_OPERATORS)]
    loop.turn()
    late = loop.dial()
    loop.turn()
    (refusal,) = replies(late)
    assert refusal["error"]["code"] == "refused"
    assert late.recv(1) == b""
    peers[0].close()
    loop.turn()
    for peer in (*peers[1:], loop.dial()):
        peer.sendall(line("echo"))
        loop.turn()
        assert replies(peer)[0]["ok"]


@pytest.mark.parametrize(
    ("uid", "gid", "group", "allowed"),
    [
        (os.geteuid(), 99999, None, True),
        (0, 99999, None, True),
        (4242, 99999, None, False),
        (4242, 77, 77, True),
        (4242, 99999, 77, False),
        (
            4242,
            99999,
            os.getegid(),
            True,
        ),  # the process named is this one, whose groups /proc tells
    ],
)
def test_who_may_command(
    short_tmp: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    gid: int,
    group: int | None,
    allowed: bool,
) -> None:
    """Our uid, root, or the socket_group by the credentials or by a supplementary group; the refusal names the uid."""
    if allowed and group == os.getegid() and group not in os.getgroups():
        pytest.skip("this process has no supplementary groups")

    monkeypatch.setattr(module.struct, "unpack", lambda *_: (os.getpid(), uid, gid))
    loop = Loop(short_tmp / "control.sock", group)
    peer = loop.dial()
    loop.turn()
    if allowed:
        peer.sendall(line("echo"))
    loop.turn()
    (reply,) = replies(peer)
    assert reply["ok"] is allowed
    if not allowed:
        assert str(uid) in reply["error"]["message"]
    loop.close()


def test_a_connection_that_streams(loop: Loop) -> None:
    """Nothing that it sends is a command any more; the loop is woken for its room only while that is awaited."""
    peer = loop.dial()
    peer.sendall(line("later"))
    loop.turn()
    ((operator, id_),) = loop.later
    assert operator.pid == os.getpid()
    loop.operators.reply(operator, id_, {})
    loop.operators.stream(operator)
    peer.sendall(line("echo", 5) + b"no json\n")
    loop.turn()
    assert [reply["id"] for reply in replies(peer)] == [1]
    assert loop.reactor.wait(0) == []
    loop.operators.await_room(operator, True)
    assert [events for _, events in loop.reactor.wait(0)] == [select.EPOLLOUT]
    loop.operators.await_room(operator, False)
    assert loop.reactor.wait(0) == []
    loop.operators.end_stream(operator)
    assert peer.recv(1) == b""
    loop.operators.await_room(operator, True)


def test_commands_behind_the_one_that_streams(loop: Loop) -> None:
    """Sent together with it, they are not served either."""
    streamed: list[Operator] = []

    def serve(operator: Operator, request: ControlRequest) -> None:
        streamed.append(operator)
        loop.operators.stream(operator)

    loop.operators._serve = serve
    loop.dial().sendall(line("logs", 1) + line("stop", 2))
    loop.turn()
    assert len(streamed) == 1


def test_closing_ends_every_connection(loop: Loop) -> None:
    """For who waits, that is the answer."""
    peer = loop.dial()
    peer.sendall(line("later"))
    loop.turn()
    loop.operators.close()
    assert peer.recv(1) == b""
    loop.operators = Operators(loop.reactor, socket.socket(socket.AF_UNIX), None, loop.serve)
