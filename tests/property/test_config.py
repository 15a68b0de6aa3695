"""Facts about the configuration reader that hold for any file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupervisor.config import (
    ModelSettings,
    Settings,
    SupervisorSettings,
    load_settings,
    render_settings,
)
from modelsupervisor.config.ini import parse_sections
from modelsupervisor.config.keys import MODEL_KEYS, SUPERVISOR_KEYS
from modelsupervisor.config.names import MODEL_NAME
from modelsupervisor.config.reports import Report
from modelsupervisor.errors import ConfigurationError

quick = settings(derandomize=True, deadline=None, max_examples=80)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One folder for all examples, with a model, a warm-up file and a place for the file itself."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve()
        (path / "digits").mkdir()
        (path / "digits" / "service.py").write_text("")
        (path / "one.png").write_text("")
        yield path


def try_load(folder: Path, content: bytes) -> Settings | ConfigurationError:
    """What loading gives; any exception but ConfigurationError fails the test."""
    path = folder / "workers.ini"
    path.write_bytes(content)
    try:
        return load_settings(str(path), {})
    except ConfigurationError as error:
        return error


# Text that looks like a configuration far enough to get past the first check.
key_names = st.sampled_from([key.name for key in (*SUPERVISOR_KEYS, *MODEL_KEYS)])
words = st.sampled_from(
    ["", "0", "1", "auto", "none", "30s", "64KiB", "-1s", "1e9", "0-3", "digits", "service:handle"]
)
values = st.one_of(words, st.text(max_size=12))
lines = st.one_of(
    st.builds("{} = {}".format, st.one_of(key_names, st.text(max_size=8)), values),
    st.builds("env.{} = {}".format, st.text(max_size=6), values),
    st.builds("[{}]".format, st.one_of(st.just("supervisor"), st.text(max_size=8))),
    st.builds(
        "[model:{}]".format, st.one_of(st.sampled_from(["a", "b", "A"]), st.text(max_size=8))
    ),
    st.builds("{}{}".format, st.sampled_from(["", " ", "  ", "[", "=", "#", ";"]), st.text()),
)
files = st.lists(lines, max_size=20).flatmap(
    lambda some: st.sampled_from(["\n", "\r\n", "\r", "\n\n"]).map(lambda end: end.join(some))
)


@quick
@given(st.binary(max_size=400))
def test_any_bytes(folder: Path, content: bytes) -> None:
    """Arbitrary bytes give settings or a report, never another exception."""
    try_load(folder, content)


@quick
@given(files)
def test_any_text(folder: Path, text: str) -> None:
    """So does text that is nearly a configuration; each problem is one printable line in order."""
    result = try_load(folder, text.encode(errors="surrogatepass"))
    if isinstance(result, ConfigurationError):
        assert result.problems
        assert len(str(result).split("\n")) == len(result.problems) + 1
        assert all(str(problem).isprintable() for problem in result.problems)
        found = [problem.line for problem in result.problems if problem.line]
        assert found == sorted(found)


@quick
@given(files)
def test_entries_are_the_lines(text: str) -> None:
    """Every entry stands at the line that it claims, and none of a clean file is lost."""
    report = Report("workers.ini")
    sections = parse_sections(text, report)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd").split("\n")
    for section in sections:
        assert section.name in lines[section.line - 1]
        for entry in section.entries:
            key, _, value = lines[entry.line - 1].partition("=")
            assert key.strip() == entry.key
            assert value.strip() == entry.value.split("\n")[0]
    if not report.problems:
        spoken = [line for line in map(str.strip, lines) if line and line[0] not in "#;"]
        entries = [entry for section in sections for entry in section.entries]
        assert len(spoken) == len(sections) + sum(1 + e.value.count("\n") for e in entries)


durations = st.integers(1, 168 * 3600 * 1000).map(lambda milliseconds: milliseconds / 1000)
cpu_lists = st.lists(st.integers(0, 8191), min_size=1, max_size=20, unique=True).map(tuple)
variables = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n")).map(str.strip),
    max_size=4,
)


def any_model(folder: Path) -> st.SearchStrategy[ModelSettings]:
    return st.builds(
        ModelSettings,
        name=st.from_regex(MODEL_NAME, fullmatch=True),
        path=st.just(str(folder / "digits")),
        handler=st.sampled_from(["service", "service.py:handle"]),
        workers=st.integers(1, 512),
        cpus=st.one_of(st.sampled_from(["auto", "none"]), cpu_lists),
        threads=st.one_of(st.just("auto"), st.integers(1, 1024)),
        batch_size=st.integers(1, 1024),
        startup_timeout=durations,
        stop_timeout=durations,
        stable_after=durations,
        max_failures=st.integers(1, 1000),
        retry_failed_after=durations,
        max_connections=st.integers(1, 4096),
        frame_timeout=durations,
        max_line=st.integers(512, 16 * 1024**2),
        warmup=st.sampled_from([None, str(folder / "one.png")]),
        env=variables,
    )


supervisors = st.builds(
    SupervisorSettings,
    run_dir=st.sampled_from([None, "/run/somewhere"]),
    log_format=st.sampled_from(["json", "console", "auto"]),
    log_level=st.sampled_from(["debug", "info", "warning", "error"]),
    log_to=st.sampled_from([("auto",), ("stdout",), ("journal",), ("journal", "stdout")]),
    log_file=st.sampled_from([None, "/tmp/new.jsonl"]),
    log_buffer=st.integers(1024**2, 1024**3),
    stop_timeout=durations,
    on_start_failure=st.sampled_from(["exit", "continue"]),
    cpus=st.one_of(st.none(), cpu_lists),
)


@quick
@given(st.data())
def test_render_and_load(folder: Path, data: st.DataObject) -> None:
    """Whatever the settings are, the effective configuration is a file that means the same."""
    models = data.draw(
        st.lists(
            any_model(folder), min_size=1, max_size=3, unique_by=lambda model: model.name.casefold()
        )
    )
    given_settings = Settings(
        source="/x.ini", supervisor=data.draw(supervisors), models=tuple(models)
    )
    text = render_settings(given_settings, show_secrets=True)
    loaded = try_load(folder, text.encode())
    assert isinstance(loaded, Settings), loaded
    assert loaded.supervisor == given_settings.supervisor
    assert [msgspec.structs.replace(model, line=0) for model in loaded.models] == models
