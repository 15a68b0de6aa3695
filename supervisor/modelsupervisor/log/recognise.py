"""What the lines of a worker say about themselves: their level, and whether they are metrics, JSON or a traceback. Pure.

Most lines say nothing and there may be millions of them, so `map` matches one regular expression against the head of each, and a
list of lines of which none matches is given back as it came. What the expression costs is decided by its first character class
and by its number of groups, some 3 ns a match each: hence it has one empty group a level and place, and `lastindex` tells which
was passed. Its repetitions are bounded, and one ends with a character that the next cannot begin with, so that no line, however
long, costs more than some 30 µs.

A level counts only where a logging library puts it: first, or after a date or time and a few names. In the middle of a sentence the
word is a word. Nothing is below info: a model's debug output was asked for by whoever turned it on in the model.

A traceback is one event and is held until a line shows that it has ended. What is held has two parts: the lines that belong to it
for certain, and behind them those that belong to it only if the right one follows (a blank line, a sentence, a header). If it does
not follow they go out as plain lines. No line that is held is looked at again, so the cost stays linear whatever is sent.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from modelsupervisor.log.records import json_level, loose_level, parse_metric

MOST_ERROR = 1000  # characters of an exception line that `error` repeats


class Run(NamedTuple):
    """Consecutive lines of one level and kind, without their newlines.

    `lines`: any number of plain lines (kind ""), one line for "metric" and "json", the whole block for "traceback".
    `extra`: {"metric": {...}} for a metric; {"error", "lines"} for a traceback, `error` empty where the block holds no exception
    line because it was cut short; None for the others.
    """

    level: str
    kind: str
    lines: list[bytes]
    extra: dict[str, Any] | None


# The head of a line. In these texts @info, @warning, @error and @other stand for an empty group of that meaning.

_END = r"(?:[:\s|\])>]|\Z)"  # behind a level: INFORMATION and ERRORS are other words
_DATED_END = r"(?:[:\s|\])>/-]|\Z)"  # Celery writes INFO/MainProcess
# A repetition never needs to give back, since what follows begins with another character. From Python 3.11 on that can be said,
# and a dated line without a level then costs 0.7 µs instead of 1.2.
_KEEP = "+" if sys.version_info >= (3, 11) else ""
# Behind a date or time: all of fraction, zone, pid, dash, pipe and bracket up to the next word, at one charset test a character.
_BETWEEN = r"[0-9:.,\ \t|()\[\]/+-]"
_DATE = rf"""[0-9][0-9](?:[0-9][0-9][-/][0-9][0-9][-/][0-9][0-9]T?|:[0-9][0-9]:){_BETWEEN}{{1,60}}{_KEEP}
(?:Z{_BETWEEN}{{1,40}}{_KEEP}|)(?=[A-Za-z_<])"""
# Names of loggers, files, threads. Up to three where a dash, a pipe or a bracket follows; before a mere space one, and another that
# begins with a capital (MainThread): "the last ERROR" is prose, and so is "no ERROR".
# `(?:|X)` is a lazy `X?` that costs 20 ns less.
_NAME_REST = rf"[\w./:<>@\#-]{{0,80}}{_KEEP}"
_NAME = rf"[A-Za-z_<]{_NAME_REST}"
_SEPARATED = rf"(?:[ \t]{{1,40}}{_KEEP}[-|\[(]|[|\[(\])]){_BETWEEN}{{0,40}}{_KEEP}"
_SPACED = rf"[ \t|\[(\])]{_BETWEEN}{{0,40}}{_KEEP}"
_PROSE = r"(?:[Aa](?:ny?)?|[Ff]or|[Ii][ns]|[Nn]ot?|[Oo][fn]|[Tt](?:he|o)|[Ww](?:as|ith))\ [A-Za-z]"
_FIELD = rf"{_NAME}{_SEPARATED}"
_NAMES = rf"""(?:|{_FIELD}(?:|{_FIELD}(?:|{_FIELD})))
(?:|(?!{_PROSE}){_NAME}{_SPACED}(?:|[A-Z]{_NAME_REST}{_SPACED}))"""


def _level(end: str) -> str:
    """A level in upper case; or in lower case, padded, within brackets, as structlog's console has it."""

    def one_of(upper: str, lower: str, meaning: str) -> str:
        words = [word + end for word in upper.split()]
        words += [rf"{word[0]}(?<=\[{word[0]}){word[1:]}[ ]{{0,12}}\]" for word in lower.split()]
        return f"(?:{'|'.join(words)})@{meaning}"

    informed = one_of(
        "INFO DEBUG NOTICE NOTSET TRACE SUCCESS", "info debug notice notset trace", "info"
    )
    warned = one_of("WARN(?:ING)?", "warn(?:ing)?", "warning")
    failed = one_of("ERROR CRITICAL FATAL EXCEPTION", "error exception critical fatal", "error")
    return f"(?:{informed}|{warned}|{failed})"


