"""`logs` against a living supervisor: what its people see, and that nobody who looks harms anybody."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from modelsupervisor.control import ControlConnection
from modelsupervisor.errors import PredictionFailedError
from support.faults import Caller, ask, crash, echo, ready, request
from support.instance import LIMIT, Event, Instance, environment, wait_for
from support.schema import check

Running = Callable[..., Instance]
POWER = "\x1b[2J\x1b]0;title\x07\x9b31m"  # clears the screen, names the window, rings, colours
SHOWN = "\\x1b[2J\\x1b]0;title\\x07\\x9b31m"


def command(instance: Instance, *arguments: str) -> list[str]:
    """The command line of a command of this instance."""
    return [sys.executable, "-m", "modelsupervisor", *arguments, "-c", str(instance.config)]


def logs(instance: Instance, *arguments: str) -> list[Event]:
    """The events that `logs --json` prints, each held against the schema."""
    outcome = instance.cli("logs", "--json", "-c", str(instance.config), *arguments)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    events: list[Event] = [json.loads(line) for line in outcome.stdout.splitlines()]
    for event in events:
        check(event)
    return events


def followers(instance: Instance) -> list[str]:
    """The sinks that are operators who follow."""
    sinks = instance.status()["log"]["sinks"]
    return [sink["name"] for sink in sinks if sink["name"].startswith("logs of pid ")]


class Follow:
    """A `logs -f` in the background, its output in files."""

    def __init__(self, instance: Instance, name: str, *arguments: str) -> None:
        self.instance = instance
        self.out = instance.folder / f"{name}.out"
        self.err = instance.folder / f"{name}.err"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                command(instance, "logs", "-f", *arguments),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment("cli-" + instance.mark),
                cwd=instance.folder,
            )
        self.name = f"logs of pid {self.process.pid}"

    def begun(self) -> Follow:
        """Wait until the supervisor counts it among its sinks."""
        wait_for(lambda: self.name in followers(self.instance), f"{self.name} to follow")
        return self

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.out.read_text()

    def wait_text(self, text: str) -> None:
        """Wait until it has printed this."""
        wait_for(lambda: text in self.text, f"{text!r} in what {self.name} shows")


@pytest.fixture
def follow() -> Iterator[Callable[..., Follow]]:
    """`follow(instance, name, arguments)`: a `logs -f` that has begun; none is left after the test."""
    made: list[Follow] = []

    def begin(instance: Instance, name: str, *arguments: str) -> Follow:
        made.append(Follow(instance, name, *arguments))
        return made[-1].begun()

    yield begin
    for each in made:
        with contextlib.suppress(ProcessLookupError):
            each.process.kill()
        each.process.wait(LIMIT)


def on_a_terminal(instance: Instance, *arguments: str, **environ: str) -> str:
    """What a command shows on a terminal, raw."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(instance, *arguments),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment("cli-" + instance.mark, TERM="xterm", **environ),
    ) as process:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        assert process.wait(LIMIT) == 0
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:  # EIO: nobody has the other side open any more
        return b""


# -- what was ---------------------------------------------------------------------------------------------------------


def test_the_backlog_of_a_worker_of_a_model_and_of_everything(
    instance: Callable[..., Instance],
) -> None:
    """The same events as in the log, in its order, and of nobody else; also the templates' with their model."""
    made = instance()
    made.write(made.model(workers=2) + made.model("other"))
    made.start()
    for index in (0, 1):
        ask(made, "print", index=index, lines=3)
    ask(made, "print", model="other", lines=3)
    made.wait_event("worker.output", count=9)
    every = made.events()
    assert logs(made, "-n", "1000") == every
    assert logs(made, "-n", "1000", "echo") == [e for e in every if e.get("model") == "echo"]
    one = [e for e in every if (e.get("model"), e.get("worker")) == ("echo", 1)]
    assert len([e for e in one if e["event"] == "worker.output"]) == 3
    assert logs(made, "-n", "1000", "echo/1") == one


def test_the_newest_so_many(running: Running) -> None:
    """-n N; 100 where it is not given; none for 0."""
    instance = running()
    ask(instance, "print", lines=150, text="number")
    instance.wait_event("worker.output", count=150)
    newest = [f"number {n}" for n in range(150)]
    assert [event["line"] for event in logs(instance, "-n", "3", "echo/0")] == newest[-3:]
    assert [event["line"] for event in logs(instance, "echo/0")] == newest[-100:]
    assert logs(instance, "-n", "0") == []


def test_what_is_no_terminal_gets_text_without_colours(running: Running) -> None:
    """`logs | grep` is for a person: date and time, worker and line, as on the console of the supervisor."""
    instance = running()
    ask(instance, "print", text="hello")
    instance.wait_event("worker.output")
    outcome = instance.cli("logs", "echo/0", "-n", "1", "-c", str(instance.config))
    stamp = instance.events("worker.output")[0]["timestamp"]
    assert outcome.stdout == f"{stamp[:10]} {stamp[11:23]}Z echo/0 | hello 0\n"


