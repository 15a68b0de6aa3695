"""What is asked of a model and what it answers, as a program that uses the client sees it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelworker.wire import Limits, Parameter, Request

Body = bytes | bytearray | memoryview | Sequence[Parameter]

OCTETS = "application/octet-stream"
LARGEST_BODY = Limits().body  # bytes that a worker takes as one value
_ERROR_STATUS = 400  # an item's own status from here on is an error of that request


@dataclass(frozen=True)
class PredictionRequest:
    """One request of a batch: bytes of a content type (the parameter `body`), or parameters of the
    caller's own.

    Without a `Content-Type` header the content type of a bytes body becomes one, as MMS's front end
    does it.
    """

    body: Body
    content_type: str = OCTETS
    headers: Mapping[str, str] = field(default_factory=dict)
    request_id: str | None = None

    def encoded(self) -> Request:
        """The request as the wire has it, with an id of its own where none was given."""
        if isinstance(self.body, str):
            raise TypeError("a body is bytes or a sequence of Parameter, not str: encode it")
        headers = list(self.headers.items())
        if isinstance(self.body, (bytes, bytearray, memoryview)):
            parameters = [Parameter("body", self.content_type, bytes(self.body))]
            if all(name.lower() != "content-type" for name in self.headers):
                headers.append(("Content-Type", self.content_type))
        else:
            parameters = list(self.body)
        return Request(self.request_id or os.urandom(16).hex(), headers, parameters)


@dataclass(frozen=True)
class Prediction:
    """One answer. `status` and `phrase` are HTTP's, set by the handler; `worker` is the path of
    the socket that answered."""

    request_id: str
    status: int
    phrase: str
    content_type: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    worker: str

    @property
    def ok(self) -> bool:
        """The handler did not mark this answer as an error."""
        return self.status < _ERROR_STATUS

    @property
    def text(self) -> str:
        """The body in the character set that its content type names, else UTF-8; what does not
        decode is replaced."""
        charset = "utf-8"
        for option in self.content_type.split(";")[1:]:
            name, _, value = option.partition("=")
            if name.strip().lower() == "charset":
                charset = value.strip().strip('"') or charset
        try:
            return self.body.decode(charset, "replace")
        except LookupError:  # a charset that Python does not have
            return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body parsed as JSON, whatever its content type; ValueError when it is not."""
        import json  # not everybody asks for it, and a command line pays for every import

        return json.loads(self.body)
