"""client.py, connection.py, prediction.py and unixsocket.py against fake workers on real sockets.

A fake worker is a listening socket, which the test holds as the supervisor holds a slot's, and a
thread that gives each connection it accepts the next behaviour of its list (the last one goes on).
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modelworker.wire import (
    CommandReader,
    PredictCommand,
    Request,
    ResponseItem,
    encode_predict_response,
)

from modelsupervisor.client import Client, Parameter, Prediction, PredictionRequest
from modelsupervisor.connection import Connection
from modelsupervisor.errors import (
    ClientError,
    PredictionFailedError,
    PredictionTimeoutError,
    ProtocolError,
    WorkerCrashedError,
    WorkerUnavailableError,
)
from modelsupervisor.prediction import LARGEST_BODY
from modelsupervisor.unixsocket import BacklogFull, dial

Behaviour = Callable[[socket.socket], None]


def read_command(peer: socket.socket, reader: CommandReader) -> PredictCommand | None:
    """The next batch of a connection; None when the client has closed it."""
    while (command := reader.next_command()) is None:
        chunk = peer.recv(65536)
        if not chunk:
            return None
        reader.feed(chunk)
    assert isinstance(command, PredictCommand)
    return command


def echo(request: Request) -> ResponseItem:
    """The request's first parameter with its content type, under its id."""
    first = request.parameters[0]
    return ResponseItem(request.request_id, first.content_type, 200, "OK", [], first.value)


def encoded_echo(command: PredictCommand) -> bytes:
    return encode_predict_response(200, "Prediction success", [echo(r) for r in command.requests])


def answer(peer: socket.socket) -> None:
    """Echoes until the client closes."""
    reader = CommandReader()
    while (command := read_command(peer, reader)) is not None:
        peer.sendall(encoded_echo(command))


def answer_once(peer: socket.socket) -> None:
    """Echoes one batch and closes."""
    command = read_command(peer, CommandReader())
    assert command is not None
    peer.sendall(encoded_echo(command))


def die(peer: socket.socket) -> None:
    """Reads a batch whole and dies with it."""
    read_command(peer, CommandReader())


