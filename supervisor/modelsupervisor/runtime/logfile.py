"""A log file as a port: a pipe to a log writer process, which does the waiting.

Writing a file can take for ever: a disk that is full, slow, or gone with its network. So a process of its own (`log.writer`) moves
the bytes from a pipe into the file, and this side only fills the pipe as far as it has room. The pipe, of which both ends are held
here, is where the bytes stay until they are in the file; a writer that is killed is replaced by one that goes on at the very byte.

This side counts what it wrote into the pipe. So a reopening can be asked for at a position of the stream, and that position is
always between two events.

There are two pipes in a row. This side fills the outer one; the inner one is the writer's and only held open here, for its
successor. A splice into a file holds its pipe's lock for as long as the file's write takes, and even a non-blocking write to that
pipe would wait for the lock [measured].
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import sys
import termios
from collections import deque
from collections.abc import Callable

import modelsupervisor.log.writer as program
from modelsupervisor.log.outlet import Outlet, PortFailing, Said
from modelsupervisor.runtime import processes
from modelsupervisor.runtime.messages import Message, SupervisorEnd, channel_pair, take_messages
from modelsupervisor.runtime.reactor import Rank, Reactor

PIPE_SIZES = (
    1024 * 1024,
    256 * 1024,
)  # bytes: what an unprivileged user may have, and half of the budget gone
FIRST_RETRY, LAST_RETRY = 0.1, 5.0  # seconds until a dead writer is replaced, doubled each time
NEWLINE = 10
KILLED = 0.5  # seconds for a killed writer to be gone; one that is stuck in the kernel is not
STEADY = 10.0  # seconds that a writer lived: the next retry is the first again


class LogFile:
    """One file, or the regular file that standard output is (`path` None). `open` once; `finish` at the end."""

    def __init__(
        self, path: str | None, reactor: Reactor, servants: set[int], now: Callable[[], float]
    ) -> None:
        self.path = path
        self.outlet: Outlet  # whose port this is
        self.pollable = True
        self._reactor = reactor
        self._servants = servants
        self._now = now
        self._reading = self._writing = -1
        self._inner: tuple[int, int] = (-1, -1)
        self._written = 0  # bytes that went into the pipe
        self._ends: deque[int] = deque()  # positions between two events
        self._pid = 0
        self._pidfd = -1
        self._channel: SupervisorEnd | None = None
        self._begun = 0.0
        self._retry = FIRST_RETRY
        self._due: float | None = None  # when a writer is to be started again
        self._opened = False

    def open(self) -> None:
        """Make the pipe and start the writer. Raises OSError."""
        self._inner = _large_pipe()  # first: without the outer one there is nothing to finish
        self._reading, self._writing = _large_pipe()
        os.set_blocking(self._writing, False)
        self._spawn()

    @property
    def fd(self) -> int:
        """The descriptor to poll for room."""
        return self._writing

    def write(self, payloads: list[memoryview]) -> int:
        """Fill the pipe as far as it has room. Raises PortFailing where the kernel refuses that."""
        try:
            size = os.writev(self._writing, payloads)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise PortFailing(error.strerror or str(error)) from None
        self._remember_ends(payloads, size)
        self._written += size
        return size

    def _remember_ends(self, payloads: list[memoryview], size: int) -> None:
        """Note where in the stream events end, as far back as the pipes reach: there a file may be changed."""
        at = self._written
        for payload in payloads:
            at += len(payload)
            if at > self._written + size:
                break
            if payload[-1] == NEWLINE:
                self._ends.append(at)
        while len(self._ends) > 1 and self._ends[0] < self._written - 2 * PIPE_SIZES[0]:
            self._ends.popleft()

    def _unwritten(self) -> int:
        """Bytes in the pipes; only while no writer lives, who may hold the inner one's lock."""
        return sum(_held(reading) for reading in (self._reading, self._inner[0]))

    # -- the process ----------------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        channel, theirs = channel_pair()
        target = ["--descriptor"] if self.path is None else ["--path", self.path]
        done = str(self._written - self._unwritten())
        handed = {0: self._reading, 3: theirs.fileno(), 4: self._inner[0], 5: self._inner[1]}
        # Out of the way of the numbers that they get: each is put there in turn.
        high: list[int] = []
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
        try:
            for to, fd in handed.items():
                high.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(handed) + 1))
                actions.append((os.POSIX_SPAWN_DUP2, high[-1], to))
            self._exec(actions, [*target], done, channel)
        except OSError:
            channel.close()
            raise
        finally:
            theirs.close()
            for fd in high:
                os.close(fd)
        self._channel = channel
        self._begun = self._now()

    def _exec(
        self,
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]],
        target: list[str],
        done: str,
        channel: SupervisorEnd,
    ) -> None:
        """Start the process and watch it. Raises OSError, and then there is none."""
        actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
        if self.path is not None:
            actions.append((os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0))
        self._pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-S", "-I", program.__file__, "--written", done, *target],
            os.environ,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
        )
        try:
            self._pidfd = os.pidfd_open(self._pid)
            self._reactor.add(self._pidfd, Rank.OPERATOR, lambda _: self._on_exit())
            self._reactor.add(channel.fileno(), Rank.OPERATOR, lambda _: self._on_channel())
        except OSError:
            # Two writers on one pipe would each have a wrong count: this one must not live.
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            if self._pidfd >= 0:
                self._reactor.remove(self._pidfd)
                os.close(self._pidfd)
                self._pidfd = -1
            raise
        self._servants.add(self._pid)

    def _on_channel(self) -> None:
        if not take_messages(self._channel, self._on_message, lambda _: None):
            self._close_channel()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._reactor.remove(self._channel.fileno())
            self._channel.close()
            self._channel = None

    def _on_message(self, message: Message) -> None:
        kind, reason = message["kind"], str(message.get("reason", ""))
        if kind == "opened" and not self._opened:
            self._opened = True
            self._say("info", "log.opened", kind="file", path=self.path)
            self.outlet.trouble = ""
        elif kind in ("opened", "resumed"):
            self._recover()
        elif kind == "reopened":
            self._recover()
            self._say("info", "log.reopened", path=self.path, reason=reason)
        elif kind == "gone":
            at = message.get("at")
            self.reopen(reason, None if at is None else int(at))
        elif kind == "torn":
            reason = (
                "it was cut in two by a full disk, and its beginning is in the file that is gone"
            )
            self._say("warning", "log.dropped", lines=1, reason=reason, streams={})
        elif kind == "failed":
            what = "opened" if message.get("what") == "open" else "written"
            self.outlet.trouble = f"it cannot be {what}: {message.get('error')}"
            facts = {"path": self.path, "reason": self.outlet.trouble}
            self._say("error", "log.failed", **facts, next="it is tried again every second")

    def _recover(self) -> None:
        reason, self.outlet.trouble = self.outlet.trouble, ""
        if reason and not self.outlet.stall_told:  # else the outlet says so when it has room again
            self._say("info", "log.resumed", reason=reason)

    def _say(self, level: str, event: str, **facts: object) -> None:
        self.outlet.said.append(Said(level, event, {"sink": self.outlet.name, **facts}))

    def _on_exit(self) -> None:
        status = processes.peek_exit(self._pidfd)
        if status is None:
            return
        self._on_channel()
        self._let_go()
        lived = self._now() - self._begun
        self._retry = FIRST_RETRY if lived > STEADY else min(self._retry * 2, LAST_RETRY)
        self._due = self._now() + self._retry
        self.outlet.trouble = self.outlet.trouble or "its log writer is gone"
        facts = {"writer_pid": self._pid, "reason": str(status), "retry_in_s": self._retry}
        self._say("warning", "log.writer_exited", **facts)

    def _let_go(self) -> None:
        """Reap the process and close what led to it."""
        self._close_channel()
        processes.reap(self._pidfd)
        self._reactor.remove(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._servants.discard(self._pid)

    def due(self) -> float | None:
        """When `tick` has something to do."""
        return self._due

    def tick(self, now: float) -> None:
        """Start a writer again where it is time."""
        if self._due is None or now < self._due:
            return
        self._due = None
        try:
            self._spawn()
        except OSError as error:
            self._retry = min(self._retry * 2, LAST_RETRY)
            self._due = now + self._retry
            self.outlet.trouble = f"no log writer can be started: {error.strerror}"
            return
        if self.path is None:
            self._recover()

    def reopen(self, reason: str, soonest: int | None = None) -> None:
        """Have the file opened anew, between two events: those from here on, or from position `soonest` of the stream on.

        A writer that is not there will open it anew by itself.
        """
        if self.path is None or self._channel is None:
            return
        at = self._written + self.outlet.buffer.begun
        if soonest is not None:
            at = next((end for end in (0, *self._ends) if end >= soonest), at)
        # It may be dying, or stuck with a thousand unread requests of this kind.
        with contextlib.suppress(OSError):
            self._channel.send({"kind": "reopen", "at": at, "reason": reason})

    def behind(self) -> tuple[bool, int]:
        """Whether it is in trouble, and the bytes that its writer has not taken: by these, files can be put in order."""
        held = _held(self._reading) if self._reading >= 0 else 0
        return bool(self.outlet.trouble), held + self.outlet.buffer.size

    def finish(self, deadline: float) -> str:
        """End of file for the writer, and wait until everything is in the file; what there is to say of what is not."""
        if self._writing < 0:
            return ""
        if self._pidfd >= 0 and processes.peek_exit(self._pidfd) is not None:
            self._let_go()
        if self._pidfd < 0 and self._unwritten():
            with contextlib.suppress(OSError):  # then it stays unwritten
                self._spawn()
        self._reactor.remove(self._writing)
        os.close(self._writing)
        self._writing = -1
        os.close(self._inner[1])
        gone = self._pidfd < 0 or processes.await_exit(
            self._pidfd, max(0.0, deadline - self._now())
        )
        if not gone:
            processes.send_signal(self._pidfd, signal.SIGKILL)
            gone = processes.await_exit(self._pidfd, KILLED)
        if self._pidfd >= 0:
            self._let_go()
        # Stuck in the kernel it holds the inner pipe's lock, and asking that pipe would wait with it.
        left = self._unwritten() if gone else _held(self._reading)
        os.close(self._reading)
        os.close(self._inner[0])
        if left or not gone:
            least = "" if gone else "at least "
            return f"{least}{left} bytes were not written in time at the end"
        return ""


def _large_pipe() -> tuple[int, int]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    for size in PIPE_SIZES:
        with contextlib.suppress(OSError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, size)
            break
    return reading, writing


def _held(reading: int) -> int:
    held = array.array("i", [0])
    fcntl.ioctl(reading, termios.FIONREAD, held)
    return held[0]
