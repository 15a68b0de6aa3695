"""Fixtures for every test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.instance import Instance, instances


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
