"""A living worker and peers that do not keep to the protocol: it answers or closes, lives, and serves the others meanwhile."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from support.instance import ROOT, Instance, wait_for
from support.peers import (
    ask,
    dial,
    load_frame,
    order_frame,
    predict_frame,
    read_load,
    read_predict,
    read_to_end,
)

Make = Callable[..., Instance]

FAULTS = ROOT / "tests" / "models" / "faults"
PREDICT = predict_frame(b"hello")


@pytest.fixture
def echo(instance: Make) -> Iterator[Instance]:
    """A running worker; at the end it is still the same process, in its first generation, and answers."""
    made = instance("request.failed")
    made.write(made.model(frame_timeout="60s"))
    made.start()
    pid = made.worker()["pid"]
    yield made
    assert ask(made.socket()) == b"hello"
    worker = made.worker()
    assert (worker["pid"], worker["generation"], worker["restarts"]) == (pid, 1, 0)
    assert made.events("worker.exited") == []


def attack(path: Path, frame: bytes) -> bytes:
    """Send these bytes and no more, and return all that comes back until the worker closes."""
    with dial(path) as peer:
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # refused before it was all sent
            peer.sendall(frame)
            peer.shutdown(socket.SHUT_WR)
        return read_to_end(peer)


def attack_all(path: Path, frames: Iterable[bytes]) -> int:
    """One connection for each; another peer is answered all the while. Returns the number of attacks that got an answer."""
    over = threading.Event()
    slowest = [0.0]

    def be_a_neighbour() -> None:
        with dial(path) as peer:
            while not over.is_set():
                begun = time.monotonic()
                peer.sendall(PREDICT)
                read_predict(peer)
                slowest[0] = max(slowest[0], time.monotonic() - begun)

    neighbour = threading.Thread(target=be_a_neighbour)
    neighbour.start()
    try:
        answered = sum(bool(attack(path, frame)) for frame in frames)
    finally:
        over.set()
        neighbour.join(30)
    assert not neighbour.is_alive()
    assert 0 < slowest[0] < 5
    return answered


def corruptions(frame: bytes, values: Callable[[int], Iterable[int]]) -> Iterator[bytes]:
    """The frame with one byte changed, for each place and each of the values that `values(byte)` gives."""
    for place, byte in enumerate(frame):
        for value in values(byte):
            yield frame[:place] + bytes([value & 0xFF]) + frame[place + 1 :]


def few(byte: int) -> list[int]:
    """One bit low, one bit high, all bits, the neighbour."""
    return [byte ^ 0x01, byte ^ 0x80, byte ^ 0xFF, byte + 1]


def every(byte: int) -> list[int]:
    """All other values."""
    return [value for value in range(256) if value != byte]


# -- bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predict", "load"])
def test_corrupted_bytes(echo: Instance, name: str) -> None:
    """Each byte of a valid frame, corrupted in four ways: an answer or a close, and bad_frame events that name the peer."""
    frame = PREDICT if name == "predict" else load_frame("echo", FAULTS)
    assert attack_all(echo.socket(), corruptions(frame, few)) > len(frame)
    for event in echo.events("worker.bad_frame"):
        assert (event["peer_pid"], event["peer_uid"]) == (os.getpid(), os.getuid())
        assert event["code"] in (400, 413) and event["error"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["predict", "load"])
def test_corrupted_bytes_in_full(echo: Instance, name: str) -> None:
    """Each byte of a valid frame, in all 255 ways."""
    frame = PREDICT if name == "predict" else load_frame("echo", FAULTS)
    attack_all(echo.socket(), corruptions(frame, every))


@pytest.mark.parametrize("name", ["predict", "load"])
def test_prefixes(echo: Instance, name: str) -> None:
    """Each prefix of a valid frame and then the end: closed without a word, and the worker lives."""
    frame = PREDICT if name == "predict" else load_frame("echo", FAULTS)
    assert attack_all(echo.socket(), (frame[:length] for length in range(len(frame)))) == 0
    assert attack(echo.socket(), frame)


def test_garbage(echo: Instance) -> None:
    """Random bytes, other protocols' greetings, nothing at all."""
    luck = random.Random(3)
    frames = [luck.randbytes(luck.randrange(1, 3000)) for _ in range(60)]
    frames += [
        b"",
        b"\0" * 100000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01" * 100,
    ]
    frames += [b"I" * 1000, b"L" * 1000, b'{"id": 1, "command": "stop"}\n']
    attack_all(echo.socket(), frames)


def test_lengths_beyond_measure(echo: Instance) -> None:
    """A length that is negative or over its limit, in each field: 400 or 413 by name at once, without waiting for the bytes."""
    text = struct.pack("!i", 1) + b"x"
    end = struct.pack("!i", -1)
    before = (b"", text, text * 2, text + end, text + end + text, text + end + text * 2)
    lengths = (2**31 - 1, 2**30, 64 * 1024 * 1024 + 1, -2, -(2**31))
    for head, length in itertools.product(before, lengths):
        with dial(echo.socket()) as peer:
            peer.sendall(b"I" + head + struct.pack("!i", length))
            response = read_predict(peer)
            assert response.code == (413 if length > 0 else 400)
            assert str(length) in response.message
            assert read_to_end(peer) == b""
    event = echo.wait_event("worker.bad_frame", count=len(before) * len(lengths))
    assert (event["peer_pid"], event["peer_uid"], event["code"]) == (os.getpid(), os.getuid(), 400)


