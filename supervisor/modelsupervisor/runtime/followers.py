"""Operators that read the log over the control socket: `logs`, with what the rings hold, and `logs -f`, with what comes.

A follower is one more sink: it has its own buffer, is never waited for, and what it does not take is dropped and counted for it
alone. It never slows a worker. After the answer that says so, its connection carries events, one JSON line each, until it is
closed: by the supervisor when everything is said, by the operator at any time.
"""

from __future__ import annotations

import socket

from modelsupervisor.control import LogsArguments
from modelsupervisor.log.journal import Journal
from modelsupervisor.log.outlet import Outlet, PortClosed
from modelsupervisor.log.render import Block
from modelsupervisor.runtime.operators import Operator, Operators


class _Connection:
    """The connection as a port."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    def write(self, payloads: list[memoryview]) -> int:
        if self._operator.fileno() < 0:
            raise PortClosed("the operator left")
        if self._operator.unsent:
            return 0  # the answer goes before the events
        try:
            return self._operator.connection.sendmsg(payloads, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PortClosed(error.strerror or str(error)) from None


class Followers:
    """All operators that read the log. `limit` is the size of each one's buffer in bytes."""

    def __init__(self, journal: Journal, limit: int) -> None:
        self._journal = journal
        self._limit = limit
        self._all: list[tuple[Outlet, Operator, bool]] = []

    def add(self, operators: Operators, operator: Operator, asked: LogsArguments) -> None:
        """Hand over what the rings have, and with `follow` everything from now on. The caller has answered."""

        def wanted(block: Block) -> bool:
            model, worker = block.about
            return (asked.model is None or model == asked.model) and (
                asked.index is None or worker == asked.index
            )

        name = f"logs of pid {operator.pid}"
        outlet = Outlet(name, _Connection(operator), self._limit, patient=False, wants=wanted)
        lines, size = [], 0
        for line in reversed(self._journal.newest(asked.lines, asked.model, asked.index)):
            size += len(line)
            if size > self._limit // 2:
                break
            lines.append(line)
        lines.reverse()
        if lines:
            outlet.put(Block(None, len(lines), b"".join(lines), (asked.model, asked.index)))
        if asked.follow:
            self._journal.outlets.append(outlet)
        operators.stream(operator)
        self._all.append((outlet, operator, asked.follow))

    def flush(self, operators: Operators, now: float) -> None:
        """Send what is taken; let go of those that left and those that have everything."""
        for entry in list(self._all):
            outlet, operator, follows = entry
            outlet.flush(now)
            if outlet.closed or (not follows and not outlet.backlog):
                self._all.remove(entry)
                if follows:
                    self._journal.outlets.remove(outlet)
                operators.end_stream(operator)
            else:
                operators.await_room(operator, outlet.backlog)
