"""What the plan of CPUs and threads is worth: a forked worker against an unforked one, and the default plan against none.

Forked against unforked: one worker with two threads, and a plain process with the same environment on the same CPUs, each asked in
turn; the handler itself says how long the network took. MXNet's own handler for forks sets a child to one thread, so that a worker
which forgot to set its count would be half as fast here.

The plans: as many requests a second as `workers` busy workers answer together, each with a client process of its own that asks in a
closed loop. With the default plan the workers are a supervisor's; without one they are plain processes, unforked and unpinned, with
OMP_NUM_THREADS unset, 1, or the number of cores and nothing else set. The four take turns; those whose turn it is not are idle.
Every worker is in a session of its own, as a supervisor's are: the kernel schedules by session (autogroup), and on a busy machine a
worker that shares its client's was three to six times as fast as one that does not, whatever its threads [measured].

How threads wait: one worker with all cores, as planned, and as it would be if its threads waited otherwise. The spinning ones are
best where nothing else runs, and by far the worst where something does: run this on a busy machine as well as on a quiet one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelworker.threads import thread_environment

from benchmarks.harness import (
    ROOT,
    Figure,
    ask,
    environment,
    median,
    predict_frame,
    spread,
    supervisor,
)

WORKERS = (1, 2, 4)
ROUNDS = 5
SECONDS = 0.4  # of one run
FORKED_ROUNDS = 7
FORKED_REQUESTS = 15
FORKED_THREADS = 2
ASKED_PLAN = 0.9  # of the best of its row
ASKED_FORKED = 1.1
BENCHMARKS = ROOT / "benchmarks" / "models"
WAITS = {
    "as planned, as libgomp does": "",
    "1,000 turns of spinning": "env.GOMP_SPINCOUNT = 1000\n",
    "no spinning": "env.OMP_WAIT_POLICY = PASSIVE\n",
    "one thread": "threads = 1\n",
}
PLANNED = "default plan"
UNPLANNED = ("OMP unset", "OMP = 1", "OMP = cores")
# What libraries that compute look at; a developer's own settings are not what is measured.
THREADING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "MXNET_")


@dataclass(frozen=True)
class Kind:
    """A model, and one request of it."""

    name: str
    folder: Path
    handler: str
    body: bytes
    content_type: str


def _kinds() -> tuple[Kind, ...]:
    digits = ROOT / "models" / "digits"
    picture = (digits / "samples" / "7.png").read_bytes()
    nothing = (b"x", "text/plain")
    return (
        Kind("digits", digits, "handler.py", picture, "image/png"),
        Kind("convolution", BENCHMARKS / "convolution", "service.py", *nothing),
        Kind("tiny", BENCHMARKS / "tiny", "service.py", *nothing),
    )


def _unset() -> dict[str, str]:
    """The environment without anything about threads."""
    return {n: text for n, text in environment().items() if not n.startswith(THREADING)}


@contextmanager
def _unthreaded() -> Iterator[None]:
    """Nothing about threads in this process's own environment, which supervisors inherit."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(THREADING)}
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def _plain(kind: Kind, environ: dict[str, str], count: int, cpus: str = "") -> Iterator[list[str]]:
    """So many plain workers; the addresses of their sockets."""
    program = [sys.executable, "-m", "benchmarks.plain_worker", str(kind.folder), kind.handler]
    with tempfile.TemporaryDirectory(prefix="bench", dir="/tmp") as folder, ExitStack() as ends:
        addresses = [f"{folder}/{index}.sock" for index in range(count)]
        workers = [
            _started(ends, [*program, address, cpus], environ, session=True)
            for address in addresses
        ]
        for worker in workers:
            _await_ready(worker)
        yield addresses


def _started(
    ends: ExitStack, command: Sequence[str], environ: dict[str, str], *, session: bool
) -> subprocess.Popen[bytes]:
    """A process that ends with its standard input, at the end of the stack."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environ,
        bufsize=0,
        start_new_session=session,
    )
    ends.callback(process.wait)
    assert process.stdin is not None
    assert process.stdout is not None
    ends.callback(process.stdout.close)
    ends.callback(process.stdin.close)
    return process


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    while (line := process.stdout.readline()) != b"ready\n":
        if not line:
            raise SystemExit(f"{process.args!r} ended")


@contextmanager
def _section(kind: Kind, workers: int, keys: str = "") -> Iterator[list[str]]:
    """A supervisor's workers, with further keys of their section; the addresses of their sockets."""
    settings = f"path = {kind.folder}\nhandler = {kind.handler}\n"
    with supervisor(f"[model:w]\n{settings}workers = {workers}\n{keys}") as running:
        yield [str(running.run_dir / f"w.{index}.sock") for index in range(workers)]


# -- the plans ----------------------------------------------------------------------------------------------------------


