"""Control groups of a test's own: a folder below ours in the hierarchy of a controller, whatever its version.

Only root may make one, and in many containers not even root: then the test is skipped, with the reason.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.instance import wait_for


@dataclass(frozen=True)
class Group:
    """One group. `version` decides the names of its files."""

    path: Path
    version: int

    def set(self, name: str, value: object) -> None:
        """Write one of its files."""
        (self.path / name).write_text(f"{value}\n")

    def get(self, name: str) -> str:
        """Read one."""
        return (self.path / name).read_text()

    def has(self, name: str) -> bool:
        """True where there is such a file."""
        return (self.path / name).exists()

    def enter(self, *line: str) -> list[str]:
        """A command line that runs another one in this group, from its first moment on."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *line]


def _parent(controller: str) -> tuple[Path, int]:
    """Where this process's groups of a controller are, and the version; skips where that is not to be found."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controller in controllers.split(","):
            return Path("/sys/fs/cgroup") / controller / name.lstrip("/"), 1
    own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    # A group with processes in it may not hand controllers on (v2): the test's lies beside ours.
    beside = (Path("/sys/fs/cgroup") / own).parent if own else Path("/sys/fs/cgroup")
    try:
        handed_on = (beside / "cgroup.subtree_control").read_text().split()
    except OSError:
        handed_on = []
    if controller not in handed_on:
        pytest.skip(f"no control group with the controller {controller} can be made here")
    return beside, 2


@contextmanager
def control_group(controller: str) -> Iterator[Group]:
    """A new group; it is gone when its processes are, and that is waited for."""
    parent, version = _parent(controller)
    group = Group(parent / f"modelsupervisor-test-{uuid.uuid4().hex[:12]}", version)
    try:
        group.path.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        yield group
    finally:
        wait_for(lambda: not group.get("cgroup.procs").split(), "the group to be empty")
        os.rmdir(group.path)
