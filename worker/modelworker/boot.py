"""From heir to READY: what a worker does to itself, in order, once it has its slot and before it serves.

There are two parts. `take_slot` is about the slot: session, output, descriptors, CPUs, scoreboard. `readiness.make_ready` is about
the model, and needs no slot.

The order is the safety. An heir is the supervisor's child and has its death signal set before it is told of a slot (`heir`), so
that no code of the model ever runs without it. Standard output goes to the slot's FIFOs before anything can print. Foreign
descriptors are closed before any code of the model runs, so that a sibling's socket held open by mistake cannot keep its clients
waiting. CPUs and thread counts come before the first use of a pool. READY is a message, and it is sent last.
"""

from __future__ import annotations

import os
import socket
import traceback
from typing import Any, Dict, FrozenSet, List, NamedTuple, NoReturn, Optional, Sequence

from modelworker import process
from modelworker.channel import Channel, tail
from modelworker.readiness import Inheritance, make_ready
from modelworker.scoreboard import RECORD_SIZE, Record
from modelworker.serve import ServeSettings, serve

START_FAILED = 1  # the exit code of a worker that said why it could not start


class Birth(NamedTuple):
    """One `fork` message: the slot's place, its descriptors, and how it is to serve."""

    model: str
    worker: int  # the index of the slot
    generation: int
    cpus: Optional[List[int]]
    threads: int
    settings: ServeSettings
    scoreboard_offset: int
    channel: int
    listener: int
    stdout: int
    stderr: int
    scoreboard: int
    freshly_seeded: bool  # no sibling was forked since the template seeded MXNet

    @classmethod
    def from_message(
        cls, message: Dict[str, Any], descriptors: Sequence[int], freshly_seeded: bool
    ) -> Birth:
        """The message with its five descriptors, in the order channel, listener, stdout, stderr, scoreboard."""
        channel, listener, stdout, stderr, scoreboard = descriptors
        return cls(
            model=message["model"],
            worker=message["index"],
            generation=message["generation"],
            cpus=message["cpus"],
            threads=message["threads"],
            settings=ServeSettings(
                max_connections=message["max_connections"],
                frame_timeout=message["frame_timeout"],
            ),
            scoreboard_offset=message["scoreboard_offset"],
            channel=channel,
            listener=listener,
            stdout=stdout,
            stderr=stderr,
            scoreboard=scoreboard,
            freshly_seeded=freshly_seeded,
        )


class Slot(NamedTuple):
    """What a worker holds of its slot."""

    channel: Channel
    listener: socket.socket
    record: Record


def close_all_but(kept: FrozenSet[int]) -> None:
    """Close every open descriptor that is not on the list."""
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the listing's own descriptor, closed when the listing was done


def become_worker(birth: Birth, inheritance: Inheritance) -> NoReturn:
    """Turn an heir into the worker of a slot, serve, and exit. Never returns into the template's code."""
    code = START_FAILED
    try:
        channel = Channel(socket.socket(fileno=birth.channel))
        try:
            slot = take_slot(birth, inheritance, channel)
            model = make_ready(inheritance, birth.threads, birth.freshly_seeded)
            cpus = sorted(os.sched_getaffinity(0))
        # Of the operating system or of the handler's own code: reported whole
        except Exception as error:
            _decline(channel, error)
        else:
            channel.send("ready", facts={"pid": os.getpid(), "cpus": cpus})
            code = serve(model, slot.listener, channel, slot.record, birth.settings)
    # The last line before the template's own stack: say it and die, never unwind into it
    except BaseException:
        traceback.print_exc()
        code = START_FAILED
    finally:
        process.flush_output()
        os._exit(code)


def take_slot(birth: Birth, inheritance: Inheritance, channel: Channel) -> Slot:
    """Make this process the slot's: nothing in here is code of the model."""
    os.setsid()
    os.dup2(birth.stdout, 1)
    os.dup2(birth.stderr, 2)
    ours = frozenset((0, 1, 2, birth.channel, birth.listener, birth.scoreboard))
    close_all_but(ours | inheritance.kept)
    process.pin(birth.cpus)
    process.set_title("modelsupervisor: %s/%d" % (birth.model, birth.worker))
    offset = birth.scoreboard_offset
    region = process.map_shared(inheritance.libc, birth.scoreboard, RECORD_SIZE, offset)
    os.close(birth.scoreboard)
    record = Record(region)
    record.reset(birth.generation)
    return Slot(channel, socket.socket(fileno=birth.listener), record)


def _decline(channel: Channel, error: Exception) -> None:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    said = "%s: %s" % (type(error).__name__, error)
    channel.send("start_failed", error=tail(said, 2048), traceback=tail(text))
