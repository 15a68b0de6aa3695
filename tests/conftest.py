"""Fixtures for every test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.instance import Instance, instances
from support.mendable import Mendable


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder with a short path: a socket's may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ms", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def instance(short_tmp: Path) -> Iterator[Callable[..., Instance]]:
    """Makes supervisors under test; `instance("worker.exited")` names the error events that the test expects."""
    yield from instances(short_tmp)


@pytest.fixture
def running(instance: Callable[..., Instance]) -> Callable[..., Instance]:
    """Starts a supervisor of the test model `faults` under the name echo, and waits until it is ready.

    Positional arguments are the error events that the test expects, the keywords are keys of the model's section.
    """

    def make(*expected: str, supervisor: str = "", **keys: object) -> Instance:
        made = instance(*expected)
        made.write(made.model(**keys), supervisor)
        return made.start()

    return make


@pytest.fixture
def mendable(short_tmp: Path) -> Mendable:
    """A fault that can be mended while the supervisor runs."""
    return Mendable(short_tmp)
