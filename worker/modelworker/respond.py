"""From the requests of a batch to the bytes of its answer, whatever the handler does.

One request can fail alone only before the handler runs: a parameter that says `application/json`
and is not, or `text` that is not UTF-8, answers 400 for its request, and the handler is given the
others. After that a batch stands or falls as a whole, because that is what the protocol can say:
the code on top is the batch's, and MMS's front end reads nothing else when it is not 200.

`SystemExit` is no failed request: a handler that calls `sys.exit` means the process, and its caller
ends it.
"""

from __future__ import annotations

import json
import operator
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

from modelworker.channel import tail
from modelworker.complaints import release
from modelworker.frames import (
    DEFAULT_LIMITS,
    SUCCESS,
    Request,
    ResponseItem,
    encode_bodies,
    encode_predict_response,
)
from modelworker.service import Context, RequestProcessor

Handle = Callable[[Any, Context], Any]
Event = Callable[..., None]

_IDS_TOLD = 64  # of a batch that failed, as many as the scoreboard shows
_MESSAGE_KEPT = 4096
_NO_HEADERS: List[Tuple[str, str]] = []
_UNSUPPORTED = "Unsupported model output data type."


class InvalidReply(Exception):
    """The handler returned what is no answer: `said` is MMS's message, `reason` the facts."""

    code = 503

    def __init__(self, said: str, reason: str) -> None:
        super().__init__(f"{said}: {reason}")
        self.said = said


class _Verdict(NamedTuple):
    code: int
    message: str


def answer(handle: Handle, context: Context, requests: Sequence[Request], event: Event) -> bytes:
    """Run a batch and return its frame; a failure is one `request.failed` event.

    Raises SystemExit and KeyboardInterrupt where the handler does.
    """
    try:
        given, values, refused = _run(handle, context, requests)
        if not refused and context.processors_in_use() is None:
            bodies = [value if type(value) is bytes else _body(value) for value in values]
            reply = encode_bodies(given, bodies)
        else:
            reply = encode_predict_response(200, SUCCESS, _items(context, given, values, refused))
        if len(reply) > DEFAULT_LIMITS.body:
            _check_sizes(reply, values)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # asyncio.CancelledError is one, for example
        if isinstance(error, MemoryError):
            release(error)  # what filled the memory: the answer, and the report, need some
        verdict = _verdict(error)
        _report(event, requests, verdict, error)
        return _failed(requests, verdict)
    return reply


def predict(handle: Handle, context: Context, requests: Sequence[Request]) -> List[ResponseItem]:
    """Run a batch; return an item a request. Raises InvalidReply, or what the handler raises."""
    given, values, refused = _run(handle, context, requests)
    return _items(context, given, values, refused)


def _run(
    handle: Handle, context: Context, requests: Sequence[Request]
) -> Tuple[Sequence[Request], List[Any], Dict[int, ResponseItem]]:
    """Run what can be decoded; return it, its results, and by index the answers to the others."""
    inputs, refused = _inputs(requests)
    given = requests
    if refused:
        given = [request for index, request in enumerate(requests) if index not in refused]
    context.begin_batch(given)
    values = handle(inputs, context) if given else []
    if not isinstance(values, list):
        raise InvalidReply(
            "Invalid model predict output", f"{type(values).__name__}; expected a list"
        )
    if len(values) != len(given):
        raise InvalidReply(
            "number of batch response mismatched", f"{len(values)}; expected {len(given)}"
        )
    return given, values, refused


def _inputs(requests: Sequence[Request]) -> Tuple[List[Dict[str, Any]], Dict[int, ResponseItem]]:
    """Return what the handler is given, and by index the answers to what cannot be decoded."""
    inputs: List[Dict[str, Any]] = []
    refused: Dict[int, ResponseItem] = {}
    for request_id, _, parameters in requests:
        values: Dict[str, Any] = {}
        name = ""
        try:
            for name, content_type, value in parameters:
                if content_type == "application/json":
                    values[name] = json.loads(value)
                elif content_type.startswith("text"):
                    values[name] = value.decode()
                else:
                    values[name] = value
        except (ValueError, RecursionError) as error:
            refused[len(inputs) + len(refused)] = _bad_request(request_id, name, error)
        else:
            inputs.append(values)
    return inputs, refused


def _bad_request(request_id: str, name: str, error: Exception) -> ResponseItem:
    """Answer one request in the form of MMS's own error responses."""
    kind = "text, expected UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
    body = {
        "code": 400,
        "type": "BadRequestException",
        "message": f"parameter {name!r}: invalid {kind}: {error}",
    }
    content_type = "application/json"
    headers = [("content-type", content_type)]
    return ResponseItem(
        request_id, content_type, 400, "Bad Request", headers, json.dumps(body).encode()
    )