def test_a_peer_that_goes_on_after_an_error(echo: Instance) -> None:
    """After the answer to a bad frame nothing of that connection is read: a good frame behind it is not run."""
    answer = attack(echo.socket(), b"X" + PREDICT * 10)
    assert answer.count(b"hello") == 0
    assert echo.wait_event("worker.bad_frame")["code"] == 400


def test_the_load_command(echo: Instance) -> None:
    """`L` for what it serves is 200 with its pid, also by another way to the folder; anything else is 409, and it lives."""
    pid = echo.worker()["pid"]
    roundabout = f"{FAULTS}/../faults/."
    with dial(echo.socket()) as peer:
        for path in (str(FAULTS), roundabout):
            peer.sendall(load_frame("echo", path))
            loaded = read_load(peer)
            assert (loaded.code, loaded.message) == (200, f"loaded model echo. [PID]:{pid}")
        for name, path in (("other", str(FAULTS)), ("echo", "/"), ("echo", "\0"), ("", "")):
            peer.sendall(load_frame(name, path))
            assert read_load(peer).code == 409
        peer.sendall(PREDICT)
        assert read_predict(peer).items[0].body == b"hello"


# -- many and slow peers -------------------------------------------------------------------------------------------------


def test_sixty_four_connections_half_of_them_silent(echo: Instance) -> None:
    """64 at once, 32 with half a frame that never ends, one of them trickling: the other 32 are all answered, again and again."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(dial(echo.socket())) for _ in range(64)]
        for number, peer in enumerate(peers[:32]):
            peer.sendall(PREDICT[: 1 + number % (len(PREDICT) - 1)])
        for _ in range(3):
            for number, peer in enumerate(peers[32:]):
                peer.sendall(predict_frame(b"mine %d" % number))
            for number, peer in enumerate(peers[32:]):
                assert read_predict(peer).items[0].body == b"mine %d" % number
        # The half frames are frames all the same, once they are whole.
        for number, peer in enumerate(peers[:32]):
            peer.sendall(PREDICT[1 + number % (len(PREDICT) - 1) :])
            assert read_predict(peer).items[0].body == b"hello"


def test_more_connections_than_are_taken(echo: Instance) -> None:
    """While 64 are in the middle of a frame, the 65th waits in the backlog and is served when one leaves; nobody is turned away."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(dial(echo.socket())) for _ in range(64)]
        for peer in peers:
            peer.sendall(PREDICT[:9])
        late = stack.enter_context(dial(echo.socket()))
        late.sendall(PREDICT)
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.recv(1)
        peers[0].close()
        late.settimeout(30)
        assert read_predict(late).items[0].body == b"hello"


def test_half_a_frame_has_a_time(instance: Make) -> None:
    """What is older than frame_timeout is closed, trickling or not, with an event that names the peer; an idle connection stays."""
    made = instance()
    made.write(made.model(frame_timeout="300ms"))
    made.start()
    with dial(made.socket()) as idle, dial(made.socket()) as half, dial(made.socket()) as trickling:
        half.sendall(PREDICT[:9])
        begun = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for byte in PREDICT[:-1]:
                trickling.sendall(bytes([byte]))
                time.sleep(0.02)  # the pace of the peer
        assert read_to_end(trickling) == b""
        assert read_to_end(half) == b""
        assert time.monotonic() - begun < 5
        idle.sendall(PREDICT)
        assert read_predict(idle).items[0].body == b"hello"
    for number in (1, 2):
        event = made.wait_event("worker.frame_timeout", count=number)
        assert (event["peer_pid"], event["peer_uid"]) == (os.getpid(), os.getuid())


def test_a_byte_at_a_time(echo: Instance) -> None:
    """A frame in single bytes is a frame; others are served between them."""
    with dial(echo.socket()) as slow, dial(echo.socket()) as quick:
        for byte in predict_frame(b"slowly"):
            slow.sendall(bytes([byte]))
            quick.sendall(PREDICT)
            assert read_predict(quick).items[0].body == b"hello"
        assert read_predict(slow).items[0].body == b"slowly"


