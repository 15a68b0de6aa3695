"""The bytes of a configuration file become sections and entries that know their line; no value is
understood here.

`configparser` is the grammar: an operator's editor and habits know it, and what it accepts is
documented. Two things it does not give are added from outside, through its documented parameters
only:

- *Line numbers.* It reads from an iterator, so the iterator knows the line at hand, and `dict_type`
  is told each key at the moment at which its line is read.
- *More than the first mistake.* It raises at the first duplicate. That line is mended in memory
  (the second `workers` is renamed to a name that no file can contain) and the parse starts again,
  until it is clean. What follows is checked as usual, so a file with a duplicate in line 2 and a
  bad number in line 90 is one report.
"""

from __future__ import annotations

import configparser
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from modelsupervisor.config.reports import Report, quoted, quoted_line
from modelsupervisor.config.values import BadValueError, reason
from modelsupervisor.errors import InvariantError

LARGEST_FILE = 1024 * 1024  # bytes
_MOST_MENDINGS = 50  # each costs a parse of the whole file; nobody reads a report that is longer
_MARK = "\0"  # cannot come from a file: NUL is refused before the parse

_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_FILE_EXPECTED = "a configuration file"
_HEADER = re.compile(r"\[.+\]")
_SYNTAX_EXPECTED = "[section], key = value, or a comment that starts with # or ;"


@dataclass(frozen=True)
class Entry:
    """One `key = value`; a value that the file continues on indented lines holds newlines."""

    key: str
    value: str
    line: int
    repeated: bool  # an earlier line of the section has the same key; reported already


@dataclass(frozen=True)
class Section:
    """One `[name]` and its entries, in the order of the file."""

    name: str
    line: int
    entries: tuple[Entry, ...]
    repeated: bool  # an earlier section has the same name; reported already


def read_sections(path: str, report: Report) -> tuple[Section, ...] | None:
    """The sections of the file at `path`; its mistakes go into `report`; None where there is
    nothing to look at.
    """
    try:
        text = _decode(_read_bytes(path))
    except BadValueError as bad:
        report.add(bad.message, expected=bad.expected)
        return None
    return parse_sections(text, report)


def _read_bytes(path: str) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever; it means nothing to
        # a regular file.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BadValueError("the file does not exist", _FILE_EXPECTED) from None
    except (OSError, ValueError) as error:
        raise BadValueError(f"cannot be opened: {reason(error)}", _FILE_EXPECTED) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
            raise BadValueError(what, _FILE_EXPECTED)
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise BadValueError(f"cannot be read: {reason(error)}", _FILE_EXPECTED) from None
    finally:
        os.close(descriptor)
    if len(content) > LARGEST_FILE:
        raise BadValueError("is larger than 1MiB", _FILE_EXPECTED)
    return content


def _decode(content: bytes) -> str:
    if content.startswith(_BYTE_ORDER_MARKS):
        raise BadValueError("begins with a byte order mark", "UTF-8 without one")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"line {line} holds the byte 0x{content[error.start]:02x}, which is not UTF-8"
        raise BadValueError(found, "a file in UTF-8") from None


def parse_sections(text: str, report: Report) -> tuple[Section, ...]:
    """The sections of `text`. Never raises: every mistake goes into `report` and the rest is read
    as if it were not.
    """
    # Exactly the line ends that a text file has; str.splitlines would also split at form feeds and
    # U+2028.
    lines = re.split(r"\r\n|\r|\n", text)
    for number, line in enumerate(lines, start=1):
        if _MARK in line:
            report.add("holds a NUL character", line=number)
            lines[number - 1] = line.replace(_MARK, "\ufffd")
    for _ in range(_MOST_MENDINGS):
        recorder = _Recorder(lines)
        try:
            recorder.parse()
        except configparser.Error as error:
            _mend(error, lines, report)
        else:
            return _sections(recorder, lines, report)
    report.add("more mistakes of this kind follow; they are not listed", line=len(lines))
    return ()


