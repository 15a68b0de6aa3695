"""The life of a slot, sentence by sentence of DESIGN §3: births, readiness, failures and charges."""

from __future__ import annotations

import pytest
from unit.history import History, effects, notes, one, only

from modelsupervisor.core import actions as act
from modelsupervisor.core.actions import Ending, Next
from modelsupervisor.core.states import Phase, SlotKey, TemplateKey

KEY = SlotKey("m", 0)
TEMPLATE = TemplateKey("m", 1)


def fork(generation: int, index: int = 0, template: int = 1) -> act.ForkWorker:
    """The order for a birth of model `m`."""
    return act.ForkWorker(SlotKey("m", index), generation, TemplateKey("m", template))


# Birth and readiness -------------------------------------------------------------------------------------------------


def test_a_birth_follows_the_template() -> None:
    """Nothing is forked before the template has loaded; then each slot is, once, with its deadlines set first."""
    history = History(2)
    assert effects(history.start()) == [act.StartTemplate(TEMPLATE)]
    actions = history.loaded()
    assert effects(actions) == [fork(1, 0), fork(1, 1)]
    assert notes(actions) == ["template.ready", "worker.starting", "worker.starting"]
    slot = history.slot()
    assert (slot.phase, slot.generation, slot.template) == (Phase.STARTING, 1, 1)
    assert slot.deadline == history.now + 120.0
    assert slot.birth_deadline == history.now + 10.0


def test_ready_is_a_message() -> None:
    """Only the worker's word makes a slot READY; its birth does not. The note says how long it took since it was asked for."""
    history = History()
    history.start()
    history.loaded()
    history.now += 0.25
    history.born()
    assert history.phase() is Phase.STARTING
    history.now += 0.5
    actions = history.ready()
    assert history.phase() is Phase.READY
    assert history.slot().deadline is None
    note = only(actions, act.Note)[0]
    assert (note.event, note.generation) == ("worker.ready", 1)
    assert dict(note.fields) == {"start_s": 0.75}


def test_ready_is_said_once() -> None:
    """A second ready changes nothing, `ready_at` least of all: a chatty worker does not postpone its own stability."""
    history = History.running()
    since = history.slot().ready_at
    history.now += 5.0
    assert history.ready() == ()
    assert history.slot().ready_at == since


def early_bird() -> History:
    """A worker that says ready before its template has told of it."""
    history = History()
    history.start()
    history.loaded()
    history.now += 0.01
    history.ready()
    assert (history.phase(), history.slot().born) == (Phase.READY, False)
    return history


def test_ready_before_born() -> None:
    """The order of two descriptors is no order of facts: it serves, and becomes known when its birth is told."""
    history = early_bird()
    history.born()
    assert (history.phase(), history.slot().born) == (Phase.READY, True)
    assert history.due is None
    assert effects(history.exited(answered=1)) == [fork(2)]


def test_a_worker_that_never_becomes_known_is_given_up() -> None:
    """Its template hung after the fork: nobody would see its end, so its channel is closed and it is replaced."""
    history = early_bird()
    assert effects(history.after(9.99)) == [
        act.SignalTemplate(TEMPLATE, Ending.ABORT),
        act.AbandonBirth(KEY, 1),
    ]
    history.template_exited()
    assert effects(history.loaded(2)) == [fork(2, template=2)]


def test_a_worker_that_dies_unknown_is_replaced() -> None:
    """The edge sees its channel close: a birth that failed, although it had said ready."""
    history = early_bird()
    history.template_exited()
    report = one(history.birth_failed(), act.ReportWorkerExit)
    assert (report.next, report.failures) == (Next.WAIT, 0)
    assert effects(history.loaded(2)) == [fork(2, template=2)]


@pytest.mark.parametrize("becomes_known", [True, False])
def test_an_unknown_worker_is_stopped_like_another(becomes_known: bool) -> None:
    """It has a channel to be told by; SIGTERM waits until it is known, and what is never known is abandoned."""
    history = early_bird()
    assert act.TellWorker(KEY, 1) in history.stop()
    if becomes_known:
        history.born()
        assert act.SignalWorker(KEY, 1, Ending.TERM) in history.after(10.0)
        return
    assert only(history.after(10.0), act.SignalWorker) == []
    assert only(history.after(1.0), act.AbandonBirth) == [act.AbandonBirth(KEY, 1)]
    assert history.phase() is Phase.EMPTY


