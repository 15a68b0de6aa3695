"""What lines of real programs are recognised as."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.log.recognise import Recogniser, Run
from modelsupervisor.log.records import json_level, parse_metric

STAMP = "2026-01-01 10:00:00"


def recognised(text: str, default: str = "unsaid") -> list[Run]:
    """The runs of these lines, with nothing left held."""
    recogniser = Recogniser(default, 1 << 16)
    return recogniser.feed(text.encode().split(b"\n")) + recogniser.flush()


def level_of(line: str) -> str:
    """The level of one plain line; "unsaid" where the line does not say."""
    (run,) = recognised(line)
    assert (run.kind, run.lines, run.extra) == ("", [line.encode()], None)
    return run.level


@pytest.mark.parametrize(
    ("line", "level"),
    [
        # Python's logging: basicConfig, and the usual formats
        ("INFO:root:started", "info"),
        ("DEBUG:root:x", "info"),
        ("NOTSET:root:x", "info"),
        ("WARNING:py.warnings:x", "warning"),
        ("WARN:root:x", "warning"),
        ("ERROR:root:boom", "error"),
        ("CRITICAL:a.b:boom", "error"),
        ("FATAL:a.b:boom", "error"),
        ("EXCEPTION:a.b:boom", "error"),
        ("INFO", "info"),
        ("ERROR\r", "error"),
        ("INFO started", "info"),
        ("NOTICE\tstarted", "info"),
        ("TRACE x", "info"),
        ("ERROR - x", "error"),
        ("WARNING | x", "warning"),
        ("[ERROR] x", "error"),
        ("[WARNING ] x", "warning"),
        ("[ INFO] x", "info"),
        ("[warning  ] x", "warning"),
        ("<ERROR> x", "error"),
        ("(WARNING) x", "warning"),
        ("[INFO|modeling.py:12] x", "info"),
        ("INFO 01-01 10:00:00 loader.py:12] x", "info"),
        ("INFO:     Started server process [1]", "info"),
        (f"{STAMP},123 - digits - INFO - x", "info"),
        (f"{STAMP},123 - digits.model - WARNING - x", "warning"),
        (f"{STAMP},123 ERROR x", "error"),
        (f"{STAMP},123 root ERROR x", "error"),
        (f"{STAMP},123 digits.model INFO x", "info"),
        (f"{STAMP},123 digits[123]: ERROR: x", "error"),
        (f"{STAMP},123 digits MainThread ERROR x", "error"),
        (f"{STAMP},123 (MainThread) WARNING x", "warning"),
        (f"{STAMP},123 123 WARNING x", "warning"),
        (f"{STAMP},123 [123] [digits] [WARNING] x", "warning"),
        (f"{STAMP},123-ERROR-x", "error"),
        (f"{STAMP},123:ERROR:x", "error"),
        (f"{STAMP},123 | a | b | c | ERROR | x", "error"),
        (f"{STAMP} <module> ERROR x", "error"),
        ("2026-01-01 ERROR x", "error"),
        ("2026-01-01T10:00:00Z INFO x", "info"),
        ("2026-01-01T10:00:00.123456Z ERROR x", "error"),
        ("2026-01-01T10:00:00+01:00 [WARN] x", "warning"),
        ("2026-01-01T10:00:00.123+0100 TRACE x", "info"),
        (f"{STAMP} UTC [12] ERROR:  relation", "error"),
        ("10:00:00 ERROR x", "error"),
        ("10:00:00.123 WARNING x", "warning"),
        ("[10:00:00] ERROR x", "error"),
        ("[10:00:00,123] {model.py:12} x", "unsaid"),
        (f"[{STAMP}] ERROR x", "error"),
        # gunicorn, loguru, structlog, Celery, nginx, XGBoost
        (f"[{STAMP} +0000] [123] [INFO] Booting worker", "info"),
        (f"[{STAMP} +0000] [123] [CRITICAL] WORKER TIMEOUT", "error"),
        (f"{STAMP}.123 | INFO     | m:f:1 - x", "info"),
        (f"{STAMP}.123 | SUCCESS  | m:f:1 - x", "info"),
        (f"{STAMP}.123 | WARNING  | m:f:1 - x", "warning"),
        (f"{STAMP} [info     ] event  a=1", "info"),
        (f"{STAMP} [error    ] event  a=1", "error"),
        (f"{STAMP} [warning  ] event  a=1", "warning"),
        (f"[{STAMP},123: ERROR/MainProcess] x", "error"),
        ("2026/01/01 10:00:00 [error] 12#12: x", "error"),
        ("[10:00:00] WARNING: /workspace/src/learner.cc:12: x", "warning"),
        # glog, absl, PyTorch
        ("W1122 10:00:00.123456 1234 file.cc:12] x", "warning"),
        ("I1122 10:00:00.123456  1234 file.cc:12] x", "info"),
        ("E1122 10:00:00.123456 1234 file.cc:12] x", "error"),
        ("F20261122 10:00:00.123456 1234 file.cc:12] x", "error"),
        ("[W1122 10:00:00.123456 file.cc:12] x", "warning"),
        ("W1122 of the list", "unsaid"),
        # dmlc and MXNet
        ("[02:10:22] ../src/storage/storage.cc:196: Using Pooled (Naive) StorageManager", "info"),
        ("[02:10:22] ../src/base.cc:80: Warning: CUDA library is not found", "warning"),
        ("[02:10:22] ../src/base.cc:80: WARNING: x", "warning"),
        ("[02:10:22] ../src/base.cc:80: Error in it", "error"),
        ("[02:10:22] ../src/base.cc:80: ERROR: x", "error"),
        ("[02:10:22] ../src/base.cc:80: Check failed: a == b (1 vs. 2) : x", "error"),
        # colours, which structlog writes into a pipe too
        (f"\x1b[2m{STAMP}\x1b[0m [\x1b[31m\x1b[1merror    \x1b[0m] \x1b[1mx\x1b[0m", "error"),
        ("[\x1b[33m\x1b[1mwarning  \x1b[0m] x", "warning"),
        ("\x1b[32mINFO\x1b[0m: x", "info"),
        ("\x1b[1mbold\x1b[0m", "unsaid"),
        # warnings of Python
        ("/srv/models/digits/service.py:12: UserWarning: x", "warning"),
        ("/srv/my models/service.py:12: RuntimeWarning: x", "warning"),
        ("service.py:12: DeprecationWarning: x", "warning"),
        ("sys:1: ResourceWarning: unclosed file", "warning"),
        ("<string>:1: SyntaxWarning: x", "warning"),
        ("he said: UserWarning: x", "unsaid"),
        # the last words of processes
        ("Fatal Python error: Segmentation fault", "error"),
        ("Segmentation fault (core dumped)", "error"),
        ("Aborted", "error"),
        ("Aborted (core dumped)", "error"),
        ("terminate called after throwing an instance of 'dmlc::Error'", "error"),
        ("*** Error in `python': double free or corruption", "error"),
        ("Exception in thread Thread-1 (f):", "error"),
        ("Exception ignored in: <function f at 0x7f>", "error"),
        # words that are none of this
        ("", "unsaid"),
        ("there is no ERROR here", "unsaid"),
        ("no ERROR here", "unsaid"),
        (f"{STAMP} no ERROR here", "unsaid"),
        (f"{STAMP} there was an ERROR here", "unsaid"),
        (f"{STAMP} The ERROR was found", "unsaid"),
        (f"{STAMP} request served", "unsaid"),
        ("INFORMATION for all", "unsaid"),
        ("ERRORS: 3", "unsaid"),
        ("ERROR_COUNT=3", "unsaid"),
        ("info: x", "unsaid"),
        ("error of 0.3 after 12 rounds", "unsaid"),
        ("[error opening the file]", "unsaid"),
        (" ERROR x", "unsaid"),
        ("Aborted requests: 3", "unsaid"),
        ("Exception handling is fine", "unsaid"),
        ("12:30 ERROR-prone", "unsaid"),
        ("127.0.0.1 - - [01/Jan/2026] ERROR", "unsaid"),
        ("Tracebacks: none", "unsaid"),
        ("[METRICS]nothing", "unsaid"),
        ("{'a': 1}", "unsaid"),
        ("[1, 2, 3]", "unsaid"),
    ],
)
def test_levels(line: str, level: str) -> None:
    """Each form that a logging library writes gives its level, and no prose does."""
    assert level_of(line) == level


def test_bytes_that_are_no_text() -> None:
    """Bytes that are not UTF-8, and NULs, hinder neither a level nor a plain line."""
    lines = [b"ERROR:root:\xff\x00", b"\xff\xfe\x00", b"\x00ERROR x"]
    assert Recogniser("info", 1000).feed(lines) == [
        Run("error", "", lines[:1], None),
        Run("info", "", lines[1:], None),
    ]


def test_runs_of_plain_lines() -> None:
    """Consecutive plain lines of one level are one run, whether they said it or it is the default."""
    text = "INFO:a:1\nINFO:a:2\nx\ny\nWARNING:a:3\n{no json\nz\nERROR:a:4\nERROR:a:5"
    assert [(run.level, len(run.lines)) for run in recognised(text, "warning")] == [
        ("info", 2),
        ("warning", 5),
        ("error", 2),
    ]
    assert Recogniser("info", 1000).feed([]) == []


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("{}", ""),
        ('{"level": "INFO", "a": 1}', "info"),
        ('{"level":"debug"}', "info"),
        ('{"levelname":"Warning"}', "warning"),
        ('{"severity":"CRITICAL"}', "error"),
        ('{"lvl":"warn"}', "warning"),
        ('{"log.level":"error"}', "error"),
        ('{"level":30}', "info"),
        ('{"level":40,"severity":"ERROR"}', "warning"),
        ('{"level":60}', "error"),
        ('{"severity":3}', ""),
        ('{"level":true}', ""),
        ('{"level":35}', ""),
        ('{"level":"loud"}', ""),
        ('{"level":["error"]}', ""),
        ('{"a":{"level":"error"}}', ""),
        ('{"a":1}\r', ""),
        ('{"a":"\\":","b" : {"a":1}}', ""),
        ('{"a":' * 15 + "{}" + "}" * 15, ""),
        ('{"a":' * 16 + "{}" + "}" * 16, None),
        ('{"a":' * 20000 + "1" + "}" * 20000, None),
        ('{"a":' + "[" * 16 + "]" * 16 + "}", None),
        ('{"a":1,"a":2}', None),
        ('{"a":1,"\\u0061":2}', None),
        ('{"b":{"a":1,"a" :2}}', None),
        ('{"a":NaN}', None),
        ('{"a":Infinity}', None),
        ('{"a":1e999}', None),
        ('{"a":01}', None),
        ('{"a":1} x', None),
        ('{"a":1}{"b":2}', None),
        ('{"a":"\\ud800"}', None),
        ("{'a':1}", None),
        ("{", None),
    ],
)
def test_json(line: str, level: str | None) -> None:
    """A line that is one sound JSON object is of kind json, at its own level; any other is plain."""
    assert json_level(line.encode()) == level
    (run,) = recognised(line)
    assert (run.kind, run.extra) == ("" if level is None else "json", None)
    assert run.level == (level or "unsaid")


def test_json_that_is_no_text() -> None:
    """An object with bytes that are not UTF-8 is a plain line."""
    assert json_level(b'{"a":"\xff"}') is None


FULL = "[METRICS]PredictionTime.Milliseconds:12.5|#ModelName:digits,Level:Model|#hostname:h,1700000000,r1"


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        (FULL, {}),
        (FULL + ",r2", {"request_id": "r1,r2"}),
        (FULL.removesuffix(",r1"), {"request_id": None}),
        (FULL.replace("12.5", "-3"), {"value": -3.0}),
        (FULL.replace("12.5", "1.5e+3"), {"value": 1500.0}),
        (FULL.replace("PredictionTime", "a.b-c d"), {"name": "a.b-c d"}),
        (FULL.replace("digits", "x:y"), {"dimensions": {"ModelName": "x:y", "Level": "Model"}}),
        (FULL.replace("ModelName:digits,Level:Model", ""), {"dimensions": {}}),
        (FULL.replace("12.5", "nan"), None),
        (FULL.replace("12.5", "inf"), None),
        (FULL.replace("12.5", "1e999"), None),
        (FULL.replace("12.5", "9" * 400), None),
        (FULL.replace("12.5", "1_0"), None),
        (FULL.replace("12.5", "True"), None),
        (FULL.replace("12.5", ""), None),
        (FULL.replace("Level:Model", "Level"), None),
        (FULL.replace(".Milliseconds", ""), None),
        (FULL.replace("#hostname", "#host"), None),
        (FULL.replace("1700000000", "now"), None),
        (" " + FULL, None),
    ],
)
def test_metrics(line: str, changes: dict[str, Any] | None) -> None:
    """A metric of MMS's form is taken apart; what cannot be is a plain line."""
    expected: dict[str, Any] = {
        "name": "PredictionTime",
        "unit": "Milliseconds",
        "value": 12.5,
        "dimensions": {"ModelName": "digits", "Level": "Model"},
        "host": "h",
        "time": 1700000000,
        "request_id": "r1",
    }
    expected |= changes or {}
    if expected["request_id"] is None:
        del expected["request_id"]
    (run,) = recognised(line)
    if changes is None:
        assert run == Run("unsaid", "", [line.encode()], None)
    else:
        assert run == Run("unsaid", "metric", [line.encode()], {"metric": expected})


