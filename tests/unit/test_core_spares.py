"""Spares: when they are born, who gets them, how their failures count, and how they go (DESIGN §3)."""

from __future__ import annotations

import pytest
from unit.history import Actions, History, effects, notes, one, only

from modelsupervisor.core import actions as act
from modelsupervisor.core.actions import Ending, Next
from modelsupervisor.core.slots import SPARE_PAUSE
from modelsupervisor.core.states import (
    Blame,
    Phase,
    Run,
    SlotKey,
    SpareKey,
    SparePhase,
    TemplateKey,
)

KEY, TEMPLATE = SlotKey("m", 0), TemplateKey("m", 1)
FIRST, SECOND, THIRD = (SpareKey("m", number) for number in (1, 2, 3))


def asked_for(actions: Actions) -> list[int]:
    """The numbers of the spares that a template was asked for."""
    return [fork.key.number for fork in only(actions, act.ForkSpare)]


def with_spares(workers: int = 1, spares: int = 1, **settings: float) -> History:
    """All workers READY, and all spares asked for."""
    history = History.running(workers, spares=spares, **settings)
    assert asked_for(history.after(SPARE_PAUSE)) == list(range(1, spares + 1))
    return history


def with_parked(workers: int = 1, spares: int = 1, **settings: float) -> History:
    """All workers READY, and all spares parked, some time ago."""
    history = with_spares(workers, spares, **settings)
    for number in range(1, spares + 1):
        history.park(number)
    assert history.after(1.0) == ()
    return history


# Births --------------------------------------------------------------------------------------------------------------


def test_spares_come_after_the_workers() -> None:
    """None is asked for while a slot of the model starts, nor in the moment of the first answer after that."""
    history = History(2, spares=2)
    history.start()
    assert asked_for(history.loaded()) == []
    assert asked_for(history.serve(0)) == []
    assert asked_for(history.serve(1)) == []
    assert history.due == pytest.approx(SPARE_PAUSE)
    forks = only(history.wake(), act.ForkSpare)
    assert forks == [act.ForkSpare(FIRST, TEMPLATE), act.ForkSpare(SECOND, TEMPLATE)]


def test_without_spares_nothing_is_due() -> None:
    """A model that keeps none asks for none, and READY sets no time for it."""
    assert History.running(2).due is None


def test_a_parked_spare_is_told_of_and_waits() -> None:
    """It lacks nothing but a slot; no deadline is left, and nobody waits for anything."""
    history = with_spares()
    history.spare_born()
    actions = history.parked()
    assert (notes(actions), effects(actions)) == (["spare.ready"], [])
    spare = history.spare()
    assert spare is not None
    assert spare.phase is SparePhase.PARKED
    assert history.due is None
    assert history.parked() == ()


def test_each_model_has_its_own() -> None:
    """A slot that starts holds back the spares of its model alone, and gets none of another's."""
    history = History(models=("m", "n"), spares=1)
    history.start()
    for model in ("m", "n"):
        history.loaded(1, model)
        history.serve(0, model)
    assert asked_for(history.after(SPARE_PAUSE)) == [1, 1]
    history.park(1, "n")
    history.spare_exited(1, "m")
    assert only(history.exited(0, model="m", answered=1), act.SeatSpare) == []
    assert only(history.exited(0, model="n", answered=1), act.SeatSpare) != []


# Seats ---------------------------------------------------------------------------------------------------------------


def test_a_spare_takes_over() -> None:
    """It is the next generation of the slot, asked for before the report of the death, and nothing is forked."""
    history = with_parked()
    actions = history.exited(answered=1)
    seat, report, note = actions
    assert seat == act.SeatSpare(FIRST, KEY, 2)
    assert isinstance(report, act.ReportWorkerExit)
    assert (report.next, report.failures) == (Next.RESTART, 0)
    assert isinstance(note, act.Note)
    assert (note.event, dict(note.fields)) == ("worker.starting", {"template": 1, "spare": 1})
    slot = history.slot()
    assert (slot.phase, slot.born, slot.template) == (Phase.STARTING, True, 1)
    assert history.spare() is None
    assert notes(history.ready()) == ["worker.ready"]


