"""What holds for every frame: round trips, any cut, any prefix, any damaged byte."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworker.wire import (
    Command,
    CommandReader,
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

fast = settings(derandomize=True, max_examples=150, deadline=None)

# Any bytes at all, as the reader shows them: what is not UTF-8 becomes surrogates.
texts = st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
integers = st.integers(-(2**31), 2**31 - 1)
headers = st.lists(st.tuples(texts, texts), max_size=3)
parameters = st.lists(st.builds(Parameter, texts, texts, st.binary(max_size=40)), max_size=3)
requests = st.lists(st.builds(Request, texts, headers, parameters), max_size=4)
loads = st.builds(LoadCommand, texts, texts, integers, texts, integers, texts)
items = st.lists(
    st.builds(ResponseItem, texts, texts, integers, texts, headers, st.binary(max_size=40)),
    max_size=4,
)


def encode(command: Command) -> bytes:
    if isinstance(command, LoadCommand):
        return encode_load(command)
    return encode_predict(command.requests)


commands = st.one_of(loads, requests.map(PredictCommand))
cuts = st.lists(st.integers(1, 60), max_size=30)


def pieces(stream: bytes, sizes: list[int]) -> list[bytes]:
    """The stream, cut as the sizes say; what remains comes last."""
    cut = []
    for size in sizes:
        cut.append(stream[:size])
        stream = stream[size:]
    return [piece for piece in [*cut, stream] if piece]


def drain(reader: CommandReader) -> list[Command]:
    found = []
    command = reader.next_command()
    while command is not None:
        found.append(command)
        command = reader.next_command()
    return found


@fast
@given(st.lists(commands, max_size=4), cuts)
def test_commands_come_back_however_the_stream_is_cut(
    sent: list[Command], sizes: list[int]
) -> None:
    """What was written is read, in order, and nothing is pending at the end."""
    reader = CommandReader()
    received: list[Command] = []
    for piece in pieces(b"".join(map(encode, sent)), sizes):
        reader.feed(piece)
        received += drain(reader)
    assert received == sent
    assert not reader.pending


@fast
@given(st.lists(commands, min_size=1, max_size=3), cuts)
def test_bytes_fed_before_anybody_asks_are_kept(sent: list[Command], sizes: list[int]) -> None:
    """Feeding and asking need not alternate."""
    reader = CommandReader()
    for piece in pieces(b"".join(map(encode, sent)), sizes):
        reader.feed(piece)
    assert drain(reader) == sent


@fast
@given(commands)
def test_byte_by_byte_equals_one_chunk(command: Command) -> None:
    """Every proper prefix of a frame waits and is pending; the last byte completes it."""
    frame = encode(command)
    reader = CommandReader()
    for index in range(len(frame) - 1):
        reader.feed(frame[index : index + 1])
        assert reader.next_command() is None
        assert reader.pending
    reader.feed(frame[-1:])
    assert reader.next_command() == command


@fast
@given(integers, texts, items, cuts)
def test_responses_come_back_however_they_are_cut(
    code: int, message: str, sent: list[ResponseItem], sizes: list[int]
) -> None:
    """What a worker writes a client reads."""
    expected = PredictResponse(code, message, sent)
    reader = ResponseReader()
    received: list[PredictResponse] = []
    for piece in pieces(encode_predict_response(*expected) * 2, sizes):
        reader.feed(piece)
        response = reader.next_predict_response()
        while response is not None:
            received.append(response)
            response = reader.next_predict_response()
    assert received == [expected, expected]
    assert not reader.pending


@fast
@given(integers, texts)
def test_load_responses_come_back(code: int, message: str) -> None:
    """Byte by byte, too."""
    frame = encode_load_response(code, message)
    reader = ResponseReader()
    for index in range(len(frame)):
        assert reader.next_load_response() is None
        reader.feed(frame[index : index + 1])
    assert reader.next_load_response() == LoadResponse(code, message)


def outcome(frame: bytes, step: int) -> tuple[int | None, list[Command]]:
    """The code of the error, if any, and what was read before it; anything but a WireError escapes."""
    reader = CommandReader()
    read: list[Command] = []
    try:
        for at in range(0, len(frame), step):
            reader.feed(frame[at : at + step])
            command = reader.next_command()
            while command is not None:
                read.append(command)
                command = reader.next_command()
    except WireError as error:
        return error.code, read
    return None, read


SAMPLES = [
    encode_load(LoadCommand("m", "/d", 1, "service:handle", -1, "abc")),
    encode_predict(
        [
            Request("r1", [("A", "b")], [Parameter("body", "text/plain", b"hello")]),
            Request("r2", [], [Parameter("x", "", b"\0\1"), Parameter("", "", b"")]),
        ]
    ),
]


@pytest.mark.parametrize("frame", SAMPLES)
def test_every_damaged_byte_parses_waits_or_is_refused(frame: bytes) -> None:
    """Each value of each byte, exhaustively: a command, a wait or a WireError, and nothing else.

    However it is cut: byte by byte gives the same as one chunk.
    """
    for at in range(len(frame)):
        for value in range(256):
            damaged = frame[:at] + bytes((value,)) + frame[at + 1 :]
            whole = outcome(damaged, len(damaged))
            assert whole[0] in {None, 400, 413}
            if value in {0, 1, 0x7F, 0x80, 0xFF}:
                assert outcome(damaged, 1) == whole


def test_every_damaged_byte_of_a_response_parses_waits_or_is_refused() -> None:
    """A client survives a worker gone mad."""
    item = ResponseItem("r1", "text/plain", 201, "Made", [("dummy", "1")], b"OK")
    frame = encode_predict_response(200, "Prediction success", [item, item])
    for at in range(len(frame)):
        for value in range(256):
            reader = ResponseReader()
            reader.feed(frame[:at] + bytes((value,)) + frame[at + 1 :])
            with contextlib.suppress(WireError):  # anything else escapes, and fails the test
                reader.next_predict_response()


@fast
@given(st.binary(max_size=80))
def test_noise_parses_waits_or_is_refused(noise: bytes) -> None:
    """Any bytes at all."""
    assert outcome(noise, len(noise) or 1)[0] in {None, 400, 413}
