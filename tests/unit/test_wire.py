"""The frames of the worker protocol: golden vectors both ways, limits, errors that say where, and what a reader keeps."""

from __future__ import annotations

import tracemalloc

import pytest

from modelworker.frames import encode_bodies
from modelworker.wire import (
    CommandReader,
    Limits,
    LoadCommand,
    LoadResponse,
    Parameter,
    PredictCommand,
    PredictResponse,
    Request,
    ResponseItem,
    ResponseReader,
    WireError,
    encode_load,
    encode_load_response,
    encode_predict,
    encode_predict_response,
)

LOAD = bytes.fromhex(
    "4c000000016d000000022f64000000010000000e736572766963653a68616e646c65ffffffff00000003616263"
)
LOAD_RESPONSE = bytes.fromhex(
    "000000c8000000176c6f61646564206d6f64656c206d2e205b5049445d3a37ffffffff"
)
PREDICT = bytes.fromhex(
    "490000000272310000000c436f6e74656e742d54797065000000106170706c69636174696f6e2f6a736f6effffffff"
    "00000004626f6479000000106170706c69636174696f6e2f6a736f6e000000077b2261223a317dffffffffffffffff"
)
PLAIN = bytes.fromhex(
    "000000c80000001250726564696374696f6e20737563636573730000000272310000000000"
    "0000c80000000000000000000000024f4bffffffff"
)
DECORATED = bytes.fromhex(
    "000000c80000001250726564696374696f6e20737563636573730000000272310000000a746578742f706c61696e"
    "000000c9000000044d616465000000020000000c636f6e74656e742d747970650000000a746578742f706c61696e"
    "0000000564756d6d790000000131000000024f4bffffffff"
)
FAILED = bytes.fromhex(
    "000001f70000001150726564696374696f6e206661696c65640000000272310000000000"
    "0001f70000000000000000000000056572726f72ffffffff"
)

LOAD_COMMAND = LoadCommand("m", "/d", 1, "service:handle", -1, "abc")
REQUEST = Request(
    "r1",
    [("Content-Type", "application/json")],
    [Parameter("body", "application/json", b'{"a":1}')],
)
PLAIN_ITEM = ResponseItem("r1", "", 200, "", [], b"OK")
DECORATED_ITEM = ResponseItem(
    "r1", "text/plain", 201, "Made", [("content-type", "text/plain"), ("dummy", "1")], b"OK"
)
FAILED_ITEM = ResponseItem("r1", "", 503, "", [], b"error")


def read(frame: bytes, limits: Limits | None = None) -> object:
    """The command of a frame that comes whole."""
    reader = CommandReader() if limits is None else CommandReader(limits)
    reader.feed(frame)
    return reader.next_command()


def trickle(frame: bytes, reader: CommandReader) -> object:
    """The command of a frame that comes byte by byte."""
    for index in range(len(frame)):
        assert reader.next_command() is None
        reader.feed(frame[index : index + 1])
    return reader.next_command()


def refused(frame: bytes, limits: Limits | None = None) -> WireError:
    with pytest.raises(WireError) as caught:
        read(frame, limits)
    return caught.value


@pytest.mark.parametrize(
    ("frame", "command"), [(LOAD, LOAD_COMMAND), (PREDICT, PredictCommand([REQUEST]))]
)
def test_golden_commands_are_read(frame: bytes, command: object) -> None:
    """MMS's own frames give what MMS put into them."""
    assert read(frame) == command


def test_golden_commands_are_written() -> None:
    """Our commands are, byte for byte, those that MMS writes."""
    assert encode_load(LOAD_COMMAND) == LOAD
    assert encode_predict([REQUEST]) == PREDICT


RESPONSES = [
    (PLAIN, PredictResponse(200, "Prediction success", [PLAIN_ITEM])),
    (DECORATED, PredictResponse(200, "Prediction success", [DECORATED_ITEM])),
    (FAILED, PredictResponse(503, "Prediction failed", [FAILED_ITEM])),
]


@pytest.mark.parametrize(("frame", "response"), RESPONSES)
def test_golden_responses(frame: bytes, response: PredictResponse) -> None:
    """MMS's own responses are read, and ours are byte for byte the same."""
    reader = ResponseReader()
    reader.feed(frame)
    assert reader.next_predict_response() == response
    assert encode_predict_response(*response) == frame


