"""`load_settings`: the one way from a configuration file to `Settings`.

The file is read to its end whatever is wrong with it; each mistake goes into the report, and only
when the report is empty are settings made. A value that is wrong is left out of further checks, so
that one mistake is one line of the report.
"""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Mapping
from functools import partial

import msgspec

from modelsupervisor.config.combinations import ModelSection, Value, check_combinations
from modelsupervisor.config.handlers import ModelArchive, ModelFolder, handler_of, look_into
from modelsupervisor.config.ini import Entry, Section, read_sections
from modelsupervisor.config.keys import ENV_PREFIX, MODEL_KEYS, SUPERVISOR_KEYS, Key
from modelsupervisor.config.names import MODEL_NAME, MODEL_NAME_EXPECTED
from modelsupervisor.config.paths import PathType, is_archive
from modelsupervisor.config.reports import Report, nearest, quoted
from modelsupervisor.config.settings import ModelSettings, Settings, SupervisorSettings
from modelsupervisor.config.values import BadValueError
from modelsupervisor.errors import ConfigurationError

SUPERVISOR = "supervisor"
MODEL_PREFIX = "model:"
_SECTIONS_EXPECTED = "[supervisor] or [model:NAME]"

_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What an operator writes who means env.NAME: `API_URL`, `ENV.API_URL`, `env_API_URL`, `env`.
_VARIABLE_MEANT = re.compile(r"(?:(?i:env)[._:]?)?(?P<name>(?:[A-Z_][A-Z0-9_]*)?)")
_LONGEST_VARIABLE = 128 * 1024 - 1  # bytes of NAME=value; MAX_ARG_STRLEN of exec less the final NUL


