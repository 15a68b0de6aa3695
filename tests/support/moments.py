"""A supervisor's start as a stretch of time: when it has the lock, and a signal at an exact moment after that."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from support.instance import LIMIT, Instance


def lock_text(instance: Instance) -> list[str]:
    """The lines of the lock's text, as far as it was written."""
    try:
        return (instance.run_dir / "lock").read_text().splitlines()
    except FileNotFoundError:
        return []


def wait_locked(instance: Instance) -> None:
    """Return at the moment at which the supervisor has the lock."""
    deadline = time.monotonic() + LIMIT
    pid = str(instance.pid)
    while lock_text(instance)[:1] != [pid]:
        assert time.monotonic() < deadline, instance.story()
        time.sleep(0.0003)


def time_to_ready(instance: Instance) -> float:
    """Seconds from the lock to `supervisor.ready`, undisturbed; the instance runs afterwards."""
    instance.launch()
    wait_locked(instance)
    locked = time.monotonic()
    instance.wait_event("supervisor.ready")
    return time.monotonic() - locked


def stop_at(instance: Instance, moment: float) -> None:
    """Start, TERM so many seconds after the lock, and hold that the end is in order and leaves nothing."""
    instance.launch()
    wait_locked(instance)
    time.sleep(moment)  # not a wait for anything: the moment is what is tested
    instance.signal(signal.SIGTERM)
    try:
        code = instance.wait(LIMIT)
        assert code == 0, f"exit code {code}"
        instance.check_nothing_left()
        assert instance.events("supervisor.stopped"), "no last word"
    except AssertionError as error:
        raise AssertionError(
            f"TERM {moment * 1000:.1f} ms after the lock: {error}\n{instance.story()}"
        ) from None


def stop_at_each(instances: Sequence[Instance], moments: Sequence[float], together: int) -> None:
    """`stop_at` for each pair, some of them side by side."""
    with ThreadPoolExecutor(together) as pool:
        for outcome in [pool.submit(stop_at, *pair) for pair in zip(instances, moments)]:
            outcome.result()
