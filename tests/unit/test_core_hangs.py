"""core.hangs: who is looked at and when, what counts as stuck, and what is done about it."""

from __future__ import annotations

import pytest
from unit.history import History, effects, notes, one, only

from modelsupervisor.core import actions as act
from modelsupervisor.core import events as ev
from modelsupervisor.core.actions import Ending, Next
from modelsupervisor.core.hangs import GRAIN
from modelsupervisor.core.states import Blame, Phase, SlotKey

KEY = SlotKey("m", 0)
OTHER = SlotKey("m", 1)
TIMEOUT = 8.0
EACH = TIMEOUT / 4
ASK = act.AskWorker(KEY, 1)
ABORT = act.SignalWorker(KEY, 1, Ending.ABORT)


def running(workers: int = 1, timeout: float = TIMEOUT) -> History:
    """READY at this very moment."""
    return History.running(workers, response_timeout=timeout)


def sight(busy: float = 0.0, answered: int = 0, echoes: int = 0, index: int = 0) -> ev.Sighting:
    """What a look shows of generation 1."""
    return ev.Sighting(SlotKey("m", index), 1, busy, answered, echoes)


def look(
    history: History, seconds: float, *sightings: ev.Sighting
) -> tuple[act.LookAtWorkers, list[act.Action]]:
    """So much later comes a look, and shows this: what was looked at, and what is done."""
    looked = one(history.after(seconds), act.LookAtWorkers)
    return looked, effects(history.seen(*sightings))


def busy_for(history: History, looks: int, before: float = 0.0) -> float:
    """One batch, begun so long `before` the look that is due next but `looks` - 1, and found at each; when it began."""
    begun = history.now + EACH - (before or EACH)
    for _ in range(looks):
        look(history, EACH, sight(begun))
    return begun


def test_looks_begin_with_the_first_ready_worker_and_end_with_the_last() -> None:
    """Every quarter of response_timeout, at all that are READY; none is due before, between, or after them."""
    history = History(2, response_timeout=TIMEOUT)
    history.start()
    history.loaded()
    assert history.state.models["m"].look_at is None
    history.serve(0)
    history.now += 1.0
    history.serve(1)
    assert only(history.after(0.9), act.LookAtWorkers) == []
    first = act.LookAtWorkers("m", (KEY, OTHER), whole=True)
    assert only(history.after(0.1), act.LookAtWorkers) == [first]
    assert only(history.after(1.9), act.LookAtWorkers) == []
    history.stop()
    assert history.state.models["m"].look_at is None


@pytest.mark.parametrize(("timeout", "seconds"), [(120.0, 30.0), (1.0, 0.25), (0.01, 0.25)])
def test_how_often(timeout: float, seconds: float) -> None:
    """A quarter of response_timeout, and never more often than four times a second."""
    history = running(timeout=timeout)
    assert only(history.after(seconds - 0.001), act.LookAtWorkers) == []
    assert len(only(history.after(0.001), act.LookAtWorkers)) == 1


def test_only_whom_could_be_ended_is_looked_at() -> None:
    """One that is READY before its birth was told has no pid yet; news of another generation changes nothing."""
    history = History(response_timeout=TIMEOUT)
    history.start()
    history.loaded()
    history.ready()
    assert only(history.after(EACH), act.LookAtWorkers) == []
    assert history.seen(sight()) == ()
    history.born()
    one(history.after(EACH), act.LookAtWorkers)
    before = history.state
    assert history.seen(ev.Sighting(KEY, 2, 5.0, 1, 1), ev.Sighting(OTHER, 1, 5.0, 1, 1)) == ()
    assert history.state == before


def test_every_look_is_a_ping() -> None:
    """Busy or idle: who writes nonsense into its record still proves by answering that it is well."""
    history = running(2)
    _, done = look(history, EACH, sight(), sight(busy=100.5, index=1))
    assert done == [ASK, act.AskWorker(OTHER, 1)]


def test_a_busy_worker_is_ended_at_response_timeout_and_not_before() -> None:
    """To the moment, by a look of its own; told with how long and that it was busy; SIGKILL a second later; HUNG."""
    history = running()
    begun = busy_for(history, 4, before=1.5)
    assert only(history.after(0.499), act.LookAtWorkers) == []
    looked = one(history.after(0.001), act.LookAtWorkers)
    assert (looked.keys, looked.whole) == ((KEY,), False)
    actions = history.seen(sight(begun))
    assert effects(actions) == [ABORT]
    told = one(actions, act.Note)
    assert (told.event, told.level) == ("worker.hung", "warning")
    assert actions.index(told) < actions.index(ABORT)
    facts = {"stuck_s": TIMEOUT, "response_timeout_s": TIMEOUT, "busy": True}
    assert dict(told.fields) == facts
    assert history.phase() is Phase.STOPPING
    assert effects(history.after(0.9)) == []
    assert effects(history.after(0.1)) == [act.SignalWorker(KEY, 1, Ending.KILL)]
    report = one(history.exited(in_hand=1), act.ReportWorkerExit)
    assert (report.blame, report.asked, report.next) == (Blame.HUNG, False, Next.RESTART)
    assert report.watch is not None
    assert report.watch.stuck == pytest.approx(TIMEOUT)
    assert (history.slot().charged, history.slot().failures) == (1, 0)


def test_the_rest_of_a_model_is_left_alone() -> None:
    """One hangs; its sibling is looked at in its own time, and is not ended with it."""
    history = running(2)
    begun = history.now
    for number in range(4):
        _, done = look(history, EACH, sight(begun), sight(echoes=number, index=1))
    assert done == [ABORT, act.AskWorker(OTHER, 1)]
    assert (history.phase(0), history.phase(1)) == (Phase.STOPPING, Phase.READY)


