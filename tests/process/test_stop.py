"""The end: at any moment, in bounded time, kindly first, and nothing left."""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from modelworker.scoreboard import read_record

from modelsupervisor.core.slots import TERM_GRACE
from support.instance import ROOT, Instance, alive, wait_for
from support.moments import stop_at_each, time_to_ready
from support.peers import ask, dial, order_frame, read_predict
from support.terminal import Terminal

Make = Callable[..., Instance]

GRACE = 2.0  # seconds on top of a deadline, for a busy machine
STEP = 0.005


def busy(made: Instance, **fault: object) -> socket.socket:
    """A connection whose request the first worker has in hand."""
    peer = dial(made.socket())
    peer.sendall(order_frame(**fault))
    wait_for(
        lambda: read_record((made.run_dir / "scoreboard").read_bytes()).in_hand,
        "the request in hand",
    )
    return peer


# -- at any moment -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_term_at_any_moment(instance: Make) -> None:
    """In 5 ms steps from the lock to 100 ms after ready: exit 0, the log in order, no process, socket or FIFO left."""
    first = instance()
    first.write(first.model(workers=2))
    until = time_to_ready(first) + 0.1
    assert first.stop() == 0
    moments = [number * STEP for number in range(int(until / STEP) + 1)]
    everyone = [instance() for _ in moments]
    for made in everyone:
        made.write(made.model(workers=2))
    stop_at_each(everyone, moments, 2)


def test_term_before_the_lock(instance: Make) -> None:
    """In 20 ms steps from the exec on: whether or not anything was made by then, nothing is left."""
    for number in range(12):
        made = instance()
        made.write(made.model())
        made.launch()
        time.sleep(number * 0.02)  # the moment is what is tested
        made.signal(signal.SIGTERM)
        assert made.wait() in (0, -signal.SIGTERM)
        made.check_nothing_left()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_term_at_random_moments_with_mxnet(instance: Make) -> None:
    """50 random points from the lock to 100 ms after ready, with a model whose load takes a second."""
    pytest.importorskip("mxnet")
    keys = {"folder": ROOT / "models" / "digits", "handler": "handler.py", "workers": 2}
    first = instance()
    first.write(first.model("digits", **keys))
    until = time_to_ready(first) + 0.1
    assert first.stop() == 0
    seed = random.randrange(10**6)
    print("seed", seed)
    luck = random.Random(seed)
    everyone = [instance() for _ in range(50)]
    for made in everyone:
        made.write(made.model("digits", **keys))
    stop_at_each(everyone, [luck.uniform(0, until) for _ in everyone], 2)


# -- kindly, then not ----------------------------------------------------------------------------------------------------


def test_the_batch_in_hand_is_finished(instance: Make) -> None:
    """TERM lets a worker answer what it has in hand; it exits 0; no new connection is taken."""
    made = instance()
    made.write(made.model())
    made.start()
    with busy(made, do="sleep", seconds=0.5) as peer:
        made.signal(signal.SIGTERM)
        made.wait_event("worker.stopping")
        assert read_predict(peer).items[0].body == b"done"
    assert made.wait() == 0
    exited = made.wait_event("worker.exited")
    assert (exited["cause"], exited["code"], exited["requests"]) == ("stopped", 0, 1)
    assert exited["level"] == "info"


