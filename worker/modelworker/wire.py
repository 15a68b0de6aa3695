"""The worker protocol (MMS dialect), read from bytes in memory: no socket, no clock, no log. Frames: see `frames`.

A frame has no outer length, so whoever reads one has to walk it field by field, and a peer decides where the bytes are
cut. The parsers below are generators over an `_Inbox`: their local variables are the state of a frame that is half
here, so resuming costs nothing, and a field is looked at again only when more bytes came. A frame that trickles in one
byte at a time costs as much as one that comes whole. What a parser has consumed is dropped before more is taken in, and
what a peer can make us hold is bounded by `Limits`, whatever lengths it names.
"""

from __future__ import annotations

from typing import Callable, Generator, List, NoReturn, Optional, Sized, Tuple, Union

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


class _Inbox:
    """The bytes that came and are not consumed: `held[at:]`; a chunk that finds it empty is kept without a copy.

    `begun` says that a frame was begun and is not complete, though all of it that came may be consumed.
    """

    __slots__ = ("at", "begun", "held")

    def __init__(self) -> None:
        self.held: Union[bytes, bytearray] = b""
        self.at = 0
        self.begun = False

    def feed(self, chunk: bytes) -> None:
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
        """Go on at `at`; a large frame that is consumed whole is not kept until the next one comes."""
        if at == len(self.held):
            self.held = b""
            at = 0
        self.at = at
        self.begun = False


def _copy(held: Union[bytes, bytearray], start: int, stop: int) -> bytes:
    """The bytes of a value, copied once (a slice of a bytearray would have to be copied again)."""
    return held[start:stop] if isinstance(held, bytes) else bytes(memoryview(held)[start:stop])


def _length_error(field: str, offset: int, length: int, ends: bool, highest: int) -> WireError:
    expected = f"0 to {highest}" + (", or -1 to end the list" if ends else "")
    return WireError(
        413 if length > highest else 400,
        f"{field}: {length} at byte {offset} of the frame; expected {expected}",
    )


def _check_frame(size: int, limits: Limits) -> None:
    if size > limits.frame:
        raise WireError(413, f"frame of at least {size} bytes; expected at most {limits.frame}")


# The fields of a predict command. Where a row of a list would begin, -1 in place of the length ends the list.
_ID, _HEADER, _HEADER_VALUE, _PARAMETER, _CONTENT_TYPE, _VALUE = range(6)
_AFTER = (_HEADER, _HEADER_VALUE, _HEADER, _CONTENT_TYPE, _VALUE, _PARAMETER)
_LISTS = (_ID, _HEADER, _PARAMETER)
_NAMES = ("id", "header name", "header value", "parameter name", "content type", "value")


def _predict(
    inbox: _Inbox, limits: Limits, bounds: Tuple[int, ...]
) -> Generator[None, None, PredictCommand]:
    """Yield while bytes are missing, then return the batch that begins at `inbox.at` with the letter `I`.

    The hot loop of a worker: one turn a field, locals only, and a named tuple made past its Python-level constructor.
    """
    unpack, row, after = INTEGER.unpack_from, tuple.__new__, _AFTER
    held = inbox.held
    start = inbox.at  # of the frame; negative once its first bytes were dropped: `at - start` stays the offset
    at = start + 1
    end = min(len(held), start + limits.frame)
    field = _ID
    request_id = name = text = ""
    headers: List[Tuple[str, str]] = []
    parameters: List[Parameter] = []
    requests: List[Request] = []
    while True:
        body = at + 4
        length: int = unpack(held, at)[0] if body <= end else 0
        stop = body + length
        if body <= stop <= end and length <= bounds[field]:
            at = stop
            if field == _VALUE:
                parameters.append(row(Parameter, (name, text, _copy(held, body, stop))))
            else:
                try:
                    text = held[body:stop].decode()
                except UnicodeDecodeError:
                    text = held[body:stop].decode("utf-8", "surrogateescape")
                if field == _HEADER_VALUE:
                    headers.append((name, text))
                elif field == _ID:
                    request_id = text
                elif field != _CONTENT_TYPE:
                    name = text
            field = after[field]
        elif length == -1 and field in _LISTS:
            at = body
            if field == _HEADER:
                field = _PARAMETER
            elif field == _PARAMETER:
                _check_fields(headers, parameters, limits)
                _check_requests(requests, limits)
                requests.append(row(Request, (request_id, headers, parameters)))
                headers, parameters, field = [], [], _ID
            else:
                inbox.end_frame(body)
                return PredictCommand(requests)
        else:
            if not 0 <= length <= bounds[field]:
                name = f"length of the {_NAMES[field]} in request {len(requests)}"
                raise _length_error(name, at - start, length, field in _LISTS, bounds[field])
            _check_frame(stop - start, limits)
            _check_fields(headers, parameters, limits)
            inbox.at = at
            yield
            held = inbox.held
            start += inbox.at - at
            at = inbox.at
            end = min(len(held), start + limits.frame)


