"""From the requests of a batch to the bytes of its answer: decode, run the handler, encode, and what is said when it fails.

One request can fail alone only before the handler runs: a parameter that says `application/json` and is not, or `text`
that is not UTF-8, answers 400 for its request, and the handler is given the others. After that a batch stands or falls
as a whole, because that is what the protocol can say: the code on top is the batch's, and MMS's front end reads nothing
else when it is not 200.

`SystemExit` is no failed request: a handler that calls `sys.exit` means the process, and its caller ends it.
"""

from __future__ import annotations

import json
import operator
import traceback
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

from modelworker.channel import tail
from modelworker.frames import DEFAULT_LIMITS, Request, ResponseItem, encode_predict_response
from modelworker.service import Context, RequestProcessor

Handle = Callable[[Any, Context], Any]
Event = Callable[..., None]

_IDS_TOLD = 64  # of a batch that failed, as many as the scoreboard shows
_MESSAGE_KEPT = 4096
_NO_HEADERS: List[Tuple[str, str]] = []
_UNSUPPORTED = "Unsupported model output data type."


class InvalidReply(Exception):
    """The handler returned something that cannot be an answer. `said` is MMS's message for it, `reason` the facts."""

    code = 503

    def __init__(self, said: str, reason: str) -> None:
        super().__init__(f"{said}: {reason}")
        self.said = said


class _Verdict(NamedTuple):
    code: int
    message: str


def answer(handle: Handle, context: Context, requests: Sequence[Request], event: Event) -> bytes:
    """Run a batch and return its frame, whatever the handler does; a failure is one `request.failed` event.

    Raises SystemExit and KeyboardInterrupt where the handler does.
    """
    try:
        items = predict(handle, context, requests)
        reply = encode_predict_response(200, "Prediction success", items)
        if len(reply) > DEFAULT_LIMITS.frame:
            raise _too_long("the reply to the batch", len(reply), DEFAULT_LIMITS.frame)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - asyncio.CancelledError and the like are the handler's failure too
        verdict = _verdict(error)
        _report(event, requests, verdict, error)
        return _failed(requests, verdict)
    return reply


def predict(
    handle: Handle, context: Context, requests: Sequence[Request]
) -> Sequence[ResponseItem]:
    """Run a batch and return one item a request. Raises InvalidReply, or whatever the handler raises."""
    inputs, refused = _inputs(requests)
    if refused:
        given: Sequence[Request] = [
            request for index, request in enumerate(requests) if index not in refused
        ]
    else:
        given = requests
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
    items = _items(given, values, context.processors_in_use())
    for index, item in refused.items():  # in ascending order, so that each lands at its place
        items.insert(index, item)
    return items


def _inputs(requests: Sequence[Request]) -> Tuple[List[Dict[str, Any]], Dict[int, ResponseItem]]:
    """Decode what the handler is given; the second part answers the requests that cannot be decoded, by index."""
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
    requests: Sequence[Request], values: List[Any], processors: Any
) -> List[ResponseItem]:
    items: List[ResponseItem] = []
    item = tuple.__new__  # past the Python-level constructor: this is a worker's hot path
    for index, value in enumerate(values):
        body = value if type(value) is bytes else _body(value)
        if len(body) > DEFAULT_LIMITS.body:
            raise _too_long("the reply to a request", len(body), DEFAULT_LIMITS.body)
        request_id = requests[index][0]
        if processors is None:
            items.append(item(ResponseItem, (request_id, "", 200, "", _NO_HEADERS, body)))
        else:
            items.append(_decorated(request_id, processors[index], body))
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


def _decorated(request_id: str, processor: RequestProcessor, body: bytes) -> ResponseItem:
    """Give a reply the status and headers that the handler set."""
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
    """Text that fits into a frame: numbers and the like are written out, as a handler that sets them expects."""
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    try:
        size = len(text.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise InvalidReply(_UNSUPPORTED, f"{what}: {error}") from error
    if size > DEFAULT_LIMITS.text:
        raise _too_long(f"a {what}", size, DEFAULT_LIMITS.text)
    return text


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
    """Send the event of a failed batch; the traceback starts in the handler and keeps its end, where the cause is."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") == __name__:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, frames))
        said = traceback.format_exception_only(type(error), error)[-1].strip()
    except Exception as broken:  # noqa: BLE001 - no memory left, or a __str__ that raises: the answer matters more
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
