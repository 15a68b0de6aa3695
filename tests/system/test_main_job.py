"""The main job on real input: the digits example in MXNet, from start to stop, through the death of a worker."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.instance import ROOT, Instance, wait_for

DIGITS = ROOT / "models" / "digits"
SAMPLES = sorted((DIGITS / "samples").glob("*.png"))
LABELS: dict[str, int] = json.loads(
    (DIGITS / "samples" / "labels.json").read_text(encoding="utf-8")
)

# Not importorskip: this process is not to import MXNet, which wants the alias in NumPy that the template makes.
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("mxnet") is None, reason="MXNet is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed"),
]


@pytest.fixture
def digits(instance: Callable[..., Instance]) -> Instance:
    """The example in two workers, as conf/workers.ini has it, in a run directory of its own."""
    made = instance("worker.exited")  # the one that the test kills
    keys = {
        "handler": "handler.py",
        "workers": 2,
        "batch_size": 8,
        "env__MXNET_SUBGRAPH_VERBOSE": 0,
    }
    made.write(made.model("digits", DIGITS, **keys))
    return made.start()


def predicted(instance: Instance, files: list[Path] = SAMPLES) -> dict[str, int]:
    """File name to label, as `modelsupervisor predict` prints them."""
    done = instance.cli("predict", "-c", str(instance.config), "digits", *map(str, files))
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {Path(file).name: int(label) for file, label, _probability in lines}


def test_samples_and_labels_belong_together() -> None:
    """Each shipped picture has a label, and each label its picture."""
    assert [path.name for path in SAMPLES] == sorted(LABELS)
    assert set(LABELS.values()) == set(range(10))


def test_the_main_job(digits: Instance) -> None:
    """Start, predict every shipped digit, kill a worker, predict again, restart, predict, stop; nothing is left."""
    assert predicted(digits) == LABELS

    victim = digits.worker("digits")["pid"]
    inode = os.stat(digits.socket("digits")).st_ino
    os.kill(victim, signal.SIGKILL)
    assert (
        predicted(digits) == LABELS
    )  # at once: whoever comes to the dead worker's socket waits for its successor
    exited = digits.wait_event("worker.exited", pid=victim)
    assert (exited["cause"], exited["signal"], exited["next"]) == ("signal", "SIGKILL", "restart")
    digits.wait_event("worker.ready", worker=0, generation=2)
    assert os.stat(digits.socket("digits")).st_ino == inode

    restarted = digits.cli("restart", "-c", str(digits.config), "digits")
    assert restarted.returncode == 0, restarted.stderr
    assert [line.split("\t")[:2] for line in restarted.stdout.splitlines()] == [
        ["digits/0", "generation 3"],
        ["digits/1", "generation 2"],
    ]
    assert predicted(digits) == LABELS

    status = digits.cli("status", "-c", str(digits.config), "--json")
    (model,) = json.loads(status.stdout)["models"]
    assert [worker["phase"] for worker in model["workers"]] == ["READY", "READY"]
    assert sum(worker["requests"] for worker in model["workers"]) == 3 * len(SAMPLES)

    stopped = digits.cli("stop", "-c", str(digits.config))
    assert stopped.returncode == 0, stopped.stderr
    wait_for(
        lambda: digits.process is not None and digits.process.poll() is not None,
        "the supervisor's end",
    )
    assert digits.wait() == 0
    ready = digits.events("template.ready")[0]
    assert {"python", "numpy", "mxnet", "warmed", "load_s", "warmup_s", "start_s"} <= set(ready)
    assert os.listdir(digits.run_dir) == ["lock"]