def die_in_the_answer(peer: socket.socket) -> None:
    """Reads a batch whole and dies after half of the answer."""
    command = read_command(peer, CommandReader())
    assert command is not None
    whole = encoded_echo(command)
    peer.sendall(whole[: len(whole) // 2])


def close_at_once(peer: socket.socket) -> None:
    """What the supervisor does for a slot that is DOWN or FAILED."""


def say(response: bytes) -> Behaviour:
    """Answers every batch with the same bytes."""

    def behaviour(peer: socket.socket) -> None:
        reader = CommandReader()
        while read_command(peer, reader) is not None:
            peer.sendall(response)

    return behaviour


class FakeWorker:
    """A slot's socket and, once it serves, a thread for it and one for each connection."""

    def __init__(self, path: Path, backlog: int = 128) -> None:
        self.path = str(path)
        self.accepted = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(backlog)
        self._peers: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def serve(self, *behaviours: Behaviour) -> FakeWorker:
        self._threads.append(threading.Thread(target=self._accept, args=[list(behaviours)]))
        self._threads[0].start()
        return self

    def _accept(self, behaviours: list[Behaviour]) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
            self._peers.append(peer)
            self._threads.append(threading.Thread(target=self._run, args=[behaviour, peer]))
            self._threads[-1].start()

    def _run(self, behaviour: Behaviour, peer: socket.socket) -> None:
        try:
            behaviour(peer)
        except OSError:
            pass  # the test ended the connection
        finally:
            peer.close()

    def drop_connections(self) -> None:
        """All connections accepted so far end, and their threads with them."""
        for peer in self._peers:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already
        for thread in self._threads[1:]:
            thread.join(10)

    def close(self) -> None:
        """Nobody listens any more; the name stays."""
        if self.listener.fileno() >= 0:
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes accept, which close alone does not
        if self._threads:
            self._threads[0].join(10)
        self.listener.close()
        self.drop_connections()


Make = Callable[..., FakeWorker]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """`make(*behaviours, backlog=128)`: the next worker m.0, m.1 …; without behaviours it only
    listens."""
    workers: list[FakeWorker] = []

    def make_worker(*behaviours: Behaviour, backlog: int = 128) -> FakeWorker:
        worker = FakeWorker(tmp_path / f"m.{len(workers)}.sock", backlog)
        workers.append(worker)
        return worker.serve(*behaviours) if behaviours else worker

    yield make_worker
    for worker in workers:
        worker.close()


@pytest.fixture
def fill() -> Iterator[Callable[[FakeWorker], None]]:
    """`fill(worker)`: takes all places of its backlog until the end of the test."""
    held: list[socket.socket] = []

    def fill_backlog(worker: FakeWorker) -> None:
        while True:
            try:
                held.append(dial(worker.path))
            except BacklogFull:
                return

    yield fill_backlog
    for each in held:
        each.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def client_of(*workers: FakeWorker, **options: object) -> Client:
    return Client([worker.path for worker in workers], **options)  # type: ignore[arg-type]


# What is asked and what comes back


def test_prediction_has_all_of_the_answer(make: Make) -> None:
    """Status, phrase, content type, headers, body and worker are the worker's own words."""

    def handler(peer: socket.socket) -> None:
        command = read_command(peer, CommandReader())
        assert command is not None
        (request,) = command.requests
        assert request == Request(
            "r1",
            [("X-Trace", "é"), ("Content-Type", "image/png")],
            [Parameter("body", "image/png", b"\x89PNG")],
        )
        item = ResponseItem("r1", "application/json", 201, "Créé", [("A", "1")], b'{"label": 7}')
        peer.sendall(encode_predict_response(200, "Prediction success", [item]))

    worker = make(handler)
    with client_of(worker) as client:
        answer_ = client.predict(b"\x89PNG", "image/png", headers={"X-Trace": "é"}, request_id="r1")
    assert answer_ == Prediction(
        "r1", 201, "Créé", "application/json", (("A", "1"),), b'{"label": 7}', worker.path
    )
    assert answer_.json() == {"label": 7}
    assert answer_.text == '{"label": 7}'
    assert answer_.ok


def test_content_type_header_of_the_caller_stays() -> None:
    """A Content-Type header in any letter case is not doubled."""
    request = PredictionRequest(b"x", "text/plain", {"content-type": "text/csv"})
    assert request.encoded().headers == [("content-type", "text/csv")]


def test_parameters_go_as_they_are() -> None:
    """A form's parameters keep names, types and order, and get no Content-Type header."""
    form = [Parameter("a", "text/plain", b"1"), Parameter("img", "image/png", b"2")]
    encoded = PredictionRequest(form).encoded()
    assert encoded.parameters == form
    assert encoded.headers == []


@pytest.mark.parametrize("body", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_any_buffer_is_a_body(make: Make, body: bytes | bytearray | memoryview) -> None:
    """bytes, bytearray and memoryview are the same request."""
    with client_of(make(answer)) as client:
        assert client.predict(body).body == b"abc"


def test_str_body_is_refused(make: Make) -> None:
    """A str has no bytes until somebody chooses an encoding."""
    with client_of(make(answer)) as client, pytest.raises(TypeError, match="encode"):
        client.predict("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("", "é".encode(), "é"),
        ("text/plain; charset=latin-1", "é".encode("latin-1"), "é"),
        ('text/plain; charset="utf-16-le"', "é".encode("utf-16-le"), "é"),
        ("text/plain; charset=klingon", b"e", "e"),
        ("text/plain", b"\xff", "\ufffd"),
    ],
)
def test_text_follows_the_content_type(content_type: str, body: bytes, text: str) -> None:
    """The character set that the answer names, else UTF-8; never an exception."""
    assert Prediction("r", 200, "", content_type, (), body, "").text == text


def test_batch_is_one_frame_in_the_callers_order(make: Make) -> None:
    """All requests arrive together; answers in another order come back in the order asked."""
    sizes = []

    def backwards(peer: socket.socket) -> None:
        command = read_command(peer, CommandReader())
        assert command is not None
        sizes.append(len(command.requests))
        items = [echo(request) for request in reversed(command.requests)]
        peer.sendall(encode_predict_response(200, "Prediction success", items))

    with client_of(make(backwards)) as client:
        answers = client.predict_batch([b"a", PredictionRequest(b"b", "text/plain"), b"c"])
        assert client.predict_batch([]) == []
    assert [each.body for each in answers] == [b"a", b"b", b"c"]
    assert answers[1].content_type == "text/plain"
    assert len({each.request_id for each in answers}) == 3
    assert sizes == [3]


def test_same_id_twice_in_a_batch_is_refused(make: Make) -> None:
    """Answers are told apart by their ids."""
    request = PredictionRequest(b"", request_id="same")
    with client_of(make(answer)) as client, pytest.raises(ValueError, match="request_id"):
        client.predict_batch([request, request])


def test_large_bodies_both_ways(make: Make) -> None:
    """A frame of many socket buffers goes out and comes back whole."""
    body = os.urandom(1 << 20) * 8
    with client_of(make(answer)) as client:
        assert client.predict(body).body == body


def test_body_over_the_limit_is_not_even_sent(make: Make) -> None:
    """What every worker refuses is refused here, with the worker's code."""
    worker = make(answer)
    with client_of(worker) as client, pytest.raises(PredictionFailedError) as caught:
        client.predict(bytes(LARGEST_BODY + 1))
    assert caught.value.code == 413
    assert worker.accepted == 0


def test_item_status_is_the_callers_to_judge(make: Make) -> None:
    """A handler that answers 404 has answered."""

    def missing(peer: socket.socket) -> None:
        command = read_command(peer, CommandReader())
        assert command is not None
        item = ResponseItem(command.requests[0].request_id, "", 404, "No such thing", [], b"")
        peer.sendall(encode_predict_response(200, "Prediction success", [item]))

    with client_of(make(missing)) as client:
        answer_ = client.predict(b"")
    assert (answer_.status, answer_.ok) == (404, False)


# Errors of the worker's own


def test_error_of_the_whole_batch_is_raised_and_the_connection_kept(make: Make) -> None:
    """A top code other than 200 carries the worker's code and message; it is not asked again."""
    worker = make(say(encode_predict_response(503, "Prediction failed", [])))
    with client_of(worker) as client:
        for _ in range(2):
            with pytest.raises(PredictionFailedError, match="503 Prediction failed") as caught:
                client.predict(b"")
            assert (caught.value.code, caught.value.message) == (503, "Prediction failed")
    assert worker.accepted == 1


@pytest.mark.parametrize(
    "response",
    [
        b"\xff" * 64,
        encode_predict_response(200, "", []),
        encode_predict_response(200, "", [ResponseItem("other", "", 200, "", [], b"")]),
    ],
    ids=["garbage", "no item", "another id"],
)
def test_wrong_bytes_are_a_protocol_error_and_the_connection_is_dropped(
    make: Make, response: bytes
) -> None:
    """An answer that is not ours is never handed out, and what may follow it is not read."""
    worker = make(say(response), answer)
    with client_of(worker) as client:
        with pytest.raises(ProtocolError, match=r"m\.0\.sock"):
            client.predict(b"", request_id="mine")
        assert client.predict(b"next").body == b"next"
    assert worker.accepted == 2


def test_bytes_after_the_answer_do_not_become_the_next_answer(make: Make) -> None:
    """A connection that said more than was asked is not used again."""

    def chatty(peer: socket.socket) -> None:
        reader = CommandReader()
        while (command := read_command(peer, reader)) is not None:
            peer.sendall(encoded_echo(command) + b"\0\0")

    worker = make(chatty, answer)
    with client_of(worker) as client:
        assert client.predict(b"1").body == b"1"
        assert client.predict(b"2").body == b"2"
    assert worker.accepted == 2


def test_bytes_between_two_requests_are_not_the_next_answer(make: Make) -> None:
    """A worker that says something unasked while its connection is idle is not listened to."""
    go, said = threading.Event(), threading.Event()

    def unasked(peer: socket.socket) -> None:
        reader = CommandReader()
        command = read_command(peer, reader)
        assert command is not None
        peer.sendall(encoded_echo(command))
        go.wait(10)
        peer.sendall(encode_predict_response(503, "unasked", []))
        said.set()
        answer(peer)

    worker = make(unasked, answer)
    with client_of(worker) as client:
        assert client.predict(b"1").body == b"1"
        go.set()
        assert said.wait(10)
        assert client.predict(b"2").body == b"2"
    assert worker.accepted == 2


def test_answer_of_a_worker_that_has_closed_already_is_heard() -> None:
    """Where sending fails because the worker is gone, what it said before is still the answer."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.sendall(encode_predict_response(413, "too long", []))
    theirs.close()
    connection = Connection(ours)
    response = connection.exchange(b"I" + bytes(100), time.monotonic() + 10)
    connection.close()
    assert (response.code, response.message) == (413, "too long")
    assert not connection.reusable


def test_both_directions_at_once() -> None:
    """A worker that sends much before it reads does not wait for a client that sends much."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    item = ResponseItem("r", "", 200, "", [], bytes(4 << 20))
    frame = bytes(4 << 20)

    def send_then_read() -> int:
        theirs.sendall(encode_predict_response(200, "", [item]))
        return len(theirs.recv(len(frame), socket.MSG_WAITALL))

    with ThreadPoolExecutor(1) as pool, theirs:
        read = pool.submit(send_then_read)
        connection = Connection(ours)
        try:
            response = connection.exchange(frame, time.monotonic() + 10)
        finally:
            connection.close()
        assert response.items == [item]
        assert read.result(10) <= len(frame)


def test_answer_before_the_frame_is_read(make: Make) -> None:
    """413 to the first bytes of a long frame is heard, although the rest is never read."""

    def too_long(peer: socket.socket) -> None:
        peer.recv(16)
        peer.sendall(encode_predict_response(413, "too long", []))
        peer.recv(1 << 16, socket.MSG_PEEK)

    with client_of(make(too_long)) as client, pytest.raises(PredictionFailedError, match="413"):
        client.predict(bytes(8 << 20))


# Workers that die, and slots without one


def test_dead_worker_is_asked_again_elsewhere(make: Make) -> None:
    """A request whose worker died goes to another worker first."""
    dead, alive = make(die), make(answer)
    with client_of(dead, alive) as client:
        assert client.predict(b"x").worker == alive.path
    assert dead.accepted == 1


def test_dead_worker_comes_last_even_when_it_has_least_to_do(make: Make) -> None:
    """A worker that died of a request is idle afterwards; the busy one is asked all the same."""
    reached, release = threading.Event(), threading.Event()

    def busy_then_answer(peer: socket.socket) -> None:
        reached.set()
        release.wait(10)
        answer(peer)

    dead, alive = make(die), make(busy_then_answer, answer)
    with client_of(alive, dead) as client, ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.predict_batch, [b"1", b"2"])
        assert reached.wait(10)
        assert client.predict(b"x").worker == alive.path
        assert dead.accepted == 1
        release.set()
        assert len(long.result(10)) == 2


@pytest.mark.parametrize("death", [die, die_in_the_answer])
def test_successor_on_the_same_socket_is_asked(make: Make, death: Behaviour) -> None:
    """With one worker the second try goes to the same socket, half an answer is no answer."""
    worker = make(death, death, answer)
    with client_of(worker) as client:
        assert client.predict(b"x" * 1000).body == b"x" * 1000
    assert worker.accepted == 3


def test_poison_is_given_up_after_the_retries(make: Make) -> None:
    """A request that kills every worker is asked 1 + retries times and then charged with it."""
    workers = [make(die), make(die)]
    with client_of(*workers, retries=3) as client:
        with pytest.raises(WorkerCrashedError, match="4 times"):
            client.predict(b"x")
        assert [worker.accepted for worker in workers] == [2, 2]
    worker = make(die)
    with client_of(worker, retries=0) as client, pytest.raises(WorkerCrashedError, match="once"):
        client.predict(b"x")
    assert worker.accepted == 1


def test_slots_without_a_worker_are_passed_over(make: Make) -> None:
    """However many slots close at once, the one that works is found, without counting as
    retries."""
    slots = [make(close_at_once) for _ in range(5)]
    works = make(answer)
    with client_of(*slots, works, retries=0) as client:
        for _ in range(10):
            assert client.predict(b"x").worker == works.path


def test_only_slots_without_a_worker_is_unavailable(make: Make) -> None:
    """When all close unanswered, the error names every socket, and nobody was asked for ever."""
    slots = [make(close_at_once) for _ in range(2)]
    with client_of(*slots, retries=2) as client, pytest.raises(WorkerUnavailableError) as caught:
        client.predict(bytes(1 << 20))
    for slot in slots:
        assert f"{slot.path} (closed the connection unanswered)" in str(caught.value)
        assert slot.accepted == 3


def test_worker_that_died_before_reading_is_asked_again(make: Make) -> None:
    """A request that another one's death took along, unread, is asked of the successor."""

    def die_before_reading_all(peer: socket.socket) -> None:
        peer.recv(4)

    worker = make(die_before_reading_all, close_at_once, answer)
    with client_of(worker) as client:
        assert client.predict(b"x").body == b"x"


def test_missing_and_deserted_sockets_are_unavailable(make: Make, tmp_path: Path) -> None:
    """No socket and a socket that nobody serves fail at once, each with its reason."""
    deserted = make()
    deserted.close()
    missing, long = str(tmp_path / "m.9.sock"), str(tmp_path / ("x" * 120))
    begun = time.monotonic()
    sockets = [deserted.path, missing, long]
    with Client(sockets) as client, pytest.raises(WorkerUnavailableError) as caught:
        client.predict(b"x")
    assert time.monotonic() - begun < 5
    assert f"{deserted.path} (Connection refused)" in str(caught.value)
    assert f"{missing} (No such file or directory)" in str(caught.value)
    assert f"{long} (AF_UNIX path too long)" in str(caught.value)


def test_stale_connections_are_not_counted(make: Make) -> None:
    """A worker that restarted while its connections were idle costs no try, also with retries =
    0."""
    worker = make(answer)
    with client_of(worker, retries=0) as client:
        client.predict(b"1")
        worker.drop_connections()
        assert client.predict(b"2").body == b"2"
    assert worker.accepted == 2


def test_connection_closed_by_a_worker_after_its_answer_is_stale(make: Make) -> None:
    """A worker that serves one batch a connection works, whenever its close is noticed."""
    with client_of(make(answer_once), retries=0) as client:
        for number in range(50):
            assert client.predict(b"%d" % number).body == b"%d" % number


# Deadlines


def test_deadline_holds_while_computing_and_the_late_answer_is_not_taken(make: Make) -> None:
    """After a timeout the connection is closed: the next call cannot get the old answer."""
    release = threading.Event()

    def late(peer: socket.socket) -> None:
        command = read_command(peer, CommandReader())
        assert command is not None
        release.wait(10)
        peer.sendall(encoded_echo(command))

    worker = make(late, answer)
    with client_of(worker) as client:
        begun = time.monotonic()
        with pytest.raises(PredictionTimeoutError, match=r"m\.0\.sock within 0\.2 s"):
            client.predict(b"old", timeout=0.2)
        assert 0.2 <= time.monotonic() - begun < 5
        release.set()
        assert client.predict(b"new").body == b"new"
    assert worker.accepted == 2


def test_deadline_holds_while_sending(make: Make) -> None:
    """A worker that does not read cannot hold a client that has much to send."""
    release = threading.Event()
    worker = make(lambda _: (release.wait(10), None)[1])
    with client_of(worker) as client, pytest.raises(PredictionTimeoutError):
        client.predict(bytes(8 << 20), timeout=0.2)
    release.set()


def test_deadline_is_of_the_whole_call_not_of_its_steps(make: Make) -> None:
    """An answer that trickles in, a byte at a time, does not put the deadline off."""
    ended = threading.Event()

    def trickle(peer: socket.socket) -> None:
        while not ended.wait(0.02):
            peer.sendall(b"\0")

    with client_of(make(trickle)) as client:
        begun = time.monotonic()
        # Four NULs are a code of 0, four more an empty message: a frame that never ends.
        with pytest.raises((PredictionTimeoutError, ProtocolError)) as caught:
            client.predict(b"x", timeout=0.3)
        assert time.monotonic() - begun < 5
    ended.set()
    assert caught.type is PredictionTimeoutError


def test_full_backlog_is_waited_for(make: Make, fill: Callable[[FakeWorker], None]) -> None:
    """A client that finds no room queues, without burning the processor, and is answered later."""
    worker = make(backlog=1)
    fill(worker)
    with client_of(worker) as client, ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.predict, b"x")
        begun = time.process_time()
        with pytest.raises(BacklogFull):
            dial(worker.path, 0.3)  # the test waits as the client does, in the kernel
        assert time.process_time() - begun < 0.15
        assert not future.done()
        worker.serve(answer)
        assert future.result(10).body == b"x"