def _items(
    context: Context,
    given: Sequence[Request],
    values: List[Any],
    refused: Dict[int, ResponseItem],
) -> List[ResponseItem]:
    """Put the results into items, as the handler decorated them, with the refused in place."""
    processors = context.request_processor or []
    if len(processors) != len(given):
        said = f"{len(processors)} request processors; expected {len(given)}"
        raise InvalidReply(_UNSUPPORTED, said)
    items = [
        _item(request.request_id, processor, _body(value))
        for request, processor, value in zip(given, processors, values)
    ]
    for index, item in refused.items():  # in ascending order, so that each lands where it belongs
        items.insert(index, item)
    return items


def _body(value: Any) -> bytes:
    """Bytes as they are, text as UTF-8, the rest as JSON."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    try:
        text = value if isinstance(value, str) else json.dumps(value)
        return text.encode("utf-8", "surrogateescape")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidReply(_UNSUPPORTED, f"{type(value).__name__}: {error}") from error


def _item(request_id: str, processor: RequestProcessor, body: bytes) -> ResponseItem:
    headers = [
        (_text("header name", name), _text("header value", value))
        for name, value in processor.get_response_headers().items()
    ]
    content_type = next((value for name, value in headers if name == "content-type"), "")
    if len(headers) > DEFAULT_LIMITS.fields:
        raise _too_long("the headers of a reply", len(headers), DEFAULT_LIMITS.fields)
    code = processor.get_response_status_code()
    try:
        status = operator.index(code)
    except TypeError:
        status = 0
    if not 100 <= status <= 999:
        raise InvalidReply(_UNSUPPORTED, f"status {code!r}; expected 100 to 999")
    phrase = processor.get_response_status_phrase()
    return ResponseItem(
        request_id, content_type, status, _text("phrase", phrase or ""), headers, body
    )


def _text(what: str, value: Any) -> str:
    """Return text that fits into a frame; a number that a handler set is written out."""
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    try:
        size = len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise InvalidReply(_UNSUPPORTED, f"{what}: {error}") from error
    if size > DEFAULT_LIMITS.text:
        raise _too_long(f"a {what}", size, DEFAULT_LIMITS.text)
    return text


def _check_sizes(reply: bytes, values: List[Any]) -> None:
    """Refuse what a reader would refuse; called only for a reply longer than one body may be."""
    if len(reply) > DEFAULT_LIMITS.frame:
        raise _too_long("the reply to the batch", len(reply), DEFAULT_LIMITS.frame)
    for value in values:
        size = len(_body(value))
        if size > DEFAULT_LIMITS.body:
            raise _too_long("the reply to a request", size, DEFAULT_LIMITS.body)


def _too_long(what: str, size: int, limit: int) -> InvalidReply:
    return InvalidReply(_UNSUPPORTED, f"{what} is {size} long; expected at most {limit}")


def _verdict(error: BaseException) -> _Verdict:
    """The code and message of a failed batch, as MMS has them."""
    if isinstance(error, InvalidReply):
        return _Verdict(error.code, error.said)
    if isinstance(error, MemoryError):
        return _Verdict(507, "Out of resources")
    # By name: where the environment has a real `mms`, its class is not ours.
    if any(each.__name__ == "PredictionException" for each in type(error).__mro__):
        code = getattr(error, "error_code", None)
        said = str(getattr(error, "message", "Prediction failed"))
        message = said.encode("utf-8", "replace")[: DEFAULT_LIMITS.text].decode("utf-8", "ignore")
        return _Verdict(code if isinstance(code, int) and 100 <= code <= 999 else 500, message)
    return _Verdict(503, "Prediction failed")


def _failed(requests: Sequence[Request], verdict: _Verdict) -> bytes:
    items = [
        ResponseItem(request.request_id, "", verdict.code, "", _NO_HEADERS, b"error")
        for request in requests
    ]
    return encode_predict_response(verdict.code, verdict.message, items)


def _report(
    event: Event, requests: Sequence[Request], verdict: _Verdict, error: BaseException
) -> None:
    """Send the event of a failed batch; its traceback starts in the handler and keeps its end."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") == __name__:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
        said = traceback.format_exception_only(type(error), error)[-1].strip()
    except Exception as broken:  # no memory left, or a __str__ that raises: the answer matters more
        text, said = "", f"{type(error).__name__} (not printable: {type(broken).__name__})"
    event(
        "error",
        "request.failed",
        request_ids=[request.request_id for request in requests[:_IDS_TOLD]],
        requests=len(requests),
        code=verdict.code,
        error=type(error).__name__,
        message=tail(said, _MESSAGE_KEPT),
        traceback=tail(text),
    )
