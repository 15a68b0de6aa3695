"""Worn workers: the replacement first, one at a time, between two batches (DESIGN §3)."""

from __future__ import annotations

import pytest
from unit.history import History, effects, notes, one, only

from modelsupervisor.core import actions as act
from modelsupervisor.core.actions import Ending, Next
from modelsupervisor.core.slots import SPARE_PAUSE
from modelsupervisor.core.states import Phase, SlotKey, SpareKey, TemplateKey, Wear

KEY, OTHER, TEMPLATE = SlotKey("m", 0), SlotKey("m", 1), TemplateKey("m", 1)
FIRST, SECOND = SpareKey("m", 1), SpareKey("m", 2)


def rested(workers: int = 1, **settings: float) -> History:
    """All workers READY some time ago, and a spare parked where the model keeps one."""
    history = History.running(workers, **settings)
    if settings.get("spares"):
        history.after(SPARE_PAUSE)
        history.park(1)
    history.after(1.0)
    return history


def test_the_replacement_comes_first() -> None:
    """A spare is asked for at once; the worker is told to go when that is parked, and the spare gets its slot."""
    history = rested()
    actions = history.worn(wear=Wear.MEMORY)
    assert effects(actions) == [act.ForkSpare(FIRST, TEMPLATE)]
    note = one(actions, act.Note)
    assert (note.event, note.generation) == ("worker.worn", 1)
    assert dict(note.fields) == {"wear": "memory_limit", "reason": "1,000 requests"}
    assert effects(history.spare_born()) == []
    assert history.phase() is Phase.READY
    assert effects(history.parked()) == [act.TellWorker(KEY, 1)]
    actions = history.exited(answered=5)
    assert effects(actions) == [act.SeatSpare(FIRST, KEY, 2)]
    report = one(actions, act.ReportWorkerExit)
    assert (report.asked, report.worn, report.next) == (True, Wear.MEMORY, Next.RESTART)


@pytest.mark.parametrize("answered", [0, 7])
def test_wear_is_no_failure(answered: int) -> None:
    """Not even of a worker that goes without one answer and right after it was READY."""
    history = rested(max_failures=1)
    history.worn()
    history.park()
    report = one(history.exited(answered=answered), act.ReportWorkerExit)
    assert (report.failures, report.next) == (0, Next.RESTART)


def test_the_spare_that_is_kept_is_the_replacement() -> None:
    """Where the model keeps spares nobody waits for a birth; the next spare follows when the slot serves again."""
    history = rested(spares=1)
    actions = history.worn()
    assert effects(actions) == [act.TellWorker(KEY, 1)]
    assert notes(actions) == ["worker.worn", "worker.stopping"]
    assert effects(history.exited()) == [act.SeatSpare(FIRST, KEY, 2)]
    assert effects(history.ready()) == []
    assert effects(history.wake()) == [act.ForkSpare(SECOND, TEMPLATE)]


def test_none_is_kept_afterwards() -> None:
    """A model without spares has none when the replacement is over."""
    history = rested()
    history.worn()
    history.park()
    history.exited()
    history.ready()
    assert history.state.models["m"].recycling is None
    assert effects(history.after(10.0)) == []
    assert history.state.spares == {}


def test_one_at_a_time() -> None:
    """The second worn worker serves until the first one's successor is READY and a replacement of its own is parked."""
    history = rested(2)
    history.worn(0)
    assert effects(history.worn(1)) == []
    history.park(1)
    history.exited(0)
    assert history.phase(1) is Phase.READY
    assert effects(history.ready(0)) == []
    assert effects(history.wake()) == [act.ForkSpare(SECOND, TEMPLATE)]
    assert effects(history.park(2)) == [act.TellWorker(OTHER, 1)]
    assert one(history.exited(1), act.ReportWorkerExit).worn is Wear.REQUESTS


def test_two_spares_do_not_make_it_two_at_a_time() -> None:
    """However many are parked."""
    history = History.running(2, spares=2)
    history.after(SPARE_PAUSE)
    history.park(1)
    history.park(2)
    assert effects(history.worn(0)) == [act.TellWorker(KEY, 1)]
    assert effects(history.worn(1)) == []
    history.exited(0)
    assert effects(history.ready(0)) == [act.TellWorker(OTHER, 1)]


def test_no_replacement_no_end() -> None:
    """While spares die, or there is no template, the worn worker serves on; it goes when one has come after all."""
    history = rested(exit_on_start_failure=False)
    history.worn()
    for number in range(1, 8):
        assert only(history.spare_exited(number), act.TellWorker) == []
        if history.spare(number + 1) is None:
            assert only(history.wake(), act.TellWorker) == []
    history.template_exited(1)
    history.spare_exited(8)
    assert only(history.after(100.0), act.TellWorker) == []
    assert history.phase() is Phase.READY
    assert len(only(history.loaded(2), act.ForkSpare)) == 1
    assert effects(history.park(9)) == [act.TellWorker(KEY, 1)]


