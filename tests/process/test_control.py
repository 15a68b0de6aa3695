"""The control socket of a living supervisor: clients that are wrong, slow, many or foreign; and what commands do."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelworker.scoreboard import read_record

from modelsupervisor.control import MAX_LINE, ControlConnection
from modelsupervisor.errors import ControlError
from modelsupervisor.runtime.operators import MAX_OPERATORS
from support.instance import Instance, wait_for
from support.peers import ask, control_line, dial, order_frame, read_line, read_to_end
from support.unprivileged import NOBODY

Make = Callable[..., Instance]
as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")


@pytest.fixture
def echo(instance: Make) -> Iterator[Instance]:
    """A running supervisor; at the end it answers still, and within a moment."""
    made = instance()
    made.write(made.model(workers=2))
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        begun = time.monotonic()
        assert made.status()["supervisor"]["pid"] == made.pid
        assert time.monotonic() - begun < 2


def control(made: Instance) -> socket.socket:
    """A raw connection to the control socket."""
    return dial(made.run_dir / "control.sock")


def answers(made: Instance) -> None:
    """Another client is answered now."""
    with control(made) as peer:
        peer.settimeout(2)
        peer.sendall(control_line(command="status"))
        assert read_line(peer)["ok"]


# -- bytes ---------------------------------------------------------------------------------------------------------------


NO_COMMANDS = (
    b"\n",
    b"garbage\n",
    b"\xff\xfe\x00\n",
    b"{}\n",
    b"[]\n",
    b"null\n",
    b'{"id": 1}\n',
    b'{"id": null, "command": "status"}\n',
    b'{"id": 1, "command": "status", "arguments": []}\n',
    b'{"id": 1, "command": "status", "more": 1}\n',
    b'{"id": 1, "command": "status", "arguments": {"x": 1}}\n',
    b'{"id": 1, "command": "stop", "arguments": {"now": true}}\n',
    b'{"id": 1, "command": ""}\n',
    b'{"id": 1, "command": "reboot"}\n',
    b'{"id": 1, "command": "restart"}\n',
    b'{"id": 1, "command": "restart", "arguments": {"model": 5}}\n',
    b'{"id": 1, "command": "restart", "arguments": {"model": "echo", "index": "0"}}\n',
    b'{"id": 1, "command": "restart", "arguments": {"model": "echo", "index": 0.5}}\n',
    b'{"id": 123456789012345678901234567890, "command": "reboot"}\n',
    b'{"id": 1, "command": "\\ud800"}\n',
    b"[" * 100000 + b"\n",
    b'{"a":' * 100000 + b"\n",
)


def test_lines_that_are_no_command(echo: Instance) -> None:
    """Each is answered with bad_request on one line; the connection goes on, and the next command on it is carried out."""
    with control(echo) as peer:
        for line in NO_COMMANDS:
            peer.sendall(line)
            reply = read_line(peer)
            assert (reply["ok"], reply["error"]["code"]) == (False, "bad_request"), line[:80]
            assert reply["error"]["message"]
            peer.sendall(control_line(command="status"))
            assert read_line(peer)["ok"]


NOBODY_THERE: tuple[dict[str, Any], ...] = (
    {"model": "nobody"},
    {"model": ""},
    {"model": "../echo"},
    {"model": "echo", "index": 2},
    {"model": "echo", "index": -1},
    {"model": "echo", "index": 10**30},
    {"model": "nobody", "index": 0},
)


def test_restarts_of_what_is_not_there(echo: Instance) -> None:
    """Answered with not_found, and with what there is."""
    with control(echo) as peer:
        for arguments in NOBODY_THERE:
            peer.sendall(control_line(command="restart", arguments=arguments))
            reply = read_line(peer)
            assert reply["error"]["code"] == "not_found", reply
            assert "there" in reply["error"]["message"]


@pytest.mark.parametrize("size", [MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE])
def test_a_line_over_a_mebibyte(echo: Instance, size: int) -> None:
    """Answered with bad_request and closed, however much more of it comes; nobody else notices."""
    with control(echo) as peer:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            peer.sendall(b'"' + b"x" * (size - 1) + b"\n")
        assert read_line(peer)["error"]["code"] == "bad_request"
        assert read_to_end(peer) == b""
    answers(echo)


def test_a_line_of_just_a_mebibyte(echo: Instance) -> None:
    """The longest line there may be is read whole."""
    body = control_line(command="status")[:-1]
    with control(echo) as peer:
        peer.sendall(body + b" " * (MAX_LINE - 1 - len(body)) + b"\n")
        assert read_line(peer)["ok"]


# -- slow and many -------------------------------------------------------------------------------------------------------


def test_half_a_line_for_ever(echo: Instance) -> None:
    """Who does not finish a line keeps nobody waiting, and is served when it does."""
    line = control_line(command="status")
    with control(echo) as slow:
        for byte in line[:-1]:
            slow.sendall(bytes([byte]))
        answers(echo)
        slow.sendall(line[-1:])
        assert read_line(slow)["ok"]


def test_a_thousand_commands_in_one_write(echo: Instance) -> None:
    """All are answered, in their order; others are served between them."""
    lines = b"".join(control_line(command="reboot", id=number) for number in range(1000))
    with control(echo) as peer:
        peer.sendall(lines)
        answers(echo)
        ids = []
        held = b""
        while len(ids) < 1000:
            held += peer.recv(65536)
            *whole, held = held.split(b"\n")
            ids += [json.loads(line)["id"] for line in whole]
    assert ids == list(range(1000))


def test_a_client_that_never_reads(echo: Instance) -> None:
    """Its answers are kept up to a bound, and then it is dropped; the supervisor's memory shows it, others are answered."""
    line = control_line(command="status") * 100
    with control(echo) as deaf:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(200):
                deaf.sendall(line)
        answers(echo)
    resident = int(Path(f"/proc/{echo.pid}/statm").read_text().split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )
    assert resident < 256 * 1024 * 1024


