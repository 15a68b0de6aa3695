"""journald.py: events as entries, and a socket that never waits, against a socket of the test's own."""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import re
import select
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupervisor.log import journald as module
from modelsupervisor.log.journald import (
    MOST_FACTS,
    SEND_BUFFER,
    JournalSocket,
    datagram,
    is_journal,
)
from support.journald import fields, fields_of

OUTPUT = {
    "timestamp": "2026-01-01T10:00:00.123456Z",
    "level": "info",
    "event": "worker.output",
    "seq": 17,
    "model": "digits",
    "worker": 0,
    "pid": 4711,
    "generation": 3,
    "stream": "stdout",
    "line": "hello",
}
EXITED = {
    "timestamp": "2026-01-01T10:00:00.123456Z",
    "level": "error",
    "event": "worker.exited",
    "seq": 18,
    "model": "digits",
    "worker": 0,
    "pid": 4711,
    "generation": 3,
    "reason": "killed by SIGKILL with 1 request in hand",
}
ALLOWED = re.compile(r"[A-Z][A-Z0-9_]{0,63}")  # what journald takes as a name


# Entries -------------------------------------------------------------------------------------------------------------


def test_a_line_of_output() -> None:
    """MESSAGE is the line, PRIORITY the level; everything else is a field under its name in capitals."""
    assert datagram(OUTPUT) == (
        b"PRIORITY=6\nSYSLOG_IDENTIFIER=modelsupervisor\nMESSAGE=hello\n"
        b"TIMESTAMP=2026-01-01T10:00:00.123456Z\nEVENT=worker.output\nSEQ=17\n"
        b"MODEL=digits\nWORKER=0\nWORKER_PID=4711\nGENERATION=3\nSTREAM=stdout\n"
    )


def test_a_traceback_is_one_entry() -> None:
    """A value with newlines is framed by its length: 64 bits, little-endian."""
    block = "Traceback (most recent call last):\nValueError: größer"
    entry = datagram(OUTPUT | {"line": block, "kind": "traceback", "lines": 2})
    size = len(block.encode())
    assert b"MESSAGE\n" + bytes([size, 0, 0, 0, 0, 0, 0, 0]) + block.encode() + b"\n" in entry
    assert fields(entry)["KIND"] == b"traceback"
    assert fields(entry)["LINES"] == b"2"


@pytest.mark.parametrize("event", ["worker.output", "template.output"])
@pytest.mark.parametrize("line", [b"\xff\xfe", b"\0\n=\n\0", b"", b"a=b", b"MESSAGE=x\n\n"])
def test_every_byte_of_a_line(event: str, line: bytes) -> None:
    """What travels as base64 in JSON is the line's own bytes here, and there is no second copy of it."""
    encoded = {name: fact for name, fact in OUTPUT.items() if name != "line"}
    encoded |= {"event": event, "line_b64": base64.b64encode(line).decode()}
    found = fields(datagram(encoded))
    assert found["MESSAGE"] == line
    assert not {"LINE", "LINE_B64"} & set(found)


def test_an_event_that_only_looks_like_output() -> None:
    """A worker may send an event of that name: what is not base64 is shown as it is, and without a line there is a sentence."""
    forged = {"event": "worker.output", "model": "digits", "worker": 1}
    assert fields(datagram(forged | {"line_b64": "?"}))["MESSAGE"] == b"?"
    for wrong in ({}, {"line": 5}, {"line_b64": [1]}):
        found = fields(datagram(forged | wrong))
        assert found["MESSAGE"] == b"worker.output digits/1"
        assert len(found) == 6 + len(wrong)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({}, "worker.exited digits/0: killed by SIGKILL with 1 request in hand"),
        ({"worker": None}, "worker.exited digits: killed by SIGKILL with 1 request in hand"),
        ({"model": None}, "worker.exited: killed by SIGKILL with 1 request in hand"),
        ({"reason": None}, "worker.exited digits/0"),
        ({"reason": ""}, "worker.exited digits/0"),
        ({"reason": None, "error": "half a frame"}, "worker.exited digits/0: half a frame"),
        ({"reason": None, "error": "E", "message": "no"}, "worker.exited digits/0: no"),
        ({"reason": None, "traceback": "T:\n  x\nE: no\n"}, "worker.exited digits/0: E: no"),
        ({"reason": 5, "traceback": " \n"}, "worker.exited digits/0"),
        ({"line": "no output event"}, "worker.exited digits/0: killed by SIGKILL with 1 request in hand"),
    ],
)  # fmt: skip
def test_the_sentence_of_an_event(facts: dict[str, Any], sentence: str) -> None:
    """What happened, to whom, and why, as far as the event knows."""
    assert fields(datagram(EXITED | facts))["MESSAGE"] == sentence.encode()