def test_the_next_spare_waits_for_the_first_answer() -> None:
    """Not while the seated one starts, and not for a moment after it is READY."""
    history = with_parked()
    assert asked_for(history.exited(answered=1)) == []
    assert asked_for(history.ready()) == []
    assert effects(history.after(SPARE_PAUSE - 0.001)) == []
    assert asked_for(history.wake()) == [2]


def test_the_oldest_goes_first() -> None:
    """Of two parked spares the one that was born first is seated."""
    history = with_parked(2, 2)
    assert one(history.exited(0, answered=1), act.SeatSpare).spare == FIRST
    assert one(history.exited(1, answered=1), act.SeatSpare).spare == SECOND


def test_nothing_waits_for_a_spare() -> None:
    """A slot that finds none parked is born from the template, as if there was no other way."""
    history = with_spares()
    history.spare_born()
    assert effects(history.exited(answered=1)) == [act.ForkWorker(KEY, 2, TEMPLATE)]
    assert notes(history.parked()) == ["spare.ready"]


def test_a_spare_serves_a_slot_whose_template_is_gone() -> None:
    """The death of the template costs the parked spare nothing, and the slot does not wait."""
    history = with_parked()
    history.template_exited()
    assert effects(history.exited(answered=1)) == [act.SeatSpare(FIRST, KEY, 2)]


def test_a_slot_that_waits_for_its_template_takes_what_parks() -> None:
    """The spare was on its way when template and worker died; it is seated when it parks, not when a template has loaded."""
    history = with_spares()
    history.spare_born()
    history.template_exited()
    assert one(history.exited(answered=1), act.ReportWorkerExit).next is Next.WAIT
    assert effects(history.parked()) == [act.SeatSpare(FIRST, KEY, 2)]


def test_a_spare_that_nobody_knows_is_not_seated() -> None:
    """It may say that it is parked before its template has told of it: then it could be neither signalled nor seen to end."""
    history = with_spares()
    assert notes(history.parked()) == ["spare.ready"]
    assert effects(history.exited(answered=1)) == [act.ForkWorker(KEY, 2, TEMPLATE)]
    history.serve()
    history.spare_born()
    assert effects(history.exited(answered=1)) == [act.SeatSpare(FIRST, KEY, 3)]


def test_a_birth_made_known_late_helps_a_slot_that_waits() -> None:
    """A template that is being ended as hung tells of a spare's birth at last: it was parked already, and is seated."""
    history = with_spares(startup_timeout=5.0)
    history.parked()
    history.exited(answered=1)
    assert only(history.wake(), act.AbandonBirth) == [act.AbandonBirth(KEY, 2)]
    assert history.phase() is Phase.EMPTY
    assert effects(history.spare_born()) == [act.SeatSpare(FIRST, KEY, 3)]


def test_a_seated_spare_that_does_not_serve() -> None:
    """From its seat on it is the slot's process: it is ended at startup_timeout, and its end is the slot's failure."""
    history = with_parked(startup_timeout=20.0)
    history.exited(answered=1)
    assert history.due == pytest.approx(20.0)
    assert act.SignalWorker(KEY, 2, Ending.ABORT) in history.wake()
    report = one(history.exited(), act.ReportWorkerExit)
    assert (report.blame, report.failures) == (Blame.START_TIMEOUT, 1)


def test_births_of_a_slot_are_bounded_with_spares_too() -> None:
    """The twenty-first birth of a second waits, parked spare or not; and then the spare is what it gets."""
    history = with_parked()
    history.exited(answered=1)
    for _ in range(19):
        history.ready()
        history.exited(answered=1)
        history.born()
    history.ready()
    history.after(0.06)
    history.park(2)
    report = one(history.exited(answered=1), act.ReportWorkerExit)
    assert report.next is Next.BACK_OFF
    assert effects(history.wake()) == [act.SeatSpare(SECOND, KEY, 22)]


# Failures ------------------------------------------------------------------------------------------------------------


