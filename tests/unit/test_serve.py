"""A living worker on a real socket: whatever its peers do, everybody else is answered."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelworker import serve as serve_module
from modelworker.channel import Channel
from modelworker.loader import LoadedModel
from modelworker.scoreboard import RECORD_SIZE, Reading, Record, read_record
from modelworker.serve import ServeSettings, serve
from modelworker.service import Context
from modelworker.wire import (
    LoadCommand,
    LoadResponse,
    Parameter,
    PredictResponse,
    Request,
    ResponseReader,
    encode_load,
    encode_predict,
)

from modelsupervisor.log.catalogue import objection

LIMIT = 30.0  # for anything that must happen; a healthy machine needs milliseconds
WORKER = str(Path(__file__).parents[2] / "worker")

Handle = Callable[[Any, Context], Any]


def ask(body: bytes = b"hello", name: str = "r1", content_type: str = "") -> bytes:
    return encode_predict([Request(name, [], [Parameter("body", content_type, body)])])


def echo(data: Any, context: Context) -> Any:
    return [row.get("body", b"") for row in data]


class Peer:
    """One connection to the worker."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(LIMIT)
        self.sock.connect(path)
        self.reader = ResponseReader()

    def send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def _receive(self, next_response: Callable[[], Any]) -> Any:
        response = next_response()
        while response is None:
            chunk = self.sock.recv(65536)
            if not chunk:
                return None
            self.reader.feed(chunk)
            response = next_response()
        return response

    def response(self) -> PredictResponse | None:
        """The next response, None when the worker closes the connection instead."""
        response: PredictResponse | None = self._receive(self.reader.next_predict_response)
        return response

    def load_response(self) -> LoadResponse | None:
        response: LoadResponse | None = self._receive(self.reader.next_load_response)
        return response

    def body(self) -> bytes:
        response = self.response()
        assert response is not None
        assert response.code == 200
        return response.items[0].body

    def ended(self) -> bool:
        """Wait for the worker to close this connection."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True  # closed with bytes of ours unread

    def close(self) -> None:
        self.sock.close()


class Worker:
    """`serve` in a thread, with the supervisor's ends of what it was given."""

    def __init__(self, folder: Path, handle: Handle, settings: ServeSettings) -> None:
        self.path = str(folder / "w.sock")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(128)
        self.supervisor, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(end)
        self.ours = Channel(self.supervisor)
        self.memory = bytearray(RECORD_SIZE)
        record = Record(self.memory)
        record.reset(1)
        context = Context("m", str(folder), {}, 8, None, "0.1.0")
        model = LoadedModel("m", str(folder), handle, context, ModuleType("m"), None)
        self.code: int | None = None
        self.seen: list[dict[str, Any]] = []
        self.peers: list[Peer] = []

        def run() -> None:
            self.code = serve(lambda: model, self.listener, self.channel, record, settings)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def peer(self) -> Peer:
        self.peers.append(Peer(self.path))
        return self.peers[-1]

    def reading(self) -> Reading:
        return read_record(self.memory)

    def wait(self, fact: Callable[[], Any]) -> None:
        """Return when the fact holds."""
        deadline = time.monotonic() + LIMIT
        while not fact():
            assert time.monotonic() < deadline, "it did not come about"
            assert self.thread.is_alive()
            threading.Event().wait(0.001)

    def event(self, name: str) -> dict[str, Any]:
        """The fields of the next event of this name that the supervisor gets."""

        def arrived() -> bool:
            message = self.ours.receive()
            while message is not None:
                self.seen.append(message)
                message = self.ours.receive()
            return any(each.get("event") == name for each in self.seen)

        self.wait(arrived)
        message = next(each for each in self.seen if each.get("event") == name)
        self.seen.remove(message)
        fields: dict[str, Any] = message["fields"]
        assert objection(message["level"], name, fields) is None
        return {"level": message["level"], **fields}

    def ended(self) -> int | None:
        self.thread.join(LIMIT)
        assert not self.thread.is_alive()
        return self.code

    def stop(self) -> int | None:
        self.ours.send("stop")
        return self.ended()

    def close(self) -> None:
        if self.thread.is_alive():
            self.supervisor.close()
            self.thread.join(LIMIT)
        for peer in self.peers:
            peer.close()
        for each in (self.supervisor, self.listener, self.channel):
            each.close()
        assert not self.thread.is_alive()


Make = Callable[..., Worker]