def load_settings(path: str, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the file at `path`.

    `environ` is what the models' processes will inherit (None: the environment of this process).
    Raises ConfigurationError with every mistake of the file, in the order of its lines, and nothing
    else.
    """
    report = Report(path)
    sections = read_sections(path, report)
    if sections is None:
        raise ConfigurationError(report.in_order())
    syntax_is_clean = not report.problems
    source = os.path.abspath(path)
    reader = _Reader(report, os.path.dirname(source), os.environ if environ is None else environ)
    supervisor = SupervisorSettings()
    models: list[ModelSettings] = []
    for section in sections:
        if section.name == SUPERVISOR:
            supervisor = reader.supervisor(section) or supervisor
        elif section.name.startswith(MODEL_PREFIX):
            model = reader.model(section)
            if model is not None:
                models.append(model)
        else:
            _report_unknown_section(section, report)
    _report_missing_models(sections, syntax_is_clean, report)
    _report_equal_names(sections, report)
    if report.problems:
        raise ConfigurationError(report.in_order())
    return Settings(source=source, supervisor=supervisor, models=tuple(models))


class _Reader:
    """Turns sections into settings; `folder` is where relative paths start."""

    def __init__(self, report: Report, folder: str, environ: Mapping[str, str]) -> None:
        self.report = report
        self.folder = folder
        self.environ = environ

    def supervisor(self, section: Section) -> SupervisorSettings | None:
        found = len(self.report.problems)
        values = self._values(section, section.entries, SUPERVISOR_KEYS)
        self._check_group(section, values)
        self._check_log(section, values)
        if len(self.report.problems) > found:
            return None
        return msgspec.convert(_plain(values), SupervisorSettings)

    def model(self, section: Section) -> ModelSettings | None:
        found = len(self.report.problems)
        name = section.name.removeprefix(MODEL_PREFIX)
        if not MODEL_NAME.fullmatch(name):
            self.report.add(
                f"{quoted(name)!r} cannot be a model's name" if name else "the model has no name",
                line=section.line,
                section=section.name,
                expected=MODEL_NAME_EXPECTED,
            )
        variables = [entry for entry in section.entries if entry.key.startswith(ENV_PREFIX)]
        others = tuple(entry for entry in section.entries if not entry.key.startswith(ENV_PREFIX))
        values = self._values(section, others, MODEL_KEYS)
        environment = self._environment(section, variables)
        check_combinations(
            ModelSection(
                *(section, values, environment, self.environ),
                *(partial(self._add, section), self.report),
            )
        )
        handler = self._handler(section, values)
        if len(self.report.problems) > found or handler is None:
            return None
        env = {name: entry.value for name, entry in environment.items()}
        plain = {
            **_plain(values),
            "name": name,
            "handler": handler,
            "archive": is_archive(str(values["path"].value)),
            "env": env,
            "line": section.line,
        }
        return msgspec.convert(plain, ModelSettings)

    def _values(
        self, section: Section, entries: tuple[Entry, ...], keys: tuple[Key, ...]
    ) -> dict[str, Value]:
        """The value of each key that is right or has a default; mistakes go into the report."""
        table = {key.name: key for key in keys}
        values = {
            key.name: Value(key.type.parse(key.default), None)
            for key in keys
            if key.default is not None
        }
        for entry in entries:
            key = table.get(entry.key)
            if key is None:
                self._unknown_key(section, entry, keys)
                continue
            values.pop(entry.key, None)
            try:
                values[entry.key] = Value(self._parse(key, entry.value), entry)
            except BadValueError as bad:
                expected = bad.expected or key.type.expected
                self._add(section, entry, bad.message, expected)
        return values

    def _parse(self, key: Key, text: str) -> object:
        if not text:
            raise BadValueError("the value is missing")
        _check_one_line(text)
        value = key.type.parse(text)
        return key.type.resolve(self.folder, text) if isinstance(key.type, PathType) else value

    def _unknown_key(self, section: Section, entry: Entry, keys: tuple[Key, ...]) -> None:
        here = [key.name for key in keys]
        elsewhere = MODEL_KEYS if keys is SUPERVISOR_KEYS else SUPERVISOR_KEYS
        if keys is SUPERVISOR_KEYS and entry.key.startswith(ENV_PREFIX):
            message = "belongs into a section [model:NAME]"
        elif any(key.name == entry.key for key in elsewhere):
            message = (
                f"belongs into {'[supervisor]' if keys is MODEL_KEYS else 'a section [model:NAME]'}"
            )
        else:
            message = "there is no such key"
            near = nearest(entry.key, here)
            if keys is MODEL_KEYS:
                here.append("env.NAME")
                variable = _VARIABLE_MEANT.fullmatch(entry.key)
                near = f"env.{variable['name'] or 'NAME'}" if variable else near
            if near is None:
                self._add(section, entry, message, f"one of {', '.join(here)}")
                return
            message += f"; did you mean {near}?"
        self._add(section, entry, message)

    def _environment(self, section: Section, entries: list[Entry]) -> dict[str, Entry]:
        """The entries `env.NAME` that are right, by NAME."""
        environment = {}
        for entry in entries:
            name = entry.key.removeprefix(ENV_PREFIX)
            try:
                if not _VARIABLE_NAME.fullmatch(name):
                    raise BadValueError(
                        "not the name of an environment variable",
                        "env.NAME of letters, digits and _",
                    )
                _check_one_line(entry.value)
                if len(f"{name}={entry.value}".encode()) > _LONGEST_VARIABLE:
                    raise BadValueError(
                        "longer than the 128KiB that an environment variable can have"
                    )
            except BadValueError as bad:
                self._add(section, entry, bad.message, bad.expected)
            else:
                environment[name] = entry
        return environment

    def _check_log(self, section: Section, values: dict[str, Value]) -> None:
        to = values.get("log_to")
        given = any(entry.key == "log_file" for entry in section.entries)
        if to is not None and to.entry is not None and to.value == () and not given:
            self._add(section, to.entry, "there would be no log at all", "log_file beside it")

    def _check_group(self, section: Section, values: dict[str, Value]) -> None:
        group, mode = values.get("socket_group"), values.get("socket_mode")
        if group is not None and group.entry is not None:
            try:
                grp.getgrnam(str(group.value))
            except (KeyError, ValueError):
                self._add(section, group.entry, "this machine has no such group")
        if mode is None or not isinstance(mode.value, int):
            return
        given = any(entry.key == "socket_group" for entry in section.entries)
        if mode.entry is not None and mode.value & 0o060 and not given:
            self._add(section, mode.entry, "gives rights to a group, but socket_group names none")
        if group is not None and group.entry is not None and not mode.value & 0o020:
            # Connecting needs write permission: the group could look at the sockets and use none.
            self._add(
                section,
                group.entry,
                "the group could not use the sockets",
                "socket_mode = 0660 with it",
            )

    def _handler(self, section: Section, values: dict[str, Value]) -> str | None:
        """The handler of the model, the file's own or the manifest's; None where path or handler is
        wrong.
        """
        keys = {entry.key for entry in section.entries}
        if "path" not in keys and not section.repeated:
            self.report.add(
                "the key path is missing",
                line=section.line,
                section=section.name,
                expected="path = the model's folder or archive",
            )
        path, handler = values.get("path"), values.get("handler")
        if path is None or ("handler" in keys and handler is None):
            return None
        model = self._look_into(section, path, values.get("max_archive_size"))
        if model is None:
            return None
        try:
            return handler_of(model, None if handler is None else str(handler.value))
        except BadValueError as bad:
            expected = bad.expected or _HANDLER_KEY.type.expected
            if handler is not None and handler.entry is not None:
                self._add(section, handler.entry, bad.message, expected)
            else:
                self.report.add(
                    bad.message, line=section.line, section=section.name, expected=expected
                )
        return None

    def _look_into(
        self, section: Section, path: Value, largest: Value | None
    ) -> ModelFolder | ModelArchive | None:
        if largest is None or path.entry is None:
            return None
        assert isinstance(largest.value, int)
        try:
            return look_into(str(path.value), largest.value)
        except BadValueError as bad:
            self._add(section, path.entry, bad.message, bad.expected)
        return None

    def _add(self, section: Section, entry: Entry, message: str, expected: str = "") -> None:
        self.report.add(
            message,
            line=entry.line,
            section=section.name,
            key=entry.key,
            value=entry.value,
            expected=expected,
        )


_HANDLER_KEY = next(key for key in MODEL_KEYS if key.name == "handler")


def _check_one_line(text: str) -> None:
    if "\n" in text:
        # Nearly always a key that was indented by accident and has silently become part of the
        # value above it.
        raise BadValueError(
            "the next line is indented, and so continues this value", "a value on one line"
        )


def _plain(values: dict[str, Value]) -> dict[str, object]:
    return {name: value.value for name, value in values.items()}


def _report_unknown_section(section: Section, report: Report) -> None:
    name = section.name.strip()
    kind, _, rest = name.replace(":", " ").replace(".", " ").partition(" ")
    near = nearest(kind, ("supervisor", "model"))
    meant = None
    if near == "supervisor":
        meant = "[supervisor]"
    elif near == "model" and MODEL_NAME.fullmatch(rest.strip()):
        meant = f"[model:{rest.strip()}]"
    elif near is None and MODEL_NAME.fullmatch(name):
        meant = f"[model:{name}]"
    message = "there is no such section"
    if meant:
        report.add(f"{message}; did you mean {meant}?", line=section.line, section=section.name)
    else:
        report.add(message, line=section.line, section=section.name, expected=_SECTIONS_EXPECTED)


def _report_missing_models(
    sections: tuple[Section, ...], syntax_is_clean: bool, report: Report
) -> None:
    """No model at all; unless a header with a mistake in it was meant to be one, and is reported as
    that.
    """
    if all(section.name == SUPERVISOR for section in sections) and syntax_is_clean:
        what = "has no model" if sections else "says nothing"
        report.add(what, expected="at least one section [model:NAME]")


def _report_equal_names(sections: tuple[Section, ...], report: Report) -> None:
    """Names that some file systems take for one; `names.py` says why these are the only ones."""
    first: dict[str, Section] = {}
    for section in sections:
        if not section.name.startswith(MODEL_PREFIX) or section.repeated:
            continue
        other = first.setdefault(section.name.casefold(), section)
        if other is not section:
            report.add(
                f"differs from [{quoted(other.name)}] of line {other.line} in letter case only, "
                "so that their "
                "sockets may be the same file",
                line=section.line,
                section=section.name,
            )
