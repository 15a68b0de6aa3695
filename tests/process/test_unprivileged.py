"""A user without any privilege runs it all; needs root to become that user, and skips otherwise."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from support.faults import ask, crash, echo, facts, ready, template_pid
from support.instance import Instance, marked_processes, wait_for
from support.unprivileged import NOBODY, launch_as_nobody

Make = Callable[..., Instance]


def test_an_unprivileged_user_runs_it_all(instance: Make) -> None:
    """As nobody: start, predict, kill, predict again, stop; worker and template are nobody's and end with the supervisor."""
    made = instance("worker.exited")
    made.write(made.model(workers=2))
    launch_as_nobody(made).wait_event("supervisor.ready")
    for pid in (made.pid, template_pid(made), made.worker()["pid"]):
        assert os.stat(f"/proc/{pid}").st_uid == NOBODY
    assert echo(made) == b"are you there"
    crash(made, "kill")
    ready(made, 2)
    assert echo(made) == b"are you there"
    assert made.stop() == 0


def test_an_unprivileged_users_workers_die_with_it(instance: Make) -> None:
    """The death signal holds for a user without capabilities too."""
    made = instance()
    made.write(made.model())
    launch_as_nobody(made).wait_event("supervisor.ready")
    made.signal(signal.SIGKILL)
    made.wait()
    wait_for(lambda: not marked_processes(made.mark), "everything to be gone", 1.0)
    launch_as_nobody(made).wait_event("supervisor.ready")
    assert made.stop() == 0


def test_an_unprivileged_user_has_placement_logs_and_restarts(instance: Make) -> None:
    """Workers are pinned where the plan says, their lines are in the log, their stories told, and both restarts replace them."""
    made = instance("worker.exited")
    made.write(made.model(workers=2, cpus="auto"))
    launch_as_nobody(made).wait_event("supervisor.ready")
    for index in (0, 1):
        told = facts(made, index=index)
        assert told["affinity"][str(told["pid"])] == made.worker(index=index)["cpus"]
        assert told["status"]["Uid"].split() == [str(NOBODY)] * 4
    ask(made, "print", text="from nobody", lines=1)
    made.wait_event("worker.output", line="from nobody 0")
    config = str(made.config)
    assert "from nobody 0" in made.cli("logs", "echo/0", "-c", config).stdout
    crash(made, "segfault")
    ready(made, 2)
    assert "SIGSEGV" in made.cli("status", "echo/0", "-c", config).stdout
    for target, generations in (("echo/1", [2, 2]), ("echo", [3, 3])):
        assert made.cli("restart", target, "-c", config).returncode == 0
        found = [worker["generation"] for worker in made.status()["models"][0]["workers"]]
        assert found == generations
    assert made.worker()["pss_bytes"] is not None
    assert made.cli("stop", "-c", config).returncode == 0
    assert made.wait() == 0


MANY = 64
SOFT_DESCRIPTORS = 1024  # what a login has


def test_64_workers_within_a_users_limits(instance: Make) -> None:
    """1,024 descriptors and the user's budget of pipe buffers: all READY, FIFOs of one size, answers at once, a whole stop."""
    made = instance()
    made.write(made.model(workers=MANY, threads=1))
    launch_as_nobody(made, {resource.RLIMIT_NOFILE: SOFT_DESCRIPTORS}).wait_event(
        "supervisor.ready"
    )
    limits = Path(f"/proc/{made.pid}/limits").read_text().splitlines()
    (opened,) = (line.split()[3:5] for line in limits if line.startswith("Max open files"))
    assert opened == [str(SOFT_DESCRIPTORS)] * 2
    assert len(os.listdir(f"/proc/{made.pid}/fd")) < SOFT_DESCRIPTORS / 2
    sizes = set()
    for index in range(MANY):
        assert echo(made, b"%d" % index, index) == b"%d" % index
        for name in ("stdout", "stderr"):
            fifo = os.open(made.run_dir / f"echo.{index}.{name}", os.O_RDONLY | os.O_NONBLOCK)
            sizes.add(fcntl.fcntl(fifo, fcntl.F_GETPIPE_SZ))  # type: ignore[attr-defined]
            os.close(fifo)
    assert len(sizes) == 1 and min(sizes) >= 64 * 1024
    begun = time.monotonic()
    assert len(made.status()["models"][0]["workers"]) == MANY
    assert time.monotonic() - begun < 0.5
    assert made.stop() == 0


def test_a_user_with_too_few_processes_is_told_before_the_start(instance: Make) -> None:
    """RLIMIT_NPROC below what is needed: one error with numbers and what helps, exit code 1, nothing made."""
    made = instance()
    made.write(made.model(workers=MANY, threads=1))
    launch_as_nobody(made, {resource.RLIMIT_NPROC: 60})
    assert made.wait() == 1
    said = (made.folder / "stderr").read_text()
    assert "RLIMIT_NPROC: 67 processes needed" in said
    assert "ulimit -u" in said and "nothing was started" in said
    assert not made.run_dir.exists()
