"""The pure core: what the supervisor decides, without a clock, a pid, a file, an environment or a logger.

`reduce(state, event) -> (state, actions)` is the only door. The edge (`modelsupervisor.runtime`) turns what the kernel, the
operator and the workers do into events, stamps them with the monotonic time, and carries the actions out in their order.
"""

from __future__ import annotations

from modelsupervisor.core.reduce import initial_state, next_deadline, reduce

__all__ = ["initial_state", "next_deadline", "reduce"]
