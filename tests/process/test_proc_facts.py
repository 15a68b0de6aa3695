"""What a worker and its template are, read from /proc: sessions, signals, descriptors, CPUs, environment, import path."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelsupervisor.client import Client
from modelsupervisor.core.placement import Demand, place
from modelsupervisor.runtime.machine import read_topology
from support.faults import (
    echo,
    facts,
    heir_pid,
    kill_worker,
    ready,
    template_pid,
)
from support.instance import (
    ROOT,
    Instance,
    children_of,
    environment,
    wait_for,
)

Make = Callable[..., Instance]
Running = Callable[..., Instance]

FAULTHANDLERS = {
    signal.SIGSEGV,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGILL,
}


def status_of(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def mask(field: str) -> set[signal.Signals]:
    """The signals of a mask in /proc/PID/status, those of the C library's own left out."""
    bits = int(field, 16)
    return {number for number in signal.Signals if bits >> (number - 1) & 1}


def sessions_of(pid: int) -> tuple[int, int, int]:
    """Parent, process group and session of a process."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[1]), int(words[2]), int(words[3])


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process and what they are."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def kinds(pid: int) -> list[str]:
    """The kinds of what a process holds open, sorted: `socket`, `pipe`, `anon_inode`, or a path."""
    return sorted(
        target if target.startswith("/") else target.split(":")[0]
        for target in descriptors(pid).values()
    )


# -- sessions and signals ---------------------------------------------------------------------------------------------


def test_worker_and_template_lead_sessions_of_their_own(running: Running) -> None:
    """Ctrl-C reaches the supervisor alone; both are its children, the worker by reparenting."""
    instance = running(workers=2)
    processes = [template_pid(instance)]
    processes += [instance.worker(index=index)["pid"] for index in (0, 1)]
    for pid in processes:
        assert sessions_of(pid) == (instance.pid, pid, pid)
    template = processes[0]
    heir = heir_pid(instance.pid, template)
    assert sessions_of(heir) == (instance.pid, template, template)
    assert sorted(children_of(instance.pid)) == sorted([*processes, heir])
    assert sessions_of(instance.pid)[2] not in processes


SULLEN = """
import os, signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGTTIN, signal.SIGALRM):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP})
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("sullen", "fault"),
    [(False, "nothing"), (True, "nothing"), (False, "sour_signals")],
    ids=["plain", "blocked_and_ignored_by_our_parent", "blocked_and_ignored_by_the_model"],
)
def test_signals_are_unblocked_and_default(instance: Make, sullen: bool, fault: str) -> None:
    """SigBlk is empty, SigIgn is SIGPIPE and SIGXFSZ, SigCgt is faulthandler's, whoever else touched them before.

    And a supervisor that was started with every signal blocked or ignored still stops at SIGTERM.
    """
    started = instance("worker.exited")
    started.write(started.model(env__FAULT_AT_LOAD=json.dumps({"do": fault})))
    line = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(started.config)]
    started.launch(command=[sys.executable, "-c", SULLEN, *line] if sullen else line)
    started.wait_event("supervisor.ready")
    worker = started.worker()["pid"]
    echo(started)
    template = template_pid(started)
    for pid in (worker, template, heir_pid(started.pid, template)):
        status = status_of(pid)
        assert mask(status["SigBlk"]) == set()
        assert mask(status["ShdPnd"]) == set()
        assert mask(status["SigIgn"]) == {signal.SIGPIPE, signal.SIGXFSZ}
        assert mask(status["SigCgt"]) == FAULTHANDLERS
    os.kill(worker, signal.SIGTERM)
    ready(started, 2)
    assert started.stop() == 0


def test_no_core_files(running: Running) -> None:
    """The soft core limit of both is 0."""
    instance = running()
    for pid in (template_pid(instance), instance.worker()["pid"]):
        (line,) = (
            line
            for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
            if line.startswith("Max core file size")
        )
        assert line.split()[4] == "0"


# -- descriptors ------------------------------------------------------------------------------------------------------


