"""The supervisor, with a mark in its system calls between Python's start and its own: a program for `strace --inject`.

Everything is imported first. Then it says so, by the file `imported` in its working directory, and waits until somebody traces
it: what comes after that are the supervisor's own system calls, and counting from there means the same call in every run.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import time
from pathlib import Path

import modelsupervisor
from modelsupervisor.cli import main


def _import_everything() -> None:
    for module in pkgutil.walk_packages(modelsupervisor.__path__, "modelsupervisor."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _await_tracer() -> None:
    status = os.open("/proc/self/status", os.O_RDONLY)
    Path("imported").touch()
    while b"TracerPid:\t0\n" in os.pread(status, 4096, 0):
        time.sleep(0.001)
    os.close(status)


if __name__ == "__main__":
    _import_everything()
    _await_tracer()
    sys.exit(main(sys.argv[1:]))