@pytest.fixture
def make(short_tmp: Path) -> Iterator[Make]:
    """Starts workers; each is to be alive and answering at the end of its test, or to have ended."""
    made: list[Worker] = []

    def start(handle: Handle = echo, connections: int = 64, timeout: float = 60.0) -> Worker:
        folder = short_tmp / str(len(made))
        folder.mkdir()
        made.append(Worker(folder, handle, ServeSettings(connections, timeout)))
        return made[-1]

    yield start
    for worker in made:
        worker.close()


def alive(worker: Worker) -> None:
    """A fresh connection is answered."""
    peer = worker.peer()
    peer.send(ask(b"alive"))
    assert peer.body() == b"alive"
    peer.close()


# Answers


def test_a_connection_is_answered_again_and_again(make: Make) -> None:
    """One connection, many batches, each counted."""
    worker = make()
    peer = worker.peer()
    for number in range(100):
        peer.send(ask(b"%d" % number))
        assert peer.body() == b"%d" % number
    worker.wait(lambda: worker.reading() == Reading(1, 100, 0.0, 0, ()))


def test_pipelined_frames_are_all_answered_in_order(make: Make) -> None:
    """More than one read takes, with half a frame at the end of a read."""
    worker = make()
    peer = worker.peer()
    sender = threading.Thread(
        target=peer.send, args=[b"".join(ask(b"%d" % n * 50) for n in range(5000))]
    )
    sender.start()
    for number in range(5000):
        assert peer.body() == b"%d" % number * 50
    sender.join()


def test_large_bodies_go_both_ways(make: Make) -> None:
    """8 MiB: many partial reads, many partial writes."""
    body = os.urandom(1 << 23)
    worker = make()
    peer = worker.peer()
    sender = threading.Thread(target=peer.send, args=[ask(body)])
    sender.start()
    assert peer.body() == body
    sender.join()
    alive(worker)


def test_a_peer_that_only_closed_its_sending_side_is_answered(make: Make) -> None:
    """What it sent before is run; then its connection ends."""
    worker = make()
    peer = worker.peer()
    peer.send(ask(b"1") + ask(b"2") + ask()[:5])
    peer.sock.shutdown(socket.SHUT_WR)
    assert (peer.body(), peer.body()) == (b"1", b"2")
    assert peer.ended()


def test_the_record_shows_the_batch_while_it_runs(make: Make) -> None:
    """Its ids and its start, before the handler gets it."""
    seen: list[Reading] = []

    def handle(data: Any, context: Context) -> Any:
        seen.append(worker.reading())
        return [b"", b""]

    worker: Worker = make(handle)
    begun = time.monotonic()
    peer = worker.peer()
    peer.send(encode_predict([Request("a", [], []), Request("b", [], [])]))
    assert peer.response() is not None
    (reading,) = seen
    assert (reading.ids, reading.in_hand, reading.requests) == (("a", "b"), 2, 0)
    assert begun <= reading.busy_since <= time.monotonic()
    worker.wait(lambda: worker.reading() == Reading(1, 2, 0.0, 0, ()))


def test_a_failing_handler_fails_its_batch_only(make: Make) -> None:
    """503, one event, and the next batch of the same connection runs."""

    def handle(data: Any, context: Context) -> Any:
        if data[0]["body"] == b"bad":
            raise ValueError("boom")
        return echo(data, context)

    worker = make(handle)
    peer = worker.peer()
    peer.send(ask(b"bad") + ask(b"good", "r2"))
    response = peer.response()
    assert response is not None
    assert (response.code, response.message) == (503, "Prediction failed")
    assert peer.body() == b"good"
    told = worker.event("request.failed")
    assert (told["level"], told["request_ids"], told["error"]) == ("error", ["r1"], "ValueError")
    assert 'raise ValueError("boom")' in told["traceback"]


