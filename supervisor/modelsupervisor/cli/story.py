"""The story of a worker in words: how it is, and of its last crash what happened, the evidence, and what was done. Pure.

It is what a person reads who is woken by a crash, so it begins with the facts that are certain and keeps guesses out. All of it
comes from the one status object; more lines of output than the last ones are in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from modelsupervisor.cli.render import (
    LastExit,
    Successor,
    WorkerStatus,
    duration_words,
    ending_words,
    exit_words,
    signal_words,
    size_words,
)
from modelsupervisor.cli.terminal import one_line, output_line

_PHASES = {
    "STARTING": "is not ready yet",
    "READY": "serves",
    "DRAINING": "finishes what it has in hand",
    "STOPPING": "is being ended",
}
_FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")


def story(name: str, worker: WorkerStatus, now: datetime, where: str = "") -> str:
    """The whole story of the worker `name` (MODEL/N), its lines joined by newlines; `now` has a time zone.

    `where` is how the supervisor was named on the command line, such as `-c FILE`, for the command that shows more.
    """
    return "\n".join(_paragraphs(name, worker, now, where))


def _paragraphs(name: str, worker: WorkerStatus, now: datetime, where: str) -> Iterator[str]:
    yield f"{name} is {worker.phase}: {_present(worker)}"
    yield _account(worker)
    if worker.drift:
        yield f"It is not as planned: {one_line('; and '.join(worker.drift))}."
    crash, last = worker.last_crash, worker.last_exit
    if last is not None and (crash is None or (last.generation or 0) > (crash.generation or 0)):
        yield f"Its last process, {_who(last)}, ended as asked: {exit_words(last)}."
    if crash is None:
        yield "It has not crashed in that time."
        return
    yield ""
    yield f"Last crash: {_moment(crash.at, now)}"
    yield "  What happened"
    yield f"    {_what_happened(crash)}"
    yield "  Evidence"
    yield from _evidence(crash)
    yield f"    more       {' '.join(filter(None, ('modelsupervisor logs', where, name)))}"
    yield "  What was done"
    yield f"    {_what_was_done(crash)} {_what_came_of_it(crash, worker, now)}"


# -- how it is --------------------------------------------------------------------------------------------------------


def _present(worker: WorkerStatus) -> str:
    if worker.pid is not None:
        does = _PHASES.get(worker.phase, "lives")
        return f"generation {worker.generation}, pid {worker.pid}, {does}."
    if worker.wanted != "up":
        return "it has no process and is to have none."
    if worker.phase == "FAILED":
        return (
            "it has no process, and connections are refused; it is tried again from time to time."
        )
    if worker.phase == "BACKING_OFF":
        return "it has no process now, and clients wait in the queue of its socket."
    if worker.phase == "EMPTY":
        return "it has no process and waits for the template of its model."
    return "its process is being born."


def _account(worker: WorkerStatus) -> str:
    answered = _count(worker.requests or 0, "request")
    restarted = _restarted(worker.restarts or 0)
    return f"Since the supervisor was started it answered {answered} and {restarted}."


# -- what happened ----------------------------------------------------------------------------------------------------


def _who(ended: LastExit) -> str:
    words = "a generation" if ended.generation is None else f"generation {ended.generation}"
    return words if ended.pid is None else f"{words} (pid {ended.pid})"


def _what_happened(crash: LastExit) -> str:
    who = _capital(_who(crash))
    reason = one_line(crash.reason or ending_words(crash))
    if crash.cause == "spawn_failed":
        return f"{who} was never born: {reason}."
    words = f"{who} ended: {reason}."
    if crash.uptime_s is not None:
        words += f" It was {_interval(crash.uptime_s)} old"
        words += f" and had answered {_count(crash.requests or 0, 'request')}."
    return words


def _evidence(crash: LastExit) -> Iterator[str]:
    yield f"    cause      {one_line(crash.cause) or 'unknown'}"
    if crash.signal is not None:
        signal = one_line(signal_words(crash.signal))
        # A cause of its own is given where a deadline of ours had passed.
        outside = crash.cause in ("signal", "oom_suspected") and signal in _FROM_OUTSIDE
        yield f"    signal     {signal}" + (
            ", which the supervisor did not send" if outside else ""
        )
    if crash.evidence:
        yield f"    memory     {one_line(crash.evidence)}"
    if crash.peak_rss_bytes is not None:
        yield f"    peak       {size_words(crash.peak_rss_bytes)} resident"
    if crash.code is not None:
        yield f"    exit code  {crash.code}"
    if crash.in_hand:
        yield f"    in hand    {', '.join(map(one_line, crash.in_hand))}"
    if crash.traceback:
        yield "    traceback"
        yield from _block(crash.traceback.rstrip("\n").split("\n"))
    if crash.last_lines:
        count = len(crash.last_lines)
        yield (
            "    its last line of output" if count == 1 else f"    its last {count} lines of output"
        )
        yield from _block(crash.last_lines)
    else:
        yield "    it had written no line of output"


def _block(lines: list[str]) -> Iterator[str]:
    return (f"      | {output_line(line)}".rstrip() for line in lines)


# -- what was done ----------------------------------------------------------------------------------------------------


def _what_was_done(crash: LastExit) -> str:
    failures = f"{_count(crash.failures, 'failure')} in a row"
    delay = "some time" if crash.retry_in_s is None else _interval(crash.retry_in_s)
    words = {
        "restart": "A successor was asked for at once.",
        "back_off": f"After {failures}, a successor was to come {delay} later.",
        "failed": f"After {failures} it was given up as FAILED, to be tried again {delay} later.",
        "wait_for_template": "A successor was to come as soon as the template of the model can fork.",
        "stop": "The supervisor's start had failed with it, and everything was stopped.",
        "none": "Nothing: it was to go.",
    }
    return words.get(crash.next, one_line(crash.next))


def _what_came_of_it(crash: LastExit, worker: WorkerStatus, now: datetime) -> str:
    if crash.successor is not None:
        return _succession(crash, crash.successor)
    if worker.pid is not None:
        return f"Generation {worker.generation}, pid {worker.pid}, is not ready yet."
    at = _parsed(crash.at)
    if (
        worker.phase in ("BACKING_OFF", "FAILED")
        and at is not None
        and crash.retry_in_s is not None
    ):
        left = crash.retry_in_s - (now - at).total_seconds()
        return f"That is due in {_interval(left)}." if left > 0 else "That is due now."
    return "There is no successor yet." if worker.wanted == "up" else "It is to have no successor."


def _succession(crash: LastExit, successor: Successor) -> str:
    words = f"Generation {successor.generation}, pid {successor.pid}, was ready"
    died, ready = _parsed(crash.at), _parsed(successor.at)
    if died is None or ready is None:
        return f"{words}."
    return f"{words} {_interval((ready - died).total_seconds())} after the crash."


# -- words ------------------------------------------------------------------------------------------------------------


def _parsed(at: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _moment(at: str, now: datetime) -> str:
    moment = _parsed(at)
    if moment is None:
        return one_line(at) or "at a time that is not known"
    ago = duration_words((now - moment).total_seconds())
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d} {moment:%Z}, {ago} ago"


def _interval(seconds: float) -> str:
    """A time of which milliseconds matter while there are few of them."""
    return f"{max(seconds, 0.0) * 1000:.0f} ms" if seconds < 1 else duration_words(seconds)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _restarted(number: int) -> str:
    often = {0: "was never restarted", 1: "was restarted once", 2: "was restarted twice"}
    return often.get(number, f"was restarted {number} times")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