def test_full_backlog_ends_at_the_deadline(make: Make, fill: Callable[[FakeWorker], None]) -> None:
    """Nobody queues longer than its call may take."""
    worker = make(backlog=0)
    fill(worker)
    with client_of(worker) as client:
        begun = time.monotonic()
        with pytest.raises(PredictionTimeoutError):
            client.predict(b"x", timeout=0.25)
        assert 0.25 <= time.monotonic() - begun < 5


def test_full_backlog_sends_clients_elsewhere(
    make: Make, fill: Callable[[FakeWorker], None]
) -> None:
    """A worker whose queue is full is passed over while another one has room."""
    full, free = make(backlog=0), make(answer)
    fill(full)
    with client_of(full, free) as client:
        for _ in range(4):
            assert client.predict(b"x", timeout=5).worker == free.path


def test_dial_survives_a_signal(make: Make, fill: Callable[[FakeWorker], None]) -> None:
    """A signal during the wait does not make a connection that is none (CPython takes it for
    one)."""
    worker = make(backlog=0)
    fill(worker)
    rung: list[int] = []
    over = threading.Event()
    waiter = threading.get_ident()

    def ring() -> None:
        while not over.wait(0.05):
            signal.pthread_kill(waiter, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda number, _: rung.append(number))
    bell = threading.Thread(target=ring)
    bell.start()
    try:
        begun = time.monotonic()
        with pytest.raises(BacklogFull):
            dial(worker.path, 0.3)
        assert time.monotonic() - begun >= 0.3
    finally:
        over.set()
        bell.join(10)
        signal.signal(signal.SIGUSR1, before)
    assert len(rung) >= 2


