"""Ask a model's workers for predictions, over their own sockets, from the same machine.

    with Client.from_run_dir("/run/modelsupervisor", "digits") as client:
        print(client.predict(png, "image/png").json()["label"])

Theory of operation
-------------------
A `Client` keeps connections to all workers of one model and is shared by any number of threads.
A call takes the worker with the fewest requests in hand *from this client* (ties go round), an idle
connection to it or a new one, and has one deadline over everything: waiting in a full backlog,
sending, computing, receiving.

Workers die and come back on the same socket, so the end of a connection is not the end of a call.
Which end it was decides (`connection.py` on how we know):

- *stale*: a kept connection that closed while idle, or before it took the request. Another
  connection; not counted.
- *died*: the worker had the request and died. Asked again, where possible of a worker that has not
  died of it yet, else on the same socket, where the successor answers; at most `retries` times,
  because the request may be what kills.
- *unread* on a new connection: a slot without a worker (DOWN, FAILED) closes at once; or a worker
  died of something else while we queued. The others are tried; when all are like that, one more
  round at most `retries` times.
- *unreachable*: no such socket, or nobody listens. The others are tried, then it is an error at
  once.

So a request may run more than once (only after a crash), never after a timeout.

Fork: a client that `os.fork` copies starts afresh in the child, without connections; the parent's
stay the parent's. One that another thread was using at that moment stays open in the child, unused,
until it execs or exits.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from modelworker.wire import (
    Parameter,
    PredictResponse,
    ResponseItem,
    WireError,
    encode_predict,
)

from modelsupervisor.connection import Connection, Died, Unread
from modelsupervisor.errors import (
    ClientError,
    PredictionFailedError,
    PredictionTimeoutError,
    ProtocolError,
    WorkerCrashedError,
    WorkerUnavailableError,
)
from modelsupervisor.paths import list_worker_sockets
from modelsupervisor.prediction import LARGEST_BODY, OCTETS, Body, Prediction, PredictionRequest
from modelsupervisor.unixsocket import BacklogFull, dial

__all__ = ["Client", "Parameter", "Prediction", "PredictionRequest"]

_BACKLOG_SLICE = 0.1  # seconds to queue at one full worker before looking at the others again
_LONGEST_TIMEOUT = 7 * 86400.0  # seconds; poll(2) takes at most 24 days
_OUR_OWN = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)  # not a worker's fault


@dataclass
class _Worker:
    path: str
    in_hand: int = 0
    idle: list[Connection] = field(default_factory=list)


@dataclass
class _Call:
    """One call, and what it has learned of the workers so far (by their paths)."""

    frame: bytes
    ids: tuple[str, ...]
    started: float
    deadline: float
    deaths: dict[str, int] = field(default_factory=dict)
    full: set[str] = field(default_factory=set)
    unread: set[str] = field(default_factory=set)
    unreachable: dict[str, str] = field(default_factory=dict)
    rounds: int = 0  # how often every worker had closed unread

    def passed_over(self) -> set[str]:
        return self.full | self.unread | self.unreachable.keys()


class Client:
    """A pool of connections to the workers of one model; see the module's text. Close it, or use
    it in a `with`."""

    def __init__(
        self,
        sockets: Sequence[str],
        *,
        timeout: float = 60.0,
        retries: int = 2,
        max_idle: int = 4,
    ) -> None:
        """`sockets`: one path a worker. `timeout`: seconds of a whole call. `retries`: how often a
        request whose worker died is asked again. `max_idle`: connections kept per worker; a worker
        serves 64 and kept ones count.
        """
        if not sockets or isinstance(sockets, str):
            raise ValueError("a client needs a list of at least one socket")
        if retries < 0 or max_idle < 0:
            raise ValueError("retries and max_idle cannot be below zero")
        self._workers = [_Worker(path) for path in dict.fromkeys(sockets)]
        self._timeout = _checked(timeout)
        self._retries = retries
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._next = 0  # where ties start
        self._closed = False
        _watch_forks()
        _clients.add(self)

    @classmethod
    def from_run_dir(
        cls, run_dir: str, model: str, *, timeout: float = 60.0, retries: int = 2, max_idle: int = 4
    ) -> Client:
        """A client for the workers that `model` has in this run directory now.

        WorkerUnavailableError naming the models that are there, when this one is not.
        """
        try:
            models = list_worker_sockets(run_dir)
        except OSError as error:
            raise WorkerUnavailableError(f"{run_dir}: {error.strerror or error}") from None
        if model not in models:
            there = f"models there: {', '.join(models)}" if models else "no model is there"
            raise WorkerUnavailableError(f"no worker of a model {model!r} in {run_dir}; {there}")
        return cls(models[model], timeout=timeout, retries=retries, max_idle=max_idle)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes what is idle now and what is in use when its call ends; further calls raise
        ClientError."""
        self._closed = True
        self._drop_idle()

    def predict(
        self,
        body: Body,
        content_type: str = OCTETS,
        *,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """The model's answer to one request, whatever status the handler gave it.

        Raises PredictionTimeoutError, WorkerCrashedError, WorkerUnavailableError,
        PredictionFailedError (the worker's own error), ProtocolError; all of them ClientError.
        """
        request = PredictionRequest(body, content_type, headers or {}, request_id)
        return self.predict_batch([request], timeout=timeout)[0]

    def predict_batch(
        self, requests: Sequence[PredictionRequest | bytes], *, timeout: float | None = None
    ) -> list[Prediction]:
        """The answers to several requests in one frame, in their order; the handler is called with
        all of them at once.

        A frame is not divided: keep to the model's `batch_size`. Raises as `predict` does, for the
        batch as a whole.
        """
        if not requests:
            return []
        started = time.monotonic()
        deadline = started + (self._timeout if timeout is None else _checked(timeout))
        asked = [
            (each if isinstance(each, PredictionRequest) else PredictionRequest(each)).encoded()
            for each in requests
        ]
        for parameter in (each for request in asked for each in request.parameters):
            size = len(parameter.value)
            if size > LARGEST_BODY:  # what the worker would say, without sending it all
                reason = f"{parameter.name} has {size} bytes; expected at most {LARGEST_BODY}"
                raise PredictionFailedError(413, reason)
        ids = tuple(request.request_id for request in asked)
        if len(set(ids)) != len(ids):
            raise ValueError("two requests of a batch have the same request_id")
        return self._ask(_Call(encode_predict(asked), ids, started, deadline))

    def _ask(self, call: _Call) -> list[Prediction]:
        """The answers; tries workers until one gives them, or until `call` says that no further
        try is due."""
        while time.monotonic() < call.deadline:
            worker, wait = self._choose(call)
            path = worker.path
            try:
                return _predictions(call.ids, self._exchange(worker, call, wait), path)
            except BacklogFull:
                call.full.add(path)
            except Unread:
                call.unread.add(path)
            except Died:
                call.deaths[path] = call.deaths.get(path, 0) + 1
                self._allow_death(call)
            except TimeoutError:
                raise _late(call, f" from {path}") from None
            except WireError as error:
                raise ProtocolError(f"{path}: {error}") from None
            except OSError as error:
                # dial: ENOENT, ECONNREFUSED, EACCES; without an errno the path is too long for an
                # address.
                reason = error.strerror or str(error)
                if error.errno in _OUR_OWN:
                    raise ClientError(f"no connection could be made: {reason}") from None
                call.unreachable[path] = reason
            finally:
                with self._lock:
                    worker.in_hand -= len(call.ids)
        raise _late(call)

    def _choose(self, call: _Call) -> tuple[_Worker, float]:
        """The worker to try now, its requests in hand counted, and how long to wait for room in
        its backlog."""
        with self._lock:
            worker = self._least_busy(call, call.passed_over())
            wait = 0.0
            if worker is None and call.full:
                call.full.clear()
                worker = self._least_busy(call, call.passed_over())
                wait = _BACKLOG_SLICE
            if worker is None and call.unread and call.rounds < self._retries:
                call.rounds += 1
                call.unread.clear()
                worker = self._least_busy(call, call.passed_over())
            if worker is None:
                raise self._nobody(call)
            self._next = (self._workers.index(worker) + 1) % len(self._workers)
            worker.in_hand += len(call.ids)
            return worker, wait

    def _least_busy(self, call: _Call, without: set[str]) -> _Worker | None:
        turned = self._workers[self._next :] + self._workers[: self._next]
        left = [worker for worker in turned if worker.path not in without]
        # min takes the first of equals: that is the rotation. A worker that died of this request
        # comes last.
        return min(
            left, key=lambda each: (call.deaths.get(each.path, 0), each.in_hand), default=None
        )

    def _allow_death(self, call: _Call) -> None:
        deaths = sum(call.deaths.values())
        if deaths > self._retries:
            sockets = ", ".join(call.deaths)
            times = "once" if deaths == 1 else f"{deaths} times"
            raise WorkerCrashedError(
                f"the worker died with the request in hand, {times} ({sockets})"
            ) from None

    def _nobody(self, call: _Call) -> ClientError:
        reasons = dict.fromkeys(sorted(call.unread), "closed the connection unanswered")
        reasons.update(call.unreachable)
        said = ", ".join(f"{path} ({reason})" for path, reason in reasons.items())
        return WorkerUnavailableError(f"no worker takes the request: {said}")

    def _exchange(self, worker: _Worker, call: _Call, wait: float) -> PredictResponse:
        """One try at one worker; kept connections that turn out to be stale are no try."""
        while True:
            kept = self._take_idle(worker)
            left = call.deadline - time.monotonic()
            connection = kept or self._open(worker.path, min(wait, left))
            try:
                response = connection.exchange(call.frame, call.deadline)
                if not _belongs(response, call.ids):
                    connection.reusable = False  # nobody knows whose answer would come next
                    raise ProtocolError(f"{worker.path}: the answer is not to what was asked")
                return response
            except Unread:
                if kept is None:
                    raise
            finally:
                self._release(worker, connection)

    def _open(self, path: str, wait: float) -> Connection:
        if self._closed:
            raise ClientError("the client is closed")
        return Connection(dial(path, wait))

    def _take_idle(self, worker: _Worker) -> Connection | None:
        while True:
            with self._lock:
                if not worker.idle:
                    return None
                connection = worker.idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()

    def _release(self, worker: _Worker, connection: Connection) -> None:
        with self._lock:
            if connection.reusable and not self._closed and len(worker.idle) < self._max_idle:
                worker.idle.append(connection)
                return
        connection.close()

    def _start_afresh(self) -> None:
        # In a forked child: the lock may have been held at the fork, by a thread that does not
        # exist here.
        self._lock = threading.Lock()
        self._drop_idle()
        for worker in self._workers:
            worker.in_hand = 0

    def _drop_idle(self) -> None:
        with self._lock:
            idle = [connection for worker in self._workers for connection in worker.idle]
            for worker in self._workers:
                worker.idle.clear()
        for connection in idle:
            connection.close()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _restart_clients() -> None:
    for client in list(_clients):
        client._start_afresh()


@functools.lru_cache(maxsize=1)
def _watch_forks() -> None:
    # Once a process: os.register_at_fork keeps what it was given for ever.
    os.register_at_fork(after_in_child=_restart_clients)


def _checked(timeout: float) -> float:
    if not 0 < timeout <= _LONGEST_TIMEOUT:
        raise ValueError(
            f"a timeout is above 0 and at most {_LONGEST_TIMEOUT:.0f} seconds, not {timeout}"
        )
    return timeout


def _late(call: _Call, whence: str = "") -> PredictionTimeoutError:
    return PredictionTimeoutError(
        f"no complete answer{whence} within {call.deadline - call.started:g} s"
    )


def _belongs(response: PredictResponse, ids: tuple[str, ...]) -> bool:
    # An error of the whole batch may come before the worker knew whose requests they were.
    return response.code != 200 or sorted(item.request_id for item in response.items) == sorted(ids)


def _predictions(ids: tuple[str, ...], response: PredictResponse, path: str) -> list[Prediction]:
    if response.code != 200:
        raise PredictionFailedError(response.code, response.message)
    items: dict[str, ResponseItem] = {item.request_id: item for item in response.items}
    return [
        Prediction(
            item.request_id,
            item.status,
            item.phrase,
            item.content_type,
            tuple(item.headers),
            item.body,
            path,
        )
        for item in (items[request_id] for request_id in ids)
    ]
