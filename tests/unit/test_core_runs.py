"""The supervisor's own life: when it is ready, which failures end its start, and how a stop ends (DESIGN §3)."""

from __future__ import annotations

import pytest
from unit.history import History, effects, notes, one, only

from modelsupervisor.core import actions as act
from modelsupervisor.core import next_deadline
from modelsupervisor.core.actions import Ending, Next
from modelsupervisor.core.states import Phase, Run, SlotKey, TemplateKey

KEY, TEMPLATE = SlotKey("m", 0), TemplateKey("m", 1)


def ready_note(actions: tuple[act.Action, ...]) -> act.Note | None:
    """The note `supervisor.ready`, where there is one."""
    found = [note for note in only(actions, act.Note) if note.event == "supervisor.ready"]
    return found[0] if found else None


# Start ---------------------------------------------------------------------------------------------------------------


def test_ready_when_every_slot_is() -> None:
    """`supervisor.ready` comes with the last READY, of all models, and once."""
    history = History(2, models=("m", "n"))
    history.start()
    for model in ("m", "n"):
        assert ready_note(history.loaded(1, model)) is None
    seen = [history.serve(index, model) for model in ("m", "n") for index in (0, 1)]
    assert [ready_note(actions) is not None for actions in seen] == [False, False, False, True]
    note = ready_note(seen[-1])
    assert note is not None
    assert note.level == "info"
    assert dict(note.fields) == {"workers": 4, "failed": 0, "degraded": False}
    assert history.state.run is Run.RUNNING
    history.exited(answered=1)
    assert ready_note(history.serve()) is None


def test_exit_at_the_first_failed_load() -> None:
    """Policy exit: the first template that does not load stops everything at once, no second try, exit code 1."""
    history = History(models=("m", "n"))
    history.start()
    history.loaded(1, "n")
    history.serve(0, "n")
    actions = history.template_exited(1, "m")
    assert one(actions, act.ReportTemplateExit).next is Next.STOP
    assert notes(actions)[:2] == ["supervisor.start_failed", "supervisor.stopping"]
    assert effects(actions) == [
        act.TellWorker(SlotKey("n", 0), 1),
        act.SignalTemplate(TemplateKey("n", 1), Ending.TERM),
    ]
    history.template_exited(1, "n")
    assert one(history.exited(0, model="n"), act.Exit).code == 1


def test_exit_when_nothing_is_left_at_once() -> None:
    """The only template failed: the same step ends the supervisor."""
    history = History()
    history.start()
    assert one(history.template_exited(), act.Exit).code == 1
    assert history.state.run is Run.DONE


def test_exit_when_a_worker_says_that_it_cannot_start() -> None:
    """A declined start is deterministic: no second try either."""
    history = History(2)
    history.start()
    history.loaded()
    history.born(0)
    actions = history.exited(0, declined=True)
    assert one(actions, act.ReportWorkerExit).next is Next.STOP
    assert only(actions, act.ForkWorker) == []
    assert history.state.run is Run.STOPPING
    history.birth_failed(1)
    assert one(history.template_exited(), act.Exit).code == 1


def test_a_worker_that_was_told_to_go_has_not_declined() -> None:
    """A restart during the start ends a worker that was being born: what it says of its start then ends nothing."""
    history = History(2)
    history.start()
    history.loaded()
    history.born(0)
    history.restart_slot(0)
    report = one(history.exited(0, declined=True), act.ReportWorkerExit)
    assert (report.asked, report.next) == (True, Next.RESTART)
    assert history.state.run is Run.STARTING


def test_a_crash_while_starting_is_tried_again() -> None:
    """What is not deterministic is not held against the start until it has happened max_failures times."""
    history = History(max_failures=3)
    history.start()
    history.loaded()
    for _ in range(2):
        history.born()
        assert history.exited() != ()
        assert history.state.run is Run.STARTING
        if history.phase() is Phase.BACKING_OFF:
            history.wake()
    history.born()
    actions = history.exited()
    assert one(actions, act.ReportWorkerExit).next is Next.STOP
    assert "worker.failed" not in notes(actions)
    assert one(history.template_exited(), act.Exit).code == 1


def test_a_template_that_loads_and_dies_ends_the_start_at_its_limit() -> None:
    """A crash after READY is no failed load; max_failures of them in a row end the start all the same."""
    history = History(max_failures=2)
    history.start()
    history.loaded()
    assert one(history.template_exited(1), act.ReportTemplateExit).next is Next.RESTART
    history.birth_failed()
    history.loaded(2)
    actions = history.template_exited(2)
    assert one(actions, act.ReportTemplateExit).next is Next.STOP
    assert history.state.run is Run.STOPPING


def test_continue_goes_on_degraded() -> None:
    """Policy continue: `supervisor.ready` with `degraded` as soon as every slot is READY or FAILED, and the rest serves."""
    history = History(models=("m", "n"), exit_on_start_failure=False, max_failures=2)
    history.start()
    history.loaded(1, "n")
    history.serve(0, "n")
    assert one(history.template_exited(1), act.ReportTemplateExit).next is Next.RESTART
    actions = history.template_exited(2)
    assert one(actions, act.ReportTemplateExit).next is Next.FAILED
    note = ready_note(actions)
    assert note is not None
    assert note.level == "warning"
    assert dict(note.fields) == {"workers": 2, "failed": 1, "degraded": True}
    assert history.phase(0, "n") is Phase.READY


