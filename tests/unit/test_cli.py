"""cli/: every command against a fake supervisor; in this process, and as a program for what only
that shows.

The fake supervisor answers on a real control socket; the fake workers of `predict` answer on real
worker sockets.
"""

from __future__ import annotations

import io
import json
import os
import pty
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from modelworker.wire import CommandReader, PredictCommand, ResponseItem, encode_predict_response

from modelsupervisor import __version__
from modelsupervisor.cli import commands, main, render
from modelsupervisor.cli.predict import answer_line, content_type_of
from modelsupervisor.config import Settings
from modelsupervisor.control import ControlReply, ControlRequest, decode_request, encode_reply
from modelsupervisor.errors import AlreadyRunningError, ControlError, StartError
from modelsupervisor.prediction import Prediction

STATUS: dict[str, Any] = {
    "supervisor": {
        "pid": 41,
        "version": "0.1.0",
        "uptime_s": 75.0,
        "config": "/srv/workers.ini",
        "run_dir": "/run/modelsupervisor",
    },
    "models": [
        {
            "name": "digits",
            "workers_wanted": 2,
            "workers": [
                {
                    "index": 0,
                    "wanted": "up",
                    "phase": "READY",
                    "pid": 42,
                    "generation": 3,
                    "cpus": [0, 1, 2, 8],
                    "threads": 4,
                    "preload": "model",
                    "rss_bytes": 380_633_088,
                    "pss_bytes": 8_388_608,
                    "requests": 1234,
                    "restarts": 2,
                    "last_exit": {
                        "cause": "signal",
                        "reason": "killed by SIGKILL while idle",
                        "code": None,
                        "signal": "SIGKILL",
                        "uptime_s": 3723.0,
                        "in_hand": [],
                    },
                    "socket": "/run/modelsupervisor/digits.0.sock",
                },
                {
                    "index": 1,
                    "wanted": "down",
                    "phase": "EMPTY",
                    "pid": None,
                    "generation": 0,
                    "cpus": None,
                    "threads": None,
                    "rss_bytes": None,
                    "pss_bytes": None,
                    "requests": 0,
                    "restarts": 0,
                    "last_exit": None,
                },
            ],
        }
    ],
}

Answer = Callable[[ControlRequest], ControlReply]


class FakeSupervisor:
    """Answers each connection on `run_dir`/control.sock until it closes, or until `stop` was
    answered."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.results: dict[str, Any] = {"status": STATUS, "stop": {"stopping": True}}
        self.stopping = threading.Event()  # `stop` was answered
        self.gone = threading.Event()  # after `stop`: when it is set, the connection ends
        self.gone.set()
        self.silent = False
        self.refusals = 0  # connections that are closed without an answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(run_dir / "control.sock"))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            if self.refusals:
                self.refusals -= 1
                peer.recv(65536)  # read, or what is in the buffer would make a reset of it
                peer.close()
                continue
            self._threads.append(threading.Thread(target=self._serve, args=[peer]))
            self._threads[-1].start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, peer.makefile("rb") as lines:
            for line in lines:
                request = decode_request(line)
                self.asked.append((request.command, request.arguments))
                if self.silent:
                    continue
                result = self.results[request.command]
                if isinstance(result, ControlError):
                    reply = ControlReply.failure(request.id, result.code, str(result))  # type: ignore[arg-type]
                else:
                    reply = ControlReply.success(request.id, result)
                peer.sendall(encode_reply(reply))
                if request.command == "stop":
                    self.stopping.set()
                    self.gone.wait(10)
                    return

    def close(self) -> None:
        self.gone.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[FakeSupervisor]:
    """A fake supervisor in tmp_path."""
    fake = FakeSupervisor(tmp_path)
    yield fake
    fake.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration file that loads; its run_dir is tmp_path."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "handler.py").write_text("def handle(data, context):\n    return data\n")
    file = tmp_path / "workers.ini"
    file.write_text(
        "[supervisor]\nrun_dir = .\n\n[model:m]\npath = model\nhandler = handler:handle\n"
        "env.API_TOKEN = hush\nenv.COLOUR = blue\n"
    )
    return file


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[str, Callable[[bytes, str], ResponseItem]], None]]:
    """`worker(model, handler)`: a worker 0 of `model` that answers handler(body, content type)
    per request."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket, handler: Callable[[bytes, str], ResponseItem]) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                reader = CommandReader()
                while chunk := peer.recv(65536):
                    reader.feed(chunk)
                    command = reader.next_command()
                    if isinstance(command, PredictCommand):
                        (request,) = command.requests
                        body = request.parameters[0]
                        item = handler(body.value, body.content_type)
                        item = item._replace(request_id=request.request_id)
                        peer.sendall(encode_predict_response(200, "Prediction success", [item]))

    def begin(model: str, handler: Callable[[bytes, str], ResponseItem]) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / f"{model}.0.sock"))
        listener.listen()
        listeners.append(listener)
        threads.append(threading.Thread(target=serve, args=[listener, handler]))
        threads[-1].start()

    yield begin
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(10)
    for listener in listeners:
        listener.close()


