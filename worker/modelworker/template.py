"""A model's template: a fresh interpreter that does ahead what all workers share, and then only forks.

Theory of operation
-------------------
The supervisor execs it with the thread environment already set, in a session of its own, with three standard descriptors and a
channel. It binds itself to the union of its workers' CPUs *before* any import (thread pools size themselves by what they see),
loads the model and warms it (or only imports its handler, or not even that: `readiness`), says `loaded`, and from then on does
nothing but answer `fork`: whatever was loaded is shared, page by page, with every worker that comes of it.

A birth is a double fork, done ahead of time where there is time: `heir` says how. The supervisor adopts the worker that comes of
it: one place sees every exit status.

Only what is on a list crosses the fork: the worker's own descriptors, and what the model itself opened while it loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import os
import select
import socket
import time
from typing import Any, Dict, FrozenSet, List, NoReturn, Optional, Sequence

from modelworker import extractions, frameworks, heap, loader, process, readiness
from modelworker.boot import close_all_but
from modelworker.channel import Channel, ChannelClosed
from modelworker.complaints import complaint
from modelworker.heir import Heir, bear_heir
from modelworker.readiness import Inheritance

# Milliseconds without a request before the template makes ready for the next: a newborn's first answer is over by then
QUIET_MS = 50


def _open_descriptors() -> FrozenSet[int]:
    """What is open. The listing shows its own descriptor too, whose number is free again for the model to open."""
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    return frozenset(number for number in listed if os.path.lexists("/proc/self/fd/%d" % number))


def _model_spec(spec: Dict[str, Any], path: str) -> loader.ModelSpec:
    """What the loader needs of the supervisor's `load`; `path` is the folder that it comes to."""
    return loader.ModelSpec(
        name=spec["model"],
        path=path,
        handler=spec["handler"],
        batch_size=spec["batch_size"],
        gpu_id=spec["gpu_id"],
        server_version=spec["server_version"],
        warmup=spec["warmup"],
        archive=spec["path"] if spec["model_cache"] is not None else None,
    )


