"""What a template does ahead of its workers: everything, an import, nothing; and that a worker is the same in the end."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.client import Client
from support.archives import archive_of
from support.faults import echo, kill_worker, ready, template_pid
from support.instance import LIMIT, ROOT, Instance, marked_processes, wait_for
from support.mendable import Mendable

Make = Callable[..., Instance]
Running = Callable[..., Instance]

EARLY = ROOT / "tests" / "models" / "early"
STEPS = ["import", "initialize", "warmup", "after_fork"]
# The steps that a mode leaves to each worker; the others are the template's.
OWN_STEPS = {"model": STEPS[3:], "import": STEPS[1:], "none": STEPS}


def answer_of(instance: Instance, index: int = 0, model: str = "echo") -> Any:
    """What a worker says to a plain request, as JSON."""
    with Client([str(instance.socket(model, index))], timeout=LIMIT) as client:
        return json.loads(client.predict(b"say").body)


def told(instance: Instance, index: int = 0, model: str = "echo") -> dict[str, Any]:
    """What a worker of the model `early` has noted."""
    noted: dict[str, Any] = answer_of(instance, index, model)
    return noted


def kinds(pid: int) -> list[str]:
    """The kinds of what a process holds open, sorted."""
    targets = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            targets.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return sorted(each if each.startswith("/") else each.split(":")[0] for each in targets)


@pytest.mark.parametrize("preload", ["model", "import", "none"])
def test_whoever_does_a_step_is_complete_by_then(instance: Make, preload: str) -> None:
    """A handler sees one order of steps, each once; before the first in a worker, that is the supervisor's child in a session of
    its own, with its death signal, its FIFOs, its CPUs, no core files, and the descriptors on the list."""
    made = instance("worker.exited")
    made.write(made.model(folder=EARLY, workers=2, preload=preload))
    line = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(made.config)]
    shell = ["sh", "-c", f'exec "$@" 9< {made.config}', "sh"]  # hands a descriptor on
    made.launch(command=[*shell, *line]).wait_event("supervisor.ready")
    kill_worker(made, signal.SIGKILL, 1)
    ready(made, 2, 1)
    for index in (0, 1):
        steps = told(made, index)["steps"]
        assert [name for name, _ in steps] == STEPS
        worker = made.worker(index=index)
        for name, seen in steps:
            own = name in OWN_STEPS[preload]
            pid = worker["pid"] if own else template_pid(made)
            assert (seen["pid"], seen["sid"], seen["ppid"]) == (pid, pid, made.pid)
            assert (seen["death_signal"], seen["core_limit"]) == (signal.SIGKILL, 0)
            fifo = str(made.run_dir / f"echo.{index}.stdout")
            assert (seen["stdout"] == fifo) is own
            assert not own or seen["cpus"] == worker["cpus"]
        fifos = [str(made.run_dir / f"echo.{index}.{stream}") for stream in ("stderr", "stdout")]
        expected = sorted(["/dev/null", *fifos, "anon_inode", "socket", "socket"])
        wait_for(lambda pid=worker["pid"], rest=expected: kinds(pid) == rest, "its descriptors")
        assert worker["preload"] == preload
    says_what_it_did(made.wait_event("template.ready"), preload == "model")
    says_what_it_did(ready(made, 2, 1), preload != "model")


def says_what_it_did(event: dict[str, Any], warmed: bool) -> None:
    """Whoever loaded the model says how long that took, and that it was warmed; a template that did not, that it was not."""
    assert event.get("warmed", False) is warmed
    if warmed:
        assert 0 <= event["load_s"] + event["warmup_s"] <= event["start_s"]


@pytest.mark.parametrize("code", [0, 5])
def test_a_handler_that_leaves_while_the_template_loads_it_is_a_failed_load(
    instance: Make, code: int
) -> None:
    """It is told as the failure of any load, with the traceback; the exit handlers of what it had loaded do not run."""
    broken = instance("template.exited", "supervisor.start_failed")
    fault = json.dumps({"do": "sys_exit", "code": code})
    broken.write(broken.model(env__FAULT_AT_LOAD=fault))
    broken.launch()
    assert broken.wait() == 1
    (exited,) = broken.events("template.exited")
    assert (exited["cause"], exited["code"]) == ("load_failed", 1)
    assert f"the handler left by sys.exit({code})" in exited["reason"]
    assert "in initialize" in exited["traceback"]


FAILURES = [
    ("import", {"do": "raise", "text": "no weights"}, "ValueError: no weights"),
    ("none", {"do": "raise", "text": "no weights"}, "ValueError: no weights"),
    ("none", {"do": "sys_exit", "code": 5}, "the handler left by sys.exit(5)"),
]


@pytest.mark.parametrize(("preload", "fault", "said"), FAILURES)
def test_a_load_that_fails_in_a_worker_ends_the_start(
    instance: Make, preload: str, fault: dict[str, Any], said: str
) -> None:
    """It is told by the worker, with the traceback: cause start_failed, and exit 1 after the first try."""
    broken = instance("worker.exited", "supervisor.start_failed")
    broken.write(broken.model(preload=preload, env__FAULT_AT_LOAD=json.dumps(fault)))
    broken.launch()
    assert broken.wait() == 1
    (exited,) = broken.events("worker.exited")
    assert (exited["cause"], exited["code"], exited["next"]) == ("start_failed", 1, "stop")
    assert said in exited["reason"]
    assert "in initialize" in exited["traceback"]
    assert "loading faults in" in exited["last_lines"][0]
    assert broken.events("template.ready")


def test_a_load_that_fails_in_a_worker_is_tried_again(instance: Make, mendable: Mendable) -> None:
    """Under `continue` the slot is FAILED after max_failures, and back after `restart MODEL/N` when the cause is mended."""
    mendable.set("raise")
    broken = instance("worker.exited", "worker.failed")
    keys = {"preload": "none", "max_failures": 2, "env__FAULT_FILE": mendable.path}
    broken.write(broken.model(**keys), "on_start_failure = continue")
    broken.start()
    assert broken.wait_event("supervisor.ready")["degraded"] is True
    assert len(broken.events("template.starting")) == 1
    mendable.mend()
    assert broken.cli("restart", "echo/0", "-c", str(broken.config)).returncode == 0
    assert echo(broken) == b"are you there"


def test_a_worker_whose_interpreter_went_says_so(instance: Make) -> None:
    """The exec fails in the slot's own process, which tells it like any failed start; it comes back with the interpreter."""
    made = instance("worker.exited")
    python = made.folder / "python"
    python.symlink_to(sys.executable)
    made.write(made.model(preload="none", python=python, env__PYTHONPATH=_site()))
    made.start()
    python.rename(made.folder / "aside")
    kill_worker(made, signal.SIGKILL)
    exited = made.wait_event("worker.exited", generation=2)
    assert exited["cause"] == "start_failed"
    assert "No such file or directory" in exited["reason"]
    (made.folder / "aside").rename(python)
    assert echo(made) == b"are you there"