def test_metric_that_is_no_text() -> None:
    """A metric with bytes that are not UTF-8 is a plain line."""
    assert parse_metric(FULL.encode().replace(b"digits", b"\xff")) is None


def traced(code: str, folder: Path) -> str:
    """What Python writes to stderr when it runs this."""
    path = folder / "program.py"
    path.write_text(code)
    command = [sys.executable, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.removesuffix("\n")


FAILS = "def f():\n    class Boom(Exception): pass\n    raise Boom('no: 1')\n"
CHAIN = f"{FAILS}try:\n    f()\nexcept Exception as error:\n    raise KeyError('k')"
GROUP = "raise ExceptionGroup('some', [ValueError(1), ExceptionGroup('in', [TypeError(2)])])"
groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups are 3.11's")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (f"{FAILS}f()", "__main__.f.<locals>.Boom: no: 1"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("exec('a b')", "SyntaxError: invalid syntax"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        (CHAIN, "KeyError: 'k'"),
        (f"{CHAIN} from error", "KeyError: 'k'"),
        pytest.param(GROUP, "ExceptionGroup: some (2 sub-exceptions)", marks=groups),
        pytest.param(
            f"try:\n    {GROUP}\nexcept ExceptionGroup as error:\n    raise KeyError(1) from error",
            "KeyError: 1",
            marks=groups,
        ),
        pytest.param(
            f"try:\n    1/0\nexcept ArithmeticError:\n    {GROUP}",
            "ExceptionGroup: some (2 sub-exceptions)",
            marks=groups,
        ),
    ],
)
def test_tracebacks_of_python(code: str, error: str, tmp_path: Path) -> None:
    """What this Python writes for an exception, a chain and a group is one run, and names its last exception."""
    text = traced(code, tmp_path)
    (run,) = recognised(text)
    assert (run.level, run.kind) == ("error", "traceback")
    assert b"\n".join(run.lines).decode() == text
    assert run.extra is not None
    assert run.extra["lines"] == len(run.lines) == text.count("\n") + 1
    assert (
        run.extra["error"]
        .replace("f.<locals>", "__main__.f.<locals>")
        .replace("__main__.__main__", "__main__")
        .startswith(error)
    )