def test_an_unknown_worker_that_went_was_asked() -> None:
    """It obeyed the message before it became known: that is no failure."""
    history = early_bird()
    history.restart_slot()
    report = one(history.birth_failed(), act.ReportWorkerExit)
    assert (report.asked, report.failures, report.next) == (True, 0, Next.RESTART)


# Exits and failures --------------------------------------------------------------------------------------------------


def test_back_off_after_failures_in_a_row() -> None:
    """0, 0.5, 1, 2 s (± 20 %) after idle deaths; the fifth in a row makes the slot FAILED, with a slow retry."""
    history = History.running()
    expected = [0.0, 0.5, 1.0, 2.0]
    for failures, plain in enumerate(expected, start=1):
        history.now += 0.1
        actions = history.exited()
        report = one(actions, act.ReportWorkerExit)
        assert report.failures == failures
        assert not report.asked
        if plain:
            assert report.next is Next.BACK_OFF
            assert report.delay is not None
            assert plain * 0.8 <= report.delay <= plain * 1.2
            assert history.phase() is Phase.BACKING_OFF
            assert effects(actions) == []
            assert history.due == pytest.approx(report.delay)
            actions = history.wake()
        else:
            assert (report.next, report.delay) == (Next.RESTART, None)
        assert effects(actions) == [fork(failures + 1)]
        history.serve()
    actions = history.exited()
    report = one(actions, act.ReportWorkerExit)
    assert (report.next, report.delay, report.failures) == (Next.FAILED, 60.0, 5)
    assert notes(actions) == ["worker.failed"]
    assert history.phase() is Phase.FAILED
    assert history.due == pytest.approx(60.0)


def test_failed_is_retried_for_ever() -> None:
    """Each retry_failed_after one try; a try that fails leaves the slot FAILED again, at the same pace."""
    history = History.running(max_failures=1, retry_failed_after=7.0)
    history.exited()
    for retry in range(4):
        assert history.phase() is Phase.FAILED
        assert history.due == pytest.approx(7.0)
        assert effects(history.after(6.9)) == []
        assert effects(history.wake()) == [fork(retry + 2)]
        history.born()
        assert one(history.exited(), act.ReportWorkerExit).next is Next.FAILED


def test_the_successor_is_forked_before_the_report() -> None:
    """Words come after deeds, since the log must not delay the birth; and the end is told before the next beginning."""
    kinds = [type(action) for action in History.running().exited()]
    assert kinds == [act.ForkWorker, act.ReportWorkerExit, act.Note]


@pytest.mark.parametrize("phase", ["unready", "ready"])
def test_dying_idle_or_before_ready_is_a_failure(phase: str) -> None:
    """A generation that died before READY, or idle without one answer, counts."""
    history = History.running()
    history.exited()
    history.born()
    if phase == "ready":
        history.ready()
    history.exited()
    assert history.slot().failures == 2


def fail_often(history: History, times: int) -> None:
    """So many idle deaths in a row, and the next generation READY."""
    for _ in range(times):
        history.exited()
        if history.phase() is Phase.BACKING_OFF:
            history.wake()
        history.serve()
    assert history.slot().failures == times


def test_one_answer_resets_the_count() -> None:
    """A generation that answered has not failed, and what failed before it is forgotten."""
    history = History.running()
    fail_often(history, 4)
    report = one(history.exited(answered=1), act.ReportWorkerExit)
    assert (report.next, report.failures) == (Next.RESTART, 0)
    assert history.slot().failures == 0


@pytest.mark.parametrize(("lived", "failures"), [(9.99, 5), (10.0, 0)])
def test_stability_resets_the_count(lived: float, failures: int) -> None:
    """Staying READY for stable_after does as much as an answer; a moment less does not."""
    history = History.running()
    fail_often(history, 4)
    history.now += lived
    assert one(history.exited(), act.ReportWorkerExit).failures == failures


def test_stability_is_time_ready_not_time_alive() -> None:
    """A worker that needs long to start has not proved anything by that."""
    history = History()
    history.start()
    history.loaded()
    history.born()
    history.now += 50.0
    assert one(history.exited(), act.ReportWorkerExit).failures == 1