@pytest.mark.parametrize(
    ("faults", "sent"),
    [
        ([{"do": "sleep"}], ["SIGTERM"]),
        ([{"do": "busy_in_c"}], ["SIGTERM"]),
        ([{"do": "ignore_sigterm"}, {"do": "sleep"}], ["SIGTERM", "SIGKILL"]),
        ([{"do": "ignore_sigterm"}, {"do": "busy_in_c"}], ["SIGTERM", "SIGKILL"]),
        ([{"do": "kill", "signal": int(signal.SIGSTOP)}], ["SIGTERM", "SIGKILL"]),
    ],
    ids=["busy", "busy-in-c", "deaf", "deaf-in-c", "stopped"],
)
def test_a_worker_that_does_not_stop(
    instance: Make, faults: list[dict[str, object]], sent: list[str]
) -> None:
    """At stop_timeout it gets SIGTERM and, where that does nothing, SIGKILL; events tell each step; all in bounded time."""
    made = instance()
    made.write(made.model(stop_timeout="300ms"))
    made.start()
    with busy(made, do="all", of=faults):
        begun = time.monotonic()
        assert made.stop() == 0
    took = time.monotonic() - begun
    deadline = 0.3 + (len(sent) - 1) * TERM_GRACE
    assert deadline <= took < deadline + GRACE
    assert [event["sent"] for event in made.events("worker.overdue")] == sent
    exited = made.wait_event("worker.exited")
    assert (exited["cause"], exited["signal"]) == ("stopped", sent[-1])
    assert exited["level"] == "warning"
    assert exited["in_hand"] == ["r-1"]


def test_the_whole_instance_has_a_deadline(instance: Make) -> None:
    """[supervisor] stop_timeout ends everything, whatever the models' own deadlines are, and says so."""
    made = instance()
    made.write(made.model(stop_timeout="1000s"), supervisor="stop_timeout = 400ms")
    made.start()
    with busy(made, do="sleep"):
        begun = time.monotonic()
        assert made.stop() == 0
    assert 0.35 < time.monotonic() - begun < 0.4 + GRACE
    assert made.wait_event("supervisor.stopping_now")["reason"] == "stop_timeout"
    assert made.wait_event("worker.exited")["signal"] == "SIGKILL"


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_request_means_now(instance: Make, second: signal.Signals) -> None:
    """While a worker has 1000 s to go and as long to stop, a second TERM, INT or QUIT ends all at once."""
    made = instance()
    made.write(made.model(stop_timeout="1000s"), supervisor="stop_timeout = 1000s")
    made.start()
    with busy(made, do="sleep"):
        made.signal(signal.SIGTERM)
        made.wait_event("worker.stopping")
        assert made.process is not None and made.process.poll() is None
        begun = time.monotonic()
        made.signal(second)
        assert made.wait() == 0
    assert time.monotonic() - begun < GRACE
    assert made.wait_event("supervisor.stopping_now")["reason"] == second.name
    assert made.wait_event("worker.exited")["signal"] == "SIGKILL"


def test_a_second_hangup_does_not(instance: Make) -> None:
    """Of one terminal that goes away both the kernel and a shell tell: the batch in hand is finished all the same."""
    made = instance()
    made.write(made.model())
    made.start()
    with busy(made, do="sleep", seconds=0.5) as peer:
        made.signal(signal.SIGHUP)
        made.wait_event("worker.stopping")
        made.signal(signal.SIGHUP)
        assert read_predict(peer).items[0].body == b"done"
    assert made.wait() == 0
    assert made.events("supervisor.stopping_now") == []


def test_stop_while_a_model_loads_for_ever(instance: Make) -> None:
    """A template that hangs in C while it loads keeps nobody: TERM, then KILL."""
    made = instance()
    made.write(made.model(env__FAULT_AT_LOAD='{"do": "busy_in_c"}'))
    made.launch()
    made.wait_event("template.output")
    begun = time.monotonic()
    assert made.stop() == 0
    assert time.monotonic() - begun < TERM_GRACE + GRACE
    assert made.wait_event("template.exited")["cause"] == "stopped"


def test_stop_in_a_back_off(instance: Make) -> None:
    """A slot that waits for its next try does not make the stop wait, and nothing is born any more."""
    made = instance("worker.exited")
    made.write(
        made.model(env__FAULT_AFTER_FORK='{"do": "exit"}', max_failures=1000),
        supervisor="on_start_failure = continue",
    )
    made.launch()
    made.wait_event("worker.exited", next="back_off")
    begun = time.monotonic()
    assert made.stop() == 0
    assert time.monotonic() - begun < GRACE
    stopping = made.wait_event("supervisor.stopping")["seq"]
    assert not [event for event in made.events("worker.starting") if event["seq"] > stopping]


