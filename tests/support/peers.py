"""Peers of a worker and of the control socket that speak raw bytes: well, badly, slowly, or not at all."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

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

PATIENCE = 30.0  # seconds until a read is a failed test


def dial(path: Path | str, patience: float = PATIENCE) -> socket.socket:
    """A connection whose every call fails after `patience` seconds."""
    peer = socket.socket(socket.AF_UNIX)
    try:
        peer.settimeout(patience)
        peer.connect(str(path))
    except BaseException:
        peer.close()
        raise
    return peer


def predict_frame(body: bytes, content_type: str = "", request_id: str = "r-1") -> bytes:
    """A predict command with one request and one header."""
    parameters = [Parameter("body", content_type, body)]
    return encode_predict([Request(request_id, [("x-from", "test")], parameters)])


def order_frame(**fault: Any) -> bytes:
    """A request that tells the test model what to do."""
    return predict_frame(json.dumps(fault).encode(), "application/json")


def load_frame(name: str, path: Path | str, handler: str = "service") -> bytes:
    """A load command."""
    return encode_load(LoadCommand(name, str(path), 1, handler, -1, ""))


def read_predict(peer: socket.socket) -> PredictResponse:
    """The next response; fails where the connection ends before it."""
    reader = ResponseReader()
    while (response := reader.next_predict_response()) is None:
        chunk = peer.recv(65536)
        assert chunk, "the connection ended before the response was there"
        reader.feed(chunk)
    return response


def read_load(peer: socket.socket) -> LoadResponse:
    """The next answer to a load command."""
    response = read_predict(peer)
    assert not response.items
    return LoadResponse(response.code, response.message)


def read_to_end(peer: socket.socket) -> bytes:
    """Everything until the other side closes; a reset counts as an end."""
    chunks = []
    while True:
        try:
            chunk = peer.recv(65536)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            return b"".join(chunks)
        chunks.append(chunk)


def ask(path: Path | str, body: bytes = b"hello", patience: float = PATIENCE) -> bytes:
    """One prediction on a connection of its own: the body of the answer."""
    with dial(path, patience) as peer:
        peer.sendall(predict_frame(body))
        return read_predict(peer).items[0].body


def abort(peer: socket.socket) -> None:
    """Close at once."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def control_line(**request: Any) -> bytes:
    """A line for the control socket."""
    return json.dumps({"id": 1, **request}).encode() + b"\n"


def read_line(peer: socket.socket) -> dict[str, Any]:
    """The next line of the control socket's answers."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = peer.recv(1 if len(line) > 1_000_000 else 65536)
        assert chunk, f"the connection ended after {line!r}"
        line += chunk
    reply: dict[str, Any] = json.loads(line)
    return reply
