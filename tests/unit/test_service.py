"""A handler and what it is given: values, context, metrics, and how its failures are answered and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modelworker import respond
from modelworker.channel import TEXT_KEPT
from modelworker.metrics import Dimension, print_metrics
from modelworker.respond import InvalidReply, answer, predict
from modelworker.service import Context, PredictionException
from modelworker.wire import Limits, Parameter, PredictResponse, Request, ResponseReader

JSON = "application/json"


def request(
    *parameters: tuple[str, str, bytes], name: str = "r1", headers: tuple[tuple[str, str], ...] = ()
) -> Request:
    return Request(name, list(headers), [Parameter(*each) for each in parameters])


def body(value: bytes, content_type: str = "", name: str = "r1") -> Request:
    return request(("body", content_type, value), name=name)


class Worker:
    """A handler between a batch and its answer, and the events it caused."""

    def __init__(self, handle: Callable[[Any, Context], Any]) -> None:
        self.handle = handle
        self.context = Context("m", "/models/m", {}, 8, None, "0.1.0")
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def event(self, level: str, event: str, **fields: Any) -> None:
        self.events.append((level, event, fields))

    def ask(self, *requests: Request) -> PredictResponse:
        reader = ResponseReader()
        reader.feed(answer(self.handle, self.context, requests, self.event))
        response = reader.next_predict_response()
        assert response is not None
        assert not reader.pending
        return response

    def failure(self, *requests: Request) -> tuple[int, str, dict[str, Any]]:
        """The code and message of a batch that fails as a whole, and the fields of its one event."""
        response = self.ask(*requests)
        for item, asked in zip(response.items, requests, strict=True):
            assert item == (asked.request_id, "", response.code, "", [], b"error")
        ((level, event, fields),) = self.events
        assert (level, event) == ("error", "request.failed")
        assert fields["request_ids"] == [each.request_id for each in requests]
        assert fields["code"] == response.code
        return response.code, response.message, fields


def returning(value: Any) -> Worker:
    return Worker(lambda data, context: value)


def keeping(given: list[Any]) -> Callable[[Any, Context], Any]:
    """A handler that notes what it is given."""

    def handle(data: Any, context: Context) -> Any:
        given.extend(data)
        return [b""] * len(data)

    return handle


def raising(error: BaseException) -> Worker:
    def handle(data: Any, context: Context) -> Any:
        raise error

    return Worker(handle)


# What the handler is given


@pytest.mark.parametrize(
    ("content_type", "raw", "value"),
    [
        (JSON, b'{"a": [1, null]}', {"a": [1, None]}),
        ("application/json; charset=utf-8", b'{"a": 1}', b'{"a": 1}'),
        ("text/plain", "é".encode(), "é"),
        ("text", b"t", "t"),
        ("image/png", b"\x89PNG", b"\x89PNG"),
        ("", b"\xff", b"\xff"),
    ],
)
def test_values_by_content_type(content_type: str, raw: bytes, value: Any) -> None:
    """Exactly application/json is parsed, text is decoded, the rest stays bytes."""
    given: list[Any] = []
    Worker(keeping(given)).ask(body(raw, content_type))
    assert given == [{"body": value}]
    assert type(given[0]["body"]) is type(value)


def test_parameters_become_a_dict_of_which_the_last_of_a_name_counts() -> None:
    """As MMS builds it."""
    given: list[Any] = []
    worker = Worker(keeping(given))
    worker.ask(request(("a", "", b"1"), ("b", "", b"2"), ("a", "", b"3")), request(name="r2"))
    assert given == [{"a": b"3", "b": b"2"}, {}]


@pytest.mark.parametrize(
    ("content_type", "raw", "kind"),
    [
        (JSON, b"{", "invalid JSON"),
        (JSON, b"\xff\xfe\xfd", "invalid"),
        (JSON, b"[" * 200_000, "invalid JSON"),
        ("text/plain", b"\xff", "UTF-8"),
    ],
)
def test_what_cannot_be_decoded_fails_its_request_alone(
    content_type: str, raw: bytes, kind: str
) -> None:
    """The others run, indexes count what the handler was given, and nothing is an error event."""

    def handle(data: Any, context: Context) -> list[Any]:
        assert context.request_ids == {0: "r1", 1: "r3"}
        assert context.get_request_header(1, "h") == "v"
        context.set_response_header(1, "for", "r3")
        return [row["body"] for row in data]

    worker = Worker(handle)
    third = request(("body", "", b"three"), name="r3", headers=(("h", "v"),))
    response = worker.ask(body(b"one"), body(raw, content_type, "r2"), third)
    assert (response.code, response.message) == (200, "Prediction success")
    assert [item.request_id for item in response.items] == ["r1", "r2", "r3"]
    assert [item.status for item in response.items] == [200, 400, 200]
    assert response.items[2].headers == [("for", "r3")]
    bad = response.items[1]
    assert (bad.phrase, bad.content_type) == ("Bad Request", JSON)
    assert bad.headers == [("content-type", JSON)]
    said = json.loads(bad.body)
    assert (said["code"], said["type"]) == (400, "BadRequestException")
    assert "parameter 'body'" in said["message"]
    assert kind in said["message"]
    assert worker.events == []


def test_a_batch_of_which_nothing_is_left_does_not_reach_the_handler() -> None:
    """All of it invalid, or empty."""
    worker = raising(AssertionError("must not run"))
    assert [item.status for item in worker.ask(body(b"{", JSON)).items] == [400]
    assert worker.ask() == (200, "Prediction success", [])
    assert worker.events == []


# What it returns


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        ("é", "é".encode()),
        ("\udcff", b"\xff"),
        ({"a": [1, 2.5, None]}, b'{"a": [1, 2.5, null]}'),
        (7, b"7"),
        (None, b"null"),
    ],
)
def test_replies_are_bytes_text_or_json(value: Any, expected: bytes) -> None:
    """Bytes as they are, text as UTF-8, the rest as JSON; status 200 and no headers by default."""
    assert returning([value]).ask(body(b"")).items == [("r1", "", 200, "", [], expected)]


def test_a_batch_keeps_its_order() -> None:
    """One item a request, under its id."""
    worker = Worker(lambda data, context: [row["body"] for row in data])
    response = worker.ask(*(body(b"%d" % each, name=f"r{each}") for each in range(16)))
    assert [(item.request_id, item.body) for item in response.items] == [
        (f"r{each}", b"%d" % each) for each in range(16)
    ]


def test_status_headers_and_content_type_travel() -> None:
    """The golden vector's way: the content type is the field and a header."""

    def handle(data: Any, context: Context) -> list[Any]:
        context.set_response_content_type(0, "text/plain")
        context.set_response_status(201, "Made", 0)
        context.set_response_header(0, "dummy", 1)  # type: ignore[arg-type] # handlers do
        context.set_response_header(0, "raw", b"\xff")  # type: ignore[arg-type]
        return ["OK", "OK"]

    first, second = Worker(handle).ask(body(b""), body(b"", name="r2")).items
    headers = [("content-type", "text/plain"), ("dummy", "1"), ("raw", "\udcff")]
    assert first == ("r1", "text/plain", 201, "Made", headers, b"OK")
    assert second == ("r2", "", 200, "", [], b"OK")


