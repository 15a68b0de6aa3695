"""Operators that read the log over the control socket: `logs`, with what the rings hold, and `logs -f`, with what comes.

A follower is one more sink: it has its own buffer, is never waited for, and what it does not take is dropped and counted for it
alone. It never slows a worker. After the answer that says so, its connection carries events, one JSON line each, until it is
closed: by the supervisor when everything is said, by the operator at any time.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

from modelsupervisor.control import LogsArguments
from modelsupervisor.log.journal import Journal
from modelsupervisor.log.outlet import Outlet
from modelsupervisor.log.render import Block
from modelsupervisor.runtime.operators import Operator, Operators


class _Connection:
    """The connection as a port."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator
        self._broken = False

    @property
    def left(self) -> bool:
        """The operator is gone, which is no fault of a sink and no event."""
        return self._broken or self._operator.fileno() < 0

    def write(self, payloads: list[memoryview]) -> int:
        if self.left or self._operator.unsent:
            return 0  # the answer goes before the events
        try:
            return self._operator.connection.sendmsg(payloads, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            self._broken = True
            return 0


class Followers:
    """All operators that read the log. `limit` is the size of each one's buffer in bytes."""

    def __init__(self, journal: Journal, limit: int) -> None:
        self._journal = journal
        self._limit = limit
        self._all: list[tuple[Outlet, _Connection, Operator, bool]] = []

    def add(self, operators: Operators, operator: Operator, asked: LogsArguments) -> None:
        """Hand over what the rings have, and with `follow` everything from now on. The caller has answered."""

        name = f"logs of pid {operator.pid}"
        itself = b'"sink":"%s"' % name.encode()  # what it misses, it is told, whatever it asked for

        def wanted(block: Block) -> bool:
            model, worker = block.about
            return (
                (asked.model is None or model == asked.model)
                and (asked.index is None or worker == asked.index)
            ) or (block.source is None and itself in block.json)

        connection = _Connection(operator)
        outlet = Outlet(name, connection, self._limit, patient=False, wants=wanted)
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
        self._all.append((outlet, connection, operator, asked.follow))

    def flush(self, operators: Operators, now: float) -> None:
        """Send what is taken; let go of those that left and those that have everything."""
        for entry in list(self._all):
            outlet, connection, operator, follows = entry
            outlet.flush(now)
            if connection.left or (not follows and not outlet.backlog):
                self._all.remove(entry)
                if follows:
                    self._journal.outlets.remove(outlet)
                operators.end_stream(operator)
            else:
                operators.await_room(operator, outlet.backlog)

    def end(self, now: Callable[[], float], seconds: float) -> None:
        """Everything is said: send what waits, for at most so long to those that take it."""
        deadline = now() + seconds
        while True:
            poll = select.poll()
            waiting = False
            for outlet, connection, operator, _ in self._all:
                outlet.flush(now())
                if outlet.backlog and not connection.left:
                    poll.register(operator.fileno(), select.POLLOUT)
                    waiting = True
            left = deadline - now()
            if not waiting or left <= 0:
                return
            poll.poll(left * 1000)
