"""What may be in a model archive, what is said of one that may not be used, and what unpacking makes of it."""

from __future__ import annotations

import errno
import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from modelworker.archive import (
    LARGEST_MANIFEST,
    Contents,
    digest_of,
    open_archive,
    read_contents,
    read_manifest,
    unpack,
)
from modelworker.zipindex import MOST_MEMBERS, ArchiveError

from support.archives import model_archive, packed, replaced

LARGEST = 1024**3
PLAIN = {"one.bin": b"1" * 50, "two.bin": b"2" * 50}


def contents(archive: bytes, largest: int = LARGEST) -> Contents:
    """The checked contents of an archive."""
    return read_contents(io.BytesIO(archive), largest)


def refusal(archive: bytes, folder: Path | None = None) -> str:
    """What is said of an archive: when it is looked at, or else when it is unpacked into `folder`."""
    with pytest.raises(ArchiveError) as caught:
        found = contents(archive)
        assert folder is not None, "found no fault with it"
        spread(archive, found, folder)
    return str(caught.value)


def spread(archive: bytes, found: Contents, folder: Path) -> None:
    """Unpack into a folder."""
    target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpack(io.BytesIO(archive), found, target)
    finally:
        os.close(target)


def test_what_is_packed_comes_out(tmp_path: Path) -> None:
    """Files and folders, packed and stored, empty and larger than one chunk."""
    large = os.urandom(3 * 1024 * 1024 + 1)
    members = {
        "a.bin": large,
        "blank.bin": bytes(3 * 1024 * 1024),
        "empty": b"",
        "sub/dir/b.txt": b"b",
        "hollow/": b"",
        "größe.txt": b"g",
    }
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        target = tmp_path / str(method)
        target.mkdir()
        archive = packed(members, method)
        spread(archive, contents(archive), target)
        found = {str(p.relative_to(target)): p for p in target.rglob("*")}
        assert {n: p.read_bytes() for n, p in found.items() if p.is_file()} == {
            name: content for name, content in members.items() if not name.endswith("/")
        }
        assert {n for n, p in found.items() if p.is_dir()} == {"sub", "sub/dir", "hollow"}


def test_an_archive_of_64_bit_fields_and_data_descriptors(tmp_path: Path) -> None:
    """What a writer makes that does not know the size beforehand, and one that expects a large file."""

    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

    target = Stream()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        with made.open("big.bin", "w", force_zip64=True) as file:
            file.write(b"x" * 1000)
        made.writestr("small.bin", b"y")
    archive = target.getvalue()
    spread(archive, contents(archive), tmp_path)
    assert (tmp_path / "big.bin").read_bytes() == b"x" * 1000


def _with_end64(archive: bytes) -> bytes:
    """The archive with its end record as one of more than 4 GiB has it."""
    end = len(archive) - 22
    count, size, offset = struct.unpack("<HLL", archive[end + 10 : end + 20])
    wide = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    narrow = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return archive[:end] + wide + locator + narrow


def test_a_64_bit_end_record() -> None:
    """An archive over 4 GiB has one; a damaged one is refused."""
    archive = _with_end64(packed(PLAIN))
    assert [member.name for member in contents(archive).files] == list(PLAIN)
    assert "64 bit end record is damaged" in refusal(replaced(archive, b"PK\6\6", b"PK\6\5", 1))
    assert "64 bit end record is damaged" in refusal(replaced(archive, b"PK\6\7", b"PK\6\5", 1))