@pytest.mark.parametrize("value", [(b"a",), {"a": 1}, "text", None])
def test_a_result_that_is_no_list(value: Any) -> None:
    """MMS's code and message, and the type in the event."""
    code, message, fields = returning(value).failure(body(b""))
    assert (code, message) == (503, "Invalid model predict output")
    assert type(value).__name__ in fields["message"]


@pytest.mark.parametrize("value", [[], [b"", b""]])
def test_a_result_of_the_wrong_length(value: Any) -> None:
    """MMS's code and message, and both counts in the event."""
    code, message, fields = returning(value).failure(body(b""))
    assert (code, message) == (503, "number of batch response mismatched")
    assert f"{len(value)}; expected 1" in fields["message"]


def recursive() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("value", [object(), {1, 2}, "\ud800", {b"a": 1}, recursive()])
def test_a_reply_that_cannot_be_written(value: Any) -> None:
    """MMS's code and message."""
    code, message, fields = returning([value]).failure(body(b""))
    assert (code, message) == (503, "Unsupported model output data type.")
    assert fields["error"] == "InvalidReply"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda context: context.set_response_status("many"),
        lambda context: context.set_response_status(10**12),
        lambda context: context.set_response_status(0),
        lambda context: context.set_response_status(200, "\ud800"),
        lambda context: context.set_response_header(0, "a", "x" * 65537),
        lambda context: context.set_response_header(0, "\ud800", "x"),
        lambda context: context.request_processor.clear(),
    ],
)
def test_a_status_or_header_that_cannot_be_written(spoil: Callable[[Any], None]) -> None:
    """The batch fails; the worker and its stream go on."""

    def handle(data: Any, context: Context) -> list[Any]:
        spoil(context)
        return ["x"]

    assert Worker(handle).failure(body(b""))[0] == 503


