"""`path = model.mar`: what `check` finds in an archive without unpacking it, by line."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from modelsupervisor.config import load_settings, render_settings
from modelsupervisor.errors import ConfigurationError
from modelsupervisor.paths import resolve_model_cache
from support.archives import model_archive, packed

SECTION = "[model:a]\npath = m.mar\n"


def write(folder: Path, archive: bytes, text: str = SECTION) -> str:
    (folder / "m.mar").write_bytes(archive)
    (folder / "workers.ini").write_text(text)
    return str(folder / "workers.ini")


def said(path: str) -> str:
    """The one mistake of a file, without its folder."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, {})
    assert len(caught.value.problems) == 1
    return str(caught.value).split("\n", maxsplit=1)[0].replace(os.path.dirname(path), "")


def test_an_archive_as_a_model(tmp_path: Path) -> None:
    """The handler is the manifest's, nothing is unpacked, and what is printed loads to the same."""
    path = write(tmp_path, model_archive("x"))
    settings = load_settings(path, {})
    (model,) = settings.models
    assert (model.path, model.handler, model.archive) == (
        str(tmp_path / "m.mar"),
        "service:handle",
        True,
    )
    assert sorted(os.listdir(tmp_path)) == ["m.mar", "workers.ini"]
    text = render_settings(settings)
    assert "max_archive_size = 8GiB" in text
    (tmp_path / "workers.ini").write_text(text)
    assert msgspec.structs.replace(load_settings(path, {}).models[0], line=1) == model


def test_a_link_to_an_archive_is_not_resolved(tmp_path: Path) -> None:
    """A link that is turned to another version is what `restart` is to load."""
    write(tmp_path, model_archive("x"))
    (tmp_path / "current.mar").symlink_to("m.mar")
    (tmp_path / "workers.ini").write_text("[model:a]\npath = current.mar\n")
    (model,) = load_settings(str(tmp_path / "workers.ini"), {}).models
    assert model.path == str(tmp_path / "current.mar")


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    """What it is decides, not what it is called."""
    (tmp_path / "m.mar").mkdir()
    (tmp_path / "m.mar" / "service.py").write_text("")
    (tmp_path / "workers.ini").write_text(SECTION + "handler = service\n")
    (model,) = load_settings(str(tmp_path / "workers.ini"), {}).models
    assert not model.archive


@pytest.mark.parametrize("handler", ["service", "service.py:f", "pack", "pack.part:f"])
def test_a_written_handler_goes_before_the_manifest(tmp_path: Path, handler: str) -> None:
    """As it does for a folder; its file has to be in the archive."""
    archive = model_archive("x", **{"pack/__init__.py": b"", "pack/part.py": b""})
    path = write(tmp_path, archive, f"{SECTION}handler = {handler}\n")
    assert load_settings(path, {}).models[0].handler == handler


@pytest.mark.parametrize(
    ("archive", "more", "expected"),
    [
        (
            b"PK",
            "",
            "/workers.ini:2: [model:a] path = m.mar: /m.mar cannot be used: it is not a zip file, or cut short; "
            "expected a sound archive",
        ),
        (
            packed({"../x": b""}),
            "",
            "/workers.ini:2: [model:a] path = m.mar: /m.mar cannot be used: the name of the member '../x' leads out of "
            "the folder or nowhere; expected a relative path of plain names",
        ),
        (
            packed({"x.py": bytes(2 * 1024**2)}),
            "max_archive_size = 1MiB",
            "/workers.ini:2: [model:a] path = m.mar: /m.mar cannot be used: it unpacks to 2 MiB; "
            "expected at most 1 MiB (max_archive_size)",
        ),
        (
            model_archive("x"),
            "max_archive_size = 1KiB",
            "/workers.ini:3: [model:a] max_archive_size = 1KiB: expected a size from 1MiB to 1024GiB",
        ),
        (
            packed({"x.py": b""}),
            "",
            "/workers.ini:1: [model:a] the key handler is missing, and /m.mar has no MAR-INF/MANIFEST.json to name one; "
            "expected module:function or module, of a file in the model's folder",
        ),
        (
            model_archive("x"),
            "handler = other:f",
            "/workers.ini:3: [model:a] handler = other:f: /m.mar has no file other.py; "
            "expected module:function or module, of a file in the model's folder",
        ),
        (
            packed({"MAR-INF/MANIFEST.json": b'{"model": {"handler": "gone:f"}}'}),
            "",
            "/workers.ini:1: [model:a] MAR-INF/MANIFEST.json names the handler gone:f: /m.mar has no file gone.py; "
            "expected module:function or module, of a file in the model's folder",
        ),
        (
            packed({"MAR-INF/MANIFEST.json": b" " * (1024**2 + 1)}),
            "",
            "/workers.ini:2: [model:a] path = m.mar: /m.mar cannot be used: MAR-INF/MANIFEST.json is larger than 1 MiB; "
            "expected a sound archive",
        ),
    ],
)
def test_what_is_wrong_is_said_by_line(
    tmp_path: Path, archive: bytes, more: str, expected: str
) -> None:
    """File, line, key, what was found, what was expected."""
    assert said(write(tmp_path, archive, f"{SECTION}{more}\n")) == expected


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b'{"model": 7}', b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_none(tmp_path: Path, text: bytes) -> None:
    """Not JSON, or JSON of something else."""
    path = write(tmp_path, packed({"MAR-INF/MANIFEST.json": text, "x.py": b""}))
    assert "/m.mar: MAR-INF/MANIFEST.json names no handler: " in said(path)


@pytest.mark.parametrize(
    ("configured", "environ", "expected"),
    [
        ("/big/cache", {"CACHE_DIRECTORY": "/var/cache/ms"}, "/big/cache"),
        (None, {"CACHE_DIRECTORY": "/c/one:/c/two", "XDG_CACHE_HOME": "/x"}, "/c/one/models"),
        (None, {"CACHE_DIRECTORY": "rel", "XDG_CACHE_HOME": "/x/"}, "/x/modelsupervisor"),
        (None, {"CACHE_DIRECTORY": "", "XDG_CACHE_HOME": "rel"}, "/run/here/models"),
        (None, {}, "/run/here/models"),
    ],
)
def test_where_archives_are_unpacked(
    configured: str | None, environ: dict[str, str], expected: str
) -> None:
    """The file goes before systemd, systemd before the user's cache, and the run directory is always there."""
    assert resolve_model_cache(configured, "/run/here", environ) == expected
