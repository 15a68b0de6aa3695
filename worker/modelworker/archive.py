"""A model archive (`.mar`): which files it holds, whether that is safe to unpack, and the unpacking.

MMS and TorchServe make these: a zip file with MAR-INF/MANIFEST.json, whose `model.handler` names the entry point. What may be in
one is said positively: files and folders, under relative names of plain components, each name once however a file system folds
letter case, and nothing else: no link, no device, no path that leads elsewhere on any system. Permissions are ours, but for the
owner's execute bit.

Sizes are believed for refusing early, never for reading: a member is unpacked into at most as many bytes as it declares, and what
all declare is within `largest` and within _RATIO times the packed bytes before the first byte is written.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
import zlib
from typing import BinaryIO, Dict, Iterator, List, NamedTuple, Optional

from modelworker.zipindex import DEFLATED, ArchiveError, Entry, read_index, shown

MANIFEST = "MAR-INF/MANIFEST.json"
LARGEST_MANIFEST = 1024 * 1024  # bytes; MMS's own are some hundreds

# Weights shrink to a half at best, texts to a tenth; deflate's own limit is 1032
_RATIO = 200
_HARMLESS = 64 * 1024 * 1024  # bytes: below that, a vocabulary of blanks is no bomb
_LONGEST_NAME = 1024  # bytes of a whole name; with the cache's path well below PATH_MAX
_LONGEST_PART = 255  # NAME_MAX
_DEEPEST = 32
_CHUNK = 1024 * 1024
_SIZES = ((1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


class Member(NamedTuple):
    """A file of an archive under its safe relative name."""

    name: str
    executable: bool
    entry: Entry


class Contents(NamedTuple):
    """A checked archive: `folders` in an order in which they can be made, `files`, and the bytes that these declare."""

    folders: List[str]
    files: List[Member]
    total: int

    def file(self, name: str) -> Optional[Member]:
        """The file of this name."""
        return next((member for member in self.files if member.name == name), None)


def open_archive(path: str) -> BinaryIO:
    """Open a regular file. Raises ArchiveError; never waits for the writer of a FIFO."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ArchiveError("it cannot be read: %s" % error.strerror) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArchiveError("it is not a regular file")
    return open(descriptor, "rb")


def read_contents(stream: BinaryIO, largest: int) -> Contents:
    """Look at everything that can be wrong with an archive without unpacking it. `largest` is in bytes. Raises ArchiveError."""
    try:
        own = stream.seek(0, os.SEEK_END)
        if own > largest:
            raise ArchiveError("it has %s" % size_text(own), _at_most(largest))
        contents = _arrange(read_index(stream))
        packed = sum(member.entry.packed for member in contents.files)
        if contents.total > largest:
            raise ArchiveError("it unpacks to %s" % size_text(contents.total), _at_most(largest))
    except OSError as error:
        raise ArchiveError("it cannot be read: %s" % error.strerror) from None
    if contents.total > max(_HARMLESS, _RATIO * packed):
        said = "it unpacks to %s, from %s" % (size_text(contents.total), size_text(packed))
        raise ArchiveError(said, "at most %d times as much" % _RATIO)
    return contents


def size_text(count: int) -> str:
    """`1.5 GiB`, for people."""
    for unit, name in _SIZES:
        if count >= unit:
            return "%.4g %s" % (count / unit, name)
    return "%d B" % count


def _at_most(largest: int) -> str:
    return "at most %s (max_archive_size)" % size_text(largest)


def _arrange(entries: List[Entry]) -> Contents:
    """Files and folders, those among them that only a longer name implies."""
    spelled: Dict[str, str] = {}  # folded name → the name as it was first seen
    folders: Dict[str, None] = {}
    files: Dict[str, Member] = {}
    for entry in entries:
        folder = entry.name.endswith("/")
        parts = _parts(entry.name[:-1] if folder else entry.name, entry.name)
        mode = _checked_mode(entry, folder)
        for length in range(1, len(parts) + 1):
            name = "/".join(parts[:length])
            last = length == len(parts)
            before = spelled.setdefault(_folded(name), name)
            if before != name:
                raise ArchiveError("%s and %s differ in case only" % (shown(before), shown(name)))
            if name in files or (last and not folder and name in folders):
                raise ArchiveError("it has the name %s twice" % shown(name))
            if folder or not last:
                folders[name] = None
            else:
                files[name] = Member(name, bool(mode & stat.S_IXUSR), entry)
    total = sum(member.entry.size for member in files.values())
    return Contents(list(folders), list(files.values()), total)


