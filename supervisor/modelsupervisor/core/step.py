"""One step of the core: a draft of the next state and the actions gathered on the way.

The draft is mutable only while `reduce` runs; what comes out is frozen again. Every rule of the core is a function on a step,
so that a rule can change a slot, ask for an effect and word its log event in one place, and still touch nothing outside.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.core import backoff
from modelsupervisor.core.actions import Action, Note
from modelsupervisor.core.states import (
    Model,
    Run,
    Slot,
    SlotKey,
    Spare,
    SpareKey,
    SparePhase,
    State,
    Template,
    TemplateKey,
    TemplatePhase,
)


class Step:
    """The draft. `now` is the time of the event that is being answered."""

    def __init__(self, state: State, now: float) -> None:
        self.before = state
        self.now = now
        self.models = dict(state.models)
        self.slots = dict(state.slots)
        self.templates = dict(state.templates)
        self.spares = dict(state.spares)
        self.run = state.run
        self.stop_deadline = state.stop_deadline
        self.lost_deadline = state.lost_deadline
        self.exit_code = state.exit_code
        self.luck = state.luck
        self.start_failure = ""  # why the supervisor's start is to end with this step, if it is
        self.failed_model = ""  # and whose fault that is
        self.actions: list[Action] = []

    def finish(self) -> tuple[State, tuple[Action, ...]]:
        """The frozen result."""
        state = replace(
            self.before,
            models=self.models,
            slots=self.slots,
            templates=self.templates,
            spares=self.spares,
            run=self.run,
            stop_deadline=self.stop_deadline,
            lost_deadline=self.lost_deadline,
            exit_code=self.exit_code,
            luck=self.luck,
        )
        return state, tuple(self.actions)

    def do(self, *actions: Action) -> None:
        """Ask for effects, in order."""
        self.actions.extend(actions)

    def report(self, since: int, exit_: Action) -> None:
        """Tell of an exit after the effects asked for since then (a position in `actions`), and before the words about them.

        The successor's birth waits for no words, and whoever reads the log still reads of the end before the next beginning.
        """
        words = (at for at in range(since, len(self.actions)) if isinstance(self.actions[at], Note))
        self.actions.insert(next(words, len(self.actions)), exit_)

    def put(self, item: Slot | Model | Template | Spare) -> None:
        """Store a changed value in the draft."""
        if isinstance(item, Slot):
            self.slots[item.key] = item
        elif isinstance(item, Template):
            self.templates[item.key] = item
        elif isinstance(item, Spare):
            self.spares[item.key] = item
        else:
            self.models[item.name] = item

    def slot_note(self, level: str, event: str, slot: Slot, **fields: object) -> None:
        """Log an event about the present generation of a slot."""
        self.do(
            Note(
                level,
                event,
                slot=slot.key,
                generation=slot.generation,
                fields=tuple(fields.items()),
            )
        )

    def template_note(self, level: str, event: str, key: TemplateKey, **fields: object) -> None:
        """Log an event about a template."""
        self.do(
            Note(
                level, event, template=key, generation=key.generation, fields=tuple(fields.items())
            )
        )

    def spare_note(self, level: str, event: str, key: SpareKey, **fields: object) -> None:
        """Log an event about a spare."""
        self.do(Note(level, event, spare=key, fields=tuple(fields.items())))

    def slots_of(self, model: str) -> list[Slot]:
        """The slots of a model in the order of their indexes."""
        count = self.models[model].policy.workers
        return [self.slots[SlotKey(model, index)] for index in range(count)]

    def current_template(self, model: str) -> Template | None:
        """The template that births of a model come from, in whatever phase."""
        current = self.models[model].current
        return None if current is None else self.templates.get(TemplateKey(model, current))

    def fork_source(self, model: str) -> Template | None:
        """The template of a model if it can fork now."""
        template = self.current_template(model)
        if template is not None and template.phase is TemplatePhase.READY:
            return template
        return None

    def spares_of(self, model: str) -> list[Spare]:
        """The spares of a model in the order of their births."""
        return [spare for spare in self.spares.values() if spare.key.model == model]

    def parked_spare(self, model: str) -> Spare | None:
        """The oldest spare of a model that a slot can be given to."""
        version = self.models[model].version
        for spare in self.spares_of(model):
            if spare.phase is SparePhase.PARKED and spare.born and spare.template >= version:
                return spare
        return None

    def failure_delay(self, failures: int) -> float:
        """Draw the back-off after so many failures in a row, in seconds."""
        delay, self.luck = backoff.failure_delay(failures, self.luck)
        return delay

    @property
    def stopping(self) -> bool:
        """The supervisor is on its way out: nothing may be born any more."""
        return self.run in (Run.STOPPING, Run.DONE) or bool(self.start_failure)

    def fail_start(self, model: str, reason: str) -> bool:
        """End the supervisor's start for this reason, where it has not come to its end and the operator wants that."""
        if self.run is not Run.STARTING or not self.before.exit_on_start_failure:
            return False
        if not self.start_failure:
            self.start_failure, self.failed_model = reason, model
        return True
