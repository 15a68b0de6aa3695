"""A supervisor whose worker prints without end while its workers are asked all the time, and the accounts of its log.

What every test of a sink in trouble holds it against: the workers answer as if nothing were the matter, every sink's account of
every stream adds up, and what a copy of the log is missing is what it says it is missing.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from modelsupervisor.client import Client
from modelsupervisor.errors import ClientError
from support.faults import ask
from support.instance import LIMIT, ROOT, Event, Instance, is_log_writer, wait_for
from support.schema import check

MODEL = ROOT / "tests" / "models" / "flooding"
RATE = 1_500_000  # bytes a second, three times that as events: a pipe and the smallest buffer are full at once
WIDTH = 100  # bytes of a line
LONGEST_WAIT = (
    1.0  # seconds for an answer while a worker floods: ten times what is seen on two busy cores
)
SLOWEST = 3.0  # times what a stretch of answers took before
FLOODED = "echo/0 stdout"  # the stream, as the accounts name it


class Pinger:
    """Asks each worker again and again, from a thread each, and remembers the longest wait."""

    def __init__(self, instance: Instance, workers: int = 2) -> None:
        self.longest = 0.0
        self.answers = [0] * workers
        self._failures: list[ClientError | AssertionError] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ping, args=(index, str(instance.socket(index=index))))
            for index in range(workers)
        ]

    def _ping(self, index: int, path: str) -> None:
        try:
            with Client([path], timeout=LIMIT, retries=0) as client:
                while not self._over.wait(0.005):
                    asked = time.monotonic()
                    assert client.predict(b"ping").body == b"ping"
                    self.longest = max(self.longest, time.monotonic() - asked)
                    self.answers[index] += 1
        except (ClientError, AssertionError) as error:
            self._failures.append(error)

    def __enter__(self) -> Pinger:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if exc[0] is None:
            self.check()

    def check(self) -> None:
        """Every request was answered, each of them soon."""
        if self._failures:
            raise self._failures[0]
        assert self.longest < LONGEST_WAIT, f"an answer took {self.longest:.3f} s"

    def wait_answers(self, count: int = 30) -> None:
        """Return when every worker has given so many more answers: a stretch of inference while something is wrong."""
        goal = [answers + count for answers in self.answers]

        def there() -> bool:
            self.check()
            return all(map(int.__ge__, self.answers, goal))

        wait_for(there, f"{count} more answers of each worker")


class Flooded:
    """An instance of two workers of the model `flooding`, of which the first floods its standard output; both are asked."""

    def __init__(self, instance: Instance, rate: int = RATE) -> None:
        self.instance = instance
        self.pinger = Pinger(instance)
        self.lines = 0  # that the worker has printed in all, once the flood was stopped
        self._rate = rate
        self._calm = 0.0  # seconds for a stretch of answers when nothing was wrong

    def __enter__(self) -> Flooded:
        ask(self.instance, "flood", rate=self._rate, width=WIDTH)
        self.pinger.__enter__()
        begun = time.monotonic()
        self.pinger.wait_answers()
        self._calm = time.monotonic() - begun
        return self

    def __exit__(self, *exc: object) -> None:
        self.pinger.__exit__(*exc)

    def goes_on(self) -> None:
        """The workers answer at the rate at which they did when nothing was wrong, but for what others take of the machine."""
        begun = time.monotonic()
        self.pinger.wait_answers()
        taken = time.monotonic() - begun
        assert taken < SLOWEST * self._calm + LONGEST_WAIT, (taken, self._calm)

    def stop(self) -> None:
        """Print no more. Returns when every line was made an event."""
        self.lines = int(ask(self.instance, "stop"))
        wait_for(lambda: self.made() == self.lines, f"{self.lines} events of {FLOODED}")

    def made(self) -> int:
        """Events made of the flooded stream."""
        events: int = self.instance.worker()["output"]["stdout"]["events"]
        return events

    def account(self, name: str) -> dict[str, Any]:
        """A sink's part of the status, after holding every sink's account against what was made."""
        status = self.instance.status()
        check_accounts(status)
        (found,) = [sink for sink in status["log"]["sinks"] if sink["name"] == name]
        account: dict[str, Any] = found
        return account

    def dropped(self, name: str) -> int:
        """Lines of the flood that a sink is missing so far."""
        return int(self.account(name)["streams"].get(FLOODED, {"dropped": 0})["dropped"])

    def wait_dropped(self, name: str, count: int = 2000) -> None:
        """Return when a sink has been missing so many lines of the flood."""

        wait_for(lambda: self.dropped(name) >= count, f"{count} lines dropped for {name}")

    def wait_open(self, name: str) -> None:
        """Return when nothing is wrong with a sink."""
        wait_for(lambda: self.account(name)["state"] == "open", f"{name} to be open")

    def wait_drained(self, name: str) -> None:
        """Return when nothing waits for a sink; its events of the flood are all logged or dropped then."""
        wait_for(lambda: self.account(name)["buffered_bytes"] == 0, f"{name} to be drained")


def flooding(instance: Instance, supervisor: str, log: Path | None = None) -> Instance:
    """Configure two workers of the model; the sinks are small. `log` is the file that `events` reads, where it is not stdout."""
    section = instance.model(folder=MODEL, workers=2)
    instance.write(section, f"log_buffer = 1MiB\n{supervisor}\n")
    if log is not None:
        instance.log = log
    return instance


def check_accounts(status: dict[str, Any]) -> None:
    """For each sink and stream: events made = logged + dropped + buffered."""
    made = {
        f"{model['name']}/{worker['index']} {stream}": account["events"]
        for model in status["models"]
        for worker in model["workers"]
        for stream, account in worker["output"].items()
    }
    for sink in status["log"]["sinks"]:
        sums = Counter({source: sum(tally.values()) for source, tally in sink["streams"].items()})
        assert sums.total() == status["log"]["events"], sink
        for source, events in made.items():
            assert sums[source] == events, (source, sink)


def log_writers(instance: Instance) -> list[int]:
    """The log writers of an instance, oldest first."""
    path = Path(f"/proc/{instance.pid}/task/{instance.pid}/children")
    return [int(pid) for pid in path.read_text().split() if is_log_writer(int(pid))]


def file_writer(instance: Instance, path: Path) -> int:
    """The log writer of a file, by its command line; waits for it."""

    def found() -> list[int]:
        return [pid for pid in log_writers(instance) if os.fsencode(path) in _command(pid)]

    return wait_for(found, f"the log writer of {path}")[0]


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def events_in(*paths: Path) -> list[Event]:
    """The events of files that follow one another, each of which must end with a whole line."""
    found: list[Event] = []
    for path in paths:
        text = path.read_bytes()
        assert text.endswith(b"\n") or not text, f"{path} ends in a line: {text[-200:]!r}"
        found.extend(json.loads(line) for line in text.splitlines())
    for event in found:
        check(event)
    return found


def check_whole(events: list[Event]) -> None:
    """Every event made is there, once and in order."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))


