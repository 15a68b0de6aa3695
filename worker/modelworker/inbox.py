"""The bytes that a parser of frames works on, and the errors that it raises when they cannot be.

What a parser consumed is dropped before more is taken in; what a peer can make us hold is bounded by
`Limits`, whatever lengths it names.
"""

from __future__ import annotations

from typing import Sized, Union

from modelworker.frames import Limits, WireError


class Inbox:
    """The bytes that came and are not consumed: `held[at:]`.

    A chunk that finds it empty is kept without a copy. `pending` says that there is more to come of
    what is here: bytes that are not consumed, or a frame of which all that came is.
    """

    __slots__ = ("at", "held", "pending")

    def __init__(self) -> None:
        self.held: Union[bytes, bytearray] = b""
        self.at = 0
        self.pending = False

    def feed(self, chunk: bytes) -> None:
        if chunk:
            self.pending = True
        held = self.held
        if self.at == len(held):
            self.held = chunk
        elif isinstance(held, bytearray):
            del held[: self.at]  # CPython moves a pointer here, not the bytes
            held += chunk
        else:
            self.held = bytearray(held[self.at :])
            self.held += chunk
        self.at = 0

    def end_frame(self, at: int) -> None:
        """Go on at `at`; a large frame that was consumed is not kept until the next one comes."""
        self.pending = at < len(self.held)
        if not self.pending:
            self.held = b""
            at = 0
        self.at = at


def copy_out(held: Union[bytes, bytearray], start: int, stop: int) -> bytes:
    """The bytes of a value, copied once (a slice of a bytearray would have to be copied again)."""
    return held[start:stop] if isinstance(held, bytes) else bytes(memoryview(held)[start:stop])


def length_error(field: str, offset: int, length: int, ends: bool, highest: int) -> WireError:
    expected = f"0 to {highest}" + (", or -1 to end the list" if ends else "")
    return WireError(
        413 if length > highest else 400,
        f"{field}: {length} at byte {offset} of the frame; expected {expected}",
    )


def check_frame(size: int, limits: Limits) -> None:
    if size > limits.frame:
        raise WireError(413, f"frame of at least {size} bytes; expected at most {limits.frame}")


def check_counts(requests: Sized, headers: Sized, parameters: Sized, limits: Limits) -> None:
    if len(requests) > limits.requests:
        raise WireError(413, f"over {limits.requests} requests in one batch; expected at most that")
    if len(headers) > limits.fields or len(parameters) > limits.fields:
        raise WireError(
            413, f"over {limits.fields} headers or parameters in one request; expected at most that"
        )
