"""How the text of a value becomes a value, and back. Pure: nothing here looks at the machine.

A `ValueType` has a name for the documentation, a phrase for "expected …" and two functions: `parse`
turns the stripped, non-empty text into a value or raises `BadValueError`; `show` turns a value into
text that parses to the same value. Units are demanded because nobody can
tell from `stop_timeout = 10` whether its author thought of seconds, as most servers do, or of
milliseconds, as some do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

# A number is short: int() of a hostile megabyte of digits is quadratic before 3.11 and an exception
# after.
_NUMBER = re.compile(r"[0-9]{1,18}")
_QUANTITY = re.compile(r"(?P<sign>[-+]?)(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-z]*)")
_RANGE = re.compile(r"(?P<first>[0-9]{1,6})(?:-(?P<last>[0-9]{1,6}))?")
_LONGEST_QUANTITY = 32  # characters; no sensible duration or size comes near

_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

CPU_LIMIT = 8192  # CONFIG_NR_CPUS of the largest x86-64 kernel configuration
GPU_LIMIT = 128  # NVIDIA's driver knows no more


class BadValueError(ValueError):
    """The text is not a value of its type; `expected` replaces the type's own phrase."""

    def __init__(self, message: str = "", expected: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected


def reason(error: OSError | ValueError) -> str:
    """Why the operating system refused, in its words; os.open's ValueError is a NUL in the path."""
    if isinstance(error, ValueError):
        return "the path holds a NUL character"
    return error.strerror or str(error)


@dataclass(frozen=True)
class ValueType:
    """One kind of value: its name, what is expected of its text, and the way there and back."""

    name: str
    expected: str
    parse: Callable[[str], object]
    show: Callable[[object], str] = str


def whole_number(low: int, high: int) -> ValueType:
    """A whole number from `low` to `high`, both included."""

    def parse(text: str) -> int:
        if not _NUMBER.fullmatch(text):
            raise BadValueError
        number = int(text)
        if not low <= number <= high:
            raise BadValueError
        return number

    return ValueType("number", f"a whole number from {low} to {high}", parse)


def thread_count(high: int) -> ValueType:
    """`auto`, or a number of threads from 1 to `high`."""
    number = whole_number(1, high)

    def parse(text: str) -> object:
        return text if text == "auto" else number.parse(text)

    return ValueType("auto | number", f"auto, or {number.expected}", parse)


def choice(*words: str) -> ValueType:
    """Exactly one of `words`."""

    def parse(text: str) -> str:
        if text not in words:
            raise BadValueError
        return text

    expected = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    return ValueType(" | ".join(words), expected, parse)


def destinations(*words: str) -> ValueType:
    """`auto`, `none`, or some of `words` with commas between, as a tuple: ("auto",), () or the words."""
    expected = f"auto, none, or {' and '.join(words)} with a comma between"

    def parse(text: str) -> tuple[str, ...]:
        if text in ("auto", "none"):
            return ("auto",) if text == "auto" else ()
        parts = tuple(part.strip() for part in text.split(","))
        if not set(parts) <= set(words):
            raise BadValueError
        if len(set(parts)) < len(parts):
            raise BadValueError("one is named twice")
        return parts

    def show(value: object) -> str:
        assert isinstance(value, tuple)
        return ", ".join(value) or "none"

    return ValueType(" | ".join(("auto", "none", *words)), expected, parse, show)


def duration(longest: str = "168h") -> ValueType:
    """A time with its unit, above zero and at most `longest`, as seconds (float, whole
    milliseconds).
    """
    ceiling = _quantity(longest, _MILLISECONDS)

    def parse(text: str) -> float:
        milliseconds = _quantity(text, _MILLISECONDS)
        if milliseconds == 0:
            raise BadValueError("zero is not allowed here", _more_than_nothing(longest))
        if milliseconds > ceiling:
            raise BadValueError("too long", _more_than_nothing(longest))
        return milliseconds / 1000

    return ValueType(
        "duration", "a number and its unit, ms, s, m or h, such as 30s", parse, _show_duration
    )


def size(smallest: str, largest: str) -> ValueType:
    """A number of bytes with its unit, within the two limits, as an int."""
    floor, ceiling = _quantity(smallest, _BYTES), _quantity(largest, _BYTES)

    def parse(text: str) -> int:
        count = _quantity(text, _BYTES)
        if not floor <= count <= ceiling:
            raise BadValueError("", f"a size from {smallest} to {largest}")
        return count

    return ValueType(
        "size", "a number and its unit, B, KiB, MiB or GiB, such as 64KiB", parse, _show_size
    )


def cpu_list() -> ValueType:
    """CPU numbers and ranges, `0-3,6`, as a tuple in the order written: the order in which workers
    take them.
    """
    return ValueType("CPU list", "CPU numbers and ranges such as 0-3,6", _parse_cpus, _show_cpus)


def cpu_choice() -> ValueType:
    """`auto`, `none`, or a CPU list."""

    def parse(text: str) -> object:
        return text if text in ("auto", "none") else _parse_cpus(text)

    expected = "auto, none, or CPU numbers and ranges such as 0-3,6"
    return ValueType("auto | none | CPU list", expected, parse, _show_cpus)


def gpu_list() -> ValueType:
    """GPU numbers and ranges, `0,2-3`, as a tuple in the order written: the order in which workers take them."""

    def parse(text: str) -> tuple[int, ...]:
        return _parse_numbers(text, "GPU", GPU_LIMIT)

    return ValueType("GPU list", "GPU numbers and ranges such as 0,2-3", parse, _show_cpus)


def truth() -> ValueType:
    """`true` or `false`, and no other words for them."""
    words = choice("true", "false")

    def parse(text: str) -> bool:
        return words.parse(text) == "true"

    return ValueType(words.name, "true or false", parse, lambda value: "true" if value else "false")


def socket_mode() -> ValueType:
    """The permission bits of a socket, as an int: read and write for the owner, perhaps for the
    group.

    The run directory lets nobody else in, so a bit for the others would be a promise that it does
    not keep.
    """

    def parse(text: str) -> int:
        if not re.fullmatch(r"0?[0-7]{3}", text):
            raise BadValueError
        mode = int(text, 8)
        if mode & 0o111:
            raise BadValueError("a socket has no execute bit")
        if mode & 0o007:
            raise BadValueError("the run directory lets only the owner and socket_group in")
        if mode & 0o600 != 0o600:
            raise BadValueError("the supervisor itself has to read and write it")
        return mode

    expected = "octal permission bits for owner and group, such as 0600 or 0660"
    return ValueType("octal mode", expected, parse, lambda value: f"{value:04o}")


def _more_than_nothing(longest: str) -> str:
    return f"more than zero and at most {longest}"


def _quantity(text: str, units: dict[str, int]) -> int:
    """The number of smallest units that `text` is; raises BadValueError that says what is wrong
    with it.
    """
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST_QUANTITY else None
    if match is None:
        raise BadValueError
    if match["sign"] == "-":
        raise BadValueError("a negative number")
    if not match["unit"]:
        raise BadValueError("the unit is missing")
    if match["unit"] not in units or match["sign"]:
        raise BadValueError
    exact = Fraction(match["number"]) * units[match["unit"]]
    if exact.denominator != 1:
        smallest = next(iter(units))
        raise BadValueError(f"not a whole number of {smallest}")
    return int(exact)


def _show_in(count: int, units: dict[str, int]) -> str:
    """`count` in the largest unit that divides it; 90 s stays 90s, 120 s becomes 2m."""
    unit = max((unit for unit in units if count % units[unit] == 0), key=units.__getitem__)
    return f"{count // units[unit]}{unit}"


def _show_duration(value: object) -> str:
    assert isinstance(value, (int, float))
    return _show_in(round(value * 1000), _MILLISECONDS)


def _show_size(value: object) -> str:
    assert isinstance(value, int)
    return _show_in(value, _BYTES)


def _parse_cpus(text: str) -> tuple[int, ...]:
    return _parse_numbers(text, "CPU", CPU_LIMIT)


def _parse_numbers(text: str, what: str, limit: int) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise BadValueError
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if last < first:
            raise BadValueError(f"the range {part.strip()} runs backwards")
        if last >= limit:
            raise BadValueError(f"no machine has a {what} {last}")
        numbers.extend(range(first, last + 1))
        # Checked part by part, so that a line of a thousand full ranges does not become millions of
        # numbers first.
        if len(set(numbers)) != len(numbers):
            raise BadValueError(f"a {what} is named twice")
    return tuple(numbers)


def _show_cpus(value: object) -> str:
    if isinstance(value, str):
        return value
    assert isinstance(value, tuple)
    runs: list[list[int]] = []
    for cpu in value:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
