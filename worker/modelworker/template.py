"""A model's template: a fresh interpreter that loads and warms the model once, and then only forks.

Theory of operation
-------------------
The supervisor execs it with the thread environment already set, in a session of its own, with three standard descriptors and a
channel. It binds itself to the union of its workers' CPUs *before* any import (thread pools size themselves by what they see),
loads the handler, warms it, says `loaded`, and from then on does nothing but answer `fork`: whatever was loaded is shared, page by
page, with every worker that comes of it.

A birth is a double fork. The template's child forks the worker and exits at once; the worker is reparented to the supervisor, a
child subreaper, and so is the supervisor's own child: one place sees every exit status. The template reaps the child in between
before it says `forked`, because only then is the worker's pidfd something that the supervisor may wait on [measured: ECHILD before].

Only what is on a list crosses the fork: the worker's own descriptors, and what the model itself opened while it loaded.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import faulthandler
import os
import socket
import struct
import sys
import time
import traceback
from typing import Any, Dict, FrozenSet, List, NoReturn, Optional, Sequence

from modelworker import frameworks, loader, process
from modelworker.boot import Birth, Inheritance, become_worker
from modelworker.channel import Channel, ChannelClosed, tail

_PID = struct.Struct("!i")
QUIET = 0.05  # seconds without a request after which the template prepares for the next; a newborn's first answer is over by then


def _open_descriptors() -> FrozenSet[int]:
    return frozenset(int(name) for name in os.listdir("/proc/self/fd"))


class Template:
    """The loaded model and what every worker inherits; lives as long as the process."""

    def __init__(self, channel: Channel, supervisor: int, libc: ctypes.CDLL) -> None:
        self._channel = channel
        self._supervisor = supervisor
        self._libc = libc
        self._inheritance: Optional[Inheritance] = None
        self._fresh = False  # MXNet's generators were seeded since the last fork

    def load(self, spec: Dict[str, Any]) -> bool:
        """Load and warm the model as the supervisor's `load` says, and report how it went."""
        process.set_title("modelsupervisor: template %s" % spec["model"])
        before = _open_descriptors()
        begun = time.monotonic()
        try:
            process.pin(spec["cpus"])
            frameworks.prepare_numpy()
            model = loader.load_model(
                loader.ModelSpec(
                    name=spec["model"],
                    path=spec["path"],
                    handler=spec["handler"],
                    batch_size=spec["batch_size"],
                    gpu_id=spec["gpu_id"],
                    server_version=spec["server_version"],
                    warmup=spec["warmup"],
                )
            )
            loaded = time.monotonic()
            warmed = loader.warm_up(model, spec["warmup"])
        except Exception as error:  # whatever a handler raises while loading is a failed load, reported whole
            self._report_failure(error)
            return False
        self._inheritance = Inheritance(
            supervisor=self._supervisor,
            libc=self._libc,
            model=model,
            thread_setters=frameworks.thread_setters(),
            kept=_open_descriptors() - before,
        )
        facts: Dict[str, Any] = dict(frameworks.versions(), warmed=warmed)
        facts["load_s"] = round(loaded - begun, 4)
        facts["warmup_s"] = round(time.monotonic() - loaded, 4)
        self._channel.send("loaded", facts=facts)
        return True

    def _report_failure(self, error: Exception) -> None:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        said = "%s: %s" % (type(error).__name__, error)
        self._channel.send("load_failed", error=tail(said, 2048), traceback=tail(text))

    def serve(self) -> None:
        """Fork on request until the supervisor says stop or is gone.

        Seeding MXNet takes longer than a fork. So the template seeds itself once no request has come for a while, and its
        next child inherits numbers of its own; only in a burst of births do the further children seed themselves.
        """
        while True:
            if not self._fresh and not self._channel.pending(QUIET):
                frameworks.reseed_mxnet()
                self._fresh = True
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

    def _fork(self, message: Dict[str, Any], descriptors: List[int]) -> None:
        try:
            identity = {"index": message["index"], "generation": message["generation"]}
            birth = Birth.from_message(message, descriptors, self._fresh)
            self._fresh = False
            pid = self._double_fork(birth)
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "?")
            self._channel.send("fork_failed", error="%s (%s)" % (error.strerror, code), **identity)
        else:
            self._channel.send("forked", pid=pid, **identity)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _double_fork(self, birth: Birth) -> int:
        """The pid of a worker whose intermediate parent is gone. Raises OSError when either fork failed."""
        sys.stdout.flush()
        sys.stderr.flush()
        told, tell = os.pipe()
        try:
            intermediate = os.fork()
        except OSError:
            os.close(told)
            os.close(tell)
            raise
        if intermediate == 0:
            self._be_intermediate(birth, tell)
        os.close(tell)
        try:
            # The worker closes its copy at once; should it die before that, its end is closed all the same.
            answer = os.read(told, _PID.size)
        finally:
            os.close(told)
            os.waitpid(intermediate, 0)
        number = _PID.unpack(answer)[0] if len(answer) == _PID.size else -errno.ECHILD
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return int(number)

    def _be_intermediate(self, birth: Birth, tell: int) -> NoReturn:
        """Fork the worker, tell its pid, and be gone: nothing of the template's may run in here."""
        assert self._inheritance is not None
        try:
            me = os.getpid()
            worker = os.fork()
            if worker == 0:
                become_worker(birth, self._inheritance, me)
            os.write(tell, _PID.pack(worker))
        except OSError as error:
            os.write(tell, _PID.pack(-(error.errno or errno.EIO)))
        finally:
            os._exit(0)


def main(argv: Sequence[str]) -> NoReturn:
    """The life of a template process; ends by os._exit, since a framework's exit handlers have hung after forks."""
    parser = argparse.ArgumentParser(prog="modelworker")
    parser.add_argument("--supervisor", type=int, required=True, help="pid of the supervisor")
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the channel")
    options = parser.parse_args(argv)
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