# Which worker, and how many connections


def test_least_busy_worker_is_chosen(make: Make) -> None:
    """While one worker computes, everything else goes to the other; a batch counts all its
    requests."""
    reached, release = threading.Event(), threading.Event()

    def busy(peer: socket.socket) -> None:
        reader = CommandReader()
        while (command := read_command(peer, reader)) is not None:
            if command.requests[0].parameters[0].value == b"long":
                reached.set()
                release.wait(10)
            peer.sendall(encoded_echo(command))

    workers = [make(busy), make(busy)]
    with client_of(*workers) as client, ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.predict_batch, [b"long", b"mate"])
        assert reached.wait(10)
        others = {client.predict(b"short").worker for _ in range(6)}
        release.set()
        held = long.result(10)[0].worker
    assert others == {worker.path for worker in workers} - {held}


def test_ties_go_round(make: Make) -> None:
    """A single thread uses all workers in turn."""
    workers = [make(answer) for _ in range(3)]
    with client_of(*workers) as client:
        asked = [client.predict(b"x").worker for _ in range(6)]
    assert asked == [worker.path for worker in workers] * 2


def test_many_threads_get_their_own_answers(make: Make) -> None:
    """16 threads, 2 workers, one of them dying again and again: every answer is the asker's own."""

    def mortal(peer: socket.socket) -> None:
        reader = CommandReader()
        for _ in range(3):
            command = read_command(peer, reader)
            if command is None:
                return
            peer.sendall(encoded_echo(command))
        read_command(peer, reader)

    workers = [make(answer), make(mortal)]
    with client_of(*workers, retries=50, max_idle=4) as client, ThreadPoolExecutor(16) as pool:

        def ask(thread: int) -> int:
            good = 0
            for number in range(40):
                body = b"%d/%d" % (thread, number)
                good += client.predict(body).body == body
            return good

        assert sum(pool.map(ask, range(16))) == 16 * 40
        kept = [len(worker.idle) for worker in client._workers]
        assert all(count <= 4 for count in kept)
        assert [worker.in_hand for worker in client._workers] == [0, 0]


