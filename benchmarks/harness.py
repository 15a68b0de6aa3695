"""What the benchmarks share: a supervisor in a folder of its own, raw frames, and medians.

Runs of the two sides alternate, since these machines are shared and their speed drifts; what is quoted is the median, and the
ratio of medians of the same run.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelworker.wire import Parameter, PredictResponse, Request, ResponseReader, encode_predict

from modelsupervisor.control import ControlConnection
from modelsupervisor.errors import NotRunningError
from modelsupervisor.paging import whole_status

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60.0  # seconds for anything that is waited for


@dataclass(frozen=True)
class Figure:
    """One line of the report: what was measured, its figures side by side, and what was asked."""

    name: str
    measured: str
    asked: str
    holds: bool


def predict_frame(body: bytes, content_type: str) -> bytes:
    """One predict request as it goes over the socket."""
    return encode_predict([Request("bench", [], [Parameter("body", content_type, body)])])


def ask(path: str, frame: bytes) -> PredictResponse | None:
    """Connect, ask, read the answer, close; None where the worker died before it answered."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            connection.sendall(frame)
            reader = ResponseReader()
            while chunk := connection.recv(65536):
                reader.feed(chunk)
                response = reader.next_predict_response()
                if response is not None:
                    return response
        except (ConnectionResetError, BrokenPipeError):
            return None
    return None


def environment() -> dict[str, str]:
    """The environment of what is measured: importable from the checkout, and Python's output as it is by default."""
    paths = os.pathsep.join([str(ROOT / "supervisor"), str(ROOT / "worker"), str(ROOT)])
    inherited = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": paths}


class Running:
    """A running supervisor."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], begun: float) -> None:
        self.begun = begun  # when it was started, in seconds since the epoch, as its events are
        self.folder = folder
        self.run_dir = folder / "run"
        self._log = folder / "log"
        self.process = process

    def _status(self) -> dict[str, Any]:
        with ControlConnection.open(str(self.run_dir)) as control:
            return whole_status(control, timeout=LIMIT)

    def worker(self, model: str, index: int = 0) -> dict[str, Any]:
        """One worker of the status report."""
        models = {entry["name"]: entry for entry in self._status()["models"]}
        worker: dict[str, Any] = models[model]["workers"][index]
        return worker

    def wait_ready(self) -> None:
        """Until every worker is ready, whatever becomes of the log."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(NotRunningError):
                models = self._status()["models"]
                if all(each["phase"] == "READY" for model in models for each in model["workers"]):
                    return
            time.sleep(0.01)
        raise SystemExit("the supervisor did not become ready")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of a name so far."""
        text = self._log.read_bytes()
        whole = text[: text.rfind(b"\n") + 1].splitlines()
        return [event for event in map(json.loads, whole) if event["event"] == name]

    def wait_event(self, name: str, count: int = 1) -> dict[str, Any]:
        """The count-th event of a name, waited for."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            found = self.events(name)
            if len(found) >= count:
                return found[count - 1]
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise SystemExit(f"no {name}:\n{self._log.read_text(errors='replace')}")


def cpu_seconds(pid: int) -> float:
    """CPU time that a process of one thread has used, by the scheduler's own account."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as account:
        return int(account.read().split()[0]) / 1e9


@contextmanager
def supervisor(models: str, settings: str = "", stdout: int | None = None) -> Iterator[Running]:
    """A supervisor with these model sections and further settings of its own, ready; stopped at the end.

    Its standard output is the file that `Running.events` reads, or `stdout`.
    """
    folder = Path(tempfile.mkdtemp(prefix="bench", dir="/tmp"))
    config = folder / "workers.ini"
    config.write_text(f"[supervisor]\nrun_dir = run\nlog_format = json\n{settings}{models}")
    command = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(config)]
    with (folder / "log").open("wb") as log:
        output = log.fileno() if stdout is None else stdout
        begun = time.time()
        process = subprocess.Popen(command, stdout=output, env=environment())
    try:
        running = Running(folder, process, begun)
        running.wait_ready()
        yield running
    finally:
        process.terminate()
        process.wait(LIMIT)
        shutil.rmtree(folder)


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """`median (least–most)`, to a tenth."""
    return f"{median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