def item(
    body: bytes, content_type: str = "", status: int = 200, phrase: str = "OK"
) -> ResponseItem:
    return ResponseItem("", content_type, status, phrase, [], body)


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """`python -m modelsupervisor ...`, as a person or a script starts it."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RUNTIME_DIRECTORY", None)
    return subprocess.run(
        [sys.executable, "-m", "modelsupervisor", *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        env={**environment, **options.pop("env", {})},
        **options,
    )


# The program itself


def test_version_and_help() -> None:
    """--version says it; --help names every command with a sentence, and each has a help of its
    own."""
    runner = CliRunner()
    assert (
        runner.invoke(commands, ["--version"]).output == f"modelsupervisor, version {__version__}\n"
    )
    shown = runner.invoke(commands, ["--help"]).output
    for name in ("start", "check", "init", "status", "stop", "restart", "predict"):
        assert f"\n  {name} " in shown
        outcome = runner.invoke(commands, [name, "--help"])
        assert outcome.exit_code == 0
        assert f"{name} [OPTIONS]" in outcome.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["juggle"],
        ["start"],
        ["status", "--nonsense"],
        ["status", "-c", "x.ini", "--run-dir", "y"],
        ["restart", "m/x"],
        ["restart", "m/1/2"],
        ["predict", "m"],
        ["predict", "m", "-", "-"],
        ["predict", "m", "f", "--timeout", "0"],
        ["stop", "--timeout", "-1"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be meant is refused before anything is asked of anybody, with a line and no
    traceback."""
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Error: " in shown.err
    assert "Traceback" not in shown.err


def test_program_passes_exit_codes_on(tmp_path: Path) -> None:
    """`python -m modelsupervisor` ends with the code, one clear line on stderr, nothing on
    stdout."""
    outcome = program("status", "--run-dir", str(tmp_path))
    assert outcome.returncode == 3
    assert outcome.stdout == b""
    assert (
        outcome.stderr.decode()
        == f"modelsupervisor: no supervisor runs in {tmp_path}: no control socket\n"
    )
    assert program("juggle").returncode == 2
    assert program("check", "-c", str(tmp_path / "none.ini")).returncode == 78
    assert program("--version").returncode == 0


@pytest.mark.parametrize("size", [0, 500_000])
def test_reader_that_left_is_silence(supervisor: FakeSupervisor, tmp_path: Path, size: int) -> None:
    """`status | true`: no traceback and no complaint, whether it shows in the command or at its
    end."""
    supervisor.results["status"] = {**STATUS, "padding": "x" * size}
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as stdout:
        process = subprocess.run(
            [sys.executable, "-m", "modelsupervisor", "status", "--run-dir", str(tmp_path)],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=60,
            check=False,
        )
    assert (process.returncode, process.stderr) == (1, b"")


def test_output_that_cannot_be_written_is_a_failure(
    supervisor: FakeSupervisor, tmp_path: Path
) -> None:
    """A full disk under `> file` is one line and exit code 1, never a success without output."""
    with open("/dev/full", "wb") as full:
        outcome = subprocess.run(
            [sys.executable, "-m", "modelsupervisor", "status", "--run-dir", str(tmp_path)],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=60,
            check=False,
        )
    assert outcome.returncode == 1
    assert outcome.stderr == b"modelsupervisor: cannot write the output: No space left on device\n"


def test_unexpected_exceptions_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A bug is not dressed up as a message."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("modelsupervisor.control.ControlConnection.open", broken)
    with pytest.raises(ZeroDivisionError):
        main(["status", "--run-dir", str(tmp_path)])


