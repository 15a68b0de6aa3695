"""A user without any privilege runs it all; needs root to become that user, and skips otherwise."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from support.faults import crash, echo, ready, template_pid
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
