"""The words for a worker's end: one cause, one sentence, and the facts behind it. Pure but for the types it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from modelworker.scoreboard import Reading

from modelsupervisor.core.actions import Next, ReportTemplateExit, ReportWorkerExit
from modelsupervisor.core.states import Blame
from modelsupervisor.runtime.evidence import Evidence, Remains
from modelsupervisor.runtime.messages import Message, text_or_none
from modelsupervisor.runtime.processes import ExitStatus


@dataclass(frozen=True)
class Corpse:
    """What is known of a generation that is gone: `uptime` in seconds since it was asked for, `complaint` its own words where it
    could not start, `helpers` the number of processes of its session that were killed with it.
    """

    status: ExitStatus
    uptime: float
    reading: Reading
    complaint: Message | None = None
    last_words: tuple[bytes, ...] = ()
    helpers: int = 0
    remains: Remains = field(default_factory=Remains)


def complained_cause(complaint: Message, cause: str) -> str:
    """The cause where a process said itself why it cannot go on: `cause`, or that it lacked memory."""
    return "memory" if complaint.get("memory") is True else cause


def cause_of(action: ReportWorkerExit, corpse: Corpse, evidence: Evidence) -> str:
    """One word for why a worker is gone.

    stopped (as asked, by its own exit or, past its deadline, by a signal of ours) · recycled (the same, because it was worn) ·
    start_timeout · hung · start_failed, memory (it said so itself) · spawn_failed (there never was a process) · oom_suspected (a
    SIGKILL with evidence) · signal · exit
    """
    if not action.spawned:
        return "spawn_failed"
    if action.blame is not None:
        return action.blame.value
    if corpse.complaint is not None:
        return complained_cause(corpse.complaint, "start_failed")
    if action.asked:
        return "stopped" if action.worn is None else "recycled"
    return evidence.cause or ("signal" if corpse.status.signal is not None else "exit")


def template_cause(
    action: ReportTemplateExit,
    status: ExitStatus | None,
    complaint: Message | None,
    evidence: Evidence,
) -> str:
    """The same for a template; without a `status` there never was a process."""
    if action.blame is not None:
        return action.blame.value
    if action.asked:
        return "stopped"
    if complaint is not None:
        return complained_cause(complaint, "load_failed")
    if status is None:
        return "spawn_failed"
    return evidence.cause or ("signal" if status.signal is not None else "exit")


def reason_of(action: ReportWorkerExit, corpse: Corpse) -> str:
    """The sentence that whoever is woken reads first."""
    reason = action.reason
    if action.worn is not None:
        reason = f"replaced for its {action.worn.value}; {reason}"
    complaint = corpse.complaint
    if complaint is not None:
        reason = f"could not start: {complaint.get('error')}"
    elif action.blame is Blame.START_TIMEOUT:
        reason = "not ready within startup_timeout; " + reason
    elif action.blame is Blame.HUNG and action.watch is not None:
        was = "busy" if action.watch.busy else "deaf"
        stuck = action.watch.stuck
        reason = f"{was} for {stuck:.1f} s, longer than response_timeout allows; {reason}"
    if corpse.reading.in_hand:
        count = corpse.reading.in_hand
        reason += f" with {count} request{'s' if count > 1 else ''} in hand"
    elif not action.asked and action.spawned:
        reason += " while idle" if corpse.complaint is None else ""
    if corpse.helpers:
        count = corpse.helpers
        reason += f"; {count} helper process{'es' if count > 1 else ''} killed with it"
    return reason


def worker_exit_fields(
    action: ReportWorkerExit, corpse: Corpse, last_lines: list[str], evidence: Evidence
) -> tuple[str, str, dict[str, Any]]:
    """Level, event name and facts of the one event; `last_lines` may be filled later."""
    status, reading = corpse.status, corpse.reading
    complaint = corpse.complaint
    facts: dict[str, Any] = {
        "cause": cause_of(action, corpse, evidence),
        "reason": reason_of(action, corpse),
        "code": status.code,
        "signal": status.signal_name,
        "uptime_s": round(corpse.uptime, 3),
        "requests": reading.requests,
        "in_hand": list(reading.ids),
        "next": action.next.value,
        "retry_in_s": None if action.delay is None else round(action.delay, 3),
        "failures": action.failures,
        "last_lines": last_lines,
        "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    }
    if action.spawned:
        facts["peak_rss_bytes"] = corpse.remains.peak
    facts.update(evidence.fields)
    if complaint is not None:
        facts["traceback"] = text_or_none(complaint.get("traceback"))
    # At the supervisor's end a signal of ours is in order too, unless it took a request along.
    kindly = action.asked and (
        status.code == 0 or (action.next is Next.NONE and not reading.in_hand)
    )
    level = "info" if kindly else "warning" if action.asked else "error"
    return level, "worker.exited" if action.spawned else "worker.spawn_failed", facts
