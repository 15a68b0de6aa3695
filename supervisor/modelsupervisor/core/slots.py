"""What becomes of a slot: births, readiness, exits, stops and deadlines.

A *failure* is a generation that died idle or before it was READY, without having answered one request or stayed READY for
`stable_after`. A death with a request in hand is charged to the request: otherwise two clients with a poison request could
switch a model off. Both counts end with one answer, or with a generation that proved stable.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.core import backoff
from modelsupervisor.core.actions import (
    AbandonBirth,
    Ending,
    ForkWorker,
    Next,
    ReportWorkerExit,
    SeatSpare,
    SignalTemplate,
    SignalWorker,
    TellWorker,
)
from modelsupervisor.core.events import BirthFailed, WorkerBorn, WorkerExited, WorkerReady
from modelsupervisor.core.states import (
    Blame,
    Phase,
    Slot,
    SlotKey,
    Spare,
    Template,
    TemplateKey,
    TemplatePhase,
    Wanted,
)
from modelsupervisor.core.step import Step

SPARE_PAUSE = 0.05
"""Seconds from a worker's READY to the birth of the next spare: its first answer is over by then."""

FORK_TIMEOUT = 10.0
"""Seconds a template has to fork. A fork takes milliseconds [measured]; a template that needs longer is stuck, not slow."""

TERM_GRACE = 1.0
"""Seconds from SIGTERM or SIGABRT to SIGKILL. A worker keeps SIGTERM at its default, so only a handler that changed that is still
there; for SIGABRT it has the handler that writes the stacks, some milliseconds [measured], and then dies.
"""


def bear(step: Step, slot: Slot) -> Next:
    """Have the next generation of a slot that has no process, as soon as every limit allows; say which it was."""
    model = step.models[slot.key.model]
    empty = _emptied(slot)
    if step.stopping or slot.wanted is Wanted.DOWN:
        step.put(replace(empty, phase=Phase.EMPTY, deadline=None))
        return Next.STOP if step.start_failure else Next.NONE
    template, spare = step.fork_source(slot.key.model), step.parked_spare(slot.key.model)
    if template is None and spare is None:
        waiting = Phase.EMPTY
        if model.failed:
            waiting = Phase.FAILED
        elif model.retry_at is not None:
            waiting = Phase.BACKING_OFF
        step.put(replace(empty, phase=waiting, deadline=None))
        return Next.WAIT
    earliest = backoff.earliest_birth(slot.births, slot.charged)
    if earliest > step.now:
        step.put(replace(empty, phase=Phase.BACKING_OFF, deadline=earliest))
        return Next.BACK_OFF
    child = replace(
        empty,
        phase=Phase.STARTING,
        generation=slot.generation + 1,
        deadline=step.now + model.policy.startup_timeout,
        births=backoff.remember(slot.births, step.now),
    )
    if spare is not None:
        _seat(step, child, spare)
    elif template is not None:
        _fork(step, child, template)
    return Next.RESTART


def _emptied(slot: Slot) -> Slot:
    """A slot without what was so of its last process."""
    return replace(
        slot,
        born=False,
        killed=False,
        blame=None,
        ready_at=None,
        birth_deadline=None,
        seated=False,
        worn=None,
        watch=None,
    )


def _seat(step: Step, child: Slot, spare: Spare) -> None:
    del step.spares[spare.key]
    child = replace(child, template=spare.template, born=True, seated=True)
    step.put(child)
    step.do(SeatSpare(spare.key, child.key, child.generation))
    number = spare.key.number
    step.slot_note("info", "worker.starting", child, template=spare.template, spare=number)


def _fork(step: Step, child: Slot, template: Template) -> None:
    generation = template.key.generation
    child = replace(child, template=generation, birth_deadline=step.now + FORK_TIMEOUT)
    step.put(child)
    step.do(ForkWorker(child.key, child.generation, template.key))
    step.slot_note("info", "worker.starting", child, template=generation)


