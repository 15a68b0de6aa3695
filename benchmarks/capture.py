"""What comes of a flood of output: from FIFO to JSON file, against a bare reader of the FIFO and against printing to a file.

The supervisor (`cpus`) and its log writer (which is put there) share one core, the printing worker has another, and the bare reader
runs where the supervisor does: what is measured is the path, not how many cores it may spread over. A rate counts from the first
print until the last line is in the file; the worker takes the first reading and we the second, looking at the file's end every
millisecond once the worker has answered. The monotonic clock is one for all processes.

One and the same worker process writes to its FIFO, to the bare reader's and so on, so that both sides of a ratio have one writer;
the sides take turns. After each flood the events in the file are counted: a line that is missing or doubled ends the benchmark.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    LIMIT,
    ROOT,
    Figure,
    Running,
    ask,
    cpu_seconds,
    environment,
    median,
    predict_frame,
    spread,
    supervisor,
)
from benchmarks.models.printer import service as printer

ROUNDS = 7
PRINTED = 300_000  # lines of a flood by print
WRITTEN = 500_000  # by blocks
WARM = 50_000
LOOK_EVERY = 0.001  # seconds
OCTETS = "application/octet-stream"
MODEL = ROOT / "benchmarks" / "models" / "printer"
ASKED_RATE = 300.0  # thousand lines a second
ASKED_RATIO = 0.6
ASKED_SLOWED = 15.0  # per cent
ASKED_GROWTH = 20.0  # MiB

PRINT = {"how": "print", "what": "plain", "count": PRINTED}
BLOCKS = {"how": "blocks", "what": "plain", "count": WRITTEN}
MIX = {"how": "blocks", "what": "mix", "count": WRITTEN}

Request = dict[str, Any]


@dataclass(frozen=True)
class Flood:
    """One flood: thousand lines a second until they were where they go, the seconds that writing took, and by process
    (`supervisor`, `log writer`, `worker`) the CPU seconds of a million lines.
    """

    rate: float
    writing: float
    cpu: dict[str, float]


class BareReader:
    """The process of `benchmarks.bare_reader`: at a FIFO of its own, or at the pipe that is the supervisor's standard output."""

    def __init__(self, cpu: int, path: str, ending: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_reader", str(cpu), path, ending],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert self.line() == "ready"

    def line(self) -> str:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the bare reader ended")
        return line.decode().strip()

    def ended(self) -> float:
        """When the last line came."""
        return float(self.line())

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


class Printer:
    """A supervisor with the printing model as its only worker."""

    def __init__(self, running: Running) -> None:
        self.log = running.folder / "events.json"
        self._socket = str(running.run_dir / "printer.0.sock")
        self._ours = {"supervisor": running.process.pid, **_log_writer(running.process.pid)}
        self._pids = {**self._ours, "worker": running.worker("printer")["pid"]}
        self._keep_to_core()
        self._at_first = {name: _memory(pid, "VmRSS") for name, pid in self._ours.items()}

    def _keep_to_core(self) -> None:
        """Put the log writer where the supervisor is: it is not there by itself, if it was started before `cpus` took effect."""
        core = os.sched_getaffinity(self._ours["supervisor"])
        if len(core) != 1 or core == os.sched_getaffinity(self._pids["worker"]):
            raise SystemExit(f"the supervisor is on {core}, not alone on a core")
        for pid in self._ours.values():
            os.sched_setaffinity(pid, core)

    def write(self, request: Request) -> tuple[float, float]:
        """Have the worker write; when it began and when it ended."""
        response = ask(self._socket, predict_frame(json.dumps(request).encode(), OCTETS))
        if response is None or response.code != 200:
            raise SystemExit(f"the printing worker failed: {response}")
        times = json.loads(response.items[0].body)
        return times["began"], times["ended"]

    def flood(self, request: Request, arrived: Callable[[], float]) -> Flood:
        """Have it written and wait until the last line `arrived`."""
        before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        began, ended = self.write(request)
        rate = request["count"] / (arrived() - began) / 1000
        cpu = {
            name: (cpu_seconds(pid) - before[name]) / request["count"] * 1e6
            for name, pid in self._pids.items()
        }
        return Flood(rate, ended - began, cpu)

    def logged(self, request: Request) -> Flood:
        """A flood into the log file, which is emptied before and counted afterwards."""
        os.truncate(self.log, 0)
        flood = self.flood(request, self._arrived)
        expected = printer.EVENTS[request["what"]] * request["count"] // printer.BLOCK
        found = self.log.read_bytes().count(b'"event":"worker.output"')
        if found != expected:
            raise SystemExit(f"{found} events in the log, not {expected}")
        return flood

    def _arrived(self) -> float:
        awaited = f'{printer.ENDING}"}}\n'.encode()
        deadline = time.monotonic() + LIMIT
        with self.log.open("rb", buffering=0) as file:
            while (now := time.monotonic()) < deadline:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - len(awaited)))
                if file.read() == awaited:
                    return now
                time.sleep(LOOK_EVERY)
        raise SystemExit("the last line never came")

    def memory(self) -> Figure:
        """Peak and growth since the start, of both processes."""
        peaks = {name: _memory(pid, "VmHWM") for name, pid in self._ours.items()}
        grown = {name: peak - self._at_first[name] for name, peak in peaks.items()}
        words = [f"{name} {peaks[name]:.1f}, grown by {grown[name]:.1f}" for name in peaks]
        holds = grown["supervisor"] < ASKED_GROWTH
        return Figure(
            "peak memory, MiB", "; ".join(words), f"supervisor grown by < {ASKED_GROWTH:.0f}", holds
        )


