"""Processes that nobody of ours is: left by a worker, or reparented to us because we are the subreaper, or PID 1.

Never a wait for just any child: the statuses of our own belong to their pidfds. An unknown child is looked at by its pid, reported
while it lives, and reaped by its pid when it is dead.
"""

from __future__ import annotations

import os
import signal

from modelsupervisor.runtime import processes
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.templates import Templates
from modelsupervisor.runtime.workers import Workers

ORPHAN_ROUNDS = 8  # generations of a fork bomb that the end still follows
ORPHAN_PATIENCE = 1.0  # seconds for one killed process to be gone


class Orphans:
    """The strangers among our children. `due` says that there may be news of one: SIGCHLD came."""

    def __init__(self, edge: Edge, workers: Workers, templates: Templates) -> None:
        self._edge = edge
        self._workers = workers
        self._templates = templates
        self._known: set[int] = set()
        self.due = False

    def reap(self) -> None:
        """Reap the unknown dead and report the unknown living that were reparented to us.

        While a birth is open, an unknown child may be the newborn, so that nothing unknown is touched until its pid is told.
        """
        if not self.due or self._workers.births_open:
            return
        self.due = False
        # One whose own parent reaped it is not ours to reap; its number may become a stranger's.
        gone = {pid for pid in self._edge.doomed if processes.session_of(pid) == -1}
        self._edge.doomed.difference_update(gone)
        own = self._workers.pids() | self._templates.pids() | self._edge.servants
        while (found := processes.peek_any_child()) is not None:
            pid, status = found
            if pid in own:
                # Its own descriptor tells of it; what is behind it, after that
                self.due = True
                return
            processes.reap_pid(pid)
            self._edge.doomed.discard(pid)
            if pid in self._known:
                self._known.discard(pid)
                self._edge.journal.emit("info", "orphan.exited", pid=pid, reason=str(status))
        for pid in self._workers.kinship.among(processes.children()):
            if pid not in self._known and not processes.is_zombie(pid):
                self._known.add(pid)
                command = processes.command_of(pid)
                self._edge.journal.emit("warning", "orphan.adopted", pid=pid, command=command)

    def end(self) -> None:
        """At the very end: whatever still lives below us was left by a worker, and goes, and so do its own children."""
        for _ in range(ORPHAN_ROUNDS):
            left = [pid for pid in processes.children() if pid not in self._edge.servants]
            if not left:
                return
            for pid in left:
                self._end_one(pid)

    def _end_one(self, pid: int) -> None:
        command = processes.command_of(pid)
        expected = pid in self._edge.doomed or processes.is_zombie(pid)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            processes.kill_child(pid)  # and the next round sees to it
            return
        try:
            processes.send_signal(pidfd, signal.SIGKILL)
            if not expected:
                fields = {"pid": pid, "command": command}
                self._edge.journal.emit("warning", "orphan.killed", **fields)
            processes.await_exit(pidfd, ORPHAN_PATIENCE)
            processes.reap(pidfd)
        finally:
            os.close(pidfd)
