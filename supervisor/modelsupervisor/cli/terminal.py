"""What is shown on a terminal has no power over it: the words of models, requests and exceptions are shown, never obeyed."""

from __future__ import annotations

import sys


def one_line(text: str) -> str:
    """`text` as one line that a terminal shows as it is: a model's answer must not move the
    cursor or break the columns."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def output_line(text: str) -> str:
    """A line of output: as `one_line`, but a tab stays what it is."""
    return "\t".join(one_line(part) for part in text.split("\t"))


def on_terminal() -> bool:
    """Whether standard output is a terminal; a closed one is not."""
    return sys.stdout is not None and sys.stdout.isatty()