def _memory(pid: int, field: str) -> float:
    """A field of /proc/PID/status, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"process {pid} has no {field}")


def _log_writer(pid: int) -> dict[str, int]:
    """The supervisor's child that is its log writer, where there is one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    found = [int(child) for child in children if b"log/writer.py" in commands[child]]
    return {"log writer": found[0]} if found else {}


def _file_printer(*arguments: str) -> subprocess.Popen[str]:
    """The printing program without a supervisor."""
    program = [sys.executable, str(MODEL / "service.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(program, stdin=pipe, stderr=pipe, env=environment(), text=True)


def _print_to_file(process: subprocess.Popen[str], request: Request) -> Flood:
    """Its printing to a file; nothing has to arrive anywhere."""
    assert process.stdin is not None
    assert process.stderr is not None
    before = cpu_seconds(process.pid)
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    times = json.loads(process.stderr.readline())
    writing = times["ended"] - times["began"]
    cpu = (cpu_seconds(process.pid) - before) / request["count"] * 1e6
    return Flood(request["count"] / writing / 1000, writing, {"worker": cpu})


@dataclass(frozen=True)
class Sides:
    """Everything that takes turns. `fifo` and `file` are where the bare reader's and the bare programs' lines go; `bare` is
    line-buffered as a worker is, `buffered` as Python is where standard output is a file.
    """

    logging: Printer
    piping: Printer
    drain: BareReader
    reader: BareReader
    fifo: str
    bare: subprocess.Popen[str]
    buffered: subprocess.Popen[str]
    file: str

    def round(self, count: int | None = None) -> dict[str, Flood]:
        """Each side once, with its number of lines or with `count` of them."""

        def some(request: Request, **more: Any) -> Request:
            return {**request, "count": count or request["count"], **more}

        ours, fifo = self.logging, self.fifo
        return {
            "buffered": _print_to_file(self.buffered, some(PRINT, into=self.file)),
            "file": _print_to_file(self.bare, some(PRINT, into=self.file)),
            "print": ours.logged(some(PRINT)),
            "print, bare": ours.flood(some(PRINT, into=fifo), self.reader.ended),
            "blocks": ours.logged(some(BLOCKS)),
            "blocks, bare": ours.flood(some(BLOCKS, into=fifo), self.reader.ended),
            "mix": ours.logged(some(MIX)),
            "pipe": self.piping.flood(some(BLOCKS), self.drain.ended),
        }


@contextmanager
def _sides() -> Iterator[Sides]:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        raise SystemExit("two cores are needed: one for the supervisor, one for the worker")
    core, other = min(before), max(before)
    model = f"[model:printer]\npath = {MODEL}\nhandler = service\ncpus = {other}\n"
    settings = f"cpus = {core}\nlog_to = "
    with ExitStack() as stack:
        drain = BareReader(other, "-", f'{printer.ENDING}"}}\n')
        stack.callback(drain.close)
        assert drain.process.stdin is not None
        into_drain = drain.process.stdin.fileno()
        to_pipe = stack.enter_context(supervisor(model, f"{settings}stdout\n", into_drain))
        to_file = stack.enter_context(
            supervisor(model, f"{settings}none\nlog_file = events.json\n")
        )
        # Only now: a supervisor may use what it was started with
        os.sched_setaffinity(0, {other})
        stack.callback(os.sched_setaffinity, 0, before)
        fifo, file = to_file.folder / "fifo", to_file.folder / "printed"
        os.mkfifo(fifo)
        file.touch()
        reader = BareReader(core, str(fifo), f"{printer.ENDING}\n")
        stack.callback(reader.close)
        bare, buffered = _file_printer(), _file_printer("--buffered")
        stack.callback(bare.communicate)
        stack.callback(buffered.communicate)
        yield Sides(
            Printer(to_file), Printer(to_pipe), drain, reader, str(fifo), bare, buffered, str(file)
        )


def measure() -> list[Figure]:
    """All sides in turn; the report's lines."""
    with _sides() as sides:
        sides.round(WARM)
        rounds = [sides.round() for _ in range(ROUNDS)]
        memory = sides.logging.memory()
    floods = {name: [each[name] for each in rounds] for name in rounds[0]}
    return [*_rates(floods), *_ratios(floods), memory]


def _rates(floods: dict[str, list[Flood]]) -> list[Figure]:
    names = {
        "print": ("print → JSON file, 1,000 lines/s", 0.0),
        "blocks": ("large blocks → JSON file, 1,000 lines/s", ASKED_RATE),
        "mix": ("… of lines that say something of themselves", 0.0),
        "pipe": ("large blocks → JSON on standard output, a pipe, 1,000 lines/s", 0.0),
    }
    return [
        Figure(
            words,
            f"{spread(_rate(floods[name]))}; CPU s a million lines: {_cpu(floods[name])}",
            f"≥ {asked:.0f}" if asked else "the CPU a million lines",
            median(_rate(floods[name])) >= asked,
        )
        for name, (words, asked) in names.items()
    ]


def _rate(floods: list[Flood]) -> list[float]:
    return [flood.rate for flood in floods]


def _cpu(floods: list[Flood]) -> str:
    return ", ".join(
        f"{name} {median([flood.cpu[name] for flood in floods]):.2f}" for name in floods[0].cpu
    )


def _ratios(floods: dict[str, list[Flood]]) -> list[Figure]:
    """Round by round, so that what the machine does meanwhile changes both sides of a ratio."""

    def figure(name: str, asked: float) -> Figure:
        bare = floods[f"{name}, bare"]
        ratios = [ours.rate / limit.rate for ours, limit in zip(floods[name], bare, strict=True)]
        return Figure(
            f"… {name}, against a bare reader of the FIFO",
            f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) × {spread(_rate(bare))}",
            f"≥ {asked}" if asked else "the ratio",
            median(ratios) >= asked,
        )

    slowed = [
        100 * (ours.writing / limit.writing - 1)
        for ours, limit in zip(floods["print"], floods["file"], strict=True)
    ]
    beside = f"{spread(_rate(floods['file']))}; CPU s a million lines there: {_cpu(floods['file'])}"
    return [
        figure("print", ASKED_RATIO),
        figure("blocks", 0.0),
        Figure(
            "a worker that prints, slowed against printing to a file, %",
            f"{spread(slowed)} of {beside}",
            f"< {ASKED_SLOWED:.0f}",
            median(slowed) < ASKED_SLOWED,
        ),
        Figure(
            "print to a file through Python's own buffer, without a supervisor, 1,000 lines/s",
            spread(_rate(floods["buffered"])),
            "what a process may lose 8 KiB for",
            True,
        ),
    ]
