"""A root file system that nobody can write to, as containers have it: a run directory is all that is needed beside it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import pytest

from support.faults import crash, echo, ready
from support.instance import Instance
from support.namespaces import launch_in_namespace, pids_inside

Make = Callable[..., Instance]

# Everything but the run directory, /proc and devices
_READ_ONLY = """
set -e
while read -r _ _ _ _ point _; do
    case "$point" in
        {run_dir} | /proc | /proc/* | /dev | /dev/* | /sys/*) ;;
        *) mount -o remount,bind,ro "$point" 2>/dev/null || [ "$point" != / ] ;;
    esac
done < /proc/self/mountinfo
! touch {folder}/probe 2>/dev/null
! touch /tmp/probe-{mark} 2>/dev/null
touch {run_dir}/probe && rm {run_dir}/probe
"""


@pytest.fixture
def read_only(instance: Make) -> Iterator[Instance]:
    """A supervisor that may write nowhere but to its run directory, a small file system of its own; HOME is not writable either."""
    made = instance("worker.exited")
    made.write(made.model(workers=2, threads=1, env__HOME="/nowhere"))
    made.run_dir.mkdir(mode=0o700)
    line = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(made.run_dir)]
    mounted = subprocess.run(line, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    try:
        place = {"run_dir": made.run_dir, "folder": made.folder, "mark": made.mark}
        launch_in_namespace(made, _READ_ONLY.format(**place))
        yield made
        made.finish()
    finally:
        subprocess.run(["umount", "-l", str(made.run_dir)], check=True)


def test_a_read_only_root(read_only: Instance) -> None:
    """It starts, serves, replaces workers on crash and on demand, and stops; the file system of the run directory has 256 KiB."""
    read_only.wait_event("supervisor.ready")
    assert len(pids_inside(read_only)) >= 4
    for generation in (1, 2):
        crash(read_only, "kill")
        ready(read_only, generation + 1)
        assert echo(read_only) == b"are you there"
    for target in ("echo/1", "echo"):
        done = read_only.cli("restart", target, "-c", str(read_only.config))
        assert (done.returncode, done.stderr) == (0, "")
    assert echo(read_only, index=1) == b"are you there"
    assert read_only.stop() == 0
    assert (read_only.folder / "stderr").read_text() == ""
