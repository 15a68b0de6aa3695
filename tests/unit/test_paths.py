"""paths.py: where a supervisor lives, and the names of its workers' sockets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from modelsupervisor.errors import RunDirectoryError
from modelsupervisor.paths import list_worker_sockets, parse_worker_socket, resolve_run_dir

ALL = {"RUNTIME_DIRECTORY": "/run/one:/run/two", "XDG_RUNTIME_DIR": "/run/user/7"}


@pytest.mark.parametrize(
    ("configured", "environ", "uid", "expected"),
    [
        ("/srv/run", ALL, 0, "/srv/run"),
        (None, ALL, 0, "/run/one"),
        (None, {"RUNTIME_DIRECTORY": "/run/only/"}, 7, "/run/only"),
        (None, {"XDG_RUNTIME_DIR": "/run/user/7"}, 0, "/run/user/7/modelsupervisor"),
        (None, {"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": "/x"}, 7, "/x/modelsupervisor"),
        (None, {"RUNTIME_DIRECTORY": "rel", "XDG_RUNTIME_DIR": "rel"}, 0, "/run/modelsupervisor"),
        (None, {}, 0, "/run/modelsupervisor"),
    ],
)
def test_run_dir_rules_in_order(
    configured: str | None, environ: dict[str, str], uid: int, expected: str
) -> None:
    """The file goes before systemd, systemd before the session, the session before root's own."""
    assert resolve_run_dir(configured, environ, uid) == expected


def test_run_dir_without_a_rule_is_an_error() -> None:
    """An ordinary user without any of the three gets exit code 78 and hears what to set."""
    with pytest.raises(RunDirectoryError, match="run_dir") as caught:
        resolve_run_dir(None, {}, 1000)
    assert caught.value.exit_code == 78


def test_relative_run_dir_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--run-dir here` means the working directory's."""
    monkeypatch.chdir(tmp_path)
    assert resolve_run_dir("here") == str(tmp_path / "here")


def test_real_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments the process's own environment decides."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/mine")
    assert resolve_run_dir(None) == "/run/mine"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits.0.sock", ("digits", 0)),
        ("resnet.v2.11.sock", ("resnet.v2", 11)),
        ("a.1.0.sock", ("a.1", 0)),
        ("control.sock", None),
        ("digits.0.stdout", None),
        ("digits.01.sock", None),
        ("digits.x.sock", None),
        (".hidden.0.sock", None),
        ("digits.0.sock.tmp", None),
        ("digits.\u0660.sock", None),
    ],
)
def test_socket_names_are_read_from_the_right(name: str, expected: tuple[str, int] | None) -> None:
    """A model name may contain dots; the index is what stands before `.sock`."""
    assert parse_worker_socket(name) == expected


def test_listing_sorts_by_index_and_takes_only_sockets(tmp_path: Path) -> None:
    """Worker 10 comes after worker 9; a file or a symlink under a socket's name is passed over."""
    for name in ("m.9.sock", "m.10.sock", "m.v2.0.sock", "control.sock"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / name))
    (tmp_path / "m.1.sock").write_text("")
    os.symlink(tmp_path / "m.9.sock", tmp_path / "m.2.sock")
    assert list_worker_sockets(str(tmp_path)) == {
        "m": (str(tmp_path / "m.9.sock"), str(tmp_path / "m.10.sock")),
        "m.v2": (str(tmp_path / "m.v2.0.sock"),),
    }