def test_failures_of_spares_back_off() -> None:
    """0, 0.5, 1, 2 s (± 20 %), then every retry_failed_after; the slot, the model and the run know nothing of it."""
    history = with_spares(retry_failed_after=45.0)
    before = history.slot()
    for number, plain in enumerate([0.0, 0.5, 1.0, 2.0], start=1):
        history.spare_born(number)
        actions = history.spare_exited(number)
        report = one(actions, act.ReportSpareExit)
        assert (report.failures, report.asked, report.spawned) == (number, False, True)
        assert report.delay is not None
        assert plain * 0.8 <= report.delay <= plain * 1.2
        if plain:
            assert effects(actions) == []
            assert history.due == pytest.approx(report.delay)
            actions = history.wake()
        assert asked_for(actions) == [number + 1]
    for number in (5, 6):
        history.park(number)
        report = one(history.spare_exited(number), act.ReportSpareExit)
        assert (report.failures, report.delay) == (number, 45.0)
        assert asked_for(history.wake()) == [number + 1]
    assert history.slot() == before
    assert (history.state.models["m"].failures, history.state.run) == (0, Run.RUNNING)


def test_a_burst_counts_once() -> None:
    """Spares that were there when a failure was counted die of the same thing; the one that came after it does not."""
    history = with_parked(spares=3)
    reports = [one(history.spare_exited(number), act.ReportSpareExit) for number in (1, 2, 3)]
    assert [report.failures for report in reports] == [1, 1, 1]
    assert [report.delay for report in reports] == [0.0, 0.0, 0.0]
    assert one(history.spare_exited(4), act.ReportSpareExit).failures == 2


def test_a_spare_that_was_stable_begins_the_row_anew() -> None:
    """One that was parked for stable_after has not failed to start; its successor comes after a moment."""
    history = with_spares(stable_after=10.0)
    history.spare_exited(1)
    history.park(2)
    history.after(10.0)
    report = one(history.spare_exited(2), act.ReportSpareExit)
    assert (report.failures, report.delay) == (1, SPARE_PAUSE)
    assert asked_for(history.wake()) == [3]


@pytest.mark.parametrize("max_failures", [1, 2])
def test_deaths_are_never_a_busy_loop(max_failures: int) -> None:
    """However short stable_after and retry_failed_after are, deaths in a row do not keep the supervisor busy."""
    history = with_spares(stable_after=0.001, retry_failed_after=0.001, max_failures=max_failures)
    births, number = 0, 1
    end = history.now + 1.0
    while history.now < end:
        history.park(number)
        history.now += 0.001
        births += len(asked_for(history.spare_exited(number)))
        if history.spare(number + 1) is None:
            births += len(asked_for(history.wake()))
        number += 1
    assert births <= 21


def test_a_death_in_the_pause_does_not_end_it() -> None:
    """The successor of a spare that dies beside a first answer waits for that answer, though it has no back-off of its own."""
    history = with_parked(2, 2)
    history.exited(0, answered=1)
    history.ready(0)
    actions = history.spare_exited(2)
    assert one(actions, act.ReportSpareExit).delay == pytest.approx(SPARE_PAUSE)
    assert asked_for(actions) == []
    assert asked_for(history.wake()) == [3, 4]


def test_one_that_serves_proves_them_good() -> None:
    """READY of a seated spare ends the row of failures; READY of a worker that was forked says nothing of spares."""
    history = with_spares()
    history.spare_exited(1)
    history.park(2)
    history.exited(answered=1)
    history.ready()
    assert history.state.models["m"].spare_failures == 0
    history.wake()
    assert one(history.spare_exited(3), act.ReportSpareExit).failures == 1
    history.exited(answered=1)
    history.serve()
    assert history.state.models["m"].spare_failures == 1


def test_not_parked_in_time() -> None:
    """At startup_timeout SIGABRT, then SIGKILL; its death is a failure with that blame, and until then nobody takes its place."""
    history = with_spares(startup_timeout=20.0)
    history.spare_born()
    assert history.due == pytest.approx(20.0)
    assert effects(history.wake()) == [act.SignalSpare(FIRST, Ending.ABORT)]
    assert effects(history.after(1.0)) == [act.SignalSpare(FIRST, Ending.KILL)]
    assert history.parked() == ()
    assert effects(history.after(1000.0)) == []
    actions = history.spare_exited()
    report = one(actions, act.ReportSpareExit)
    assert (report.blame, report.asked, report.failures) == (Blame.START_TIMEOUT, False, 1)
    assert asked_for(actions) == [2]


