"""The configuration reader: what is read, what is shown again, which names it leads to."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from modelsupervisor.config import (
    Settings,
    describe_keys,
    load_settings,
    model_problem,
    render_settings,
    socket_path_problems,
)
from modelsupervisor.config.keys import ENV_PREFIX, MODEL_KEYS, SUPERVISOR_KEYS
from modelsupervisor.config.names import MODEL_NAME, worker_socket
from modelsupervisor.errors import ConfigurationError

MINIMAL = "[model:digits]\npath = digits\nhandler = service:handle\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model whose handler is service.py, and a warm-up file."""
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "service.py").write_text("")
    (tmp_path / "one.png").write_bytes(b"png")
    return tmp_path


def write(folder: Path, text: str | bytes) -> str:
    path = folder / "workers.ini"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def load(folder: Path, text: str, environ: dict[str, str] | None = None) -> Settings:
    return load_settings(write(folder, text), environ or {})


def test_defaults_are_those_of_the_table(folder: Path) -> None:
    """A file with only what is required gives the defaults that the table and the issue promise."""
    settings = load(folder, MINIMAL)
    supervisor, (digits,) = settings.supervisor, settings.models
    assert settings.source == str(folder / "workers.ini")
    assert msgspec.structs.asdict(supervisor) == {
        "run_dir": None,
        "log_format": "auto",
        "log_level": "info",
        "log_to": ("auto",),
        "log_file": None,
        "log_buffer": 8 * 1024 * 1024,
        "stop_timeout": 30.0,
        "on_start_failure": "exit",
        "socket_group": None,
        "socket_mode": 0o600,
        "model_cache": None,
        "cpus": None,
    }
    assert msgspec.structs.asdict(digits) == {
        "name": "digits",
        "path": os.path.realpath(folder / "digits"),
        "handler": "service:handle",
        "workers": 1,
        "spares": 0,
        "max_requests": None,
        "memory_limit": None,
        "cpus": "auto",
        "threads": "auto",
        "preload": "model",
        "python": None,
        "gpus": None,
        "allow_load": False,
        "batch_size": 1,
        "startup_timeout": 120.0,
        "response_timeout": 120.0,
        "stop_timeout": 10.0,
        "stable_after": 10.0,
        "max_failures": 5,
        "retry_failed_after": 60.0,
        "max_connections": 64,
        "frame_timeout": 30.0,
        "max_line": 65536,
        "warmup": None,
        "max_archive_size": 8 * 1024**3,
        "archive": False,
        "env": {},
        "line": 1,
    }


def test_struct_defaults_equal_the_table(folder: Path) -> None:
    """Settings made by hand have the defaults of settings that were read."""
    settings = load(folder, MINIMAL)
    assert type(settings.supervisor)() == settings.supervisor
    digits = settings.models[0]
    by_hand = type(digits)(name="digits", path=digits.path, handler="service:handle", line=1)
    assert by_hand == digits


FULL = """
; a comment
[supervisor]
run_dir = run
log_format = json
log_level = debug
log_to = journal , stdout
log_file = digits/../new.jsonl
log_buffer = 1.5MiB
stop_timeout = 1.5s
on_start_failure = continue
socket_mode = 600
cpus = 0

[model:digits]
   # an indented comment
path = ./digits/../digits
handler = service.py:handle
workers = 4096
cpus = 4-6, 0,2
threads = 8
preload = model
batch_size = 1024
startup_timeout = 2m
stop_timeout = 5ms
stable_after = 1h
max_failures = 1000
retry_failed_after = 168h
max_connections = 4096
frame_timeout = 90s
max_line = 512B
warmup = one.png
env.PYTHONPATH = a = 100 % b ; c
env.api_url = http://x/#y
env.EMPTY =
[model:2.second_one-x]
path = digits
handler = service
cpus = none
threads=1
"""


