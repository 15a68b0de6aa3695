"""The client's side of the worker protocol: responses, read from bytes in memory as they come.

Made like the reader of commands in `wire`, which exports it: a generator whose local variables are
the state of a response that is half here. It reads one field a turn.
"""

from __future__ import annotations

from typing import Generator, List, NoReturn, Optional, Tuple

from modelworker.frames import (
    DEFAULT_LIMITS,
    INTEGER,
    Limits,
    LoadResponse,
    PredictResponse,
    ResponseItem,
    WireError,
)
from modelworker.inbox import Inbox, check_counts, check_frame, copy_out, length_error

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
    """The lowest and highest number of each field; an id's length of -1 ends the items."""
    text, low, high = limits.text, -(2**31), 2**31 - 1
    return (
        (low, 0, -1, 0, low, 0, 0, 0, 0, 0),
        (high, text, text, text, high, text, limits.fields, text, text, limits.body),
    )


def _response(inbox: Inbox, limits: Limits) -> Generator[None, None, PredictResponse]:
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
            raise length_error(name, at - start, number, field == _ITEM, highest[field])
        stop = body if field in _INTEGERS else body + number
        if max(body, stop) > end:
            check_frame(max(body, stop) - start, limits)
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
            items.append(_item(texts, numbers[1], copy_out(held, body, stop)))
            check_counts(items, (), (), limits)
            del texts[1:], numbers[1:]
        else:
            texts.append(str(held[body:stop], "utf-8", "surrogateescape"))
        at = stop
        more_headers = field in (_COUNT, _CONTENT) and len(texts) < 4 + 2 * numbers[2]
        field = _NAME if more_headers else _NEXT[field]


def _item(texts: List[str], status: int, body: bytes) -> ResponseItem:
    """One item of the texts in wire order: message, id, content type, phrase, headers."""
    headers = list(zip(texts[4::2], texts[5::2]))
    return ResponseItem(texts[1], texts[2], status, texts[3], headers, body)


def _responses(
    inbox: Inbox, limits: Limits
) -> Generator[Optional[PredictResponse], None, NoReturn]:
    """Yield None while bytes are missing, else the next response."""
    while True:
        while not inbox.pending:
            yield None
        yield (yield from _response(inbox, limits))


class ResponseReader:
    """The client's side of a connection; the caller knows which kind of response comes next."""

    __slots__ = ("_failure", "_inbox", "_responses")

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._inbox = Inbox()
        self._responses = _responses(self._inbox, limits)
        self._failure: Optional[WireError] = None

    def feed(self, chunk: bytes) -> None:
        """Take in what the worker sent; parse nothing yet."""
        self._inbox.feed(chunk)

    def next_predict_response(self) -> Optional[PredictResponse]:
        """Return the next complete response, None where bytes are missing.

        A WireError ends the reader: it is raised again by every later call.
        """
        if self._failure is not None:
            raise self._failure
        try:
            return next(self._responses)
        except WireError as failure:
            self._failure = failure
            raise

    def next_load_response(self) -> Optional[LoadResponse]:
        """Return the next response as one to `L`, else as above; items in it are a WireError."""
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
        """Whether bytes of an unfinished response, or of responses not yet asked for, are held."""
        return self._inbox.pending