def test_a_reader_that_never_reads(echo: Instance) -> None:
    """A 60 MiB answer that nobody takes is kept on that connection; others are answered, and its going frees everything."""
    large = 60 * 1024 * 1024
    with dial(echo.socket()) as deaf:
        deaf.sendall(predict_frame(bytes(large)))
        wait_for(lambda: echo.worker()["requests"] >= 1, "the large request to be answered")
        begun = time.monotonic()
        for _ in range(50):
            assert ask(echo.socket()) == b"hello"
        assert time.monotonic() - begun < 10
        pid = echo.worker()["pid"]
        held = resident(pid)
        assert held > large
    wait_for(lambda: resident(pid) < held - large // 2, "the memory to be given back")


def resident(pid: int) -> int:
    """Bytes of memory that a process has in use."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_body_over_the_limit(echo: Instance) -> None:
    """A parameter of more than 64 MiB is refused at its length; one at the limit would not be."""
    frame = predict_frame(b"x")
    at = frame.rindex(struct.pack("!i", 1) + b"x")
    with dial(echo.socket()) as peer:
        peer.sendall(frame[:at] + struct.pack("!i", 64 * 1024 * 1024 + 1))
        response = read_predict(peer)
    assert response.code == 413
    assert str(64 * 1024 * 1024) in response.message


def test_peers_that_come_and_go(echo: Instance) -> None:
    """500 connections that close at once, half of them in the middle of a frame, leave no descriptor behind."""
    pid = echo.worker()["pid"]
    assert ask(echo.socket()) == b"hello"
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for number in range(500):
        with dial(echo.socket()) as peer:
            if number % 2:
                peer.sendall(PREDICT[: number % len(PREDICT)])
    assert ask(echo.socket()) == b"hello"
    wait_for(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before, "the descriptors to be closed")


def test_requests_that_pretend(echo: Instance) -> None:
    """JSON that is none, text that is none, a batch of 1024 and one of 1025: each has its answer."""
    with dial(echo.socket()) as peer:
        for kind, body in (("application/json", b"{"), ("text/plain", b"\xff")):
            peer.sendall(predict_frame(body, kind))
            response = read_predict(peer)
            item = response.items[0]
            assert (response.code, item.status) == (200, 400) or item.body == body
        one = predict_frame(b"x")[1:-4]
        peer.sendall(b"I" + one * 1024 + struct.pack("!i", -1))
        assert len(read_predict(peer).items) == 1024
        peer.sendall(b"I" + one * 1025 + struct.pack("!i", -1))
        assert read_predict(peer).code == 413
        assert read_to_end(peer) == b""


def channel_of(pid: int) -> int:
    """The descriptor number of a worker's channel to the supervisor: its one SOCK_SEQPACKET socket."""
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
    inodes = {row[6] for row in rows if row[4] == "0005"}
    found = [
        int(name)
        for name in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{name}").removeprefix("socket:").strip("[]") in inodes
    ]
    (channel,) = found
    return channel


LIES = (
    "garbage",
    "[]",
    '{"kind": 5}',
    '{"kind": "unknown"}',
    "[" * 60000,
    '{"kind": "event"}',
    '{"kind": "event", "level": [], "event": {}, "fields": 3}',
    '{"kind": "event", "level": "fatal", "event": "x", "fields": {}}',
    '{"kind": "ready", "facts": {"pid": 1}}',
    '{"kind": "ready", "facts": {"pid": "1"}}',
    '{"kind": "ready", "facts": null}',
    '{"kind": "forked", "index": 0, "generation": 1, "pid": 1}',
    '{"kind": "stop"}',
)
ODD = (
    '{"self": 1, "event": 2, "seq": 3, "level": 4, "exc_info": 5, "method_name": 6, "pid": 7, "generation": 8}',
    '{"huge": 123456789012345678901234567890, "text": "\\udcff", "deep": '
    + "[" * 300
    + "]" * 300
    + "}",
)


def test_a_worker_that_lies_to_its_supervisor(echo: Instance) -> None:
    """What a handler writes to the supervisor's descriptor is no harm: it is told as a bad message, each of it."""
    channel = channel_of(echo.worker()["pid"])
    with dial(echo.socket()) as peer:
        for lie in LIES:
            peer.sendall(order_frame(do="write", fd=channel, text=lie))
            assert read_predict(peer).items[0].body == b"done"
        for fields in ODD:
            told = f'{{"kind": "event", "level": "warning", "event": "metrics.lost", "fields": {fields}}}'
            peer.sendall(order_frame(do="write", fd=channel, text=told))
            assert read_predict(peer).items[0].body == b"done"
    ready_again = sum('"ready"' in lie for lie in LIES)  # harmless, and no lie
    echo.wait_event("worker.bad_message", count=len(LIES) - ready_again + len(ODD))
    assert echo.events("metrics.lost") == []
    assert echo.status()["models"][0]["workers"][0]["phase"] == "READY"


def test_a_failing_handler_fails_its_own_batch_alone(echo: Instance) -> None:
    """An exception in the handler is a 503 for who asked; the connection goes on."""
    with dial(echo.socket()) as peer:
        peer.sendall(order_frame(do="raise", text="on purpose"))
        assert read_predict(peer).code == 503
        peer.sendall(PREDICT)
        assert read_predict(peer).items[0].body == b"hello"
    assert "on purpose" in json.dumps(echo.wait_event("request.failed"))
