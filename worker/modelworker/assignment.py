"""What a worker that is an interpreter of its own is told, and the exec that makes it one: `preload = none`.

Theory of operation
-------------------
The heir of a bare template is the supervisor's child and dies with it, as every heir. Told of its slot, it takes on of it what
outlives an exec (`boot`: session, output, CPUs, environment) and executes the model's interpreter anew, so that nothing of the
model runs, and no library looks at its environment, before all of that holds. The death signal outlives the exec, too; that the
parent is still there is looked at once more behind it (`executed`).

Only what is on the list crosses the exec: everything else was closed before it, and only these are made inheritable: the
descriptors of the slot, what the template keeps for the model (the lock of an unpacked archive), and a file in memory with the
assignment, since every user of the machine can read a command line. No descriptor is inherited further than that.
"""

from __future__ import annotations

import ctypes
import json
import os
from typing import Any, Dict, List, NamedTuple, NoReturn

from modelworker import loader

LARGEST_ASSIGNMENT = 1024 * 1024  # bytes; it is made of two messages of at most 64 KiB each


class Assignment(NamedTuple):
    """The template's knowledge of the model, the supervisor's `fork` with its descriptors, and those to keep for the model."""

    supervisor: int
    spec: loader.ModelSpec
    message: Dict[str, Any]
    descriptors: List[int]
    kept: List[int]


def execute(interpreter: str, assignment: Assignment) -> NoReturn:
    """Become another interpreter with this assignment. Raises OSError where that cannot be."""
    text = json.dumps(dict(assignment._asdict(), spec=assignment.spec._asdict()))  # ASCII
    number = _file_in_memory("assignment")
    with open(number, "w", encoding="ascii", closefd=False) as file:
        file.write(text)
    os.lseek(number, 0, os.SEEK_SET)
    for descriptor in (*assignment.descriptors, *assignment.kept, number):
        os.set_inheritable(descriptor, True)
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    who = assignment.message.get("index", "spare")
    os.execv(
        interpreter,
        [
            *(interpreter, program),
            *("--worker", "%s/%s" % (assignment.spec.name, who)),
            *("--supervisor", str(assignment.supervisor)),
            *("--assignment", str(number)),
        ],
    )


def _file_in_memory(name: str) -> int:
    """A descriptor of an empty file that has no name anywhere. Raises OSError.

    The system call is the C library's where Python lacks it: conda's, and others that are built for old systems.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    libc = ctypes.CDLL(None, use_errno=True)
    number: int = libc.memfd_create(name.encode(), 1)  # MFD_CLOEXEC
    if number < 0:
        raise OSError(ctypes.get_errno(), "memfd_create: " + os.strerror(ctypes.get_errno()))
    return number


def read_assignment(number: int) -> Assignment:
    """Take what `execute` left in this descriptor, which is closed; the others go no further."""
    with open(number, encoding="ascii") as file:
        fields: Dict[str, Any] = json.loads(file.read(LARGEST_ASSIGNMENT))
    assignment = Assignment(**dict(fields, spec=loader.ModelSpec(**fields["spec"])))
    for descriptor in (*assignment.descriptors, *assignment.kept):
        os.set_inheritable(descriptor, False)
    return assignment
