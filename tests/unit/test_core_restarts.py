"""An operator's restarts: `restart MODEL` makes a new template first, `restart MODEL/N` forks from the present one (DESIGN §1)."""

from __future__ import annotations

import pytest
from unit.history import History, effects, notes, one, only

from modelsupervisor.core import actions as act
from modelsupervisor.core.actions import Ending, Next
from modelsupervisor.core.states import Blame, Phase, Run, SlotKey, TemplateKey, TemplatePhase

FIRST, SECOND = TemplateKey("m", 1), TemplateKey("m", 2)


def key(index: int) -> SlotKey:
    """A slot of model `m`."""
    return SlotKey("m", index)


def test_restart_model_from_command_to_answer() -> None:
    """New template, then the old one goes, then one worker at a time, each only when the one before is READY; then the answer."""
    history = History.running(2)
    assert effects(history.restart_model()) == [act.StartTemplate(SECOND)]
    assert {history.phase(0), history.phase(1)} == {Phase.READY}
    assert effects(history.loaded(2)) == [
        act.SignalTemplate(FIRST, Ending.TERM),
        act.TellWorker(key(0), 1),
    ]
    assert one(history.template_exited(1), act.ReportTemplateExit).next is not Next.RESTART
    for index in (0, 1):
        assert effects(history.exited(index)) == [act.ForkWorker(key(index), 2, SECOND)]
        assert effects(history.born(index)) == []
        actions = history.ready(index)
        if index == 0:
            assert effects(actions) == [act.TellWorker(key(1), 1)]
            assert only(actions, act.Answer) == []
    answer = one(actions, act.Answer)
    assert (answer.command, answer.ok, answer.keys) == (1, True, (key(0), key(1)))
    assert history.state.models["m"].restart is None


def test_restart_slot_from_command_to_answer() -> None:
    """The one worker is told to go, its successor comes from the present template, and the answer names it alone."""
    history = History.running(3)
    assert effects(history.restart_slot(1, command=8)) == [act.TellWorker(key(1), 1)]
    report = one(actions := history.exited(1), act.ReportWorkerExit)
    assert (report.asked, report.next, report.failures) == (True, Next.RESTART, 0)
    assert effects(actions) == [act.ForkWorker(key(1), 2, FIRST)]
    history.born(1)
    answer = one(history.ready(1), act.Answer)
    assert (answer.command, answer.ok, answer.keys) == (8, True, (key(1),))
    assert [history.slot(index).generation for index in range(3)] == [1, 2, 1]


def test_a_candidate_that_fails_leaves_everything_serving() -> None:
    """It exits while it loads: one answer that says so, and nothing else happens to anybody."""
    history = History.running(2)
    history.restart_model()
    actions = history.template_exited(2)
    report = one(actions, act.ReportTemplateExit)
    assert (report.next, report.loaded) == (Next.NONE, False)
    answer = one(actions, act.Answer)
    assert (answer.ok, answer.code) == (False, "failed")
    assert "the present one serves on" in answer.message
    assert effects(actions) == []
    assert notes(actions) == ["restart.failed"]
    assert history.due is None
    assert {history.phase(0), history.phase(1)} == {Phase.READY}
    template = history.template(1)
    assert template is not None
    assert template.phase is TemplatePhase.READY
    assert effects(history.exited(0, answered=1)) == [act.ForkWorker(key(0), 2, FIRST)]


def test_a_candidate_that_does_not_load_in_time() -> None:
    """It is killed at startup_timeout, the command is answered then, and the next restart is a new try."""
    history = History.running(startup_timeout=9.0)
    history.restart_model(command=1)
    actions = history.after(9.0)
    assert effects(actions) == [act.SignalTemplate(SECOND, Ending.ABORT)]
    assert one(actions, act.Answer).ok is False
    assert effects(history.restart_model(command=2)) == [act.StartTemplate(TemplateKey("m", 3))]
    report = one(history.template_exited(2), act.ReportTemplateExit)
    assert (report.blame, report.next) == (Blame.START_TIMEOUT, Next.NONE)
    assert only(history.loaded(3), act.TellWorker) == [act.TellWorker(key(0), 1)]


def test_restart_asks_a_failed_model_at_once() -> None:
    """A model that gave up loading is tried now, with its counts forgotten, and comes back (`continue`, the file mended)."""
    history = History(2, exit_on_start_failure=False, max_failures=1)
    history.start()
    history.template_exited(1)
    assert history.phase() is Phase.FAILED
    assert effects(history.restart_model()) == [act.StartTemplate(SECOND)]
    assert history.state.models["m"].failures == 0
    history.loaded(2)
    history.serve(0)
    answer = one(history.serve(1), act.Answer)
    assert (answer.ok, answer.keys) == (True, (key(0), key(1)))
    assert history.state.models["m"].retry_at is None


