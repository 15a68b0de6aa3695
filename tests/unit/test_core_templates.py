"""The life of a template: loading, its failures and their back-off, its ends, and the slots that wait for it (DESIGN §1, §3)."""

from __future__ import annotations

import pytest
from unit.history import History, effects, one, only

from modelsupervisor.core import actions as act
from modelsupervisor.core.actions import Ending, Next
from modelsupervisor.core.states import Blame, Phase, Run, SlotKey, TemplateKey

FIRST, SECOND = TemplateKey("m", 1), TemplateKey("m", 2)


def test_every_model_loads_at_start() -> None:
    """One template for each model, at once and side by side."""
    history = History(models=("m", "n"))
    started = only(history.start(), act.StartTemplate)
    assert started == [act.StartTemplate(FIRST), act.StartTemplate(TemplateKey("n", 1))]


def test_started_twice_changes_nothing() -> None:
    """The edge says once that it is prepared; a repetition loads nothing again."""
    history = History()
    history.start()
    before = history.state
    assert history.start() == ()
    history.loaded()
    history.serve()
    assert history.start() == ()
    assert before.templates.keys() == history.state.templates.keys()


def test_loading_has_a_deadline() -> None:
    """At startup_timeout SIGABRT and then SIGKILL; the death is blamed on that, and with `continue` the next try follows."""
    history = History(exit_on_start_failure=False, startup_timeout=30.0)
    history.start()
    assert effects(history.after(29.9)) == []
    assert effects(history.after(0.1)) == [act.SignalTemplate(FIRST, Ending.ABORT)]
    assert effects(history.after(1.0)) == [act.SignalTemplate(FIRST, Ending.KILL)]
    assert effects(history.after(60.0)) == []
    assert history.loaded() == ()
    report = one(history.template_exited(), act.ReportTemplateExit)
    assert (report.blame, report.asked, report.loaded) == (Blame.START_TIMEOUT, False, False)
    assert report.next is Next.RESTART


def test_loading_follows_the_back_off() -> None:
    """0, 0.5, 1, 2 s (± 20 %), then FAILED and every retry_failed_after; the model's slots show it in their phase."""
    history = History(2, exit_on_start_failure=False, retry_failed_after=45.0)
    history.start()
    for failures, plain in enumerate([0.0, 0.5, 1.0, 2.0], start=1):
        actions = history.template_exited(failures)
        report = one(actions, act.ReportTemplateExit)
        assert report.failures == failures
        if plain:
            assert report.next is Next.BACK_OFF
            assert report.delay is not None
            assert plain * 0.8 <= report.delay <= plain * 1.2
            assert history.due == pytest.approx(report.delay)
            assert {history.phase(0), history.phase(1)} == {Phase.BACKING_OFF}
            actions = history.wake()
        else:
            assert (report.next, report.delay) == (Next.RESTART, None)
        assert effects(actions) == [act.StartTemplate(TemplateKey("m", failures + 1))]
    report = one(history.template_exited(5), act.ReportTemplateExit)
    assert (report.next, report.delay) == (Next.FAILED, 45.0)
    assert {history.phase(0), history.phase(1)} == {Phase.FAILED}
    assert history.due == pytest.approx(45.0)
    assert effects(history.wake()) == [act.StartTemplate(TemplateKey("m", 6))]
    assert one(history.template_exited(6), act.ReportTemplateExit).next is Next.FAILED


def test_what_waited_is_born_when_a_template_has_loaded() -> None:
    """Slots that only waited for the model are born at once; a slot with a back-off of its own keeps that."""
    history = History.running(3)
    history.exited(1)
    history.serve(1)
    history.exited(1)
    assert history.phase(1) is Phase.BACKING_OFF
    history.template_exited()
    history.exited(0, answered=1)
    assert history.phase(0) is Phase.EMPTY
    forks = only(history.loaded(2), act.ForkWorker)
    assert [(fork.key.index, fork.template.generation) for fork in forks] == [(0, 2)]
    assert only(history.wake(), act.ForkWorker) == [act.ForkWorker(SlotKey("m", 1), 3, SECOND)]


def test_a_back_off_that_ends_without_a_template_waits_for_it() -> None:
    """Its time came while the model loads: born when it has loaded, not forgotten."""
    history = History.running()
    history.exited()
    history.serve()
    history.exited()
    history.template_exited()
    assert effects(history.wake()) == []
    assert history.phase() is Phase.EMPTY
    assert len(only(history.loaded(2), act.ForkWorker)) == 1