SHORT = 'Traceback (most recent call last):\n  File "x.py", line 3, in f\n    g()\nValueError: boom'
DURING = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
MXNET = """Traceback (most recent call last):
  File "<string>", line 94, in dot
    raise get_last_ffi_error()
mxnet.base.MXNetError: Traceback (most recent call last):
  File "../src/operator/tensor/./dot-inl.h", line 1241
MXNetError: Check failed: L[!Ta].Size() == R[Tb].Size() (3 vs. 2) : dot shape error"""
STACK = """Traceback (most recent call last):
  File "x.py", line 3, in f
mxnet.base.MXNetError: [02:10:22] ../src/c_api.cc:12: Check failed: a: b
Stack trace:
  [bt] (0) /usr/lib/libmxnet.so(+0x123) [0x7f]
  [bt] (1) /usr/lib/libmxnet.so(+0x456) [0x7f]"""
FATAL = """Fatal Python error: Aborted

Thread 0x00007f8c33811b80 (most recent call first):
  File "/srv/models/digits/service.py", line 43 in _wait
  <no Python frame>

Current thread 0x00007f8c33811b81 (most recent call first):
  File "/srv/models/digits/service.py", line 85 in handle

Extension modules: numpy.core._multiarray_umath (total: 1)"""
OLD_STACK = (
    SHORT + "\n\nStack trace returned 2 entries:\n[bt] (0) /usr/lib/a.so\n[bt] (1) /usr/lib/b.so"
)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (SHORT, "ValueError: boom"),
        (MXNET, MXNET.rpartition("\n")[2]),
        (STACK, "mxnet.base.MXNetError: [02:10:22] ../src/c_api.cc:12: Check failed: a: b"),
        (OLD_STACK, "ValueError: boom"),
        (STACK + DURING + SHORT, "ValueError: boom"),
        (SHORT + DURING + MXNET + DURING + SHORT.replace("boom", "x"), "ValueError: x"),
        ("Traceback (most recent call last):\nValueError: boom", "ValueError: boom"),
        (SHORT + "x" * 2000, "ValueError: boom" + "x" * 984),
        ("ERROR:root:" + SHORT, "ValueError: boom"),
        (FATAL, "Fatal Python error: Aborted"),
        (FATAL.rpartition("\n\n")[0], "Fatal Python error: Aborted"),
        (
            FATAL.replace("\n", "\nPython runtime state: initialized\n", 1),
            "Fatal Python error: Aborted",
        ),
        (f"{STAMP} - a - CRITICAL - " + SHORT, "ValueError: boom"),
    ],
)
def test_tracebacks_of_others(text: str, error: str) -> None:
    """MXNet's frames and stacks belong to the traceback, and so does the line that logged it."""
    (run,) = recognised(text)
    lines = text.encode().split(b"\n")
    assert run == Run("error", "traceback", lines, {"error": error, "lines": len(lines)})


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        # (level, number of lines), "traceback" for those of that kind
        (SHORT + "\nmore of it", [("traceback", 4), ("unsaid", 1)]),
        (SHORT + "\n\nnext", [("traceback", 4), ("unsaid", 2)]),
        (SHORT + DURING.rstrip("\n") + "\nnext", [("traceback", 4), ("unsaid", 3)]),
        (SHORT + DURING + "next", [("traceback", 4), ("unsaid", 4)]),
        (SHORT + DURING + "INFO:a:b", [("traceback", 4), ("unsaid", 3), ("info", 1)]),
        (SHORT + DURING + SHORT.split("\n", maxsplit=1)[0], [("traceback", 4), ("unsaid", 4)]),
        (SHORT + "\nStack trace:\nnext", [("traceback", 4), ("unsaid", 2)]),
        (SHORT + "\n" + SHORT, [("traceback", 4), ("traceback", 4)]),
        (SHORT + "\nERROR:a:b\nx", [("traceback", 4), ("error", 1), ("unsaid", 1)]),
        (SHORT + '\n{"a":1}', [("traceback", 4), ("json", 1)]),
        (SHORT.replace("ValueError", "INFO"), [("traceback", 3), ("info", 1)]),
        (SHORT.replace("ValueError", "a.py:1: XWarning"), [("traceback", 3), ("warning", 1)]),
        (SHORT.replace("ValueError", "\0"), [("traceback", 3), ("unsaid", 1)]),
        (SHORT.rpartition("\n")[0], [("traceback", 3)]),
        ("Traceback (most recent call last):", [("unsaid", 1)]),
        ("Traceback (most recent call last):\n\0\nx", [("unsaid", 3)]),
        ("Traceback (most recent call last):\ndone", [("unsaid", 2)]),
        ("ERROR:a:Traceback (most recent call last):\nx", [("error", 1), ("unsaid", 1)]),
        ("ERROR:a:x\nERROR:b:" + SHORT, [("error", 1), ("traceback", 4)]),
        ("  + Exception Group Traceback (most recent call last):\nx", [("unsaid", 2)]),
        (FATAL + "\nnext", [("traceback", 10), ("unsaid", 1)]),
        (FATAL.rpartition("\n\n")[0] + "\n\nnext", [("traceback", 8), ("unsaid", 2)]),
        ("ERROR:a:x\n" + FATAL, [("error", 1), ("traceback", 10)]),
        (SHORT + "\n" + FATAL, [("traceback", 4), ("traceback", 10)]),
        ("Fatal Python error: Aborted\n\nnext", [("error", 2), ("unsaid", 1)]),
        ("Fatal Python error: Aborted\nnext", [("error", 1), ("unsaid", 1)]),
    ],
)
def test_ends_of_tracebacks(text: str, pieces: list[tuple[str, int]]) -> None:
    """What does not belong to a traceback after all comes out behind it, as what it is by itself."""
    runs = recognised(text)
    assert [(run.kind or run.level, len(run.lines)) for run in runs] == pieces
    assert [line for run in runs for line in run.lines] == text.encode().split(b"\n")


