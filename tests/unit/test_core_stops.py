"""How a slot loses its process, sentence by sentence of DESIGN §3: births that fail, deadlines, stops, and news that comes late."""

from __future__ import annotations

import pytest
from unit.history import History, effects, one, only

from modelsupervisor.core import actions as act
from modelsupervisor.core.actions import Ending, Next
from modelsupervisor.core.states import Blame, Phase, SlotKey, TemplateKey, TemplatePhase

KEY = SlotKey("m", 0)
TEMPLATE = TemplateKey("m", 1)


def fork(generation: int, index: int = 0, template: int = 1) -> act.ForkWorker:
    """The order for a birth of model `m`."""
    return act.ForkWorker(SlotKey("m", index), generation, TemplateKey("m", template))


# Births that fail ----------------------------------------------------------------------------------------------------


def test_a_fork_that_fails_is_a_failure_of_the_slot() -> None:
    """EAGAIN at fork follows the same back-off; there is a report, and it says that there never was a process."""
    history = History.running()
    history.exited(answered=1)
    report = one(history.birth_failed(), act.ReportWorkerExit)
    assert (report.spawned, report.next, report.failures, report.reason) == (
        False,
        Next.RESTART,
        1,
        "EAGAIN",
    )
    for failures in range(2, 6):
        report = one(history.birth_failed(), act.ReportWorkerExit)
        assert report.failures == failures
        if failures < 5:
            assert report.next is Next.BACK_OFF
            history.wake()
    assert history.phase() is Phase.FAILED


def test_a_template_that_died_in_a_birth_is_its_own_fault() -> None:
    """The slot waits for the next template, without a failure of its own, and is born of it at once."""
    history = History.running()
    history.exited(answered=1)
    history.template_exited()
    report = one(history.birth_failed(), act.ReportWorkerExit)
    assert (report.next, report.failures, report.asked) == (Next.WAIT, 0, False)
    assert history.phase() is Phase.EMPTY
    assert effects(history.loaded(2)) == [fork(3, template=2)]


def test_a_template_that_does_not_fork_is_hung() -> None:
    """Ten seconds after it was asked it is ended, its births are forgotten, and its death is blamed."""
    history = History.running(2)
    history.exited(0, answered=1)
    assert effects(history.after(9.9)) == []
    actions = history.after(0.1)
    assert effects(actions) == [
        act.SignalTemplate(TEMPLATE, Ending.ABORT),
        act.AbandonBirth(KEY, 2),
    ]
    report = one(actions, act.ReportWorkerExit)
    assert (report.next, report.spawned, report.failures) == (Next.WAIT, False, 0)
    assert history.phase(1) is Phase.READY
    death = one(history.template_exited(), act.ReportTemplateExit)
    assert (death.blame, death.asked, death.next) == (Blame.HUNG, False, Next.RESTART)


def test_births_that_wait_for_their_turn_are_not_late() -> None:
    """While the template bears workers the others wait; ten seconds after the last one it is hung after all."""
    history = History(workers=3)
    history.start()
    history.loaded()
    history.after(9.0)
    history.born(0)
    assert effects(history.after(9.5)) == []
    history.born(1)
    assert effects(history.after(9.9)) == []
    actions = history.after(0.2)
    assert one(actions, act.SignalTemplate).ending is act.Ending.ABORT
    assert one(actions, act.AbandonBirth).key.index == 2


def test_a_retired_template_that_hangs_is_no_busy_loop() -> None:
    """Sent away and hung: SIGKILL comes once, by the deadline that it has, and its end was asked for."""
    history = History.running(2)
    history.exited(1, answered=1)
    history.now += 9.5
    history.restart_model()
    history.loaded(2)
    template = history.template(1)
    assert template is not None
    assert template.phase is TemplatePhase.STOPPING
    assert only(history.after(0.5), act.SignalTemplate) == []
    kills = effects(history.after(0.5))
    assert act.SignalTemplate(TEMPLATE, Ending.KILL) in kills
    assert only(history.after(5.0), act.SignalTemplate) == []
    assert history.due is None or history.due > 0
    assert one(history.template_exited(), act.ReportTemplateExit).asked


def test_a_short_startup_timeout_bounds_the_birth_too() -> None:
    """Unborn at startup_timeout: the same as unborn after ten seconds."""
    history = History.running(startup_timeout=2.0)
    history.exited(answered=1)
    actions = history.after(2.0)
    assert only(actions, act.SignalTemplate) == [act.SignalTemplate(TEMPLATE, Ending.ABORT)]
    assert only(actions, act.AbandonBirth) == [act.AbandonBirth(KEY, 2)]


def test_what_comes_of_an_abandoned_birth_is_not_ours() -> None:
    """It was forgotten: its birth, its ready and its exit change nothing."""
    history = History.running()
    history.exited(answered=1)
    history.after(10.0)
    before = history.state
    assert history.born(generation=2) == history.ready(generation=2) == ()
    assert history.exited(generation=2, declined=True) == ()
    assert history.state == before


# Deadlines and stops -------------------------------------------------------------------------------------------------


