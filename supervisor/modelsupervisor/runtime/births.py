"""What the birth of a worker in a slot and that of a spare have in common: words, descriptors, and whom to believe.

A birth is asked of a template, and answered by it with the number of a process. A number is a process's word, and we are going to
signal whom it names: so it is held against the kernel before anything is done with it. It cannot change hands meanwhile, since it
is our child, and nobody else reaps those.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Protocol

from modelsupervisor.core.states import SlotKey
from modelsupervisor.runtime import processes
from modelsupervisor.runtime.board import Board
from modelsupervisor.runtime.edge import Edge
from modelsupervisor.runtime.messages import Message, SupervisorEnd
from modelsupervisor.runtime.reactor import Rank


class NotOurs(Exception):
    """A process that was said to be a newborn of ours is none; the text says what it is instead."""


def slot_message(edge: Edge, kind: str, key: SlotKey, generation: int) -> Message:
    """`fork` or `seat`: all that a worker has to know of its slot."""
    plan = edge.plans[key.model]
    return {
        "kind": kind,
        "model": key.model,
        "index": key.index,
        "generation": generation,
        "cpus": plan.placement.workers[key.index].cpus,
        "threads": plan.threads,
        "gpu": plan.gpu(key.index),
        "allow_load": plan.settings.allow_load,
        "max_connections": plan.settings.max_connections,
        "frame_timeout": plan.settings.frame_timeout,
        "max_requests": plan.settings.max_requests,
        "scoreboard_offset": Board.offset(edge.places[key].number),
    }


@contextlib.contextmanager
def slot_descriptors(edge: Edge, key: SlotKey) -> Iterator[list[int]]:
    """The listener, fresh writing ends of both FIFOs, and the scoreboard, for as long as they are being sent. Raises OSError."""
    place = edge.places[key]
    out, err = place.writing_ends()
    try:
        yield [place.listener.fileno(), out, err, edge.board.fd]
    finally:
        os.close(out)
        os.close(err)


def adopt(edge: Edge, pid: int, taken: set[int], on_exit: Callable[[], None]) -> int:
    """A pidfd, watched, of the child that a birth is said to have brought; `taken` are those we know already. Raises NotOurs.

    A child whose end we would not see may not live: it is killed, and reaped like an orphan.
    """
    if pid in taken or pid in edge.servants or not processes.is_child(pid):
        raise NotOurs(f"the process that it was said to be, {pid}, is no new child of ours")
    pidfd = -1
    try:
        pidfd = os.pidfd_open(pid)
        edge.reactor.add(pidfd, Rank.LIFE, lambda _: on_exit())
    except OSError as error:
        edge.doomed.add(pid)
        processes.kill_child(pid)
        if pidfd >= 0:
            os.close(pidfd)
        raise NotOurs(f"its process cannot be watched: {error.strerror}") from None
    return pidfd


def end_unwanted(edge: Edge, pid: int) -> None:
    """A birth that was given up came after all: nobody wants the process."""
    if pid in processes.children() and pid not in edge.servants:
        processes.kill_child(pid)


class Tied(Protocol):
    """A process of ours by what ties us to it."""

    channel: SupervisorEnd | None
    pidfd: int


def close_channel(edge: Edge, process: Tied) -> None:
    """Close our end of a channel, which tells the other side that we are done with it."""
    if process.channel is not None and not process.channel.closed:
        edge.reactor.remove(process.channel.fileno())
        process.channel.close()


def let_go(edge: Edge, process: Tied) -> None:
    """Close both ties, of a process that is gone or that never came."""
    close_channel(edge, process)
    if process.pidfd >= 0:
        edge.reactor.remove(process.pidfd)
        os.close(process.pidfd)
        process.pidfd = -1
