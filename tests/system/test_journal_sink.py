"""A supervisor that writes to a real journald: every event is an entry, found by its fields, in order and complete."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.faults import ask, crash
from support.instance import Instance
from support.journald import Journald

Make = Callable[..., Instance]

# Standard output is a socket that the journal is said to be behind, as systemd does it.
AS_A_UNIT = """
import os, socket, sys
ours, theirs = socket.socketpair()
theirs.set_inheritable(True)
os.dup2(ours.fileno(), 1)
found = os.fstat(1)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def journald(short_tmp: Path) -> Iterator[Journald]:
    """A journald that runs."""
    folder = short_tmp / "journal"
    folder.mkdir()
    made = Journald(folder)
    try:
        made.start()
        yield made
    finally:
        made.kill()


def started(made: Instance, journald: Journald, settings: str, *wrapper: str) -> Instance:
    """Start a supervisor whose /run is that journald's."""
    made.write(made.model(), settings)
    supervisor = [*wrapper, sys.executable, "-m", "modelsupervisor", "start", "-c", made.config]
    inside = f'mount --bind "{Path(journald.socket).parents[2]}" /run && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", inside, "sh", *map(str, supervisor)]
    made.launch(command=command)
    made.wait_event("supervisor.ready")
    return made


def test_every_event_is_an_entry(instance: Make, journald: Journald) -> None:
    """Beside standard output: the same events, and the facts of a death as fields."""
    made = started(instance("worker.exited"), journald, "log_to = stdout, journal")
    ask(made, "print", lines=200, text="to the journal")
    crash(made, "all", of=[{"do": "print", "text": "dying", "stream": "stderr"}, {"do": "kill"}])
    made.wait_event("worker.ready", generation=2)
    assert made.stop() == 0
    written = made.events()
    entries = journald.wait_entries(len(written), "SYSLOG_IDENTIFIER=modelsupervisor")
    assert [int(entry["SEQ"]) for entry in entries] == [event["seq"] for event in written]
    assert [entry["EVENT"] for entry in entries] == [event["event"] for event in written]
    (exited,) = journald.entries("EVENT=worker.exited", "SIGNAL=SIGKILL")
    assert (exited["MODEL"], exited["WORKER"], exited["PRIORITY"]) == ("echo", "0", "3")
    assert "killed by SIGKILL" in exited["MESSAGE"]
    (dying,) = journald.entries("EVENT=worker.output", "STREAM=stderr")
    assert (dying["MESSAGE"], dying["PRIORITY"], dying["GENERATION"]) == ("dying 0", "4", "1")


def test_under_systemd_the_journal_gets_fields(instance: Make, journald: Journald) -> None:
    """`log_to = auto`: where standard output is the journal's, its own protocol takes the place of lines."""
    made = instance()
    settings = f"log_file = {made.log}"
    started(made, journald, settings, sys.executable, "-c", AS_A_UNIT)
    assert {sink["name"] for sink in made.status()["log"]["sinks"]} == {"journal", "file"}
    assert made.stop() == 0
    entries = journald.wait_entries(len(made.events()), "SYSLOG_IDENTIFIER=modelsupervisor")
    assert entries[-1]["EVENT"] == "supervisor.stopped"
    assert entries[-1]["CODE"] == "0"


def test_a_journal_that_restarts(instance: Make, journald: Journald) -> None:
    """While it is away events wait; nobody else notices; it is said that it is away and that it is back."""
    made = started(instance("log.failed"), journald, "log_to = stdout, journal")
    journald.signal(signal.SIGKILL)
    journald.kill()
    ask(made, "print", text="while it is away")
    made.wait_event("log.failed", sink="journal")
    journald.start()
    made.wait_event("log.resumed", sink="journal")
    ask(made, "print", text="when it is back")
    assert made.stop() == 0
    journald.wait_entries(1, "EVENT=supervisor.stopped")
    said = {entry["MESSAGE"] for entry in journald.entries("EVENT=worker.output")}
    assert said == {"while it is away 0", "when it is back 0"}