def test_holding() -> None:
    """A traceback is held until a line ends it or it is flushed; nothing else is ever held."""
    recogniser = Recogniser("warning", 1 << 16)
    assert not recogniser.holding
    lines = SHORT.encode().split(b"\n")
    for line in [*lines, b""]:
        assert recogniser.feed([line]) == []
        assert recogniser.holding
    block = Run("error", "traceback", lines, {"error": "ValueError: boom", "lines": 4})
    assert recogniser.feed([b"x"]) == [block, Run("warning", "", [b"", b"x"], None)]
    assert not recogniser.holding
    assert recogniser.feed([lines[0]]) == []
    assert recogniser.flush() == [Run("warning", "", lines[:1], None)]
    assert recogniser.feed(lines[1:2]) == [Run("warning", "", lines[1:2], None)]
    assert not recogniser.holding
    assert recogniser.flush() == []


def test_long_tracebacks_are_cut() -> None:
    """No more than `max_block` bytes are held: a longer traceback is several runs, the last of which names the error."""
    lines = SHORT.encode().split(b"\n")
    lines[2:3] = [b"    frame %d" % number for number in range(1000)]
    recogniser = Recogniser("info", 500)
    runs = []
    for line in lines:
        runs += recogniser.feed([line])
        assert sum(len(held) + 1 for held in recogniser._block) <= 500
    runs += recogniser.flush()
    assert len(runs) > 20
    assert [line for run in runs for line in run.lines] == lines
    assert {(run.level, run.kind) for run in runs} == {("error", "traceback")}
    errors = [run.extra["error"] for run in runs if run.extra]
    assert set(errors[:-1]) == {""}
    assert errors[-1] == "ValueError: boom"


