"""Signals in any number, the terminal, and a standard output that is slow, stopped or gone."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from modelsupervisor.runtime.signals import UNUSED_SIGNALS
from support.flood import cpu_seconds
from support.instance import Instance, environment, wait_for
from support.moments import lock_text
from support.peers import ask, dial, order_frame, read_predict
from support.schema import check
from support.terminal import Terminal

Make = Callable[..., Instance]
START = [sys.executable, "-m", "modelsupervisor", "start", "-c"]


@pytest.fixture
def echo(instance: Make) -> Instance:
    """A running instance of the test model."""
    made = instance()
    made.write(made.model())
    return made.start()


# -- in any number -------------------------------------------------------------------------------------------------------


def test_ten_thousand_signals_hide_no_term(echo: Instance) -> None:
    """A flood of USR1 is counted and borne, the supervisor answers meanwhile, and TERM after it is heard at once."""
    for _ in range(5000):
        os.kill(echo.pid, signal.SIGUSR1)
    assert ask(echo.socket()) == b"hello"
    assert echo.status()["supervisor"]["pid"] == echo.pid
    for _ in range(5000):
        os.kill(echo.pid, signal.SIGUSR1)
    begun = time.monotonic()
    echo.signal(signal.SIGTERM)
    assert echo.wait() == 0
    assert time.monotonic() - begun < 2
    counted = sum(event["count"] for event in echo.events("signal.ignored", signal="SIGUSR1"))
    assert 1 <= counted <= 10000  # the kernel merges what is not delivered yet


def test_a_stopped_supervisor_hears_all_of_them_later(echo: Instance) -> None:
    """TERM among a flood that came while it was stopped is not lost."""
    echo.signal(signal.SIGSTOP)
    for _ in range(1000):
        os.kill(echo.pid, signal.SIGUSR1)
    echo.signal(signal.SIGTERM)
    for _ in range(1000):
        os.kill(echo.pid, signal.SIGUSR2)
    echo.signal(signal.SIGCONT)
    assert echo.wait() == 0
    assert echo.wait_event("supervisor.stopping")["reason"] == "SIGTERM"


def test_every_signal_that_means_nothing_is_survived(echo: Instance) -> None:
    """Whatever would by default end or stop it, real-time signals included, is told and ignored; the harmless are silent."""
    harmless = (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
    for number in UNUSED_SIGNALS:
        os.kill(echo.pid, number)
    for number in UNUSED_SIGNALS:
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        echo.wait_event("signal.ignored", signal=name)
    for number in (*harmless, signal.SIGPIPE, signal.SIGXFSZ):
        os.kill(echo.pid, number)
    assert {signal.SIGIO, signal.SIGPWR, signal.SIGRTMIN, signal.SIGTSTP} <= set(UNUSED_SIGNALS)
    assert ask(echo.socket()) == b"hello"
    told = {event["signal"] for event in echo.events("signal.ignored")}
    assert len(told) == len(UNUSED_SIGNALS)


def test_a_supervisor_that_was_stopped_kills_nobody(instance: Make) -> None:
    """SIGSTOP for longer than a deadline, then CONT: what the workers said meanwhile is heard before the clock is looked at."""
    made = instance()
    made.write(
        made.model(startup_timeout="500ms", env__FAULT_AT_LOAD='{"do": "sleep", "seconds": 0.2}')
    )
    made.launch()
    made.wait_event("template.starting")
    made.signal(signal.SIGSTOP)
    time.sleep(1.0)  # the deadline passes while it is stopped: that is what is tested
    made.signal(signal.SIGCONT)
    made.wait_event("supervisor.ready")
    assert made.events("template.exited") == []


# -- a terminal ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(instance: Make) -> Iterator[Terminal]:
    """A terminal for one instance of the test model."""
    made = instance()
    made.write(made.model(workers=2))
    made.log.touch()  # the log goes to the terminal
    shown = Terminal(made)
    yield shown
    shown.close()


def test_a_terminal_shows_progress_and_a_readable_log(terminal: Terminal) -> None:
    """A progress line while workers start, taken away at the end; events as time, level, name and facts; a worker's own lines."""
    terminal.start()
    terminal.wait_text("supervisor.ready")
    assert "starting: 0 of 2 workers ready, loading echo …" in terminal.text
    assert "\x1b[" in terminal.shown.decode()
    assert "{" not in terminal.text
    terminal.wait_text("echo template | loading faults in")
    with dial(terminal.instance.socket()) as peer:
        peer.sendall(order_frame(do="print", text="hello terminal"))
        read_predict(peer)
    terminal.wait_text("echo/0 | hello terminal 0")
    assert not [line for line in terminal.screen if "starting:" in line], terminal.screen


