"""The index of a zip file, read as hostile input: what lies where in it, or an ArchiveError that says what is wrong.

A zip file describes each member twice, in a header before its bytes and in the central directory at the end, and readers differ in
which of the two they believe, in what may lie between, and in what they do where the two disagree: archives live on that which look
harmless to the one who checks and are not to the one who unpacks. So there is one reader here for both, it demands that the two
agree on the name, that the central directory ends where the end record begins, and that no two members share a byte (with that, a
small archive cannot unpack to petabytes). `zipfile` of the standard library does the last since 3.12 only, and holds every entry of
an index of any length in memory before one of them can be looked at.

Sizes are what the index says; whoever unpacks counts for himself.
"""

from __future__ import annotations

import struct
from typing import BinaryIO, List, NamedTuple, Tuple

STORED = 0
DEFLATED = 8

MOST_MEMBERS = 16384
_LARGEST_INDEX = 16 * 1024 * 1024  # bytes: a kilobyte for each member

# APPNOTE.TXT 6.3.10 of PKWARE: 4.3.16 end record, 4.3.15 and 4.3.14 its 64 bit form, 4.3.12 index entry, 4.3.7 member header
_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_HEADER = struct.Struct("<4s5H3L2H")
_LONGEST_COMMENT = 0xFFFF
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the 64 bit field"

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # 4.4.4: encrypted, strongly so, or with a hidden index
_PATCHED = 0x20
_UTF8 = 0x800


class ArchiveError(Exception):
    """An archive that cannot be used; `expected` says what would be right, where that is not plain."""

    def __init__(self, message: str, expected: str = "") -> None:
        super().__init__("%s; expected %s" % (message, expected) if expected else message)
        self.message = message
        self.expected = expected


class Entry(NamedTuple):
    """One member. `name` is as it is written, `attributes` are the external ones, `start` is the offset of its packed bytes."""

    name: str
    method: int
    crc: int
    packed: int
    size: int
    attributes: int
    start: int


def shown(name: str) -> str:
    """A member's name for a message: printable, short, in quotes."""
    text = ascii(name)
    return text if len(text) <= 80 else text[:76] + "...'"


def read_index(stream: BinaryIO) -> List[Entry]:
    """The members of a zip file in the order of its index. Raises ArchiveError, and OSError where reading fails."""
    length = stream.seek(0, 2)
    count, size, offset = _central_directory(stream, length)
    if count > MOST_MEMBERS or size > _LARGEST_INDEX:
        raise ArchiveError("it has %d members" % count, "at most %d" % MOST_MEMBERS)
    index = _read(stream, offset, size)
    entries = []
    spans = []
    position = 0
    for _ in range(count):
        entry, begin, raw, position = _entry(index, position)
        if begin >= offset:  # as much as 2⁶⁴, where no file can be asked
            raise ArchiveError("the member %s lies beyond the end" % shown(entry.name))
        start = _start(stream, entry, begin, raw)
        entries.append(entry._replace(start=start))
        spans.append((begin, start + entry.packed, entry.name))
    if position != size:
        raise ArchiveError("its index does not end where it says")
    _refuse_overlaps(spans, offset)
    return entries


def _read(stream: BinaryIO, offset: int, size: int) -> bytes:
    if offset < 0:
        raise ArchiveError("it is cut short or damaged")
    stream.seek(offset)
    found = stream.read(size)
    if len(found) != size:
        raise ArchiveError("it is cut short")
    return found


def _central_directory(stream: BinaryIO, length: int) -> Tuple[int, int, int]:
    """(members, bytes, offset) of the index, which ends where the end record begins."""
    tail_at = max(0, length - _END.size - _LONGEST_COMMENT)
    tail = _read(stream, tail_at, length - tail_at)
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - _END.size + 4))
    if at < 0 or tail_at + at + _END.size > length:
        known = tail_at == 0 and tail[:2] == b"\x1f\x8b"
        raise ArchiveError("it is gzip, not zip" if known else "it is not a zip file, or cut short")
    _, disk, its_disk, here, count, size, offset, comment = _END.unpack_from(tail, at)
    end = tail_at + at
    if end + _END.size + comment != length:
        raise ArchiveError("something follows its end record")
    if _FULL16 in (here, count) or _FULL32 in (size, offset):
        end, disk, its_disk, here, count, size, offset = _end64(stream, end)
    if disk or its_disk or here != count:
        raise ArchiveError("it is one part of several")
    if offset + size != end:
        raise ArchiveError("its index does not lie where its end record says")
    return count, size, offset