def _folded(name: str) -> str:
    """What a file system that ignores case and composition sees."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _parts(name: str, written: str) -> List[str]:
    """The components of a name that leads nowhere but below the folder, on any system. Raises ArchiveError."""
    parts = name.split("/")
    raw = name.encode("utf-8", "surrogateescape")
    wrong = ""
    if name.startswith("/") or (len(name) > 1 and name[1] == ":"):
        wrong = "is absolute"
    elif not name or any(part in ("", ".", "..") for part in parts):
        wrong = "leads out of the folder or nowhere"
    elif "\\" in name or not name.isprintable():
        wrong = "has a backslash or a character that cannot be printed"
    elif len(raw) > _LONGEST_NAME or len(parts) > _DEEPEST:
        wrong = "is too long or too deep"
    elif any(len(part.encode("utf-8", "surrogateescape")) > _LONGEST_PART for part in parts):
        wrong = "is too long"
    if wrong:
        said = "the name of the member %s %s" % (shown(written), wrong)
        raise ArchiveError(said, "a relative path of plain names")
    return parts


def _checked_mode(entry: Entry, folder: bool) -> int:
    """The Unix mode of an entry, which is that of a file or folder, or 0 where it was made elsewhere."""
    mode = entry.attributes >> 16
    kind = stat.S_IFMT(mode)
    wanted = (0, stat.S_IFDIR) if folder else (0, stat.S_IFREG)
    if kind not in wanted:
        what = "a link" if kind == stat.S_IFLNK else "neither file nor folder"
        raise ArchiveError("the member %s is %s" % (shown(entry.name), what), "files and folders")
    if folder and entry.size:
        raise ArchiveError("the folder %s has bytes" % shown(entry.name))
    return mode


# -- reading ----------------------------------------------------------------------------------------------------------


def digest_of(stream: BinaryIO) -> str:
    """The SHA-256 of the whole file, in hexadecimal digits."""
    digest = hashlib.sha256()
    stream.seek(0)
    for chunk in iter(lambda: stream.read(_CHUNK), b""):
        digest.update(chunk)
    return digest.hexdigest()


def read_manifest(stream: BinaryIO, contents: Contents) -> Optional[bytes]:
    """The bytes of the manifest, or None. Raises ArchiveError for one that is damaged or larger than LARGEST_MANIFEST."""
    member = contents.file(MANIFEST)
    if member is None:
        return None
    if member.entry.size > LARGEST_MANIFEST:
        raise ArchiveError("%s is larger than %s" % (MANIFEST, size_text(LARGEST_MANIFEST)))
    return b"".join(unpacked(stream, member.entry))


def unpacked(stream: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The bytes of a member, in chunks; never more than it declares. Raises ArchiveError."""
    crc, produced = 0, 0
    for chunk in _inflated(stream, entry) if entry.method == DEFLATED else _stored(stream, entry):
        produced += len(chunk)
        if produced > entry.size:
            break
        crc = zlib.crc32(chunk, crc)
        yield chunk
    if produced != entry.size or crc != entry.crc:
        raise ArchiveError("the member %s is damaged, or not what it declares" % shown(entry.name))


def _stored(stream: BinaryIO, entry: Entry) -> Iterator[bytes]:
    position, left = entry.start, entry.packed
    while left:
        stream.seek(position)
        chunk = stream.read(min(left, _CHUNK))
        if not chunk:
            raise ArchiveError("it is cut short")
        position += len(chunk)
        left -= len(chunk)
        yield chunk


def _inflated(stream: BinaryIO, entry: Entry) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for packed in _stored(stream, entry):
            rest = packed
            while rest and not inflater.eof:
                yield inflater.decompress(rest, _CHUNK)
                rest = inflater.unconsumed_tail
        # What the window still holds when all input is taken: bounded too
        while not inflater.eof:
            chunk = inflater.decompress(b"", _CHUNK)
            if not chunk:
                raise ArchiveError("the member %s is cut short" % shown(entry.name))
            yield chunk
    except zlib.error as error:
        raise ArchiveError("the member %s is damaged: %s" % (shown(entry.name), error)) from None
    if inflater.unused_data:
        raise ArchiveError("the member %s is longer than its contents" % shown(entry.name))


# -- writing ----------------------------------------------------------------------------------------------------------


def unpack(stream: BinaryIO, contents: Contents, folder: int) -> None:
    """Write everything below an empty folder of ours, given as a descriptor. Raises ArchiveError, and OSError (a full disk).

    Every name is new there: nothing is followed, nothing replaced.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for name in contents.folders:
        os.mkdir(name, 0o700, dir_fd=folder)
    for member in contents.files:
        mode = 0o700 if member.executable else 0o600
        with open(os.open(member.name, flags, mode, dir_fd=folder), "wb") as file:
            file.writelines(unpacked(stream, member.entry))