def settle_waiting(step: Step, model: str) -> None:
    """Settle every slot of a model that waits for its template, and for nothing else.

    Where the template can fork they are born; where its next try is due later, or it gave up, their phase says so, and nobody
    queues behind nobody.
    """
    for slot in step.slots_of(model):
        if not slot.live and slot.deadline is None and slot.wanted is Wanted.UP:
            bear(step, slot)


def present(step: Step, key: SlotKey, generation: int) -> Slot | None:
    """The slot, if this news is of its present process."""
    slot = step.slots.get(key)
    return slot if slot is not None and slot.live and slot.generation == generation else None


def born(step: Step, event: WorkerBorn) -> None:
    """The process can be signalled now; a stop that came while it was being born is carried out.

    It gets the same as a born one: SIGTERM and its second of grace, or SIGKILL where the supervisor is already past that.
    """
    slot = present(step, event.key, event.generation)
    if slot is None or slot.born:
        return
    slot = replace(slot, born=True, birth_deadline=None)
    step.put(slot)
    template = step.templates.get(TemplateKey(slot.key.model, slot.template))
    if template is not None:
        step.put(replace(template, forked_at=step.now))
    if slot.phase is Phase.STOPPING:
        if step.lost_deadline is None:
            terminate(step, slot)
        else:
            kill(step, slot)


def ready(step: Step, event: WorkerReady) -> None:
    """READY is said once, by the worker; from a slot that is being stopped it comes too late to matter.

    It may come before the template has said who was born. Then the worker serves, but nobody could signal it or would see its
    end: the birth stays due, and one that is never made known is given up like one that never came.
    """
    slot = present(step, event.key, event.generation)
    if slot is None or slot.phase is not Phase.STARTING:
        return
    slot = replace(slot, phase=Phase.READY, deadline=None, ready_at=event.now)
    step.put(slot)
    # From the moment its first process was asked for, which is what a client that waits has felt.
    took = event.now - slot.births[-1] if slot.births else 0.0
    step.slot_note("info", "worker.ready", slot, start_s=round(took, 4))
    model = step.models[slot.key.model]
    if slot.seated:
        model = replace(model, spare_failures=0)
    if model.policy.spares or model.recycling is not None:
        later = max(step.now + SPARE_PAUSE, model.spare_at or step.now)
        model = replace(model, spare_at=later)
    step.put(model)


def exited(step: Step, event: WorkerExited) -> None:
    """A process is dead: count it, let its successor be born, and report both in one event."""
    slot = present(step, event.key, event.generation)
    if slot is None:
        return
    asked = slot.phase in (Phase.DRAINING, Phase.STOPPING) and slot.blame is None
    if event.declined and not asked:
        # It said itself that it cannot start: the same code would say so again.
        step.fail_start(slot.key.model, f"worker {slot.key} could not start: {event.reason}")
    counted = _count(step, slot, event, asked)
    _succeed_and_report(step, slot, counted, event, asked)


def _succeed_and_report(
    step: Step, slot: Slot, counted: Slot, event: WorkerExited | BirthFailed, asked: bool
) -> None:
    """Let what follows follow, and tell of the end; `counted` is the slot with its counts after it."""
    since = len(step.actions)
    recycled = asked and step.models[slot.key.model].recycling == slot.key.index
    follows, delay = _succeed(step, counted, failed=counted.failures > slot.failures)
    step.report(
        since,
        ReportWorkerExit(
            slot.key,
            slot.generation,
            reason=event.reason,
            asked=asked,
            blame=slot.blame,
            next=follows,
            delay=delay,
            failures=counted.failures,
            spawned=isinstance(event, WorkerExited),
            worn=slot.worn if recycled else None,
            watch=slot.watch,
        ),
    )
    if follows is Next.FAILED:
        retry = step.models[slot.key.model].policy.retry_failed_after
        failed = step.slots[slot.key]
        step.slot_note("error", "worker.failed", failed, failures=failed.failures, retry_in_s=retry)