def test_no_descriptor_is_left(make: Make, tmp_path: Path) -> None:
    """Whatever happens in a call, a closed client holds nothing."""
    stall = threading.Event()
    workers = [
        make(answer),
        make(die),
        make(die_in_the_answer),
        make(close_at_once),
        make(say(b"\xff" * 8)),
        make(lambda peer: (stall.wait(10), None)[1]),
    ]
    before = descriptors()
    for worker in workers:
        with Client([worker.path, str(tmp_path / "missing.0.sock")], retries=1) as client:
            for _ in range(3):
                try:
                    client.predict(b"x", timeout=0.2)
                except ClientError:
                    continue
    stall.set()
    for worker in workers:
        worker.drop_connections()
    assert descriptors() == before


def test_idle_connections_are_bounded_and_closed(make: Make) -> None:
    """After a burst of 8 only max_idle connections stay; after close none."""
    everybody = threading.Barrier(8, timeout=10)

    def together(peer: socket.socket) -> None:
        reader = CommandReader()
        while (command := read_command(peer, reader)) is not None:
            everybody.wait()
            peer.sendall(encoded_echo(command))

    worker = make(together)
    with client_of(worker, max_idle=2) as client:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client.predict, [b"x"] * 8))
        assert len(client._workers[0].idle) == 2
    assert client._workers[0].idle == []
    with pytest.raises(ClientError, match="closed"):
        client.predict(b"x")