class _Load:
    """Clients, one for each of these workers."""

    def __init__(self, ends: ExitStack, addresses: Sequence[str], frame: bytes) -> None:
        command = [sys.executable, "-m", "benchmarks.closed_loop"]
        self._clients = [
            _started(ends, [*command, each], _unset(), session=False) for each in addresses
        ]
        for client in self._clients:
            assert client.stdin is not None
            client.stdin.write(b"%d\n%b" % (len(frame), frame))
        for client in self._clients:
            _await_ready(client)

    def rate(self, seconds: float) -> float:
        """Requests a second of all together."""
        for client in self._clients:
            assert client.stdin is not None
            client.stdin.write(b"%f\n" % seconds)
        rates = []
        for client in self._clients:
            assert client.stdout is not None
            rates.append(float(client.stdout.readline()))
        return sum(rates)


def _compare(kind: Kind) -> list[Figure]:
    """A row for each number of workers."""
    cores = str(len(os.sched_getaffinity(0)))
    counts = {"OMP = 1": "1", "OMP = cores": cores}
    frame = predict_frame(kind.body, kind.content_type)
    figures = []
    with ExitStack() as ends:
        plain = {}
        for name in UNPLANNED:
            own = {"OMP_NUM_THREADS": counts[name]} if name in counts else {}
            plain[name] = ends.enter_context(_plain(kind, {**_unset(), **own}, max(WORKERS)))
        for workers in WORKERS:
            with ExitStack() as row:
                planned = row.enter_context(_section(kind, workers))
                loads = {PLANNED: _Load(row, planned, frame)}
                for name, addresses in plain.items():
                    loads[name] = _Load(row, addresses[:workers], frame)
                figures.append(_row(kind, workers, loads))
    return figures


def _in_turn(loads: dict[str, _Load]) -> dict[str, float]:
    """Requests a second of each, the median of its rounds."""
    rates: dict[str, list[float]] = {name: [] for name in loads}
    for load in loads.values():
        load.rate(SECONDS / 2)
    for _ in range(ROUNDS):
        for name, load in loads.items():
            rates[name].append(load.rate(SECONDS))
    return {name: median(each) for name, each in rates.items()}


def _row(kind: Kind, workers: int, loads: dict[str, _Load]) -> Figure:
    medians = _in_turn(loads)
    ratio = medians[PLANNED] / max(medians.values())
    others = ", ".join(f"{name} {medians[name]:.0f}" for name in UNPLANNED)
    return Figure(
        f"{kind.name}, {workers} busy worker{'' if workers == 1 else 's'}: requests/s",
        f"{PLANNED} {medians[PLANNED]:.0f}; {others}; {ratio:.2f} of the best",
        f"≥ {ASKED_PLAN}",
        ratio >= ASKED_PLAN,
    )


def _waits(kind: Kind) -> Figure:
    frame = predict_frame(kind.body, kind.content_type)
    with ExitStack() as ends:
        loads = {
            name: _Load(ends, ends.enter_context(_section(kind, 1, keys)), frame)
            for name, keys in WAITS.items()
        }
        medians = _in_turn(loads)
    return Figure(
        f"{kind.name}, one worker with all cores, by how its threads wait: requests/s",
        ", ".join(f"{name} {rate:.0f}" for name, rate in medians.items()),
        "",
        True,
    )


# -- forked against unforked --------------------------------------------------------------------------------------------


def _forked(kind: Kind) -> Figure:
    threads = FORKED_THREADS
    cpus = sorted(os.sched_getaffinity(0))
    environ = _unset()
    environ.update(thread_environment(threads, False, environ))
    frame = predict_frame(kind.body, kind.content_type)
    forked: list[float] = []
    unforked: list[float] = []
    with ExitStack() as ends:
        listed = ",".join(map(str, cpus))
        (plain,) = ends.enter_context(_plain(kind, environ, 1, listed))
        (ours,) = ends.enter_context(_section(kind, 1, f"threads = {threads}\n"))
        for address in (plain, ours):
            _own_times(address, frame)
        for _ in range(FORKED_ROUNDS):
            unforked += _own_times(plain, frame)
            forked += _own_times(ours, frame)
    ratio = median(forked) / median(unforked)
    return Figure(
        f"{kind.name}, a forked worker with {threads} threads, ms an inference",
        f"{spread(forked)}, {ratio:.2f} × an unforked one's {spread(unforked)}",
        f"≤ {ASKED_FORKED} ×",
        ratio <= ASKED_FORKED,
    )


def _own_times(address: str, frame: bytes) -> list[float]:
    """Milliseconds of each inference, as the handler measured them."""
    answers = [ask(address, frame) for _ in range(FORKED_REQUESTS)]
    return [float(answer.items[0].body) for answer in answers if answer is not None]


def measure() -> list[Figure]:
    """All comparisons."""
    kinds = _kinds()
    with _unthreaded():
        convolution = next(kind for kind in kinds if kind.name == "convolution")
        figures = [_forked(convolution)]
        for kind in kinds:
            figures += _compare(kind)
        figures += [_waits(kind) for kind in kinds]
    return figures