def test_who_is_dead_goes_before_who_is_worn() -> None:
    """Another slot's process dies and takes the replacement: the worn worker waits for the next one."""
    history = rested(2)
    history.worn(0)
    history.spare_born()
    history.exited(1, answered=1)
    assert effects(history.parked()) == [act.TellWorker(KEY, 1)]
    history = rested(2, spares=1)
    history.exited(1, answered=1)
    assert effects(history.worn(0)) == []
    history.ready(1)
    assert effects(history.wake()) == [act.ForkSpare(SECOND, TEMPLATE)]
    assert effects(history.park(2)) == [act.TellWorker(KEY, 1)]


@pytest.mark.parametrize(
    ("stop", "response", "patience"), [(10.0, 120.0, 120.0), (50.0, 5.0, 50.0)]
)
def test_the_batch_in_hand_has_its_time(stop: float, response: float, patience: float) -> None:
    """No signal before the longer of stop_timeout and response_timeout; then SIGTERM, and SIGKILL a second later."""
    history = rested(stop_timeout=stop, response_timeout=response)
    history.worn()
    history.park()
    assert effects(history.after(patience - 0.1)) == []
    assert effects(history.after(0.1)) == [act.SignalWorker(KEY, 1, Ending.TERM)]
    assert effects(history.after(1.0)) == [act.SignalWorker(KEY, 1, Ending.KILL)]
    report = one(history.exited(in_hand=1), act.ReportWorkerExit)
    assert (report.asked, report.worn, report.failures) == (True, Wear.REQUESTS, 0)


def test_a_stop_is_less_patient() -> None:
    """A worn worker that finishes its batch has stop_timeout from the stop on, as any other; and it was stopped, not replaced."""
    history = rested(stop_timeout=10.0, response_timeout=120.0)
    history.worn()
    history.park()
    history.after(50.0)
    assert only(history.stop(), act.TellWorker) == []
    assert act.SignalWorker(KEY, 1, Ending.TERM) not in history.after(9.9)
    assert effects(history.after(0.1)) == [act.SignalWorker(KEY, 1, Ending.TERM)]
    report = one(history.exited(), act.ReportWorkerExit)
    assert (report.asked, report.worn, report.next) == (True, None, Next.NONE)


def test_a_restart_is_less_patient() -> None:
    """An operator who restarts the worker that is finishing its last batch gets what a restart gives: stop_timeout from now."""
    history = rested(stop_timeout=10.0, response_timeout=120.0)
    history.worn()
    history.park()
    history.after(50.0)
    history.restart_slot()
    assert effects(history.after(9.9)) == []
    assert effects(history.after(0.1)) == [act.SignalWorker(KEY, 1, Ending.TERM)]
    assert effects(history.exited()) == [act.SeatSpare(FIRST, KEY, 2)]
    assert one(history.ready(), act.Answer).ok


def test_one_that_an_operator_restarts_is_not_recycled() -> None:
    """Its replacement was still to come when it was told to stop: it goes because somebody asked, and is said to."""
    history = rested()
    history.worn()
    history.restart_slot()
    report = one(history.exited(answered=5), act.ReportWorkerExit)
    assert (report.asked, report.worn) == (True, None)


def test_a_stop_forgets_who_is_worn() -> None:
    """Whoever waits for a replacement goes as all others do."""
    history = rested(2)
    history.worn(0)
    history.stop()
    assert history.state.models["m"].recycling is None
    assert one(history.exited(0), act.ReportWorkerExit).worn is None


def test_a_restart_goes_first() -> None:
    """It replaces the worn worker anyway; one that it does not replace has its turn afterwards."""
    history = rested(2, spares=1)
    history.restart_slot(0)
    assert effects(history.worn(1)) == []
    history.exited(0)
    actions = history.ready(0)
    assert one(actions, act.Answer).ok
    assert effects(history.wake()) == [act.ForkSpare(SECOND, TEMPLATE)]
    assert effects(history.park(2)) == [act.TellWorker(OTHER, 1)]
    history = rested()
    history.worn()
    history.restart_model()
    history.loaded(2)
    history.exited()
    history.serve()
    assert history.state.models["m"].recycling is None


def test_a_worn_worker_that_dies_has_died() -> None:
    """Nobody had told it to go: its death is one like any other, and its replacement is not needed any more."""
    history = rested()
    history.worn()
    history.spare_born()
    actions = history.exited(in_hand=1)
    report = one(actions, act.ReportWorkerExit)
    assert (report.asked, report.worn) == (False, None)
    assert effects(actions) == [act.ForkWorker(KEY, 2, TEMPLATE)]
    assert effects(history.serve()) == [act.SignalSpare(FIRST, Ending.TERM)]
    report_of_spare = one(history.spare_exited(), act.ReportSpareExit)
    assert (report_of_spare.asked, report_of_spare.failures) == (True, 0)


def test_wear_is_said_once() -> None:
    """Again, of an older generation, of one that does not serve, or of nobody, it changes nothing."""
    history = rested(2)
    history.exited(1, answered=1)
    history.worn(0)
    before = history.state
    assert history.worn(0, wear=Wear.MEMORY) == ()
    assert history.worn(1) == history.worn(1, 1) == history.worn(0, 7) == ()
    assert history.worn(0, 1, model="?") == ()
    assert history.state == before