def test_status_starts_quickly(supervisor: FakeSupervisor, tmp_path: Path) -> None:
    """A status that is not drawn imports neither rich nor the configuration nor the client."""
    code = (
        "import sys; from modelsupervisor.cli import main; "
        f"assert main(['status', '--run-dir', {str(tmp_path)!r}]) == 0; "
        "print(*sys.modules, sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    shown = subprocess.check_output([sys.executable, "-c", code], env=environment, timeout=60)
    loaded = set(shown.decode().split("\n"))
    assert "modelsupervisor.control" in loaded
    for heavy in ("rich", "structlog", "psutil", "configparser", "asyncio", "concurrent.futures"):
        assert heavy not in loaded
    for ours in ("config", "client", "runtime", "core", "scaffold"):
        assert f"modelsupervisor.{ours}" not in loaded


# Which instance


def test_default_run_dir_is_asked(
    supervisor: FakeSupervisor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without -c and --run-dir the instance is where one runs by default."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    assert main(["status"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS


def test_stale_socket_is_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a killed supervisor leaves is told from a running one, by every command: exit code 3."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "control.sock"))
    for command in (["status"], ["stop"], ["restart", "m"], ["predict", "m", "f"]):
        assert main([*command, "--run-dir", str(tmp_path)]) == 3
        assert "no supervisor runs in" in capsys.readouterr().err


def test_config_file_leads_to_its_run_dir(
    supervisor: FakeSupervisor, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """-c FILE asks the supervisor in the file's run_dir; a symlink to the file is the file."""
    link = config.with_name("link.ini")
    link.symlink_to(config)
    supervisor.results["status"] = {**STATUS, "supervisor": {"config": str(config)}}
    for file in (config, link):
        assert main(["status", "-c", str(file)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["models"] == STATUS["models"]


@pytest.mark.parametrize(
    "command", [["status"], ["stop"], ["restart", "m"], ["predict", "m", "/dev/null"]]
)
def test_instance_of_another_file_is_refused_and_named(
    supervisor: FakeSupervisor,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    """What was started from another file is left alone: it is only asked for its status."""
    assert main([*command, "-c", str(config)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"was started from /srv/workers.ini, not from {config}" in shown.err
    assert [name for name, _ in supervisor.asked] == ["status"]


def test_a_file_that_is_broken_by_now_still_leads_to_its_instance(
    supervisor: FakeSupervisor, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is gone, and a value that is wrong, are no reason to keep an operator from looking or from stopping."""
    supervisor.results["status"] = {**STATUS, "supervisor": {"config": str(config)}}
    with config.open("a") as file:
        file.write("\n[model:gone]\npath = gone.mar\nworkers = some\n")
    assert main(["check", "-c", str(config)]) == 78
    assert "gone.mar" in capsys.readouterr().err
    for command in ("status", "stop"):
        assert main([command, "-c", str(config)]) == 0


def test_broken_config_file_is_exit_code_78(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that does not load leads nowhere; its mistakes are shown."""
    config.write_text("[supervisor]\nrun_dri = x\n")
    assert main(["status", "-c", str(config)]) == 78
    assert "run_dri" in capsys.readouterr().err


def test_supervisors_own_refusal_is_one_line(
    supervisor: FakeSupervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of the control protocol becomes exit code 1, its message the line."""
    supervisor.results["restart"] = ControlError("not_found", "no model x; there are: digits")
    assert main(["restart", "x", "--run-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "modelsupervisor: no model x; there are: digits\n"


# status


def test_status_is_one_line_of_json_elsewhere_than_on_a_terminal(
    supervisor: FakeSupervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the supervisor said, unchanged, with --json and without."""
    for option in ([], ["--json"]):
        assert main(["status", "--run-dir", str(tmp_path), *option]) == 0
        shown = capsys.readouterr().out
        assert shown.count("\n") == 1
        assert json.loads(shown) == STATUS


def test_status_on_a_terminal_is_a_table(supervisor: FakeSupervisor, tmp_path: Path) -> None:
    """A terminal gets the table, in colour; with --json it gets JSON that a person can read."""
    shown = on_a_terminal("status", "--run-dir", str(tmp_path))
    assert "digits/0" in shown
    assert "\x1b[32mREADY" in shown
    plain = on_a_terminal("status", "--run-dir", str(tmp_path), "--json")
    assert json.loads(plain) == STATUS
    assert plain.count("\n") > 20


def on_a_terminal(*arguments: str) -> str:
    """What the program writes when its stdout is a terminal of 200 columns."""
    ours, theirs = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TERM": "xterm-256color",
        "COLUMNS": "200",
    }
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "modelsupervisor", *arguments], stdout=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # EIO: the other end of a terminal is closed
                break
            if not chunk:
                break
            shown += chunk
        assert process.wait(60) == 0
    os.close(ours)
    return shown.decode().replace("\r\n", "\n")


def drawn(status: object, width: int) -> list[str]:
    """The lines of a status on a terminal of that width."""
    out = io.StringIO()
    view = render.status_view(render.read_status(status), width)
    Console(file=out, width=width, highlight=False).print(view)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_table_has_a_row_for_each_worker() -> None:
    """Every column in words; what is not known is a dash."""
    lines = drawn(STATUS, 200)
    assert lines[0] == (
        "modelsupervisor 0.1.0, pid 41, up 1 min 15 s, /srv/workers.ini, in /run/modelsupervisor"
    )
    assert [" ".join(line.split()) for line in lines[2:]] == [
        "worker phase pid gen cpus thr rss pss requests restarts last exit",
        "digits/0 READY 42 3 0-2,8 4 363 MiB 8.0 MiB 1234 2 "
        "killed by SIGKILL while idle, after 1 h 2 min",
        "digits/1 EMPTY down – 0 – – – – 0 0 –",
    ]


def test_table_has_gpus_where_there_are_any() -> None:
    """A column of its own; a worker without one has a dash."""
    first, second = STATUS["models"][0]["workers"]
    model = {"name": "m", "workers": [{**first, "gpu": 7}, second]}
    lines = [line.split() for line in drawn({"supervisor": {}, "models": [model]}, 200)[2:]]
    assert lines[0][8:11] == ["requests", "restarts", "gpu"]
    assert lines[1][10:13] == ["1234", "2", "7"]
    assert lines[2][-2] == "–"


def test_a_worker_that_is_not_as_planned_is_below_the_table() -> None:
    """One line for each difference, however wide the terminal."""
    row = {**STATUS["models"][0]["workers"][0], "drift": ["1 of 2 threads may run on CPU 9"]}
    status = {"supervisor": {}, "models": [{"name": "digits", "workers": [row]}]}
    for width in (80, 200):
        assert drawn(status, width)[-1] == (
            "digits/0 is not as planned: 1 of 2 threads may run on CPU 9"
        )


def test_table_fits_80_columns_uncut() -> None:
    """Large numbers, the longest phase and a long name: nothing is cut; exits follow the table."""
    row = STATUS["models"][0]["workers"][0]
    row = {**row, "phase": "BACKING_OFF", "pid": 4194304, "generation": 123, "requests": 12345678}
    status = {"supervisor": {}, "models": [{"name": "a-rather-long-name", "workers": [row]}]}
    lines = drawn(status, 80)
    assert all(len(line) <= 80 for line in lines)
    shown = "\n".join(lines)
    assert "…" not in shown
    for cell in ("BACKING_OFF", "4194304", "123", "12345678", "363 MiB", "8.0 MiB"):
        assert f" {cell}" in shown
    assert lines[-1] == (
        "last exit of a-rather-long-name/0: killed by SIGKILL while idle, after 1 h 2 min"
    )


def test_status_of_another_version_is_shown_or_refused() -> None:
    """Unknown keys are passed over, missing ones are dashes; what is no status at all is an
    error."""
    odd = {"supervisor": {"new": 1}, "models": [{"name": "[red]x", "workers": [{"index": 0}]}]}
    assert any("[red]x/0" in line for line in drawn(odd, 200))
    with pytest.raises(ControlError, match="not understood"):
        render.read_status({"models": 3})


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (None, "–"),
        ({"reason": "exited with code 3", "uptime_s": 0.04}, "exited with code 3, after 0.0 s"),
        ({"signal": 9}, "killed by SIGKILL"),
        ({"signal": "SIGSEGV"}, "killed by SIGSEGV"),
        ({"signal": 40}, "killed by signal 40"),
        ({"code": 7, "uptime_s": 12.9}, "exit code 7, after 12 s"),
        ({"cause": "recycled"}, "recycled"),
        ({}, "unknown"),
    ],
)
def test_last_exit_in_words(last: dict[str, Any] | None, words: str) -> None:
    """The supervisor's own sentence where it gave one, else what the numbers say."""
    row = {"index": 0, "last_exit": last}
    status = render.read_status({"supervisor": {}, "models": [{"name": "m", "workers": [row]}]})
    assert render.exit_words(status.models[0].workers[0].last_exit) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1.0, "0.0 s"),
        (9.94, "9.9 s"),
        (59.9, "59 s"),
        (60.0, "1 min 0 s"),
        (3599.9, "59 min 59 s"),
        (7500.0, "2 h 5 min"),
        (273_600.0, "3 d 4 h"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    """At most two units, the largest first."""
    assert render.duration_words(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (43_620_762, "41.6 MiB"),
        (380_633_088, "363 MiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_sizes_in_words(count: int, words: str) -> None:
    """Binary units, about three figures."""
    assert render.size_words(count) == words


# stop and restart


def test_stop_waits_until_the_supervisor_is_gone(
    supervisor: FakeSupervisor, tmp_path: Path
) -> None:
    """The answer to `stop` is not the end of it; the end of the connection is."""
    supervisor.gone.clear()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-m", "modelsupervisor", "stop", "--run-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert supervisor.stopping.wait(60)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        supervisor.gone.set()
        shown, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert shown.decode() == f"stopped {tmp_path}\n"


def test_stop_that_takes_too_long_is_exit_code_1(
    supervisor: FakeSupervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--timeout bounds the waiting, and the message says that the stop goes on."""
    supervisor.gone.clear()
    assert main(["stop", "--run-dir", str(tmp_path), "--timeout", "0.2"]) == 1
    assert "is stopping, but still there after 0.2 s" in capsys.readouterr().err


def test_stop_of_a_supervisor_that_dies_before_it_answers_is_a_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gone is what was asked for."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def die() -> None:
            peer, _ = listener.accept()
            peer.recv(65536)
            listener.close()
            peer.close()

        thread = threading.Thread(target=die)
        thread.start()
        assert main(["stop", "--run-dir", str(tmp_path)]) == 0
        thread.join(10)
    assert capsys.readouterr().out == f"stopped {tmp_path}\n"


def test_stop_that_a_living_supervisor_closes_is_no_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that had no room for the connection runs on, and `stop` does not say otherwise."""
    fake = FakeSupervisor(tmp_path)
    fake.refusals = 1
    assert main(["stop", "--run-dir", str(tmp_path)]) == 1
    assert "closed the connection before it answered" in capsys.readouterr().err
    assert [command for command, _ in fake.asked] == ["status"]
    fake.close()


def test_silent_supervisor_does_not_hold_stop(
    supervisor: FakeSupervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is stopped by SIGSTOP is said not to answer."""
    supervisor.silent = True
    assert main(["stop", "--run-dir", str(tmp_path), "--timeout", "0.2"]) == 1
    assert "did not answer within 0.2 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("digits", {"model": "digits", "index": None}),
        ("digits/0", {"model": "digits", "index": 0}),
        ("res.net-v2/11", {"model": "res.net-v2", "index": 11}),
    ],
)
def test_restart_names_model_or_worker(
    supervisor: FakeSupervisor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    target: str,
    arguments: dict[str, Any],
) -> None:
    """MODEL restarts the model, MODEL/N one worker; who is there now is printed."""
    workers = [{"index": 0, "generation": 4, "pid": 77}, {"index": 1, "generation": 2, "pid": 78}]
    supervisor.results["restart"] = {"model": "digits", "workers": workers}
    assert main(["restart", target, "--run-dir", str(tmp_path)]) == 0
    assert supervisor.asked == [("restart", arguments)]
    assert capsys.readouterr().out == (
        "digits/0\tgeneration 4\tpid 77\ndigits/1\tgeneration 2\tpid 78\n"
    )


# start and check


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, str]]:
    """What `start` hands to the runtime, which is not run here and returns 0."""
    calls: list[tuple[Settings, str]] = []
    fake = types.ModuleType("modelsupervisor.runtime.start")

    def run(settings: Settings, run_dir: str) -> int:
        calls.append((settings, run_dir))
        return 0

    fake.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelsupervisor.runtime.start", fake)
    return calls


def test_start_hands_settings_and_run_dir_to_the_runtime(
    config: Path, started: list[tuple[Settings, str]]
) -> None:
    """The runtime's return value is the exit code."""
    assert main(["start", "-c", str(config)]) == 0
    ((settings, run_dir),) = started
    assert settings.source == str(config)
    assert run_dir == str(config.parent)


@pytest.mark.parametrize(
    ("error", "code"), [(AlreadyRunningError("held by pid 7"), 75), (StartError("no fds"), 1)]
)
def test_start_errors_have_their_codes(
    config: Path,
    started: list[tuple[Settings, str]],
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
) -> None:
    """An error of ours is a line and its class's exit code."""

    def run(*_: object) -> int:
        raise error

    sys.modules["modelsupervisor.runtime.start"].run = run  # type: ignore[attr-defined]
    assert main(["start", "-c", str(config)]) == code
    assert capsys.readouterr().err == f"modelsupervisor: {error}\n"


@pytest.mark.parametrize("command", ["start", "check"])
def test_mistakes_are_all_shown_and_nothing_is_started(
    config: Path,
    started: list[tuple[Settings, str]],
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """Exit code 78 with every mistake of the file."""
    config.write_text("[supervisor]\nlog_level = loud\n[model:m]\nworkers = many\npath = gone\n")
    assert main([command, "-c", str(config)]) == 78
    shown = capsys.readouterr()
    assert shown.out == ""
    for part in ("loud", "many", "gone"):
        assert part in shown.err
    assert started == []


@pytest.mark.parametrize("command", ["start", "check"])
def test_run_dir_too_long_for_clients_is_found_before_the_start(
    config: Path,
    started: list[tuple[Settings, str]],
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    """A socket that nobody could connect to is a mistake of the configuration, also of a
    default."""
    text = config.read_text()
    config.write_text(text.replace("run_dir = .", f"run_dir = {'x' * 120}"))
    assert main([command, "-c", str(config)]) == 78
    assert "at most 107" in capsys.readouterr().err
    assert started == []


def test_check_without_any_run_dir_is_78(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no rule gives a run directory, check says it as start would."""
    config.write_text(config.read_text().replace("run_dir = .\n", ""))
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["check", "-c", str(config)]) == 78
    assert "no run directory" in capsys.readouterr().err


def test_check_prints_settings_masked_and_ok(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defaults are filled in, secrets are not shown, the run directory is named."""
    assert main(["check", "-c", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "batch_size = 1\n" in shown
    assert "env.COLOUR = blue\n" in shown
    assert "hush" not in shown
    assert shown.endswith(f"\n# run directory: {config.parent}\n# OK\n")


# init


def test_init_makes_a_model_that_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder has the model's name, its file is right as it is, and the next commands are
    shown."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mymodel"]) == 0
    shown = capsys.readouterr().out
    assert "modelsupervisor start -c mymodel/workers.ini\n" in shown
    assert "modelsupervisor predict -c mymodel/workers.ini mymodel mymodel/sample.json\n" in shown
    assert main(["check", "-c", "mymodel/workers.ini"]) == 0


def test_init_into_a_directory_of_another_name(tmp_path: Path) -> None:
    """--directory is the folder that is made; one that has something in it is left alone."""
    target = tmp_path / "a folder"
    assert main(["init", "m", "--directory", str(target)]) == 0
    assert (target / "workers.ini").is_file()
    assert main(["init", "m", "--directory", str(target)]) == 1


@pytest.mark.parametrize("name", ["../escape", "", "-x", "a b"])
def test_init_refuses_a_name_that_no_model_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Wrong usage, and nothing is written."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["init", "--", name]) == 2
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["here"]


# predict


def test_predict_prints_a_label_per_file(
    supervisor: FakeSupervisor,
    worker: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """FILE, label and probability, in the order of the files; the content type is that of the
    name."""
    types_seen = []

    def digit(body: bytes, content_type: str) -> ResponseItem:
        types_seen.append(content_type)
        return item(json.dumps({"label": int(body), "probability": 0.98765}).encode())

    worker("digits", digit)
    for number in (7, 3):
        (tmp_path / f"{number}.png").write_bytes(b"%d" % number)
    (tmp_path / "5.json").write_bytes(b"5")
    files = [str(tmp_path / name) for name in ("7.png", "3.png", "5.json")]
    assert main(["predict", "digits", *files, "--run-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "".join(
        f"{file}\t{label}\t0.9877\n" for file, label in zip(files, (7, 3, 5), strict=True)
    )
    assert types_seen == ["image/png", "image/png", "application/json"]


def test_predict_reads_standard_input(
    supervisor: FakeSupervisor, worker: Callable[..., None], tmp_path: Path
) -> None:
    """`-` is what is piped in, with the content type that is given, or bytes."""
    worker("m", lambda body, content_type: item(content_type.encode() + b" " + body, "text/plain"))
    base = ["predict", "m", "-", "--run-dir", str(tmp_path)]
    assert program(*base, input=b"in").stdout == b"-\tapplication/octet-stream in\n"
    assert program(*base, "--content-type", "a/b", input=b"in").stdout == b"-\ta/b in\n"


def test_one_failing_file_does_not_stop_the_others(
    supervisor: FakeSupervisor,
    worker: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A missing file and one that the model refuses are named on stderr; the rest is answered;
    exit code 1."""

    def picky(body: bytes, _: str) -> ResponseItem:
        return item(b"not a digit", "text/plain", 400, "Bad") if body == b"bad" else item(b'"ok"')

    worker("m", picky)
    for name in ("bad", "good"):
        (tmp_path / name).write_text(name)
    files = [str(tmp_path / name) for name in ("missing", "bad", "good")]
    assert main(["predict", "m", *files, "--run-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == f'{files[2]}\t"ok"\n'
    assert shown.err == (
        f"modelsupervisor: {files[0]}: No such file or directory\n"
        f"modelsupervisor: {files[1]}: the model answered 400 Bad not a digit\n"
    )


def test_predict_as_json(
    supervisor: FakeSupervisor,
    worker: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One object a file: JSON as JSON, text as text, bytes in base 64, errors as errors."""
    replies = {
        b"0": item(b'{"label": 1}', "application/json"),
        b"1": item(b"5", "text/plain"),
        b"2": item(b"\x89\x00", "image/png"),
        b"3": item(b"no", "", 422, "Unprocessable"),
    }
    worker("m", lambda body, _: replies[body])
    for name in "0123":
        (tmp_path / name).write_text(name)
    files = [str(tmp_path / name) for name in ("0", "1", "2", "3", "4")]
    assert main(["predict", "m", *files, "--json", "--run-dir", str(tmp_path)]) == 1
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["file"] for each in objects] == files
    assert objects[0]["answer"] == {"label": 1}
    assert objects[0]["worker"] == str(tmp_path / "m.0.sock")
    assert objects[1]["answer"] == "5"
    assert objects[2]["answer_b64"] == "iQA="
    assert (objects[3]["status"], objects[3]["answer"]) == (422, "no")
    assert "422 Unprocessable" in objects[3]["error"]
    assert objects[4] == {"file": files[4], "error": "No such file or directory"}


def test_predict_names_the_models_that_are_there(
    supervisor: FakeSupervisor,
    worker: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A misspelt model is one line with the right names, whatever the number of files."""
    worker("digits", lambda body, _: item(body))
    assert main(["predict", "digit", "a", "b", "--run-dir", str(tmp_path)]) == 1
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "models there: digits" in shown


def test_predict_timeout_is_per_file(
    supervisor: FakeSupervisor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that does not answer is given up after --timeout."""
    (tmp_path / "f").write_text("x")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "m.0.sock"))
        listener.listen()
        arguments = ["predict", "m", str(tmp_path / "f"), "--timeout", "0.2"]
        assert main([*arguments, "--run-dir", str(tmp_path)]) == 1
    assert "no complete answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "content_type", "line"),
    [
        (b'{"label": "seven"}', "application/json", "seven"),
        (b'{"label": 7, "probability": 0.5}', "", "7\t0.5000"),
        (b'{"label": [1], "probability": null}', "", "[1]\tnull"),
        (b'{"other": 1}', "application/json", '{"other": 1}'),
        (b"[1, 2]\n", "application/json", "[1, 2]"),
        (b"two\nlines\x1b[2J", "text/plain", "two\\nlines\\x1b[2J"),
        (b"plain words", "", "plain words"),
        (b"\x89PNG\xff", "image/png", "5 bytes of image/png"),
        (b"\xff", "", "1 bytes of application/octet-stream"),
    ],
)
def test_answer_in_one_line(body: bytes, content_type: str, line: str) -> None:
    """Label and probability where there are any, else the text; nothing that moves the cursor."""
    assert answer_line(Prediction("r", 200, "", content_type, (), body, "")) == line


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "image/png"),
        ("a.json", "application/json"),
        ("a.json.gz", "application/octet-stream"),
        ("a", "application/octet-stream"),
        ("-", "application/octet-stream"),
    ],
)
def test_content_type_by_name(name: str, kind: str) -> None:
    """What the name says, and bytes where it says nothing or something compressed."""
    assert content_type_of(name) == kind