def _wide_entry(length: int) -> bytes:
    """One stored member of 7 bytes whose index entry has its sizes in an extra field of `length` bytes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        member = zipfile.ZipInfo("x")
        member.extra = struct.pack("<2H2Q", 1, 16, 7, 7)
        made.writestr(member, b"1234567")
    archive = bytearray(target.getvalue())
    at = archive.index(b"PK\1\2")
    struct.pack_into("<2L", archive, at + 20, 2**32 - 1, 2**32 - 1)
    struct.pack_into("<H", archive, at + 46 + 1 + 2, length)
    return bytes(archive)


def test_64_bit_sizes(tmp_path: Path) -> None:
    """A member over 4 GiB has them; an entry that promises them and has too few bytes is refused."""
    archive = _wide_entry(16)
    spread(archive, contents(archive), tmp_path)
    assert (tmp_path / "x").read_bytes() == b"1234567"
    assert "lacks its 64 bit sizes" in refusal(_wide_entry(8))


@pytest.mark.parametrize("offset", [2**62, 2**63, 2**64 - 1])
def test_a_member_beyond_the_end(tmp_path: Path, offset: int) -> None:
    """An offset of 64 bits may be larger than any file's; it is a mistake of the archive, in a file as in memory."""
    archive = bytearray(packed({"x": b"1234567"}))
    at, end = archive.index(b"PK\1\2"), archive.index(b"PK\5\6")
    extra = struct.pack("<2HQ", 1, 8, offset)
    struct.pack_into("<H", archive, at + 30, len(extra))
    struct.pack_into("<L", archive, at + 42, 2**32 - 1)
    struct.pack_into("<L", archive, end + 12, end - at + len(extra))
    archive[end:end] = extra
    assert "lies beyond the end" in refusal(bytes(archive))
    (tmp_path / "m.mar").write_bytes(archive)
    with open_archive(str(tmp_path / "m.mar")) as stream, pytest.raises(ArchiveError):
        read_contents(stream, LARGEST)


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd", "../x", "a/../../x", "a/..", "..", ".", "./a", "a//b", "//a", "/", "\\\\host\\x", "..\\x", "a\\b",
        "C:/x", "C:x", "c:\\x", "a\nb", "a\x1b[2Jb", "a\x7fb", "n" * 256, "ü" * 128, "d/" * 40 + "f", "/".join(["p" * 200] * 6),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    """Absolute, upward, of another system, unprintable, too long: refused by name before anything is written."""
    said = refusal(packed({"good": b"", name: b"x"}))
    assert "the name of the member" in said
    assert "expected a relative path of plain names" in said
    assert said.isprintable()


def test_a_name_with_nul() -> None:
    """What C would take for a shorter name."""
    said = refusal(replaced(packed({"a.pyXpng": b"x"}), b"a.pyX", b"a.py\0"))
    assert "the name of the member 'a.py\\x00png'" in said


def test_a_name_that_is_not_utf_8() -> None:
    """The flag says UTF-8 and the bytes are not."""
    assert "is not UTF-8" in refusal(replaced(packed({"ü": b"x"}), "ü".encode(), b"\xff\xff"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("abc1", "abc1"), "has the name 'abc1' twice"),
        (("abc1", "ABC1"), "'abc1' and 'ABC1' differ in case only"),
        (("dir/1", "DIR/2"), "'dir' and 'DIR' differ in case only"),
        (("abc1", "abc1/x"), "has the name 'abc1' twice"),
        (("abc1/x", "abc1"), "has the name 'abc1' twice"),
        (("straße", "STRASSE"), "differ in case only"),
        (("\u00e9", "e\u0301"), "differ in case only"),
    ],
)
def test_names_that_collide(names: tuple[str, str], said: str) -> None:
    """Twice, as a file and as a folder, or one for a file system that ignores letter case or composition."""
    first, second = names
    stand_in = "?" * len(second.encode())
    archive = packed({first: b"1", stand_in: b"2"})
    if second.isascii():
        archive = replaced(archive, stand_in.encode(), second.encode())
    else:
        archive = packed({first: b"1", second: b"2"})
    assert said in refusal(archive)


def test_a_folder_may_be_named_again() -> None:
    """Some archivers list a folder after its files."""
    assert contents(packed({"sub/a": b"", "sub/": b""})).folders == ["sub"]


# -- kinds and modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (stat.S_IFLNK, "is a link"),
        (stat.S_IFCHR, "neither file nor folder"),
        (stat.S_IFBLK, "neither file nor folder"),
        (stat.S_IFIFO, "neither file nor folder"),
        (stat.S_IFSOCK, "neither file nor folder"),
        (stat.S_IFDIR, "neither file nor folder"),
    ],
)
def test_links_and_devices(kind: int, said: str) -> None:
    """Files and folders, and nothing else."""
    assert said in refusal(packed({"x": b"/etc/shadow"}, modes={"x": kind | 0o777}))


