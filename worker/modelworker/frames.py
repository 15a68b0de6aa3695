"""The frames of the worker protocol (MMS dialect), and how they are written; `wire` reads them.

`I` is a signed 32-bit integer, big-endian; `S` an `I` that counts bytes, then the bytes; `END` the
`I` -1.

    load       'L'  S model name  S path  I batch size  S handler  I gpu id  S io file descriptor
    predict    'I'  { S id  { S name  S value }* END
                      { S name  S content type  S value }* END }*  END
    responses  I code  S message
               { S id  S content type  I status  S phrase
                 I n  { S name  S value }*n  S body }*  END

Text is UTF-8; bytes that are not come back unchanged (`surrogateescape`). Lengths count bytes,
always: the ancestors count characters in two places, and a reason phrase `é` shifts their stream.
"""

from __future__ import annotations

import struct
from typing import List, NamedTuple, Sequence, Tuple, Union

INTEGER = struct.Struct("!i")
PREDICT = ord("I")
LOAD = ord("L")
_END = INTEGER.pack(-1)
SUCCESS = "Prediction success"
# An item of a status and a body: no content type, status, no phrase, no headers, body length.
_PLAIN_ITEM = struct.Struct("!iiiii")


class WireError(Exception):
    """A peer's bytes are not the protocol.

    `code` is 400 (they make no sense) or 413 (they are over a limit); `message` says what, where
    and what was expected.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Limits(NamedTuple):
    """What one frame may hold: `text`, `body`, `frame` in bytes, `requests` and `fields` counted.

    `text` bounds names, ids, header values and paths; `body` the value of a parameter or reply;
    `fields` the headers, and the parameters, of one request.
    """

    text: int = 65536
    body: int = 64 * 1024 * 1024
    frame: int = 256 * 1024 * 1024
    requests: int = 1024
    fields: int = 1024


DEFAULT_LIMITS = Limits()


class LoadCommand(NamedTuple):
    """`L`: serve this model. `gpu_id` -1 is the CPU; `io_file_descriptor` names MMS's FIFOs."""

    model_name: str
    model_path: str
    batch_size: int
    handler: str
    gpu_id: int
    io_file_descriptor: str


class Parameter(NamedTuple):
    """One input of a request; a body that is not a form has the name `body`."""

    name: str
    content_type: str
    value: bytes


class Request(NamedTuple):
    """One request of a batch."""

    request_id: str
    headers: List[Tuple[str, str]]
    parameters: List[Parameter]


class PredictCommand(NamedTuple):
    """`I`: run this batch."""

    requests: List[Request]


Command = Union[LoadCommand, PredictCommand]


class ResponseItem(NamedTuple):
    """The answer to one request. The content type is also a header, which the caller puts there."""

    request_id: str
    content_type: str
    status: int
    phrase: str
    headers: List[Tuple[str, str]]
    body: bytes


class LoadResponse(NamedTuple):
    """The answer to `L`."""

    code: int
    message: str


class PredictResponse(NamedTuple):
    """The answer to `I`; with a code other than 200 its items only name the requests."""

    code: int
    message: str
    items: List[ResponseItem]


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    return INTEGER.pack(len(encoded)) + encoded


def encode_load(command: LoadCommand) -> bytes:
    """Write a load command.

    All of these raise struct.error or ValueError for what has no place in a frame.
    """
    return b"".join(
        (
            b"L",
            _string(command.model_name),
            _string(command.model_path),
            INTEGER.pack(command.batch_size),
            _string(command.handler),
            INTEGER.pack(command.gpu_id),
            _string(command.io_file_descriptor),
        )
    )


def encode_predict(requests: Sequence[Request]) -> bytes:
    """Write a batch."""
    parts = [b"I"]
    for request_id, headers, parameters in requests:
        parts.append(_string(request_id))
        for name, value in headers:
            parts += (_string(name), _string(value))
        parts.append(_END)
        for name, content_type, content in parameters:
            parts += (_string(name), _string(content_type), INTEGER.pack(len(content)), content)
        parts.append(_END)
    parts.append(_END)
    return b"".join(parts)


def encode_load_response(code: int, message: str) -> bytes:
    """Write the answer to a load command; MMS needs a 200 to end in `[PID]:` and digits."""
    return INTEGER.pack(code) + _string(message) + _END


_SUCCESS_HEAD = INTEGER.pack(200) + _string(SUCCESS)


def encode_bodies(requests: Sequence[Request], bodies: Sequence[bytes]) -> bytes:
    """Write the answer to a batch that succeeded and whose every reply is a body and nothing else.

    The same bytes as `encode_predict_response` gives, in half the time: the way of most answers.
    """
    parts = [_SUCCESS_HEAD]
    for request, body in zip(requests, bodies):
        name = request[0].encode("utf-8", "surrogateescape")
        parts += INTEGER.pack(len(name)), name, _PLAIN_ITEM.pack(0, 200, 0, 0, len(body)), body
    parts.append(_END)
    return b"".join(parts)


def encode_predict_response(code: int, message: str, items: Sequence[ResponseItem]) -> bytes:
    """Write the answer to a batch, in one piece: MMS's reader trips over a header cut in two."""
    parts = [INTEGER.pack(code), _string(message)]
    for request_id, content_type, status, phrase, headers, body in items:
        name = request_id.encode("utf-8", "surrogateescape")
        parts += (INTEGER.pack(len(name)), name)
        if content_type or phrase or headers:
            parts += (_string(content_type), INTEGER.pack(status), _string(phrase))
            parts.append(INTEGER.pack(len(headers)))
            for header, value in headers:
                parts += (_string(header), _string(value))
            parts += (INTEGER.pack(len(body)), body)
        else:
            parts += (_PLAIN_ITEM.pack(0, status, 0, 0, len(body)), body)
    parts.append(_END)
    return b"".join(parts)
