"""From heir to READY: what a worker does to itself, in order, once it has its slot and before it serves.

There are two parts. `take_slot` is about the slot: output, CPUs, GPU, scoreboard. `readiness.make_ready` is about the model, and
needs no slot: a *spare* does that part first, says `parked`, and takes the other one when the supervisor has a slot for it
(`seat`). With `preload = none` an heir executes a new interpreter before either, and comes back here from `executed`.

The order is the safety. An heir is the supervisor's child and has its death signal set before it is told of a slot (`heir`), so
that no code of the model ever runs without it. Standard output goes to the slot's FIFOs before anything can print. Foreign
descriptors are closed before any code of the model runs, so that a sibling's socket held open by mistake cannot keep its clients
waiting. CPUs and thread counts come before the first use of a pool. READY is a message, and it is sent last.
"""

from __future__ import annotations

import os
import socket
import traceback
from functools import partial
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, NoReturn, Optional, Sequence

from modelworker import frameworks, loader, process
from modelworker.assignment import Assignment, execute
from modelworker.attestation import attestation
from modelworker.channel import Channel, ChannelClosed
from modelworker.complaints import complaint
from modelworker.readiness import Inheritance, make_ready
from modelworker.scoreboard import RECORD_SIZE, Record
from modelworker.serve import ServeSettings, serve

GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"
START_FAILED = 1  # the exit code of a worker that said why it could not start


