"""What `modelsupervisor init` writes runs as it is, and is written whole or not at all."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import modelworker

import modelsupervisor
from modelsupervisor.config import load_settings
from modelsupervisor.errors import EXIT_USAGE, ModelSupervisorError
from modelsupervisor.scaffold import FILES, ModelNameError, TargetError, write_model


class PredictionError(Exception):
    """Stands for mms.service.PredictionException, which the worker provides."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.error_code = error_code


class FakeContext:
    """The names of the MMS context that the handler uses."""

    def __init__(self, folder: Path) -> None:
        self.system_properties = {"model_dir": str(folder)}
        self.statuses: dict[int, int] = {}
        self.content_types: dict[int, str] = {}

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_types[idx] = value


@pytest.fixture
def handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The written handler as a module, with the `mms` package that a worker offers."""
    service = ModuleType("mms.service")
    service.PredictionException = PredictionError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mms", ModuleType("mms"))
    monkeypatch.setitem(sys.modules, "mms.service", service)
    source = write_model(tmp_path / "mymodel", "mymodel")[0]
    spec = importlib.util.spec_from_file_location("scaffold_handler", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(handler: ModuleType, tmp_path: Path) -> Any:
    made = handler.Model()
    context = FakeContext(tmp_path / "mymodel")
    made.initialize(context)
    made.warmup(context)
    return made


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_three_files_are_written_and_named(tmp_path: Path) -> None:
    """The paths come back, nothing else lies there, and no placeholder is left."""
    target = tmp_path / "mymodel"
    written = write_model(target, "mymodel")
    assert written == [target / file for file in FILES]
    assert left_in(tmp_path) == sorted(["mymodel", *(f"mymodel/{file}" for file in FILES)])
    for path in written:
        assert "@" not in path.read_text(encoding="utf-8")
    assert "[model:mymodel]" in (target / "workers.ini").read_text(encoding="utf-8")


def test_the_folder_has_the_permissions_that_the_umask_gives(tmp_path: Path) -> None:
    """Not those of a private temporary folder."""
    before = os.umask(0o027)
    try:
        written = write_model(tmp_path / "mymodel", "mymodel")
    finally:
        os.umask(before)
    assert (tmp_path / "mymodel").stat().st_mode & 0o777 == 0o750
    assert written[0].stat().st_mode & 0o777 == 0o640


def test_the_configuration_is_accepted_for_every_shape_of_name(tmp_path: Path) -> None:
    """workers.ini names the folder it lies in, and a run directory beside the handler."""
    for name in ("m", "7", "my.model-2_x", "A" * 64):
        target = tmp_path / name
        write_model(target, name)
        settings = load_settings(str(target / "workers.ini"))
        (model,) = settings.models
        assert (model.name, model.path, model.handler) == (name, str(target), "handler.py")
        assert settings.supervisor.run_dir == str(target / "run")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", "_x", "a b", "a/b", "../x", "ä", "a\n", "x" * 65, "[x]", '"']
)
def test_a_bad_name_is_refused_as_a_usage_error(tmp_path: Path, name: str) -> None:
    """And nothing is written."""
    with pytest.raises(ModelNameError) as refused:
        write_model(tmp_path / "target", name)
    assert refused.value.exit_code == EXIT_USAGE
    assert repr(name) in str(refused.value)
    assert left_in(tmp_path) == []


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    """`mkdir mymodel` first does no harm."""
    (tmp_path / "mymodel").mkdir()
    assert all(path.exists() for path in write_model(tmp_path / "mymodel", "mymodel"))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    """Also a hidden file is something."""
    target = tmp_path / "mymodel"
    target.mkdir()
    (target / ".keep").write_text("mine")
    with pytest.raises(TargetError, match="not empty"):
        write_model(target, "mymodel")
    assert left_in(tmp_path) == ["mymodel", "mymodel/.keep"]


def test_a_file_a_link_and_a_missing_parent_are_refused(tmp_path: Path) -> None:
    """Each with its own words; a link is not followed and stays."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TargetError, match="is not a folder"):
        write_model(tmp_path / "file", "mymodel")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with pytest.raises(TargetError, match="exists"):
        write_model(tmp_path / "link", "mymodel")
    with pytest.raises(TargetError, match="does not exist"):
        write_model(tmp_path / "missing" / "mymodel", "mymodel")
    assert left_in(tmp_path) == ["empty", "file", "link"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_filled_while_we_look_away_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses the rename; nothing is left aside."""
    target = tmp_path / "mymodel"
    rename = os.rename

    def fill_then_rename(source: Path, destination: Path) -> None:
        target.mkdir()
        (target / "theirs").write_text("theirs")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fill_then_rename)
    with pytest.raises(TargetError, match="exists"):
        write_model(target, "mymodel")
    assert left_in(tmp_path) == ["mymodel", "mymodel/theirs"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second file fails to be written: the first one is gone too, and the reason is named."""
    write = Path.write_text
    written: list[Path] = []

    def fill_up(path: Path, *arguments: Any, **keywords: Any) -> int:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return write(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "write_text", fill_up)
    with pytest.raises(TargetError, match="No space left on device"):
        write_model(tmp_path / "mymodel", "mymodel")
    assert left_in(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    """The message names the folder and the reason."""
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(TargetError, match="Permission denied"):
            write_model(tmp_path / "mymodel", "mymodel")
    finally:
        tmp_path.chmod(0o700)


def test_a_place_that_takes_no_folders_is_named() -> None:
    """/proc refuses everybody, root too: the error is ours and names the place."""
    with pytest.raises(ModelSupervisorError, match="/proc"):
        write_model(Path("/proc/mymodel"), "mymodel")


def test_the_sample_is_answered(model: Any, tmp_path: Path) -> None:
    """The shipped sample is friendly, as JSON that the server parsed and as bytes."""
    folder = tmp_path / "mymodel"
    raw = (folder / "sample.json").read_bytes()
    context = FakeContext(folder)
    replies = model.handle([{"body": json.loads(raw)}, {"data": raw}], context)
    assert replies[0] == replies[1]
    assert replies[0]["label"] == "friendly"
    assert 0.5 < replies[0]["score"] < 1
    assert context.content_types == {0: "application/json", 1: "application/json"}
    assert context.statuses == {}


def test_it_tells_friendly_from_unfriendly(model: Any, tmp_path: Path) -> None:
    """It computes something: the answer depends on the words."""
    texts = ["I love it, excellent", "slow and broken, I hate it"]
    replies = model.handle([{"body": text} for text in texts], FakeContext(tmp_path))
    assert [reply["label"] for reply in replies] == ["friendly", "unfriendly"]


@pytest.mark.parametrize(
    "row", [{}, {"body": b"{"}, {"body": b"\xff"}, {"body": [1]}, {"body": {"text": 1}}]
)
def test_a_bad_request_gets_400_and_its_batch_is_answered(
    model: Any, tmp_path: Path, row: dict[str, Any]
) -> None:
    """Only the bad one is refused, with a reason."""
    context = FakeContext(tmp_path)
    replies = model.handle([{"body": "good"}, row, {"body": "x" * 10_001}], context)
    assert replies[0]["label"] == "friendly"
    assert replies[1]["error"]
    assert "10001 characters" in replies[2]["error"]
    assert context.statuses == {1: 400, 2: 400}


def test_without_its_weights_the_whole_batch_is_refused(
    handler: ModuleType, tmp_path: Path
) -> None:
    """PredictionException carries the code of the batch."""
    with pytest.raises(PredictionError) as raised:
        handler.Model().handle([{"body": "good"}], FakeContext(tmp_path))
    assert raised.value.error_code == 503


def test_the_templates_are_found_inside_a_zip(tmp_path: Path) -> None:
    """Read as package data, from wherever the package was imported: here from a zip archive."""
    packages = (modelsupervisor.__file__, modelworker.__file__)
    archive = tmp_path / "installed.zip"
    with zipfile.ZipFile(archive, "w") as installed:
        for package in (Path(found).parent for found in packages):
            for path in package.rglob("*"):
                if path.suffix in (".py", ".in"):
                    installed.write(path, path.relative_to(package.parent))
    program = (
        "import sys; from pathlib import Path; import modelsupervisor.scaffold as scaffold;"
        "assert 'installed.zip' in scaffold.__file__;"
        "scaffold.write_model(Path(sys.argv[1]), 'zipped')"
    )
    target = tmp_path / "zipped"
    environment = {**os.environ, "PYTHONPATH": str(archive)}
    subprocess.run([sys.executable, "-c", program, str(target)], env=environment, check=True)
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)
