"""The supervisor's own life: its start, what counts as ready, and its end.

Every start ends in `supervisor.ready`, in `degraded` or in a stop; every stop that has begun ends, by messages, then signals, then
by giving up on what not even SIGKILL removed. The stop is a state and not a mode of the loop: commands, exits and deadlines are
answered all the while.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.core import restarts, slots, spares, templates
from modelsupervisor.core.actions import Exit, Note
from modelsupervisor.core.events import StopRequested
from modelsupervisor.core.states import Phase, Run, Wanted
from modelsupervisor.core.step import Step

LOST_AFTER = 5.0
"""Seconds after SIGKILL to everything at which a process that is still there is given up: it is stuck in the kernel."""

FAILED = 1  # the exit code of a start that failed, and of a stop that left something behind


def begin(step: Step) -> None:
    """Load every model, unless the stop came first; said twice, it changes nothing."""
    if step.stopping:
        return
    for name, model in list(step.models.items()):
        if model.generation == 0:
            templates.start(step, name)


def stop_requested(step: Step, event: StopRequested) -> None:
    """The first request stops in bounded time, the second one now."""
    if step.run is Run.DONE:
        return
    if step.run is Run.STOPPING:
        if step.lost_deadline is None:
            step.do(Note("warning", "supervisor.stopping_now", fields=(("reason", event.why),)))
            _kill_all(step)
        return
    _stop(step, event.why)


def _stop(step: Step, why: str) -> None:
    step.run = Run.STOPPING
    step.stop_deadline = step.now + step.before.stop_timeout
    step.do(Note("info", "supervisor.stopping", fields=(("reason", why),)))
    for name in step.models:
        restarts.abort(step, name)
        model = replace(step.models[name], retry_at=None, candidate=None)
        step.put(replace(model, spare_at=None, recycling=None))
    for key in step.slots:
        slot = replace(step.slots[key], wanted=Wanted.DOWN)
        step.put(slot)
        slots.drain(step, slot)
    for spare in list(step.spares.values()):
        spares.retire(step, spare)
    for template in list(step.templates.values()):
        templates.retire(step, template)


def _kill_all(step: Step) -> None:
    for slot in list(step.slots.values()):
        slots.kill(step, slot)
    for spare in list(step.spares.values()):
        spares.kill(step, spare)
    for template in list(step.templates.values()):
        templates.kill(step, template)
    step.stop_deadline = None
    step.lost_deadline = step.now + LOST_AFTER


def tick(step: Step) -> None:
    """The deadlines of the stop itself."""
    if step.run is not Run.STOPPING:
        return
    if step.stop_deadline is not None and step.stop_deadline <= step.now:
        step.do(Note("warning", "supervisor.stopping_now", fields=(("reason", "stop_timeout"),)))
        _kill_all(step)
    elif step.lost_deadline is not None and step.lost_deadline <= step.now:
        left = [str(slot.key) for slot in step.slots.values() if slot.live]
        left += [f"spare of {key.model}" for key in step.spares]
        left += [f"template of {key.model}" for key in step.templates]
        step.do(Note("error", "supervisor.left_behind", fields=(("left", left),)))
        _exit(step, FAILED)


def settle(step: Step) -> None:
    """After every event: see whether the start or the stop has come to its end."""
    if step.run is Run.STARTING:
        _settle_start(step)
    if step.start_failure:
        step.exit_code = FAILED
        fields = (("reason", step.start_failure),)
        whose = step.failed_model
        step.do(Note("error", "supervisor.start_failed", config_of=whose, fields=fields))
        reason, step.start_failure = step.start_failure, ""
        _stop(step, reason)
    processes = step.templates or step.spares
    nothing_left = not processes and not any(slot.live for slot in step.slots.values())
    if step.run is Run.STOPPING and nothing_left:
        _exit(step, step.exit_code)


def _settle_start(step: Step) -> None:
    phases = [slot.phase for slot in step.slots.values()]
    if any(phase not in (Phase.READY, Phase.FAILED) for phase in phases):
        return
    # FAILED ones are here only under `continue`: otherwise the failure itself has ended the start (Step.fail_start).
    failed = phases.count(Phase.FAILED)
    step.run = Run.RUNNING
    step.do(
        Note(
            "warning" if failed else "info",
            "supervisor.ready",
            fields=(("workers", len(phases)), ("failed", failed), ("degraded", failed > 0)),
        )
    )


def _exit(step: Step, code: int) -> None:
    step.run = Run.DONE
    step.exit_code = code
    step.do(Exit(code))
