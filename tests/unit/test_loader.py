"""From a folder and a handler's name to a model: MMS's rules, without its silences."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelworker.loader import LoadedModel, LoadError, ModelSpec, after_fork, load_model, warm_up
from modelworker.service import PredictionException

MODELS = Path(__file__).parents[1] / "models"
WORKER = str(Path(__file__).parents[2] / "worker")

FUNCTION = """
calls = []

def handle(data, context):
    calls.append((data, dict(context.system_properties)))
    return None if data is None else [row["body"] for row in data]
"""


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loading is for a process of its own: it changes directory, import path and modules."""
    monkeypatch.chdir(os.getcwd())
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def spec(path: Path, handler: str = "service:handle", gpu_id: int = -1) -> ModelSpec:
    return ModelSpec("m", str(path), handler, 4, gpu_id, "0.1.0", None)


def write(folder: Path, source: str, name: str = "service.py") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(source)
    return folder


def failing(path: Path, handler: str) -> str:
    with pytest.raises(LoadError) as caught:
        load_model(spec(path, handler))
    return caught.value.reason


@pytest.mark.parametrize(
    "handler", ["service:handle", "service.py:handle", "service", "service.py", "service:other"]
)
def test_a_function_is_called_once_with_none(tmp_path: Path, handler: str) -> None:
    """Written in any of MMS's ways; the context is complete by then, and the CPU is None."""
    write(tmp_path, FUNCTION + "\nother = handle\n")
    model = load_model(spec(tmp_path, handler))
    properties = {
        "model_dir": os.path.realpath(tmp_path),
        "gpu_id": None,
        "batch_size": 4,
        "server_name": "MMS",
        "server_version": "0.1.0",
    }
    assert model.module.calls == [(None, properties)]
    assert model.handle([{"body": b"x"}], model.context) == [b"x"]
    assert model.instance is None
    assert (model.name, model.path) == ("m", os.path.realpath(tmp_path))


def test_the_folder_is_the_working_directory_and_first_on_the_path(tmp_path: Path) -> None:
    """A handler opens its files and imports its modules as they lie beside it."""
    write(tmp_path, "WORD = 'beside'", "beside.py")
    (tmp_path / "weights.txt").write_text("42")
    write(
        tmp_path,
        "import beside, pathlib\nwords = []\ndef handle(data, context):\n    words.extend(("
        "beside.WORD, pathlib.Path('weights.txt').read_text()))\n",
    )
    assert load_model(spec(tmp_path)).module.words == ["beside", "42"]
    assert os.getcwd() == os.path.realpath(tmp_path)
    assert sys.path[0] == os.path.realpath(tmp_path)


def test_a_gpu_is_a_number(tmp_path: Path) -> None:
    """Only -1 means the CPU, for which MMS's handlers expect None."""
    model = load_model(spec(write(tmp_path, FUNCTION), gpu_id=1))
    assert model.context.system_properties["gpu_id"] == 1


def test_a_handler_in_a_folder_of_the_model(tmp_path: Path) -> None:
    """Its own folder joins the import path, too."""
    write(tmp_path, "WORD = 'deep'", "code/deep.py")
    write(
        tmp_path, "import deep\ndef handle(data, context):\n    return [deep.WORD]\n", "code/s.py"
    )
    model = load_model(spec(tmp_path, "code/s.py:handle"))
    assert model.handle([{}], model.context) == ["deep"]


def test_the_one_class_of_a_module_is_initialized() -> None:
    """With the context that its batches get; MMS's import names work, imported classes do not count."""
    model = load_model(spec(MODELS / "classy", "service:handle"))
    assert model.instance is not None
    assert model.instance.context is model.context  # type: ignore[attr-defined]
    with pytest.raises(PredictionException, match="not today : 599"):
        model.handle([{"body": b"refuse"}], model.context)


