"""Every kind of mistake in a configuration file, and the line that the operator gets for it.

`report` gives the lines of the report without the name of the file, with `{dir}` for its folder.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from modelsupervisor.config import load_settings
from modelsupervisor.errors import ConfigurationError

MINIMAL = "[model:digits]\npath = digits\nhandler = service:handle\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model whose handler is service.py."""
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "service.py").write_text("")
    return tmp_path


def report_on(path: str, folder: Path, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, environ or {})
    *lines, last = str(caught.value).replace(path, "FILE").replace(str(folder), "{dir}").split("\n")
    count = len(lines)
    assert last == f"{count} mistake{'s' if count > 1 else ''}; nothing was started"
    assert len(caught.value.problems) == count
    assert all(line.startswith("FILE:") for line in lines)
    return [line.removeprefix("FILE:").lstrip() for line in lines]


def report(folder: Path, text: str | bytes, environ: dict[str, str] | None = None) -> list[str]:
    path = folder / "workers.ini"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return report_on(str(path), folder, environ)


NUMBER = "expected a whole number from 1 to"
DURATION = "expected a number and its unit, ms, s, m or h, such as 30s"
POSITIVE = "expected more than zero and at most 168h"
SIZE = "expected a number and its unit, B, KiB, MiB or GiB, such as 64KiB"
CPUS = "expected auto, none, or CPU numbers and ranges such as 0-3,6"
HINT = "if a comment was meant, it stands on a line of its own"
FOLDER = "expected a folder or .mar archive that exists"
HANDLER = "expected module:function or module, of a file in the model's folder"

VARIABLE = "not the name of an environment variable; expected env.NAME of letters, digits and _"
KEYS = (
    "expected one of path, handler, workers, spares, max_requests, memory_limit, cpus, threads, "
    "preload, python, gpus, allow_load, batch_size, startup_timeout, response_timeout, stop_timeout, stable_after, "
    "max_failures, retry_failed_after, max_connections, frame_timeout, max_line, warmup, "
    "max_archive_size, env.NAME"
)

BAD_MODEL_LINES = [
    ("workers = 0", f"{NUMBER} 4096"),
    ("workers = 4097", f"{NUMBER} 4096"),
    ("workers = -1", f"{NUMBER} 4096"),
    ("workers = +1", f"{NUMBER} 4096"),
    ("workers = 1.0", f"{NUMBER} 4096"),
    ("workers = 2-8", f"{NUMBER} 4096"),
    ("workers = ٣", f"{NUMBER} 4096"),
    ("workers = two", f"{NUMBER} 4096"),
    ("workers = 2  # two", f"{HINT}; {NUMBER} 4096"),
    ("workers = 2 ; two", f"{HINT}; {NUMBER} 4096"),
    ("batch_size = 1025", f"{NUMBER} 1024"),
    ("max_failures = 0", f"{NUMBER} 1000"),
    ("max_connections = 0", f"{NUMBER} 4096"),
    ("threads = 0", "expected auto, or a whole number from 1 to 1024"),
    ("threads = Auto", "expected auto, or a whole number from 1 to 1024"),
    ("cpus = all", CPUS),
    ("cpus = 0-", CPUS),
    ("cpus = 0,,1", CPUS),
    ("cpus = -1", CPUS),
    ("cpus = 3-1", f"the range 3-1 runs backwards; {CPUS}"),
    ("cpus = 0-2,2", f"a CPU is named twice; {CPUS}"),
    ("cpus = 0-999999", f"no machine has a CPU 999999; {CPUS}"),
    ("preload = all", "expected one of model, import, none"),
    ("startup_timeout = 120", f"the unit is missing; {DURATION}"),
    ("startup_timeout = 0s", f"zero is not allowed here; {POSITIVE}"),
    ("startup_timeout = 0.0ms", f"zero is not allowed here; {POSITIVE}"),
    ("startup_timeout = -5s", f"a negative number; {DURATION}"),
    ("startup_timeout = 169h", f"too long; {POSITIVE}"),
    ("startup_timeout = 99999999999999999999h", f"too long; {POSITIVE}"),
    ("startup_timeout = 0.5ms", f"not a whole number of ms; {DURATION}"),
    ("startup_timeout = inf", DURATION),
    ("startup_timeout = nan", DURATION),
    ("startup_timeout = 1e3s", DURATION),
    ("startup_timeout = 5 sec", DURATION),
    ("startup_timeout = 5S", DURATION),
    ("startup_timeout = 1m30s", DURATION),
    ("startup_timeout = s", DURATION),
    ("max_line = 64", f"the unit is missing; {SIZE}"),
    ("max_line = 64KB", SIZE),
    ("max_line = 64k", SIZE),
    ("max_line = 0B", "expected a size from 512B to 16MiB"),
    ("max_line = 17MiB", "expected a size from 512B to 16MiB"),
    ("max_line = 99999999999999999999GiB", "expected a size from 512B to 16MiB"),
    ("max_line = -1KiB", f"a negative number; {SIZE}"),
    ("max_line = 512.5B", f"not a whole number of B; {SIZE}"),
    ("warmup = two.png", "{dir}/two.png does not exist; expected a file that exists"),
    ("warmup = digits", "{dir}/digits is not a regular file; expected a file that exists"),
    ("replicas = 2", f"there is no such key; {KEYS}"),
    ("Workers = 2", "there is no such key; did you mean workers?"),
    ("worker = 2", "there is no such key; did you mean workers?"),
    ("run_dir = x", "belongs into [supervisor]"),
    ("API_URL = x", "there is no such key; did you mean env.API_URL?"),
    ("ENV.API_URL = x", "there is no such key; did you mean env.API_URL?"),
    ("env = x", "there is no such key; did you mean env.NAME?"),
    ("env.9X = 1", VARIABLE),
    ("env.A B = 1", VARIABLE),
    ("env. = 1", VARIABLE),
]


