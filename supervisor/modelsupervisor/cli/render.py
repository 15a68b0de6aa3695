"""How a status looks on a terminal, and how quantities and exits are put into words.

The status is read tolerantly (what is missing is shown as "–"), because the supervisor that runs
may be of another version than the command that asks; `--json` passes on what it said, untouched.
rich is imported only where a table is drawn.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from modelsupervisor.cli.terminal import one_line
from modelsupervisor.control import FAILED
from modelsupervisor.errors import ControlError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NOTHING = "–"
_WIDE = 120  # columns; from here on the last exits are a column of their own
_STYLES = {
    "READY": "green",
    "STARTING": "cyan",
    "DRAINING": "yellow",
    "STOPPING": "yellow",
    "BACKING_OFF": "magenta",
    "FAILED": "bold red",
    "EMPTY": "dim",
}


class Successor(msgspec.Struct, frozen=True):
    """The first process that was READY after a crash; `at` is when."""

    generation: int | None = None
    pid: int | None = None
    at: str = ""


class LastExit(msgspec.Struct, frozen=True):
    """How a process of a slot ended, and what came of it. `uptime_s` and `retry_in_s` in seconds; `at` in ISO 8601."""

    cause: str = ""
    reason: str = ""
    code: int | None = None
    signal: int | str | None = None
    uptime_s: float | None = None
    generation: int | None = None
    pid: int | None = None
    requests: int | None = None
    in_hand: list[str] = []
    next: str = ""
    retry_in_s: float | None = None
    failures: int = 0
    last_lines: list[str] = []
    at: str = ""
    traceback: str | None = None
    evidence: str | None = None
    peak_rss_bytes: int | None = None
    successor: Successor | None = None


class WorkerStatus(msgspec.Struct, frozen=True):
    """One slot of a status, as far as it is shown."""

    index: int
    wanted: str = "up"
    phase: str = ""
    pid: int | None = None
    generation: int | None = None
    cpus: list[int] | None = None
    threads: int | None = None
    gpu: int | None = None
    rss_bytes: int | None = None
    pss_bytes: int | None = None
    requests: int | None = None
    restarts: int | None = None
    drift: list[str] | None = None
    last_exit: LastExit | None = None
    last_crash: LastExit | None = None


class ModelStatus(msgspec.Struct, frozen=True):
    """One model of a status."""

    name: str
    workers: list[WorkerStatus] = []


class SupervisorStatus(msgspec.Struct, frozen=True):
    """The supervisor itself."""

    pid: int | None = None
    version: str = ""
    uptime_s: float | None = None
    config: str = ""
    run_dir: str = ""


class StreamTally(msgspec.Struct, frozen=True):
    """What became of the events of one stream in one sink."""

    dropped: int = 0


class SinkStatus(msgspec.Struct, frozen=True):
    """One sink of the log."""

    name: str
    path: str | None = None
    state: str = "open"
    reason: str | None = None
    streams: dict[str, StreamTally] = {}


class LogStatus(msgspec.Struct, frozen=True):
    """The log."""

    sinks: list[SinkStatus] = []


class Status(msgspec.Struct, frozen=True):
    """The result of the command `status`, as far as it is shown."""

    supervisor: SupervisorStatus
    models: list[ModelStatus] = []
    log: LogStatus = LogStatus()


def read_status(result: object) -> Status:
    """The typed status; ControlError(failed) when the supervisor's answer has another shape."""
    try:
        return msgspec.convert(result, Status)
    except msgspec.ValidationError as error:
        raise ControlError(
            FAILED, f"the supervisor's status is not understood here: {error}"
        ) from None


Named = tuple[str, WorkerStatus]
"""A worker with its name, MODEL/N."""


def status_view(status: Status, width: int) -> RenderableType:
    """The whole status for a terminal of `width` columns.

    One row a worker, in the supervisor's order; of very many an overview. Where the table has no room for how the previous
    processes ended, that follows below it: a terminal of 80 columns shows all numbers uncut. Below
    it too: every sink of the log that is in trouble, or misses events, and every worker that is not
    as planned.
    """
    from rich.console import Group
    from rich.text import Text

    from modelsupervisor.cli.overview import MOST_ROWS, overview

    workers = [
        (f"{model.name}/{each.index}", each) for model in status.models for each in model.workers
    ]
    headline = Text(headline_words(status.supervisor), style="bold")
    notes = [Text(words, style="yellow") for words in map(sink_words, status.log.sinks) if words]
    notes += [
        Text(one_line(f"{name} is not as planned: {difference}"), style="yellow")
        for name, worker in workers
        for difference in worker.drift or ()
    ]
    wide = width >= _WIDE
    if len(workers) > MOST_ROWS:
        parts = overview(status.models, workers, wide=wide)
        return Group(headline, "", *parts, *([""] if notes else []), *notes)
    if not wide:
        notes[:0] = [
            Text(f"last exit of {name}: {exit_words(worker.last_exit)}")
            for name, worker in workers
            if worker.last_exit is not None
        ]
    table = worker_table(workers, with_exits=wide)
    return Group(headline, "", table, *([""] if notes else []), *notes)