class Birth(NamedTuple):
    """What a slot is to its worker: who it is, its descriptors, and how it is to serve."""

    model: str
    worker: int  # the index of the slot
    generation: int
    cpus: Optional[List[int]]
    threads: int
    gpu: Optional[int]  # the one GPU that it is shown, by the number that the machine has for it
    settings: ServeSettings
    scoreboard_offset: int
    listener: int
    stdout: int
    stderr: int
    scoreboard: int

    @classmethod
    def from_message(cls, message: Dict[str, Any], descriptors: Sequence[int]) -> Birth:
        """A `fork` or `seat` message with its descriptors: listener, stdout, stderr, scoreboard."""
        listener, stdout, stderr, scoreboard = descriptors
        return cls(
            model=message["model"],
            worker=message["index"],
            generation=message["generation"],
            cpus=message["cpus"],
            threads=message["threads"],
            gpu=message["gpu"],
            settings=ServeSettings(
                max_connections=message["max_connections"],
                frame_timeout=message["frame_timeout"],
                max_requests=message["max_requests"] or 0,
                allow_load=message["allow_load"],
            ),
            scoreboard_offset=message["scoreboard_offset"],
            listener=listener,
            stdout=stdout,
            stderr=stderr,
            scoreboard=scoreboard,
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


def become(
    message: Dict[str, Any],
    descriptors: Sequence[int],
    inheritance: Inheritance,
    freshly_seeded: bool,
) -> NoReturn:
    """Turn an heir into what a `fork` message asks for, serve, and exit. Never returns into the template's code.

    The first descriptor is the channel; those of a slot follow, unless the message asks for a spare. `freshly_seeded` says that no
    sibling was forked since the template seeded MXNet.
    """
    code = START_FAILED
    try:
        channel = Channel(socket.socket(fileno=descriptors[0]))
        try:
            if os.getsid(0) != os.getpid():
                os.setsid()
            close_all_but(frozenset((0, 1, 2, *descriptors)) | inheritance.kept)
            if inheritance.interpreter is not None:
                _execute(message, descriptors, inheritance, inheritance.interpreter)
            if "spare" in message:
                begin = _park(channel, message, inheritance, freshly_seeded)
            else:
                begin = _begin(channel, message, descriptors, inheritance, freshly_seeded)
        # Of the operating system or of the handler's own code: reported whole
        except Exception as error:
            channel.send("start_failed", **complaint(error))
        else:
            code = 0 if begin is None else begin()
    # The last line before the template's own stack: say it and die, never unwind into it
    except BaseException:
        traceback.print_exc()
        code = START_FAILED
    finally:
        process.flush_output()
        os._exit(code)


def _execute(
    message: Dict[str, Any], descriptors: Sequence[int], inheritance: Inheritance, interpreter: str
) -> NoReturn:
    """Become a new interpreter, which goes on in `become`; what it and its libraries look at as they start is there before."""
    if "spare" not in message:
        _enter(Birth.from_message(message, descriptors[1:]))
    supervisor, spec, kept = inheritance.supervisor, inheritance.spec, inheritance.kept
    execute(interpreter, Assignment(supervisor, spec, message, list(descriptors), sorted(kept)))


def _begin(
    channel: Channel,
    message: Dict[str, Any],
    descriptors: Sequence[int],
    inheritance: Inheritance,
    freshly_seeded: bool,
) -> Callable[[], int]:
    """Take the slot first, so that what the model prints is the slot's output; returns what serves."""
    birth = Birth.from_message(message, descriptors[1:])
    slot = take_slot(birth, inheritance, channel)
    ready = make_ready(inheritance, birth.threads, freshly_seeded)
    return partial(_serve, [ready.model], ready.facts, slot, birth, inheritance)


def _park(
    channel: Channel, message: Dict[str, Any], inheritance: Inheritance, freshly_seeded: bool
) -> Optional[Callable[[], int]]:
    """Be a spare: everything but the slot, then wait for one; None where none comes any more.

    What it prints meanwhile is the template's output. Its CPUs are those of the whole model until it has a slot. A model that it
    inherited warm it runs once more: a process's first inference copies the pages that it writes to and starts the threads that
    compute, half of its time [measured: 4.4 ms of CPU for the first answer without this, 2.2 with it].
    """
    process.set_title("modelsupervisor: spare of %s" % message["model"])
    ready = make_ready(inheritance, message["threads"], freshly_seeded)
    if isinstance(inheritance.source, loader.LoadedModel):
        loader.warm_up(ready.model, inheritance.spec.warmup)
    process.flush_output()
    channel.send("parked", facts={"pid": os.getpid()})
    try:
        order, descriptors = channel.wait()
    except ChannelClosed:
        return None
    if order is None or order["kind"] != "seat":
        return None
    birth = Birth.from_message(order, descriptors)
    slot = take_slot(birth, inheritance, channel)
    return partial(_serve, [ready.model], ready.facts, slot, birth, inheritance)


def _serve(
    held: List[loader.LoadedModel],
    facts: Dict[str, Any],
    slot: Slot,
    birth: Birth,
    inheritance: Inheritance,
) -> int:
    """Say ready and serve; the exit code. The model is taken out of `held`: a client may have it let go of (`allow_load`)."""

    def attest() -> Dict[str, Any]:
        # Who loaded the model here has runtimes of which the template knew nothing; looking for them takes a millisecond
        own = bool(facts)
        setters = frameworks.thread_setters() if own else inheritance.thread_setters
        return attestation(setters, pinned=birth.cpus is not None)

    slot.channel.answer("attest", "attested", attest)
    slot.channel.send("ready", facts=dict(facts, pid=os.getpid()))
    return serve(held.pop, slot.listener, slot.channel, slot.record, birth.settings)


def take_slot(birth: Birth, inheritance: Inheritance, channel: Channel) -> Slot:
    """Make this process the slot's: nothing in here is code of the model."""
    _enter(birth)
    os.close(birth.stdout)
    os.close(birth.stderr)
    process.set_title("modelsupervisor: %s/%d" % (birth.model, birth.worker))
    offset = birth.scoreboard_offset
    region = process.map_shared(inheritance.libc, birth.scoreboard, RECORD_SIZE, offset)
    os.close(birth.scoreboard)
    record = Record(region)
    record.reset(birth.generation)
    return Slot(channel, socket.socket(fileno=birth.listener), record)


def _enter(birth: Birth) -> None:
    """Take on what of a slot outlives an exec; done again after one, it changes nothing."""
    os.dup2(birth.stdout, 1)
    os.dup2(birth.stderr, 2)
    process.pin(birth.cpus)
    if birth.gpu is not None:
        os.environ[GPU_VARIABLE] = str(birth.gpu)
