"""`allow_load = true`: a client has a worker serve another model, from then on and until the worker ends."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from modelworker.wire import LoadCommand, LoadResponse, ResponseReader, encode_load

from support.faults import echo, facts, kill_worker, ready
from support.instance import LIMIT, Instance

Running = Callable[..., Instance]

OTHER = "def handle(data, context): return [b'the other' for _ in data or ()]\n"
BROKEN = "raise RuntimeError('no weights')\n"


def load(instance: Instance, folder: Path, name: str = "other") -> LoadResponse:
    """A worker's answer to `L`."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(LIMIT)
        peer.connect(str(instance.socket()))
        peer.sendall(encode_load(LoadCommand(name, str(folder), 2, "service:handle", -1, "fd")))
        reader = ResponseReader()
        while (answer := reader.next_load_response()) is None:
            chunk = peer.recv(4096)
            assert chunk
            reader.feed(chunk)
        return answer


def model(parent: Path, source: str) -> Path:
    folder = parent / "other"
    folder.mkdir(exist_ok=True)
    (folder / "service.py").write_text(source)
    return folder


@pytest.mark.parametrize("preload", ["model", "none"])
def test_a_client_chooses_the_model(running: Running, short_tmp: Path, preload: str) -> None:
    """What does not load leaves all as it was; what loads is served by that worker alone; its successor serves the configured
    one. Both are events that name the client."""
    instance = running("worker.exited", workers=2, preload=preload, allow_load="true")
    refused = load(instance, model(short_tmp, BROKEN))
    assert (refused.code, refused.message) == (500, "RuntimeError: no weights")
    event = instance.wait_event("worker.model_refused", worker=0, peer_pid=os.getpid())
    assert (event["name"], event["code"], event["error"]) == ("other", 500, refused.message)
    assert "service.py" in event["traceback"]
    before = facts(instance)

    answer = load(instance, model(short_tmp, OTHER))
    pid = instance.worker()["pid"]
    assert (answer.code, answer.message) == (200, f"loaded model other. [PID]:{pid}")
    assert [echo(instance, index=index) for index in (0, 1)] == [b"the other", b"are you there"]
    event = instance.wait_event("worker.model_loaded", worker=0, peer_pid=os.getpid())
    assert (event["path"], event["warmed"]) == (str(short_tmp / "other"), False)

    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    assert echo(instance) == b"are you there"
    after = facts(instance)
    assert (after["cwd"], after["path"]) == (before["cwd"], before["path"])


LARGE = """
class Service:
    def initialize(self, context):
        self.weights = bytearray(b"w") * (96 * 1024 * 1024)

    def handle(self, data, context):
        return [b"large" for _ in data]
"""


@pytest.mark.parametrize("spares", [0, 1])
def test_the_memory_of_the_model_before_it_is_given_back(
    instance: Callable[..., Instance], short_tmp: Path, spares: int
) -> None:
    """That of the configured model, too, which the worker loaded itself."""
    large = short_tmp / "large"
    large.mkdir()
    (large / "service.py").write_text(LARGE)
    keys = {"preload": "import", "allow_load": "true", "spares": spares}
    made = instance("worker.exited")
    made.write(made.model(folder=large, handler="service", **keys))
    made.start()
    if spares:
        made.wait_event("spare.ready")
        kill_worker(made, signal.SIGKILL)
        ready(made, 2)
    assert made.worker()["rss_bytes"] > 96 * 1024 * 1024
    assert load(made, model(short_tmp, OTHER)).code == 200
    assert echo(made) == b"the other"
    assert made.worker()["rss_bytes"] < 96 * 1024 * 1024


def test_a_load_that_kills_is_a_crash_with_the_load_in_hand(
    running: Running, short_tmp: Path
) -> None:
    """It is charged to who asked for it: the exit names it, and the slot has no failure."""
    instance = running("worker.exited", allow_load="true")
    folder = model(short_tmp, "import os\nos._exit(9)\n")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(LIMIT)
        peer.connect(str(instance.socket()))
        peer.sendall(encode_load(LoadCommand("bad", str(folder), 1, "service", -1, "fd")))
        assert peer.recv(1) == b""
    exited = instance.wait_event("worker.exited")
    assert (exited["code"], exited["in_hand"], exited["failures"]) == (9, ["load bad"], 0)
    assert echo(instance) == b"are you there"
