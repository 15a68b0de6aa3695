"""The holes in the C heap that a model's load leaves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from modelworker import heap

# In a process of its own, whose heap nobody else uses meanwhile: every second chunk is freed, then as many are asked for again.
PROGRAM = """
import ctypes, sys
from modelworker.heap import fill_holes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
sizes = [40, 200, 1000, 2000]
holes = set()
for size in sizes:
    chunks = [libc.malloc(size) for _ in range(400)]
    for chunk in chunks[::2]:
        libc.free(chunk)
    holes.update(chunks[::2])
taken = fill_holes(libc) if sys.argv[1] == "filled" else 0
again = {libc.malloc(size) for size in sizes for _ in range(200)}
print(taken, len(holes & again))
"""


def _holes_used_again(how: str) -> tuple[int, int]:
    folder = str(Path(heap.__file__).parent.parent)
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        env={"PYTHONPATH": folder},
        capture_output=True,
        text=True,
        check=True,
    )
    taken, used = run.stdout.split()
    return int(taken), int(used)


def test_later_allocations_stay_out_of_the_holes() -> None:
    """Without it nearly all of the freed chunks are handed out again, with it next to none, at the price of a bounded number."""
    _, used = _holes_used_again("left")
    if used < 600:
        pytest.skip("this allocator does not give freed chunks out again")
    taken, used = _holes_used_again("filled")
    assert used <= 8
    assert taken < 10_000


def test_another_c_library_is_left_alone() -> None:
    """Nothing is taken where there is no malloc_trim, hence no glibc."""

    class Other:
        def malloc(self, size: int) -> int:
            raise AssertionError("asked for memory")

    assert heap.fill_holes(Other()) == 0  # type: ignore[arg-type]


def test_the_module_runs_in_any_models_environment() -> None:
    """Python 3.8 can parse it."""
    ast.parse(Path(heap.__file__).read_text(), feature_version=(3, 8))