HEADER = b"Traceback (most recent call last):"
SLOW = {
    "headers": [HEADER] * 20000,
    "logged headers": [b"ERROR:a:" + HEADER] * 20000,
    "fatal headers": [b"Fatal Python error: x", b""] * 10000,
    "headers and frames": [HEADER, b"  File"] * 10000,
    "blank lines": [*SHORT.encode().split(b"\n"), *[b""] * 20000],
    "dashes": [b"2026-01-01 10:00:00 " + b"a-" * 32000] * 30,
    "brackets": [b"2026-01-01 " + b"[" * 64000] * 30,
    "words": [b"2026-01-01 " + b"a - " * 16000] * 30,
    "names": [b"[10:00:00] " + b"a" * 64000] * 30,
    "digits": [b"10:00:00" + b"0" * 64000] * 30,
    "spaces": [b" " * 64000] * 30,
    "a warning's path": [b"/" + b"a:1" * 20000 + b"Warning: "] * 30,
    "open objects": [b'{"a":' * 12000 + b"}"] * 30,
    "open lists": [b'{"a":' + b"[" * 60000 + b"}"] * 30,
    "quotes": [b'{"a":"' + b'\\"   ' * 12000 + b'"}'] * 30,
    "metrics": [b"[METRICS]" + b"a." * 32000] * 30,
    "metrics' bars": [b"[METRICS]a.b:1|#" + b"|#hostname:h" * 5000] * 30,
    "colours": [b"\x1b[1m" * 16000] * 30,
}


@pytest.mark.parametrize("lines", SLOW.values(), ids=SLOW.keys())
def test_hostile_lines(lines: list[bytes]) -> None:
    """Two megabytes of what is made to be slow take less than a second, and all of it comes out in order."""
    recogniser = Recogniser("info", 1 << 18)
    began = time.process_time()
    runs = recogniser.feed(lines) + recogniser.flush()
    assert time.process_time() - began < 1
    assert [line for run in runs for line in run.lines] == lines