def test_a_worker_that_is_deaf_while_idle_is_ended() -> None:
    """Nothing in hand and no answer to a ping: response_timeout after the first one it goes, and is told to be deaf."""
    history = History.running(response_timeout=TIMEOUT, stable_after=3600.0)
    for _ in range(4):
        _, done = look(history, EACH, sight(answered=3, echoes=7))
        assert done == [ASK]
    history.after(EACH)
    actions = history.seen(sight(answered=3, echoes=7))
    assert effects(actions) == [ABORT]
    assert dict(one(actions, act.Note).fields)["busy"] is False
    assert one(history.exited(), act.ReportWorkerExit).blame is Blame.HUNG
    assert history.slot().failures == 1


@pytest.mark.parametrize(
    "progress", [{"busy": 200.0}, {"answered": 1}, {"echoes": 1}], ids=["batch", "answer", "echo"]
)
def test_whatever_it_gets_done_it_is_well(progress: dict[str, float]) -> None:
    """A new batch, an answer, or an answered ping a moment before its time was up: the time begins anew."""
    history = running()
    busy_for(history, 3)
    _, done = look(history, EACH, sight(**progress))  # type: ignore[arg-type]
    assert done == [ASK]
    watch = history.slot().watch
    assert watch is not None
    assert watch.stuck <= EACH


def test_a_worker_that_works_is_never_ended() -> None:
    """A batch of nearly response_timeout after the other, for days."""
    history = running()
    for number in range(200):
        begun = history.now
        for at in (0.1, 0.4, 0.7, 0.99):
            history.now = max(history.now, begun + at * TIMEOUT)
            history.after(0.0)
            assert ABORT not in history.seen(sight(begun, answered=number))
    assert history.phase() is Phase.READY


@pytest.mark.parametrize("stopped", [2 * TIMEOUT, 3600.0, 1e6])
def test_time_that_nobody_saw_does_not_count(stopped: float) -> None:
    """The supervisor stood still with a batch half run: as much as was left of its time then is left of it now."""
    history = running()
    begun = busy_for(history, 2)
    assert look(history, stopped, sight(begun))[1] == [ASK]
    assert look(history, EACH, sight(begun))[1] == [ASK]
    assert look(history, EACH, sight(begun))[1] == [ABORT]


def test_a_worker_first_seen_busy_after_a_standstill_has_all_its_time() -> None:
    """Its batch may have begun just before: what it ran while nobody looked is not known."""
    history = running()
    begun = history.now + 1.0
    assert look(history, 2 * TIMEOUT, sight(begun))[1] == [ASK]
    for _ in range(3):
        assert look(history, EACH, sight(begun))[1] == [ASK]
    assert look(history, EACH, sight(begun))[1] == [ABORT]


def test_an_echo_that_came_during_a_standstill_is_heard() -> None:
    """The first look afterwards decides nothing, be it taken before the loop has read what was said meanwhile."""
    history = running()
    for _ in range(4):
        look(history, EACH, sight())
    assert look(history, 2 * TIMEOUT, sight())[1] == [ASK]
    assert look(history, EACH, sight(echoes=1))[1] == [ASK]


@pytest.mark.parametrize("busy", [True, False])
def test_no_single_look_decides(busy: bool) -> None:
    """However short response_timeout is: what one look found must still be so one turn of the loop later."""
    history = running(timeout=0.1)
    begun = history.now if busy else 0.0
    for _ in range(1 if busy else 2):
        assert look(history, 0.25, sight(begun))[1] == [ASK]
    looked, done = look(history, GRAIN, sight(begun))
    assert (looked.whole, done) == (False, [ABORT])


@pytest.mark.parametrize("busy", [-5.0, 1e300, 99.0, 100.5])
def test_a_record_full_of_nonsense_ends_nobody(busy: float) -> None:
    """A time of the future, of the past, of before its birth: no worker is ended for it while it answers."""
    history = running()
    for number in range(20):
        _, done = look(history, EACH, sight(busy, echoes=number))
        assert done == [ASK]


def test_a_look_that_was_not_answered_is_followed_by_the_next() -> None:
    """A worker that was not there when it was looked at, or a look that showed nobody, ends no row of looks."""
    history = running()
    for _ in range(3):
        assert look(history, EACH) == (act.LookAtWorkers("m", (KEY,), whole=True), [])
    busy_for(history, 1)
    history.after(TIMEOUT - EACH)
    assert history.seen() == ()
    assert len(only(history.after(EACH), act.LookAtWorkers)) == 1


def test_a_hung_worker_is_not_told_to_stop() -> None:
    """A stop finds it on its way to SIGKILL; a second one is immediate; either way it was hung."""
    history = running()
    busy_for(history, 4)
    assert history.phase() is Phase.STOPPING
    assert only(history.stop(), act.TellWorker) == []
    again = history.stop()
    assert notes(again) == ["supervisor.stopping_now"]
    assert act.SignalWorker(KEY, 1, Ending.KILL) in again
    assert one(history.exited(in_hand=1), act.ReportWorkerExit).blame is Blame.HUNG


def test_its_successor_starts_with_a_clean_slate() -> None:
    """Nothing of what was seen of a generation is held against the next."""
    history = running()
    busy_for(history, 4)
    history.exited(in_hand=1)
    assert history.slot().watch is None
    history.serve()
    history.after(EACH)
    assert effects(history.seen(ev.Sighting(KEY, 2, 0.0, 0, 0))) == [act.AskWorker(KEY, 2)]
