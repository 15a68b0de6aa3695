"""Workers that are worn: they serve well, and have served as much or hold as much memory as their model's settings allow.

One of a model at a time, and its replacement first: a spare is born for it where the model keeps none, and only when that is
parked is the worn worker told to finish its batch. What is in hand has as long for that as any batch has; nobody is killed for
having worn out in the middle of one. While no replacement can be had the worn worker serves on.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.core import slots
from modelsupervisor.core.events import WorkerWorn
from modelsupervisor.core.states import LIVE_PHASES, Model, Phase, Slot, SlotKey
from modelsupervisor.core.step import Step


def worn(step: Step, event: WorkerWorn) -> None:
    """Note it, once a generation; its turn comes in `advance`."""
    slot = slots.present(step, event.key, event.generation)
    if slot is None or slot.phase is not Phase.READY or slot.worn is not None:
        return
    step.put(replace(slot, worn=event.wear))
    step.slot_note("info", "worker.worn", slot, wear=event.wear.value, reason=event.reason)


def advance(step: Step, name: str) -> None:
    """Go on with the replacement that is under way, or begin the next one; called after every event."""
    model = step.models[name]
    if step.stopping:
        return
    if model.recycling is not None and _is_over(step.slots[SlotKey(name, model.recycling)]):
        model = replace(model, recycling=None)
        step.put(model)
    if model.restart is not None:
        return  # which replaces them all, or this one, or one at a time of its own
    if model.recycling is None:
        model = _begin(step, model)
    if model.recycling is None or step.parked_spare(name) is None:
        return
    slot = step.slots[SlotKey(name, model.recycling)]
    if slot.phase is Phase.READY:
        slots.drain(step, slot, patience=model.policy.response_timeout)


def _is_over(slot: Slot) -> bool:
    """A successor serves, or none will for now."""
    return slot.worn is None and (slot.phase is Phase.READY or slot.phase not in LIVE_PHASES)


def _begin(step: Step, model: Model) -> Model:
    # After every event: so all that is usual, a slot that is not worn, costs one look and no key.
    for slot in step.slots.values():
        if slot.worn is None or slot.key.model != model.name:
            continue
        if slot.phase is Phase.READY:
            model = replace(model, recycling=slot.key.index)
            step.put(model)
            break
    return model
