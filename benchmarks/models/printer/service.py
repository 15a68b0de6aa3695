"""A model that only prints, as fast as it is told to, and answers when it began and ended.

A request is a JSON object: `how` is "print" (plain print, a line each) or "blocks" (os.write of a thousand lines each); `what` is
"plain" or "mix"; `count` the number of lines, in thousands where they go in blocks; `into`, where it is given, a path that is
standard output during the call. The last line is ENDING. The answer is two readings of the monotonic clock, which all processes of
a machine share: `began` before the first line, `ended` when the last was written.

As a program it takes the same requests from standard input, a line each, and answers on standard error, so that what a handler does
can be measured where no supervisor reads. Its standard output is line-buffered as a worker's is; with `--buffered` it is left as
Python has it for a file.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from itertools import cycle, islice
from typing import Any

LINE = 99  # characters of a line; with its newline 100
BLOCK = 1000  # lines of one os.write
ENDING = "the last line ".ljust(LINE, "-")


def _filled(head: str, filling: str, tail: str = "") -> str:
    """Head and tail, and between them as much of the filling as makes a line of LINE characters."""
    return head + (filling * LINE)[: LINE - len(head) - len(tail)] + tail


def _logged(number: int) -> str:
    """A line of Python's logging, of which one in ten is a warning."""
    level = "INFO" if number % 10 else "WARNING"
    head = f"2026-11-22 10:00:{number % 60:02},{number:03} {level} digits.service: "
    return _filled(head, f"answered request {number}, class 7, probability 0.98; ")


def _json(number: int) -> str:
    return _filled(f'{{"level": "info", "request": "{number:06}", "class": 7, "text": "', "x", '"}')


def _metric(number: int) -> str:
    """A line as MMS's metrics print it."""
    head = f"[METRICS]Latency.Milliseconds:{number}.5|#Level:Model,Model:digits|#hostname:"
    return _filled(head, "worker-of-a-cluster-", ",1795341600")


PLAIN = [
    _filled(f"{number:04} ", "took a request; its answer is class 7. ") for number in range(BLOCK)
]
_TRACEBACK = [
    "Traceback (most recent call last):",
    '  File "/srv/models/digits/versions/2026-11-22/preprocessing/service.py", line 210, in predict_one',
    "    return self.network.forward(self.preprocess(request), batch_size=self.batch_size, training=False)",
    '  File "/srv/models/digits/versions/2026-11-22/preprocessing/service.py", line 96, in preprocess_one',
    "    raise ValueError(f'the image has {image.shape} instead of the shape of the first layer')",
    "ValueError: the image has (28, 28, 3) instead of the shape of the first layer, which is (1, 28, 28)",
]
# Of a thousand lines: 600 of logging, 100 of JSON, 40 metrics, 60 of ten tracebacks and 200 of print
MIX = [
    line
    for part in range(10)
    for line in (
        *[_logged(100 * part + number) for number in range(60)],
        *_TRACEBACK,
        *[_json(100 * part + number) for number in range(10)],
        *PLAIN[20 * part : 20 * part + 20],
        *[_metric(100 * part + number) for number in range(4)],
    )
]
TEXTS = {"plain": PLAIN, "mix": MIX}
# Events that a block of each becomes: a traceback is one
EVENTS = {"plain": len(PLAIN), "mix": len(MIX) - 10 * (len(_TRACEBACK) - 1)}


def _print(lines: list[str], count: int) -> None:
    for line in islice(cycle(lines), count - 1):
        print(line)
    print(ENDING)


def _write(lines: list[str], count: int) -> None:
    block = "".join(line + "\n" for line in lines).encode()
    last = "".join(line + "\n" for line in [*lines[:-1], ENDING]).encode()
    for _ in range(count // BLOCK - 1):
        os.write(1, block)
    os.write(1, last)


def _perform(request: dict[str, Any]) -> dict[str, float]:
    lines, count = TEXTS[request["what"]], request["count"]
    act = _print if request["how"] == "print" else _write
    kept = os.dup(1)
    try:
        if "into" in request:
            target = os.open(request["into"], os.O_WRONLY | os.O_TRUNC)
            os.dup2(target, 1)
            os.close(target)
        began = time.monotonic()
        act(lines, count)
        sys.stdout.flush()
        return {"began": began, "ended": time.monotonic()}
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def handle(data: Any, context: Any) -> list[str] | None:
    """Print for each request in turn."""
    if data is None:
        return None
    return [json.dumps(_perform(json.loads(bytes(each["body"])))) for each in data]


if __name__ == "__main__":
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering="--buffered" not in sys.argv)
    for asked in sys.stdin:
        print(json.dumps(_perform(json.loads(asked))), file=sys.stderr, flush=True)