def test_every_key_is_read(folder: Path) -> None:
    """Case, order, % and = in values are kept; units become seconds and bytes."""
    settings = load(folder, FULL)
    supervisor, (digits, second) = settings.supervisor, settings.models
    assert supervisor.run_dir == str(folder / "run")
    assert (supervisor.log_format, supervisor.log_level) == ("json", "debug")
    assert supervisor.log_to == ("journal", "stdout")
    assert supervisor.log_file == str(folder / "new.jsonl")
    assert supervisor.log_buffer == 3 * 512 * 1024
    assert (supervisor.stop_timeout, supervisor.on_start_failure) == (1.5, "continue")
    assert (supervisor.socket_mode, supervisor.cpus) == (0o600, (0,))
    assert (digits.handler, digits.workers) == ("service.py:handle", 4096)
    assert (digits.cpus, digits.threads) == ((4, 5, 6, 0, 2), 8)
    assert (digits.startup_timeout, digits.stop_timeout) == (120.0, 0.005)
    assert (digits.stable_after, digits.retry_failed_after) == (3600.0, 604800.0)
    assert (digits.frame_timeout, digits.max_line) == (90.0, 512)
    assert digits.warmup == str(folder / "one.png")
    assert digits.env == {
        "PYTHONPATH": "a = 100 % b ; c",
        "api_url": "http://x/#y",
        "EMPTY": "",
    }
    assert (second.name, second.cpus, second.threads) == ("2.second_one-x", "none", 1)
    assert (digits.line, second.line) == (15, 36)


def test_settings_are_frozen(folder: Path) -> None:
    """A setting cannot be changed after it was read."""
    settings = load(folder, MINIMAL)
    with pytest.raises(AttributeError):
        settings.models[0].workers = 2  # type: ignore[misc]


def test_line_ends_of_other_systems(folder: Path) -> None:
    """A file from Windows or an old Mac is read like any other."""
    for end in ("\r\n", "\r"):
        assert load(folder, MINIMAL.replace("\n", end)).models[0].handler == "service:handle"


def test_relative_paths_start_at_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory changes nothing, even where the file itself is named relative to it."""
    write(folder, MINIMAL + "warmup = one.png")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    settings = load_settings("../workers.ini", {})
    assert settings.source == str(folder / "workers.ini")
    assert settings.models[0].path == os.path.realpath(folder / "digits")
    assert settings.models[0].warmup == str(folder / "one.png")


def test_a_symbolic_link_to_the_model_is_resolved(folder: Path) -> None:
    """The path of a model is its real path: the name by which MMS clients load it."""
    (folder / "link").symlink_to("digits")
    settings = load(folder, MINIMAL.replace("path = digits", "path = link"))
    assert settings.models[0].path == os.path.realpath(folder / "digits")


def test_handler_from_the_manifest(folder: Path) -> None:
    """An unpacked MMS archive needs no handler key; a handler key goes before its manifest."""
    (folder / "digits" / "MAR-INF").mkdir()
    manifest = folder / "digits" / "MAR-INF" / "MANIFEST.json"
    manifest.write_text('{"runtime": "python3", "model": {"handler": "service.py:other"}}')
    assert load(folder, "[model:a]\npath = digits\n").models[0].handler == "service.py:other"
    assert load(folder, MINIMAL).models[0].handler == "service:handle"


@pytest.mark.parametrize("handler", ["service", "service.py", "pack", "pack:f", "pack.part:f"])
def test_handler_forms(folder: Path, handler: str) -> None:
    """A module, with or without .py and a function, also of a package."""
    (folder / "digits" / "pack").mkdir()
    (folder / "digits" / "pack" / "__init__.py").write_text("")
    (folder / "digits" / "pack" / "part.py").write_text("")
    settings = load(folder, f"[model:a]\npath = digits\nhandler = {handler}\n")
    assert settings.models[0].handler == handler


def test_socket_group(folder: Path) -> None:
    """A group of the machine with a mode that lets it connect."""
    settings = load(folder, "[supervisor]\nsocket_group = root\nsocket_mode = 0660\n" + MINIMAL)
    assert (settings.supervisor.socket_group, settings.supervisor.socket_mode) == ("root", 0o660)


# What becomes of settings once they are read.


def same(left: Settings, right: Settings) -> bool:
    """Equal but for where the file and its lines are."""
    replace = msgspec.structs.replace
    return [replace(m, line=0) for m in left.models] == [
        replace(m, line=0) for m in right.models
    ] and left.supervisor == right.supervisor


def test_rendered_settings_load_to_the_same(folder: Path) -> None:
    """The effective configuration says everything; read again it is the same."""
    settings = load(folder, FULL)
    text = render_settings(settings, show_secrets=True)
    (folder / "again.ini").write_text(text)
    assert same(load_settings(str(folder / "again.ini"), {}), settings)
    assert f"# effective settings of {folder}/workers.ini\n" in text
    for line in ("cpus = 4-6,0,2", "startup_timeout = 2m", "max_line = 512B", "socket_mode = 0600"):
        assert f"\n{line}\n" in text


def test_secrets_are_masked_unless_asked_for(folder: Path) -> None:
    """By the name of the variable, in any letter case; other variables are shown."""
    names = ["API_KEY", "auth_token", "MY_SECRET_1", "DB_PASSWORD"]
    settings = load(folder, MINIMAL + "".join(f"env.{n} = hunter2\n" for n in names) + "env.A = b")
    text = render_settings(settings)
    assert "hunter2" not in text
    assert all(f"env.{name} = ****\n" in text for name in names)
    assert "env.A = b\n" in text
    assert render_settings(settings, show_secrets=True).count("hunter2") == 4


def test_the_table_is_complete(folder: Path) -> None:
    """Every field of the settings is a key of the table, and every key is a field."""
    settings = load(folder, MINIMAL)
    assert {key.name for key in SUPERVISOR_KEYS} == set(settings.supervisor.__struct_fields__)
    fields = set(settings.models[0].__struct_fields__) - {"name", "env", "line", "archive"}
    assert {key.name for key in MODEL_KEYS} == fields
    rows = describe_keys()
    assert len(rows) == len(SUPERVISOR_KEYS) + len(MODEL_KEYS) + 1
    assert rows[0].key == "run_dir"
    assert rows[-1].key == ENV_PREFIX + "NAME"
    assert all(row.type and row.default and row.sentence.endswith(".") for row in rows)


def test_a_problem_that_the_machine_shows(folder: Path) -> None:
    """A CPU that may not be used is reported at the section of its model."""
    settings = load(folder, "\n\n" + MINIMAL)
    problem = model_problem(
        settings, "digits", "cpus", value="9", expected="CPUs out of 0-3", message="not allowed"
    )
    assert str(problem) == (
        f"{folder}/workers.ini:3: [model:digits] cpus = 9: not allowed; expected CPUs out of 0-3"
    )


def test_the_environment_of_this_process_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `environ`, the models inherit what this process has."""
    monkeypatch.setenv("MXNET_ENGINE_TYPE", "NaiveEngine")
    with pytest.raises(ConfigurationError, match="the environment has MXNET_ENGINE_TYPE"):
        load_settings(write(folder, MINIMAL))
    monkeypatch.delenv("MXNET_ENGINE_TYPE")
    assert load_settings(write(folder, MINIMAL)).models


