"""The log writer: a process of its own that moves the log from a pipe into one file.

A write to a file cannot be made non-blocking: on a stuck disk it waits in the kernel, and no signal ends it. So the supervisor
writes into a pipe, never waiting, and only this process ever waits for a disk. It needs little of the standard library, to start
in the time that the interpreter needs.

splice(2) moves pages from pipe to pipe and from pipe to file, and the kernel ends a call in order even when SIGKILL comes in its
middle: a byte is in the file or in a pipe, and the supervisor holds the pipes open, too. Whoever kills a writer loses nothing and
doubles nothing: the next one goes on, told by `--written` from where.

There are two pipes in a row, because a splice from a pipe into a file holds that pipe's lock for as long as the file's write takes,
and whoever writes into the pipe waits for that lock, non-blocking or not [measured: 3.4 s behind a write of that length]. So the
supervisor writes into the outer pipe, which only pipe-to-pipe moves touch here; they do not wait. The inner pipe is ours while we
live; to ask it how much it holds (FIONREAD) waits for the same lock, and is for when we are dead.

One turn: outer to inner pipe, then the supervisor's messages, then inner pipe to file. In this order nothing is written that the
supervisor sent after a message which we have not read: a file is changed at exactly the byte that the message names.

Each failure is said once; what failed is tried again every second; meanwhile the pipes fill and push back. While writes fail, a
reopening does not wait for its byte: the disk may be full of that very file, deleted but held open here. The end is the end of the
pipe: signals are ignored, because those that go to a whole group find the log unfinished.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` makes enums: 7 ms of a start of 20
import errno
import os
import select
import stat
import sys
import time
from fcntl import F_GETFL, LOCK_EX, LOCK_NB, LOCK_UN, fcntl, flock, ioctl
from termios import FIONREAD

OUTER = 0  # where the supervisor's bytes come in: the reading end of a pipe
TARGET = 1  # with --descriptor, the file to write to
CHANNEL = 3  # messages to and from the supervisor: SOCK_SEQPACKET, one JSON object each
INNER, INNER_END = 4, 5  # a pipe for what is not written yet; the supervisor holds it open, too
AT_ONCE = 1 << 20  # bytes moved by one call: all that a pipe holds, unless root made it larger
COPIED = 1 << 16  # bytes in our memory where splice(2) is refused: what SIGKILL can cost there
RETRY = 1.0  # seconds between tries, and between looks whether the path still names the open file
ANSWER = 0.5  # seconds that the supervisor is given to say where a file that is gone shall end
LAST_CHANCE = 2.0  # seconds of failing after which what is left is given up, once nobody feeds us
IGNORED = "HUP INT QUIT USR1 USR2 PIPE ALRM TERM TSTP TTIN TTOU XFSZ"


def quoted(text: str | None) -> str:
    """A JSON value. The json module is 7 ms of a start, and most words do without."""
    if text is not None and text.isascii() and text.isprintable() and not set('"\\') & set(text):
        return f'"{text}"'
    import json

    return json.dumps(text)


class Channel:
    """The supervisor, as seen from here: never waited for, and what it does not take is lost."""

    def __init__(self) -> None:
        self.open = True

    def say(self, kind: str, **fields: str | None) -> bool:
        """Send a message, None as null; whether it was taken."""
        pairs = [f'"{key}":{quoted(text)}' for key, text in {"kind": kind, **fields}.items()]
        try:
            os.write(CHANNEL, ("{" + ",".join(pairs) + "}").encode("ascii"))
        except OSError:
            return False  # full, or gone, which the next read tells
        return True

    def hear(self) -> list[tuple[int, str]]:
        """The reopenings (no other message comes) asked for by now: position and reason. Notices the end of the supervisor."""
        found = []
        while self.open:
            try:
                message = os.read(CHANNEL, 65536)
            except BlockingIOError:
                break
            except OSError:
                message = b""
            self.open = bool(message)
            if message:
                import json

                request = json.loads(message)
                found.append((int(request["at"]), str(request["reason"])))
        return found


class Output:
    """An open file."""

    def __init__(self, fd: int, status: os.stat_result) -> None:
        self.fd = fd
        self.identity = (status.st_dev, status.st_ino)
        self.regular = stat.S_ISREG(status.st_mode)
        self.splices = True

    def torn(self) -> bool:
        """Whether it ends within an event; False where that cannot be told."""
        try:
            with open(f"/proc/self/fd/{self.fd}", "rb", buffering=0) as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) != b"\n"
        except OSError:
            return False

    def whereabouts(self, path: str) -> str:
        """What became of the file where the path no longer names it; "" where it does or that cannot be told."""
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) == self.identity:
                return ""
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:
            return ""
        return "it was renamed" if os.fstat(self.fd).st_nlink else "it was deleted"


def open_path(path: str, before: Output | None) -> Output:
    """Open for writing, made where it is not there. Raises OSError. Without O_APPEND, which splice(2) refuses.

    O_NONBLOCK is for a FIFO without a reader, which would hold us here; a regular file has no such thing. That one is locked, as
    two who write to the end of one file cut each other's lines; `before` is what we hold already.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK, 0o640)
    output = Output(fd, os.fstat(fd))
    if before is not None and before.identity == output.identity:
        flock(before.fd, LOCK_UN)
    try:
        if output.regular:
            flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise OSError(errno.EBUSY, "another process has it locked, as a log writer does") from None
    except OSError:
        pass  # a file system without locks
    return output