def _site() -> str:
    """Where this environment's packages are: a link to its interpreter from elsewhere does not find them."""
    return os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))


def test_workers_that_load_die_with_their_supervisor(instance: Make, mendable: Mendable) -> None:
    """Each in an interpreter of its own, holding the GIL in C in the middle of its load: the death signal outlived the exec."""
    mendable.set("busy_in_c")
    made = instance()
    made.write(made.model(preload="none", workers=3, env__FAULT_FILE=mendable.path))
    made.launch().wait_event("worker.output", count=3)
    made.signal(signal.SIGKILL)
    wait_for(lambda: not marked_processes(made.mark), "everything to be gone", 2.0)
    made.wait()
    mendable.mend()
    made.start()  # sweeps what was left


def test_an_unpacked_archive_is_held_over_the_exec(instance: Make) -> None:
    """The template unpacks it; a worker of its own interpreter holds its lock, and serves from it when the template is dead."""
    made = instance("template.exited")
    archive = made.folder / "m.mar"
    archive.write_bytes(archive_of(EARLY, "service"))
    made.write(f"[model:echo]\npath = {archive}\npreload = none\n")
    made.start()
    event = made.wait_event("template.ready")
    folder = made.run_dir / "models" / event["archive_sha256"]
    (lock,) = {kind for kind in kinds(made.worker()["pid"]) if kind.startswith(str(folder))}
    assert lock in kinds(event["pid"])
    os.kill(event["pid"], signal.SIGKILL)
    template_pid(made, 2)
    assert str(folder) in told(made)["path"]


@pytest.mark.parametrize("preload", ["import", "none"])
def test_a_spare_has_loaded_its_own_copy(instance: Make, preload: str) -> None:
    """It does so before it has a slot, and takes one over as it is: the successor was born before the death, and loads nothing."""
    made = instance("worker.exited")
    made.write(made.model(folder=EARLY, preload=preload, spares=1, gpus="3"))
    made.start()
    spare = made.wait_event("spare.ready")["pid"]
    kill_worker(made, signal.SIGKILL)
    assert ready(made, 2)["pid"] == spare
    steps = dict(told(made)["steps"])
    assert {steps[name]["pid"] for name in OWN_STEPS[preload]} == {spare}
    assert {seen["gpus"] for seen in steps.values()} == {"3"}
    assert made.worker()["gpu"] == 3


