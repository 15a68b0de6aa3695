"""Asking the test model `faults` for trouble, and looking at what it says of itself."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from modelworker.wire import PredictResponse, ResponseReader, encode_predict

from modelsupervisor.client import Client, PredictionRequest
from modelsupervisor.errors import WorkerCrashedError
from support.instance import LIMIT, Event, Instance, children_of, wait_for

JSON = "application/json"


def request(do: str, request_id: str | None = None, **fault: object) -> PredictionRequest:
    """The request that asks for a fault."""
    body = json.dumps({"do": do, **fault}).encode()
    return PredictionRequest(body, JSON, {}, request_id)


def ask(
    instance: Instance,
    do: str,
    *,
    model: str = "echo",
    index: int = 0,
    request_id: str | None = None,
    **fault: object,
) -> bytes:
    """One worker's answer to a fault, asked once; raises what the client raises."""
    with Client([str(instance.socket(model, index))], timeout=LIMIT, retries=0) as client:
        return client.predict_batch([request(do, request_id, **fault)])[0].body


def crash(instance: Instance, do: str, **fault: Any) -> None:
    """Ask for a fault that the worker does not survive."""
    with pytest.raises(WorkerCrashedError):
        ask(instance, do, **fault)


def echo(instance: Instance, text: bytes = b"are you there", index: int = 0) -> bytes:
    """One worker's answer to a plain request, however often it dies meanwhile."""
    sockets = [str(instance.socket(index=index))]
    with Client(sockets, timeout=LIMIT, retries=100) as client:
        return client.predict(text).body


def facts(instance: Instance, model: str = "echo", index: int = 0) -> dict[str, Any]:
    """What a worker finds out about itself."""
    told: dict[str, Any] = json.loads(ask(instance, "facts", model=model, index=index))
    return told


def kill_worker(instance: Instance, number: int, index: int = 0, model: str = "echo") -> int:
    """Signal the present process of a slot; returns its pid."""
    pid: int = instance.worker(model, index)["pid"]
    os.kill(pid, number)
    return pid


def template_pid(instance: Instance, generation: int = 1) -> int:
    """The pid of a template that has loaded."""
    pid: int = instance.wait_event("template.ready", generation=generation)["pid"]
    return pid


def heir_pid(supervisor: int, template: int) -> int:
    """The pid of the process that waits to be a template's next worker; born once the template had a quiet moment.

    It is the supervisor's child, still of the template's session, and has its title once it was told of.
    """

    def waiting() -> list[int]:
        return [child for child in children_of(supervisor) if _is_heir(child, template)]

    (pid,) = wait_for(waiting, "an heir")
    return pid


def _is_heir(pid: int, template: int) -> bool:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"modelsupervisor: heir of " in title and os.getsid(pid) == template
    except OSError:  # gone meanwhile
        return False


def ready(instance: Instance, generation: int, index: int = 0, **match: Any) -> Event:
    """Wait until a generation of a slot is READY."""
    return instance.wait_event("worker.ready", worker=index, generation=generation, **match)


def inode(path: Path) -> tuple[int, int]:
    """What a path is, past its name."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


class Caller:
    """A client that does one thing at a time: connect and send now, look for the answer later."""

    def __init__(self, path: Path, asked: PredictionRequest | bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(str(path))
        if isinstance(asked, bytes):
            asked = PredictionRequest(asked)
        self._socket.sendall(encode_predict([asked.encoded()]))

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def answer(self) -> bytes:
        """Wait for the answer's body. Raises ConnectionError when the connection ends without one."""
        reader = ResponseReader()
        response: PredictResponse | None = None
        while response is None:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise ConnectionError("closed without an answer")
            reader.feed(chunk)
            response = reader.next_predict_response()
        return response.items[0].body


def turned_away(path: Path) -> bool:
    """True where a connection is accepted and closed at once."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT)
        client.connect(str(path))
        try:
            return client.recv(1) == b""
        except ConnectionResetError:
            return True