def test_a_folder_with_bytes() -> None:
    """A name that ends as a folder's and has contents is neither."""
    assert "has bytes" in refusal(packed({"x/": b"abc"}))


def test_modes_are_ours(tmp_path: Path) -> None:
    """No set-id bit, no rights for others, whatever the archive and the umask say; the owner's execute bit stays."""
    modes = {
        "tool": stat.S_IFREG | 0o6777,
        "text": stat.S_IFREG | 0o666,
        "sub/": stat.S_IFDIR | 0o7777,
    }
    archive = packed({"tool": b"t", "text": b"t", "sub/": b"", "other/x": b""}, modes=modes)
    umask = os.umask(0)
    try:
        spread(archive, contents(archive), tmp_path)
    finally:
        os.umask(umask)
    found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert found == {"tool": 0o700, "text": 0o600, "sub": 0o700, "other": 0o700, "x": 0o600}


def test_nothing_is_replaced_or_followed(tmp_path: Path) -> None:
    """A link that lies in the folder already is not written through."""
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "x").symlink_to(tmp_path / "outside")
    archive = packed({"x": b"1"})
    with pytest.raises(FileExistsError):
        spread(archive, contents(archive), tmp_path / "target")
    assert not (tmp_path / "outside").exists()


# -- bombs and bounds -------------------------------------------------------------------------------------------------


def test_too_large_packed_or_unpacked() -> None:
    """`max_archive_size` bounds both; nothing is unpacked to find out."""
    blank, noise = packed({"x": bytes(10_000)}), packed({"x": os.urandom(10_000)})
    with pytest.raises(ArchiveError, match=r"unpacks to 9\.766 KiB; expected at most 9\.76. KiB"):
        contents(blank, 9999)
    with pytest.raises(ArchiveError, match=r"it has 9.* KiB; expected .* \(max_archive_size\)"):
        contents(noise, 9999)
    assert contents(blank, 10_000).total == 10_000


def test_a_bomb_by_its_ratio() -> None:
    """A hundred megabytes out of a hundred kilobytes are no model."""
    assert "expected at most 200 times as much" in refusal(packed({"x": bytes(100 * 1024**2)}))
    assert contents(packed({"x": bytes(60 * 1024**2)})).total == 60 * 1024**2