def test_who_is_not_there(running: Running) -> None:
    """An unknown model or worker: one line that says what there is, exit code 1. Nothing running: 3. No such form: 2."""
    instance = running(workers=2)
    for arguments, message in (
        (["nobody"], "no model 'nobody'; there are: echo"),
        (["echo/2", "-f"], "no worker echo/2; there are 2"),
    ):
        outcome = instance.cli("logs", *arguments, "-c", str(instance.config))
        assert (outcome.returncode, outcome.stdout) == (1, "")
        assert outcome.stderr == f"modelsupervisor: {message}\n"
    assert instance.cli("logs", "echo/x", "-c", str(instance.config)).returncode == 2
    assert instance.cli("logs", "-n", "-1", "-c", str(instance.config)).returncode == 2
    instance.stop()
    outcome = instance.cli("logs", "-f", "-c", str(instance.config))
    assert (outcome.returncode, outcome.stdout) == (3, "")
    assert outcome.stderr.count("\n") == 1


# -- what comes -------------------------------------------------------------------------------------------------------


def test_a_follower_sees_what_comes_until_the_supervisor_ends(
    running: Running, follow: Callable[..., Follow]
) -> None:
    """First the backlog, then each line; at the supervisor's end everything to its last word, a line on stderr, exit code 0."""
    instance = running()
    ask(instance, "print", text="before")
    instance.wait_event("worker.output")
    following = follow(instance, "one", "--json")
    following.wait_text("before 0")
    ask(instance, "print", text="after")
    following.wait_text("after 0")
    instance.stop()
    assert following.process.wait(LIMIT) == 0
    assert [json.loads(line) for line in following.text.splitlines()] == instance.events()
    assert (
        following.err.read_text()
        == f"modelsupervisor: the supervisor in {instance.run_dir} is gone\n"
    )


def test_two_followers_of_different_workers(
    running: Running, follow: Callable[..., Follow]
) -> None:
    """Each sees its own worker alone; -n 0 is only what comes."""
    instance = running(workers=2)
    ask(instance, "print", text="before")
    both = [follow(instance, f"of-{n}", "-n", "0", f"echo/{n}", "--json") for n in (0, 1)]
    for index in (0, 1):
        ask(instance, "print", index=index, text=f"from {index}")
    for index, following in enumerate(both):
        following.wait_text(f"from {index} 0")
        (event,) = map(json.loads, following.text.splitlines())
        assert (event["worker"], event["line"]) == (index, f"from {index} 0")


def test_ctrl_c_ends_a_follow_as_it_was_meant(
    running: Running, follow: Callable[..., Follow]
) -> None:
    """Exit code 0 and no word; the supervisor lets go of it at once, and goes on."""
    instance = running()
    following = follow(instance, "one")
    following.wait_text("supervisor.ready")
    following.process.send_signal(signal.SIGINT)
    assert (following.process.wait(LIMIT), following.err.read_text()) == (0, "")
    wait_for(lambda: not followers(instance), "the supervisor to let go of the follower")
    assert echo(instance) == b"are you there"


def test_a_follower_that_does_not_read(running: Running) -> None:
    """It slows nobody; what it misses is counted for it alone, and told when it reads on."""
    instance = running(supervisor="log_buffer = 1MiB")
    me = f"logs of pid {os.getpid()}"
    count = 30_000
    with ControlConnection.open(str(instance.run_dir)) as control:
        control.call("logs", {"follow": True, "lines": 0})
        ask(instance, "print", lines=count, text="x" * 100)
        instance.wait_event("log.stalled", sink=me)
        instance.wait_event("worker.output", count=count)
        assert echo(instance) == b"are you there"
        sinks = {sink["name"]: sink for sink in instance.status()["log"]["sinks"]}
        assert sinks[me]["state"] == "stalled"
        assert sinks[me]["streams"]["echo/0 stdout"]["dropped"] > 0
        others = [sink for name, sink in sinks.items() if name != me]
        assert not any(t["dropped"] for sink in others for t in sink["streams"].values())
        table = on_a_terminal(instance, "status", COLUMNS="200")
        assert f"log: {me} is stalled" in table
        seen: list[Event] = []
        for line in control.events():
            seen.append(json.loads(line))
            if seen[-1]["event"] == "log.dropped":
                break
    numbers = [event["seq"] for event in seen]
    assert numbers == sorted(numbers)
    missed = numbers[-1] - numbers[0] + 1 - len(numbers)
    told = instance.wait_event("log.dropped", sink=me)
    assert seen[-1] == told
    assert told["lines"] == missed > 0
    assert told["streams"] == {"echo/0 stdout": missed}