def test_socket_paths_have_to_fit(folder: Path) -> None:
    """A client can connect to 107 bytes; one problem for each model, by its longest path."""
    text = f"{MINIMAL}workers = 11\n[model:{'m' * 40}]\npath = digits\nhandler = service\n"
    settings = load(folder, text)
    room = 107 - len("/digits.10.sock")
    assert len(f"/{'x' * (room - 1)}/digits.10.sock") == 107
    said = [str(p) for p in socket_path_problems("/" + "x" * (room - 1), settings)]
    (only,) = said
    assert only.startswith(f"{folder}/workers.ini:5: [model:{'m' * 40}] the socket path /xxx")
    assert only.endswith(
        " has 140 bytes; expected at most 107; choose a shorter run_dir or model name"
    )
    digits, _ = socket_path_problems("/" + "x" * room, settings)
    assert (digits.section, digits.line) == ("model:digits", 1)
    assert "/digits.10.sock has 108 bytes" in digits.message
    control, *_ = socket_path_problems("/" + "ä" * 50, settings)
    assert (control.key, "control.sock has 114 bytes" in control.message) == ("run_dir", True)
    assert socket_path_problems("/run/modelsupervisor", settings) == ()


def test_no_two_models_form_the_same_file() -> None:
    """A worker's file tells model and index apart however many dots and digits the name has."""
    names = ["a", "a.0", "a.0.0", "a.0.sock", "a.0.sock.0", "control", "control.sock", "0", "0.0"]
    assert all(MODEL_NAME.fullmatch(name) for name in names)
    files = [worker_socket(name, index) for name in names for index in range(3)]
    assert len({*files, "control.sock", "lock", "scoreboard"}) == len(files) + 3