def test_continue_does_not_stop_for_a_declined_start() -> None:
    """It is a failure like another then."""
    history = History(exit_on_start_failure=False)
    history.start()
    history.loaded()
    history.born()
    assert one(history.exited(declined=True), act.ReportWorkerExit).next is Next.RESTART


def test_once_running_nothing_that_fails_ends_the_supervisor() -> None:
    """The policy is about the start: later a load that fails, a declined start and a FAILED slot are lived with."""
    history = History.running(max_failures=1)
    assert one(history.exited(declined=True), act.ReportWorkerExit).next is Next.FAILED
    assert one(history.template_exited(), act.ReportTemplateExit).next is Next.FAILED
    history.wake()
    assert one(history.template_exited(2), act.ReportTemplateExit).next is Next.FAILED
    assert history.state.run is Run.RUNNING


# Stop ----------------------------------------------------------------------------------------------------------------


def test_a_stop_asks_everybody() -> None:
    """All workers are told, the template is sent away, and when the last one is gone the exit code is 0."""
    history = History.running(2)
    actions = history.stop()
    assert effects(actions) == [
        act.TellWorker(SlotKey("m", 0), 1),
        act.TellWorker(SlotKey("m", 1), 1),
        act.SignalTemplate(TEMPLATE, Ending.TERM),
    ]
    assert notes(actions)[0] == "supervisor.stopping"
    history.template_exited()
    assert only(history.exited(1), act.Exit) == []
    assert one(history.exited(0), act.Exit) == act.Exit(0)
    assert history.state.run is Run.DONE
    assert next_deadline(history.state) is None


def test_a_stop_before_the_start() -> None:
    """Nothing was made: the end is at once, and a start that comes too late changes nothing."""
    history = History()
    assert one(history.stop(), act.Exit).code == 0
    assert history.start() == ()


def test_a_stop_while_loading() -> None:
    """TERM during the start is asked for: exit code 0."""
    history = History()
    history.start()
    assert effects(history.stop()) == [act.SignalTemplate(TEMPLATE, Ending.TERM)]
    assert one(history.template_exited(), act.Exit).code == 0


def test_the_second_stop_is_immediate() -> None:
    """SIGKILL to all that lives, once; a third one changes nothing."""
    history = History.running(2)
    history.stop()
    actions = history.stop()
    assert effects(actions) == [
        act.SignalWorker(SlotKey("m", 0), 1, Ending.KILL),
        act.SignalWorker(SlotKey("m", 1), 1, Ending.KILL),
        act.SignalTemplate(TEMPLATE, Ending.KILL),
    ]
    assert notes(actions) == ["supervisor.stopping_now"]
    assert history.stop() == ()
    history.exited(0)
    history.exited(1)
    assert one(history.template_exited(), act.Exit).code == 0


def test_the_stop_has_a_deadline_of_its_own() -> None:
    """Shorter than a worker's: at the supervisor's stop_timeout everything gets SIGKILL, and nothing milder before."""
    history = History.running(whole_stop=5.0, stop_timeout=20.0)
    history.stop()
    history.template_exited()
    assert effects(history.after(4.9)) == []
    actions = history.after(0.1)
    assert effects(actions) == [act.SignalWorker(KEY, 1, Ending.KILL)]
    assert notes(actions) == ["supervisor.stopping_now"]


def test_what_not_even_sigkill_removes_is_given_up() -> None:
    """Five seconds after SIGKILL to all the supervisor ends with code 1 and says what is left; more it does not wait."""
    history = History.running()
    history.stop()
    history.stop()
    assert effects(history.after(4.9)) == []
    actions = history.after(0.1)
    assert one(actions, act.Exit).code == 1
    note = one(actions, act.Note)
    assert note.event == "supervisor.left_behind"
    assert dict(note.fields) == {"left": ["m/0", "template of m"]}


def test_a_worker_that_dies_in_the_stop_is_not_replaced() -> None:
    """Of whatever it dies, and in whatever phase."""
    history = History.running(3)
    history.exited(1, answered=1)
    history.stop()
    actions = history.exited(0, in_hand=1) + history.birth_failed(1) + history.exited(2)
    assert only(actions, act.ForkWorker) == []
    assert {report.next for report in only(actions, act.ReportWorkerExit)} == {Next.NONE}


def test_a_stop_in_the_failing_start_is_the_second() -> None:
    """The start that failed is already stopping: TERM then means now, and the exit code stays 1."""
    history = History(models=("m", "n"))
    history.start()
    history.template_exited(1, "m")
    assert effects(history.stop()) == [act.SignalTemplate(TemplateKey("n", 1), Ending.KILL)]
    assert one(history.template_exited(1, "n"), act.Exit).code == 1


def test_done_answers_nothing() -> None:
    """After the end no event has an action, commands included, and the state stays."""
    history = History.running()
    history.stop()
    history.template_exited()
    history.exited()
    before = history.state
    assert history.restart_model() == history.stop() == history.start() == history.after(1e6) == ()
    assert history.exited(generation=1) == history.loaded() == ()
    assert history.state == before


@pytest.mark.parametrize("jump", [3600.0, 1e7])
def test_a_long_sleep_kills_nobody_that_serves(jump: float) -> None:
    """The supervisor was stopped for hours (SIGSTOP, a suspended machine): a READY worker is looked at, and no more."""
    history = History.running()
    assert effects(history.after(jump)) in ([], [act.LookAtWorkers("m", (KEY,), whole=True)])
    assert history.phase() is Phase.READY