def test_a_template_that_does_not_fork_a_spare_is_hung() -> None:
    """Ten seconds after it was asked it is ended and the birth forgotten; that is the template's fault, not the spares'."""
    history = with_spares()
    assert effects(history.after(9.9)) == []
    actions = history.after(0.1)
    assert effects(actions) == [act.SignalTemplate(TEMPLATE, Ending.ABORT), act.AbandonSpare(FIRST)]
    report = one(actions, act.ReportSpareExit)
    assert (report.failures, report.spawned) == (0, False)
    assert one(history.template_exited(), act.ReportTemplateExit).blame is Blame.HUNG
    assert history.phase() is Phase.READY


def test_a_spare_waits_its_turn() -> None:
    """While the template bears others a birth is not late; past its own start deadline it is given up, and the template is not."""
    history = with_spares(2, startup_timeout=12.0)
    history.exited(0, answered=1)
    history.now += 9.0
    history.born(0)
    assert effects(history.after(1.5)) == []
    history.now += 4.0
    actions = history.after(0.0)
    assert only(actions, act.SignalTemplate) == []
    assert one(actions, act.AbandonSpare).key == FIRST
    assert one(actions, act.ReportSpareExit).failures == 1


@pytest.mark.parametrize("births_first", [True, False])
def test_births_that_die_with_their_template(births_first: bool) -> None:
    """The spare that it had not borne is asked of the next one; once the template is known to be dead it counts for nothing."""
    history = with_spares()
    if not births_first:
        history.template_exited()
    report = one(history.spare_exited(spawned=False), act.ReportSpareExit)
    assert report.failures == int(births_first)
    if births_first:
        history.template_exited()
        history.spare_exited(2, spawned=False)
    forks = only(history.loaded(2), act.ForkSpare)
    assert [fork.template.generation for fork in forks] == [2]


def test_a_late_word_of_the_old_template_is_not_held_against_the_new() -> None:
    """Its spare was never born, which is told when the next template serves already: no failure."""
    history = with_spares()
    history.template_exited()
    history.loaded(2)
    report = one(history.spare_exited(spawned=False), act.ReportSpareExit)
    assert (report.failures, report.delay) == (0, 0.0)


def test_no_start_fails_for_a_spare() -> None:
    """While a slot is not READY yet the deaths of spares, however many, do not end the supervisor's start."""
    history = History(2, spares=1, max_failures=3)
    history.start()
    history.loaded()
    history.serve(0)
    for _ in range(2):
        history.born(1)
        history.exited(1)
    assert history.phase(1) is Phase.BACKING_OFF
    history.after(SPARE_PAUSE)
    for number in range(1, 3):
        history.spare_born(number)
        assert history.spare_exited(number) != ()
    assert history.state.run is Run.STARTING
    assert history.slot(1).failures == 2


# Versions ------------------------------------------------------------------------------------------------------------


def test_spares_outlive_their_template() -> None:
    """A template that died by itself had the version that is served: its spares stay."""
    history = with_parked()
    history.template_exited()
    assert effects(history.loaded(2)) == []
    assert history.spare() is not None


def test_a_new_version_needs_new_spares() -> None:
    """When an operator's new template has loaded the spares of the old one go, and the workers get new ones."""
    history = with_parked()
    history.restart_model()
    assert history.spare() is not None
    actions = history.loaded(2)
    assert act.SignalSpare(FIRST, Ending.TERM) in actions
    assert [fork.template.generation for fork in only(actions, act.ForkSpare)] == [2]
    history.park(2)
    assert one(history.exited(), act.SeatSpare) == act.SeatSpare(SECOND, KEY, 2)
    report = one(history.spare_exited(1), act.ReportSpareExit)
    assert (report.asked, report.delay, report.failures) == (True, None, 0)
    assert one(history.ready(), act.Answer).ok