def test_no_color_means_no_escape(terminal: Terminal) -> None:
    """With NO_COLOR the log is as readable and holds no escape sequence."""
    terminal.start(NO_COLOR="1")
    terminal.wait_text("supervisor.ready")
    assert b"\x1b" not in terminal.shown


def test_json_on_a_terminal_where_it_is_asked_for(terminal: Terminal) -> None:
    """log_format = json is JSON everywhere."""
    made = terminal.instance
    made.write(made.model(), supervisor="log_format = json\n")
    terminal.start()
    terminal.wait_text('"event":"supervisor.ready"')
    assert b"\x1b" not in terminal.shown
    for line in terminal.text.splitlines():
        check(json.loads(line))


def test_console_in_a_file_where_it_is_asked_for(instance: Make) -> None:
    """log_format = console is readable text in a file too, without colours."""
    made = instance()
    made.write(made.model(), supervisor="log_format = console\n")
    log = made.folder / "console.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*START, str(made.config)], stdout=file, env=environment(made.mark)
        )
    with process:
        wait_for(lambda: "supervisor.ready" in log.read_text(), "ready")
        process.terminate()
    assert process.returncode == 0
    assert "\x1b" not in log.read_text()
    assert "worker.exited" in log.read_text()


_JOB = """
import os, subprocess, sys
job = subprocess.Popen(sys.argv[1:], preexec_fn=os.setpgrp)  # not the terminal's foreground group
sys.exit(job.wait())
"""


def test_in_the_background_of_a_terminal_that_stops_writers(terminal: Terminal) -> None:
    """Under `stty tostop` a background job may not write: the log is written all the same, and the supervisor neither
    stops nor spins on it."""
    made = terminal.instance
    job = [sys.executable, "-c", _JOB, *START, str(made.config)]
    terminal.start(job, attributes=termios.TOSTOP)
    terminal.wait_text("supervisor.ready")
    assert ask(made.socket()) == b"hello"
    os.kill(int(lock_text(made)[0]), signal.SIGTERM)
    terminal.wait_text("supervisor.stopped")
    assert made.wait() == 0


def test_the_terminal_stays_as_it_was(instance: Make) -> None:
    """O_NONBLOCK belongs to the open file that the shell shares: it is not left behind on it."""
    made = instance()
    made.write(made.model())
    master, slave = pty.openpty()
    reading, writing = os.pipe()
    try:
        for descriptor in (slave, writing):
            process = subprocess.Popen(
                [*START, str(made.config)], stdout=descriptor, env=environment(made.mark)
            )
            with process:
                wait_for(lambda: made.socket().exists(), "the socket")
                assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_NONBLOCK
                process.terminate()
            assert process.returncode == 0
            assert not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_NONBLOCK
    finally:
        for descriptor in (master, slave, reading, writing):
            os.close(descriptor)


# -- a reader that does not read ------------------------------------------------------------------------------------------


class Piped:
    """A supervisor whose standard output is a pipe that the test reads when it likes."""

    def __init__(self, made: Instance) -> None:
        self.made = made
        self.reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        with (made.folder / "stderr").open("ab") as errors:
            made.process = subprocess.Popen(
                [*START, str(made.config)],
                stdout=writing,
                stderr=errors,
                env=environment(made.mark),
            )
        os.close(writing)

    def close_reading(self) -> None:
        """Hang up, as `| head` does."""
        if self.reading >= 0:
            os.close(self.reading)
            self.reading = -1

    def read_to_end(self) -> list[dict[str, object]]:
        """Every event that comes until the supervisor closes its end."""
        chunks = []
        while chunk := os.read(self.reading, 65536):
            chunks.append(chunk)
        events = [json.loads(line) for line in b"".join(chunks).splitlines()]
        for event in events:
            check(event)
        return events