def test_a_class_may_be_named() -> None:
    """Where there are several."""
    model = load_model(spec(MODELS / "twofold", "service:Second"))
    assert type(model.instance).__name__ == "Second"
    assert model.handle([1], model.context) == [1]


def test_what_the_handler_raises_fails_the_load() -> None:
    """MMS swallows it and serves a model that is not there."""
    with pytest.raises(RuntimeError, match=r"no weights at .*refusing"):
        load_model(spec(MODELS / "refusing"))


def test_an_import_that_fails_in_the_handler_is_its_own_error(tmp_path: Path) -> None:
    """It is not said that the handler is missing."""
    with pytest.raises(ModuleNotFoundError, match="no_such_framework"):
        load_model(spec(write(tmp_path, "import no_such_framework\n")))


@pytest.mark.parametrize(
    ("folder", "handler", "said"),
    [
        ("twofold", "service:handle", "no such function, nor exactly one class: First, Second"),
        ("twofold", "absent:handle", "no module 'absent' in the model folder"),
        ("twofold", ":handle", "names no module"),
        ("named", "json:handle", "'json' is the module"),
        ("none", "service:handle", "No such file or directory"),
    ],
)
def test_what_cannot_be_served_says_why(folder: str, handler: str, said: str) -> None:
    """A LoadError with what was found and expected."""
    assert said in failing(MODELS / folder, handler)


@pytest.mark.parametrize("source", ["class Mute:\n    pass\n", "class Odd:\n    handle = 3\n"])
def test_a_class_without_handle(tmp_path: Path, source: str) -> None:
    """Named in the error."""
    assert "has no handle()" in failing(write(tmp_path, source), "service")


def test_the_manifest_is_the_archives_or_a_minimal_one(tmp_path: Path) -> None:
    """Handlers read context.manifest."""
    write(tmp_path, FUNCTION)
    minimal = load_model(spec(tmp_path)).context.manifest
    assert minimal["model"] == {
        "modelName": "m",
        "modelVersion": "1.0",
        "handler": "service:handle",
    }
    write(tmp_path, json.dumps({"model": {"modelName": "other"}}), "MAR-INF/MANIFEST.json")
    assert load_model(spec(tmp_path)).context.manifest == {"model": {"modelName": "other"}}
    for broken in ("{", "[]"):
        write(tmp_path, broken, "MAR-INF/MANIFEST.json")
        assert "MANIFEST.json" in failing(tmp_path, "service")


def test_mms_names_are_aliases_only_where_there_is_no_mms(tmp_path: Path) -> None:
    """A real `mms` on the path is the one that the handler gets."""
    write(tmp_path, "from mms.service import PredictionException as E\ndef handle(d, c): pass\n")
    assert load_model(spec(tmp_path)).module.E is PredictionException
    assert importlib.util.find_spec("mms.metrics") is not None
    for name in [each for each in sys.modules if each.split(".")[0] in {"mms", "service"}]:
        del sys.modules[name]
    write(tmp_path, "", "mms/__init__.py")
    write(tmp_path, "class PredictionException(Exception): pass\n", "mms/service.py")
    importlib.invalidate_caches()
    assert load_model(spec(tmp_path)).module.E.__module__ == "mms.service"


@pytest.mark.parametrize(
    "statement",
    [
        "import mms.metrics.unit; mms.metrics.unit.Units().units['ms']",
        "from mms.metrics.metrics_store import MetricsStore; MetricsStore({0: 'a'}, 'm').add_time('t', 1)",
        "from mms.metrics import dimension; str(dimension.Dimension('a', 'b'))",
        "from mms.metrics.metric import Metric; str(Metric('n', 1, 'ms', []))",
        "from mms.context import Context, RequestProcessor",
        "import mms; mms.__version__",
    ],
)
def test_imports_of_mms_handlers(tmp_path: Path, statement: str) -> None:
    """In an interpreter of its own, as a handler's first lines."""
    write(tmp_path, statement + "\ndef handle(data, context):\n    print('loaded')\n")
    program = "import sys; from modelworker.loader import *; load_model(ModelSpec(*sys.argv[1:4], 1, -1, '0', None))"
    done = subprocess.run(
        [sys.executable, "-c", program, "m", str(tmp_path), "service:handle"],
        env={**os.environ, "PYTHONPATH": WORKER},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "loaded\n", "")