def open_target() -> Output:
    """The file that we were given; one that was opened for appending is opened anew without, where it can be."""
    output = Output(TARGET, os.fstat(TARGET))
    if output.regular and fcntl(TARGET, F_GETFL) & os.O_APPEND:
        try:
            output.fd = os.open(f"/proc/self/fd/{TARGET}", os.O_WRONLY)
        except OSError:
            pass  # it is copied to
    return output


class Writer:
    """One file and the way there. `written` counts the bytes of the supervisor's stream that this and those before it put there."""

    def __init__(self, path: str | None, written: int) -> None:
        self.written = written
        self._path = path
        self._channel = Channel()
        self._output: Output | None = None
        self._inner = 0  # bytes in the inner pipe
        self._held = b""  # taken out of it and not written: only where splice(2) is refused
        self._reopenings: list[tuple[int, str]] = []
        self._open_again = 0.0  # when to try; 0.0 where no opening failed
        self._write_again = 0.0  # the same for writes
        self._look_again = 0.0
        self._failing = False  # writes failed, and none took everything since
        self._full = False  # a FIFO takes nothing now
        self._gone = False  # it was said that the path names another file
        self._asked = False  # it was asked where a late reopening may take place
        self._answer_by = 0.0  # until then nothing goes into a file that is gone
        self._torn = False  # an event's beginning was left in a full file that is gone
        self._ended = False  # nobody can write into the outer pipe any more
        self._drained = False  # and it is empty
        self._give_up = 0.0

    def run(self) -> int:
        """Until everything is written (0), or cannot be and nobody feeds us (1)."""
        self._inner = int.from_bytes(ioctl(INNER, FIONREAD, bytes(4)), sys.byteorder)
        self._open_first()
        while True:
            self._take()
            self._listen()
            self._open_due()
            if self._may_write():
                self._move()
                self._open_due()
            if self._drained and not self._left():
                return 0
            if self._hopeless():
                return 1
            self._wait()

    def _take(self) -> None:
        """What is in the outer pipe, into the inner one, as far as there is room."""
        if self._drained:
            return
        try:
            taken = os.splice(OUTER, INNER_END, AT_ONCE, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            return
        self._inner += taken
        if not taken:
            self._drained = self._ended = True

    def _left(self) -> int:
        return self._inner + len(self._held)

    def _may_write(self) -> bool:
        self._look()
        now = time.monotonic()
        if self._answer_by <= now:
            self._answer_by = 0.0
        waits = self._output is None or self._answer_by > 0.0 or self._write_again > now
        return self._left() > 0 and not waits

    def _move(self) -> None:
        """From the inner pipe into the file, not beyond the byte at which the next one is to be opened."""
        assert self._output is not None
        most = min(
            [AT_ONCE, *(at - self.written for at, _ in self._reopenings if at > self.written)]
        )
        asked = min(most, self._left())
        try:
            moved = self._put(self._output, most)
        except BlockingIOError:
            self._full = True
            return
        except OSError as error:
            self._fail_write(self._output, error)
            return
        self.written += moved
        self._full, self._write_again = False, 0.0
        if self._failing and moved == asked:  # less: a full disk took what a page had left
            self._failing = False
            self._channel.say("resumed")

    def _put(self, output: Output, most: int) -> int:
        """One write; how many bytes it took. Raises OSError."""
        if output.regular:
            os.lseek(output.fd, 0, os.SEEK_END)  # someone may have truncated it: no hole, then
        if output.splices and not self._held and not self._torn:
            moved = os.splice(INNER, output.fd, min(most, self._inner))
            self._inner -= moved
            return moved
        if not self._held:
            self._held = os.read(INNER, COPIED)
            self._inner -= len(self._held)
        if self._torn:
            return self._skip_torn()
        moved = os.write(output.fd, self._held[:most])
        self._held = self._held[moved:]
        return moved

    def _skip_torn(self) -> int:
        """Let go of the rest of an event whose beginning is in the file that is gone; the next one begins the new file."""
        end = self._held.find(b"\n") + 1
        skipped = end or len(self._held)
        self._held = self._held[skipped:]
        if end:
            self._torn = False
            self._channel.say("torn")
        return skipped

    def _fail_write(self, output: Output, error: OSError) -> None:
        if output.splices and error.errno in (errno.EINVAL, errno.ENOSYS):
            output.splices = False
            return
        self._write_again = time.monotonic() + RETRY
        if not self._failing:
            self._failing = True
            self._channel.say("failed", what="write", error=error.strerror)

    def _open(self) -> Output | None:
        """The file that the path names now, or None; the supervisor hears of the first failure in a row."""
        try:
            return open_path(self._path, self._output) if self._path else open_target()
        except OSError as error:
            if not self._open_again:
                self._channel.say("failed", what="open", error=error.strerror)
            self._open_again = time.monotonic() + RETRY
            return None

    def _use(self, output: Output) -> None:
        if self._output is not None:
            os.close(self._output.fd)
        self._output = output
        self._gone = self._asked = self._full = False
        self._open_again = self._write_again = 0.0
        self._look_again = time.monotonic() + RETRY

    def _open_first(self) -> None:
        if (output := self._open()) is not None:
            self._use(output)
            self._channel.say("opened", path=self._path)

    def _listen(self) -> None:
        heard = self._channel.hear()
        for reopening in heard if self._path is not None else ():
            self._answer_by = 0.0
            if reopening[0] < self.written:
                self._gone = False  # it came too late, and we went on: it is asked for again
            elif self._asked:
                self._asked, self._open_again = False, 0.0
                self._reopenings[0] = reopening
            else:
                self._reopenings.append(reopening)

    def _open_due(self) -> None:
        """The first opening, where it failed, and each reopening whose byte is reached, whose opening failed, or that may help."""
        if self._output is None:
            if self._open_again <= time.monotonic():
                self._open_first()
            return
        while self._reopenings:
            at = self._reopenings[0][0]
            due = at <= self.written or self._write_again or self._open_again
            if not due or self._open_again > time.monotonic() or not self._reopen(at):
                return

    def _reopen(self, at: int) -> bool:
        output = self._open()
        if output is None:
            return False
        reason = self._reopenings[0][1]
        if self._open_again and self.written > at and not self._write_again and not self._asked:
            # It failed when its byte came, and we may be within a line now: ask for the end of one. Without an answer it is here.
            os.close(output.fd)
            self._asked, self._open_again = True, time.monotonic() + RETRY
            self._channel.say("gone", reason=reason)
            return False
        assert self._output is not None
        self._torn = self.written < at and self._output.torn()
        self._use(output)
        del self._reopenings[0]
        self._channel.say("reopened", path=self._path, reason=reason)
        return True

    def _look(self) -> None:
        """About once a second, where no reopening is under way: does the path still name what we write to?"""
        now = time.monotonic()
        if self._path is None or self._output is None or self._gone or self._reopenings:
            return
        if self._left() and self._look_again <= now:
            self._look_again = now + RETRY
            reason, at = self._output.whereabouts(self._path), str(self.written)
            self._gone = bool(reason) and self._channel.say("gone", reason=reason, at=at)
            self._answer_by = now + ANSWER if self._gone else 0.0

    def _blocked(self) -> bool:
        return self._output is None or self._failing or self._full

    def _hopeless(self) -> bool:
        """Nothing can be written, nobody is left who could mend it, and the time for that is over."""
        alone = self._ended or not self._channel.open
        if not (alone and self._blocked()):
            self._give_up = 0.0
        elif not self._give_up:
            self._give_up = time.monotonic() + LAST_CHANCE
        return 0.0 < self._give_up <= time.monotonic()

    def _wait(self) -> None:
        """Until there is something to do. What came in the outer pipe is no reason where it could not be written."""
        blocked = self._full or self._output is None or max(self._write_again, self._answer_by) > 0
        if self._left() and not blocked:
            return
        poller = select.poll()
        if not (blocked and self._ended):
            poller.register(OUTER, 0 if blocked else select.POLLIN)  # 0: its end is still told
        if self._channel.open:
            poller.register(CHANNEL, select.POLLIN)
        if self._full and self._output is not None:
            poller.register(self._output.fd, select.POLLOUT)
        waits = (self._open_again, self._write_again, self._give_up, self._answer_by)
        times = [at for at in waits if at]
        timeout = max(0.0, min(times) - time.monotonic()) * 1000 if times else None
        self._ended |= any(
            fd == OUTER and event & select.POLLHUP for fd, event in poller.poll(timeout)
        )


def main(arguments: list[str]) -> int:
    """The program; returns its exit code."""
    match arguments:
        case ["--written", written, "--path", path]:
            writer = Writer(path, int(written))
        case ["--written", written, "--descriptor"]:
            writer = Writer(None, int(written))
        case _:
            return 2
    for name in IGNORED.split():
        _signal.signal(getattr(_signal, "SIG" + name), _signal.SIG_IGN)
    os.set_blocking(CHANNEL, False)
    return writer.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