def test_a_death_by_request_is_not_the_slots() -> None:
    """With a request in hand the request is charged: births go on at once, however many die, and the count stays."""
    history = History.running()
    fail_often(history, 3)
    for death in range(1, 5):
        history.now += 0.2
        report = one(history.exited(in_hand=2), act.ReportWorkerExit)
        assert (report.next, report.failures) == (Next.RESTART, 3)
        assert history.slot().charged == death
        history.serve()


def test_charged_deaths_slow_births_to_one_a_second() -> None:
    """After five in a row without one answer the next birth is a second after the last, and never FAILED."""
    history = History.running()
    for _ in range(4):
        history.now += 0.2
        history.exited(in_hand=1)
        history.serve()
    for _ in range(10):
        history.now += 0.2
        report = one(history.exited(in_hand=1), act.ReportWorkerExit)
        assert report.next is Next.BACK_OFF
        assert report.delay == pytest.approx(0.8)
        assert history.phase() is Phase.BACKING_OFF
        assert only(history.after(0.79), act.ForkWorker) == []
        assert len(only(history.after(0.02), act.ForkWorker)) == 1
        history.serve()


def test_one_answer_ends_the_row_of_charged_deaths() -> None:
    """Somebody was answered: the poison is not all that comes, and births are immediate again."""
    history = History.running()
    for _ in range(4):
        history.exited(in_hand=1)
        history.serve()
    history.exited(in_hand=1, answered=3)
    assert history.slot().charged == 1
    assert history.phase() is Phase.STARTING


def test_time_alone_does_not_end_the_row_of_charged_deaths() -> None:
    """A poison request every minute is still one: only an answer, or an end without a request, shows that others are served."""
    history = History.running()
    for death in range(1, 7):
        history.now += 60.0
        history.exited(in_hand=1)
        assert history.slot().charged == death
        history.serve()


def test_in_hand_before_ready_is_no_excuse() -> None:
    """A generation that was never READY had no request: its record says what was there before it."""
    history = History()
    history.start()
    history.loaded()
    history.born()
    history.exited(in_hand=3)
    assert (history.slot().failures, history.slot().charged) == (1, 0)


def test_twenty_births_a_second_whatever_the_cause() -> None:
    """A worker that answers and dies at once is no failure, and still bounded: the 21st birth waits for the window."""
    history = History.running()
    first = history.slot().births[0]
    for _ in range(19):
        history.now += 0.01
        assert one(history.exited(answered=1), act.ReportWorkerExit).next is Next.RESTART
        history.serve()
    report = one(history.exited(answered=1), act.ReportWorkerExit)
    assert report.next is Next.BACK_OFF
    assert report.delay == pytest.approx(first + 1.0 - history.now)
    assert effects(history.wake()) == [fork(21)]
    assert history.now == first + 1.0


def test_a_first_failure_held_by_the_window_says_so() -> None:
    """The back-off of a first failure is nothing, but the window may hold it: the report gives that time."""
    history = History.running()
    for _ in range(19):
        history.exited(answered=1)
        history.serve()
    report = one(history.exited(), act.ReportWorkerExit)
    assert (report.next, report.failures) == (Next.BACK_OFF, 1)
    assert report.delay == pytest.approx(1.0)


def test_healthy_slots_go_on() -> None:
    """A slot that fails for good touches nobody else, and slots back off by themselves."""
    history = History.running(3)
    for _ in range(5):
        history.exited(1)
        while history.phase(1) is Phase.BACKING_OFF:
            actions = history.wake()
            assert {a.key.index for a in actions if isinstance(a, act.ForkWorker)} <= {1}
        if history.phase(1) is Phase.STARTING:
            history.serve(1)
    assert [history.phase(index) for index in range(3)] == [Phase.READY, Phase.FAILED, Phase.READY]
    assert [history.slot(index).generation for index in (0, 2)] == [1, 1]


def test_backing_off_delays_nobody() -> None:
    """The wait of one slot is a deadline and no sleep: another one is replaced at once meanwhile."""
    history = History.running(2)
    history.exited(0)
    history.serve(0)
    history.exited(0)
    assert history.phase(0) is Phase.BACKING_OFF
    assert effects(history.exited(1)) == [fork(2, 1)]
