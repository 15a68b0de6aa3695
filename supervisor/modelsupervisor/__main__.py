"""`python -m modelsupervisor`: the same as the command `modelsupervisor`."""

from __future__ import annotations

import sys

from modelsupervisor.cli import main

if __name__ == "__main__":
    sys.exit(main())