def _end64(stream: BinaryIO, end: int) -> Tuple[int, int, int, int, int, int, int]:
    """The same of a zip file with 64 bit fields: (where it lies, disk, index's disk, members here, members, bytes, offset)."""
    locator = _LOCATOR64.unpack(_read(stream, end - _LOCATOR64.size, _LOCATOR64.size))
    at = locator[2]
    if locator[0] != b"PK\6\7" or locator[3] > 1 or at > end - _LOCATOR64.size - _END64.size:
        raise ArchiveError("its 64 bit end record is damaged")
    found = _END64.unpack(_read(stream, at, _END64.size))
    if found[0] != b"PK\6\6":
        raise ArchiveError("its 64 bit end record is damaged")
    return (at, *found[4:])


def _entry(index: bytes, position: int) -> Tuple[Entry, int, bytes, int]:
    """(the entry without its start, the offset of its header, its name's bytes, the position of the next entry)."""
    if len(index) - position < _ENTRY.size:
        raise ArchiveError("its index is cut short")
    fields = _ENTRY.unpack_from(index, position)
    signature, _, _, flags, method, _, _, crc, packed, size = fields[:10]
    name_length, extra_length, comment_length, disk, _, attributes, offset = fields[10:]
    position += _ENTRY.size
    following = position + name_length + extra_length + comment_length
    if signature != b"PK\1\2" or following > len(index):
        raise ArchiveError("its index is damaged")
    raw = index[position : position + name_length]
    extra = index[position + name_length : position + name_length + extra_length]
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise ArchiveError("the name of a member is not UTF-8, as it says") from None
    size, packed, offset = _wide(extra, name, [size, packed, offset])
    if flags & _ENCRYPTED:
        raise ArchiveError("the member %s is encrypted" % shown(name))
    if method not in (STORED, DEFLATED) or flags & _PATCHED:
        said = "the member %s is compressed by method %d" % (shown(name), method)
        raise ArchiveError(said, "none or deflate (0 or 8)")
    if disk not in (0, _FULL16) or (method == STORED and packed != size):
        raise ArchiveError("the entry of the member %s is damaged" % shown(name))
    return Entry(name, method, crc, packed, size, attributes, 0), offset, raw, following


def _wide(extra: bytes, name: str, narrow: List[int]) -> List[int]:
    """Size, packed size and offset; those that do not fit into 32 bits stand in the extra field 1, in this order (4.5.3)."""
    if _FULL32 not in narrow:
        return narrow
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        field = extra[position + 4 : position + 4 + length]
        position += 4 + length
        if tag == 1 and len(field) >= 8 * narrow.count(_FULL32):
            wide = iter(struct.unpack_from("<%dQ" % narrow.count(_FULL32), field))
            return [next(wide) if each == _FULL32 else each for each in narrow]
    raise ArchiveError("the entry of the member %s lacks its 64 bit sizes" % shown(name))


def _start(stream: BinaryIO, entry: Entry, begin: int, raw: bytes) -> int:
    """Where the packed bytes begin, after a header that tells the same story."""
    fields = _HEADER.unpack(_read(stream, begin, _HEADER.size))
    name_length: int = fields[9]
    extra_length: int = fields[10]
    own = stream.read(name_length) if name_length == len(raw) else b""
    if fields[0] != b"PK\3\4" or own != raw or fields[3] != entry.method:
        said = "the member %s and its entry in the index contradict each other"
        raise ArchiveError(said % shown(entry.name))
    return begin + _HEADER.size + name_length + extra_length


def _refuse_overlaps(spans: List[Tuple[int, int, str]], end: int) -> None:
    spans.sort()
    following = [begin for begin, _, _ in spans[1:]] + [end]
    for (_, until, name), limit in zip(spans, following):
        if until > limit:
            raise ArchiveError("the member %s reaches into what follows it" % shown(name))
