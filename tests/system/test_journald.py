"""The journal as a sink, against systemd's own journald: what was sent is what journalctl finds."""

from __future__ import annotations

import base64
import os
import select
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.log.journald import SEND_BUFFER, JournalSocket, datagram
from support.instance import environment
from support.journald import Journald
from support.unprivileged import as_nobody, interpreter

OUTPUT = {
    "timestamp": "2026-01-01T10:00:00.123456Z",
    "level": "info",
    "event": "worker.output",
    "seq": 1,
    "model": "digits",
    "worker": 0,
    "pid": 4711,
    "generation": 3,
    "stream": "stdout",
    "line": "hello",
}
TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: größer'


@pytest.fixture
def journald(short_tmp: Path) -> Iterator[Journald]:
    """A journald that runs."""
    made = Journald(short_tmp)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def journal(journald: Journald) -> Iterator[JournalSocket]:
    """A socket to it."""
    made = JournalSocket(journald.socket)
    made.open()
    yield made
    made.close()


def output(seq: int, **facts: Any) -> bytes:
    """The entry of a line of output."""
    return datagram(OUTPUT | {"seq": seq} | facts)


def test_events_are_found_by_their_facts(journald: Journald, journal: JournalSocket) -> None:
    """By model, event, worker and priority; a traceback is one entry; the identity is ours."""
    exited = OUTPUT | {"event": "worker.exited", "level": "error", "seq": 3, "signal": "SIGKILL"}
    exited |= {
        "reason": "killed by SIGKILL",
        "last_lines": ["a", "b"],
        "message": "a fact",
        "unit": "x",
    }
    del exited["line"], exited["stream"]
    assert journal.send(output(1))
    assert journal.send(output(2, line=TRACEBACK, level="error", kind="traceback", lines=3))
    assert journal.send(datagram(exited))
    found = journald.wait_entries(3, "MODEL=digits")
    assert [entry["MESSAGE"] for entry in found] == [
        "hello", TRACEBACK, "worker.exited digits/0: killed by SIGKILL",
    ]  # fmt: skip
    (end,) = journald.entries("EVENT=worker.exited", "WORKER=0")
    wanted = {
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "modelsupervisor",
        "SEQ": "3",
        "WORKER_PID": "4711",
        "GENERATION": "3",
        "SIGNAL": "SIGKILL",
        "LAST_LINES": '["a","b"]',
        "FACT_MESSAGE": "a fact",
        "FACT_UNIT": "x",
        "_PID": str(os.getpid()),
    }
    assert {name: end.get(name) for name in wanted} == wanted
    assert [entry["SEQ"] for entry in journald.entries("--priority=err", "MODEL=digits")] == [
        "2", "3",
    ]  # fmt: skip
    names = set(journald.journalctl("--field=EVENT").split())
    assert names == {"worker.output", "worker.exited"}
    shown = journald.journalctl("--identifier=modelsupervisor", "--output=cat", "KIND=traceback")
    assert shown == TRACEBACK + "\n"


def test_every_byte_arrives(journald: Journald, journal: JournalSocket) -> None:
    """NULs, bytes that are not UTF-8, an empty line, text that looks like the protocol."""
    lines = [bytes(range(256)), b"\0", b"\xff\n\xfe", b"", b"PRIORITY=0\n\nMESSAGE=x\n", b" a \n"]
    for seq, line in enumerate(lines):
        encoded = base64.b64encode(line).decode()
        assert journal.send(output(seq, line=None, line_b64=encoded))
    found = journald.wait_entries(len(lines), "EVENT=worker.output")
    messages = [entry["MESSAGE"] for entry in found]
    assert [text if isinstance(text, bytes) else text.encode() for text in messages] == lines
    assert {entry["PRIORITY"] for entry in found} == {"6"}


def test_odd_facts_do_not_cost_the_entry(journald: Journald, journal: JournalSocket) -> None:
    """Neither names that journald refuses, nor more facts than it takes."""
    odd = {"_pid": "a", "2nd": "b", "größe": "c", "a b=c\n": "d", "": "e", "n" * 100: "f"}
    assert journal.send(output(1, **odd))
    assert journal.send(output(2, **{f"fact_{number}": number for number in range(3000)}))
    first, second = journald.wait_entries(2, "EVENT=worker.output")
    names = ("FACT__PID", "FACT_2ND", "GR_SSE", "A_B_C_", "FACT_", "N" * 64)
    assert [first[name] for name in names] == list("abcdef")
    assert second["FACT_1"] == "1" and '"fact_2999":2999' in second["MORE_FACTS"]


def test_an_entry_larger_than_a_datagram(journald: Journald, journal: JournalSocket) -> None:
    """It arrives whole, between its neighbours."""
    large = base64.b64encode(os.urandom(3 * SEND_BUFFER)).decode()
    for seq, line in enumerate(["before", large, "after"]):
        assert journal.send(output(seq, line=line))
    found = journald.wait_entries(3, "EVENT=worker.output")
    assert [entry["MESSAGE"] for entry in found] == ["before", large, "after"]


def test_an_unprivileged_sender(journald: Journald, short_tmp: Path) -> None:
    """journald takes a file from nobody, because it is sealed."""
    short_tmp.chmod(0o711)
    code = f"""
from modelsupervisor.log.journald import JournalSocket, datagram
journal = JournalSocket({journald.socket!r})
journal.open()
assert journal.send(datagram({{"event": "worker.output", "line": "x" * {4 * SEND_BUFFER}}}))
"""
    line = as_nobody(interpreter(), "-c", code)
    packages = sysconfig.get_paths()["platlib"]
    import_path = os.pathsep.join([environment("")["PYTHONPATH"], packages])
    subprocess.run(line, check=True, cwd="/", env=environment("", PYTHONPATH=import_path))
    (entry,) = journald.wait_entries(1, "EVENT=worker.output")
    assert len(entry["MESSAGE"]) == 4 * SEND_BUFFER
    assert entry["_UID"] == "65534"


def test_a_stopped_journald_costs_nothing(journald: Journald, journal: JournalSocket) -> None:
    """While it is stopped `send` says False and nobody waits; when it goes on every entry is there, once, in order."""
    journald.signal(signal.SIGSTOP)
    sent = 0
    while journal.send(output(sent)):
        sent += 1
        assert sent < 100_000
    poll = select.poll()
    poll.register(journal.fileno(), select.POLLOUT)
    assert poll.poll(0) == []
    journald.signal(signal.SIGCONT)
    total = sent + 2000
    while sent < total:
        if journal.send(output(sent)):
            sent += 1
        else:
            assert poll.poll(10_000)
    found = journald.wait_entries(total, "EVENT=worker.output")
    assert [int(entry["SEQ"]) for entry in found] == list(range(total))


def test_a_journald_that_is_started_again(journald: Journald, journal: JournalSocket) -> None:
    """While it is gone sending is refused; the next one is found without being told, on the same descriptor."""
    assert journal.send(output(1))
    journald.wait_entries(1, "EVENT=worker.output")
    descriptor = journal.fileno()
    journald.kill()
    with pytest.raises(ConnectionRefusedError):
        journal.send(output(2))
    journald.start()
    assert journal.send(output(3))
    assert journal.fileno() == descriptor
    found = journald.wait_entries(2, "EVENT=worker.output")
    assert [entry["SEQ"] for entry in found] == ["1", "3"]