@pytest.mark.parametrize(
    ("level", "priority"),
    [("debug", b"7"), ("info", b"6"), ("warning", b"4"), ("error", b"3"), ("odd", b"6")],
)
def test_priorities(level: str, priority: bytes) -> None:
    """syslog's numbers, so that `journalctl -p warning` does what it says."""
    found = fields(datagram(EXITED | {"level": level}))
    assert found["PRIORITY"] == priority
    assert "LEVEL" not in found


@pytest.mark.parametrize(
    ("fact", "field"),
    [
        ("uptime_s", "UPTIME_S"),
        ("message", "FACT_MESSAGE"),
        ("priority", "FACT_PRIORITY"),
        ("unit", "FACT_UNIT"),
        ("syslog_identifier", "FACT_SYSLOG_IDENTIFIER"),
        ("object_pid", "FACT_OBJECT_PID"),
        ("worker_pid", "FACT_WORKER_PID"),
        ("MODEL", "FACT_MODEL"),
        ("more_facts", "FACT_MORE_FACTS"),
        ("_pid", "FACT__PID"),
        ("2nd", "FACT_2ND"),
        ("", "FACT_"),
        ("größe", "GR_SSE"),
        ("a=b\nc", "A_B_C"),
        ("x" * 65, "X" * 64),
    ],
)
def test_names_of_facts(fact: str, field: str) -> None:
    """A name that journald would refuse is mended, one that means something else gets FACT_ before it."""
    assert fields(datagram(EXITED | {fact: "mine"}))[field] == b"mine"


def test_values_of_facts() -> None:
    """Null is left out; numbers, truth, lists and objects are JSON; text is itself."""
    facts = {
        "a": None,
        "b": True,
        "c": 1.5,
        "d": ["x", 1],
        "e": {"k": "v\nw"},
        "f": "",
        "g": 10**30,
    }
    found = fields(datagram(EXITED | facts))
    assert "A" not in found
    assert [found[name] for name in "BCDEFG"] == [
        b"true", b"1.5", b'["x",1]', b'{"k":"v\\nw"}', b"", b"1" + b"0" * 30,
    ]  # fmt: skip


def test_text_that_is_not_unicode() -> None:
    """A lone surrogate, which only JSON can write, is shown as its escape."""
    found = fields(datagram(OUTPUT | {"line": "a\ud800", "b": "\udc80", "c": ["\ud800"]}))
    assert (found["MESSAGE"], found["B"], found["C"]) == (b"a\\ud800", b"\\udc80", b'["\\ud800"]')
    found = fields(datagram(OUTPUT | {"line": "a\ud800\n", "b": "\n\udc80"}))
    assert (found["MESSAGE"], found["B"]) == (b"a\\ud800\n", b"\n\\udc80")


def test_very_many_facts() -> None:
    """journald ignores an entry of more than 1024 fields: the facts beyond MOST_FACTS share one."""
    facts = {f"fact_{number}": number for number in range(5000)}
    found = fields(datagram(EXITED | facts))
    assert len(found) < MOST_FACTS + 10
    shared = json.loads(found["MORE_FACTS"])
    apart = {name.lower(): int(value) for name, value in found.items() if name.startswith("FACT_")}
    assert apart | shared == facts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(), each, max_size=3),
    max_leaves=5,
)