def test_a_spare_has_its_first_inference_behind_it(instance: Make) -> None:
    """One that inherited a warm model runs the warm-up itself, last; a worker that was born for its slot does not."""
    made = instance("worker.exited")
    made.write(made.model(folder=EARLY, workers=1, spares=1))
    made.start()
    assert [name for name, _ in told(made)["steps"]] == STEPS
    spare = made.wait_event("spare.ready")["pid"]
    kill_worker(made, signal.SIGKILL)
    ready(made, 2)
    steps = told(made)["steps"]
    assert [name for name, _ in steps] == [*STEPS, "warmup"]
    assert steps[-1][1]["pid"] == spare


# -- GPUs -------------------------------------------------------------------------------------------------------------


def test_each_worker_is_shown_one_gpu(instance: Make) -> None:
    """Round robin, in the order written, kept over restarts, before the model's first code in the worker; `gpu_id` is 0, the number
    of the only one that it sees. `status` and `plan` have the machine's numbers."""
    made = instance("worker.exited")
    modes = ("import", "none")
    keys = {"folder": EARLY, "workers": 3, "gpus": "7,4"}
    made.write("".join(made.model(mode, preload=mode, **keys) for mode in modes))
    made.launch(CUDA_VISIBLE_DEVICES="4,5,7").wait_event("supervisor.ready")
    planned = json.loads(made.cli("plan", "-c", str(made.config), "--json").stdout)["models"]
    for mode, model in zip(modes, planned, strict=True):
        assert [worker["gpu"] for worker in model["workers"]] == [7, 4, 7]
        kill_worker(made, signal.SIGKILL, model=mode)
        ready(made, 2, model=mode)
        for index, gpu in enumerate((7, 4, 7)):
            found = told(made, index, mode)
            shown = {name: seen["gpus"] for name, seen in found["steps"]}
            assert {shown[name] for name in OWN_STEPS[mode]} == {str(gpu)}
            assert set(shown.values()) <= {str(gpu), "7,4"}
            assert (found["gpu_id"], found["order"]) == (0, "PCI_BUS_ID")
            assert made.worker(mode, index)["gpu"] == gpu


# -- random numbers, shared memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["", pytest.param("mxnet", marks=pytest.mark.slow)])
def test_random_numbers_differ_between_workers(instance: Make, framework: str) -> None:
    """Forked after an import, or not forked at all; MXNet by itself begins with the same numbers in every process."""
    if framework and importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    made = instance("worker.exited")
    keys = {"folder": ROOT / "tests" / "models" / "dice", "env__DICE_MXNET": framework}
    # What a handler seeds itself in each process is its own affair
    seeds = {"import": "1", "none": "0"}
    models = [
        made.model(mode, workers=2, preload=mode, env__DICE_SEED=seed, **keys)
        for mode, seed in seeds.items()
    ]
    made.write("".join(models))
    made.start()
    for mode in seeds:
        drawn = [answer_of(made, index, mode) for index in (0, 1)]
        kill_worker(made, signal.SIGKILL, model=mode)
        ready(made, 2, model=mode)
        drawn.append(answer_of(made, 0, mode))
        for source in zip(*drawn, strict=True):
            assert len(set(source)) == 3, drawn


@pytest.mark.parametrize("preload", ["model", "import"])
def test_what_the_template_has_made_stays_shared(running: Running, preload: str) -> None:
    """A collection in a worker writes to no object that it inherited: of some 50 MB a few stay its own, after many requests."""
    at = "load" if preload == "model" else "import"
    model = ROOT / "tests" / "models" / "objects"
    instance = running(folder=model, preload=preload, env__OBJECTS_AT=at)
    private = [int(echo(instance)) for _ in range(5)]
    assert max(private) < 8 * 1024 * 1024, private


# -- MXNet ------------------------------------------------------------------------------------------------------------


NAIVE = """
import mxnet

def handle(data, context):
    if data is None:
        return None
    left = mxnet.nd.random.uniform(shape=(64, 64))
    return [str(float(mxnet.nd.dot(left, left).sum().asscalar())) for _ in data]
"""


def test_the_naive_engine_computes_in_workers_of_a_cold_template(
    instance: Make, short_tmp: Path
) -> None:
    """Imported and never used in the template, it works in a forked worker, on several threads; and in one of its own."""
    if importlib.util.find_spec("mxnet") is None:
        pytest.skip("mxnet is not installed")
    folder = short_tmp / "naive"
    folder.mkdir()
    (folder / "service.py").write_text(NAIVE)
    made = instance()
    keys = {"folder": folder, "threads": 2, "env__MXNET_ENGINE_TYPE": "NaiveEngine"}
    modes = ("import", "none")
    made.write("".join(made.model(mode, preload=mode, **keys) for mode in modes))
    made.start()
    for mode in modes:
        assert answer_of(made, model=mode) > 0
    assert "mxnet" in made.wait_event("template.ready", model="import")
    assert "mxnet" not in made.wait_event("template.ready", model="none")
