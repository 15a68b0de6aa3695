"""Which of our children are ours: workers, spares, templates, heirs and log writers, and which are strangers.

A stranger is what a worker left behind, or what was reparented to us because we are a subreaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from modelsupervisor.runtime import processes
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.templates import Templates


class Kinship:
    """`pids` tells those of the workers and spares that live."""

    def __init__(self, edge: Edge, templates: Templates, pids: Callable[[], set[int]]) -> None:
        self._edge = edge
        self._templates = templates
        self._pids = pids

    def among(self, children: Iterable[int]) -> list[int]:
        """The strangers among children: nobody of ours, no heir (those wait in the session of their template), and not killed by
        us already.

        What is known is gathered once for all of them: this runs at every exit, and a thousand workers may exit together.
        """
        templates = self._templates.pids()
        known = self._pids() | templates | self._edge.servants | self._edge.doomed
        unknown = (pid for pid in children if pid not in known)
        return [pid for pid in unknown if processes.session_of(pid) not in templates]

    def strangers(self) -> bool:
        """True where we have a stranger, or cannot know: only then a dead worker can have left processes.

        What it left became our child when it died, a child subreaper that we are, or hangs below one that did. Looking at our
        children takes a tenth of the time of looking at every process of the machine.
        """
        children = processes.children()
        return not children or bool(self.among(children))