def test_a_hundred_connections(echo: Instance) -> None:
    """The first MAX_OPERATORS are served; the others are told why not, at once; when they leave there is room again."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(control(echo)) for _ in range(100)]
        refused = 0
        for peer in peers:
            with contextlib.suppress(BrokenPipeError):
                peer.sendall(control_line(command="status"))
            reply = read_line(peer)
            if not reply["ok"]:
                assert reply["error"]["code"] == "refused"
                assert str(MAX_OPERATORS) in reply["error"]["message"]
                refused += 1
        assert refused == 100 - MAX_OPERATORS
    wait_for(lambda: room(echo), "room for another operator")


def room(made: Instance) -> bool:
    """Whether a new connection is served."""
    try:
        return bool(made.status())
    except ControlError as error:
        assert error.code == "refused"
        return False


def test_connections_that_come_and_go(echo: Instance) -> None:
    """500 of them, many in mid-line, leave no descriptor behind."""
    answers(echo)
    before = len(os.listdir(f"/proc/{echo.pid}/fd"))
    for number in range(500):
        with control(echo) as peer:
            peer.sendall(control_line(command="status")[: number % 30])
    answers(echo)
    wait_for(
        lambda: len(os.listdir(f"/proc/{echo.pid}/fd")) <= before, "the descriptors to be closed"
    )


# -- who ----------------------------------------------------------------------------------------------------------------

_AS_SOMEBODY_ELSE = f"""
import ctypes, os, socket, sys
os.setegid({NOBODY})
os.seteuid({NOBODY})  # whom SO_PEERCRED names
ctypes.CDLL(None).setfsuid(0)  # and yet past the modes of directory and socket
with socket.socket(socket.AF_UNIX) as peer:
    peer.settimeout(10)
    peer.connect(sys.argv[1])
    try:
        peer.sendall(b'{{"id": 1, "command": "stop"}}\\n')
    except BrokenPipeError:
        pass
    sys.stdout.write(peer.makefile().readline())
"""


@as_root
def test_a_foreign_user_is_refused(echo: Instance) -> None:
    """Past the file modes the kernel's word on who it is decides: refused with its uid, nothing is carried out."""
    path = str(echo.run_dir / "control.sock")
    line = [sys.executable, "-c", _AS_SOMEBODY_ELSE, path]
    told = subprocess.run(line, capture_output=True, text=True, check=True, timeout=30)
    reply = json.loads(told.stdout)
    assert (reply["ok"], reply["error"]["code"]) == (False, "refused")
    assert str(NOBODY) in reply["error"]["message"]
    answers(echo)
    assert echo.events("supervisor.stopping") == []


_IN_GROUP = """
import os, socket, sys
os.setgroups([int(sys.argv[2])])
os.setgid(int(sys.argv[3]))
os.setuid(65533)
with socket.socket(socket.AF_UNIX) as peer:
    peer.settimeout(10)
    peer.connect(sys.argv[1])
    peer.sendall(b'{"id": 1, "command": "reboot"}\\n')
    sys.stdout.write(peer.makefile().readline())
"""


@as_root
@pytest.mark.parametrize("supplementary", [False, True])
def test_a_member_of_the_group_may_command(instance: Make, supplementary: bool) -> None:
    """With socket_group a process of that group, be it a supplementary one, is let in; its command is looked at."""
    made = instance()
    made.write(made.model(), supervisor="socket_group = nogroup\nsocket_mode = 0660\n")
    made.folder.chmod(0o755)
    made.folder.parent.chmod(0o755)
    made.start()
    gid = made.run_dir.stat().st_gid
    groups = ["12345", str(gid)] if not supplementary else [str(gid), "12345"]
    line = ["/usr/bin/python3", "-c", _IN_GROUP, str(made.run_dir / "control.sock"), *groups]
    told = subprocess.run(line, capture_output=True, text=True, check=False, timeout=30)
    assert json.loads(told.stdout)["error"]["code"] == "bad_request", told.stderr