def test_not_ready_in_time() -> None:
    """At startup_timeout: SIGABRT for its stacks, SIGKILL a second later; its death is a failure with that blame."""
    history = History.running(startup_timeout=20.0)
    history.exited(answered=1)
    history.born()
    assert effects(history.after(19.9)) == []
    assert effects(history.after(0.1)) == [act.SignalWorker(KEY, 2, Ending.ABORT)]
    assert history.ready() == ()
    assert effects(history.after(0.9)) == []
    assert effects(history.after(0.1)) == [act.SignalWorker(KEY, 2, Ending.KILL)]
    assert history.due is None
    report = one(history.exited(), act.ReportWorkerExit)
    assert (report.blame, report.asked, report.failures) == (Blame.START_TIMEOUT, False, 1)
    assert report.next is Next.RESTART


def test_drain_then_term_then_kill() -> None:
    """The message first, SIGTERM at stop_timeout, SIGKILL a second later, each exactly once."""
    history = History.running()
    assert only(history.stop(), act.TellWorker) == [act.TellWorker(KEY, 1)]
    assert history.phase() is Phase.DRAINING
    history.template_exited()
    assert effects(history.after(9.9)) == []
    actions = history.after(0.1)
    assert effects(actions) == [act.SignalWorker(KEY, 1, Ending.TERM)]
    assert dict(one(actions, act.Note).fields) == {"sent": "SIGTERM"}
    assert history.phase() is Phase.STOPPING
    assert effects(history.after(0.9)) == []
    actions = history.after(0.1)
    assert effects(actions) == [act.SignalWorker(KEY, 1, Ending.KILL)]
    assert dict(one(actions, act.Note).fields) == {"sent": "SIGKILL"}
    assert one(actions, act.Note).event == "worker.overdue"
    assert effects(history.after(5.0)) == []
    actions = history.exited(in_hand=1)
    report = one(actions, act.ReportWorkerExit)
    assert (report.asked, report.next, report.failures) == (True, Next.NONE, 0)
    assert one(actions, act.Exit).code == 0


def test_stop_while_starting_and_born() -> None:
    """It holds no request: SIGTERM at once, SIGKILL a second later."""
    history = History()
    history.start()
    history.loaded()
    history.born()
    assert act.SignalWorker(KEY, 1, Ending.TERM) in history.stop()
    assert history.ready() == ()
    assert act.SignalWorker(KEY, 1, Ending.KILL) in history.after(1.0)
    assert one(history.exited(), act.ReportWorkerExit).asked


def test_stop_while_starting_and_unborn() -> None:
    """There is nobody to signal yet: it gets SIGTERM at its birth, and SIGKILL a second after that."""
    history = History()
    history.start()
    history.loaded()
    assert only(history.stop(), act.SignalWorker) == []
    history.now += 0.5
    assert effects(history.born()) == [act.SignalWorker(KEY, 1, Ending.TERM)]
    assert only(history.after(0.9), act.SignalWorker) == []
    assert only(history.after(0.1), act.SignalWorker) == [act.SignalWorker(KEY, 1, Ending.KILL)]


def test_stop_does_not_wait_for_a_birth() -> None:
    """A birth that does not come within a second of the stop is abandoned, and its slot is at rest."""
    history = History()
    history.start()
    history.loaded()
    history.stop()
    actions = history.after(1.0)
    assert only(actions, act.AbandonBirth) == [act.AbandonBirth(KEY, 1)]
    report = one(actions, act.ReportWorkerExit)
    assert (report.asked, report.spawned, report.next) == (True, False, Next.NONE)
    assert history.phase() is Phase.EMPTY


def test_a_birth_after_the_second_stop_is_killed() -> None:
    """Now means now, also for who is not there yet."""
    history = History()
    history.start()
    history.loaded()
    history.stop()
    history.stop()
    assert effects(history.born()) == [act.SignalWorker(KEY, 1, Ending.KILL)]


@pytest.mark.parametrize("state", ["backing off", "failed", "waiting"])
def test_stop_ends_every_wait(state: str) -> None:
    """A slot without a process is at rest at once, and no retry is left that could wake it."""
    history = History.running(max_failures=1 if state == "failed" else 5)
    if state == "waiting":
        history.template_exited()
    history.exited()
    if state == "backing off":
        history.serve()
        history.exited()
        assert history.phase() is Phase.BACKING_OFF
    history.stop()
    assert history.phase() is Phase.EMPTY
    assert only(history.after(100.0), act.ForkWorker) == []


# News that comes late ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("generation", [1, 3, 99])
def test_news_of_other_generations_changes_nothing(generation: int) -> None:
    """Whatever is said of a generation that is not the present one, in whatever phase."""
    history = History.running()
    history.exited(answered=1)
    for _ in range(3):
        before = history.state
        assert history.born(generation=generation) == ()
        assert history.ready(generation=generation) == ()
        assert history.birth_failed(generation=generation) == ()
        assert history.exited(generation=generation, answered=5, declined=True) == ()
        assert history.state == before
        history.serve() if history.phase() is Phase.STARTING else history.stop()


def test_a_second_exit_changes_nothing() -> None:
    """A slot that has no process cannot lose it again."""
    history = History.running()
    history.exited()
    history.serve()
    history.exited()
    assert history.phase() is Phase.BACKING_OFF
    before = history.state
    assert history.exited(generation=2) == ()
    assert history.birth_failed(generation=2) == ()
    assert history.state == before


def test_a_birth_that_came_cannot_fail() -> None:
    """Once born, only an exit ends it."""
    history = History.running()
    before = history.state
    assert history.birth_failed() == ()
    assert history.state == before
