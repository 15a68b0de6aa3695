"""What has to be so of spares and of worn workers in any state of the core that is sound, whatever came before."""

from __future__ import annotations

from modelsupervisor.core import actions as act
from modelsupervisor.core.states import (
    Model,
    Phase,
    Run,
    Slot,
    SlotKey,
    Spare,
    SparePhase,
    State,
    TemplateKey,
    TemplatePhase,
    Wanted,
)


def unsound_spares(state: State) -> str | None:
    """What is wrong with the spares and the wear of a state, or None."""
    for spare in state.spares.values():
        problem = _unsound_spare(state, spare)
        if problem is not None:
            return f"{spare.key} {spare.phase.value}: {problem}"
    for slot in state.slots.values():
        problem = _unsound_place(slot)
        if problem is not None:
            return f"{slot.key} {slot.phase.value}: {problem}"
    for model in state.models.values():
        problem = _unsound_number(state, model) or _unsound_wear(state, model)
        if problem is not None:
            return f"{model.name}: {problem}"
    return None


def _unsound_spare(state: State, spare: Spare) -> str | None:
    model = state.models[spare.key.model]
    leaves = spare.phase is SparePhase.STOPPING
    if spare.key.number > model.spares_born:
        return "it was never asked for"
    if not leaves and (state.run in (Run.STOPPING, Run.DONE) or spare.template < model.version):
        return "nobody needs it and nobody sent it away"
    if leaves and (spare.deadline is None) != spare.killed:
        return "is not on its way to SIGKILL"
    if not leaves and (spare.killed or spare.blame):
        return "was sent away and is not STOPPING"
    if spare.killed and not spare.born:
        return "was killed and was not there"
    if spare.birth_deadline is not None and (spare.born or leaves):
        return "its birth is over and still due"
    if spare.phase is SparePhase.STARTING and spare.deadline is None:
        return "starts for ever"
    if spare.phase is not SparePhase.PARKED:
        return None
    if spare.parked_at is None or spare.deadline is not None:
        return "parked with a deadline, or without a time"
    seen = spare.born or spare.birth_deadline is not None
    return None if seen else "parked, and nobody would see its end"


def _unsound_place(slot: Slot) -> str | None:
    if not slot.live and (slot.seated or slot.worn):
        return "something of its last process is left"
    if slot.seated and not slot.born:
        return "was handed to a spare that nobody knew"
    if slot.worn and slot.ready_at is None:
        return "worn out by nothing"
    return None


def usable(state: State, model: Model) -> bool:
    """There is a spare that a slot can be given to."""
    return any(
        spare.key.model == model.name
        and spare.phase is SparePhase.PARKED
        and spare.born
        and spare.template >= model.version
        for spare in state.spares.values()
    )


def _slots(state: State, model: Model) -> list[Slot]:
    return [state.slots[SlotKey(model.name, i)] for i in range(model.policy.workers)]


def _unsound_number(state: State, model: Model) -> str | None:
    if state.run in (Run.STOPPING, Run.DONE):
        return None if model.spare_at is None else "a spare is due in a stop"
    if not 0 <= model.spare_floor <= model.spares_born:
        return "counts spares that never were"
    slots = _slots(state, model)
    waits = any(not s.live and s.deadline is None and s.wanted is Wanted.UP for s in slots)
    if waits and usable(state, model):
        return "a slot waits beside a parked spare"
    spares = [spare for spare in state.spares.values() if spare.key.model == model.name]
    staying = sum(spare.phase is not SparePhase.STOPPING for spare in spares)
    wanted = max(model.policy.spares, 0 if model.recycling is None else 1)
    if staying > wanted:
        return "more spares than are wanted"
    template = state.templates.get(TemplateKey(model.name, model.current or 0))
    forks = template is not None and template.phase is TemplatePhase.READY
    starts = any(slot.phase is Phase.STARTING for slot in slots)
    failed = sum(spare.blame is not None for spare in spares)
    if staying + failed < wanted and forks and not starts and model.spare_at is None:
        return "a spare is missing and nobody asked for it"
    return None


def _unsound_wear(state: State, model: Model) -> str | None:
    if state.run in (Run.STOPPING, Run.DONE):
        return None if model.recycling is None else "a worker is to be replaced in a stop"
    slots = _slots(state, model)
    if model.recycling is None:
        waits = any(slot.worn and slot.phase is Phase.READY for slot in slots)
        return "nobody minds a worn worker" if waits and model.restart is None else None
    slot = slots[model.recycling]
    if not slot.worn and (slot.phase is Phase.READY or not slot.live):
        return "the replacement is over"
    goes = slot.phase is Phase.READY and usable(state, model) and model.restart is None
    return "its replacement is there, and the worn worker is not told to go" if goes else None


def check_spares(state: State, then: State, actions: tuple[act.Action, ...]) -> None:
    """What holds of the spares in any single answer from a sound state."""
    asked = [a.key for a in actions if isinstance(a, act.ForkSpare)]
    seated = [a.spare for a in actions if isinstance(a, act.SeatSpare)]
    reported = [a.key for a in actions if isinstance(a, act.ReportSpareExit)]
    abandoned = [a.key for a in actions if isinstance(a, act.AbandonSpare)]
    gone = {key for key in state.spares if key not in then.spares}
    assert sorted(seated + reported) == sorted(gone), "a spare is gone without a word, or twice"
    assert set(asked) == {key for key in then.spares if key not in state.spares}
    for name, model in then.models.items():
        numbers = [key.number for key in asked if key.model == name]
        before = state.models[name].spares_born
        assert numbers == list(range(before + 1, model.spares_born + 1)), "a number is lost"
        starts = any(s.phase is Phase.STARTING for s in then.slots.values() if s.key.model == name)
        assert not (numbers and starts), "a spare is born before a slot that starts"
    for key in seated:
        spare = state.spares[key]
        assert spare.phase is not SparePhase.STOPPING, "a seat for one that leaves"
        assert not spare.killed, "a seat for one that was killed"
    for key in abandoned:
        assert key in reported and not state.spares[key].born, "a process was forgotten"