@given(facts=st.dictionaries(st.text(max_size=70), JSON, max_size=10))
def test_any_facts(facts: dict[str, Any]) -> None:
    """Whatever a worker calls its facts and says in them is an entry that journald takes, with every fact in it."""
    event = EXITED | {name: fact for name, fact in facts.items() if name not in EXITED}
    listed = list(fields_of(datagram(event)))
    assert all(ALLOWED.fullmatch(name) for name, _ in listed)
    texts = [fact for name, fact in event.items() if isinstance(fact, str) and name != "level"]
    values = [value for _, value in listed]
    for text in texts:
        values.remove(text.encode(errors="backslashreplace"))
    others = sum(1 for fact in event.values() if fact is not None and not isinstance(fact, str))
    assert len(values) == others + 3  # MESSAGE, PRIORITY, SYSLOG_IDENTIFIER


@given(line=st.text())
def test_any_line(line: str) -> None:
    """A line is in its entry as it is."""
    assert fields(datagram(OUTPUT | {"line": line}))["MESSAGE"] == line.encode()


# The socket ----------------------------------------------------------------------------------------------------------

TOO_LARGE = 4 * SEND_BUFFER  # the kernel doubles what is asked for, and grants no more


class Listener:
    """Where journald would listen."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))

    def take(self) -> bytes:
        """The next entry; one in a file is read from it, and must be sealed as journald wants it."""
        rights = socket.CMSG_SPACE(4)
        entry, ancillary, _, _ = self.socket.recvmsg(TOO_LARGE, rights, socket.MSG_DONTWAIT)
        if not ancillary:
            return entry
        assert entry == b""
        ((_, kind, passed),) = ancillary
        assert kind == socket.SCM_RIGHTS
        file = int.from_bytes(passed, sys.byteorder)
        with open(file, "rb") as content:
            seals = fcntl.fcntl(file, fcntl.F_GET_SEALS)
            wanted = (
                fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
            )
            assert seals == wanted
            content.seek(0)
            return content.read()

    def drain(self) -> list[bytes]:
        """All entries that wait."""
        found = []
        while True:
            try:
                found.append(self.take())
            except BlockingIOError:
                return found

    def close(self) -> None:
        """Be gone; so is the name."""
        self.socket.close()
        self._path.unlink(missing_ok=True)


@pytest.fixture
def path(short_tmp: Path) -> Path:
    """Where the listener is."""
    return short_tmp / "socket"


@pytest.fixture
def listener(path: Path) -> Iterator[Listener]:
    """A listener."""
    made = Listener(path)
    yield made
    made.close()


@pytest.fixture
def journal(path: Path) -> Iterator[JournalSocket]:
    """A socket to it, not open yet."""
    made = JournalSocket(str(path))
    yield made
    made.close()


def descriptors() -> set[str]:
    """The open descriptors of this process."""
    return set(os.listdir("/proc/self/fd"))


def writable(journal: JournalSocket, milliseconds: int = 0) -> bool:
    """What a poll says about room."""
    poll = select.poll()
    poll.register(journal.fileno(), select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(milliseconds))


def fill(journal: JournalSocket) -> int:
    """Send numbers until one is not taken; how many were."""
    sent = 0
    while journal.send(b"SEQ=%d\n" % sent):
        sent += 1
        assert sent < 100_000
    return sent


def test_entries_arrive_in_order(listener: Listener, journal: JournalSocket) -> None:
    """One datagram each."""
    journal.open()
    assert journal.send(datagram(OUTPUT)) and journal.send(datagram(EXITED))
    assert listener.drain() == [datagram(OUTPUT), datagram(EXITED)]


def test_a_full_queue_keeps_nobody(listener: Listener, journal: JournalSocket) -> None:
    """Then `send` says False and the descriptor can be waited on; what was taken before is there, once and in order."""
    journal.open()
    sent = fill(journal)
    assert not writable(journal)
    assert listener.drain() == [b"SEQ=%d\n" % number for number in range(sent)]
    assert writable(journal, 1000)
    assert journal.send(b"SEQ=after\n")
    assert listener.drain() == [b"SEQ=after\n"]


def test_large_entries_fit(listener: Listener, journal: JournalSocket) -> None:
    """An entry of 64 KiB, the usual `max_line`, is an ordinary datagram whatever the machine's default buffer is."""
    journal.open()
    entry = datagram(OUTPUT | {"line": "x" * 65536})
    assert journal.send(entry)
    received, ancillary, _, _ = listener.socket.recvmsg(TOO_LARGE, 64, socket.MSG_DONTWAIT)
    assert (received, ancillary) == (entry, [])


