"""Where the instance of a configuration file is: its run directory, and nothing else of the file.

`status -c FILE` and its like talk to a supervisor that runs already, and need the file only to find it. A model whose archive is
broken by now, a warm-up file that is gone, a key of another release: none of it may keep an operator from looking, or from
stopping. What is wrong with the file's form is an error still, because then nobody knows what it says of `run_dir`, and so is a
key that was probably meant to be `run_dir`; what stands twice in a model's section is neither.
"""

from __future__ import annotations

import os

from modelsupervisor.config.ini import Entry, read_sections
from modelsupervisor.config.keys import SUPERVISOR_KEYS
from modelsupervisor.config.load import SUPERVISOR
from modelsupervisor.config.paths import place_path
from modelsupervisor.config.reports import Report, nearest
from modelsupervisor.config.values import BadValueError
from modelsupervisor.errors import ConfigurationError

_KEY = "run_dir"
_PLACE = place_path()


def locate(path: str) -> tuple[str, str | None]:
    """The absolute path of the file, and the run directory that it sets, absolute; None where it sets none.

    Raises ConfigurationError for a file that cannot be read or is no INI file, and for a `run_dir` that is none.
    """
    report = Report(path)
    sections = read_sections(path, report)
    source = os.path.abspath(path)
    found = None
    for section in sections or ():
        if section.name == SUPERVISOR:
            found = _run_dir(section.entries, os.path.dirname(source), report) or found
    problems = tuple(each for each in report.in_order() if each.section in ("", SUPERVISOR))
    if problems:
        raise ConfigurationError(problems)
    return source, found


def _run_dir(entries: tuple[Entry, ...], folder: str, report: Report) -> str | None:
    """The run directory of a section, None where it sets none; what is wrong with it goes into the report."""
    known = [key.name for key in SUPERVISOR_KEYS]
    found = None
    for entry in entries:
        try:
            if entry.key == _KEY:
                found = _place(folder, entry.value)
            elif entry.key not in known and nearest(entry.key, known) == _KEY:
                raise BadValueError(f"there is no such key; did you mean {_KEY}?")
        except BadValueError as bad:
            report.add(
                bad.message,
                line=entry.line,
                section=SUPERVISOR,
                key=entry.key,
                value=entry.value,
                expected=bad.expected,
            )
    return found


def _place(folder: str, text: str) -> str:
    if not text or "\n" in text:
        raise BadValueError("is not one path", _PLACE.expected)
    return _PLACE.resolve(folder, text)
