"""control.py: the codec that both sides share, and the asking side against real sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelsupervisor.control import (
    CLOSED,
    FAILED,
    MAX_LINE,
    TIMEOUT,
    ControlConnection,
    ControlReply,
    ControlRequest,
    LineBuffer,
    NoArguments,
    RestartArguments,
    decode_arguments,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    started_from,
)
from modelsupervisor.errors import ControlError, NotRunningError

Serve = Callable[[Callable[[socket.socket], None]], None]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(answer)` accepts one connection on tmp_path/control.sock and runs `answer` on it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control.sock"))
    listener.listen()
    threads: list[threading.Thread] = []

    def begin(answer: Callable[[socket.socket], None]) -> None:
        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield begin
    for thread in threads:
        thread.join(10)
    listener.close()


def test_request_round_trip() -> None:
    """What encode_request writes, decode_request reads; one line, ending in a newline."""
    request = ControlRequest(7, "restart", {"model": "digits", "index": None})
    line = encode_request(request)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_request(line) == request


def test_arguments_may_be_left_out() -> None:
    """A command without arguments needs no empty object."""
    assert decode_request(b'{"id": "a", "command": "status"}') == ControlRequest("a", "status", {})


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe",
        b"not json",
        b"[]",
        b'{"id": 1}',
        b'{"id": null, "command": "status"}',
        b'{"id": 1, "command": 5}',
        b'{"id": 1, "command": "status", "arguments": []}',
        b'{"id": 1, "command": "status", "more": 1}',
        b'{"id": 1, "command": "s", "arguments": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    ],
)
def test_what_is_no_request_is_a_bad_request(line: bytes) -> None:
    """Whatever a peer sends, the server gets one kind of error, with the code for the answer."""
    with pytest.raises(ControlError) as caught:
        decode_request(line)
    assert caught.value.code == "bad_request"


def test_arguments_are_checked_by_shape() -> None:
    """A wrong, missing or unknown argument is named together with the command."""
    good = ControlRequest(1, "restart", {"model": "m", "index": 2})
    assert decode_arguments(good, RestartArguments) == RestartArguments("m", 2)
    assert decode_arguments(ControlRequest(1, "stop"), NoArguments) == NoArguments()
    for arguments in ({}, {"model": 1}, {"model": "m", "index": "0"}, {"model": "m", "x": 1}):
        with pytest.raises(ControlError, match="restart: ") as caught:
            decode_arguments(ControlRequest(1, "restart", arguments), RestartArguments)
        assert caught.value.code == "bad_request"


def test_reply_shapes() -> None:
    """A success holds a result and no error, a failure an error and no result; null is a result."""
    assert json.loads(encode_reply(ControlReply.success(1, None))) == {
        "id": 1,
        "ok": True,
        "result": None,
    }
    assert json.loads(encode_reply(ControlReply.failure(None, "refused", "no"))) == {
        "id": None,
        "ok": False,
        "error": {"code": "refused", "message": "no"},
    }


def test_reply_with_bytes_that_are_not_utf8_is_still_sent() -> None:
    """A path of the file system may hold any byte; the answer escapes it instead of failing."""
    path = b"/srv/\xff".decode("utf-8", "surrogateescape")
    line = encode_reply(ControlReply.success(1, {"config": path, "list": [path, 3]}))
    assert decode_reply(line).result == {"config": "/srv/\\udcff", "list": ["/srv/\\udcff", 3]}


def test_reply_that_is_too_long_becomes_an_error() -> None:
    """The other side would refuse the line: it hears why instead."""
    line = encode_reply(ControlReply.success(1, "x" * MAX_LINE))
    assert len(line) < 200
    reply = decode_reply(line)
    assert (reply.id, reply.ok) == (1, False)
    assert json.loads(line)["error"]["code"] == "failed"


def test_line_buffer_cuts_lines_anywhere() -> None:
    """Lines come whole however the bytes are cut."""
    for size in (1, 2, 5, 100):
        lines = LineBuffer()
        found = []
        stream = b"one\n\ntwo\nthr"
        for at in range(0, len(stream), size):
            lines.feed(stream[at : at + size])
            while (line := lines.next_line()) is not None:
                found.append(line)
        assert found == [b"one", b"", b"two"]


def test_line_buffer_is_bounded() -> None:
    """The longest line is MAX_LINE with its newline; one byte more is refused, ended or not."""
    lines = LineBuffer()
    lines.feed(b"x" * (MAX_LINE - 1))
    assert lines.next_line() is None
    lines.feed(b"\n")
    assert lines.next_line() == b"x" * (MAX_LINE - 1)
    for ending in (b"", b"\n"):
        lines = LineBuffer()
        lines.feed(b"x" * MAX_LINE + ending)
        with pytest.raises(ControlError) as caught:
            lines.next_line()
        assert caught.value.code == "bad_request"


def test_trickled_line_costs_linear_time() -> None:
    """A line of nearly 1 MiB in single bytes is not searched again from its front for each of
    them."""
    lines = LineBuffer()
    begun = time.process_time()
    for _ in range(MAX_LINE - 1):
        lines.feed(b"x")
        lines.next_line()
    # Linear: about 0.4 s. Quadratic: a million searches of 512 KiB on average, above 10 s.
    assert time.process_time() - begun < 3


def test_call_gives_the_result(serve: Serve, tmp_path: Path) -> None:
    """The command and its arguments arrive; several calls go over one connection."""
    seen = []

    def answer(peer: socket.socket) -> None:
        reader = peer.makefile("rb")
        for _ in range(2):
            request = decode_request(reader.readline())
            seen.append((request.command, request.arguments))
            line = encode_reply(ControlReply.success(request.id, request.command))
            peer.sendall(line[:5])
            peer.sendall(line[5:])

    serve(answer)
    with ControlConnection.open(str(tmp_path)) as control:
        assert control.call("status") == "status"
        assert control.call("restart", {"model": "m", "index": 1}) == "restart"
    assert seen == [("status", {}), ("restart", {"model": "m", "index": 1})]


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b'{"id":1,"ok":false,"error":{"code":"not_found","message":"no model x"}}\n', "not_found"),
        (b'{"id":null,"ok":false,"error":{"code":"refused","message":"uid"}}\n', "refused"),
        (b'{"id":99,"ok":true,"result":1}\n', FAILED),
        (b'{"id":1,"ok":true}\n', FAILED),
        (b"garbage\n", FAILED),
        (b'{"id":1,"ok":tr', CLOSED),
        (b"", CLOSED),
    ],
)
def test_call_that_fails_says_how(serve: Serve, tmp_path: Path, reply: bytes, code: str) -> None:
    """The supervisor's own code is passed on; nonsense and a lost connection have theirs."""

    def answer(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(reply)

    serve(answer)
    with ControlConnection.open(str(tmp_path)) as control, pytest.raises(ControlError) as caught:
        control.call("status")
    assert caught.value.code == code


def test_refusal_before_the_question_is_read(serve: Serve, tmp_path: Path) -> None:
    """A server that answers and closes without reading (wrong uid) is heard, not lost as EPIPE."""
    closed = threading.Event()

    def answer(peer: socket.socket) -> None:
        peer.sendall(encode_reply(ControlReply.failure(None, "refused", "not your supervisor")))
        peer.close()
        closed.set()

    serve(answer)
    with ControlConnection.open(str(tmp_path)) as control:
        assert closed.wait(10)
        with pytest.raises(ControlError, match="not your supervisor"):
            control.call("status")


def test_silent_supervisor_is_a_timeout(serve: Serve, tmp_path: Path) -> None:
    """A supervisor that is stopped (SIGSTOP) does not hold the command for ever."""
    done = threading.Event()
    serve(lambda peer: (done.wait(10), None)[1])
    with ControlConnection.open(str(tmp_path)) as control:
        begun = time.monotonic()
        with pytest.raises(ControlError, match=r"within 0\.2 s") as caught:
            control.call("status", timeout=0.2)
        assert 0.2 <= time.monotonic() - begun < 5
    assert caught.value.code == TIMEOUT
    done.set()


def test_wait_closed_ends_with_the_supervisor(serve: Serve, tmp_path: Path) -> None:
    """False while it is still there at the deadline, True once the connection has ended."""
    go = threading.Event()
    serve(lambda peer: (go.wait(10), None)[1])
    with ControlConnection.open(str(tmp_path)) as control:
        assert not control.wait_closed(0.05)
        go.set()
        assert control.wait_closed(None)


def test_nothing_there_is_not_running(tmp_path: Path) -> None:
    """No directory, no socket, a file in the way, a socket that nobody serves: exit code 3."""
    with pytest.raises(NotRunningError) as caught:
        ControlConnection.open(str(tmp_path / "missing"))
    assert caught.value.exit_code == 3
    with pytest.raises(NotRunningError, match="no control socket"):
        ControlConnection.open(str(tmp_path))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
    with pytest.raises(NotRunningError, match="leftover"):
        ControlConnection.open(str(tmp_path))
    (tmp_path / "control.sock").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotRunningError):
        ControlConnection.open(str(tmp_path / "file"))


def test_path_too_long_is_an_error_and_not_a_traceback(tmp_path: Path) -> None:
    """The address of a Unix socket holds 107 bytes."""
    with pytest.raises(ControlError, match="too long"):
        ControlConnection.open(str(tmp_path / ("x" * 120)))


def test_full_backlog_is_a_timeout(tmp_path: Path) -> None:
    """A supervisor that takes no connections is there, but does not answer."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen(0)
        first.connect(str(tmp_path / "control.sock"))
        with pytest.raises(ControlError) as caught:
            ControlConnection.open(str(tmp_path), timeout=0.1)
    assert caught.value.code == TIMEOUT


def test_started_from_is_a_real_path(tmp_path: Path) -> None:
    """Two names of one file are the same file; a status without one says nothing."""
    (tmp_path / "real.ini").write_text("")
    (tmp_path / "link.ini").symlink_to("real.ini")
    status = {"supervisor": {"config": str(tmp_path / "link.ini")}}
    assert started_from(status) == str((tmp_path / "real.ini").resolve())
    assert started_from({}) == ""