@pytest.mark.parametrize(("line", "said"), BAD_MODEL_LINES)
def test_bad_line_of_a_model(folder: Path, line: str, said: str) -> None:
    """Each kind of bad value or key: line, section, key, value and what would be right."""
    assert report(folder, MINIMAL + line) == [f"4: [model:digits] {line}: {said}"]


DESTINATIONS = "auto, none, or stdout and journal with a comma between"
OCTAL = "expected octal permission bits for owner and group, such as 0600 or 0660"

BAD_SUPERVISOR_LINES = [
    ("log_format = JSON", "expected one of json, console, auto"),
    ("log_level = loud", "expected one of debug, info, warning, error"),
    ("log_to = syslog", f"expected {DESTINATIONS}"),
    ("log_to = auto, stdout", f"expected {DESTINATIONS}"),
    ("log_to = stdout, stdout", f"one is named twice; expected {DESTINATIONS}"),
    ("log_to = none", "there would be no log at all; expected log_file beside it"),
    ("log_file = digits", "{dir}/digits is a folder; expected a file in a folder that exists"),
    ("log_file = no/x", "{dir}/no does not exist; expected a file in a folder that exists"),
    (
        "log_file = digits/service.py/x",
        "{dir}/digits/service.py is not a folder; expected a file in a folder that exists",
    ),
    ("log_buffer = 512KiB", "expected a size from 1MiB to 1GiB"),
    ("log_buffer = 8", f"the unit is missing; {SIZE}"),
    ("on_start_failure = true", "expected one of exit, continue"),
    ("socket_mode = 0700", f"a socket has no execute bit; {OCTAL}"),
    ("socket_mode = 0606", f"the run directory lets only the owner and socket_group in; {OCTAL}"),
    ("socket_mode = 0060", f"the supervisor itself has to read and write it; {OCTAL}"),
    ("socket_mode = 0o600", OCTAL),
    ("socket_mode = 384", OCTAL),
    ("socket_mode = rw", OCTAL),
    ("socket_mode = 0660", "gives rights to a group, but socket_group names none"),
    (
        "socket_group = root",
        "the group could not use the sockets; expected socket_mode = 0660 with it",
    ),
    ("cpus = auto", "expected CPU numbers and ranges such as 0-3,6"),
    ("Log_Level = info", "there is no such key; did you mean log_level?"),
    ("path = digits", "belongs into a section [model:NAME]"),
    ("env.A = 1", "belongs into a section [model:NAME]"),
]


@pytest.mark.parametrize(("line", "said"), BAD_SUPERVISOR_LINES)
def test_bad_line_of_the_supervisor(folder: Path, line: str, said: str) -> None:
    """The same for [supervisor]."""
    assert report(folder, MINIMAL + "[supervisor]\n" + line) == [f"5: [supervisor] {line}: {said}"]


def test_a_group_that_does_not_exist(folder: Path) -> None:
    """A group is looked up when the file is read, not when the first socket is made."""
    text = MINIMAL + "[supervisor]\nsocket_group = no-such-group\nsocket_mode = 0660\n"
    assert report(folder, text) == [
        "5: [supervisor] socket_group = no-such-group: this machine has no such group"
    ]


