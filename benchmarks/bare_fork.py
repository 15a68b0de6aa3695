"""The limit of a restart: the digits model in a plain process that double-forks, and whose grandchild answers once.

No supervisor, no socket, no log, no pinning, no seeds: what is left is the memory map copied twice and a first inference in the
copy. For every line on stdin it does that once and prints the milliseconds from before the first fork to the answer's arrival:
all, until the grandchild runs, and the inference.
"""

from __future__ import annotations

import os
import struct
import sys
import time

from modelworker import frameworks, loader
from modelworker.respond import answer
from modelworker.wire import Parameter, Request

_TIMES = struct.Struct("dd")


def _once(model: loader.LoadedModel, request: Request) -> str:
    told, tell = os.pipe()
    begun = time.perf_counter()
    intermediate = os.fork()
    if intermediate == 0:
        if os.fork() == 0:
            running = time.perf_counter()
            answer(model.handle, model.context, [request], lambda *_, **__: None)
            os.write(tell, _TIMES.pack(running, time.perf_counter()))
        os._exit(0)
    os.waitpid(intermediate, 0)
    running, answered = _TIMES.unpack(os.read(told, _TIMES.size))
    ended = time.perf_counter()
    os.close(told)
    os.close(tell)
    return " ".join(
        f"{1000 * part:.3f}" for part in (ended - begun, running - begun, answered - running)
    )


def main(path: str, sample: str) -> None:
    """Load and warm as a template does, then serve stdin."""
    frameworks.prepare_numpy()
    spec = loader.ModelSpec("digits", path, "handler.py", 1, -1, "bench", None)
    model = loader.load_model(spec)
    loader.warm_up(model, None)
    with open(sample, "rb") as file:
        request = Request("bench", [], [Parameter("body", "image/png", file.read())])
    print("ready", flush=True)
    for _ in sys.stdin:
        print(_once(model, request), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