def test_an_entry_that_is_too_large_goes_in_a_file(
    listener: Listener, journal: JournalSocket
) -> None:
    """Sealed, alone in its datagram, in order with the others, and not kept by us."""
    journal.open()
    before = descriptors()
    entry = datagram(OUTPUT | {"line": "x" * TOO_LARGE})
    assert journal.send(b"A=1\n") and journal.send(entry) and journal.send(b"B=2\n")
    assert descriptors() == before
    assert listener.drain() == [b"A=1\n", entry, b"B=2\n"]


def test_a_file_waits_for_room_too(listener: Listener, journal: JournalSocket) -> None:
    """On a full queue it is not sent, nothing is left open, and it can be tried again."""
    journal.open()
    fill(journal)
    before = descriptors()
    entry = b"X=" + b"x" * TOO_LARGE + b"\n"
    assert not journal.send(entry)
    assert descriptors() == before
    listener.drain()
    assert journal.send(entry)
    assert listener.drain() == [entry]


def test_no_memory_for_a_file(
    listener: Listener, journal: JournalSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said, nothing is left open, and the next entry passes."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal.open()
    before = descriptors()
    monkeypatch.setattr(module.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.send(b"x" * TOO_LARGE)
    assert descriptors() == before
    assert journal.send(b"A=1\n")


def test_nobody_there(journal: JournalSocket) -> None:
    """`open` says so and leaves nothing open; it can be tried again; `close` may be called at any time."""
    before = descriptors()
    with pytest.raises(FileNotFoundError):
        journal.open()
    journal.close()
    assert descriptors() == before
    assert journal.fileno() == -1
    with pytest.raises(OSError, match="not connected"):
        journal.send(b"A=1\n")


@pytest.mark.parametrize("size", [0, TOO_LARGE])
def test_journald_starts_anew(path: Path, journal: JournalSocket, size: int) -> None:
    """Another socket under the same name is found by the next `send`, on the same descriptor."""
    first = Listener(path)
    journal.open()
    descriptor = journal.fileno()
    first.close()
    second = Listener(path)
    entry = b"A=" + b"x" * size + b"\n"
    assert journal.send(entry)
    assert journal.fileno() == descriptor
    assert second.drain() == [entry]
    second.close()


def test_journald_is_away_for_a_while(path: Path, journal: JournalSocket) -> None:
    """An entry that nobody can take is an error, each time, until somebody is there again."""
    first = Listener(path)
    journal.open()
    first.close()
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            journal.send(b"A=1\n")
    with pytest.raises(FileNotFoundError):
        journal.open()
    second = Listener(path)
    journal.open()
    assert journal.send(b"A=2\n")
    assert second.drain() == [b"A=2\n"]
    second.socket.close()  # but for its name, which a killed journald leaves behind
    with pytest.raises(ConnectionRefusedError):
        journal.send(b"A=3\n")


def test_a_journald_that_dies_with_a_full_queue(path: Path, journal: JournalSocket) -> None:
    """Whoever waits for room is woken, and goes on with the next journald."""
    first = Listener(path)
    journal.open()
    fill(journal)
    assert not writable(journal)
    first.close()
    assert writable(journal, 1000)
    second = Listener(path)
    assert journal.send(b"A=1\n")
    assert second.drain() == [b"A=1\n"]
    second.close()


# Where standard output goes ------------------------------------------------------------------------------------------


def test_the_stream_to_the_journal_is_known() -> None:
    """$JOURNAL_STREAM names device and inode; it counts only for the descriptor that is that."""
    ours, other = socket.socketpair()
    with ours, other:
        status = os.fstat(ours.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(ours.fileno(), environ)
        assert not is_journal(other.fileno(), environ)
        assert not is_journal(ours.fileno(), {})
        for wrong in ("", ":", "1", f"{status.st_dev}:", "a:b", f"{status.st_ino}:{status.st_dev}"):
            assert not is_journal(ours.fileno(), {"JOURNAL_STREAM": wrong})
        closed = ours.fileno()
    assert not is_journal(closed, environ)
