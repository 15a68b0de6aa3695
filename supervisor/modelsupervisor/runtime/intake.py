"""The reading of all output: when, and when not.

Output streams are in an epoll set of their own, which is one member of the loop's set. So one change keeps all of them from being
read, while life-cycle descriptors and operators are served as ever. They are not read

- for REST after a turn that found little: a worker that prints a line a microsecond would otherwise wake the loop for each line,
  and a line costs a microsecond where a turn costs thirty [measured]; in the meantime the lines gather in the FIFO;
- while a sink that takes is behind (`Outlet.holds`): then the writers are slowed by their own FIFOs.

A traceback whose rest does not come within HOLD is given out as far as it is there.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Sequence

from modelsupervisor.runtime.outlets import Outlets
from modelsupervisor.runtime.reactor import Rank, Reactor
from modelsupervisor.runtime.streams import Stream, Voice

REST = 0.002  # seconds
# Bytes in one turn from which on there is no rest: an eighth of the smallest FIFO, which must not run full in the meantime
PLENTY = 8 * 1024
# Blocks of a dead process's last output that are given out at once: some tens of milliseconds
LAST_BLOCKS = 64
MOST_BACKLOG = 16  # readings of one stream that wait for the sinks: some megabytes
DRAIN = 0.05  # seconds for the sinks between two rounds at the end
HOLD = 0.25  # seconds; a traceback is printed line by line within a millisecond


class Intake:
    """All output streams. `open` before use, `close` after."""

    def __init__(self, reactor: Reactor, outlets: Outlets, now: Callable[[], float]) -> None:
        self._reactor = reactor
        self._outlets = outlets
        self._now = now
        self._streams: dict[int, Stream] = {}
        self._unfinished: dict[Stream, None] = {}
        # The size of a stream's open traceback, and when that is due
        self._held: dict[Stream, tuple[int, float]] = {}
        self._passed_over: dict[Stream, None] = {}  # by the turn before: these come first
        self._epoll: select.epoll | None = None
        self._rests_until: float | None = None
        self._watched = False
        self._turned = False  # since `tick`: one turn of the loop reads one turn's worth

    def open(self) -> None:
        """Make the set. Raises OSError."""
        self._epoll = select.epoll()
        self._reactor.add(self._epoll.fileno(), Rank.OUTPUT, lambda _: self._turn())
        self._watched = True

    def close(self) -> None:
        """Let go; the streams' descriptors are their owners'."""
        if self._epoll is not None:
            self._reactor.remove(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def add(self, stream: Stream) -> None:
        """Read this stream from now on. Raises OSError where no more may be watched."""
        assert self._epoll is not None
        self._epoll.register(stream.fd, select.EPOLLIN)
        self._streams[stream.fd] = stream

    def remove(self, stream: Stream) -> None:
        """No longer read it; before its descriptor is closed. What was read already is still given out."""
        if self._streams.pop(stream.fd, None) is not None:
            assert self._epoll is not None
            with contextlib.suppress(
                OSError
            ):  # its descriptor is closed next, and that takes it out too
                self._epoll.unregister(stream.fd)
        stream.closed = True
        self._held.pop(stream, None)
        self._passed_over.pop(stream, None)

    def finish(
        self,
        streams: Sequence[Stream],
        words: Sequence[bytes],
        voice: Voice,
        done: Callable[[], None],
    ) -> None:
        """Give out the last bytes of a dead writer's streams and then call `done`: at once, unless the buffers would overflow."""
        left = len(streams)

        def one_done() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for stream, chunk in zip(streams, words or [b""] * left, strict=True):
            stream.finish(chunk, voice, one_done)
            if stream.backlog <= MOST_BACKLOG:
                stream.give_out(self._outlets.brimming, LAST_BLOCKS)
            else:  # a worker that dies again and again with full FIFOs may not fill the memory
                stream.give_out(_never, None)
            self._note(stream)
        if not streams:
            done()

    def finish_all(self, deadline: float) -> None:
        """At the very end: give out everything that was read, as the sinks take it, and after `deadline` regardless."""
        while self._unfinished:
            late = self._now() >= deadline
            for stream in list(self._unfinished):
                stream.give_out(_never if late else self._outlets.brimming, None)
                self._note(stream)
            if self._unfinished:
                self._outlets.drain(min(deadline, self._now() + DRAIN))

    def _note(self, stream: Stream) -> None:
        """Remember what is left to do for a stream."""
        if stream.unfinished:
            self._unfinished[stream] = None
        else:
            self._unfinished.pop(stream, None)
        # Only what makes the traceback longer puts it off: a progress bar on the same stream, which never ends its line, does not.
        size = stream.held_back
        if not size:
            self._held.pop(stream, None)
        elif self._held.get(stream, (0, 0.0))[0] != size:
            self._held[stream] = size, self._now() + HOLD

    def _watch(self, watched: bool) -> None:
        """Have the set wake the loop, or not: it stays a member, since to join again could be refused for want of memory."""
        assert self._epoll is not None
        self._watched = watched
        self._reactor.change(self._epoll.fileno(), select.EPOLLIN if watched else 0)

    def _turn(self) -> None:
        """Serve each stream that has something, once."""
        assert self._epoll is not None
        self._turned = True
        now = self._now()
        if self._outlets.holds(now):
            self._watch(False)
            return
        found = self._epoll.poll(0, maxevents=max(64, len(self._streams)))
        ready = dict.fromkeys(self._streams[fd] for fd, _ in found if fd in self._streams)
        waiting = {**self._passed_over, **self._unfinished, **ready}
        self._passed_over = {}
        most = 0
        for stream in list(waiting):
            if self._outlets.holds(now):
                # Else the same first ones would be served turn after turn, and a quiet worker behind them never.
                self._passed_over = waiting
                return
            del waiting[stream]
            most = max(most, stream.serve(self._outlets.pressed))
            self._note(stream)
        # Every stream was served; those that have more come again, after a rest where it was little.
        if not self._unfinished and most < PLENTY:
            self._rests_until = now + REST
            self._watch(False)

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        due = [at for _, at in self._held.values()]
        if self._unfinished and self._watched:
            due.append(self._now())  # nothing in the kernel's buffers tells of these
        if self._rests_until is not None:
            due.append(self._rests_until)
        return min(due, default=None)

    def tick(self, now: float) -> None:
        """Go on reading where that was put off; give out what was held for long enough."""
        for stream in [stream for stream, (_, due) in self._held.items() if due <= now]:
            if stream.unfinished or self._outlets.holds(now):
                self._held[stream] = stream.held_back, now + HOLD
                continue
            stream.release(self._outlets.pressed)
            self._note(stream)
        if self._rests_until is not None and self._rests_until <= now:
            self._rests_until = None
        if self._rests_until is None and not self._watched and not self._outlets.holds(now):
            self._watch(True)
        if self._unfinished and self._watched and not self._turned:
            self._turn()
        self._turned = False


def _never() -> bool:
    return False
