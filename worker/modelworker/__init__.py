"""modelworker: the process that holds a model and answers requests for it on one Unix socket.

It needs Python 3.8 and the standard library, nothing of `modelsupervisor`, so that it runs in any
model's environment.
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]