def test_living_workers_do_not_need_their_template() -> None:
    """Its death touches none of them; the next one is started at once, and READY it forks nothing that is not missing."""
    history = History.running(2)
    actions = history.template_exited()
    assert effects(actions) == [act.StartTemplate(SECOND)]
    report = one(actions, act.ReportTemplateExit)
    assert (report.loaded, report.asked, report.next) == (True, False, Next.RESTART)
    assert effects(history.loaded(2)) == []
    assert {history.phase(0), history.phase(1)} == {Phase.READY}
    assert {history.slot(0).generation, history.slot(1).generation} == {1}


@pytest.mark.parametrize(("lived", "failures"), [(9.99, 3), (10.0, 1)])
def test_a_template_that_was_stable_fails_for_the_first_time(lived: float, failures: int) -> None:
    """Two failures to load are forgotten once one has lived for stable_after; a moment less and they count."""
    history = History(exit_on_start_failure=False)
    history.start()
    history.template_exited(1)
    history.template_exited(2)
    history.wake()
    history.loaded(3)
    history.serve()
    history.now += lived
    assert one(history.template_exited(3), act.ReportTemplateExit).failures == failures


def test_a_template_that_loads_and_dies_backs_off() -> None:
    """Loading well is not success enough: death soon after READY is a failure in the row."""
    history = History.running()
    for generation in range(1, 5):
        report = one(history.template_exited(generation), act.ReportTemplateExit)
        assert report.failures == generation
        if report.next is Next.BACK_OFF:
            history.wake()
        history.loaded(generation + 1)
    assert one(history.template_exited(5), act.ReportTemplateExit).next is Next.FAILED
    assert history.phase() is Phase.READY


def test_one_model_waits_alone() -> None:
    """A model that does not load is nothing to another one."""
    history = History(models=("m", "n"), exit_on_start_failure=False)
    history.start()
    history.template_exited(1, "m")
    history.template_exited(2, "m")
    assert history.phase(0, "m") is Phase.BACKING_OFF
    assert history.phase(0, "n") is Phase.EMPTY
    assert len(only(history.loaded(1, "n"), act.ForkWorker)) == 1


def test_a_worker_that_dies_while_the_model_backs_off_shows_it() -> None:
    """It is not EMPTY, as if something was loading, but BACKING_OFF or FAILED as its model is, without a time of its own."""
    history = History.running(2, max_failures=3)
    history.template_exited(1)
    history.template_exited(2)
    report = one(history.exited(0, answered=1), act.ReportWorkerExit)
    assert report.next is Next.WAIT
    assert (history.phase(0), history.slot(0).deadline) == (Phase.BACKING_OFF, None)
    history.wake()
    history.template_exited(3)
    history.exited(1, answered=1)
    assert (history.phase(0), history.phase(1)) == (Phase.FAILED, Phase.FAILED)
    assert history.slot(1).deadline is None


def test_a_template_that_ignores_term_is_killed() -> None:
    """SIGTERM when it is retired, SIGKILL a second later, each once."""
    history = History.running()
    assert act.SignalTemplate(FIRST, Ending.TERM) in history.stop()
    history.exited()
    assert effects(history.after(0.9)) == []
    assert effects(history.after(0.1)) == [act.SignalTemplate(FIRST, Ending.KILL)]
    assert only(history.after(1.0), act.SignalTemplate) == []
    assert one(history.template_exited(), act.Exit).code == 0


def test_news_of_other_templates_changes_nothing() -> None:
    """A template that is gone, or that never was, says nothing; loading is said once."""
    history = History.running()
    history.template_exited()
    before = history.state
    for generation in (1, 3, 99):
        assert history.loaded(generation) == ()
        assert history.template_exited(generation) == ()
    assert history.state == before
    history.loaded(2)
    before = history.state
    assert history.loaded(2) == ()
    assert history.state == before


def test_a_stop_ends_the_next_try() -> None:
    """No template is started after the stop, whatever was due."""
    history = History(exit_on_start_failure=False)
    history.start()
    history.template_exited(1)
    history.template_exited(2)
    assert history.due is not None
    assert one(history.stop(), act.Exit).code == 0
    assert history.state.run is Run.DONE
    assert history.after(100.0) == ()


def test_a_template_that_dies_in_the_stop_is_not_replaced() -> None:
    """It was asked to go, and says so."""
    history = History.running()
    history.stop()
    actions = history.template_exited()
    report = one(actions, act.ReportTemplateExit)
    assert (report.asked, report.next, report.delay) == (True, Next.NONE, None)
    assert effects(actions) == []
