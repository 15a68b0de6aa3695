"""How a mistake is worded: one line a problem, the value shown as the operator wrote it, secrets
never.

A file can hold anything, so whatever is quoted from it is made printable and shortened here: a
report must not move the cursor of a terminal or become two lines in a log. A value is a secret when
its key says so, whether or not the key is valid: an operator who writes `API_KEY = …` and forgets
`env.` has made a mistake, and must not also have published a key.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from modelsupervisor.config.settings import Settings
from modelsupervisor.errors import Problem

MASK = "****"
_SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_LONGEST_QUOTE = 80
_COMMENT_HINT = "if a comment was meant, it stands on a line of its own"


def is_secret(key: str) -> bool:
    """True where the value of `key` is masked wherever it is shown."""
    return any(word in key.upper() for word in _SECRET_WORDS)


def quoted(text: str) -> str:
    """`text` on one printable line of bounded length."""
    shown = printable(text)
    return shown if len(shown) <= _LONGEST_QUOTE else shown[: _LONGEST_QUOTE - 1] + "…"


def printable(text: str) -> str:
    """`text` on one printable line, whole: what a path needs, since a shortened one is of no use to
    anyone.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted_line(line: str) -> str:
    """A whole line that did not parse. It has no key, so its first word decides what may be shown
    of the rest.
    """
    text = line.strip()
    if is_secret(text):
        first = re.split(r"[\s:=]", text, maxsplit=1)[0]
        return f"{quoted(first)} {MASK}"
    return quoted(text)


def nearest(wrong: str, right: Iterable[str]) -> str | None:
    """The name among `right` that `wrong` was probably meant to be; letter case is the likeliest
    slip.
    """
    folded = {name.casefold(): name for name in right}
    close = difflib.get_close_matches(wrong[:128].casefold(), list(folded), n=1)
    return folded[close[0]] if close else None


class Report:
    """The mistakes found so far in one file, in the order found. `file` is named as the operator
    named it.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def add(
        self,
        message: str = "",
        *,
        line: int = 0,
        section: str = "",
        key: str = "",
        value: str = "",
        expected: str = "",
    ) -> None:
        """Record one mistake; everything quoted from the file goes in as it is and is made
        presentable here.
        """
        if re.search(r"\s[#;]", value):
            # Inline comments do not exist here, so `workers = 2  # two` has the value "2  # two".
            message = f"{message}; {_COMMENT_HINT}" if message else _COMMENT_HINT
        self.problems.append(
            Problem(
                file=printable(self.file),
                line=line,
                section=quoted(section),
                key=quoted(key),
                value=MASK if value and is_secret(key) else quoted(value),
                expected=printable(expected),
                message=printable(message),
            )
        )

    def in_order(self) -> tuple[Problem, ...]:
        """The mistakes as they follow each other in the file; what has no line comes last."""
        return tuple(sorted(self.problems, key=lambda problem: problem.line or 1 << 30))


def model_problem(
    settings: Settings,
    model: str,
    key: str,
    *,
    value: str = "",
    expected: str = "",
    message: str = "",
) -> Problem:
    """A mistake in a setting of a loaded model that only the machine shows (such as a CPU that we
    may not use).
    """
    line = next((m.line for m in settings.models if m.name == model), 0)
    return Problem(
        file=printable(settings.source),
        line=line,
        section=f"model:{model}",
        key=key,
        value=MASK if value and is_secret(key) else quoted(value),
        expected=expected,
        message=message,
    )