class Template:
    """The loaded model and what every worker inherits; lives as long as the process."""

    def __init__(self, channel: Channel, supervisor: int, libc: ctypes.CDLL) -> None:
        self._channel = channel
        self._supervisor = supervisor
        self._libc = libc
        self._inheritance: Optional[Inheritance] = None
        self._heir: Optional[Heir] = None
        self._computes = False  # whether the model itself was loaded here
        self._sweeper: Optional[extractions.Sweeper] = None

    def load(self, spec: Dict[str, Any]) -> bool:
        """Do for the model what the supervisor's `load` says, and report how it went."""
        process.set_title("modelsupervisor: template %s" % spec["model"])
        before = _open_descriptors()
        facts: Dict[str, Any] = {}
        try:
            process.pin(spec["cpus"])
            folder = self._folder(spec, facts)
            model = _model_spec(spec, folder)
            source, done = readiness.prepare(model, spec["preload"])
        # Whatever a handler raises while loading is a failed load, reported whole
        except Exception as error:
            self._channel.send("load_failed", **complaint(error))
            return False
        heap.fill_holes(self._libc)
        self._computes = isinstance(source, loader.LoadedModel)
        self._inheritance = Inheritance(
            supervisor=self._supervisor,
            libc=self._libc,
            spec=model,
            source=source,
            thread_setters=frameworks.thread_setters(),
            interpreter=spec["python"] if spec["preload"] == "none" else None,
            kept=_open_descriptors() - before,
        )
        facts.update(frameworks.versions(), **done)
        self._channel.send("loaded", facts=facts)
        return True

    def _folder(self, spec: Dict[str, Any], facts: Dict[str, Any]) -> str:
        """The model's folder; an archive is unpacked for that, and its lock is among what workers inherit."""
        path: str = spec["path"]
        if spec["model_cache"] is None:
            return path
        begun = time.monotonic()
        self._sweeper = extractions.Sweeper(spec["model_cache"])
        unpacked = extractions.obtain(path, spec["model_cache"], spec["max_archive_size"])
        facts["archive_sha256"] = unpacked.digest
        if unpacked.fresh:
            facts["unpack_s"] = round(time.monotonic() - begun, 4)
        return unpacked.path

    def serve(self) -> None:
        """Fork on request until the supervisor says stop or is gone; when nothing was asked for a while, prepare for the next."""
        while True:
            if not self._await_message():
                continue
            try:
                message, descriptors = self._channel.wait()
            except ChannelClosed:
                return
            if message is None:
                continue
            if message["kind"] == "stop":
                return
            if message["kind"] == "fork":
                self._fork(message, descriptors)
            elif message["kind"] == "sweep" and self._sweeper is not None:
                self._sweeper.order()

    def _await_message(self) -> bool:
        """Wait for the supervisor; False where the time was used: to bear an heir, to sweep, or to see that an heir has died."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        if self._heir is not None:
            poll.register(self._heir.channel.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poll.poll(QUIET_MS if self._heir is None else self._idle())}
        if self._channel.fileno() in ready:
            return True
        if self._heir is not None and not ready:
            assert self._sweeper is not None
            self._sweeper.step()
            return False
        if self._heir is not None:
            self._heir.channel.close()
            self._heir = None
            return False
        assert self._inheritance is not None
        if (
            self._computes
        ):  # else MXNet was imported at most, and is left untouched until a worker uses it
            frameworks.reseed_mxnet()
        try:
            self._heir = bear_heir(self._inheritance, self._channel, self._computes)
        except OSError:
            return self._await_without_heir()
        return False

    def _idle(self) -> Optional[int]:
        """Milliseconds until something is to be done unasked; None for never."""
        return None if self._sweeper is None else self._sweeper.patience()

    def _await_without_heir(self) -> bool:
        """No process can be had ahead of time: wait for a request, whose own fork then fails or not."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        return bool(poll.poll())

    def _fork(self, message: Dict[str, Any], descriptors: List[int]) -> None:
        names = ("spare",) if "spare" in message else ("index", "generation")
        identity = {name: message[name] for name in names}
        try:
            pid = self._bear(message, descriptors)
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "?")
            self._channel.send("fork_failed", error="%s (%s)" % (error.strerror, code), **identity)
        else:
            self._channel.send("forked", pid=pid, **identity)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _bear(self, message: Dict[str, Any], descriptors: List[int]) -> int:
        """The pid of the worker for a slot. Raises OSError where a fork failed."""
        assert self._inheritance is not None
        heir, self._heir = self._heir, None
        if heir is not None:
            try:
                return heir.succeed(message, descriptors)
            except BrokenPipeError:
                pass  # somebody ended it while it waited; another one is born
        heir = bear_heir(self._inheritance, self._channel, freshly_seeded=False)
        return heir.succeed(message, descriptors)


def main(argv: Sequence[str]) -> NoReturn:
    """The life of a template process; ends by os._exit, since a framework's exit handlers have hung after forks."""
    parser = argparse.ArgumentParser(prog="modelworker")
    parser.add_argument("--supervisor", type=int, required=True, help="pid of the supervisor")
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the channel")
    options = parser.parse_args(argv)
    # What the supervisor's own parent left open without close-on-exec, a lock or a pipe of a shell's, is not for a model to hold.
    close_all_but(frozenset((0, 1, 2, options.channel)))
    channel = Channel(socket.socket(fileno=options.channel))
    os.set_inheritable(options.channel, False)
    libc = ctypes.CDLL(None, use_errno=True)
    process.default_signals()
    process.limit_core_files()
    try:
        process.die_with_parent(libc, options.supervisor)
        process.line_buffer(libc)
        faulthandler.enable()
        message, _ = channel.wait()
    except (process.Orphaned, ChannelClosed):
        os._exit(1)
    template = Template(channel, options.supervisor, libc)
    loaded = message is not None and template.load(message["spec"])
    if loaded:
        template.serve()
    process.flush_output()
    os._exit(0 if loaded else 1)