def test_descriptors_are_those_on_the_list(instance: Make) -> None:
    """Worker: nothing, two FIFOs, channel, listener, epoll, its connections. Template: nothing, two pipes, channel, its heir's.

    Not one of the supervisor's, of a sibling's, or of what the supervisor itself inherited.
    """
    made = instance()
    made.write(made.model(workers=3) + made.model("other"))
    line = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(made.config)]
    # The shell hands a descriptor on, as `flock` and build tools do.
    shell = ["sh", "-c", f'exec "$@" 9< {made.config}', "sh"]
    made.launch(command=[*shell, *line])
    made.wait_event("supervisor.ready")
    assert descriptors(made.pid)[9] == str(made.config)
    for model, index in (("echo", 0), ("echo", 2), ("other", 0)):
        pid = made.worker(model, index)["pid"]
        with Client([str(made.socket(model, index))]) as client:
            client.predict(b"keep this connection")
            found = descriptors(pid)
            assert found[0] == "/dev/null"
            assert found[1] == str(made.run_dir / f"{model}.{index}.stdout")
            assert found[2] == str(made.run_dir / f"{model}.{index}.stderr")
            rest = sorted(target.split(":")[0] for fd, target in found.items() if fd > 2)
            assert rest == ["anon_inode", "socket", "socket", "socket"], found
            assert "anon_inode:[eventpoll]" in found.values()

        def connection_closed(pid: int = pid) -> bool:
            return kinds(pid).count("socket") == 2

        wait_for(connection_closed, "the worker to close the connection")
    for event in made.events("template.ready"):
        heir = heir_pid(made.pid, event["pid"])
        let_go(event["pid"])
        found = descriptors(event["pid"])
        assert found[0] == "/dev/null"
        assert [found.pop(fd).split(":")[0] for fd in (0, 1, 2, 3)][1:] == [
            "pipe",
            "pipe",
            "socket",
        ]
        assert [target.split(":")[0] for target in found.values()] == ["socket"], found
        wait_for(lambda pid=heir: kinds(pid) == ["/dev/null", "pipe", "pipe", "socket"], "its own")


def let_go(template: int) -> None:
    """Wait until the template has closed the heir's end of their pair: the heir may have its title a moment before."""
    wait_for(lambda: kinds(template).count("socket") == 2, "the heir's end to be closed")


def test_descriptors_of_a_successor_are_as_few(running: Running) -> None:
    """The second generation holds what the first held, and so does the template."""
    instance = running("worker.exited", workers=2)
    first = kinds(instance.worker()["pid"])
    template = template_pid(instance)
    heir_pid(instance.pid, template)
    let_go(template)
    held = kinds(template)
    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    assert kinds(instance.worker()["pid"]) == first
    heir_pid(instance.pid, template)
    let_go(template)
    assert kinds(template) == held


def test_descriptors_that_the_model_opened_at_load_cross_the_fork(
    running: Running, short_tmp: Path
) -> None:
    """A file that the handler keeps open, a memory-mapped set of weights say, is open in every worker."""
    weights = short_tmp / "weights"
    weights.write_bytes(b"w" * 10)
    fault = {"do": "all", "of": [{"do": "open", "path": str(weights)}] * 3}
    instance = running("worker.exited", env__FAULT_AT_LOAD=json.dumps(fault))
    assert list(descriptors(template_pid(instance)).values()).count(str(weights)) == 3
    for generation in (1, 2):
        pid = ready(instance, generation)["pid"]
        assert list(descriptors(pid).values()).count(str(weights)) == 3
        if generation == 1:
            kill_worker(instance, signal.SIGKILL)


# -- environment, CPUs, randomness ------------------------------------------------------------------------------------


def test_thread_variables_are_set_where_the_operator_has_not(instance: Make) -> None:
    """env.NAME and the supervisor's environment go before the plan, which goes before nothing."""
    made = instance()
    made.write(made.model(threads=3, env__MKL_NUM_THREADS="7", env__OWN="words with spaces"))
    made.launch(NUMEXPR_NUM_THREADS="5", MXNET_CPU_WORKER_NTHREADS="")
    made.wait_event("supervisor.ready")
    found = facts(made)["environment"]
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["MXNET_OMP_MAX_THREADS"] == "3"
    assert found["OPENBLAS_NUM_THREADS"] == "3"
    assert found["MKL_NUM_THREADS"] == "7"
    assert found["NUMEXPR_NUM_THREADS"] == "5"
    assert found["MXNET_CPU_WORKER_NTHREADS"] == ""
    assert found["MXNET_USE_OPERATOR_TUNING"] == "0"
    assert found["OWN"] == "words with spaces"
    assert made.worker()["threads"] == 3