def test_restart_of_a_failed_model_that_fails_again() -> None:
    """One answer, and the back-off goes on from its beginning."""
    history = History(exit_on_start_failure=False, max_failures=2)
    history.start()
    history.template_exited(1)
    history.template_exited(2)
    history.restart_model()
    actions = history.template_exited(3)
    assert one(actions, act.Answer).ok is False
    assert "serves on" not in one(actions, act.Answer).message
    assert one(actions, act.ReportTemplateExit).failures == 1
    assert effects(actions) == [act.StartTemplate(TemplateKey("m", 4))]


def test_restart_while_the_model_loads() -> None:
    """The load under way is of the old files: it is ended, and its end asked for; the new one is waited for."""
    history = History()
    history.start()
    actions = history.restart_model()
    assert effects(actions) == [
        act.SignalTemplate(FIRST, Ending.TERM),
        act.StartTemplate(SECOND),
    ]
    report = one(history.template_exited(1), act.ReportTemplateExit)
    assert (report.asked, report.next) == (True, Next.NONE)
    history.loaded(2)
    assert one(history.serve(), act.Answer).ok is True
    assert history.state.run is Run.RUNNING


def test_the_present_template_dies_while_its_replacement_loads() -> None:
    """A next one is started or due; the candidate that loads first takes its place, and that try is not due any more."""
    history = History.running()
    history.restart_model()
    assert effects(history.template_exited(1)) == [act.StartTemplate(TemplateKey("m", 3))]
    history.template_exited(3)
    assert history.state.models["m"].retry_at is not None
    assert effects(history.loaded(2)) == [act.TellWorker(key(0), 1)]
    assert history.state.models["m"].retry_at is None
    history.exited()
    assert one(history.serve(), act.Answer).ok is True
    assert history.due is None


def test_a_candidate_takes_the_place_of_one_that_loads() -> None:
    """The present one died and its successor still loads: the candidate is first, and the other one is sent away."""
    history = History.running()
    history.restart_model()
    history.template_exited(1)
    assert effects(history.loaded(2)) == [
        act.SignalTemplate(TemplateKey("m", 3), Ending.TERM),
        act.TellWorker(key(0), 1),
    ]


def test_a_failed_slot_is_restarted_at_once() -> None:
    """What failed before the restart is forgotten, its slow retry too."""
    history = History.running(2, max_failures=1)
    history.exited(1)
    assert history.phase(1) is Phase.FAILED
    assert effects(history.restart_slot(1)) == [act.ForkWorker(key(1), 2, FIRST)]
    assert history.slot(1).failures == 0
    assert one(history.serve(1), act.Answer).keys == (key(1),)


def test_a_slot_with_a_row_of_poison_is_restarted_at_once() -> None:
    """An operator's restart ends the pause after charged deaths as well."""
    history = History.running()
    for _ in range(5):
        history.exited(in_hand=1)
        if history.phase() is Phase.STARTING:
            history.serve()
    assert history.phase() is Phase.BACKING_OFF
    assert effects(history.restart_slot()) == [act.ForkWorker(key(0), 6, FIRST)]


def test_a_worker_born_of_the_new_template_is_not_replaced_again() -> None:
    """It died by itself in the meantime: its successor already is what the operator wants."""
    history = History.running(2)
    history.restart_model()
    history.loaded(2)
    assert effects(history.exited(1, answered=1)) == [act.ForkWorker(key(1), 2, SECOND)]
    history.serve(1)
    history.exited(0)
    history.born(0)
    actions = history.ready(0)
    assert effects(actions) == []
    assert one(actions, act.Answer).ok is True


def test_a_worker_born_of_a_later_template_is_not_replaced_again() -> None:
    """The new template died on the way and was made again: what is born of that one is as new."""
    history = History.running(2)
    history.restart_model()
    history.loaded(2)
    history.template_exited(2)
    history.loaded(3)
    history.exited(1, answered=1)
    history.serve(1)
    history.exited(0)
    assert one(history.serve(0), act.Answer).ok is True
    assert history.slot(1).generation == 2


def test_a_worker_that_is_being_born_of_the_old_template_is_replaced() -> None:
    """Its code is the old one: SIGTERM, and a successor of the new template."""
    history = History.running()
    history.restart_model()
    history.exited(0, answered=1)
    history.born(0)
    assert act.SignalWorker(key(0), 2, Ending.TERM) in history.loaded(2)
    assert effects(history.exited(0)) == [act.ForkWorker(key(0), 3, SECOND)]
    assert one(history.serve(), act.Answer).ok is True


