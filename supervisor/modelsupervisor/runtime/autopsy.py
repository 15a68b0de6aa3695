"""What the kernel says of the threads of a process that hangs: whether they run or sleep, where, and in which system call.

Python's own stacks come from the process itself, at SIGABRT; this is what is known of one that cannot even do that, and it tells a
loop from a wait. Only files are read that neither wait for the process nor touch its memory, of MOST_THREADS threads at most. What
may not be read (the name of the place needs the right to trace) is left out.
"""

from __future__ import annotations

import os

MOST_THREADS = 32
_MOST_BYTES = 512  # of each file; the longest of these has some 300


def threads_of(pid: int) -> list[str]:
    """A line for each thread, the oldest first: `4711 python: S, in pipe_read, system call 0`; none where the process is gone."""
    try:
        # In the order of their births, as the kernel lists them; their numbers wrap around
        tasks = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []
    lines = [_thread(pid, task) for task in tasks[:MOST_THREADS]]
    return [line for line in lines if line]


def _thread(pid: int, task: int) -> str:
    """`system call 0`: the number, since names differ from machine to machine; -1 for a thread in none that waits all the same."""
    name, _, rest = _read(pid, task, "stat").partition("(")[2].rpartition(")")
    state = rest.split()[:1]
    if not state:
        return ""
    words = [f"{task} {name}: {state[0]}"]
    place = _read(pid, task, "wchan")
    if place not in ("", "0"):
        words.append(f"in {place}")
    call = _read(pid, task, "syscall").split()[:1]
    if call and call != ["running"]:
        words.append(f"system call {call[0]}")
    return ", ".join(words)


def _read(pid: int, task: int, name: str) -> str:
    try:
        descriptor = os.open(f"/proc/{pid}/task/{task}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, _MOST_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""
    finally:
        os.close(descriptor)