@pytest.fixture
def piped(instance: Make) -> Iterator[Piped]:
    """A supervisor of the test model behind a pipe of one page that nobody reads."""
    made = instance()
    made.write(made.model())
    made.log.touch()
    pipe = Piped(made)
    yield pipe
    pipe.close_reading()


def flood(made: Instance, lines: int) -> None:
    """Have the first worker print."""
    with dial(made.socket()) as peer:
        peer.sendall(order_frame(do="print", lines=lines, text="x" * 500))
        read_predict(peer)


def test_a_log_reader_that_stops_reading_stops_nobody(piped: Piped) -> None:
    """With the pipe full and 20 MiB of output on top, predictions, status and restarts go on; what is dropped is counted."""
    made = piped.made
    wait_for(lambda: (made.run_dir / "control.sock").exists(), "the control socket")
    flood(made, 40000)
    begun = time.monotonic()
    assert ask(made.socket()) == b"hello"
    assert made.status()["supervisor"]["pid"] == made.pid
    assert time.monotonic() - begun < 2
    restarted = made.cli("restart", "echo/0", "-c", str(made.config))
    assert restarted.returncode == 0, restarted.stderr
    made.signal(signal.SIGTERM)
    wait_for(lambda: os.listdir(made.run_dir) == ["lock"], "the end, but for the last of the log")
    events = piped.read_to_end()
    assert made.wait() == 0
    dropped = sum(int(str(event["lines"])) for event in events if event["event"] == "log.dropped")
    last = int(str(events[-1]["seq"]))
    # Behind it only what the sink says of itself when it takes the last of the log
    assert "supervisor.stopped" in [event["event"] for event in events[-3:]]
    assert dropped > 0
    assert last - len(events) == dropped  # each gap in seq is a line that was counted
    printed = [
        event for event in events if event["event"] == "worker.output" and "x" in str(event["line"])
    ]
    assert 10000 < len(printed) < 40000
    assert {"worker.exited", "worker.ready", "supervisor.stopping"} <= {
        event["event"] for event in events
    }


def test_a_log_reader_that_never_reads_does_not_keep_the_end(piped: Piped) -> None:
    """Stop is over soon, though nobody ever takes the last lines."""
    made = piped.made
    wait_for(lambda: (made.run_dir / "control.sock").exists(), "the control socket")
    flood(made, 200)
    begun = time.monotonic()
    made.signal(signal.SIGTERM)
    assert made.wait() == 0
    assert time.monotonic() - begun < 5
    assert os.listdir(made.run_dir) == ["lock"]


def test_a_log_reader_that_leaves_takes_nobody_along(piped: Piped) -> None:
    """EPIPE ends the log and nothing else; it costs no processor time either."""
    made = piped.made
    wait_for(lambda: (made.run_dir / "control.sock").exists(), "the control socket")
    piped.close_reading()
    flood(made, 2000)
    assert ask(made.socket()) == b"hello"
    assert made.status()["models"][0]["workers"][0]["phase"] == "READY"
    before = cpu_seconds(made.pid)
    time.sleep(0.5)  # a stretch to measure, not a wait
    assert cpu_seconds(made.pid) - before < 0.1
    made.signal(signal.SIGTERM)
    assert made.wait() == 0


def test_an_idle_supervisor_costs_nothing(echo: Instance) -> None:
    """No descriptor is ready for ever: idle it uses no processor time."""
    before = cpu_seconds(echo.pid)
    time.sleep(1.0)  # a stretch to measure, not a wait
    assert cpu_seconds(echo.pid) - before <= 0.02


def test_a_terminal_that_goes_away_during_the_start_costs_no_processor_time(instance: Make) -> None:
    """The progress line has nowhere to go, and is not kept for later. (Not our controlling terminal: that would be a stop.)"""
    made = instance("log.closed")
    file = made.folder / "file.jsonl"
    made.write(
        made.model(env__FAULT_AT_LOAD='{"do": "sleep", "seconds": 1.5}'), f"log_file = {file}"
    )
    master, slave = pty.openpty()
    made.launch(stdout=slave, TERM="xterm")
    os.close(slave)
    made.log = file
    made.wait_event("template.starting")
    os.close(master)
    made.wait_event("log.closed", sink="stdout")
    before = cpu_seconds(made.pid)
    made.wait_event("supervisor.ready")
    assert cpu_seconds(made.pid) - before < 0.5
