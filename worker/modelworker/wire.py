"""The worker protocol (MMS dialect), read from bytes in memory: no socket, no clock, no log.

What frames hold is in `frames`. A frame has no outer length, so whoever reads one has to walk it
field by field, and a peer decides where the bytes are cut. The parsers below are generators over an
`Inbox`: their local variables are the state of a frame that is half here, so resuming costs
nothing, and a field is looked at again only when more bytes came. A frame that trickles in one byte
at a time costs as much as one that comes whole. What a parser has consumed is dropped before more
is taken in, and what a peer can make us hold is bounded by `Limits`, whatever lengths it names.
"""

from __future__ import annotations

from typing import Callable, Generator, List, NoReturn, Optional, Tuple, Union

from modelworker.frames import (
    DEFAULT_LIMITS,
    INTEGER,
    LOAD,
    PREDICT,
    Command,
    Limits,
    LoadCommand,
    LoadResponse,
    Parameter,
    PredictCommand,
    PredictResponse,
    Request,
    ResponseItem,
    WireError,
    encode_load,
    encode_load_response,
    encode_predict,
    encode_predict_response,
)
from modelworker.inbox import Inbox, check_counts, check_frame, copy_out, length_error
from modelworker.responses import ResponseReader

__all__ = [
    "Command",
    "CommandReader",
    "Limits",
    "LoadCommand",
    "LoadResponse",
    "Parameter",
    "PredictCommand",
    "PredictResponse",
    "Request",
    "ResponseItem",
    "ResponseReader",
    "WireError",
    "encode_load",
    "encode_load_response",
    "encode_predict",
    "encode_predict_response",
]


# The rows of a batch, and their fields; -1 in place of the first length ends the rows of its kind.
_ID, _HEADER, _PARAMETER = range(3)
_FIRST = ("id", "header name", "parameter name")
_ROWS = (("id",), ("header name", "header value"), ("parameter name", "content type", "value"))


def _commands(inbox: Inbox, limits: Limits) -> Generator[Optional[Command], None, NoReturn]:
    """Yield None while bytes are missing, else the next command.

    Longer than a function should be, for a reason: this is the hot loop of a worker, and calls cost
    more than the work does. One turn a row, nothing but locals, named tuples made past their
    constructors (which are Python functions). A row that is not whole is read again from its first
    field when more bytes came; whether it can ever be whole is for `_check_row` to say.
    """
    unpack, new = INTEGER.unpack_from, tuple.__new__
    text, value, frame, _, _ = limits
    while True:
        while not inbox.pending:
            yield None
        held = inbox.held
        # Negative once the first bytes of the frame were dropped: `at - start` stays the offset.
        start = inbox.at
        if held[start] != PREDICT:
            yield (yield from _load(inbox, limits))
            continue
        at = start + 1
        end = min(len(held), start + frame)
        row = _ID
        request_id = ""
        requests: List[Request] = []
        headers: List[Tuple[str, str]] = []
        parameters: List[Parameter] = []
        while True:
            a = at + 4
            length = unpack(held, at)[0] if a <= end else value  # more than there can be
            b = a + length
            if length == -1:
                at = a
                if row == _HEADER:
                    row = _PARAMETER
                elif row == _PARAMETER:
                    requests.append(new(Request, (request_id, headers, parameters)))
                    check_counts(requests, headers, parameters, limits)
                    headers, parameters, row = [], [], _ID
                else:
                    break
                continue
            if row == _ID:
                if a <= b <= end and length <= text:
                    request_id = held[a:b].decode("utf-8", "surrogateescape")
                    at = b
                    row = _HEADER
                    continue
            elif a <= b and length <= text and (c := b + 4) <= end:
                d = c + unpack(held, b)[0]
                if c <= d <= end and d - c <= text:
                    if row == _HEADER:
                        headers.append(
                            (
                                held[a:b].decode("utf-8", "surrogateescape"),
                                held[c:d].decode("utf-8", "surrogateescape"),
                            )
                        )
                        at = d
                        continue
                    e = d + 4
                    if e <= end and e <= (f := e + unpack(held, d)[0]) <= end and f - e <= value:
                        parameters.append(
                            new(
                                Parameter,
                                (
                                    held[a:b].decode("utf-8", "surrogateescape"),
                                    held[c:d].decode("utf-8", "surrogateescape"),
                                    copy_out(held, e, f),
                                ),
                            )
                        )
                        at = f
                        continue
            _check_row(inbox, at, start, row, limits)
            check_counts(requests, headers, parameters, limits)
            inbox.at = at
            yield None
            held = inbox.held
            start += inbox.at - at
            at = inbox.at
            end = min(len(held), start + frame)
        inbox.end_frame(at)
        held = b""
        yield _hand_over(requests)