def _count(step: Step, slot: Slot, event: WorkerExited, asked: bool) -> Slot:
    """The slot with its counts as this death leaves them."""
    stable_after = step.models[slot.key.model].policy.stable_after
    stable = slot.ready_at is not None and event.now - slot.ready_at >= stable_after
    failures, charged = slot.failures, slot.charged
    if event.answered > 0 or stable:
        failures, charged = 0, 0
    if asked:
        return replace(slot, failures=failures, charged=charged)
    if event.in_hand > 0 and slot.ready_at is not None:
        # Stable but without one answer: the row of deaths by requests goes on (DESIGN §3: "without one answer").
        charged = (0 if event.answered > 0 else slot.charged) + 1
    elif event.answered == 0 and not stable:
        failures += 1
    return replace(slot, failures=failures, charged=charged)


def _succeed(step: Step, slot: Slot, *, failed: bool) -> tuple[Next, float | None]:
    """Decide what follows in a slot whose process is gone; the delay in seconds where there is one."""
    policy = step.models[slot.key.model].policy
    empty = replace(slot, phase=Phase.EMPTY, deadline=None, birth_deadline=None)
    if step.stopping or slot.wanted is Wanted.DOWN or not failed:
        return _bear_now(step, empty)
    if slot.failures >= policy.max_failures:
        reason = f"worker {slot.key} failed {slot.failures} times in a row"
        if step.fail_start(slot.key.model, reason):
            return _bear_now(step, empty)
        _rest(step, empty, Phase.FAILED, policy.retry_failed_after)
        return Next.FAILED, policy.retry_failed_after
    delay = step.failure_delay(slot.failures)
    if delay == 0.0:
        return _bear_now(step, empty)
    _rest(step, empty, Phase.BACKING_OFF, delay)
    return Next.BACK_OFF, delay


def _bear_now(step: Step, slot: Slot) -> tuple[Next, float | None]:
    """Bear, and say how long the limits on births hold it back where they do."""
    follows = bear(step, slot)
    later = step.slots[slot.key].deadline if follows is Next.BACK_OFF else None
    return follows, None if later is None else later - step.now


def _rest(step: Step, slot: Slot, phase: Phase, delay: float) -> None:
    """Leave a slot without a process until a time."""
    step.put(replace(_emptied(slot), phase=phase, deadline=step.now + delay))


def birth_failed(step: Step, event: BirthFailed) -> None:
    """No process came of a birth. The template's own death or a stop is not held against the slot."""
    slot = present(step, event.key, event.generation)
    if slot is None or slot.born:
        return
    template = step.templates.get(TemplateKey(slot.key.model, slot.template))
    asked = slot.phase in (Phase.DRAINING, Phase.STOPPING) and slot.blame is None
    blameless = asked or template is None or template.phase is not TemplatePhase.READY
    failures = slot.failures if blameless else slot.failures + 1
    _succeed_and_report(step, slot, replace(slot, failures=failures), event, asked)


def drain(step: Step, slot: Slot, patience: float = 0.0) -> None:
    """Ask the process of a slot to go: kindly where it serves, by signal where it holds nothing yet.

    The batch in hand has `stop_timeout` to come to its end, or `patience` seconds where that is longer.
    """
    if slot.phase is Phase.READY:
        deadline = step.now + max(patience, step.models[slot.key.model].policy.stop_timeout)
        slot = replace(slot, phase=Phase.DRAINING, deadline=deadline, birth_deadline=None)
        step.put(slot)
        step.do(TellWorker(slot.key, slot.generation))
        step.slot_note("info", "worker.stopping", slot)
    elif slot.phase is Phase.STARTING:
        terminate(step, slot)
    elif slot.phase is Phase.DRAINING and slot.deadline is not None:
        # Told before, by somebody more patient.
        patience = max(patience, step.models[slot.key.model].policy.stop_timeout)
        step.put(replace(slot, deadline=min(slot.deadline, step.now + patience)))
    elif not slot.live:
        step.put(replace(slot, phase=Phase.EMPTY, deadline=None))


