"""What a worker that is an interpreter of its own is told, over the exec."""

from __future__ import annotations

import os
from typing import Any

import pytest

from modelworker import assignment
from modelworker.assignment import Assignment, execute, read_assignment
from modelworker.loader import ModelSpec

SPEC = ModelSpec("m", "/models/\udcff", "service", 4, -1, "1", None)


class Executed(Exception):
    """Raised in the place of an exec."""


@pytest.mark.parametrize("by_python", [True, False])
def test_what_is_told_comes_over_and_goes_no_further(
    monkeypatch: pytest.MonkeyPatch, by_python: bool
) -> None:
    """Also from a Python that was built without memfd_create, as conda's and others for old systems are; only what is on the list
    is inherited, and by that one interpreter."""
    if not by_python:
        monkeypatch.delattr(os, "memfd_create")
    called: list[Any] = []

    def execv(path: str, argv: list[str]) -> None:
        called.append((path, argv))
        raise Executed

    monkeypatch.setattr(os, "execv", execv)
    reading, writing = os.pipe()
    told = Assignment(7, SPEC, {"index": 3, "model": "m"}, [reading], [writing])
    try:
        with pytest.raises(Executed):
            execute("/bin/python", told)
        ((path, argv),) = called
        assert (path, argv[0], argv[3]) == ("/bin/python", "/bin/python", "m/3")
        number = int(argv[-1])
        assert all(map(os.get_inheritable, (reading, writing, number)))
        assert read_assignment(number) == told
        assert not any(map(os.get_inheritable, (reading, writing)))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
    finally:
        os.close(reading)
        os.close(writing)


def test_where_there_is_no_such_file_the_kernels_word_is_the_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is an OSError, as any start that fails."""
    monkeypatch.delattr(os, "memfd_create")

    class Library:
        def memfd_create(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(assignment.ctypes, "CDLL", lambda *_, **__: Library())
    monkeypatch.setattr(assignment.ctypes, "get_errno", lambda: 38)
    with pytest.raises(OSError, match="Function not implemented"):
        execute("/bin/python", Assignment(7, SPEC, {}, [], []))
