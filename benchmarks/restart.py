"""From kill -9 of the only worker to its successor's first answer, against a bare double fork and first inference.

The client connects right after the kill, so that it waits in the socket's backlog, and asks again where it was already accepted by
the victim. Between two kills lies a pause: a crash is rare; the template uses the time after a birth to prepare for the next.

The same with one spare, in turn with the others: a worker that was born and made ready before, and is handed the slot. Each kill
waits until the spare of the one before has been replaced.

Both sides compute with one thread, as each worker of conf/workers.ini does on two cores. With two, the time is that of OpenMP
starting its team in the new process, which varies from run to run by more than everything else together.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

from modelworker.threads import thread_environment

from benchmarks.harness import (
    ROOT,
    Figure,
    Running,
    ask,
    environment,
    median,
    predict_frame,
    spread,
    supervisor,
)

ROUNDS = 5
KILLS = 6  # a round
PAUSE = 0.3  # seconds
THREADS = 1
ASKED_MS = {0: 20.0, 1: 8.0}  # by spares
ASKED_RATIO = 1.4
MODEL = ROOT / "models" / "digits"
SAMPLE = MODEL / "samples" / "7.png"


class _Bare:
    """The bare process, asked once at a time."""

    def __init__(self) -> None:
        environ = environment()
        environ.update(thread_environment(THREADS, False, environ))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bare_fork", str(MODEL), str(SAMPLE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            text=True,
        )
        while self._line() != "ready":
            pass  # what MXNet prints

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the bare process ended")
        return line.strip()

    def once(self) -> tuple[float, float, float]:
        """Milliseconds: in all, both forks, the inference."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        total, forks, inference = self._line().split()
        return float(total), float(forks), float(inference)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _kill_once(running: Running, frame: bytes) -> tuple[float, float]:
    """Milliseconds: kill to answer, and of that the birth, from its request to ready."""
    path = str(running.run_dir / "digits.0.sock")
    assert ask(path, frame) is not None
    time.sleep(PAUSE)
    births = len(running.events("worker.ready"))
    pidfd = os.pidfd_open(running.worker("digits")["pid"])
    begun = time.perf_counter()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    while ask(path, frame) is None:
        pass
    answered = time.perf_counter()
    os.close(pidfd)
    born = running.wait_event("worker.ready", births + 1)
    return 1000 * (answered - begun), 1000 * born["start_s"]


def _exit_once(running: Running, frame: bytes) -> float:
    """Milliseconds from kill -9 until the kernel says that the victim is gone."""
    ask(str(running.run_dir / "digits.0.sock"), frame)
    births = len(running.events("worker.ready"))
    pidfd = os.pidfd_open(running.worker("digits")["pid"])
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    begun = time.perf_counter()
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poll.poll()
    took = time.perf_counter() - begun
    os.close(pidfd)
    running.wait_event("worker.ready", births + 1)
    time.sleep(PAUSE)
    return 1000 * took


def _section(spares: int) -> str:
    settings = f"path = {MODEL}\nhandler = handler.py\nthreads = {THREADS}\n"
    return f"[model:digits]\n{settings}spares = {spares}\n"


def _kill_with_spare(running: Running, frame: bytes) -> tuple[float, float]:
    """As `_kill_once`, begun when the spare is parked."""
    running.wait_event("spare.ready", 1 + len(running.events("worker.exited")))
    return _kill_once(running, frame)


def measure() -> list[Figure]:
    """All sides in turn; the report's lines."""
    frame = predict_frame(SAMPLE.read_bytes(), "image/png")
    bare = _Bare()
    ours: list[tuple[float, float]] = []
    spared: list[tuple[float, float]] = []
    limit: list[tuple[float, float, float]] = []
    exits: list[float] = []
    with supervisor(_section(0)) as running, supervisor(_section(1)) as having:
        for _ in range(ROUNDS):
            limit += [bare.once() for _ in range(KILLS)]
            ours += [_kill_once(running, frame) for _ in range(KILLS)]
            exits.append(_exit_once(running, frame))
            spared += [_kill_with_spare(having, frame) for _ in range(KILLS)]
    bare.close()
    return [
        _kill_figure("", 0, ours, exits),
        _limit_figure(ours, limit),
        _kill_figure(" with one spare", 1, spared, exits),
    ]


def _kill_figure(
    what: str, spares: int, kills: list[tuple[float, float]], exits: list[float]
) -> Figure:
    totals = [one[0] for one in kills]
    gone, birth = median(exits), median([one[1] for one in kills])
    where = (
        f"victim's exit {gone:.1f}, {'handing over' if spares else 'birth'} {birth:.1f}, "
        f"rest (first inference, client) {median(totals) - gone - birth:.1f}"
    )
    return Figure(
        f"kill -9 of the only digits worker{what} → first answer, ms",
        f"{spread(totals)}: {where}",
        f"≤ {ASKED_MS[spares]:.0f}",
        median(totals) <= ASKED_MS[spares],
    )


def _limit_figure(
    kills: list[tuple[float, float]], limit: list[tuple[float, float, float]]
) -> Figure:
    bares = [one[0] for one in limit]
    ratio = median([one[0] for one in kills]) / median(bares)
    forks, inference = median([one[1] for one in limit]), median([one[2] for one in limit])
    return Figure(
        "… against a bare double fork and first inference",
        f"{ratio:.2f} × {spread(bares)} (forks {forks:.1f}, inference {inference:.1f})",
        f"≤ {ASKED_RATIO}",
        ratio <= ASKED_RATIO,
    )