def test_replies_over_the_limits_are_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client would only close the connection on them."""
    monkeypatch.setattr(respond, "DEFAULT_LIMITS", Limits(body=100, frame=300))
    assert returning([b"x" * 100]).ask(body(b"")).code == 200
    code, _, fields = returning([b"x" * 101]).failure(body(b""))
    assert code == 503
    assert "101 long; expected at most 100" in fields["message"]
    asked = [body(b"", name=f"r{each}") for each in range(4)]
    code, _, fields = returning([b"x" * 100] * 4).failure(*asked)
    assert code == 503
    assert "expected at most 300" in fields["message"]


# What it raises


class Theirs(Exception):
    """What a real `mms` in the environment would raise: same name, another class."""

    def __init__(self, message: str, error_code: Any) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code


Theirs.__name__ = "PredictionException"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (PredictionException("too small", 422), 422, "too small"),
        (PredictionException("no code"), 500, "no code"),
        (PredictionException("é" * 40_000, 599), 599, "é" * 32_768),
        (Theirs("theirs", 418), 418, "theirs"),
        (Theirs("odd", "many"), 500, "odd"),
        (Theirs("odd", 10**12), 500, "odd"),
        (MemoryError(), 507, "Out of resources"),
        (ValueError("boom"), 503, "Prediction failed"),
        (GeneratorExit(), 503, "Prediction failed"),
    ],
)
def test_exceptions_have_their_codes(error: BaseException, code: int, message: str) -> None:
    """A PredictionException its own, no memory 507, all others 503; each is one event."""
    answered, said, fields = raising(error).failure(body(b""), body(b"", name="r2"))
    assert (answered, said) == (code, message)
    assert fields["error"] == type(error).__name__
    assert ("raise error" in fields["traceback"]) == (len(fields["traceback"]) < TEXT_KEPT)


def test_the_event_of_a_failure_shows_the_handler_and_not_us() -> None:
    """The traceback begins in the handler."""
    fields = raising(ValueError("boom"))
    _, _, told = fields.failure(body(b""))
    assert told["message"] == "ValueError: boom"
    assert told["traceback"].count("File ") == 1
    assert "respond.py" not in told["traceback"]


def test_a_long_traceback_keeps_its_end() -> None:
    """32 KiB at most, and the cause is at the end."""
    _, _, fields = raising(ValueError("x" * 100_000 + " the cause")).failure(body(b""))
    assert len(fields["traceback"]) <= TEXT_KEPT + 10
    assert fields["traceback"].endswith("the cause\n")
    assert len(fields["message"]) < 5000


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_that_cannot_be_printed_is_answered() -> None:
    """The answer does not depend on the error's text."""
    code, _, fields = raising(Unprintable()).failure(body(b""))
    assert code == 503
    assert fields["error"] == "Unprintable"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_leaving_is_not_a_failed_request(error: BaseException) -> None:
    """A handler that exits means the process."""
    worker = raising(error)
    with pytest.raises(type(error)):
        worker.ask(body(b""))
    assert worker.events == []


def test_predict_raises_what_the_handler_raises() -> None:
    """For the warm-up, whose failure is a failed load with its own traceback."""
    worker = raising(ValueError("boom"))
    with pytest.raises(ValueError, match="boom"):
        predict(worker.handle, worker.context, [body(b"")])
    with pytest.raises(InvalidReply, match="expected a list"):
        predict(returning(None).handle, worker.context, [body(b"")])


# The context


def test_every_name_of_the_context() -> None:
    """What WIRE lists works from inside a handler."""
    seen: list[Any] = []

    def handle(data: Any, context: Context) -> list[Any]:
        context.set_all_response_status(202, "Later")
        context.set_response_content_type(1, "a/b")
        assert context.request_processor is not None
        seen.extend(
            (
                context.model_name,
                context.system_properties,
                context.request_ids,
                context.get_request_id(),
                context.get_request_id(1),
                context.get_request_id(9),
                context.get_request_header(0, "Accept"),
                context.get_request_header(0, "accept"),
                context.get_all_request_header(0),
                context.get_response_content_type(0),
                context.get_response_content_type(1),
                context.get_response_status(1),
                context.get_response_headers(1),
                context.request_processor[0].get_request_property("body"),
            )
        )
        return ["", ""]

    first = request(("body", "text/plain", b"x"), headers=(("Accept", "*"),))
    Worker(handle).ask(first, body(b"", name="r2"))
    properties = {
        "model_dir": "/models/m",
        "gpu_id": None,
        "batch_size": 8,
        "server_name": "MMS",
        "server_version": "0.1.0",
    }
    assert seen == [
        "m",
        properties,
        {0: "r1", 1: "r2"},
        "r1",
        "r2",
        None,
        "*",
        None,
        {"body": {"content-type": "text/plain"}, "Accept": "*"},
        None,
        "a/b",
        (202, "Later"),
        {"content-type": "a/b"},
        {"content-type": "text/plain"},
    ]


