"""A worker without its supervisor: a fresh interpreter that loads one model, warms it and serves one socket, unpinned, unforked.

Its threads are what its environment makes of them. It says `ready` on standard output, and ends with its standard input.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from modelworker import frameworks, loader
from modelworker.channel import Channel
from modelworker.scoreboard import RECORD_SIZE, Record
from modelworker.serve import ServeSettings, serve


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main(path: str, handler: str, address: str, cpus: str) -> None:
    """Serve; `cpus` is a list with commas to bind itself to before anything is loaded, or nothing."""
    if cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in cpus.split(",")})
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen()
    frameworks.prepare_numpy()
    model = loader.load_model(loader.ModelSpec("plain", path, handler, 1, -1, "bench", None))
    loader.warm_up(model, None)
    nobody, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    record = Record(memoryview(bytearray(RECORD_SIZE)))
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    print("ready", flush=True)
    serve(lambda: model, listener, Channel(ours), record, ServeSettings(64, 30.0))
    nobody.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
