"""The first steps of a worker that is an interpreter of its own; then it goes the way of a forked one (`boot`).

The order is that of a template: signals, the death signal and the look at the parent, output, and only then anything else.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
from typing import NoReturn, Sequence

from modelworker import process
from modelworker.assignment import read_assignment
from modelworker.boot import become
from modelworker.readiness import Inheritance


def main(argv: Sequence[str]) -> NoReturn:
    """The life of the interpreter, from its first line of Python."""
    parser = argparse.ArgumentParser(prog="modelworker")
    parser.add_argument("--worker", required=True, help="model and index of the slot, to be seen")
    parser.add_argument("--supervisor", type=int, required=True, help="pid of the supervisor")
    parser.add_argument("--assignment", type=int, required=True, help="descriptor of what to do")
    options = parser.parse_args(argv)
    libc = ctypes.CDLL(None, use_errno=True)
    process.default_signals()
    try:
        process.die_with_parent(libc, options.supervisor)
    except process.Orphaned:
        os._exit(1)
    process.line_buffer(libc)
    faulthandler.enable()
    told = read_assignment(options.assignment)
    inheritance = Inheritance(
        supervisor=told.supervisor,
        libc=libc,
        spec=told.spec,
        source=told.spec,
        thread_setters=[],
        interpreter=None,
        kept=frozenset(told.kept),
    )
    become(told.message, told.descriptors, inheritance, freshly_seeded=True)