@pytest.mark.parametrize("key", ["workers", "threads", "warmup", "preload", "path", "handler"])
def test_a_missing_value(folder: Path, key: str) -> None:
    """`key =` is not a way to ask for the default."""
    text = "".join(line for line in MINIMAL.splitlines(True) if not line.startswith(key))
    (only,) = report(folder, f"{text}{key} =\n")
    assert f" [model:digits] {key}: the value is missing; expected " in only


BAD_MODELS = [
    (
        "handler = service:handle",
        "1: [model:a] the key path is missing; expected path = the model's folder or archive",
    ),
    (
        "path = digits",
        "1: [model:a] the key handler is missing, and {dir}/digits has no MAR-INF/MANIFEST.json "
        "to name one; " + HANDLER,
    ),
    (
        "path = no\nhandler = service",
        f"2: [model:a] path = no: {{dir}}/no does not exist; {FOLDER}",
    ),
    (
        "path = ~/no\nhandler = service",
        f"2: [model:a] path = ~/no: {{dir}}/~/no does not exist; ~ is not expanded here; {FOLDER}",
    ),
    (
        "path = digits/service.py\nhandler = service",
        "2: [model:a] path = digits/service.py: {dir}/digits/service.py is not a folder; " + FOLDER,
    ),
    (
        "path = digits/x.mar\nhandler = service",
        "2: [model:a] path = digits/x.mar: {dir}/digits/x.mar cannot be used: it is not a zip file, "
        "or cut short; expected a sound archive",
    ),
    (
        f"path = {'x' * 300}\nhandler = service",
        f"2: [model:a] path = {'x' * 79}…: {{dir}}/{'x' * 300} cannot be used: File name too long; "
        + FOLDER,
    ),
    *(
        (f"path = digits\nhandler = {wrong}", f"3: [model:a] handler = {wrong}: {HANDLER}")
        for wrong in (
            "a b",
            "a:",
            ":f",
            "a:b:c",
            "../a:f",
            "a.b.:f",
            "a:b.c",
            "1a",
            "service.py.py:",
        )
    ),
    (
        "path = digits\nhandler = model:f",
        f"3: [model:a] handler = model:f: {{dir}}/digits/model.py does not exist; {HANDLER}",
    ),
    (
        "path = digits\nhandler = a.b.py:f",
        f"3: [model:a] handler = a.b.py:f: {{dir}}/digits/a/b.py does not exist; {HANDLER}",
    ),
]


@pytest.mark.parametrize(("body", "said"), BAD_MODELS)
def test_folder_and_handler(folder: Path, body: str, said: str) -> None:
    """What a model cannot be without is looked for when the file is read."""
    (folder / "digits" / "x.mar").write_bytes(b"PK")
    assert report(folder, f"[model:a]\n{body}\n") == [said]


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("{", "{dir}/digits/MAR-INF/MANIFEST.json names no handler: Input data was truncated"),
        (
            '{"model": {}}',
            "{dir}/digits/MAR-INF/MANIFEST.json names no handler: "
            "Object missing required field `handler` - at `$.model`",
        ),
        ('{"model": {"handler": "a b"}}', "MAR-INF/MANIFEST.json names the handler a b"),
        (
            '{"model": {"handler": "gone.py:f"}}',
            "MAR-INF/MANIFEST.json names the handler gone.py:f: "
            "{dir}/digits/gone.py does not exist",
        ),
        (" " * 1048577, "{dir}/digits/MAR-INF/MANIFEST.json is larger than 1MiB"),
        (None, "{dir}/digits/MAR-INF/MANIFEST.json is not a regular file"),
    ],
    ids=["cut", "without", "shape", "gone", "large", "fifo"],
)
def test_a_manifest_of_no_use(folder: Path, manifest: str | None, said: str) -> None:
    """A manifest that names no usable handler is an error of its own, whatever lies at its path."""
    (folder / "digits" / "MAR-INF").mkdir()
    path = folder / "digits" / "MAR-INF" / "MANIFEST.json"
    if manifest is None:
        os.mkfifo(path)
    else:
        path.write_text(manifest)
    assert report(folder, "[model:a]\npath = digits\n") == [f"1: [model:a] {said}; {HANDLER}"]


NAIVE = (
    "MXNet's NaiveEngine and preload = model exclude each other: "
    "a worker forked from a warm template hangs for ever"
)