def _check_fields(headers: Sized, parameters: Sized, limits: Limits) -> None:
    if len(headers) > limits.fields or len(parameters) > limits.fields:
        raise WireError(
            413, f"over {limits.fields} headers or parameters in one request; expected at most that"
        )


def _check_requests(earlier: Sized, limits: Limits) -> None:
    if len(earlier) >= limits.requests:
        raise WireError(413, f"over {limits.requests} requests in one batch; expected at most that")


_LOAD_FIELDS = ("model name", "model path", "batch size", "handler", "gpu id", "io file descriptor")
_LOAD_INTEGERS = ("batch size", "gpu id")


def _load(inbox: _Inbox, limits: Limits) -> Generator[None, None, LoadCommand]:
    """Yield while bytes are missing, then return the command that begins at `inbox.at` with the letter `L`."""
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
                raise _length_error(f"length of the {name}", offset, size, False, limits.text)
            while len(inbox.held) - inbox.at < 4 + size:
                yield
            text = _copy(inbox.held, inbox.at + 4, inbox.at + 4 + size)
            fields.append(text.decode("utf-8", "surrogateescape"))
        inbox.at += 4 + size
        offset += 4 + size
    inbox.end_frame(inbox.at)
    return LoadCommand._make(fields)


def _commands(inbox: _Inbox, limits: Limits) -> Generator[Optional[Command], None, NoReturn]:
    """Yield None while bytes are missing, else the next command."""
    bounds = (limits.text,) * _VALUE + (limits.body,)
    while True:
        while inbox.at == len(inbox.held):
            yield None
        inbox.begun = True
        letter = inbox.held[inbox.at]
        if letter == PREDICT:
            yield (yield from _predict(inbox, limits, bounds))
        elif letter == LOAD:
            yield (yield from _load(inbox, limits))
        else:
            raise WireError(
                400,
                f"command 0x{letter:02x} at byte 0 of the frame; expected 0x49 ('I') or 0x4c ('L')",
            )


class CommandReader:
    """The worker's side of a connection: bytes in, commands out, in order."""

    __slots__ = ("_commands", "_failure", "_inbox", "feed")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._inbox = _Inbox()
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
        return self._inbox.begun or self._inbox.at < len(self._inbox.held)


# The fields of a response, in order; a load response is a predict response without items.
_CODE, _MESSAGE, _ITEM, _TYPE, _STATUS, _PHRASE, _COUNT, _NAME, _CONTENT, _BODY = range(10)
_NEXT = (_MESSAGE, _ITEM, _TYPE, _STATUS, _PHRASE, _COUNT, _BODY, _CONTENT, _BODY, _ITEM)
_INTEGERS = (_CODE, _STATUS, _COUNT)
_RESPONSE_NAMES = (
    "code",
    "message",
    "id",
    "content type",
    "status",
    "phrase",
    "header count",
    "header name",
    "header value",
    "body",
)