_DATED = rf"{_DATE}{_NAMES}{_level(_DATED_END)}"
# glog, absl and PyTorch: the level's letter before the date.
_GLOG = r"[0-9]{4}(?:[0-9]{4})?\ [0-9][0-9]:[0-9][0-9]:[0-9][0-9]\.[0-9]"
# dmlc, hence MXNet: the time and a place in the source. Its warnings are told by how the text begins.
_DMLC = r"""[0-9][0-9]:[0-9][0-9]:[0-9][0-9]\]\ [^\s:]{1,200}:[0-9]{1,6}:\ (?:
W(?:arning|ARNING)@warning|(?:E(?:rror|RROR)|F(?:atal|ATAL)|C(?:RITICAL|heck\ failed))@error|@info)"""
_HEADER = r"Traceback\ \(most\ recent\ call\ last\):[ \t\r]{0,4}\Z"
_GROUP_HEADER = r"[ ]{1,200}\+\ Exception\ Group\ Traceback\ \(most\ recent\ call\ last\):"
# The alternatives begin with a character each: one that a line does not begin with is passed over without being entered.
_HEAD = rf"""(?=[\[0-9<(\{{\ *ACDEFINSTWt\x1b])(?:
 {_DATED}
|\[(?:{_DMLC}|{_DATED}|I{_GLOG}@info|W{_GLOG}@warning|[EF]{_GLOG}@error|(?:METRICS\]|\x1b\[)@other)
|[\[<(][ ]{{0,12}}{_level(_END)}
|(?:I(?:NFO{_END}|{_GLOG})|DEBUG{_END}|NOT(?:ICE|SET){_END}|TRACE{_END})@info
|W(?:ARN(?:ING)?{_END}|{_GLOG})@warning
|E(?:RROR{_END}|XCEPTION{_END}|xception\ i(?:n\ thread|gnored\ in)[:\ ]|{_GLOG})@error
|F(?:ATAL{_END}|atal\ Python\ error:|{_GLOG})@error
|(?:CRITICAL{_END}|Segmentation\ fault\b|Aborted!?\s{{0,4}}(?:\(core\ dumped\)\s{{0,4}})?\Z
  |terminate\ called\ |\*\*\*\ Error\ in\ )@error
|(?:{_HEADER}|{_GROUP_HEADER}|\{{|\x1b\[)@other)"""


def _compile(text: str) -> tuple[Callable[[bytes], re.Match[bytes] | None], dict[int | None, str]]:
    """The text's match and what its groups mean, by `lastindex`."""
    meanings: dict[int | None, str] = {None: "warning"}  # without groups: _python_warning

    def group(mark: re.Match[str]) -> str:
        meanings[len(meanings)] = mark[1]
        return "()"

    return re.compile(re.sub("@([a-z]+)", group, text).encode(), re.VERBOSE).match, meanings


_head, _MEANINGS = _compile(_HEAD)
# path.py:12: UserWarning: text. A line of any beginning can be one, so that these are looked for in all lines at once.
_WARNING_MARK = b"Warning: "
_python_warning = re.compile(rb"(?:/[^:]{1,300}|[^\s:]{1,300}):[0-9]{1,7}: \w{0,80}Warning: ").match
_COLOUR = re.compile(rb"\x1b\[[0-9;]{0,32}m")


def _line_pattern(text: str) -> Callable[[bytes], re.Match[bytes] | None]:
    return re.compile(text.encode(), re.VERBOSE).match


class _Step(NamedTuple):
    """A line that may follow in a traceback. It `settles` itself and what is held before it, and may name the error."""

    matches: Callable[[bytes], object]
    then: str
    settles: bool = True
    names: bool = False