def worker_table(workers: Sequence[Named], *, with_exits: bool) -> Table:
    """One row a worker."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2 if with_exits else 1, 0, 0))
    table.add_column("worker", overflow="fold")  # the one that gives way to the others
    table.add_column("phase", no_wrap=True)
    with_gpus = any(worker.gpu is not None for _, worker in workers)
    columns = ["pid", "gen", "cpus", "thr", "rss", "pss", "requests", "restarts"]
    for column in [*columns, *(["gpu"] if with_gpus else [])]:
        table.add_column(column, justify="right", no_wrap=True)
    if with_exits:
        table.add_column("last exit")
    for name, worker in workers:
        cells = _cells(worker)
        if with_gpus:
            cells.append(shown(worker.gpu))
        if with_exits:
            cells.append(exit_words(worker.last_exit))
        # Text, not str: rich would take brackets in a message for its own markup.
        phase = Text(phase_words(worker), style=_STYLES.get(worker.phase, ""))
        table.add_row(Text(name), phase, *(Text(cell) for cell in cells))
    return table


def _cells(worker: WorkerStatus) -> list[str]:
    return [
        shown(worker.pid),
        shown(worker.generation),
        cpu_words(worker.cpus),
        shown(worker.threads),
        size_words(worker.rss_bytes),
        size_words(worker.pss_bytes),
        shown(worker.requests),
        shown(worker.restarts),
    ]


def headline_words(supervisor: SupervisorStatus) -> str:
    """The supervisor in one line."""
    return one_line(
        f"modelsupervisor {supervisor.version}, pid {shown(supervisor.pid)}, "
        f"up {duration_words(supervisor.uptime_s)}, {supervisor.config}, in {supervisor.run_dir}"
    )


def phase_words(worker: WorkerStatus) -> str:
    """The phase, and that a slot without a process is meant to be so: "EMPTY down"."""
    return f"{worker.phase} {worker.wanted}" if worker.wanted != "up" else worker.phase


def sink_words(sink: SinkStatus) -> str:
    """What is wrong with a sink: "log: stdout is stalled (it does not take what is written), 120
    events dropped"; empty where nothing is and nothing was."""
    dropped = sum(tally.dropped for tally in sink.streams.values())
    if sink.state == "open" and not dropped:
        return ""
    words = f"log: {sink.name}" + (f" {sink.path}" if sink.path else "") + f" is {sink.state}"
    if sink.reason:
        words += f" ({sink.reason})"
    if dropped:
        words += f", {dropped} event{'s' if dropped > 1 else ''} dropped"
    return one_line(words)


def exit_words(last: LastExit | None) -> str:
    """How the previous process ended: "killed by SIGKILL with 1 request in hand, after 12 s"."""
    if last is None:
        return NOTHING
    words = one_line(last.reason or ending_words(last))
    if last.uptime_s is not None:
        words += f", after {duration_words(last.uptime_s)}"
    return words


def ending_words(last: LastExit) -> str:
    """What the kernel said of an end."""
    if last.signal is not None:
        return f"killed by {signal_words(last.signal)}"
    if last.code is not None:
        return f"exit code {last.code}"
    return last.cause or "unknown"


def signal_words(number: int | str) -> str:
    """A signal by its name."""
    if isinstance(number, str):
        return number
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal between SIGRTMIN and SIGRTMAX has no name of its own
        return f"signal {number}"


def cpu_words(cpus: list[int] | None) -> str:
    """CPU numbers with runs as ranges: "0-3,8"; a worker that is not pinned has none."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus or []):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or NOTHING


def size_words(count: int | None) -> str:
    """Bytes with a binary unit and about three figures: "41.6 MiB"."""
    if count is None:
        return NOTHING
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def duration_words(seconds: float | None) -> str:
    """Seconds in at most two units: "0.4 s", "12 s", "3 min 4 s", "2 h 5 min", "3 d 4 h"."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def shown(value: int | str | None) -> str:
    return NOTHING if value is None else str(value)