def test_golden_load_response() -> None:
    """The answer to a load command, both ways."""
    reader = ResponseReader()
    reader.feed(LOAD_RESPONSE)
    response = reader.next_load_response()
    assert response == LoadResponse(200, "loaded model m. [PID]:7")
    assert encode_load_response(*response) == LOAD_RESPONSE


def test_the_short_way_of_a_plain_answer_gives_the_same_bytes() -> None:
    """What most answers are written with does not differ from what the others are."""
    requests = [Request("r1", [], []), Request("ü", [], [])]
    items = [PLAIN_ITEM, ResponseItem("ü", "", 200, "", [], b"")]
    expected = encode_predict_response(200, "Prediction success", items)
    assert encode_bodies(requests, [b"OK", b""]) == expected


def test_lengths_count_bytes() -> None:
    """A phrase or content type that is not ASCII does not shift the stream, as it does MMS's."""
    item = ResponseItem("ü", "tëxt", 200, "é", [("ä", "ö")], b"x")
    reader = ResponseReader()
    reader.feed(encode_predict_response(200, "ß", [item, PLAIN_ITEM]))
    assert reader.next_predict_response() == PredictResponse(200, "ß", [item, PLAIN_ITEM])


def test_several_commands_in_one_chunk_come_in_order() -> None:
    """Pipelined frames are handed out one by one, and half a frame behind them waits."""
    reader = CommandReader()
    reader.feed(PREDICT + LOAD + PREDICT[:9])
    assert reader.next_command() == PredictCommand([REQUEST])
    assert reader.next_command() == LOAD_COMMAND
    assert reader.next_command() is None
    assert reader.pending
    reader.feed(PREDICT[9:])
    assert reader.next_command() == PredictCommand([REQUEST])
    assert not reader.pending


@pytest.mark.parametrize("frame", [PREDICT, LOAD])
def test_pending_from_the_first_byte_to_the_last(frame: bytes) -> None:
    """At every byte but the last a frame is pending, also where a field ends exactly."""
    reader = CommandReader()
    for index in range(len(frame) - 1):
        reader.feed(frame[index : index + 1])
        assert reader.next_command() is None
        assert reader.pending, index
    reader.feed(frame[-1:])
    assert reader.next_command() is not None
    assert not reader.pending


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"X", "command 0x58 at byte 0"),
        (b"I\xff\xff\xff\xfe", "length of the id: -2 at byte 1"),
        (b"I\0\0\0\1a\0\0\0\1b\xff\xff\xff\xff", "length of the header value: -1 at byte 11"),
        (b"L\xff\xff\xff\xff", "length of the model name: -1 at byte 1"),
    ],
)
def test_nonsense_is_400_and_says_where(frame: bytes, said: str) -> None:
    """An error names the field, the byte of the frame and what was expected."""
    error = refused(frame)
    assert error.code == 400
    assert said in error.message
    assert "expected" in error.message


def test_the_offset_counts_from_the_start_of_the_frame() -> None:
    """However the bytes were cut, and whatever came before the frame."""
    reader = CommandReader()
    reader.feed(PREDICT)
    assert reader.next_command() is not None
    bad = PREDICT[:-4] + b"\x80\0\0\0"
    for index in range(len(bad) - 1):
        reader.feed(bad[index : index + 1])
        assert reader.next_command() is None
    reader.feed(bad[-1:])
    with pytest.raises(WireError, match=f"length of the id: -2147483648 at byte {len(bad) - 4} "):
        reader.next_command()


def test_a_reader_that_failed_stays_failed() -> None:
    """There is no finding the next frame after nonsense: the same error comes again."""
    reader = CommandReader()
    reader.feed(b"X")
    with pytest.raises(WireError) as first:
        reader.next_command()
    reader.feed(PREDICT)
    with pytest.raises(WireError) as second:
        reader.next_command()
    assert second.value is first.value


SMALL = Limits(text=20, body=16, frame=200, requests=3, fields=2)


def batch(requests: int = 1, headers: int = 0, parameters: int = 0, body: bytes = b"") -> bytes:
    row = Request("r", [("h", "v")] * headers, [Parameter("p", "", body)] * parameters)
    return encode_predict([row] * requests)