def test_close_during_a_call_closes_when_the_call_ends(make: Make) -> None:
    """The call in hand gets its answer, and its connection is not kept after it."""
    reached, release = threading.Event(), threading.Event()

    def slow(peer: socket.socket) -> None:
        command = read_command(peer, CommandReader())
        assert command is not None
        reached.set()
        release.wait(10)
        peer.sendall(encoded_echo(command))
        assert peer.recv(1) == b""

    worker = make(slow)
    before = descriptors()
    client = client_of(worker)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.predict, b"x")
        assert reached.wait(10)
        client.close()
        release.set()
        assert future.result(10).body == b"x"
    worker.drop_connections()
    assert client._workers[0].idle == []
    assert descriptors() == before


def test_no_descriptor_left_to_open_is_not_the_workers_fault(make: Make) -> None:
    """EMFILE is said as what it is, and does not end in WorkerUnavailableError."""
    worker = make()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with client_of(worker) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            with pytest.raises(ClientError, match="Too many open files") as caught:
                client.predict(b"x")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.type is ClientError


def test_forked_child_starts_afresh(make: Make) -> None:
    """A child shares no connection with its parent, even when a thread held the lock at the
    fork."""
    worker = make(answer)
    with client_of(worker) as client:
        client.predict(b"parent")
        with client._lock, warnings.catch_warnings():
            # Python 3.12 warns of a fork with threads, which is what this is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    signal.alarm(10)
                    assert client._workers[0].idle == []
                    code = 0 if client.predict(b"child").body == b"child" else 2
                finally:
                    os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert client.predict(b"parent").body == b"parent"
    assert worker.accepted == 2