def test_a_version_that_does_not_load_costs_no_spare() -> None:
    """The old ones stay, though there was no template of theirs to load the new one beside; and a slot can have them."""
    history = with_parked(exit_on_start_failure=False)
    history.template_exited()
    history.restart_model()
    assert not one(history.template_exited(3), act.Answer).ok
    assert effects(history.exited(answered=1)) == [act.SeatSpare(FIRST, KEY, 2)]


def test_a_new_version_forgives() -> None:
    """The back-off of the old version's spares is not that of the new one's."""
    history = with_spares()
    for number in (1, 2):
        history.spare_exited(number)
    assert history.due is not None
    history.restart_model()
    assert asked_for(history.loaded(2)) == [3]
    assert one(history.spare_exited(3), act.ReportSpareExit).failures == 1


def test_a_restart_of_one_slot_uses_the_spare() -> None:
    """It has the version that is served: the successor is there as soon as the old process is gone."""
    history = with_parked()
    history.restart_slot()
    assert one(history.exited(), act.SeatSpare) == act.SeatSpare(FIRST, KEY, 2)
    assert one(history.ready(), act.Answer).ok


# Ends ----------------------------------------------------------------------------------------------------------------


def test_a_spare_that_ignores_term_is_killed() -> None:
    """SIGTERM when it is sent away, SIGKILL a second later, each once."""
    history = with_parked()
    history.restart_model()
    assert act.SignalSpare(FIRST, Ending.TERM) in history.loaded(2)
    assert only(history.after(0.9), act.SignalSpare) == []
    assert only(history.after(0.1), act.SignalSpare) == [act.SignalSpare(FIRST, Ending.KILL)]
    assert only(history.after(5.0), act.SignalSpare) == []


def test_a_spare_sent_away_before_its_birth() -> None:
    """It is killed as soon as it can be; what is not born within a second is forgotten."""
    history = with_spares(spares=2)
    history.restart_model()
    history.loaded(2)
    assert effects(history.spare_born(1)) == [act.SignalSpare(FIRST, Ending.KILL)]
    actions = history.after(1.0)
    assert one(actions, act.AbandonSpare).key == SECOND
    report = one(actions, act.ReportSpareExit)
    assert (report.asked, report.spawned) == (True, False)
    assert history.spare_born(2) == ()


def test_a_stop_sends_them_away() -> None:
    """SIGTERM with the stop, and the supervisor does not end before they have."""
    history = with_parked()
    assert act.SignalSpare(FIRST, Ending.TERM) in history.stop()
    history.exited()
    assert only(history.template_exited(), act.Exit) == []
    actions = history.spare_exited()
    report = one(actions, act.ReportSpareExit)
    assert (report.asked, report.delay) == (True, None)
    assert one(actions, act.Exit).code == 0


def test_the_second_stop_kills_them() -> None:
    """At once, and what not even that removes is named."""
    history = with_parked(spares=2)
    history.stop()
    actions = history.stop()
    assert act.SignalSpare(FIRST, Ending.KILL) in actions
    history.exited()
    history.template_exited()
    history.spare_exited(2)
    actions = history.after(5.0)
    assert one(actions, act.Exit).code == 1
    note = [note for note in only(actions, act.Note) if note.event == "supervisor.left_behind"]
    assert dict(note[0].fields) == {"left": ["spare of m"]}


def test_nothing_is_born_in_a_stop() -> None:
    """A spare that dies or parks then is not replaced and not seated."""
    history = with_spares(2, spares=2)
    history.park(1)
    history.stop()
    actions = history.parked(2) + history.spare_exited(1) + history.exited(0) + history.after(1.0)
    assert only(actions, act.ForkSpare) == only(actions, act.SeatSpare) == []


def test_news_of_other_spares_changes_nothing() -> None:
    """One that is gone, that was seated, or that never was, says nothing; birth and parking are said once."""
    history = with_parked(2, 2)
    history.exited(0, answered=1)
    history.spare_exited(2)
    before = history.state
    for number in (1, 2, 99):
        assert history.spare_born(number) == history.parked(number) == ()
        assert history.spare_exited(number) == history.spare_exited(number, spawned=False) == ()
    assert history.spare_exited(1, "?") == history.parked(1, "?") == ()
    assert history.state == before