def terminate(
    step: Step, slot: Slot, ending: Ending = Ending.TERM, blame: Blame | None = None
) -> None:
    """SIGTERM, or another, with the deadline for SIGKILL set first; an unborn process gets SIGTERM at its birth."""
    slot = replace(
        slot,
        phase=Phase.STOPPING,
        deadline=step.now + TERM_GRACE,
        birth_deadline=None,
        blame=slot.blame or blame,
    )
    step.put(slot)
    if slot.born:
        step.do(SignalWorker(slot.key, slot.generation, ending))


def kill(step: Step, slot: Slot) -> None:
    """SIGKILL, once. What survives it (a process stuck in the kernel) is waited for, not signalled again."""
    if slot.killed or not slot.live:
        return
    slot = replace(slot, phase=Phase.STOPPING, deadline=None, birth_deadline=None)
    if slot.born:
        step.put(replace(slot, killed=True))
        step.do(SignalWorker(slot.key, slot.generation, Ending.KILL))
    else:
        step.put(replace(slot, deadline=step.now + TERM_GRACE))


def tick(step: Step, slot: Slot) -> None:
    """Carry out what a slot's deadlines ask for at this time."""
    if slot.birth_deadline is not None and slot.birth_deadline <= step.now:
        if not _waits_its_turn(step, slot):
            _give_up_birth(step, slot)
        return
    if slot.deadline is None or slot.deadline > step.now:
        return
    if slot.phase is Phase.STARTING:
        if slot.born:
            terminate(step, slot, Ending.ABORT, Blame.START_TIMEOUT)
        else:
            _give_up_birth(step, slot)
    elif slot.phase is Phase.DRAINING:
        step.slot_note("warning", "worker.overdue", slot, sent=Ending.TERM.value)
        terminate(step, slot)
    elif slot.phase is Phase.STOPPING:
        if slot.born:
            step.slot_note("warning", "worker.overdue", slot, sent=Ending.KILL.value)
            kill(step, slot)
        else:
            _abandon(step, slot, "the birth did not come to an end in time")
    else:  # BACKING_OFF, FAILED: the time of the next try
        bear(step, slot)


def turn_comes(step: Step, template: Template | None) -> float | None:
    """Until when a birth that is overdue has, since its template bears others: hundreds of births take longer than one may."""
    if template is None or template.forked_at is None:
        return None
    if template.killed or template.blame is not None:
        return None  # it forks no more
    later = template.forked_at + FORK_TIMEOUT
    return later if later > step.now else None


def _waits_its_turn(step: Step, slot: Slot) -> bool:
    """Put a birth's deadline off where its turn is still to come; the start deadline stands."""
    later = turn_comes(step, step.templates.get(TemplateKey(slot.key.model, slot.template)))
    if later is None or (slot.deadline is not None and slot.deadline <= step.now):
        return False
    step.put(replace(slot, birth_deadline=later))
    return True


def give_up_template(step: Step, template: Template | None) -> None:
    """A template that does not fork is hung: it goes. One that was sent away already goes by its own deadline."""
    if template is not None and template.phase is not TemplatePhase.STOPPING:
        abort_template(step, template, Blame.HUNG)


def abort_template(step: Step, template: Template, blame: Blame) -> None:
    """End a template that hangs, its stacks first."""
    deadline = step.now + TERM_GRACE
    step.put(replace(template, phase=TemplatePhase.STOPPING, deadline=deadline, blame=blame))
    step.do(SignalTemplate(template.key, Ending.ABORT))


def _give_up_birth(step: Step, slot: Slot) -> None:
    """The template is hung, and the births that wait for it are forgotten."""
    give_up_template(step, step.templates.get(TemplateKey(slot.key.model, slot.template)))
    _abandon(step, slot, "the template did not fork in time")


def _abandon(step: Step, slot: Slot, reason: str) -> None:
    step.do(AbandonBirth(slot.key, slot.generation))
    birth_failed(step, BirthFailed(slot.key, slot.generation, step.now, reason))
