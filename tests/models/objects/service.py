"""A model of very many small objects, and a handler that collects garbage: whatever touches them copies their pages.

They are made at the import or at the load, as OBJECTS_AT says.
"""

import gc
import os

OBJECTS = []


def _make():
    OBJECTS.extend([number] for number in range(400_000))


if os.environ.get("OBJECTS_AT") == "import":
    _make()


def _private():
    with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
        lines = dict(line.split(":", 1) for line in rollup if ":" in line)
    return int(lines["Private_Dirty"].split()[0]) * 1024


def handle(data, context):
    if data is None:
        if not OBJECTS:
            _make()
        return None
    gc.collect()
    return [str(_private()) for _ in data]