def test_a_new_worker_that_does_not_start_ends_the_restart() -> None:
    """The other workers go on with what they have; the slot itself backs off as always."""
    history = History.running(2)
    history.restart_model()
    history.loaded(2)
    history.exited(0)
    history.born(0)
    assert only(history.exited(0), act.Answer) == []  # the first failure is tried again at once
    history.born(0)
    actions = history.exited(0)
    answer = one(actions, act.Answer)
    assert (answer.ok, answer.code) == (False, "failed")
    assert "m/0" in answer.message
    assert effects(actions) == []
    assert history.phase(0) is Phase.BACKING_OFF
    assert (history.phase(1), history.slot(1).generation) == (Phase.READY, 1)


def test_a_worker_that_ignores_the_message_does_not_hold_the_restart() -> None:
    """stop_timeout, SIGTERM, SIGKILL, and on it goes."""
    history = History.running(stop_timeout=3.0)
    history.restart_slot()
    assert effects(history.after(3.0)) == [act.SignalWorker(key(0), 1, Ending.TERM)]
    assert effects(history.after(1.0)) == [act.SignalWorker(key(0), 1, Ending.KILL)]
    assert one(history.exited(), act.ReportWorkerExit).failures == 0
    assert one(history.serve(), act.Answer).ok is True


def test_refusals() -> None:
    """What is not there, what cannot be done now: one answer each, and nothing changes."""
    history = History.running(2)
    cases = [
        (history.restart_model(1, "nope"), "not_found", "there is no model nope; there are: m"),
        (history.restart_slot(0, 2, "nope"), "not_found", "there is no model nope"),
        (history.restart_slot(2, 3), "not_found", "there is no worker m/2; m has 0 to 1"),
        (history.restart_slot(-1, 4), "not_found", "there is no worker m/-1"),
    ]
    for command, (actions, code, message) in enumerate(cases, start=1):
        answer = one(actions, act.Answer)
        assert (answer.command, answer.ok, answer.code) == (command, False, code)
        assert answer.message.startswith(message)
        assert len(actions) == 1
    history.restart_slot(0, 5)
    before = history.state
    for actions in (history.restart_slot(1, 6), history.restart_model(7)):
        answer = one(actions, act.Answer)
        assert (answer.ok, answer.code) == (False, "refused")
        assert "under way" in answer.message
    assert history.state == before


def test_restart_slot_needs_a_template() -> None:
    """Without one there is nothing to fork from: refused, with what to do instead."""
    history = History.running()
    history.template_exited()
    before = history.state
    answer = one(history.restart_slot(), act.Answer)
    assert (answer.ok, answer.code) == (False, "refused")
    assert "restart m loads it anew" in answer.message
    assert history.state == before


@pytest.mark.parametrize("model", [True, False])
def test_no_restart_before_the_start(model: bool) -> None:
    """Before the edge is prepared nothing may be born, by a command neither."""
    history = History()
    actions = history.restart_model() if model else history.restart_slot()
    assert one(actions, act.Answer).code == "refused"
    assert effects(history.start()) == [act.StartTemplate(FIRST)]


@pytest.mark.parametrize("when", ["loading", "draining", "starting"])
def test_a_stop_answers_the_restart(when: str) -> None:
    """Whoever waits is told once, and the restart does not go on."""
    history = History.running(2)
    history.restart_model(command=9)
    if when != "loading":
        history.loaded(2)
    if when == "starting":
        history.exited(0)
        history.born(0)
    answer = one(history.stop(), act.Answer)
    assert (answer.command, answer.ok, answer.code) == (9, False, "refused")
    assert "stopping" in answer.message
    actions = history.after(0.5) + history.exited(0) + history.exited(1)
    assert only(actions, act.ForkWorker) == []
    assert only(actions, act.Answer) == []


def test_a_restart_in_the_stop_is_refused() -> None:
    """The stop is a state, commands are answered in it, and nothing is started by them."""
    history = History.running()
    history.stop()
    for actions in (history.restart_model(1), history.restart_slot(0, 2)):
        assert one(actions, act.Answer).message == "the supervisor is stopping"
        assert len(actions) == 1


def test_a_restart_of_one_model_leaves_another_alone() -> None:
    """And two models may be restarted at the same time."""
    history = History(models=("m", "n"))
    history.start()
    for model in ("m", "n"):
        history.loaded(1, model)
        history.serve(0, model)
    history.restart_model(1, "m")
    history.restart_model(2, "n")
    actions = history.loaded(2, "m")
    assert {
        a.key.model for a in actions if isinstance(a, (act.TellWorker, act.SignalTemplate))
    } == {"m"}
    assert one(history.template_exited(2, "n"), act.Answer).command == 2
    history.exited(0, model="m")
    assert one(history.serve(0, "m"), act.Answer).command == 1
