"""The limit of a start: a fresh interpreter that imports and loads one model, says so, runs it once, and says that.

What it prints are seconds since the epoch.
"""

from __future__ import annotations

import os
import sys
import time

from modelworker import frameworks, loader


def main(path: str) -> None:
    """Load, then warm as a template does."""
    frameworks.prepare_numpy()
    model = loader.load_model(loader.ModelSpec("bare", path, "service.py", 1, -1, "bench", None))
    loaded = time.time()
    loader.warm_up(model, None)
    print(f"loaded {loaded:.4f} {time.time():.4f}", flush=True)
    os._exit(0)  # frameworks' own exit handlers are not part of it


if __name__ == "__main__":
    main(sys.argv[1])
