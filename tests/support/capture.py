"""The bytes of output streams as a log tells of them, the accounts of its sinks, and an instance whose log may have any length."""

from __future__ import annotations

import base64
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from support.instance import Event, Instance

PIECE = 4 * 1024 * 1024  # bytes of a log that are held at a time


def text_of(event: Event) -> bytes:
    """The bytes of a line, or of a part of one."""
    if "line_b64" in event:
        return base64.b64decode(event["line_b64"])
    return str(event["line"]).encode()


def content(event: Event) -> bytes:
    """The bytes that an event of output stands for in its stream."""
    ended = not event.get("more") and not event.get("partial")
    return text_of(event) + (b"\n" if ended else b"")


def joined(events: list[Event]) -> bytes:
    """What a stream carried, by its events."""
    return b"".join(content(event) for event in events)


def source_of(event: Event) -> str:
    """The name of a worker's stream in the accounts."""
    return f"{event['model']}/{event['worker']} {event['stream']}"


def check_accounts(status: dict[str, Any]) -> dict[str, int]:
    """Hold each sink's accounts against what was made: logged + dropped + buffered is every event, and none is dropped.

    Returns the number of events of each worker's stream.
    """
    made = {
        f"{model['name']}/{worker['index']} {stream}": output["events"]
        for model in status["models"]
        for worker in model["workers"]
        for stream, output in worker["output"].items()
    }
    assert status["log"]["sinks"]
    for sink in status["log"]["sinks"]:
        tallies = sink["streams"]
        assert sink["state"] == "open", sink
        assert not [tally for tally in tallies.values() if tally["dropped"]], sink
        became = {source: sum(tally.values()) for source, tally in tallies.items()}
        assert {source: became.get(source, 0) for source in made} == made, sink["name"]
        assert sum(became.values()) == status["log"]["events"], sink["name"]
    return made


def memory(pid: int, field: str) -> int:
    """A figure of /proc/PID/status in bytes, such as VmRSS or VmHWM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise AssertionError(f"no {field} of {pid}")


class LongInstance(Instance):
    """An instance that prints too much to be kept: its output is checked, put together, counted and let go.

    `carried` holds the bytes of each stream by its name in the accounts. The gapless `seq` is looked at as it is read.
    """

    def __init__(self, folder: Path, expected_errors: tuple[str, ...] = ()) -> None:
        super().__init__(folder, expected_errors)
        self.carried: defaultdict[str, bytearray] = defaultdict(bytearray)
        self.output_events: Counter[str] = Counter()
        self._offset = 0
        self._seq = 0
        self._kept: list[Event] = []

    def events(self, name: str | None = None, **match: Any) -> list[Event]:
        """The events so far but those of output."""
        self._read_on()
        wanted = {**match} if name is None else {**match, "event": name}
        return [
            event
            for event in self._kept
            if all(event.get(key) == fact for key, fact in wanted.items())
        ]

    def _read_on(self) -> None:
        if not self.log.exists():
            return
        with self.log.open("rb") as log:
            while True:
                log.seek(self._offset)
                # Not by lines: of a file that grows, half a line may be read, and its other half as the next one.
                piece = log.read(PIECE)
                whole = piece[: piece.rfind(b"\n") + 1]
                if not whole:
                    return
                for event in self._checked(whole.splitlines()):
                    self._take(event)
                self._offset += len(whole)

    def _take(self, event: Event) -> None:
        assert event["seq"] == self._seq + 1
        self._seq += 1
        if event["event"] == "worker.output":
            self.carried[source_of(event)] += content(event)
            self.output_events[source_of(event)] += 1
        else:
            self._kept.append(event)

    def check_log(self) -> None:
        """As for any instance; the order was checked when it was read."""
        unexpected = [
            event
            for event in self.events(level="error")
            if event["event"] not in self.expected_errors
        ]
        assert not unexpected, self.story()