# -- commands ------------------------------------------------------------------------------------------------------------


def test_status_while_starting(instance: Make) -> None:
    """Before anything is ready the status shows the slots as they are."""
    made = instance()
    made.write(made.model(workers=2, env__FAULT_AT_LOAD='{"do": "sleep"}'))
    made.launch()
    made.wait_event("template.output")
    status = made.status()
    workers = status["models"][0]["workers"]
    assert [worker["phase"] for worker in workers] == ["EMPTY", "EMPTY"]
    assert [worker["pid"] for worker in workers] == [None, None]
    assert {worker["wanted"] for worker in workers} == {"up"}
    refused = made.cli("restart", "echo/0", "-c", str(made.config))
    assert refused.returncode == 1
    assert "not ready" in refused.stderr


def test_the_shape_of_status(echo: Instance) -> None:
    """Exactly these keys, with facts of the living in them."""
    status = echo.status()
    assert set(status) == {"supervisor", "models", "log"}
    assert set(status["log"]) == {"events", "sinks"}
    assert set(status["supervisor"]) == {"pid", "version", "uptime_s", "config", "run_dir"}
    (model,) = status["models"]
    assert set(model) == {"name", "workers_wanted", "workers"}
    for index, worker in enumerate(model["workers"]):
        assert set(worker) == {
            *(
                "index",
                "wanted",
                "phase",
                "pid",
                "generation",
                "cpus",
                "threads",
                "gpu",
                "preload",
                "drift",
                "busy_s",
                "rss_bytes",
            ),
            *("pss_bytes", "busy_s", "requests", "restarts", "last_exit", "last_crash", "output"),
            *("socket", "stdout", "stderr"),
        }
        assert (worker["index"], worker["phase"], worker["generation"]) == (index, "READY", 1)
        assert worker["pss_bytes"] <= worker["rss_bytes"]
        for file in ("socket", "stdout", "stderr"):
            assert os.path.exists(worker[file])


def test_stop_is_answered_and_the_end_is_the_end(echo: Instance) -> None:
    """`stop` is answered at once; the connection ends when the supervisor is done and everything is removed."""
    with control(echo) as peer:
        peer.sendall(control_line(command="stop"))
        assert read_line(peer)["result"] == {"stopping": True}
        assert read_to_end(peer) == b""
        assert os.listdir(echo.run_dir) == ["lock"]
    assert echo.wait() == 0


def test_stop_twice_is_stop_once(instance: Make) -> None:
    """A second `stop` is answered and does not mean now; status and others are answered while it stops; restarts are refused."""
    made = instance()
    made.write(made.model())
    made.start()
    with dial(made.socket()) as peer, control(made) as operator:
        peer.sendall(order_frame(do="sleep", seconds=1))
        wait_for(lambda: in_hand(made), "the request in hand")
        for _ in range(3):
            operator.sendall(control_line(command="stop"))
            assert read_line(operator)["result"] == {"stopping": True}
        operator.sendall(control_line(command="status"))
        (worker,) = read_line(operator)["result"]["models"][0]["workers"]
        assert (worker["wanted"], worker["phase"]) == ("down", "DRAINING")
        operator.sendall(control_line(command="restart", arguments={"model": "echo"}))
        assert read_line(operator)["error"]["code"] == "refused"
        assert b"done" in peer.recv(4096)
    assert made.wait() == 0
    assert made.events("supervisor.stopping_now") == []


def in_hand(made: Instance) -> bool:
    """The first worker has a request in hand."""
    return bool(read_record((made.run_dir / "scoreboard").read_bytes()).in_hand)


def test_several_restarts_at_once(echo: Instance) -> None:
    """Of many restarts of one model at once one is carried out, the others are refused saying why; all are answered."""
    outcomes: list[str] = []
    gate = threading.Barrier(8)

    def restart() -> None:
        with ControlConnection.open(str(echo.run_dir)) as connection:
            gate.wait()
            try:
                connection.call("restart", {"model": "echo"}, 30)
            except ControlError as error:
                assert "under way" in str(error)
                outcomes.append(error.code)
            else:
                outcomes.append("done")

    threads = [threading.Thread(target=restart) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes) == 8
    assert set(outcomes) <= {"done", "refused"} and "done" in outcomes
    generation = 1 + outcomes.count("done")
    assert [worker["generation"] for worker in echo.status()["models"][0]["workers"]] == [
        generation
    ] * 2
    assert ask(echo.socket()) == b"hello"


def test_who_asks_for_a_restart_and_leaves(echo: Instance) -> None:
    """It is carried out all the same."""
    with control(echo) as peer:
        peer.sendall(control_line(command="restart", arguments={"model": "echo", "index": 1}))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    echo.wait_event("worker.ready", worker=1, generation=2)
    answers(echo)