def _response_bounds(limits: Limits) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
    """The lowest and the highest number that may stand in each field; `-1` for an id ends the items."""
    text, low, high = limits.text, -(2**31), 2**31 - 1
    return (
        (low, 0, -1, 0, low, 0, 0, 0, 0, 0),
        (high, text, text, text, high, text, limits.fields, text, text, limits.body),
    )


def _response(inbox: _Inbox, limits: Limits) -> Generator[None, None, PredictResponse]:
    """Yield while bytes are missing, then return the response that begins at `inbox.at`."""
    unpack = INTEGER.unpack_from
    lowest, highest = _response_bounds(limits)
    held = inbox.held
    start = at = inbox.at
    end = min(len(held), start + limits.frame)
    field = _CODE
    numbers: List[int] = []
    texts: List[str] = []
    items: List[ResponseItem] = []
    while True:
        body = at + 4
        number = unpack(held, at)[0] if body <= end else 0
        if not lowest[field] <= number <= highest[field]:
            name = f"{_RESPONSE_NAMES[field]} of item {len(items)}"
            raise _length_error(name, at - start, number, field == _ITEM, highest[field])
        stop = body if field in _INTEGERS else body + number
        if max(body, stop) > end:
            _check_frame(max(body, stop) - start, limits)
            inbox.at = at
            yield
            held = inbox.held
            start += inbox.at - at
            at = inbox.at
            end = min(len(held), start + limits.frame)
            continue
        if field in _INTEGERS:
            numbers.append(number)
        elif number == -1:
            inbox.end_frame(body)
            return PredictResponse(numbers[0], texts[0], items)
        elif field == _BODY:
            _check_requests(items, limits)
            items.append(_item(texts, numbers[1], _copy(held, body, stop)))
            del texts[1:], numbers[1:]
        else:
            texts.append(str(held[body:stop], "utf-8", "surrogateescape"))
        at = stop
        more_headers = field in (_COUNT, _CONTENT) and len(texts) < 4 + 2 * numbers[2]
        field = _NAME if more_headers else _NEXT[field]


def _item(texts: List[str], status: int, body: bytes) -> ResponseItem:
    """One item of the texts in wire order: the response's message, then id, content type, phrase and headers."""
    headers = list(zip(texts[4::2], texts[5::2]))
    return ResponseItem(texts[1], texts[2], status, texts[3], headers, body)


def _responses(
    inbox: _Inbox, limits: Limits
) -> Generator[Optional[PredictResponse], None, NoReturn]:
    """Yield None while bytes are missing, else the next response."""
    while True:
        while inbox.at == len(inbox.held):
            yield None
        inbox.begun = True
        yield (yield from _response(inbox, limits))


class ResponseReader:
    """The client's side of a connection; the caller knows which kind of response comes next."""

    __slots__ = ("_failure", "_inbox", "_responses")

    def __init__(self, limits: Limits = Limits()) -> None:
        self._inbox = _Inbox()
        self._responses = _responses(self._inbox, limits)
        self._failure: Optional[WireError] = None

    def feed(self, chunk: bytes) -> None:
        """Take in what the worker sent; parse nothing yet."""
        self._inbox.feed(chunk)

    def next_predict_response(self) -> Optional[PredictResponse]:
        """The next complete response, None where bytes are missing. WireError ends the reader."""
        if self._failure is not None:
            raise self._failure
        try:
            return next(self._responses)
        except WireError as failure:
            self._failure = failure
            raise

    def next_load_response(self) -> Optional[LoadResponse]:
        """As `next_predict_response`; items in the answer to a load command are a WireError."""
        response = self.next_predict_response()
        if response is None:
            return None
        if response.items:
            count = len(response.items)
            self._failure = WireError(400, f"load response with {count} items; expected none")
            raise self._failure
        return LoadResponse(response.code, response.message)

    @property
    def pending(self) -> bool:
        """Bytes of an unfinished response, or of responses not yet asked for, are held."""
        return self._inbox.begun or self._inbox.at < len(self._inbox.held)
