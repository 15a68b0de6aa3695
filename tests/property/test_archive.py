"""What holds for every archive: no bytes make the reader do anything but refuse or stay within its folder."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from modelworker.archive import read_contents, read_manifest, unpack
from modelworker.zipindex import ArchiveError, read_index

from support.archives import model_archive, packed

fast = settings(derandomize=True, max_examples=150, deadline=None)

SOUND = model_archive("x", **{"sub/weights": bytes(range(256)) * 8})
LARGEST = 1024 * 1024
names = st.lists(
    st.sampled_from(["a", "B", "b", "..", ".", "", "c:", "é", "x\\y", "\n", "n" * 256]),
    min_size=1,
    max_size=4,
).map("/".join)


def digest(archive: bytes) -> dict[str, int] | None:
    """Name and size of every file that comes out, None where the archive is refused; nothing comes out elsewhere."""
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name)
        (outer / "in").mkdir()
        folder = os.open(outer / "in", os.O_RDONLY | os.O_DIRECTORY)
        stream = io.BytesIO(archive)
        try:
            contents = read_contents(stream, LARGEST)
            read_manifest(stream, contents)
            unpack(stream, contents, folder)
        except ArchiveError as error:
            assert str(error).isprintable()
            return None
        finally:
            os.close(folder)
            assert os.listdir(outer) == ["in"]
            files = [path for path in (outer / "in").rglob("*") if not path.is_dir()]
            assert sum(path.stat().st_size for path in files) <= LARGEST
            assert not any(path.is_symlink() for path in files)
        return {str(path.relative_to(outer / "in")): path.stat().st_size for path in files}


@fast
@given(st.binary(max_size=300))
def test_any_bytes(archive: bytes) -> None:
    """Random bytes, also with an end record behind them."""
    assert digest(archive) is None
    end = SOUND[-22:]
    digest(archive + end)


@fast
@given(st.data())
def test_damage(data: st.DataObject) -> None:
    """A sound archive with some bytes changed: the same files, or an ArchiveError."""
    archive = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    digest(bytes(archive))


@fast
@given(st.integers(0, len(SOUND) - 1))
def test_any_prefix(length: int) -> None:
    """A download that broke off is never taken for the whole."""
    assert digest(SOUND[:length]) is None


@fast
@given(st.integers(1, len(SOUND) - 1), st.binary(min_size=1, max_size=40))
def test_anything_inserted(at: int, inserted: bytes) -> None:
    """What lies between is never skipped over to something else."""
    found = digest(SOUND[:at] + inserted + SOUND[at:])
    assert found is None or found == digest(SOUND)


@fast
@given(st.lists(names, min_size=1, max_size=5, unique=True))
def test_any_names(chosen: list[str]) -> None:
    """Whatever they are called, files come out below the folder under just that name, or the archive is refused."""
    found = digest(packed({name: b"x" for name in chosen if not name.endswith("/")}))
    if found is not None:
        assert set(found) == {name for name in chosen if not name.endswith("/")}


@fast
@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=3), st.binary(max_size=500), max_size=5),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_zipfile_agrees(members: dict[str, bytes], method: int) -> None:
    """What the standard library packs is read with the same names, sizes and sums."""
    archive = packed(members, method)
    with zipfile.ZipFile(io.BytesIO(archive)) as theirs:
        expected = [(each.filename, each.file_size, each.CRC) for each in theirs.infolist()]
    ours = read_index(io.BytesIO(archive))
    assert [(each.name, each.size, each.crc) for each in ours] == expected
    assert digest(archive) == {name: len(content) for name, content in members.items()}
