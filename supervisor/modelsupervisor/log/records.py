"""Lines that are records: JSON objects, and the metrics of MMS. Pure.

What is accepted here goes into events as it is or as fields, so it has to mean the same to every reader of the log. A line that is
not quite a record is a plain line, and nothing of it is lost.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

MOST_DEPTH = 16  # objects and lists within each other

_LEVEL_KEYS = ("level", "levelname", "severity", "lvl", "log.level")
_LEVEL_WORDS = {
    **dict.fromkeys(("TRACE", "DEBUG", "INFO", "INFORMATION", "NOTICE", "NOTSET"), "info"),
    **dict.fromkeys(("WARN", "WARNING"), "warning"),
    **dict.fromkeys(("ERROR", "ERR", "EXCEPTION", "CRITICAL", "CRIT", "FATAL"), "error"),
    **dict.fromkeys(("ALERT", "EMERGENCY", "PANIC"), "error"),
}
# bunyan's and pino's
_LEVEL_NUMBERS = {10: "info", 20: "info", 30: "info", 40: "warning", 50: "error", 60: "error"}
_MEMBER = re.compile(rb'"[ \t\r]*:')


def json_level(line: bytes) -> str | None:
    """The level that a line of JSON gives, "" where it gives none; None for what is not one object or not fit to be embedded.

    Unfit are NaN and the like, objects deeper than MOST_DEPTH and such as give a key twice: readers disagree about those.
    """
    if not line.rstrip().endswith(b"}"):
        return None
    try:
        content = msgspec.json.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    flat = line.count(b"{") == 1 and b"[" not in line
    members = len(content) if flat else _count_members(content)
    if members is None or (line.count(b":") != members and _repeats(line, members)):
        return None
    return _level_of(content)


def loose_level(line: bytes) -> str:
    """The level of what Python alone takes for an object, with NaN or a key twice: unfit to be embedded, not to be heard."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return _level_of(content) if isinstance(content, dict) else ""


def _level_of(content: dict[str, Any]) -> str:
    if content.get("level").__class__ in (int, float):
        return _LEVEL_NUMBERS.get(content["level"], "")
    for key in _LEVEL_KEYS:
        word = content.get(key)
        if isinstance(word, str) and word.upper() in _LEVEL_WORDS:
            return _LEVEL_WORDS[word.upper()]
    return ""


def _repeats(line: bytes, members: int) -> bool:
    """Whether a key is given twice: each member has a colon behind a quote; where texts have such pairs too, the slow way tells."""
    return len(_MEMBER.findall(line)) != members and _has_double_key(line)


def _count_members(content: Any) -> int | None:
    """Of all objects in it together; None where it is too deep."""
    total = 0
    nested = [content]
    for _ in range(MOST_DEPTH):
        total += sum(len(each) for each in nested if isinstance(each, dict))
        inner = [each.values() if isinstance(each, dict) else each for each in nested]
        nested = [value for values in inner for value in values if isinstance(value, (dict, list))]
        if not nested:
            return total
    return None


def _has_double_key(line: bytes) -> bool:
    found = []

    def compare(pairs: list[tuple[str, Any]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            found.append(True)

    json.loads(line, object_pairs_hook=compare)
    return bool(found)


_METRIC = re.compile(
    r"""\[METRICS\](?P<name>[^|]{1,256})\.(?P<unit>[^.:|]{1,64}):
    (?P<value>[-+]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][-+]?[0-9]{1,4})?)
    \|\#(?P<dimensions>[^|]*)
    \|\#hostname:(?P<host>[^,|]+),(?P<time>[0-9]{1,12})(?:,(?P<request_id>.+))?""",
    re.VERBOSE | re.DOTALL,
)


def parse_metric(line: bytes) -> dict[str, Any] | None:
    """What a line of MMS's metrics says, `[METRICS]name.unit:value|#Dim:val,Dim:val|#hostname:h,epoch_s[,request-id]`, or None."""
    try:
        found = _METRIC.fullmatch(line.decode())
    except UnicodeDecodeError:
        return None
    if found is None or not math.isfinite(float(found["value"])):
        return None
    pairs = [each.partition(":") for each in found["dimensions"].split(",") if each]
    if not all(name and colon for name, colon, _ in pairs):
        return None
    metric = {
        "name": found["name"],
        "unit": found["unit"],
        "value": float(found["value"]),
        "dimensions": {name: text for name, _, text in pairs},
        "host": found["host"],
        "time": int(found["time"]),
    }
    return metric | {"request_id": found["request_id"]} if found["request_id"] else metric
