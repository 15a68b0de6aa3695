"""`L` where clients may choose the model: what changes hands, and that nothing changes where the new model does not load."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelworker import readiness
from modelworker.loader import LoadedModel, ModelSpec, load_model
from modelworker.loads import answer_load
from modelworker.wire import LoadCommand, ResponseReader

MODEL = """
import beside

class Service:
    def initialize(self, context):
        self.said = ["initialize", context.system_properties["batch_size"]]
        self.gpu = context.system_properties["gpu_id"]

    def warmup(self, context):
        self.said.append("warmup")

    def after_fork(self, context):
        self.said.append("after_fork")

    def handle(self, data, context):
        return [[beside.WORD, *self.said]]
"""


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loading is for a process of its own: it changes directory, import path and modules, and settles the process."""
    monkeypatch.setattr(readiness, "settle", lambda: None)
    monkeypatch.chdir(os.getcwd())
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


class Events(list[tuple[str, str, dict[str, Any]]]):
    """What a worker would have the supervisor log."""

    def __call__(self, level: str, event: str, **facts: Any) -> None:
        self.append((level, event, facts))


def folder(parent: Path, word: str, source: str = MODEL) -> Path:
    """A model that says `word`."""
    made = parent / word
    made.mkdir(exist_ok=True)
    (made / "service.py").write_text(source)
    (made / "beside.py").write_text(f"WORD = {word!r}\n")
    return made


def first(parent: Path, gpu: int = -1) -> LoadedModel:
    """The configured model, which says `old`."""
    return load_model(ModelSpec("m", str(folder(parent, "old")), "service", 4, gpu, "1", None))


def ask(model: LoadedModel) -> Any:
    return model.handle([{}], model.context)[0]


def command(name: str, path: Path | str, gpu: int = -1, handler: str = "service") -> LoadCommand:
    return LoadCommand(name, str(path), 8, handler, gpu, "")


def reply_of(raw: bytes) -> tuple[int, str]:
    reader = ResponseReader()
    reader.feed(raw)
    response = reader.next_load_response()
    assert response is not None
    return response.code, response.message


def test_another_model_takes_the_place(tmp_path: Path) -> None:
    """Loaded with the command's batch size, warmed, run after_fork; its modules and folder are those that handlers see now."""
    old, events = first(tmp_path), Events()
    path = folder(tmp_path, "new")
    model, raw = answer_load(old, command("n", path), True, events)
    assert reply_of(raw) == (200, f"loaded model n. [PID]:{os.getpid()}")
    assert ask(model) == ["new", "initialize", 8, "warmup", "after_fork"]
    assert (os.getcwd(), sys.path[0]) == (str(path), str(path))
    assert old.path not in sys.path
    assert ask(old) == ["old", "initialize", 4]  # whoever still holds it
    ((level, event, facts),) = events
    assert (level, event) == ("info", "worker.model_loaded")
    assert {
        "name": "n",
        "path": str(path),
        "handler": "service",
        "warmed": True,
    }.items() <= facts.items()
    again, raw = answer_load(model, command("n", path), True, events)
    assert again is model
    assert reply_of(raw)[0] == 200
    assert len(events) == 1
    back, _ = answer_load(model, command("m", old.path), True, events)
    assert ask(back)[0] == "old"


def test_the_same_folder_under_another_name_is_read_anew(tmp_path: Path) -> None:
    """What was changed in it since is what is served then."""
    old = first(tmp_path)
    (tmp_path / "old" / "beside.py").write_text("WORD = 'changed'\n")
    model, _ = answer_load(old, command("n", tmp_path / "old"), True, Events())
    assert (model.name, ask(model)[0]) == ("n", "changed")


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("import beside, sys\nraise RuntimeError('no weights')", 500, "RuntimeError: no weights"),
        ("import beside, sys\nsys.exit(3)", 500, "SystemExit: 3"),
        ("import beside\nraise MemoryError", 507, "MemoryError"),
        ("import beside\nraise OSError(12, 'no memory')", 507, "no memory"),
        ("import beside\nraise RuntimeError('\\ud800')", 500, r"RuntimeError: \ud800"),
        ("import beside\nA = 1", 400, "exactly one class: none"),
        ("import beside\nclass A:\n  after_fork = handle = lambda *_: 1 / 0", 500, "ZeroDivision"),
        (None, 400, "No such file or directory"),
    ],
)
def test_what_does_not_load_changes_nothing(
    tmp_path: Path, source: str | None, code: int, said: str
) -> None:
    """The reason is the reply; modules, import path and directory are those of the model that is served on."""
    old, events = first(tmp_path), Events()
    path = tmp_path / "nowhere" if source is None else folder(tmp_path, "new", source)
    before = list(sys.path), os.getcwd(), sys.modules["service"], sys.modules["beside"]
    model, raw = answer_load(old, command("n", path), True, events)
    assert model is old
    assert reply_of(raw)[0] == code
    assert said in reply_of(raw)[1]
    assert ask(model)[0] == "old"
    assert (list(sys.path), os.getcwd(), sys.modules["service"], sys.modules["beside"]) == before
    ((level, event, facts),) = events
    assert (level, event, facts["code"]) == ("warning", "worker.model_refused", code)
    assert said in facts["error"]
    assert "Traceback" in facts["traceback"]