@pytest.mark.parametrize(
    "frame",
    [
        batch(3),
        batch(1, headers=2, parameters=2),
        batch(1, parameters=1, body=b"x" * 16),
        encode_predict([Request("i" * 20, [], [])]),
        encode_predict([Request("i", [("n" * 20, "v" * 20)], [])]),
    ],
)
def test_limits_are_inclusive(frame: bytes) -> None:
    """Exactly as much as is allowed is allowed, whole or byte by byte."""
    assert isinstance(read(frame, SMALL), PredictCommand)
    assert isinstance(trickle(frame, CommandReader(SMALL)), PredictCommand)


@pytest.mark.parametrize(
    "frame",
    [
        batch(4),
        batch(1, headers=3),
        batch(1, parameters=3),
        batch(1, parameters=1, body=b"x" * 17),
        encode_predict([Request("i" * 21, [], [])]),
        encode_predict([Request("i", [("n", "v" * 21)], [])]),
        encode_predict([Request("i", [], [Parameter("p", "t" * 21, b"")])]),
        encode_load(LOAD_COMMAND._replace(model_name="n" * 21)),
        encode_predict([Request("i" * 20, [("n" * 20, "v" * 20)] * 2, [])] * 2),
    ],
)
def test_over_a_limit_is_413(frame: bytes) -> None:
    """Each limit holds, whether a frame comes whole or byte by byte, and before its body has come."""
    assert refused(frame, SMALL).code == 413
    with pytest.raises(WireError) as caught:
        trickle(frame, CommandReader(SMALL))
    assert caught.value.code == 413


def test_a_length_over_the_limit_is_refused_before_its_bytes_come() -> None:
    """A peer that announces 2 GiB is refused at once, not waited for."""
    error = refused(b"I\0\0\0\1r\xff\xff\xff\xff\0\0\0\1p\0\0\0\0\x7f\xff\xff\xff")
    assert error.code == 413
    assert "length of the value: 2147483647 at byte 19" in error.message


def test_undecodable_text_comes_back_unchanged() -> None:
    """Ids, names and header values may be any bytes."""
    frame = PREDICT.replace(b"r1", b"\xff\xfe").replace(b"Content-Type", b"\x80ontent-Type")
    command = read(frame)
    assert isinstance(command, PredictCommand)
    assert encode_predict(command.requests) == frame


def test_null_fields_are_empty() -> None:
    """A null on MMS's side is a length of 0."""
    frame = b"I\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0" + b"\xff" * 8
    assert read(frame) == PredictCommand([Request("", [], [Parameter("", "", b"")])])
    assert read(b"I\xff\xff\xff\xff") == PredictCommand([])


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_reader_keeps_nothing_of_a_batch_that_it_handed_over(pieces: int) -> None:
    """64 connections that wait do not hold 64 old bodies."""
    reader = CommandReader()
    tracemalloc.start()
    try:
        frame = batch(parameters=1, body=bytes(1_000_000))
        step = len(frame) // pieces + 1
        for at in range(0, len(frame), step):
            reader.feed(frame[at : at + step])
            command = reader.next_command()
        assert isinstance(command, PredictCommand)
        del frame, command
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_items_in_a_load_response_are_an_error() -> None:
    """A client that asked `L` and is given predictions talks to no worker of ours."""
    reader = ResponseReader()
    reader.feed(PLAIN)
    with pytest.raises(WireError, match="load response with 1 items"):
        reader.next_load_response()


@pytest.mark.parametrize("bad", [PLAIN[:4] + b"\xff\xff\xff\xff", PLAIN[:32] + b"\xff" * 4])
def test_a_client_refuses_nonsense_too(bad: bytes) -> None:
    """A negative length where no list can end."""
    reader = ResponseReader()
    reader.feed(bad)
    with pytest.raises(WireError, match=r"expected 0 to"):
        reader.next_predict_response()


def test_a_client_is_bounded_too() -> None:
    """Limits hold for what a worker sends as well."""
    item = ResponseItem("r", "", 200, "", [("a", "b")] * 3, b"")
    for frame in (
        encode_predict_response(200, "", [item]),
        encode_predict_response(200, "", [item._replace(headers=[])] * 4),
        encode_predict_response(200, "", [item._replace(headers=[], body=b"x" * 17)]),
        encode_load_response(200, "x" * 21),
    ):
        reader = ResponseReader(SMALL)
        reader.feed(frame)
        with pytest.raises(WireError) as caught:
            reader.next_predict_response()
        assert caught.value.code == 413