def test_a_helper_that_left_the_session_does_not_stay(instance: Make) -> None:
    """What a handler started and detached goes with the supervisor at the latest, and is named."""
    made = instance()
    made.write(made.model())
    made.start()
    with dial(made.socket()) as peer:
        peer.sendall(order_frame(do="helper", session=True))
        helper = int(read_predict(peer).items[0].body)
    assert alive(helper)
    assert made.stop() == 0
    assert not alive(helper)
    assert [event["pid"] for event in made.events("orphan.killed")] == [helper]


def test_clients_that_wait_get_an_end(instance: Make) -> None:
    """Connections in the backlog, idle ones and half frames all see the end of a stopped worker; none hangs."""
    made = instance()
    made.write(made.model(max_connections=2))
    made.start()
    peers = [dial(made.socket()) for _ in range(6)]
    peers[0].sendall(order_frame(do="nothing")[:10])
    made.stop()
    for peer in peers:
        with peer:
            try:
                assert peer.recv(100) == b""
            except ConnectionResetError:
                continue


# -- at a terminal -------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(instance: Make) -> Iterator[Terminal]:
    """A terminal for one instance of the test model with long deadlines."""
    made = instance()
    made.write(made.model(workers=2, stop_timeout="1000s"), supervisor="stop_timeout = 1000s")
    made.log.touch()  # the log goes to the terminal
    shown = Terminal(made)
    yield shown
    shown.close()


def test_ctrl_c_is_the_supervisors_alone(terminal: Terminal) -> None:
    """Ctrl-C stops kindly: a worker in the middle of a request does not see the signal and finishes it."""
    made = terminal.start().instance
    terminal.wait_text("supervisor.ready")
    with busy(made, do="sleep", seconds=0.6) as peer:
        terminal.type(b"\x03")
        terminal.wait_text("supervisor.stopping")
        assert read_predict(peer).items[0].body == b"done"
    assert made.wait() == 0
    terminal.wait_text("supervisor.stopped")
    assert "reason=SIGINT" in terminal.text
    assert "KeyboardInterrupt" not in terminal.text
    assert terminal.text.count("cause=stopped") == 3, terminal.text  # two workers and the template


def test_ctrl_c_twice_means_now(terminal: Terminal) -> None:
    """The second one does not wait for the request."""
    made = terminal.start().instance
    terminal.wait_text("supervisor.ready")
    with busy(made, do="sleep"):
        terminal.type(b"\x03")
        terminal.wait_text("supervisor.stopping")
        terminal.type(b"\x03")
        assert made.wait(GRACE) == 0
    terminal.wait_text("supervisor.stopping_now")


def test_ctrl_c_while_loading(terminal: Terminal) -> None:
    """Before anything is ready it stops as well."""
    made = terminal.instance
    made.write(made.model(env__FAULT_AT_LOAD='{"do": "sleep"}'))
    terminal.start()
    terminal.wait_text("loading faults in")
    terminal.type(b"\x03")
    assert made.wait() == 0


def test_the_terminal_goes_away(terminal: Terminal) -> None:
    """Its hang-up is a kind stop: the request in hand is answered, nothing is left, the log that nobody reads harms nobody."""
    made = terminal.start().instance
    terminal.wait_text("supervisor.ready")
    with busy(made, do="sleep", seconds=0.5) as peer:
        terminal.hang_up()
        assert read_predict(peer).items[0].body == b"done"
    assert made.wait() == 0


def test_stop_is_heard_while_a_client_floods(instance: Make) -> None:
    """A client that keeps a worker busy without a pause does not put off its end."""
    made = instance()
    made.write(made.model())
    made.start()
    path = made.socket()
    over = threading.Event()

    def flood() -> None:
        try:
            while not over.is_set():
                ask(path)
        except (OSError, AssertionError):
            return  # it is gone, which is what is tested

    flooders = [threading.Thread(target=flood) for _ in range(4)]
    for flooder in flooders:
        flooder.start()
    begun = time.monotonic()
    assert made.stop() == 0
    assert time.monotonic() - begun < GRACE
    over.set()
    for flooder in flooders:
        flooder.join(GRACE)
