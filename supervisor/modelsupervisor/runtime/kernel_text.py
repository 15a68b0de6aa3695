"""Small files of /sys and /proc as text, and the kernel's lists of CPUs. None for whatever is not
there or not as the kernel writes it: the callers decide what they assume instead.
"""

from __future__ import annotations

LARGEST_FILE = 1024 * 1024  # bytes; a mountinfo of a thousand mounts is a tenth of it
MOST_CPUS = 1 << 16  # the kernel's own limit is 8192; a list beyond it is not one


def read_text(path: str) -> str | None:
    """The file's text without white space at its ends; None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(LARGEST_FILE).strip()
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return None


def whole_number(text: str | None) -> int | None:
    """A number as the kernel writes it, perhaps negative; None for anything else."""
    digits = (text or "").removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        return None
    return int(text or "")


def counted_in(text: str | None, name: str) -> int | None:
    """The number of the line `name 12` in a file of such lines; None where there is none."""
    for line in (text or "").splitlines():
        first, _, rest = line.partition(" ")
        if first == name:
            return whole_number(rest.strip())
    return None


def cpu_list(text: str | None) -> frozenset[int] | None:
    """`0-3,8` as a set; None for an empty list and for what is none."""
    cpus: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.strip().partition("-")
        low, high = whole_number(first), whole_number(last if dash else first)
        if low is None or high is None or not 0 <= low <= high < MOST_CPUS:
            return None
        cpus.update(range(low, high + 1))
    return frozenset(cpus)