def test_a_bomb_by_its_count() -> None:
    """Members cost inodes and memory, even empty ones."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        for number in range(MOST_MEMBERS + 1):
            made.writestr(str(number), b"")
    assert f"it has {MOST_MEMBERS + 1} members; expected at most {MOST_MEMBERS}" in refusal(
        target.getvalue()
    )


def _patched_sizes(archive: bytes, size: int) -> bytes:
    """The archive of one member, that declares another size, in its header and in the index."""
    at = archive.index(b"PK\1\2")
    made = bytearray(archive)
    struct.pack_into("<L", made, 22, size)
    struct.pack_into("<L", made, at + 24, size)
    return bytes(made)


@pytest.mark.parametrize("declared", [0, 1, 9_999, 10_001])
def test_a_member_of_another_size_than_it_declares(declared: int, tmp_path: Path) -> None:
    """Not a byte more than was declared is written, and less is damage too."""
    archive = _patched_sizes(packed({"x": bytes(10_000)}), declared)
    assert "'x' is damaged, or not what it declares" in refusal(archive, tmp_path)
    assert (tmp_path / "x").stat().st_size <= declared


def test_overlapping_members() -> None:
    """The quoted-overlap bomb: many entries for the same bytes."""
    archive = packed({"a1": b"x" * 99, "a2": b"x" * 99}, zipfile.ZIP_STORED)
    made = bytearray(replaced(archive, b"a2", b"a1"))
    second = made.rindex(b"PK\1\2")
    made[second + 42 : second + 46] = bytes(4)
    assert "the member 'a1' reaches into what follows it" in refusal(bytes(made))


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("archive", "said"),
    [
        (b"", "not a zip file, or cut short"),
        (b"PK", "not a zip file, or cut short"),
        (b"# a text\n" * 20_000, "not a zip file, or cut short"),
        (b"\x1f\x8b\x08" + bytes(100), "it is gzip, not zip"),
        (packed(PLAIN)[:-1], "not a zip file, or cut short"),
        (packed(PLAIN)[:-30], "not a zip file, or cut short"),
        (packed(PLAIN) + b"tail", "something follows its end record"),
        (b"#!/bin/sh\n" + packed(PLAIN), "index does not lie where its end record says"),
    ],
)
def test_what_is_no_zip_or_not_all_of_it(archive: bytes, said: str) -> None:
    """Something else, or cut anywhere, or with something before or behind it."""
    assert said in refusal(archive)


def _flagged(flag: int) -> bytes:
    archive = bytearray(packed({"x": b"x"}))
    archive[archive.index(b"PK\1\2") + 8] |= flag & 0xFF
    archive[archive.index(b"PK\1\2") + 9] |= flag >> 8
    return bytes(archive)


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_encrypted(flag: int) -> None:
    """No password is asked for."""
    assert "the member 'x' is encrypted" in refusal(_flagged(flag))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_otherwise(method: int) -> None:
    """What no archiver of models writes is not worth its attack surface."""
    said = refusal(packed({"x": b"x"}, method))
    assert f"compressed by method {method}; expected none or deflate" in said


def test_patch_data() -> None:
    """A member that is a difference to a file elsewhere."""
    assert "'x' is compressed by method 8" in refusal(_flagged(0x20))


def test_header_and_index_that_contradict_each_other() -> None:
    """What one reader would check and another unpack."""
    archive = packed({"ok.py": b"1"})
    made = archive.replace(b"ok.py", b"no.py", 1)
    assert "'ok.py' and its entry in the index contradict each other" in refusal(made)


def test_damaged_contents(tmp_path: Path) -> None:
    """A flipped bit is seen, in stored and in packed bytes."""
    stored = packed({"x": b"abcdefgh"}, zipfile.ZIP_STORED)
    assert "'x' is damaged" in refusal(replaced(stored, b"abcdefgh", b"abcdefgH", 1), tmp_path)
    noise = os.urandom(2000).replace(b"PK", b"  ")
    deflated = bytearray(packed({"y": noise}))
    deflated[31:34] = b"\xff\xff\xff"
    assert "'y' is damaged" in refusal(bytes(deflated), tmp_path)


def test_a_manifest_that_is_too_large() -> None:
    """One mebibyte is a thousand times what MMS writes."""
    archive = packed({"MAR-INF/MANIFEST.json": b" " * (LARGEST_MANIFEST + 1)})
    with pytest.raises(ArchiveError, match="larger than 1 MiB"):
        read_manifest(io.BytesIO(archive), contents(archive))
    assert read_manifest(io.BytesIO(archive), contents(packed(PLAIN))) is None


# -- files ------------------------------------------------------------------------------------------------------------


def test_what_is_no_file(tmp_path: Path) -> None:
    """A folder, a FIFO that nobody writes to, nothing: said, never waited for."""
    os.mkfifo(tmp_path / "fifo")
    for name, said in (("fifo", "regular"), (".", "regular"), ("no", "No such file")):
        with pytest.raises(ArchiveError, match=said):
            open_archive(str(tmp_path / name))


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the system comes through; there is no half of a model under its name (test_extractions.py)."""
    archive = model_archive("x")
    found = contents(archive)
    real = os.open

    def full(*args: object, **kwargs: object) -> int:
        if "dir_fd" in kwargs:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="No space left"):
        spread(archive, found, tmp_path)


def test_the_digest_is_of_the_whole_file() -> None:
    """Two archives with the same members are two contents."""
    first, second = packed(PLAIN), packed(PLAIN, zipfile.ZIP_STORED)
    assert digest_of(io.BytesIO(first)) != digest_of(io.BytesIO(second))
    assert len(digest_of(io.BytesIO(first))) == 64
