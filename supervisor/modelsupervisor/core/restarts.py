"""An operator's restart, from the command to its answer.

`restart MODEL` loads a new template first, and only when it is READY are the workers replaced, one at a time, each after the one
before is READY again: a version that does not load, or whose first worker does not start, costs nothing but the answer that says
so. `restart MODEL/N` replaces one worker from the present template. The command is answered when it ended, either way.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.core import slots, templates
from modelsupervisor.core.actions import Answer
from modelsupervisor.core.events import RestartModelRequested, RestartSlotRequested
from modelsupervisor.core.states import (
    Model,
    Phase,
    Restart,
    SlotKey,
    TemplateKey,
    TemplatePhase,
)
from modelsupervisor.core.step import Step


def _refuse(step: Step, command: int, code: str, message: str) -> None:
    step.do(Answer(command, ok=False, code=code, message=message))


def _admissible(step: Step, name: str, command: int) -> Model | None:
    model = step.models.get(name)
    if model is None:
        known = ", ".join(sorted(step.models))
        _refuse(step, command, "not_found", f"there is no model {name}; there are: {known}")
    elif step.stopping:
        _refuse(step, command, "refused", "the supervisor is stopping")
    elif model.generation == 0:
        _refuse(step, command, "refused", "the supervisor has not begun to load its models")
    elif model.restart is not None:
        _refuse(step, command, "refused", f"a restart of {name} is under way")
    else:
        return model
    return None


def model_requested(step: Step, event: RestartModelRequested) -> None:
    """Begin the restart of a model: its new template loads beside the old one."""
    model = _admissible(step, event.model, event.command)
    if model is None:
        return
    step.put(replace(model, failures=0))
    present = step.current_template(model.name)
    if present is not None and present.phase is TemplatePhase.READY:
        key = templates.start(step, model.name, candidate=True)
    else:
        if present is not None:
            templates.retire(step, present)
        key = templates.start(step, model.name)
    everyone = tuple(range(model.policy.workers))
    restart = Restart(event.command, pending=everyone, template=key.generation)
    step.put(replace(step.models[model.name], restart=restart))


def slot_requested(step: Step, event: RestartSlotRequested) -> None:
    """Begin the restart of one slot from the present template."""
    model = _admissible(step, event.key.model, event.command)
    if model is None:
        return
    if event.key not in step.slots:
        last = model.policy.workers - 1
        message = f"there is no worker {event.key}; {event.key.model} has 0 to {last}"
        _refuse(step, event.command, "not_found", message)
    elif step.fork_source(model.name) is None:
        message = f"the template of {model.name} is not ready: restart {model.name} loads it anew"
        _refuse(step, event.command, "refused", message)
    else:
        step.put(replace(model, restart=Restart(event.command, pending=(event.key.index,))))


def advance(step: Step, name: str) -> None:
    """Move a model's restart on as far as the state allows; called after every event."""
    while (restart := step.models[name].restart) is not None:
        if restart.template is not None and not restart.loaded:
            if not _template_came(step, name, restart):
                return
        elif restart.waiting is not None:
            if not _slot_came(step, name, restart):
                return
        elif not restart.pending:
            _end(step, name, restart)
        else:
            _replace_next(step, name, restart)


def _template_came(step: Step, name: str, restart: Restart) -> bool:
    """True once the template that the restart waits for can fork; its death ends the restart."""
    template = step.templates.get(TemplateKey(name, restart.template or 0))
    if template is None or template.phase is TemplatePhase.STOPPING:
        serves = step.fork_source(name) is not None
        rest = "; the present one serves on" if serves else ""
        _fail(step, name, restart, f"the new template did not load{rest}: see template.exited")
        return False
    if template.phase is not TemplatePhase.READY:
        return False
    step.put(replace(step.models[name], restart=replace(restart, loaded=True)))
    return True


def _slot_came(step: Step, name: str, restart: Restart) -> bool:
    """True once the successor in the slot that the restart waits for is READY; its failure ends the restart."""
    model = step.models[name]
    slot = step.slots[SlotKey(name, restart.waiting or 0)]
    if slot.phase is Phase.READY and slot.generation > restart.floor:
        done = (*restart.done, slot.key.index)
        step.put(replace(model, restart=replace(restart, waiting=None, done=done)))
        return True
    if not slot.live and (slot.failures > 0 or model.failed):
        _fail(step, name, restart, f"the new worker {slot.key} did not start: see worker.exited")
    return False


def _replace_next(step: Step, name: str, restart: Restart) -> None:
    """Begin with the next slot; one that was born of the new template, or of a later one, only has to become READY."""
    index, *rest = restart.pending
    slot = step.slots[SlotKey(name, index)]
    fresh = slot.live and restart.template is not None and slot.template >= restart.template
    floor = slot.generation - 1 if fresh else slot.generation
    going = replace(restart, pending=tuple(rest), waiting=index, floor=floor)
    step.put(replace(step.models[name], restart=going))
    if fresh:
        return
    if step.models[name].recycling == index and slot.phase is Phase.READY:
        # Worn, but its replacement is still to come: it goes because somebody asked
        step.put(replace(step.models[name], recycling=None))
    slot = replace(slot, failures=0, charged=0)
    step.put(slot)
    if slot.live:
        slots.drain(step, slot)
    else:
        slots.bear(step, slot)


def _fail(step: Step, name: str, restart: Restart, message: str) -> None:
    step.put(replace(step.models[name], restart=None))
    key = TemplateKey(name, step.models[name].generation)
    step.template_note("error", "restart.failed", key, reason=message)
    _refuse(step, restart.command, "failed", message)


def _end(step: Step, name: str, restart: Restart) -> None:
    step.put(replace(step.models[name], restart=None))
    keys = tuple(SlotKey(name, index) for index in restart.done)
    step.do(Answer(restart.command, ok=True, keys=keys))


def abort(step: Step, name: str) -> None:
    """The supervisor stops: whoever waits for a restart is told."""
    restart = step.models[name].restart
    if restart is not None:
        step.put(replace(step.models[name], restart=None))
        _refuse(step, restart.command, "refused", "the supervisor is stopping")