def test_a_follower_of_one_worker_is_told_what_it_misses(running: Running) -> None:
    """Its own `log.dropped` is among its events, though it is about no worker; those of others are not."""
    instance = running(supervisor="log_buffer = 1MiB", workers=2)
    with ControlConnection.open(str(instance.run_dir)) as control:
        control.call("logs", {"model": "echo", "index": 0, "follow": True, "lines": 0})
        ask(instance, "print", lines=20_000, text="x" * 100)
        instance.wait_event("worker.output", count=20_000)
        missed = 20_000
        for line in control.events():
            event = json.loads(line)
            missed -= event["event"] == "worker.output"
            if event["event"] == "log.dropped":
                break
    assert (event["sink"], event["lines"]) == (f"logs of pid {os.getpid()}", missed)


def test_a_follower_that_leaves_in_the_midst(running: Running) -> None:
    """While a worker floods and megabytes wait for it: it is let go, which is no error and nobody's loss."""
    instance = running(supervisor="log_buffer = 8MiB")
    count = 40_000
    with ControlConnection.open(str(instance.run_dir)) as control:
        control.call("logs", {"follow": True, "lines": 0})
        with Caller(instance.socket(), request("print", lines=count, text="x" * 100)) as caller:
            wait_for(
                lambda: instance.worker()["output"]["stdout"]["events"] > count // 4,
                "a quarter of the lines",
            )
            instance.signal(signal.SIGSTOP)  # it finds a full FIFO and the end of the follower
            control.close()
            instance.signal(signal.SIGCONT)
            caller.answer()
    instance.wait_event("worker.output", count=count)
    assert followers(instance) == []
    assert not instance.events("log.closed")


# -- readers and terminals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_left_is_silence(running: Running, form: list[str]) -> None:
    """`logs | head -n 1`: one line, and no word about the rest."""
    instance = running()
    ask(instance, "print", lines=3000, text="x" * 100)
    instance.wait_event("worker.output", count=3000)
    line = shlex.join(command(instance, "logs", "-n", "3000", *form))
    outcome = subprocess.run(
        ["sh", "-c", f"{line} | head -n 1"],
        capture_output=True,
        text=True,
        env=environment("cli-" + instance.mark),
        timeout=LIMIT,
        check=True,
    )
    assert outcome.stdout.count("\n") == 1
    assert outcome.stderr == ""


def test_a_reader_that_left_a_follow_is_noticed_at_once(running: Running) -> None:
    """`logs -f | grep -m 1`: it ends though no further event comes."""
    instance = running()
    outcome = subprocess.run(
        [
            "sh",
            "-c",
            f"{shlex.join(command(instance, 'logs', '-f'))} | grep -m 1 -o supervisor.ready",
        ],
        capture_output=True,
        text=True,
        env=environment("cli-" + instance.mark),
        timeout=LIMIT,
        check=True,
    )
    assert (outcome.stdout, outcome.stderr) == ("supervisor.ready\n", "")


def test_an_event_of_more_than_a_message(running: Running) -> None:
    """The control protocol's bound of a line is none of an event's: a line of max_line arrives whole."""
    instance = running(max_line="2MiB")
    text = "x" * 1_500_000
    with Caller(instance.socket(), request("write", text=text + "\n")) as caller:
        caller.answer()
    instance.wait_event("worker.output")
    (event,) = logs(instance, "-n", "1", "echo/0")
    assert event["line"] == text


def test_what_a_model_says_has_no_power_over_the_terminal(running: Running) -> None:
    """Neither its lines nor its exceptions nor ids of requests: escape sequences are shown, in JSON as JSON escapes them."""
    instance = running("request.failed", "worker.exited")
    ask(instance, "write", text=f"{POWER.encode().decode('latin-1')}\n")
    with pytest.raises(PredictionFailedError):
        ask(instance, "raise", text=POWER)
    instance.wait_event("request.failed")
    crash(instance, "kill", request_id=POWER)
    ready(instance, 2)
    for arguments in (["logs"], ["logs", "--json"], ["status", "echo/0"], ["status", "--json"]):
        for name in ({}, {"NO_COLOR": "1"}):
            shown = on_a_terminal(instance, *arguments, COLUMNS="200", **name)
            for power in ("\x1b[2J", "\x1b]", "\x07", "\x9b", "\r"):
                assert power not in shown, (arguments, power)
    assert SHOWN in on_a_terminal(instance, "logs")


def test_colours_on_a_terminal_alone(running: Running) -> None:
    """And not there where NO_COLOR asks for none."""
    instance = running()
    assert "\x1b[" in on_a_terminal(instance, "logs")
    assert "\x1b" not in on_a_terminal(instance, "logs", NO_COLOR="1")
    assert "\x1b" not in instance.cli("logs", "-c", str(instance.config)).stdout