# Making one


def test_from_run_dir_takes_the_sockets_of_the_model(make: Make, tmp_path: Path) -> None:
    """All workers of the model, none of another one whose name begins alike."""
    workers = [make(answer) for _ in range(2)]
    other = FakeWorker(tmp_path / "m.v2.0.sock").serve(answer)
    with Client.from_run_dir(str(tmp_path), "m") as client:
        assert {client.predict(b"x").worker for _ in range(4)} == {w.path for w in workers}
    other.close()
    with pytest.raises(WorkerUnavailableError, match=r"'x'.*models there: m, m\.v2"):
        Client.from_run_dir(str(tmp_path), "x")


def test_from_run_dir_without_a_directory(tmp_path: Path) -> None:
    """A directory that is not there, or empty, is said."""
    with pytest.raises(WorkerUnavailableError, match="no model is there"):
        Client.from_run_dir(str(tmp_path), "m")
    with pytest.raises(WorkerUnavailableError, match="No such file"):
        Client.from_run_dir(str(tmp_path / "missing"), "m")


@pytest.mark.parametrize(
    "wrong",
    [
        {"sockets": []},
        {"sockets": "path"},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"retries": -1},
        {"max_idle": -1},
    ],
)
def test_senseless_settings_are_refused(wrong: dict[str, object]) -> None:
    """A wrong argument is found where it is given."""
    with pytest.raises(ValueError, match=r"."):
        Client(**{"sockets": ["x"], **wrong})  # type: ignore[arg-type]


def test_import_is_light() -> None:
    """A program that only asks pays for no configuration, no command line and no JSON library."""
    code = "import sys, json, modelsupervisor.client; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(
        subprocess.check_output(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    )
    assert not {"click", "rich", "msgspec", "asyncio", "numpy", "structlog"} & set(loaded)