def test_nothing_of_a_batch_reaches_the_next() -> None:
    """One context serves all batches, as in MMS."""

    def handle(data: Any, context: Context) -> Any:
        context.set_response_status(201)
        return ["x"]

    worker = Worker(handle)
    assert worker.ask(body(b"")).items[0].status == 201
    worker.context.end_batch()
    assert worker.context.request_ids is None
    assert worker.context.request_processor is None
    worker.handle = lambda data, context: ["x"]
    assert worker.ask(body(b"")).items[0].status == 200


# Metrics


def metric_lines(record: Callable[[Any], None], capsys: pytest.CaptureFixture[str]) -> list[str]:
    def handle(data: Any, context: Context) -> list[Any]:
        record(context.metrics)
        return [""] * len(data)

    worker = Worker(handle)
    worker.ask(body(b""), body(b"", name="r2"))
    print_metrics(worker.context.end_batch())
    return capsys.readouterr().out.splitlines()


LEVEL = "ModelName:m,Level:Model"


@pytest.mark.parametrize(
    ("record", "start", "end"),
    [
        (lambda m: m.add_counter("n", 2, 0), f"n.Count:2|#{LEVEL}|", ",r1"),
        (lambda m: m.add_counter("n", 2), f"n.Count:2|#{LEVEL}|", ",r1,r2"),
        (lambda m: m.add_time("t", 1.5, 1), f"t.Milliseconds:1.5|#{LEVEL}|", ",r2"),
        (lambda m: m.add_time("t", 1, 1, "s"), f"t.Seconds:1|#{LEVEL}|", ",r2"),
        (lambda m: m.add_size("s", 3), f"s.Megabytes:3|#{LEVEL}|", ",r1,r2"),
        (lambda m: m.add_size("s", 3, 0, "kB"), f"s.Kilobytes:3|#{LEVEL}|", ",r1"),
        (lambda m: m.add_percent("p", 99.5, 0), f"p.Percent:99.5|#{LEVEL}|", ",r1"),
        (lambda m: m.add_error("e", 1), "e.unit:1|#Level:Error|", ""),
        (lambda m: m.add_metric("x", 1, 0), f"x.unit:1|#{LEVEL}|", ",r1"),
        (lambda m: m.add_metric("x", 1, 0, "rows"), f"x.rows:1|#{LEVEL}|", ",r1"),
        (
            lambda m: m.add_time("t", 1, 0, "ms", [Dimension("K", "v")]),
            f"t.Milliseconds:1|#K:v,{LEVEL}|",
            ",r1",
        ),
    ],
)
def test_metric_lines(
    record: Callable[[Any], None], start: str, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind is a line that MMS's reader accepts."""
    (line,) = metric_lines(record, capsys)
    assert line.startswith("[METRICS]" + start + "#hostname:")
    rest = line[len("[METRICS]" + start) :].split(",", 2)
    assert rest[1].isdigit()
    assert ("," + rest[2] if len(rest) > 2 else "") == end


def test_counters_add_up_and_others_replace(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for a name, unit, request and dimensions."""

    def record(metrics: Any) -> None:
        metrics.add_counter("n", 1, 0)
        metrics.add_counter("n", 2, 0)
        metrics.add_counter("n", 5, 1)
        metrics.add_time("t", 1, 0)
        metrics.add_time("t", 9, 0)

    lines = metric_lines(record, capsys)
    assert [line.split("|")[0] for line in lines] == [
        "[METRICS]n.Count:3",
        "[METRICS]n.Count:5",
        "[METRICS]t.Milliseconds:9",
    ]


def test_a_handlers_list_of_dimensions_is_not_changed(capsys: pytest.CaptureFixture[str]) -> None:
    """MMS appends its own to it, so that a second metric has them twice."""
    dimensions = [Dimension("K", "v")]
    metric_lines(lambda m: m.add_counter("n", 1, dimensions=dimensions), capsys)
    assert len(dimensions) == 1


@pytest.mark.parametrize(
    "record",
    [
        lambda m: m.add_time("t", 1, unit="h"),
        lambda m: m.add_size("s", 1, unit="TB"),
        lambda m: m.add_counter("n", 1, dimensions="K:v"),
    ],
)
def test_wrong_units_and_dimensions_are_value_errors(record: Callable[[Any], None]) -> None:
    """As in MMS, a handler's mistake is raised where it is made."""
    with pytest.raises(ValueError, match=r"."):
        record(Context("m", "/", {}, 1, None, "0").metrics)


def test_a_batch_without_metrics_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """No PredictionTime line for each request, unlike MMS."""
    assert metric_lines(lambda metrics: None, capsys) == []
    worker = returning([""])
    worker.ask(body(b""))
    assert worker.context.end_batch() is None