def test_naive_engine_is_refused(folder: Path) -> None:
    """From the file or from the environment; the file goes before the environment."""
    line = "env.MXNET_ENGINE_TYPE = NaiveEngine"
    assert report(folder, MINIMAL + line) == [
        f"4: [model:digits] {line}: {NAIVE}; expected another engine, or the line left out"
    ]
    environ = {"MXNET_ENGINE_TYPE": "NaiveEngine"}
    assert report(folder, MINIMAL, environ) == [
        f"1: [model:digits] the environment has MXNET_ENGINE_TYPE=NaiveEngine; {NAIVE}; expected "
        "the "
        "variable unset, or env.MXNET_ENGINE_TYPE = ThreadedEnginePerDevice here"
    ]
    path = folder / "workers.ini"
    path.write_text(MINIMAL + "env.MXNET_ENGINE_TYPE = ThreadedEnginePerDevice")
    assert load_settings(str(path), environ).models[0].env


NAME = "expected a name of at most 64 letters, digits, _ . and -, the first one a letter or digit"
SECTIONS = "expected [supervisor] or [model:NAME]"

BAD_HEADERS = [
    ("[model:]", f"[model:] the model has no name; {NAME}"),
    ("[model:a b]", f"[model:a b] 'a b' cannot be a model's name; {NAME}"),
    ("[model: a]", f"[model: a] ' a' cannot be a model's name; {NAME}"),
    ("[model:.a]", f"[model:.a] '.a' cannot be a model's name; {NAME}"),
    ("[model:a/b]", f"[model:a/b] 'a/b' cannot be a model's name; {NAME}"),
    ("[model:ä]", f"[model:ä] 'ä' cannot be a model's name; {NAME}"),
    (f"[model:{'a' * 65}]", f"[model:{'a' * 65}] '{'a' * 65}' cannot be a model's name; {NAME}"),
    ("[Supervisor]", "[Supervisor] there is no such section; did you mean [supervisor]?"),
    ("[modle:a]", "[modle:a] there is no such section; did you mean [model:a]?"),
    ("[model a]", "[model a] there is no such section; did you mean [model:a]?"),
    ("[echo]", "[echo] there is no such section; did you mean [model:echo]?"),
    ("[DEFAULT]", "[DEFAULT] there is no such section; did you mean [model:DEFAULT]?"),
    ("[a b c]", f"[a b c] there is no such section; {SECTIONS}"),
    (
        "[model:Digits]",
        "[model:Digits] differs from [model:digits] of line 1 in letter case only, so that their "
        "sockets "
        "may be the same file",
    ),
    ("[model:digits]", "[model:digits] the section stands here a second time"),
]


@pytest.mark.parametrize(("header", "said"), BAD_HEADERS)
def test_bad_section(folder: Path, header: str, said: str) -> None:
    """A section that does not exist, a name that cannot be, a name that is taken."""
    text = f"{MINIMAL}{header}\npath = digits\nhandler = service\n"
    assert report(folder, text) == [f"4: {said}"]


SYNTAX = "expected [section], key = value, or a comment that starts with # or ;"


def test_syntax(folder: Path) -> None:
    """Every line that is neither section, entry nor comment; the rest is read all the same."""
    text = """path = x
workers = 3
[model:digits
[model:digits] # the first
path = digits
handler: service
= 5
workers = 0
workers = 2
   threads = 4
]
"""
    assert report(folder, text) == [
        "1: `path = x` stands before the first section",
        "4: `[model:digits] # the first` goes on after the section's name; "
        "expected [model:digits] alone on its line",
        "4: [model:digits] the key handler is missing, and {dir}/digits has no "
        "MAR-INF/MANIFEST.json "
        f"to name one; {HANDLER}",
        f"6: `handler: service` has no =; {SYNTAX}",
        f"7: `= 5` has no key before the =; {SYNTAX}",
        f"8: [model:digits] workers = 0: {NUMBER} 4096",
        "9: [model:digits] workers = 2: the key stands in this section a second time",
        r"9: [model:digits] workers = 2\nthreads = 4: the next line is indented, and so continues "
        "this "
        "value; expected a value on one line",
        f"11: `]` has no =; {SYNTAX}",
    ]