def test_metrics_are_printed_when_the_batch_ends(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one that cannot be printed is told, not fatal."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def handle(data: Any, context: Context) -> Any:
        value: Any = Broken() if data[0]["body"] == b"broken" else 1
        context.metrics.add_metric("n", value, 0)
        return [b""]

    worker = make(handle)
    peer = worker.peer()
    peer.send(ask(b"broken"))
    assert peer.body() == b""
    assert worker.event("metrics.lost")["error"] == "RuntimeError: no text"
    peer.send(ask(b"fine") + ask(b"fine", "r2"))
    assert (peer.body(), peer.body()) == (b"", b"")
    assert worker.stop() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[METRICS]n.unit:1|#ModelName:m,Level:Model|#hostname:")
    assert lines[0].endswith(",r1")


# The load command


def test_load_of_what_is_served_is_200_with_the_pid(make: Make, short_tmp: Path) -> None:
    """The same name and real path, also over a symlink; the message ends as MMS needs it."""
    worker = make()
    link = short_tmp / "link"
    link.symlink_to(os.path.dirname(worker.path))
    peer = worker.peer()
    for path in (os.path.dirname(worker.path), str(link), os.path.dirname(worker.path) + "/"):
        peer.send(encode_load(LoadCommand("m", path, 1, "any:handler", -1, "ignored")))
        response = peer.load_response()
        assert response == LoadResponse(200, f"loaded model m. [PID]:{os.getpid()}")


@pytest.mark.parametrize(("name", "path"), [("other", None), ("m", "/nowhere"), ("m", "/\0")])
def test_load_of_anything_else_is_409(make: Make, name: str, path: str | None) -> None:
    """It says what is served, and the connection stays usable."""
    worker = make()
    served = os.path.dirname(worker.path)
    peer = worker.peer()
    peer.send(encode_load(LoadCommand(name, path or served, 1, "s", -1, "")))
    response = peer.load_response()
    assert response is not None
    assert response.code == 409
    assert f"expected 'm' at {served!r}" in response.message
    peer.send(ask(b"still"))
    assert peer.body() == b"still"


# Peers that misbehave


def test_a_bad_frame_is_answered_closed_and_told(make: Make) -> None:
    """What, where, expected; with the pid and uid of whoever sent it; others go on."""
    worker = make()
    other, peer = worker.peer(), worker.peer()
    other.send(ask()[:20])
    peer.send(b"Xyz")
    response = peer.response()
    assert response is not None
    assert (response.code, response.items) == (400, [])
    assert "0x58 at byte 0 of the frame; expected" in response.message
    assert peer.ended()
    told = worker.event("worker.bad_frame")
    assert (told["level"], told["code"], told["error"]) == ("warning", 400, response.message)
    assert (told["peer_pid"], told["peer_uid"]) == (os.getpid(), os.getuid())
    other.send(ask()[20:])
    assert other.body() == b"hello"


def test_an_answer_comes_before_the_error_of_what_follows_it(make: Make) -> None:
    """A good frame is not lost to the nonsense behind it."""
    worker = make()
    peer = worker.peer()
    peer.send(ask(b"good") + b"X")
    assert peer.body() == b"good"
    response = peer.response()
    assert response is not None
    assert response.code == 400
    assert peer.ended()


def test_a_length_over_the_limit_is_413(make: Make) -> None:
    """Refused when it is announced."""
    worker = make()
    peer = worker.peer()
    peer.send(b"I\x7f\xff\xff\xff")
    response = peer.response()
    assert response is not None
    assert response.code == 413
    assert peer.ended()


def test_every_damaged_byte_is_answered_or_closed_and_the_worker_lives(make: Make) -> None:
    """Every single-byte change (bits flipped, 0, 255) of a predict frame, each on its own connection."""
    worker = make()
    frame = encode_predict(
        [Request("r1", [("A", "b")], [Parameter("body", "application/json", b'{"a":1}')])]
    )
    outcomes = {"answered": 0, "refused": 0, "closed": 0}
    for at in range(len(frame)):
        for value in {0, 255, frame[at] ^ 1, frame[at] ^ 0x80, frame[at] ^ 0x20} - {frame[at]}:
            peer = worker.peer()
            # The worker may refuse and close before all of it is sent.
            with contextlib.suppress(BrokenPipeError):
                peer.send(frame[:at] + bytes((value,)) + frame[at + 1 :])
                peer.sock.shutdown(socket.SHUT_WR)
            try:
                response = peer.response()
            except ConnectionResetError:
                response = None
            if response is None:
                outcomes["closed"] += 1
            else:
                outcomes["answered" if response.code == 200 else "refused"] += 1
            peer.close()
    assert all(outcomes.values()), outcomes
    alive(worker)


def test_every_prefix_waits_and_its_end_of_file_ends_it_alone(make: Make) -> None:
    """A peer that leaves in the middle of a frame harms nobody."""
    worker = make()
    frame = ask()
    for size in range(len(frame)):
        peer = worker.peer()
        peer.send(frame[:size])
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.ended()
        peer.close()
    alive(worker)


def test_64_connections_at_once_half_sent_frames_among_them(make: Make) -> None:
    """Each is answered with its own; those that are half sent wait for their rest and get theirs."""
    worker = make()
    peers = [worker.peer() for _ in range(64)]
    half = {number for number in range(64) if number % 3 == 0}
    frames = [ask(b"%d" % number * 100, f"r{number}") for number in range(64)]
    for number, peer in enumerate(peers):
        peer.send(frames[number][: len(frames[number]) // 2] if number in half else frames[number])
    for number, peer in enumerate(peers):
        if number not in half:
            assert peer.body() == b"%d" % number * 100
    for number in sorted(half):
        peers[number].send(frames[number][len(frames[number]) // 2 :])
        assert peers[number].body() == b"%d" % number * 100
    worker.wait(lambda: worker.reading().requests == 64)


def test_a_flood_on_one_connection_does_not_starve_another(make: Make) -> None:
    """Round robin: between two of its batches the other one has its turn."""
    order: list[str] = []
    release = threading.Event()

    def handle(data: Any, context: Context) -> Any:
        release.wait(LIMIT)
        order.append(context.get_request_id() or "")
        return [b""]

    worker = make(handle)
    flood, other = worker.peer(), worker.peer()
    flood.send(b"".join(ask(b"", f"f{number}") for number in range(20)))
    worker.wait(lambda: worker.reading().ids == ("f0",))
    other.send(ask(b"", "other"))
    release.set()
    assert other.response() is not None
    for _ in range(20):
        assert flood.response() is not None
    assert order.index("other") <= 2


def test_half_a_frame_is_closed_after_the_frame_timeout_alone(make: Make) -> None:
    """Trickling or silent; an idle connection and a busy worker do not matter."""
    worker = make(timeout=0.3)
    idle, silent, trickling = worker.peer(), worker.peer(), worker.peer()
    silent.send(ask()[:7])
    done = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            for byte in ask(b"x" * 60_000):
                trickling.send(bytes((byte,)))
                if done.wait(0.01):
                    return

    thread = threading.Thread(target=trickle)
    thread.start()
    begun = time.monotonic()
    while not (worker.seen and len([e for e in worker.seen if e.get("event")]) >= 2):
        idle.send(ask(b"busy"))
        assert idle.body() == b"busy"
        message = worker.ours.receive()
        if message is not None:
            worker.seen.append(message)
        assert time.monotonic() < begun + LIMIT
    assert time.monotonic() >= begun + 0.25
    assert silent.ended()
    assert trickling.ended()
    done.set()
    thread.join()
    told = worker.event("worker.frame_timeout")
    assert told["peer_pid"] == os.getpid()
    assert told["error"] == "half a frame"
    idle.send(ask(b"idle"))
    assert idle.body() == b"idle"


def test_a_reader_that_takes_nothing_stalls_nobody_and_is_closed(make: Make) -> None:
    """Its reply is kept on its own connection, its further frames wait, and its time runs out."""
    worker = make(lambda data, context: [b"x" * (1 << 22)] * len(data), timeout=0.3)
    stalled = worker.peer()
    stalled.send(ask(b"", "s1") + ask(b"", "s2"))
    worker.wait(lambda: worker.reading().requests == 1)
    other = worker.peer()
    other.send(ask())
    assert len(other.body()) == 1 << 22
    told = worker.event("worker.frame_timeout")
    assert told["error"] == "a reader that takes nothing"
    assert worker.reading().requests == 2
    with pytest.raises((AssertionError, ConnectionResetError)):
        stalled.body()


def test_a_reader_that_takes_its_time_gets_everything(make: Make) -> None:
    """Slow, but never for longer than the timeout without progress; then its next frame runs."""
    worker = make(lambda data, context: [b"x" * (1 << 21)] * len(data), timeout=1.0)
    peer = worker.peer()
    peer.send(ask() + ask())
    for _ in range(2):
        assert len(peer.body()) == 1 << 21


def test_a_waiting_batch_whose_client_is_gone_is_not_run(make: Make) -> None:
    """It closed while another's batch ran: nobody wants that answer."""
    release = threading.Event()
    ran: list[str] = []

    def handle(data: Any, context: Context) -> Any:
        ran.append(context.get_request_id() or "")
        release.wait(LIMIT)
        return [b""]

    worker = make(handle)
    first, gone, last = worker.peer(), worker.peer(), worker.peer()
    for peer in (gone, last):  # so that both are accepted
        peer.send(encode_load(LoadCommand("other", "/", 1, "s", -1, "")))
        assert peer.load_response() is not None
    first.send(ask(name="1") + ask(name="2"))
    worker.wait(lambda: ran == ["1"])
    last.send(ask(name="last"))
    gone.send(ask(name="gone"))
    gone.close()
    release.set()
    assert last.response() is not None
    for _ in range(2):
        assert first.response() is not None
    # In the turn that read "gone", its end was there, too: it ran at once or never, and harmed nobody.
    assert [each for each in ran if each != "gone"] in (["1", "last", "2"], ["1", "2", "last"])


# Accepting


def test_beyond_max_connections_the_backlog_waits(make: Make) -> None:
    """Not accepted, hence not lost with us; a close lets the next one in."""
    worker = make(connections=2)
    first, second, third = worker.peer(), worker.peer(), worker.peer()
    third.send(ask(b"third"))
    for peer in (first, second, first):
        peer.send(ask(b"in"))
        assert peer.body() == b"in"
    third.sock.settimeout(0.05)
    with pytest.raises(socket.timeout):
        third.response()
    third.sock.settimeout(LIMIT)
    first.close()
    assert third.body() == b"third"


def test_a_full_worker_lets_idle_connections_go(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections that clients only keep do not shut others out: the one that idled longest is closed."""
    monkeypatch.setattr(serve_module, "IDLE_BORNE", 0.2)
    worker = make(connections=2)
    oldest, newer = worker.peer(), worker.peer()
    for peer in (oldest, newer):
        peer.send(ask(b"in"))
        assert peer.body() == b"in"
    third = worker.peer()
    third.send(ask(b"third"))
    assert third.body() == b"third"
    assert oldest.ended()
    newer.send(ask(b"still in"))
    assert newer.body() == b"still in"


class NoDescriptors:
    """A listener whose accept fails as it does when the process has no descriptor left."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.failures = 2
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        if self.calls <= self.failures:
            raise OSError(24, "Too many open files")
        return self._listener.accept()


def test_accept_that_fails_pauses_and_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event and one try a pause, no spinning; the connection is accepted in the end."""
    monkeypatch.setattr(serve_module, "ACCEPT_PAUSE", 0.1)
    real = serve_module._Worker.__init__
    listeners: list[NoDescriptors] = []

    def fake(self: Any, model: Any, listener: Any, *rest: Any) -> None:
        listeners.append(NoDescriptors(listener))
        real(self, model, listeners[0], *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(serve_module._Worker, "__init__", fake)
    worker = make()
    alive(worker)
    assert listeners[0].calls == 3
    for _ in range(2):
        told = worker.event("worker.accept_failed")
        assert told["error"] == "EMFILE: Too many open files"


def test_a_connection_that_another_process_took_is_no_error(make: Make) -> None:
    """The listener is shared: what epoll announced may be gone."""
    worker = make()
    for _ in range(50):
        peer = worker.peer()
        with contextlib.suppress(BlockingIOError):
            worker.listener.accept()[0].close()
        peer.close()
    alive(worker)


# The end


def test_stop_finishes_the_batch_in_hand_and_takes_no_more(make: Make) -> None:
    """Its answer goes out; a frame that waits is not run, its client sees the end; exit code 0."""
    entered, release = threading.Event(), threading.Event()

    def handle(data: Any, context: Context) -> Any:
        entered.set()
        release.wait(LIMIT)
        return [b"done"]

    worker = make(handle)
    peer, waiting = worker.peer(), worker.peer()
    waiting.send(encode_load(LoadCommand("other", "/", 1, "s", -1, "")))
    assert waiting.load_response() is not None
    peer.send(ask())
    assert entered.wait(LIMIT)
    waiting.send(ask())
    worker.ours.send("stop")
    release.set()
    assert peer.body() == b"done"
    assert worker.ended() == 0
    assert peer.ended()
    assert waiting.ended()
    assert worker.reading().requests == 1


def test_stop_flushes_what_a_slow_reader_has_not_taken(make: Make) -> None:
    """A reply in hand is delivered whole."""
    worker = make(lambda data, context: [b"x" * (1 << 22)])
    peer = worker.peer()
    peer.send(ask() + ask())
    worker.wait(lambda: worker.reading().requests == 1)
    worker.ours.send("stop")
    assert len(peer.body()) == 1 << 22
    assert worker.ended() == 0
    assert peer.ended()
    assert worker.reading().requests == 1


def test_stop_gives_up_on_a_reader_that_takes_nothing(make: Make) -> None:
    """After the frame timeout, as ever."""
    worker = make(lambda data, context: [b"x" * (1 << 22)], timeout=0.2)
    peer = worker.peer()
    peer.send(ask())
    worker.wait(lambda: worker.reading().requests == 1)
    assert worker.stop() == 0


@pytest.mark.parametrize("flushing", [False, True])
def test_without_a_supervisor_it_ends_at_once(make: Make, flushing: bool) -> None:
    """End of file on the channel, also while a reply is being flushed."""
    worker = make(lambda data, context: [b"x" * (1 << 22)])
    peer = worker.peer()
    peer.send(ask())
    worker.wait(lambda: worker.reading().requests == 1)
    if flushing:
        worker.ours.send("stop")
    worker.supervisor.close()
    assert worker.ended() == 0


def test_a_ping_is_answered_between_two_batches(make: Make) -> None:
    """At once by an idle worker, after its batch by a busy one, each ping once: who answers does not hang."""
    entered, release = threading.Event(), threading.Event()

    def handle(data: Any, context: Context | None) -> list[bytes]:
        entered.set()
        release.wait(LIMIT)
        return [b"done"]

    worker = make(handle)
    echoes: list[dict[str, Any]] = []

    def heard(count: int) -> bool:
        while (message := worker.ours.receive()) is not None:
            echoes.append(message)
        return len(echoes) >= count

    worker.ours.send("ping")
    worker.wait(lambda: heard(1))
    peer = worker.peer()
    peer.send(ask())
    assert entered.wait(LIMIT)
    worker.ours.send("ping")
    worker.ours.send("ping")
    assert not heard(2)
    release.set()
    assert peer.body() == b"done"
    worker.wait(lambda: heard(3))
    assert echoes == [{"kind": "echo"}] * 3
    assert worker.stop() == 0


def test_messages_of_another_kind_are_passed_over(make: Make) -> None:
    """A newer supervisor may say more."""
    worker = make()
    worker.ours.send("hello")
    alive(worker)
    assert worker.stop() == 0


def test_the_listener_survives_us(make: Make) -> None:
    """It is the slot's: connections in its backlog are the successor's."""
    worker = make(connections=1)
    first, second = worker.peer(), worker.peer()
    first.send(ask())
    assert first.body() == b"hello"
    assert worker.stop() == 0
    accepted, _ = worker.listener.accept()
    accepted.close()
    second.close()


EXITS = """
import mmap, os, socket, sys
from types import ModuleType
from modelworker.channel import Channel
from modelworker.loader import LoadedModel
from modelworker.scoreboard import RECORD_SIZE, Record
from modelworker.serve import ServeSettings, serve
from modelworker.service import Context

def handle(data, context):
    sys.stdout.write("last words")
    raise SystemExit({argument})

listener = socket.socket(fileno=int(sys.argv[1]))
context = Context("m", "/", {{}}, 1, None, "0")
model = LoadedModel("m", "/", handle, context, ModuleType("m"), None)
channel = Channel(socket.socket(fileno=int(sys.argv[2])))
record = Record(bytearray(RECORD_SIZE))
try:
    serve(lambda: model, listener, channel, record, ServeSettings(4, 30.0))
finally:
    print("unwound")
"""


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [("", 0, ""), ("3", 3, ""), ("300", 44, ""), ("None", 0, ""), ("'why'", 1, "why\n")],
)
def test_a_handler_that_exits_ends_the_worker(
    short_tmp: Path, argument: str, code: int, said: str
) -> None:
    """With its code, its output flushed, the request unanswered, and nothing unwound."""
    path = str(short_tmp / "w.sock")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(1)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        stack.enter_context(theirs)
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                EXITS.format(argument=argument),
                str(listener.fileno()),
                str(theirs.fileno()),
            ],
            pass_fds=(listener.fileno(), theirs.fileno()),
            env={**os.environ, "PYTHONPATH": WORKER},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        peer = Peer(path)
        stack.callback(peer.close)
        peer.send(ask())
        assert peer.ended()
        out, err = process.communicate(timeout=LIMIT)
        assert (process.returncode, out, err) == (code, "last words", said)