_EXCEPTION = r"[A-Za-z_][\w.<>]{0,300}"  # a class of a function is module.function.<locals>.Name
_indented = _line_pattern(r"[ \t]")
_blank = _line_pattern(r"\r?\Z")
_AFTER = (
    _Step(_blank, "gap", settles=False),
    _Step(_line_pattern(r"Stack\ trace(?::|\ returned)"), "stack", settles=False),
)
_STEPS: dict[str, tuple[_Step, ...]] = {
    "header": (
        _Step(_indented, "frames"),
        _Step(_line_pattern(rf"{_EXCEPTION}:\ "), "done", names=True),
    ),
    "frames": (
        _Step(_indented, "frames"),
        # MXNetError: Traceback (most recent call last): the frames of the library come next.
        _Step(_line_pattern(rf"{_EXCEPTION}:\ {_HEADER}"), "frames", names=True),
        _Step(_line_pattern(rf"{_EXCEPTION}(?::|\s{{0,4}}\Z)"), "done", names=True),
    ),
    "group": (
        _Step(_line_pattern(rf"[ ]{{1,200}}\|\ {_EXCEPTION}(?::|\Z)"), "members", names=True),
        _Step(_line_pattern(r"[ ]{1,200}\|"), "group"),
    ),
    "members": (
        _Step(_line_pattern(r"[ ]{1,200}[|+]"), "members"),
        _Step(_blank, "gap", settles=False),
    ),
    "done": _AFTER,
    "stack": (_Step(_line_pattern(r"[ \t]{0,8}\[bt\]"), "stack"), _AFTER[0]),
    "gap": (
        _Step(
            _line_pattern(
                r"(?:During\ handling\ of\ the\ above\ exception,\ another\ exception\ occurred"
                r"|The\ above\ exception\ was\ the\ direct\ cause\ of\ the\ following\ exception):"
            ),
            "sentence",
            settles=False,
        ),
        _AFTER[1],
    ),
    "sentence": (_Step(_blank, "link", settles=False),),
    # What faulthandler writes at a fatal signal: a paragraph for each thread, and one for the extension modules
    "fatal": (
        _Step(_blank, "fatal", settles=False),
        _Step(_line_pattern(r"Python\ runtime\ state:"), "fatal", settles=False),
        _Step(_line_pattern(r"(?:Current\ t|T)hread\ 0x[0-9a-f]{1,16}\ "), "thread"),
        _Step(_line_pattern(r"Extension\ modules:"), "over"),
    ),
    "thread": (_Step(_indented, "thread"), _Step(_blank, "fatal", settles=False)),
    "over": (),
    "link": (
        _Step(_line_pattern(_HEADER), "header", settles=False),
        _Step(_line_pattern(_GROUP_HEADER), "group", settles=False),
    ),
}
_SIMPLE = ("info", "warning")  # an error may be the header of a traceback
_LOGGED_HEADER = b"Traceback (most recent call last):"  # ERROR:root:Traceback (most ...
_FATAL_HEADER = b"Fatal Python error: "