def test_metrics_recorded_while_loading_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As MMS prints them."""
    source = "def handle(data, context):\n    context.metrics.add_counter('loads', 1)\n"
    load_model(spec(write(tmp_path, source)))
    assert capsys.readouterr().out.startswith("[METRICS]loads.Count:1|#ModelName:m,Level:Model|")


# Warm-up and the hook after a fork

WARM = """
seen = []

def handle(data, context):
    if data is None:
        return None
    seen.append(data)
    body = data[0]["body"]
    if body == b"raise":
        raise RuntimeError("cold")
    if body == b"none":
        return None
    if body == b"503":
        context.set_response_status(503, "Cold")
    context.metrics.add_counter("n", 1)
    return ["ok"]
"""


@pytest.fixture
def warm(tmp_path: Path) -> LoadedModel:
    return load_model(spec(write(tmp_path, WARM)))


@pytest.mark.parametrize(
    ("name", "value"), [("x.json", [1]), ("x.txt", "[1]"), ("x.bin", b"[1]"), ("x", b"[1]")]
)
def test_a_warmup_file_is_one_request(
    warm: LoadedModel, tmp_path: Path, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its content type is that of its name; the batch leaves nothing behind, metrics included."""
    (tmp_path / name).write_bytes(b"[1]")
    assert warm_up(warm, str(tmp_path / name)) is True
    assert warm.module.seen == [[{"body": value}]]
    assert warm.context.request_ids is None
    assert warm.context.end_batch() is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"none", "Invalid model predict output: NoneType"), (b"503", "answered 503 Cold")],
)
def test_a_bad_answer_to_the_warmup_is_a_load_error(
    warm: LoadedModel, tmp_path: Path, content: bytes, said: str
) -> None:
    """It is checked as every answer is."""
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(LoadError) as caught:
        warm_up(warm, str(tmp_path / "x"))
    assert said in caught.value.reason


def test_a_warmup_file_that_is_no_json_or_is_not_there(warm: LoadedModel, tmp_path: Path) -> None:
    """Both name the file."""
    (tmp_path / "x.json").write_bytes(b"{")
    for name, said in (("x.json", "answered 400"), ("absent", "No such file")):
        with pytest.raises(LoadError) as caught:
            warm_up(warm, str(tmp_path / name))
        assert name in caught.value.reason
        assert said in caught.value.reason


def test_what_the_handler_raises_fails_the_warmup(warm: LoadedModel, tmp_path: Path) -> None:
    """With its own traceback."""
    (tmp_path / "x").write_bytes(b"raise")
    with pytest.raises(RuntimeError, match="cold"):
        warm_up(warm, str(tmp_path / "x"))


def test_hooks_are_the_classs_or_the_modules(tmp_path: Path, warm: LoadedModel) -> None:
    """warmup(context) runs where there is no file; after_fork(context) in each worker; both optional."""
    assert warm_up(warm, None) is False
    after_fork(warm)
    del sys.modules["service"]
    classy = load_model(spec(MODELS / "classy"))
    assert warm_up(classy, None) is True
    after_fork(classy)
    assert classy.instance.warmed and classy.instance.forked  # type: ignore[union-attr]
    hooks = (
        "def warmup(context):\n    after.append(1)\ndef after_fork(context):\n    after.append(2)\n"
    )
    write(tmp_path, "after = []\n" + hooks + FUNCTION, "hooks.py")
    module = load_model(spec(tmp_path, "hooks"))
    assert warm_up(module, None) is True
    after_fork(module)
    assert module.module.after == [1, 2]
