"""The command `plan`: the table, the reasons, what the operator has set, and that it is what `start` does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.cli import main
from modelsupervisor.cli.plan import plan_lines, plan_report
from modelsupervisor.config import Settings, describe_keys, load_settings
from modelsupervisor.config.keys import MODEL_KEYS, SUPERVISOR_KEYS
from modelsupervisor.core.topology import Cpu, Quota, Topology, flat_topology
from modelsupervisor.errors import ConfigurationError
from modelsupervisor.runtime import planning
from modelsupervisor.runtime.planning import SMALLEST_FIFO, THREADING_PREFIXES, plan_fifos

KIB = 1024


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own wins."""
    for name in os.environ:
        if name.startswith((*THREADING_PREFIXES, "MXNET_")):
            monkeypatch.delenv(name)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a configuration file with a model `a` and whatever more is given."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "handler.py").write_text("def handle(data, context):\n    return data\n")

    def write(keys: str = "", more: str = "") -> Path:
        file = tmp_path / "workers.ini"
        model = "path = model\nhandler = handler:handle\n"
        more = more.replace("MODEL", model)
        file.write_text(f"[supervisor]\nrun_dir = .\n\n[model:a]\n{model}{keys}\n{more}")
        return file

    return write


@pytest.fixture
def loaded(written: Callable[..., Path]) -> Callable[..., Settings]:
    """The same as settings."""
    return lambda *arguments: load_settings(str(written(*arguments)))


def section(lines: list[str], title: str) -> list[str]:
    """The lines below a title, without their margins."""
    below = lines[lines.index(title) + 1 :]
    end = next((at for at, line in enumerate(below) if not line), len(below))
    return [line.strip() for line in below[:end]]


