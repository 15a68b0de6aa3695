"""modelworker/channel.py and runtime/messages.py: the two ends of the message descriptor, and what a hostile one may send."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelworker.channel import MAX_MESSAGE, TEXT_KEPT, Channel, ChannelClosed, encode, tail

from modelsupervisor.runtime.messages import BadMessage, Closed, SupervisorEnd, channel_pair

Pair = tuple[SupervisorEnd, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A supervisor's end and a worker's."""
    ours, theirs = channel_pair()
    channel = Channel(theirs)
    yield ours, channel
    ours.close()
    channel.close()


def test_messages_both_ways(pair: Pair) -> None:
    """A message is whole or not there; looking for one does not wait."""
    ours, theirs = pair
    assert ours.receive() is None
    assert theirs.receive() is None
    theirs.send("ready", facts={"pid": 5})
    theirs.send("event", level="info")
    assert ours.receive() == {"kind": "ready", "facts": {"pid": 5}}
    assert ours.receive() == {"kind": "event", "level": "info"}
    ours.send({"kind": "stop"})
    assert theirs.receive() == {"kind": "stop"}


def test_what_needs_no_decision_is_answered_by_the_channel(pair: Pair) -> None:
    """The caller sees the other messages alone, in their order; every question has an answer of its own."""
    ours, theirs = pair
    counted: list[int] = []

    def fields() -> dict[str, Any]:
        counted.append(1)
        return {"count": len(counted)}

    theirs.answer("attest", "attested", fields)
    for kind in ("attest", "stop", "attest", "attest"):
        ours.send({"kind": kind})
    assert [theirs.receive(), theirs.receive()] == [{"kind": "stop"}, None]
    assert [(ours.receive() or {}).get("count") for _ in range(4)] == [1, 2, 3, None]


def test_descriptors_go_one_way(pair: Pair) -> None:
    """The supervisor hands them over, closed at exec; those that a worker tries to hand back never arrive."""
    ours, theirs = pair
    reading, writing = os.pipe()
    ours.send({"kind": "fork"}, [reading, writing])
    message, descriptors = theirs.wait()
    assert message == {"kind": "fork"} and len(descriptors) == 2
    assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
    before = len(os.listdir("/proc/self/fd"))
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())]
    theirs._socket.sendmsg([b'{"kind": "x"}'], ancillary)
    assert ours.receive() == {"kind": "x"}
    assert len(os.listdir("/proc/self/fd")) == before
    for descriptor in (reading, writing, *descriptors):
        os.close(descriptor)


def test_the_end_is_seen_by_both() -> None:
    """End of file means that the other side is gone; closing twice is closing."""
    ours, theirs = channel_pair()
    channel = Channel(theirs)
    ours.close()
    ours.close()
    with pytest.raises(ChannelClosed):
        channel.receive()
    with pytest.raises(ChannelClosed):
        channel.wait()
    channel.send("event")  # to nobody, without an error
    channel.close()
    ours, theirs = channel_pair()
    theirs.close()
    with pytest.raises(Closed):
        ours.receive()
    ours.close()


def test_a_flood_is_counted_and_waits_for_nobody(pair: Pair) -> None:
    """What the socket does not take is lost and counted; the next event that goes through tells."""
    ours, theirs = pair
    sent = 0
    while not theirs._lost:
        theirs.event("info", "a.b", number=sent)
        sent += 1
    for _ in range(10):
        theirs.event("info", "a.b")
    for _ in range(sent - 1):
        message = ours.receive()
        assert message is not None and "lost_before" not in message["fields"]
    assert ours.receive() is None
    theirs.event("info", "a.c")
    message = ours.receive()
    assert message is not None
    assert (message["event"], message["fields"]) == ("a.c", {"lost_before": 11})
    theirs.event("info", "a.d")
    message = ours.receive()
    assert message is not None and message["fields"] == {}


def test_the_supervisor_does_not_wait_either(pair: Pair) -> None:
    """A side that does not read is an OSError for who sends."""
    ours, _ = pair
    with pytest.raises(BlockingIOError):
        for _ in range(100000):
            ours.send({"kind": "stop"})


@pytest.mark.parametrize(
    "raw",
    [
        b"x",
        b"{",
        b"[]",
        b"null",
        b"5",
        b'{"kind": 5}',
        b"{}",
        b'{"a": "\xff"}',
        b"\xff\xfe\x00",
        b"[" * 60000,
        b'{"a":' * 10000,
        b"1" * 60000,
        b'{"kind": "' + b"x" * 65000,
    ],
    ids=lambda raw: repr(raw[:20]),
)
def test_what_is_no_message(pair: Pair, raw: bytes) -> None:
    """It is said to be none, and the next one is read."""
    ours, theirs = pair
    theirs._socket.send(raw)
    with pytest.raises(BadMessage):
        ours.receive()
    theirs.send("ready")
    assert ours.receive() == {"kind": "ready"}


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes(raw: bytes) -> None:
    """A datagram is a message with a kind, or a BadMessage: nothing else."""
    ours, theirs = channel_pair()
    theirs.send(raw)
    try:
        message = ours.receive()
    except BadMessage:
        pass
    else:
        assert message is not None and isinstance(message["kind"], str)
    ours.close()
    theirs.close()


@given(
    st.dictionaries(
        st.text(max_size=5), st.text(max_size=20) | st.integers() | st.lists(st.text(max_size=3))
    )
)
def test_what_is_sent_is_what_comes(fields: dict[str, Any]) -> None:
    """Any text too, lone surrogates from bytes that are not UTF-8 included."""
    fields["path"] = os.fsdecode(b"/\xff\xfe")
    fields.pop("kind", None)
    ours, theirs = channel_pair()
    channel = Channel(theirs)
    theirs.send(encode("event", fields))
    assert ours.receive() == {**fields, "kind": "event"}
    ours.close()
    channel.close()


@pytest.mark.parametrize("character", ["x", "é", "\udcff", "\U0001f600", "\x00"])
def test_long_text_is_cut_to_a_message(character: str) -> None:
    """Whatever it escapes to, the message fits and keeps the end of the text, where the cause is."""
    raw = encode(
        "load_failed", {"error": character * 300_000, "traceback": character * 300_000 + "END"}
    )
    assert len(raw) <= MAX_MESSAGE
    message = json.loads(raw)
    assert message["traceback"].endswith("END")
    assert message["kind"] == "load_failed"


def test_long_lists_are_cut_too() -> None:
    """A message of a thousand long ids fits."""
    raw = encode("event", {"fields": {"ids": ["x" * 1000] * 1000, "deep": [["y" * 50000]] * 50}})
    assert len(raw) <= MAX_MESSAGE


def test_the_end_of_a_text() -> None:
    """Says so where something was cut."""
    assert tail("abc", 3) == "abc"
    assert tail("abcdef", 3) == "[…] def"
    assert len(tail("x" * 100_000)) <= TEXT_KEPT + 4


def test_what_json_does_not_have_is_written_out() -> None:
    """A path object, an exception: as their text."""
    raw = encode("event", {"fields": {"error": ValueError("x"), "at": {1}}})
    assert json.loads(raw)["fields"] == {"error": "x", "at": "{1}"}