def _hand_over(requests: List[Request]) -> PredictCommand:
    """Return the batch, of which a parser that waits for the next one must not keep anything."""
    batch = requests.copy()
    requests.clear()
    return tuple.__new__(PredictCommand, (batch,))


def _check_row(inbox: Inbox, at: int, start: int, row: int, limits: Limits) -> None:
    """Raise where the row at `at` is wrong; return where its bytes are only not here yet."""
    held = inbox.held
    for field in _ROWS[row]:
        if at + 4 > len(held):
            at += 4
            break
        length = INTEGER.unpack_from(held, at)[0]
        bound = limits.body if field == "value" else limits.text
        if not 0 <= length <= bound:
            name = f"length of the {field}"
            raise length_error(name, at - start, length, field in _FIRST, bound)
        at += 4 + length
        if at > len(held):
            break
    check_frame(at - start, limits)


_LOAD_FIELDS = ("model name", "model path", "batch size", "handler", "gpu id", "io file descriptor")
_LOAD_INTEGERS = ("batch size", "gpu id")


def _load(inbox: Inbox, limits: Limits) -> Generator[None, None, LoadCommand]:
    """Yield while bytes are missing, then return the command that begins at `inbox.at`."""
    letter = inbox.held[inbox.at]
    if letter != LOAD:
        raise WireError(
            400,
            f"command 0x{letter:02x} at byte 0 of the frame; expected 0x49 ('I') or 0x4c ('L')",
        )
    fields: List[Union[int, str]] = []
    offset = 1
    inbox.at += 1
    for name in _LOAD_FIELDS:
        while len(inbox.held) - inbox.at < 4:
            yield
        number: int = INTEGER.unpack_from(inbox.held, inbox.at)[0]
        size = 0
        if name in _LOAD_INTEGERS:
            fields.append(number)
        else:
            size = number
            if not 0 <= size <= limits.text:
                raise length_error(f"length of the {name}", offset, size, False, limits.text)
            while len(inbox.held) - inbox.at < 4 + size:
                yield
            text = copy_out(inbox.held, inbox.at + 4, inbox.at + 4 + size)
            fields.append(text.decode("utf-8", "surrogateescape"))
        inbox.at += 4 + size
        offset += 4 + size
    inbox.end_frame(inbox.at)
    return LoadCommand._make(fields)


class CommandReader:
    """The worker's side of a connection: bytes in, commands out, in order."""

    __slots__ = ("_commands", "_failure", "_inbox", "feed")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._inbox = Inbox()
        self._commands = _commands(self._inbox, limits)
        self._failure: Optional[WireError] = None
        self.feed: Callable[[bytes], None] = self._inbox.feed  # takes in; parses nothing yet

    def next_command(self) -> Optional[Command]:
        """Return the next complete command, None where bytes are missing.

        A WireError ends the reader: it is raised again by every later call.
        """
        if self._failure is not None:
            raise self._failure
        try:
            return next(self._commands)
        except WireError as failure:
            self._failure = failure
            raise

    @property
    def pending(self) -> bool:
        """Whether bytes of an unfinished frame, or of frames not yet asked for, are held."""
        return self._inbox.pending