def check_complete(path: Path, lines: int) -> list[Event]:
    """A copy that has everything: each event once and in order, and each of so many lines of the flood; returns its events."""
    events = events_in(path)
    check_whole(events)
    assert lines_in(events) == lines
    return events


def check_gaps(events: list[Event], sink: str, lines: int) -> int:
    """What a copy that has the last event is missing is what its `log.dropped` say, in all and of the flood, which had so many
    lines; returns how many events that is."""
    numbers = [event["seq"] for event in events]
    assert numbers == sorted(set(numbers)), "doubled, or out of order"
    told = [event for event in events if event["event"] == "log.dropped" and event["sink"] == sink]
    missing: int = numbers[-1] - len(numbers)
    assert sum(event["lines"] for event in told) == missing, (told, missing)
    assert sum(event["streams"].get(FLOODED, 0) for event in told) == lines - lines_in(events)
    return missing


def lines_in(events: list[Event]) -> int:
    """How many lines of the flood are there, after a look that they are in order and none is there twice."""
    numbers = [
        int(event["line"][:8])
        for event in events
        if event["event"] == "worker.output" and event["worker"] == 0
    ]
    assert numbers == sorted(set(numbers)), "doubled, or out of order"
    return len(numbers)


def said(events: list[Event], sink: str) -> list[tuple[str, str]]:
    """What was said about a sink, in order, but for what it has dropped: names and reasons."""
    return [
        (event["event"], event["reason"])
        for event in events
        if event.get("sink") == sink and event["event"] not in ("log.dropped", "log.opened")
    ]


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
