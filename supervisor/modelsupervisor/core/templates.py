"""What becomes of a model's templates: loading, its failures, replacement, and their ends.

Living workers do not need their template: it can load badly, die, hang or be replaced while they serve on. A template that dies
before it has loaded, or soon after, is a failure of the model and follows the same back-off as a slot; while the model has no
template its empty slots show that in their own phase.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.core import slots, spares
from modelsupervisor.core.actions import (
    Ending,
    Next,
    ReportTemplateExit,
    SignalTemplate,
    StartTemplate,
)
from modelsupervisor.core.events import TemplateExited, TemplateLoaded
from modelsupervisor.core.states import (
    Blame,
    Model,
    Template,
    TemplateKey,
    TemplatePhase,
)
from modelsupervisor.core.step import Step


def start(step: Step, name: str, *, candidate: bool = False) -> TemplateKey:
    """Exec a new template for a model, as the one that births come from or as its coming replacement."""
    model = step.models[name]
    generation = model.generation + 1
    key = TemplateKey(name, generation)
    deadline = step.now + model.policy.startup_timeout
    step.put(Template(key, deadline=deadline))
    model = replace(model, generation=generation, retry_at=None, failed=False)
    step.put(
        replace(model, candidate=generation) if candidate else replace(model, current=generation)
    )
    step.do(StartTemplate(key))
    step.template_note("info", "template.starting", key)
    return key


def retire(step: Step, template: Template) -> None:
    """Send a template away; nothing is forked from it any more."""
    if template.phase is TemplatePhase.STOPPING:
        return
    step.put(replace(template, phase=TemplatePhase.STOPPING, deadline=step.now + slots.TERM_GRACE))
    step.do(SignalTemplate(template.key, Ending.TERM))


def kill(step: Step, template: Template) -> None:
    """SIGKILL, once."""
    if template.killed:
        return
    step.put(replace(template, phase=TemplatePhase.STOPPING, deadline=None, killed=True))
    step.do(SignalTemplate(template.key, Ending.KILL))


def loaded(step: Step, event: TemplateLoaded) -> None:
    """A template can fork: the slots that waited are born; a candidate takes the place of the present one first."""
    template = step.templates.get(event.key)
    if template is None or template.phase is not TemplatePhase.LOADING:
        return
    step.put(replace(template, phase=TemplatePhase.READY, deadline=None, ready_at=event.now))
    model = step.models[event.key.model]
    step.template_note("info", "template.ready", event.key)
    if model.candidate == event.key.generation:
        present = step.current_template(model.name)
        # The present one may have died meanwhile: its next try is not due any more.
        model = replace(
            model, current=event.key.generation, candidate=None, retry_at=None, failed=False
        )
        step.put(model)
        if present is not None:
            retire(step, present)
    if model.restart is not None and model.restart.template == event.key.generation:
        spares.outdate(step, model.name, event.key.generation)
    slots.settle_waiting(step, model.name)


def exited(step: Step, event: TemplateExited) -> None:
    """A template is gone: decide whether another is due, and when."""
    template = step.templates.pop(event.key, None)
    if template is None:
        return
    model = step.models[event.key.model]
    generation = event.key.generation
    since = len(step.actions)
    follows, delay = Next.NONE, None
    if model.candidate == generation:
        # The restart that asked for it fails (restarts.advance); the present template serves on.
        step.put(replace(model, candidate=None))
    elif model.current == generation:
        follows, delay = _replace_current(step, model, template)
    asked = template.blame is None and template.phase is TemplatePhase.STOPPING
    step.report(
        since,
        ReportTemplateExit(
            event.key,
            reason=event.reason,
            asked=asked,
            blame=template.blame,
            loaded=template.ready_at is not None,
            next=follows,
            delay=delay,
            failures=step.models[event.key.model].failures,
        ),
    )


def _replace_current(step: Step, model: Model, template: Template) -> tuple[Next, float | None]:
    """The template that births came from is gone and was not replaced before."""
    model = replace(model, current=None)
    step.put(model)
    if step.stopping:
        return Next.NONE, None
    lived = template.ready_at is not None and (
        step.now - template.ready_at >= model.policy.stable_after
    )
    failures = 1 if lived else model.failures + 1
    model = replace(model, failures=failures)
    step.put(model)
    if template.ready_at is None and step.fail_start(
        model.name, f"model {model.name} did not load"
    ):
        return Next.STOP, None
    if failures >= model.policy.max_failures and step.fail_start(
        model.name, f"the template of {model.name} failed {failures} times in a row"
    ):
        return Next.STOP, None
    if failures >= model.policy.max_failures:
        return _wait(step, model, model.policy.retry_failed_after, failed=True)
    delay = step.failure_delay(failures)
    if delay == 0.0:
        start(step, model.name)
        return Next.RESTART, None
    return _wait(step, model, delay, failed=False)


def _wait(step: Step, model: Model, delay: float, *, failed: bool) -> tuple[Next, float]:
    step.put(replace(model, retry_at=step.now + delay, failed=failed))
    slots.settle_waiting(step, model.name)
    return (Next.FAILED if failed else Next.BACK_OFF), delay


def tick(step: Step, template: Template) -> None:
    """Carry out what a template's deadline asks for: too slow to load, or too slow to go."""
    if template.deadline is None or template.deadline > step.now:
        return
    if template.phase is TemplatePhase.LOADING:
        slots.abort_template(step, template, Blame.START_TIMEOUT)
    elif template.phase is TemplatePhase.STOPPING:
        kill(step, template)


def retry(step: Step, model: Model) -> None:
    """Start the next try of a model whose template failed, once its time has come."""
    if model.retry_at is not None and model.retry_at <= step.now and not step.stopping:
        start(step, model.name)
