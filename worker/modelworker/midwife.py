"""The process between a template and a worker: forked of the template, it forks the worker, and is gone.

Theory of operation
-------------------
A worker is to be the supervisor's child, and the kernel gives a process another parent only when its own dies. So each birth takes
a process that lives for it alone. Its fork copies the template's memory map once more, three to four of the twelve milliseconds
from a crash to the first answer of a small MXNet model [measured]; but nothing of that fork depends on which worker is asked for.
So the template has it made ahead, when nothing is asked, and keeps it waiting; only in a burst of births is one made on demand.

Before it forks a midwife ahead the template seeds MXNet, which takes longer than a fork as well: the one worker that this midwife
brings inherits numbers that no other has.

A midwife waits on a channel of its own and ends itself when that closes; it is of the template's session, and dies with the
template by its death signal. The template reaps it after its one birth before it says `forked`, because only then is the worker
the supervisor's child.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Dict, List, NoReturn

from modelworker import process
from modelworker.boot import Birth, Inheritance, become_worker
from modelworker.channel import Channel, ChannelClosed


class Midwife:
    """The template's side of one midwife."""

    def __init__(self, pid: int, channel: Channel, freshly_seeded: bool) -> None:
        self.pid = pid
        self.channel = channel
        self.freshly_seeded = freshly_seeded

    def deliver(self, message: Dict[str, Any], descriptors: List[int]) -> int:
        """The pid of the worker that was asked for; the midwife is gone after that, either way.

        Raises OSError where a fork failed, and ChildProcessError where the midwife was gone before it was asked. One that ends
        while it is asked may have borne the worker already: that birth has failed, since a second try could make two of them.
        """
        try:
            try:
                self.channel.hand_over(descriptors, "birth", message=message)
            except OSError as error:
                raise ChildProcessError(errno.ECHILD, "the midwife is gone") from error
            try:
                answer, _ = self.channel.wait()
            except ChannelClosed as error:
                raise OSError(errno.EPIPE, "the midwife died while it was asked") from error
        finally:
            self.bury()
        assert answer is not None
        if answer["kind"] != "born":
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        return int(answer["pid"])

    def bury(self) -> None:
        """Close its channel, which ends it, and reap it."""
        self.channel.close()
        os.waitpid(self.pid, 0)


def call_midwife(inheritance: Inheritance, template: Channel, freshly_seeded: bool) -> Midwife:
    """Fork a midwife. Raises OSError where there can be none."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    me = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid == 0:
        ours.close()
        template.close()
        _attend(Channel(theirs), inheritance, me, freshly_seeded)
    theirs.close()
    return Midwife(pid, Channel(ours), freshly_seeded)


def _attend(
    channel: Channel, inheritance: Inheritance, template: int, freshly_seeded: bool
) -> NoReturn:
    """The midwife's life: wait, fork once, tell the pid, and be gone. Nothing of the template's may run in here."""
    try:
        process.die_with_parent(inheritance.libc, template)
        order, descriptors = channel.wait()
        if order is not None:
            birth = Birth.from_message(order["message"], descriptors, freshly_seeded)
            me = os.getpid()
            worker = os.fork()
            if worker == 0:
                become_worker(birth, inheritance, me)
            channel.send_raw(b'{"kind":"born","pid":%d}' % worker)  # the worker waits for our end
    except OSError as error:
        channel.send("failed", errno=error.errno or errno.EIO)
    except (ChannelClosed, process.Orphaned):
        pass  # the template is gone, or has no use for this midwife
    finally:
        os._exit(0)
