"""Model archives for tests: sound ones, and the bytes of one changed by name."""

from __future__ import annotations

import io
import json
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

SERVICE = "def handle(data, context):\n    return [b'%s'] * len(data) if data else []\n"


def packed(
    members: Mapping[str, bytes | str],
    method: int = zipfile.ZIP_DEFLATED,
    modes: Mapping[str, int] | None = None,
) -> bytes:
    """A zip file; `modes` are Unix modes, of a regular file unless given."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_STORED if name.endswith("/") else method
            member.external_attr = (modes or {}).get(name, stat.S_IFREG | 0o644) << 16
            if name.endswith("/") and name not in (modes or {}):
                member.external_attr = (stat.S_IFDIR | 0o755) << 16
            archive.writestr(member, content)
    return target.getvalue()


def model_archive(answer: str, **members: bytes | str) -> bytes:
    """A model that answers always the same, as MMS's archiver packs it."""
    manifest = {"runtime": "python", "model": {"modelName": "m", "handler": "service:handle"}}
    return packed(
        {
            "service.py": SERVICE % answer,
            "MAR-INF/MANIFEST.json": json.dumps(manifest),
            **members,
        }
    )


def archive_of(folder: Path, handler: str) -> bytes:
    """A model folder of the repository as an archive."""
    files = [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts]
    members: dict[str, bytes | str] = {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()
    }
    members["MAR-INF/MANIFEST.json"] = json.dumps({"model": {"handler": handler}})
    return packed(members)


def replaced(archive: bytes, old: bytes, new: bytes, times: int = 2) -> bytes:
    """The archive with some bytes of it changed for as many others; a name stands in it twice."""
    assert len(old) == len(new)
    assert archive.count(old) == times, archive.count(old)
    return archive.replace(old, new)