def test_an_unclosed_header(folder: Path) -> None:
    """A header without its bracket is called by its name."""
    (first, *_) = report(folder, MINIMAL + "[model:b\n")
    assert first == f"4: `[model:b` is not a section header; {SYNTAX}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "says nothing; expected at least one section [model:NAME]"),
        (b"# nothing\n", "says nothing; expected at least one section [model:NAME]"),
        (b"[supervisor]\n", "has no model; expected at least one section [model:NAME]"),
        (b"\xef\xbb\xbf[supervisor]", "begins with a byte order mark; expected UTF-8 without one"),
        ("[a]".encode("utf-16"), "begins with a byte order mark; expected UTF-8 without one"),
        (
            b"#\n# caf\xe9\n",
            "line 2 holds the byte 0xe9, which is not UTF-8; expected a file in UTF-8",
        ),
        (b"#" * 1048577, "is larger than 1MiB; expected a configuration file"),
        (MINIMAL.encode() + b"# \0\n", "4: holds a NUL character"),
    ],
    ids=["empty", "comment", "no model", "bom", "utf-16", "latin-1", "large", "nul"],
)
def test_bad_file(folder: Path, content: bytes, said: str) -> None:
    """A file as a whole that cannot be a configuration."""
    assert report(folder, content) == [said]


def test_what_is_not_a_file(folder: Path) -> None:
    """A missing file, a folder, a FIFO (which would block), a path that cannot be one."""
    os.mkfifo(folder / "fifo")
    expected = "expected a configuration file"
    assert report_on(str(folder / "no.ini"), folder) == [f"the file does not exist; {expected}"]
    assert report_on(str(folder / "digits"), folder) == [f"is a folder; {expected}"]
    assert report_on(str(folder / "fifo"), folder) == [f"is not a regular file; {expected}"]
    long = str(folder / ("x" * 300))
    assert report_on(long, folder) == [f"cannot be opened: File name too long; {expected}"]
    with pytest.raises(
        ConfigurationError, match=r"a\\x00b: cannot be opened: the path holds a NUL"
    ):
        load_settings("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(folder: Path) -> None:
    """A file of another user."""
    (folder / "closed.ini").write_text(MINIMAL)
    (folder / "closed.ini").chmod(0)
    (said,) = report_on(str(folder / "closed.ini"), folder)
    assert said == "cannot be opened: Permission denied; expected a configuration file"


def test_all_mistakes_at_once(folder: Path) -> None:
    """Syntax, duplicates, keys, values, files and names of one file are one report, by line."""
    text = """[supervisor]
stop_timeout = 30
log_level = loud
[model:digits]
path = nowhere
handler = service
nonsense
workers = 0
workers = 1
[model:Digits]
path = digits
handler = gone
warmup = gone.png
[gateway]
listen = :80
"""
    lines = report(folder, text)
    assert [line.split(":")[0] for line in lines] == [*"235789", "10", "12", "13", "14"]


def test_secrets_are_not_printed(folder: Path) -> None:
    """No report shows the value of a key that looks like a secret, whatever is wrong with it."""
    text = MINIMAL + "\n".join(
        [
            "env.API_KEY = hunter2",
            " hunter2",
            "env.API_KEY = hunter2",
            "API_TOKEN = hunter2 # hunter2",
            "db_password = hunter2",
            "secret: hunter2",
            "export AWS_SECRET hunter2",
        ]
    )
    lines = report(folder, text)
    assert len(lines) == 6
    assert not any("hunter2" in line for line in lines)
    assert lines[0].startswith("4: [model:digits] env.API_KEY = ****: ")
    assert lines[-2] == f"9: `secret ****` has no =; {SYNTAX}"


def test_reports_are_plain_lines(folder: Path) -> None:
    """What is quoted from a file moves no cursor and is one line of bounded length."""
    (said,) = report(folder, f"{MINIMAL}workers = \x1b[31m\u202e{'9' * 10000}\n")
    assert said.startswith(r"4: [model:digits] workers = \x1b[31m\u202e999")
    assert len(said) < 200


def test_a_variable_that_exec_would_refuse(folder: Path) -> None:
    """128 KiB is what one variable can have; beyond it no worker could be started."""
    (said,) = report(folder, f"{MINIMAL}env.A = {'x' * 131070}\n")
    assert said.endswith("longer than the 128KiB that an environment variable can have")
    path = folder / "workers.ini"
    path.write_text(f"{MINIMAL}env.A = {'x' * 131069}\n")
    assert len(load_settings(str(path), {}).models[0].env["A"]) == 131069


def test_a_file_full_of_duplicates_ends(folder: Path) -> None:
    """Each duplicate costs a parse; after fifty the report says that more follow."""
    started = time.monotonic()
    lines = report(folder, MINIMAL + "workers = 1\n" * 2000)
    assert time.monotonic() - started < 10
    assert len(lines) == 51
    assert lines[-1] == "2004: more mistakes of this kind follow; they are not listed"
