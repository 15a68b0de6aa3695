"""The next worker, born ahead of its slot: a fork of the template that waits to be told which slot it is to fill.

Theory of operation
-------------------
A worker is to be the supervisor's child, so that one place sees every exit status; and the kernel gives a process another parent
only when its own dies. So a birth is a double fork: the template forks an intermediate, that forks the heir and exits at once, and
the heir is reparented to the supervisor, a child subreaper. With a loaded model that is the memory map copied twice and torn down
once, two thirds of the time from a crash to the first answer [measured]; but nothing of it depends on which slot is asked for. So
the template has an heir born while nothing is asked, and a successor is there at once. In a burst of births each further one is
born on demand, the same way.

Before it bears an heir ahead of time the template seeds MXNet, which takes longer than a fork: that one heir inherits numbers that
no other process has.

An heir holds nothing of any slot. It is of the template's session and ends with it; it ends itself when its channel closes; and it
dies with the supervisor, whose death signal it sets once that is its parent. Not until then is it an heir: its pid is told last, so
that whoever knows the pid knows whose child it is [measured: waiting on a pidfd before the reparenting says ECHILD, for ever].
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Dict, List, NoReturn

from modelworker import process
from modelworker.boot import become
from modelworker.channel import Channel, ChannelClosed
from modelworker.readiness import Inheritance

_GONE = "the heir died before it was one"


class Heir:
    """The template's side of one heir."""

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self.channel = channel

    def succeed(self, message: Dict[str, Any], descriptors: List[int]) -> int:
        """Hand a slot over; the pid of the worker that it becomes. Raises BrokenPipeError where the heir is gone."""
        try:
            self.channel.hand_over(descriptors, "birth", message=message)
        finally:
            self.channel.close()
        return self.pid


def bear_heir(inheritance: Inheritance, template: Channel, freshly_seeded: bool) -> Heir:
    """Fork twice, and return when the heir is the supervisor's child. Raises OSError where a fork failed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours)
    try:
        with theirs:
            intermediate = os.fork()
            if intermediate == 0:
                _be_intermediate(theirs, [channel, template], inheritance, freshly_seeded)
        _, status = os.waitpid(intermediate, 0)
        failure = os.WEXITSTATUS(status) if os.WIFEXITED(status) else errno.ECHILD
        if failure:
            raise OSError(failure, os.strerror(failure))
        message, _ = channel.wait()
    except ChannelClosed as error:
        channel.close()
        raise OSError(errno.ECHILD, _GONE) from error
    except OSError:
        channel.close()
        raise
    assert message is not None
    return Heir(int(message["pid"]), channel)


def _be_intermediate(
    end: socket.socket, foreign: List[Channel], inheritance: Inheritance, freshly_seeded: bool
) -> NoReturn:
    """Fork the heir and be gone, with the error number for an exit code. Nothing of the template's may run in here."""
    code = 0
    try:
        me = os.getpid()
        if os.fork() == 0:
            for channel in foreign:
                channel.close()
            _await_slot(Channel(end), inheritance, me, freshly_seeded)
    except OSError as error:
        code = error.errno or errno.EIO
    finally:
        os._exit(code)


def _await_slot(
    channel: Channel, inheritance: Inheritance, intermediate: int, freshly_seeded: bool
) -> NoReturn:
    """The heir: become the supervisor's child, say so, wait for a slot, and become its worker."""
    try:
        process.await_reparenting(intermediate, inheritance.supervisor)
        process.die_with_parent(inheritance.libc, inheritance.supervisor)
        channel.send("heir", pid=os.getpid())
        process.set_title("modelsupervisor: heir of %s" % inheritance.spec.name)
        order, descriptors = channel.wait()
        if order is not None:
            become(order["message"], descriptors, inheritance, freshly_seeded)
    except (ChannelClosed, process.Orphaned, OSError):
        pass  # the template or the supervisor is gone: there is no slot to wait for
    finally:
        os._exit(0)
