"""Workers that hang: busy with one batch for longer than `response_timeout`, or deaf for as long.

A worker's record says since when it is busy and how much it has answered; it is read, because one that hangs answers nothing. That
alone would not show a worker which stands still between two batches (stopped by a signal, or its interpreter held by a thread of
the model's in C), so each look is also a ping, which the worker's loop answers as soon as it has nothing in hand. Requests, batches
and answered pings make a *marker*: while it changes, all is well. What a look finds as the last one left it has got nothing done
since, though it had a batch or at least the ping to do; that time is added up, and at `response_timeout` the worker is ended.

Only time that was *seen* counts. When the supervisor itself, or the whole machine, stood still, the gap between two looks is longer
than looks ever are apart, and what the workers did in it is not known: it counts for nothing, however long it was. The ping also
keeps a handler that writes nonsense into the record from being ended for it: while the worker answers, its marker changes.

READY workers of a model are looked at together, every quarter of `response_timeout`; and one whose time is up before the next look
by itself at that moment, so that the end comes at the deadline.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.core import slots
from modelsupervisor.core.actions import AskWorker, Ending, LookAtWorkers
from modelsupervisor.core.events import Sighting, WorkersSeen
from modelsupervisor.core.states import Blame, Phase, Policy, Slot, Watch
from modelsupervisor.core.step import Step

LOOKS = 4  # in a response_timeout
SHORTEST = 0.25
"""Seconds from look to look at least: however short the time-out, an idle supervisor wakes up four times a second at most."""

GRAIN = 0.01
"""Seconds to the look of a worker whose time is up. What is found there was still so one turn of the loop later, and in that every
answer which had come in was heard."""

CLOSE = 1e-6  # seconds; sums of floating point times


def interval(policy: Policy) -> float:
    """Seconds from look to look."""
    return max(SHORTEST, policy.response_timeout / LOOKS)


def settle(step: Step, name: str) -> None:
    """The looks at a model begin with its first READY worker and end with the last; called after every event."""
    model = step.models[name]
    serving = any(
        slot.phase is Phase.READY and slot.key.model == name for slot in step.slots.values()
    )
    if serving and model.look_at is None:
        step.put(replace(model, look_at=step.now + interval(model.policy)))
    elif not serving and model.look_at is not None:
        step.put(replace(model, look_at=None))


def due(slot: Slot) -> float | None:
    """When this worker is to be looked at by itself, if it is."""
    watch = slot.watch
    return watch.due if watch is not None and slot.phase is Phase.READY else None


def tick(step: Step, name: str) -> None:
    """Look at whom it is time to look at; what is seen comes back as `WorkersSeen`."""
    model = step.models[name]
    if model.look_at is None:
        return
    serving = [slot for slot in step.slots_of(name) if slot.phase is Phase.READY]
    whole = model.look_at <= step.now
    if whole:
        step.put(replace(model, look_at=step.now + interval(model.policy)))
    keys = []
    for slot in serving:
        time = due(slot)
        up = time is not None and time <= step.now
        if up and slot.watch is not None:
            step.put(replace(slot, watch=replace(slot.watch, due=None)))
        # One that is not known yet can be neither pinged nor ended; its birth has a deadline of its own.
        if slot.born and (whole or up):
            keys.append(slot.key)
    if keys:
        step.do(LookAtWorkers(name, tuple(keys), whole))


def seen(step: Step, event: WorkersSeen) -> None:
    """Compare with the last look; end who hangs, and ping the others."""
    for sighting in event.sightings:
        slot = slots.present(step, sighting.key, sighting.generation)
        if slot is None or slot.phase is not Phase.READY or not slot.born:
            continue
        policy = step.models[slot.key.model].policy
        watch = _compare(step, slot, sighting, policy)
        if watch.due is not None and _stuck_before(slot) and _is_over(watch, policy):
            _end(step, replace(slot, watch=replace(watch, due=None)))
        else:
            step.put(replace(slot, watch=watch))
            step.do(AskWorker(slot.key, slot.generation))


def _compare(step: Step, slot: Slot, sighting: Sighting, policy: Policy) -> Watch:
    """What this look shows, in the light of the last one."""
    marker = (sighting.busy_since, sighting.answered, sighting.echoes)
    last = slot.watch
    since = slot.ready_at if last is None else last.seen
    passed = max(0.0, step.now - (step.now if since is None else since))
    if passed > 2 * interval(policy):
        passed = 0.0  # nobody looked meanwhile
    if last is not None and last.marker == marker:
        stuck = last.stuck + passed
    else:
        stuck = min(passed, max(0.0, step.now - sighting.busy_since)) if marker[0] > 0.0 else 0.0
    watch = Watch(marker, step.now, stuck)
    if stuck > 0.0:
        left = max(GRAIN, policy.response_timeout - stuck)
        watch = replace(watch, due=step.now + left)
    return watch


def _stuck_before(slot: Slot) -> bool:
    """The last look found it stuck, too: one look alone may have found what was true before the last turn of the loop."""
    return slot.watch is not None and slot.watch.stuck > 0.0


def _is_over(watch: Watch, policy: Policy) -> bool:
    return watch.stuck >= policy.response_timeout - CLOSE


def _end(step: Step, slot: Slot) -> None:
    """Its stacks first, and then itself. The words come before: they are about what it is doing now."""
    assert slot.watch is not None
    step.slot_note(
        "warning",
        "worker.hung",
        slot,
        stuck_s=round(slot.watch.stuck, 3),
        response_timeout_s=step.models[slot.key.model].policy.response_timeout,
        busy=slot.watch.busy,
    )
    slots.terminate(step, slot, Ending.ABORT, Blame.HUNG)