class _Recorder:
    """One parse: sections with the line of their header, entries with the line of their key."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.number = 0
        self.sections: dict[str, tuple[int, _Recorded]] = {}

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self.lines, start=1):
            self.number = number
            yield line

    def parse(self) -> None:
        dict_type: Any = partial(
            _Recorded, self
        )  # configparser only calls it; a class is what its stubs ask for
        parser = configparser.RawConfigParser(
            dict_type=dict_type,
            delimiters=("=",),
            comment_prefixes=("#", ";"),
            inline_comment_prefixes=None,
            strict=True,
            empty_lines_in_values=False,
            default_section=_MARK,  # [DEFAULT] is a section like any other here, and an unknown one
            interpolation=None,
        )
        parser.optionxform = str  # type: ignore[assignment, method-assign]  # keys keep their case
        parser.read_file(self)


class _Recorded(dict[str, Any]):
    """A dictionary of configparser's: the section table, or the entries of one section."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.line_of: dict[str, int] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        # Values are set again when continued lines are joined at the end: the first time is the
        # line of the key.
        self.line_of.setdefault(key, self.recorder.number)
        if isinstance(value, _Recorded):
            self.recorder.sections.setdefault(key, (self.recorder.number, value))
        super().__setitem__(key, value)


def _mend(error: configparser.Error, lines: list[str], report: Report) -> None:
    """Report what stopped the parse and change `lines` so that it gets past it; the number of lines
    stays.
    """
    match error:
        case configparser.DuplicateSectionError(lineno=int(number)):
            report.add(
                "the section stands here a second time", line=number, section=str(error.section)
            )
            lines[number - 1] = f"[{_MARK}{number}{_MARK}{error.section}]"
        case configparser.DuplicateOptionError(lineno=int(number)):
            key, _, value = lines[number - 1].partition("=")
            report.add(
                "the key stands in this section a second time",
                line=number,
                section=error.section.rpartition(_MARK)[2],
                key=key.strip(),
                value=value.strip(),
            )
            indent = key[: len(key) - len(key.lstrip())]
            lines[number - 1] = f"{indent}{_MARK}{number}{_MARK}{key.strip()} = {value}"
        case configparser.MissingSectionHeaderError(lineno=int(number)):
            report.add(
                f"`{quoted_line(lines[number - 1])}` stands before the first section", line=number
            )
            _blank_until_header(lines, number - 1)
        case configparser.ParsingError(errors=[*errors]) if errors:
            for number, _ in errors:
                _report_bad_line(lines[number - 1], number, report)
                lines[number - 1] = ""
        case _:
            raise InvariantError(
                f"configparser raised what it is not known to raise: {error!r}"
            ) from error


def _blank_until_header(lines: list[str], start: int) -> None:
    for index in range(start, len(lines)):
        if _HEADER.match(lines[index].strip()):
            return
        lines[index] = ""


def _report_bad_line(line: str, number: int, report: Report) -> None:
    text = line.strip()
    if text.startswith("["):
        message = "is not a section header"
    elif text.startswith("="):
        message = "has no key before the ="
    else:
        message = "has no ="
    report.add(f"`{quoted_line(line)}` {message}", line=number, expected=_SYNTAX_EXPECTED)


def _sections(recorder: _Recorder, lines: list[str], report: Report) -> tuple[Section, ...]:
    found = []
    for marked, (number, entries) in recorder.sections.items():
        name = marked.rpartition(_MARK)[2]
        header = lines[number - 1].strip()
        # configparser reads `[model:a] # main` and `[model:a]]` up to the last bracket and forgets
        # the rest.
        if header != f"[{marked}]":
            report.add(
                f"`{quoted_line(header)}` goes on after the section's name",
                line=number,
                expected=f"[{quoted(name)}] alone on its line",
            )
        found.append(Section(name, number, _entries(entries), _MARK in marked))
    return tuple(found)


def _entries(recorded: _Recorded) -> tuple[Entry, ...]:
    return tuple(
        Entry(marked.rpartition(_MARK)[2], str(value), recorded.line_of[marked], _MARK in marked)
        for marked, value in recorded.items()
    )