def variables(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Value and origin by name, of the first model."""
    return {
        each["name"]: (each["value"], each["set_by"]) for each in report["models"][0]["environment"]
    }


def test_the_page(loaded: Callable[..., Settings]) -> None:
    """A row for each worker; below it each number with its reason, runs of workers with one reason together."""
    settings = loaded("workers = 3", "[model:b]\nMODELcpus = none\nthreads = 2")
    topology = Topology(flat_topology(tuple(range(8))).cpus, Quota(7.5, "/a/cpu.max"))
    lines = plan_lines(plan_report(settings, topology))
    assert lines[:7] == [
        settings.source,
        "",
        "worker  cpus  threads",
        "a/0     0-1   2",
        "a/1     2-3   2",
        "a/2     4-5   2",
        "b/0     –     2",
    ]
    assert section(lines, "CPUs") == [
        "This process may use CPUs 0-7: 8 cores, 1 NUMA node.",
        "/a/cpu.max sets a quota of 7.5 CPUs, counted as 7; CPUs 0-6 are divided, so that workers with cpus",
        "= auto cannot overdraw it.",
        "CPU 6 is given to nobody: all shares are equal, of whole cores, of one kind and on one NUMA node.",
        "a/0-2: 2 whole cores, shared with other workers.",
        "b/0: not pinned: cpus = none.",
    ]
    assert section(lines, "Threads") == [
        "a: 2, one for each core of its smallest share, 2 cores.",
        "b: 2, threads = 2 in the file, more than the 1 core of its smallest share: they will take turns.",
    ]
    assert "OMP_WAIT_POLICY=PASSIVE" in section(lines, "Environment of a")
    assert section(lines, "Output")[0].startswith("8 FIFOs of 256 KiB each: ")
    assert max(map(len, lines[2:])) <= 100


def test_the_settings_in_force(loaded: Callable[..., Settings]) -> None:
    """What differs from its default has a line and its meaning; the rest is together; secrets are masked."""
    settings = loaded("workers = 3\nstartup_timeout = 2m\nenv.API_KEY = hush\nenv.DEPTH = 3")
    report = plan_report(settings, flat_topology((0, 1)))
    lines = plan_lines(report)
    supervisor, model = (
        section(lines, "Settings of the supervisor"),
        section(lines, "Settings of a"),
    )
    assert supervisor[0] == f"run_dir = {settings.supervisor.run_dir}"
    at = model.index("workers = 3")
    assert model[at + 1] == "How many worker processes serve the model. Default: 1."
    assert "env.API_KEY = ****" in model
    assert "env.DEPTH = 3" in model
    rest = " ".join(model)
    assert "At their defaults: " in rest
    assert "cpus = auto, threads = auto," in rest
    assert "startup_timeout = 120s" in rest  # asked for in other words, and the same
    assert (
        "warmup (the handler's own warmup(context), where it has one)" in rest.split("Not set: ")[1]
    )
    assert "hush" not in json.dumps(report)


def test_every_key_of_the_table_is_among_the_settings(loaded: Callable[..., Settings]) -> None:
    """As JSON: value, default, type and meaning of each, and whether it differs."""
    report = plan_report(loaded("workers = 3"), flat_topology((0, 1)))
    for section_, keys, settings in (
        ("supervisor", SUPERVISOR_KEYS, report["supervisor"]["settings"]),
        ("model:NAME", MODEL_KEYS, report["models"][0]["settings"]),
    ):
        rows = {row.key: row for row in describe_keys() if row.section == section_}
        assert [each["key"] for each in settings] == [key.name for key in keys]
        for each in settings:
            row = rows[each["key"]]
            assert (each["type"], each["sentence"]) == (row.type, row.sentence)
            assert row.default in (each["default"], each["unset"])
    differing = [each["key"] for each in report["models"][0]["settings"] if each["differs"]]
    assert differing == ["path", "handler", "workers"]


def test_what_the_operator_has_set_wins(
    loaded: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file goes before the environment, both before the plan; each is named, and what would be there instead."""
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setenv("GOMP_CPU_AFFINITY", "0")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("KMP_API_KEY", "hush")
    report = plan_report(loaded("env.OMP_NUM_THREADS = 3"), flat_topology((0, 1)))
    found = variables(report)
    assert found["OMP_NUM_THREADS"] == ("3", "file")
    assert found["MKL_NUM_THREADS"] == ("5", "environment")
    assert found["OPENBLAS_NUM_THREADS"] == ("3", "plan")  # not outranked
    assert found["GOMP_CPU_AFFINITY"] == ("0", "environment")
    assert "hush" not in json.dumps(report)
    (model,) = report["models"]
    assert (model["threads"], model["workers"][0]["threads"]) == (3, 3)
    assert model["reason"] == (
        "OMP_NUM_THREADS=3 in the file goes first; the plan would say 2: one for each core of its "
        "smallest share, 2 cores"
    )
    reasons = {each["name"]: each["reason"] for each in model["environment"]}
    assert reasons["MKL_NUM_THREADS"] == "Set by the operator; the plan would say 2."
    assert reasons["OMP_WAIT_POLICY"] == "Set by the operator; the plan would not set it."
    assert reasons["GOMP_CPU_AFFINITY"].endswith("the plan has nothing of that name.")
    assert "  OMP_NUM_THREADS=3 (env. in the file)" in plan_lines(report)


def test_the_environment_is_the_one_that_start_gives(loaded: Callable[..., Settings]) -> None:
    """Every variable of the page has that value in the processes' environment, and nothing else was added to it."""
    settings = loaded("workers = 3\nenv.MKL_NUM_THREADS = 9")
    topology = flat_topology((0, 1))
    environment = planning.plan_models(settings, topology)["a"].environment
    found = variables(plan_report(settings, topology))
    assert {name: environment[name] for name in found} == {n: v for n, (v, _) in found.items()}
    assert set(environment) - set(os.environ) == set(found)


def test_gpus_have_a_column_and_their_reasons(
    loaded: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Round robin over the workers; what the template is shown, among what the environment allows; the operator's order stays."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9,4,7")
    keys = "workers = 3\npreload = import\ngpus = 7,4"
    settings = loaded(keys, "[model:b]\nMODEL")
    report = plan_report(settings, flat_topology((0, 1)))
    lines = plan_lines(report)
    table = [line.split() for line in lines[2:7]]
    assert table[0] == ["worker", "cpus", "threads", "gpu"]
    assert [row[-1] for row in table[1:]] == ["7", "4", "7", "–"]
    found = variables(report)
    assert found["CUDA_DEVICE_ORDER"] == ("PCI_BUS_ID", "plan")
    assert found["CUDA_VISIBLE_DEVICES"] == ("7,4", "plan")
    reasons = {each["name"]: each["reason"] for each in report["models"][0]["environment"]}
    assert reasons["CUDA_VISIBLE_DEVICES"].endswith(
        "Chosen among 9,4,7, which the environment has."
    )
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    plan = planning.plan_models(settings, flat_topology((0, 1)))["a"]
    assert plan.environment["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    report = plan_report(settings, flat_topology((0, 1)))
    assert variables(report)["CUDA_DEVICE_ORDER"] == ("FASTEST_FIRST", "environment")
    reasons = {each["name"]: each["reason"] for each in report["models"][0]["environment"]}
    said = "Set by the operator; the plan would say PCI_BUS_ID."
    assert reasons["CUDA_DEVICE_ORDER"] == said
    assert "CUDA_DEVICE_ORDER" not in {each["name"] for each in report["models"][1]["environment"]}


def test_the_interpreter_of_each_model(
    loaded: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path, its version, and what of the environment it does not get."""
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    report = plan_report(
        loaded("", f"[model:b]\nMODELpython = {sys.executable}\npreload = none"),
        flat_topology((0,)),
    )
    version = ".".join(map(str, sys.version_info[:3]))
    assert " ".join(section(plan_lines(report), "Interpreters")) == (
        f"a: {sys.executable}, Python {version}, preload = model. "
        f"b: {sys.executable}, Python {version}, preload = none; without PYTHONPATH of the environment."
    )


def test_as_json(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """One object, with the CPUs of this process and each worker's."""
    file = written("workers = 2")
    assert main(["plan", "-c", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"] == str(file)
    assert {each["cpu"] for each in told["machine"]["cpus"]} <= os.sched_getaffinity(0)
    (model,) = told["models"]
    assert [worker["index"] for worker in model["workers"]] == [0, 1]
    assert all(set(each["cpus"]) <= set(told["machine"]["used"]) for each in model["workers"])
    assert told["fifos"]["count"] == 4
    assert set(model["workers"][0]) == {"index", "cpus", "threads", "gpu", "reason"}


def test_bytes_that_are_no_text(
    written: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A path or a variable may hold such; they are escaped, as in the answers of a supervisor."""
    monkeypatch.setenv("OMP_PLACES", os.fsdecode(b"\xff"))
    folder = os.fsdecode(os.fsencode(written().parent) + b"\xff")
    os.rename(written().parent, folder)
    assert main(["plan", "-c", os.path.join(folder, "workers.ini"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"].endswith("\\udcff/workers.ini")
    assert variables(told)["OMP_PLACES"] == ("\\udcff", "environment")


def test_more_is_there_than_may_be(loaded: Callable[..., Settings]) -> None:
    """Where a limit is passed already, nothing is to be had, and not less than that."""
    report = plan_report(loaded(), flat_topology((0, 1)))
    report["limits"][0].update(found=-3, holds=False)
    (line, *_) = section(plan_lines(report), "Limits")
    assert ", 0 to be had: start would fail here;" in line


def test_on_paper(written: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json it is the page, on a terminal or not; nothing is made in the run directory."""
    file = written()
    before = sorted(file.parent.iterdir())
    assert main(["plan", "-c", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["worker", "cpus", "threads"]
    assert sorted(file.parent.iterdir()) == before


def test_cpus_that_may_not_be_used(loaded: Callable[..., Settings]) -> None:
    """The mistake that `start` would report, with the line of the file."""
    with pytest.raises(ConfigurationError) as raised:
        plan_report(loaded("cpus = 0,7"), Topology((Cpu(0, 0),)))
    (problem,) = raised.value.problems
    assert (problem.key, problem.message) == ("cpus", "the supervisor may not use CPU 7")


def test_cpus_that_the_supervisor_itself_may_not_use(
    tmp_path: Path, written: Callable[..., Path]
) -> None:
    """They are a mistake too, not the kernel's `Invalid argument` in the middle of a start, nor left out silently."""
    file = written()
    file.write_text(file.read_text().replace("run_dir = .", "run_dir = .\ncpus = 0,7"))
    with pytest.raises(ConfigurationError) as raised:
        plan_report(load_settings(str(file)), Topology((Cpu(0, 0),)))
    (problem,) = raised.value.problems
    assert str(problem) == (
        f"{file}: [supervisor] cpus = 0,7: the supervisor may not use CPU 7; expected CPUs out of 0"
    )


@pytest.mark.parametrize("of", ["supervisor", "model"])
def test_check_says_that_start_would_fail(
    written: Callable[..., Path], capsys: pytest.CaptureFixture[str], of: str
) -> None:
    """It is this machine's affair, as its limits are, so that the file is right all the same."""
    file = written("cpus = 8191" if of == "model" else "")
    if of == "supervisor":
        file.write_text(file.read_text().replace("run_dir = .", "run_dir = .\ncpus = 8191"))
    assert main(["check", "-c", str(file)]) == 0
    below = capsys.readouterr().out.splitlines()
    (said,) = [line for line in below if line.startswith("# start would fail here: ")]
    assert "cpus" in said
    assert "the supervisor may not use CPU 8191" in said


@pytest.mark.parametrize(
    ("budget", "slots", "size", "words"),
    [
        ("16384", 4, 256 * KIB, "the full size, within half of what"),
        ("16384", 100, 128 * KIB, "the largest that keeps all together, within half of what"),
        ("16384", 1000, SMALLEST_FIFO, "the smallest that is used, although together above half"),
        ("0", 1000, 256 * KIB, "sets no limit"),
        ("soon", 1, SMALLEST_FIFO, "cannot be read"),
        (None, 1, SMALLEST_FIFO, "cannot be read"),
    ],
)
def test_fifos_of_an_ordinary_user(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: str | None,
    slots: int,
    size: int,
    words: str,
) -> None:
    """All FIFOs together stay within half of the user's budget of pages, with a reason."""
    limit = tmp_path / "pipe-user-pages-soft"
    if budget is not None:
        limit.write_text(budget)
    monkeypatch.setattr(planning, "PIPE_BUDGET", str(limit))
    monkeypatch.setattr(planning.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(planning.resource, "getpagesize", lambda: 4096)
    found = plan_fifos(slots)
    assert (found.size, found.count) == (size, 2 * slots)
    assert words in found.reason
    assert ("cannot be read" in found.note) == ("cannot be read" in words)


def test_fifos_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root has no such budget."""
    monkeypatch.setattr(planning.os, "geteuid", lambda: 0)
    assert plan_fifos(1000).size == 256 * KIB
