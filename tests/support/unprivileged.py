"""Running a supervisor as nobody, where the tests run as root and an interpreter is within nobody's reach.

The identity is changed by a wrapper before the interpreter is exec'd, so that no capability of root's helps to reach it: a virtual
environment in root's home is out of reach, and the machine's own Python, of the same version, takes its packages from it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping

import pytest

from support.instance import Instance, environment

NOBODY = 65534
_DROP = f"""
import json, os, resource, sys
for number, limit in json.loads(sys.argv[1]).items():
    resource.setrlimit(int(number), (limit, limit))
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
os.execv(sys.argv[2], sys.argv[2:])
"""


def as_nobody(*line: str, limits: Mapping[int, int] | None = None) -> list[str]:
    """A command line that runs another as nobody, with these resource limits, soft and hard."""
    return [sys.executable, "-c", _DROP, json.dumps(dict(limits or {})), *line]


def _import_path() -> str:
    return os.pathsep.join([environment("")["PYTHONPATH"], sysconfig.get_paths()["platlib"]])


@functools.lru_cache(maxsize=1)
def interpreter() -> str:
    """A Python of our version that nobody can run modelsupervisor with; skips the test where there is none."""
    if os.getuid() != 0:
        pytest.skip("only root can become nobody")
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/local/bin/{name}", f"/usr/bin/{name}"):
        tried = subprocess.run(
            as_nobody(candidate, "-c", "import modelsupervisor.runtime.start, modelsupervisor.cli"),
            env=environment("", PYTHONPATH=_import_path()),
            capture_output=True,
            check=False,
            cwd="/",
        )
        if tried.returncode == 0:
            return candidate
    pytest.skip("no interpreter is within nobody's reach")


def limit_processes(pid: int, count: int) -> None:
    """Set the soft RLIMIT_NPROC of a process of nobody's, as nobody: root in a container may not be allowed to."""
    code = f"""
import resource
_, hard = resource.prlimit({pid}, resource.RLIMIT_NPROC)
resource.prlimit({pid}, resource.RLIMIT_NPROC, ({count}, hard))
"""
    subprocess.run(as_nobody(interpreter(), "-c", code), check=True, cwd="/")


def launch_as_nobody(instance: Instance, limits: Mapping[int, int] | None = None) -> Instance:
    """Start the instance as nobody, perhaps with resource limits; its folder is given to nobody for that."""
    python = interpreter()
    for path in (instance.folder.parent, instance.folder, instance.config):
        os.chown(path, NOBODY, NOBODY)
    line = [python, "-m", "modelsupervisor", "start", "-c", str(instance.config)]
    return instance.launch(command=as_nobody(*line, limits=limits), PYTHONPATH=_import_path())