class Recogniser:
    """Of one stream, whose lines are of level `default` where they do not say better. Holds `max_block` bytes at most."""

    def __init__(self, default: str, max_block: int) -> None:
        self._default = default
        self._max = max_block
        self._state = ""  # a key of _STEPS while a traceback is open
        self._block: list[bytes] = []
        self._size = 0
        self._settled = 0  # so many lines of the block belong to the traceback for certain
        self._error = b""
        self._otherwise = default  # level of its header if it turns out to be none

    @property
    def holding(self) -> bool:
        """Lines are held back: the beginning of a traceback, or one that may go on."""
        return bool(self._block)

    @property
    def held(self) -> int:
        """Bytes of the lines that are held back."""
        return self._size

    def feed(self, lines: Sequence[bytes]) -> list[Run]:
        """What these lines give; each line comes out once, in order, now or later."""
        hits = list(map(_head, lines))
        if _WARNING_MARK in b"\n".join(lines):
            hits = [hit or _python_warning(line) for hit, line in zip(hits, lines, strict=True)]
        default = self._default
        if any(hits):
            levels = [_MEANINGS[hit.lastindex] if hit else default for hit in hits]
        else:
            levels = [default] * len(hits)
        first = levels[0] if levels else "other"
        if not self._state and first in _SIMPLE and levels.count(first) == len(levels):
            # The rule: lines of one library and of one level.
            return [Run(first, "", list(lines), None)]
        return self._sort(list(lines), hits, levels)

    def flush(self) -> list[Run]:
        """Give out what is held, as it is: nothing more came for a while, or ever will."""
        runs: list[Run] = []
        self._end(runs)
        return runs

    def _sort(self, lines: list[bytes], hits: Sequence[object], levels: Sequence[str]) -> list[Run]:
        runs: list[Run] = []
        start, count = 0, len(lines)
        while start < count:
            level = levels[start]
            if self._state:
                foreign = hits[start] is not None and level != "other"
                start += self._follows(lines[start], foreign, runs)
            elif level == "other":
                self._other(lines[start], runs)
                start += 1
            elif level == "error":
                start = self._errors(lines, levels, start, runs)
            else:
                end = start + 1
                while end < count and levels[end] == level:
                    end += 1
                _add_plain(runs, level, lines[start:end])
                start = end
        return runs

    def _errors(
        self, lines: list[bytes], levels: Sequence[str], start: int, runs: list[Run]
    ) -> int:
        """Plain lines of level error, up to one that is the header of a traceback; the number of the next line."""
        end = start
        while end < len(lines) and levels[end] == "error":
            fatal = lines[end].startswith(_FATAL_HEADER)
            if fatal or lines[end].endswith(_LOGGED_HEADER):
                if end > start:
                    _add_plain(runs, "error", lines[start:end])
                self._open("fatal" if fatal else "header", lines[end], "error")
                self._error = lines[end] if fatal else b""
                return end + 1
            end += 1
        _add_plain(runs, "error", lines[start:end])
        return end

    def _other(self, line: bytes, runs: list[Run]) -> None:
        """A line whose head shows only what it might be."""
        level, kind, extra = self._default, "", None
        if line.startswith(b"{"):
            said = json_level(line)
            if said is not None:
                level, kind = said or level, "json"
            else:
                level = loose_level(line) or level
        elif line.startswith(b"[METRICS]"):
            metric = parse_metric(line)
            if metric is not None:
                kind, extra = "metric", {"metric": metric}
        elif b"\x1b" in line[:2]:
            hit = _head(_COLOUR.sub(b"", line[:400]))
            meaning = _MEANINGS[hit.lastindex] if hit else "other"
            level = level if meaning == "other" else meaning
        else:
            self._open("group" if line.startswith(b" ") else "header", line, level)
            return
        if kind:
            runs.append(Run(level, kind, [line], extra))
        else:
            _add_plain(runs, level, [line])

    def _open(self, state: str, header: bytes, otherwise: str) -> None:
        self._state, self._block, self._size = state, [header], len(header) + 1
        self._otherwise = otherwise

    def _follows(self, line: bytes, foreign: bool, runs: list[Run]) -> bool:
        """Take the line into the open traceback, or end that because the line is none of its."""
        for step in () if foreign else _STEPS[self._state]:
            if step.matches(line):
                break
        else:
            self._end(runs)
            return False
        if self._size + len(line) >= self._max:
            self._give_out(runs)
        self._block.append(line)
        self._size += len(line) + 1
        self._state = step.then
        if step.settles:
            self._settled = len(self._block)
        if step.names:
            self._error = line
        return True

    def _give_out(self, runs: list[Run]) -> None:
        """Give out the block; the traceback stays open."""
        block, settled = self._block, self._settled
        if settled:
            error = self._error[: 4 * MOST_ERROR + 208].decode(errors="replace").strip(" \t\r|")
            extra = {"error": error[:MOST_ERROR], "lines": settled}
            runs.append(Run("error", "traceback", block[:settled], extra))
            self._otherwise = self._default
        if settled < len(block):
            _add_plain(runs, self._otherwise, block[settled:])
        self._block, self._size, self._settled, self._error = [], 0, 0, b""
        self._otherwise = self._default

    def _end(self, runs: list[Run]) -> None:
        self._give_out(runs)
        self._state = ""


def _add_plain(runs: list[Run], level: str, lines: list[bytes]) -> None:
    if runs and not runs[-1].kind and runs[-1].level == level:
        runs[-1].lines.extend(lines)
    else:
        # Where levels alternate each line is a run, and Run(...) would be a third of the cost [measured: 340 ns against 130].
        runs.append(tuple.__new__(Run, (level, "", lines, None)))
