"""File systems that only the supervisor under test sees, so that they can be full or stuck. Needs root, else the test skips.

They are mounted in a mount namespace which the supervisor's command line makes, and looked at from outside through /proc.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.instance import Instance

_FREEZE, _THAW = 0xC0045877, 0xC0045878  # FIFREEZE, FITHAW of linux/fs.h
_MOUNT = 'mount $1 "$2" "$3" && shift 3 && exec "$@"'


@functools.lru_cache(maxsize=1)
def _may_mount() -> bool:
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(tried, capture_output=True, check=False).returncode == 0
    )


class Disk:
    """A file system at `folder` for the supervisor that `start` starts; `seen` reaches what lies there, also after its end."""

    def __init__(self, folder: Path, options: str, source: str = "none") -> None:
        if not _may_mount():
            pytest.skip("mounting takes root, and a mount namespace")
        folder.mkdir()
        self.folder = folder
        self._how = [options, source, str(folder)]
        self._open = -1

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *exc: object) -> None:
        self.thaw()
        if self._open >= 0:
            os.close(self._open)

    def start(self, instance: Instance) -> None:
        """Start the supervisor with the file system in its place."""
        line = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(instance.config)]
        shell = ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", *self._how]
        instance.start(command=[*shell, *line])
        self._open = os.open(f"/proc/{instance.pid}/root{self.folder}", os.O_RDONLY)

    def seen(self, name: str) -> Path:
        """The path here of a file there."""
        return Path(f"/proc/self/fd/{self._open}/{name}")

    def freeze(self) -> None:
        """Whoever writes waits in the kernel from now on; no signal ends it."""
        fcntl.ioctl(self._open, _FREEZE, 0)

    def thaw(self) -> None:
        """Let them go on, where it is frozen."""
        if self._open >= 0:
            with contextlib.suppress(OSError):  # it was not frozen, or cannot be
                fcntl.ioctl(self._open, _THAW, 0)


def memory_disk(folder: Path, size: int) -> Disk:
    """A disk of so many bytes, of memory."""
    return Disk(folder, f"-t tmpfs -o size={size}")


def block_disk(folder: Path, size: int) -> Disk:
    """A disk of so many bytes, with ext4 in a file: one that can be frozen."""
    image = folder.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(size)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("there is no mkfs.ext4")
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    disk = Disk(folder, "-o loop", str(image))
    tried = subprocess.run(
        ["unshare", "--mount", "mount", "-o", "loop", str(image), str(folder)],
        capture_output=True,
        check=False,
    )
    if tried.returncode:
        pytest.skip(f"no loop device: {tried.stderr.decode().strip()}")
    return disk
