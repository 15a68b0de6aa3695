"""Eight workers with 200 MiB of weights: what the whole tree of processes holds, and how soon all of them are READY.

Memory is the proportional set size of the supervisor and every process under it: a page counts once, libraries included. It is
read after every worker has answered REQUESTS requests. What the kernel calls PSS divides a page among all that map it; a process
that has nothing to do with this one, and the same library open, would take half of that away [measured: 60 MiB of MXNet's]. So the
kernel's figure is taken for anonymous memory, and the pages of files are looked up one by one and counted once for the tree. A
worker's private memory is what it alone has: the pages that it wrote since its birth. MiB, as the figures of other servers are.

The time to READY counts from the exec of the supervisor to the last worker's own message. Its limit is one fresh interpreter that
imports and loads the same model and starts nothing else, in turn with it. Neither has to read the disk: the file of weights was
written just before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from modelworker.threads import thread_environment

from benchmarks.harness import (
    ROOT,
    Figure,
    Running,
    ask,
    environment,
    median,
    predict_frame,
    spread,
    supervisor,
)

ROUNDS = 3
WORKERS = 8
PAGE = os.sysconf("SC_PAGESIZE")
REQUESTS = 20  # of each worker
SETTLED = 0.5  # seconds after which the template has borne its heir
ASKED_TREE = {"weights": 300.0, "weights_mxnet": 440.0}  # MiB
ASKED_PRIVATE = 8.0
ASKED_READY = 1.3
NAMES = {"weights": "NumPy", "weights_mxnet": "MXNet"}


@dataclass(frozen=True)
class Held:
    """MiB: of the whole tree; of that the pages of files, and the supervisor's own; what one worker has alone."""

    tree: float
    files: float
    supervisor: float  # with its log writer, without files
    private: float


@contextmanager
def _model(kind: str) -> Iterator[Path]:
    """A folder with the handler and its file of weights."""
    with tempfile.TemporaryDirectory(prefix="bench", dir="/tmp") as made:
        folder = Path(made)
        source = ROOT / "benchmarks" / "models" / kind / "service.py"
        (folder / "service.py").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        subprocess.run(
            [sys.executable, str(folder / "service.py"), made],
            check=True,
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
        yield folder


def _descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for task in os.listdir(f"/proc/{pid}/task"):
        children = Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii")
        for child in children.split():
            found += _descendants(int(child))
    return found


def _sizes(pid: int) -> tuple[float, float]:
    """MiB, files left out: a process's proportional share, and what it has alone."""
    sums = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = {line.split()[0]: int(line.split()[1]) for line in sums.splitlines()[1:]}
    return found["Pss_Anon:"] / 1024, found["Private_Dirty:"] / 1024


def _file_pages(pid: int) -> set[tuple[str, int]]:
    """The pages of files that a process has mapped and resident, each as its file and its number there."""
    pages = set()
    with open(f"/proc/{pid}/pagemap", "rb") as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
            span, _, offset, device, inode, *_ = line.split()
            if inode == "0":
                continue
            begin, end = (int(address, 16) // PAGE for address in span.split("-"))
            pagemap.seek(8 * begin)
            entries = array("Q", pagemap.read(8 * (end - begin)))
            first = int(offset, 16) // PAGE
            pages |= {
                (f"{device} {inode}", first + number)
                for number, entry in enumerate(entries)
                if entry >> 63 and entry >> 61 & 1  # present; of a file, or shared
            }
    return pages


def _held(running: Running) -> Held:
    workers = {running.worker("w", index)["pid"] for index in range(WORKERS)}
    tree = _descendants(running.process.pid)
    sizes = {pid: _sizes(pid) for pid in tree}
    files = len(set().union(*(_file_pages(pid) for pid in tree))) * PAGE / 2**20
    own = [pid for pid in tree if b"modelsupervisor: " not in _title(pid)]  # no child of a template
    return Held(
        tree=sum(share for share, _ in sizes.values()) + files,
        files=files,
        supervisor=sum(sizes[pid][0] for pid in own),
        private=median([sizes[pid][1] for pid in workers]),
    )


def _title(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _bare(folder: Path) -> tuple[float, float]:
    """Seconds from exec until a plain process has loaded the model, and until it ran it once."""
    environ = environment()
    environ.update(thread_environment(1, False, environ))
    begun = time.time()
    command = [sys.executable, "-m", "benchmarks.bare_load", str(folder)]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    said = next(line for line in run.stdout.splitlines() if line.startswith("loaded "))
    loaded, warmed = said.split()[1:]
    return float(loaded) - begun, float(warmed) - begun


def _ours(folder: Path) -> tuple[float, Held]:
    """Seconds from exec until all workers are READY, and the memory once each has answered."""
    section = f"[model:w]\npath = {folder}\nhandler = service.py\nworkers = {WORKERS}\n"
    frame = predict_frame(b"x", "text/plain")
    with supervisor(section) as running:
        ready = running.wait_event("worker.ready", WORKERS)["timestamp"]
        for _ in range(REQUESTS):
            for index in range(WORKERS):
                answer = ask(str(running.run_dir / f"w.{index}.sock"), frame)
                assert answer is not None
                assert answer.code == 200
        time.sleep(SETTLED)
        return datetime.fromisoformat(ready).timestamp() - running.begun, _held(running)


def _measure(kind: str) -> list[Figure]:
    starts: list[float] = []
    limit: list[tuple[float, float]] = []
    held: list[Held] = []
    with _model(kind) as folder:
        _bare(folder)  # what is read for the first time is read from the disk
        for _ in range(ROUNDS):
            limit.append(_bare(folder))
            start, memory = _ours(folder)
            starts.append(start)
            held.append(memory)
    return [*_memory_figures(kind, held), _start_figure(kind, starts, limit)]


def _memory_figures(kind: str, held: list[Held]) -> list[Figure]:
    trees, privates = [each.tree for each in held], [each.private for each in held]
    parts = (
        f"of that files {median([each.files for each in held]):.0f}, "
        f"supervisor and log writer {median([each.supervisor for each in held]):.0f}"
    )
    asked = ASKED_TREE[kind]
    return [
        Figure(
            f"{WORKERS} workers × 200 MiB of weights, {NAMES[kind]}: PSS of all processes, MiB",
            f"{spread(trees)}: {parts}",
            f"≤ {asked:.0f}",
            median(trees) <= asked,
        ),
        Figure(
            "… private memory of a worker, MiB",
            spread(privates),
            f"≤ {ASKED_PRIVATE:.0f}",
            median(privates) <= ASKED_PRIVATE,
        ),
    ]


def _start_figure(kind: str, starts: list[float], limit: list[tuple[float, float]]) -> Figure:
    loads = [loaded for loaded, _ in limit]
    warm = median([warmed for _, warmed in limit])
    ratio = median(starts) / median(loads)
    return Figure(
        f"… from start to all READY, against one plain import and load ({NAMES[kind]})",
        f"{ratio:.2f} × {median(loads):.2f} s ({median(starts):.2f} s; plain with one inference {warm:.2f} s)",
        f"≤ {ASKED_READY}",
        ratio <= ASKED_READY,
    )


def measure() -> list[Figure]:
    """Both kinds of model."""
    return [figure for kind in NAMES for figure in _measure(kind)]