def test_the_operators_openmp_count_is_the_workers(instance: Make) -> None:
    """OMP_NUM_THREADS from outside is kept, and is the number that the other libraries get and `status` shows."""
    made = instance()
    made.write(made.model())
    made.launch(OMP_NUM_THREADS="2")
    made.wait_event("supervisor.ready")
    found = facts(made)["environment"]
    assert (found["OMP_NUM_THREADS"], found["OPENBLAS_NUM_THREADS"]) == ("2", "2")
    assert made.worker()["threads"] == 2


def test_every_thread_of_a_worker_is_on_its_cpus(running: Running) -> None:
    """Also a thread that a framework's fork handler started before ours ran, with the template's mask."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("one CPU cannot be shared out")
    fault = json.dumps({"do": "thread_at_fork"})
    instance = running(workers=2, env__FAULT_AT_LOAD=fault)
    plan = place(read_topology(), (Demand("echo", 2),)).model("echo")
    for index in (0, 1):
        planned = list(plan.workers[index].cpus or ())
        found = facts(instance, index=index)["affinity"]
        assert len(found) == 2
        assert all(cpus == planned for cpus in found.values())
        assert instance.worker(index=index)["cpus"] == planned
        assert ready(instance, 1, index)["worker"] == index
    union = sorted(os.sched_getaffinity(template_pid(instance)))
    assert union == list(plan.cpus or ())


def test_what_plan_says_is_what_runs_and_stays(running: Running) -> None:
    """CPUs, threads and environment of each worker are those of `plan`, also of a successor."""
    instance = running("worker.exited", workers=3)
    asked = subprocess.run(
        [sys.executable, "-m", "modelsupervisor", "plan", "-c", str(instance.config), "--json"],
        stdout=subprocess.PIPE,
        env=environment(instance.mark),
        check=True,
        timeout=30,
    )
    (model,) = json.loads(asked.stdout)["models"]
    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    for planned in model["workers"]:
        index = planned["index"]
        worker, found = instance.worker(index=index), facts(instance, index=index)
        assert worker["generation"] == (2 if index == 0 else 1)
        assert (worker["cpus"], worker["threads"]) == (planned["cpus"], planned["threads"])
        assert all(cpus == planned["cpus"] for cpus in found["affinity"].values())
        for variable in model["environment"]:
            assert found["environment"][variable["name"]] == variable["value"]


def test_cpus_of_an_operator_are_kept_over_restarts(running: Running) -> None:
    """`cpus = LIST` in the file is where the worker runs, in every generation."""
    last = max(os.sched_getaffinity(0))
    instance = running("worker.exited", cpus=last)
    for generation in (1, 2):
        ready(instance, generation)
        assert set(map(tuple, facts(instance)["affinity"].values())) == {(last,)}
        if generation == 1:
            kill_worker(instance, signal.SIGKILL)


@pytest.mark.parametrize(
    "framework", ["", pytest.param("mxnet", marks=pytest.mark.slow)], ids=["numpy", "mxnet"]
)
def test_random_numbers_differ_between_workers_and_generations(
    running: Running, framework: str
) -> None:
    """random, numpy.random and MXNet are reseeded in the child: siblings forked from one template would draw the same."""
    if framework and importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    model = ROOT / "tests" / "models" / "dice"
    instance = running("worker.exited", folder=model, workers=3, env__DICE_MXNET=framework)
    drawn = [tuple(json.loads(echo(instance, index=index))) for index in (0, 1, 2)]
    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    drawn.append(tuple(json.loads(echo(instance))))
    for source in zip(*drawn, strict=True):
        assert len(set(source)) == 4, drawn


def test_import_path_and_working_directory_are_the_models(running: Running) -> None:
    """The folder is first on sys.path and the working directory; the rest is what that interpreter has by itself."""
    instance = running()
    folder = str(ROOT / "tests" / "models" / "faults")
    found = facts(instance)
    plain = subprocess.check_output(
        [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path))"],
        env=environment("plain"),
    )
    assert found["path"] == [folder, *json.loads(plain)[1:]]
    assert found["cwd"] == folder