GREEDY = """
import sys, weakref

class Service:
    def initialize(self, context):
        weights = {1, 2}
        sys.weights_alive.append(weakref.ref(weights))
        raise MemoryError

    def handle(self, data, context):
        return data
"""

UNPRINTABLE = """
class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("not even that")

raise Unprintable
"""


def test_an_exception_that_cannot_be_printed_is_a_refusal(tmp_path: Path) -> None:
    """It is told by its name, and the model before it is served on."""
    old, events = first(tmp_path), Events()
    path = folder(tmp_path, "new", UNPRINTABLE)
    model, raw = answer_load(old, command("n", path), True, events)
    assert model is old
    assert reply_of(raw) == (500, "Unprintable (not printable: RuntimeError)")
    assert events[0][1] == "worker.model_refused"


def test_what_filled_the_memory_is_let_go_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that lacked memory leaves nothing behind in the frames of its exception."""
    old, path = first(tmp_path), folder(tmp_path, "new", GREEDY)
    seen: list[object] = []

    def event(*_: str, **facts: Any) -> None:
        seen.append([each() for each in alive])

    alive: list[Any] = []
    monkeypatch.setattr(sys, "weights_alive", alive, raising=False)
    _, raw = answer_load(old, command("n", path), True, event)
    assert reply_of(raw) == (507, "MemoryError")
    assert seen == [[None]]


@pytest.mark.parametrize("path", ["/", "/\0", "", "relative", "/" + "x" * 70000, sys.prefix])
def test_no_path_is_too_strange(tmp_path: Path, path: str) -> None:
    """It is an answer of at most a few kilobytes, and no module of anybody's is lost over it."""
    old = first(tmp_path)
    before = dict(sys.modules)
    place = list(sys.path), os.getcwd()
    model, raw = answer_load(old, command("n", path, handler="nothing"), True, Events())
    assert model is old
    assert reply_of(raw)[0] in (400, 500)
    assert len(raw) < 4096
    assert {name: sys.modules.get(name) for name in before} == before
    assert (list(sys.path), os.getcwd()) == place


def test_an_environment_in_the_models_folder_is_not_the_models(tmp_path: Path) -> None:
    """Its libraries stay imported, and importable: most frameworks cannot be imported twice in a process."""
    path = folder(tmp_path, "old")
    packages = path / "venv" / "lib" / "python3" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "framework_in_there.py").write_text("THREADS = object()\n")
    sys.path.append(str(packages))
    old = first(tmp_path)
    framework = importlib.import_module("framework_in_there")
    source = "import framework_in_there\n" + MODEL.replace(
        "beside.WORD", "framework_in_there.THREADS"
    )
    model, raw = answer_load(old, command("n", folder(tmp_path, "new", source)), True, Events())
    assert reply_of(raw)[0] == 200
    assert ask(model)[0] is framework.THREADS


@pytest.mark.parametrize(("own", "asked", "given"), [(-1, 3, 3), (-1, -1, None), (0, 3, 0)])
def test_a_worker_keeps_its_gpu(tmp_path: Path, own: int, asked: int, given: int | None) -> None:
    """One that was shown a GPU by the supervisor sees no other, whatever the command says."""
    path = folder(tmp_path, "new")
    model, _ = answer_load(first(tmp_path, own), command("n", path, asked), True, Events())
    assert model.context.system_properties["gpu_id"] == given


def test_where_it_is_not_allowed_nothing_is_loaded(tmp_path: Path) -> None:
    """409, as ever, and no event."""
    old, events = first(tmp_path), Events()
    model, raw = answer_load(old, command("n", folder(tmp_path, "new")), False, events)
    assert model is old
    assert reply_of(raw)[0] == 409
    assert not events
