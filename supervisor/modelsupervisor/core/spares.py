"""What becomes of spares: workers that are born before there is a slot for them.

A spare has all that takes time behind it, the fork, a load of its own where the model wants that, and `after_fork`; so a slot that
loses its process is served again as soon as the spare has been handed the slot's descriptors. Nothing ever waits for a spare: a
slot that finds none parked is born from the template as always, and what goes wrong with a spare is told, tried again later, and
harms nobody. Slots go first: while one of the model is starting no spare is asked for, and not for SPARE_PAUSE afterwards, so that
the fork of the next spare does not take a CPU from the first answer of the one that was just seated [measured: 3 ms of it].

A spare is good for a slot as long as it was born of the version that is served. After a template died by itself the spares of it
are still that; after an operator's restart they are not, and go.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.core import slots
from modelsupervisor.core.actions import (
    AbandonSpare,
    Ending,
    ForkSpare,
    ReportSpareExit,
    SignalSpare,
)
from modelsupervisor.core.events import SpareBorn, SpareExited, SpareParked
from modelsupervisor.core.states import (
    Blame,
    Model,
    Phase,
    Spare,
    SpareKey,
    SparePhase,
    Template,
    TemplateKey,
    TemplatePhase,
)
from modelsupervisor.core.step import Step


def refill(step: Step, name: str) -> None:
    """Ask for the spares that are missing, and let go of those too many; called after every event."""
    model = step.models[name]
    here = [spare for spare in step.spares_of(name) if _holds_a_place(spare)]
    missing = _wanted(model) - len(here)
    if missing < 0 and not step.stopping:
        for spare in here[missing:]:
            retire(step, spare)
    template = step.fork_source(name)
    if missing <= 0 or step.stopping or template is None or _not_yet(step, model):
        return
    for _ in range(missing):
        _bear(step, name, template)


def _holds_a_place(spare: Spare) -> bool:
    """One that was sent away makes room at once, one that failed when it is gone: the failure is counted then, and who is stuck
    in the kernel for ever is not joined by others every startup_timeout.
    """
    return spare.phase is not SparePhase.STOPPING or spare.blame is not None


def _wanted(model: Model) -> int:
    """How many there should be: a worn worker goes only when its replacement is there."""
    return max(model.policy.spares, 0 if model.recycling is None else 1)


def _not_yet(step: Step, model: Model) -> bool:
    """Slots of the model come first, and a back-off or the pause after them is not over."""
    if model.spare_at is not None:
        return True
    return any(slot.phase is Phase.STARTING for slot in step.slots_of(model.name))


def _bear(step: Step, name: str, template: Template) -> None:
    model = step.models[name]
    key = SpareKey(name, model.spares_born + 1)
    step.put(replace(model, spares_born=key.number))
    step.put(
        Spare(
            key,
            template.key.generation,
            deadline=step.now + model.policy.startup_timeout,
            birth_deadline=step.now + slots.FORK_TIMEOUT,
        )
    )
    step.do(ForkSpare(key, template.key))


def born(step: Step, event: SpareBorn) -> None:
    """The process can be signalled now; one that was sent away meanwhile gets its signal."""
    spare = step.spares.get(event.key)
    if spare is None or spare.born:
        return
    spare = replace(spare, born=True, birth_deadline=None)
    step.put(spare)
    template = step.templates.get(TemplateKey(spare.key.model, spare.template))
    if template is not None:
        step.put(replace(template, forked_at=step.now))
    if spare.phase is SparePhase.STOPPING:
        kill(step, spare)
    elif spare.phase is SparePhase.PARKED:
        slots.settle_waiting(step, spare.key.model)


def parked(step: Step, event: SpareParked) -> None:
    """It lacks nothing but a slot; one that waits for its template in vain can have it at once.

    It may say so before the template has told of its birth. Until then it is no process that a slot could be given to.
    """
    spare = step.spares.get(event.key)
    if spare is None or spare.phase is not SparePhase.STARTING:
        return
    step.put(replace(spare, phase=SparePhase.PARKED, deadline=None, parked_at=event.now))
    step.spare_note("info", "spare.ready", spare.key)
    slots.settle_waiting(step, spare.key.model)


def exited(step: Step, event: SpareExited) -> None:
    """A spare is gone before it had a slot: tell of it, and see when the next one may come."""
    spare = step.spares.pop(event.key, None)
    if spare is None:
        return
    asked = spare.phase is SparePhase.STOPPING and spare.blame is None
    delay = None if asked or step.stopping else _count(step, spare, event)
    step.do(
        ReportSpareExit(
            event.key,
            reason=event.reason,
            asked=asked,
            blame=spare.blame,
            delay=delay,
            failures=step.models[event.key.model].spare_failures,
            spawned=event.spawned,
        )
    )


def _count(step: Step, spare: Spare, event: SpareExited) -> float:
    """Count a failure of the model's spares, set when the next may be born, and return in how many seconds that is.

    Those that were born before the failure which was counted last may die of the same thing, and are not counted again.
    """
    model = step.models[spare.key.model]
    policy = model.policy
    template = step.templates.get(TemplateKey(model.name, spare.template))
    template_serves = template is not None and template.phase is TemplatePhase.READY
    waits = max(0.0, (model.spare_at or step.now) - step.now)
    if spare.key.number <= model.spare_floor or not (event.spawned or template_serves):
        return waits
    stable = spare.parked_at is not None and step.now - spare.parked_at >= policy.stable_after
    failures = 1 if stable else model.spare_failures + 1
    if failures >= policy.max_failures:
        delay = max(policy.retry_failed_after, slots.SPARE_PAUSE)
    elif stable:
        delay = slots.SPARE_PAUSE  # however little `stable_after` asks of them
    else:
        delay = step.failure_delay(failures)
    delay = max(delay, waits)
    step.put(
        replace(
            model,
            spare_failures=failures,
            spare_floor=model.spares_born,
            spare_at=step.now + delay if delay > 0.0 else None,
        )
    )
    return delay


def outdate(step: Step, name: str, version: int) -> None:
    """From here on the templates from `version` on are what is served: spares of older ones go."""
    step.put(replace(step.models[name], version=version, spare_failures=0, spare_at=None))
    for spare in step.spares_of(name):
        if spare.template < version:
            retire(step, spare)


def retire(step: Step, spare: Spare) -> None:
    """Send a spare away: it holds nothing, so a signal is kind enough; an unborn one gets it at its birth."""
    if spare.phase is SparePhase.STOPPING:
        return
    deadline = step.now + slots.TERM_GRACE
    step.put(replace(spare, phase=SparePhase.STOPPING, deadline=deadline, birth_deadline=None))
    if spare.born:
        step.do(SignalSpare(spare.key, Ending.TERM))


def _abort(step: Step, spare: Spare) -> None:
    """It hangs on its way: its stacks first, and then itself."""
    going = replace(spare, phase=SparePhase.STOPPING, blame=Blame.START_TIMEOUT)
    step.put(replace(going, deadline=step.now + slots.TERM_GRACE))
    step.do(SignalSpare(spare.key, Ending.ABORT))


def kill(step: Step, spare: Spare) -> None:
    """SIGKILL, once; a birth that has not come to an end is waited for a little longer."""
    if spare.killed:
        return
    gone = replace(spare, phase=SparePhase.STOPPING, birth_deadline=None)
    if spare.born:
        step.put(replace(gone, killed=True, deadline=None))
        step.do(SignalSpare(spare.key, Ending.KILL))
    else:
        step.put(replace(gone, deadline=step.now + slots.TERM_GRACE))


def tick(step: Step, spare: Spare) -> None:
    """Carry out what a spare's deadlines ask for at this time."""
    overdue = _passed(step, spare.deadline)
    if not spare.born and (overdue or _passed(step, spare.birth_deadline)):
        _late_birth(step, spare, overdue=overdue)
    elif overdue and spare.phase is SparePhase.STARTING:
        _abort(step, spare)
    elif overdue:
        kill(step, spare)


def _passed(step: Step, deadline: float | None) -> bool:
    return deadline is not None and deadline <= step.now


def _late_birth(step: Step, spare: Spare, *, overdue: bool) -> None:
    """Its turn is still to come, or it is forgotten; a template that bears nobody else meanwhile is hung."""
    if spare.phase is SparePhase.STOPPING:
        _abandon(step, spare, "the birth did not come to an end in time")
        return
    template = step.templates.get(TemplateKey(spare.key.model, spare.template))
    later = slots.turn_comes(step, template)
    if later is not None and not overdue:
        step.put(replace(spare, birth_deadline=later))
        return
    if later is None:
        slots.give_up_template(step, template)
    _abandon(step, spare, "the template did not fork in time")


def _abandon(step: Step, spare: Spare, reason: str) -> None:
    step.do(AbandonSpare(spare.key))
    exited(step, SpareExited(spare.key, step.now, reason, spawned=False))


def try_again(step: Step, model: Model) -> None:
    """The time has come at which spares may be born again; `refill` does it."""
    if model.spare_at is not None and model.spare_at <= step.now:
        step.put(replace(model, spare_at=None))
