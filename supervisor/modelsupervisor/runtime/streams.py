"""The reading side of an output stream: from what a FIFO holds to blocks of events.

A turn reads at most 64 KiB, and what it read is given out in blocks of some hundred events. Between two blocks it is asked whether
the sinks are behind (`pressed`) and whether the turn has been long enough; then the rest waits here for the next turn, so that a
chunk of 65,536 empty lines, which are twelve megabytes of events, neither fills the buffers nor holds up the loop.

Who wrote a chunk is settled when it is read (`Voice`) and stays with it. What a dead process left in its FIFOs is read at its end
and given out in the same way, in turns where it is much; its end is told when the last of it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelsupervisor.log.journal import Journal, timestamp
from modelsupervisor.log.lines import LineSplitter, Part
from modelsupervisor.log.recognise import Recogniser, Run
from modelsupervisor.log.render import MOST_LINES, OutputForm, RingKey

TURN = 64 * 1024  # bytes that one stream may take of a turn of the loop (DESIGN §3)
TURN_BLOCKS = 8  # blocks that one stream may give out in a turn: 64 KiB of usual lines are two
BLOCK_BYTES = 128 * 1024  # of content in a block
MOST_HELD = 64 * 1024  # bytes of a traceback
# Lines of the story in `worker.exited`: the stack that faulthandler prints fits into it
LAST_LINES = 50
LAST_LINE_LENGTH = 2000  # characters of each

LEVEL_OF = {"stdout": "info", "stderr": "warning"}


class LastLines:
    """The newest lines of a process, for the event that tells of its end."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=LAST_LINES)

    def add(self, lines: list[bytes]) -> None:
        """Remember the newest of these lines."""
        self._lines.extend(line[: LAST_LINE_LENGTH * 4] for line in lines[-LAST_LINES:])

    def take(self) -> list[str]:
        """The lines as people read them, oldest first; empties the store for the next process."""
        lines = [line.decode(errors="backslashreplace")[:LAST_LINE_LENGTH] for line in self._lines]
        self._lines.clear()
        return lines


@dataclass(frozen=True)
class Voice:
    """Whose words a chunk is: the name of its events, whom they are about and what identifies it, where its
    last lines are kept, and the ids of the requests in hand.
    """

    event: str
    about: RingKey
    identity: Mapping[str, Any]
    last_lines: LastLines
    in_hand: tuple[str, ...] = ()


@dataclass
class _Reading:
    """What one reading brought, whose it is, and whom to tell when all of it was given out."""

    form: OutputForm
    voice: Voice
    items: deque[Run | Part]
    done: Callable[[], None] | None = None


class Stream:
    """One output stream, a FIFO or a pipe that this process holds both ends of. `source` is its name in the accounts."""

    def __init__(
        self,
        name: str,
        source: str,
        fd: int,
        max_line: int,
        journal: Journal,
        voice: Callable[[], Voice | None],
    ) -> None:
        self.name = name
        self.source = source
        self.fd = fd
        self.closed = (
            False  # its descriptor's number may be another's by now: nothing is read any more
        )
        self.bytes_read = 0
        self.events = 0  # made of its lines
        self.hidden = 0  # lines below the log level, of which none was made
        self._journal = journal
        self._voice = voice
        self._splitter = LineSplitter(max_line)
        self._recogniser = Recogniser(LEVEL_OF[name], MOST_HELD)
        self._work: deque[_Reading] = deque()
        self._latest: _Reading

    def pending(self) -> int:
        """Bytes that are in the kernel's buffer now."""
        answer = fcntl.ioctl(self.fd, termios.FIONREAD, b"\0\0\0\0")
        return int(struct.unpack("i", answer)[0])

    def report(self) -> dict[str, int]:
        """The account of the stream, for `status`: the sinks' accounts of it add up to `events`."""
        return {"bytes": self.bytes_read, "events": self.events, "hidden_lines": self.hidden}

    @property
    def unfinished(self) -> bool:
        """Something that was read waits to be given out."""
        return bool(self._work)

    @property
    def backlog(self) -> int:
        """The number of readings that wait to be given out."""
        return len(self._work)

    @property
    def held_back(self) -> int:
        """Bytes of a traceback's beginning that are held back for the rest of it."""
        return self._recogniser.held

    def serve(self, pressed: Callable[[], bool]) -> int:
        """One turn: read, unless something is left of the turn before, and give out; the number of bytes read.

        What nobody's voice can be found for yet, because the pid of a newborn is not known, stays in the kernel.
        """
        size = 0
        if not self._work and not self.closed:
            voice = self._voice()
            if voice is None:
                return 0
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(self.fd, TURN)
                size = len(chunk)
                self._work.append(self._take(chunk, voice))
        self.give_out(pressed, TURN_BLOCKS)
        return size

    def release(self, pressed: Callable[[], bool]) -> None:
        """Give out what is held back: the rest of it did not come."""
        held = self._recogniser.flush()
        if held:
            form, voice = self._latest.form, self._latest.voice
            self._work.append(_Reading(form, voice, deque(held)))
            self.give_out(pressed, TURN_BLOCKS)

    def read_what_is_there(self) -> bytes:
        """Exactly the bytes that are there now: reading until nothing is left never ends while a helper still writes."""
        left = self.pending()
        chunks = []
        while left > 0:
            try:
                chunk = os.read(self.fd, left)
            except BlockingIOError:
                break
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)

    def finish(self, chunk: bytes, voice: Voice, done: Callable[[], None]) -> None:
        """Take the last bytes of a dead writer, its unfinished line too; `done` is called when all of them were given out."""
        reading = self._take(chunk, voice)
        reading.items.extend(self._recogniser.flush())
        for rest in self._splitter.flush():
            assert isinstance(rest, Part)
            reading.items.append(rest)
        reading.done = done
        self._work.append(reading)

    def _take(self, chunk: bytes, voice: Voice) -> _Reading:
        self.bytes_read += len(chunk)
        form = OutputForm(voice.event, self.name, timestamp(), voice.identity, voice.in_hand)
        items: deque[Run | Part] = deque()
        for segment in self._splitter.feed(chunk):
            if isinstance(segment, Part):
                items.extend(self._recogniser.flush())
                items.append(segment)
            else:
                items.extend(_portions(self._recogniser.feed(segment)))
        self._latest = _Reading(form, voice, items)
        return self._latest

    def give_out(self, pressed: Callable[[], bool], blocks: int | None) -> None:
        """Make events of what was read, for at most so many blocks (None: all), until it is `pressed`."""
        while self._work and blocks != 0:
            reading = self._work[0]
            if reading.items:
                self._emit(reading, _next_block(reading.items))
                blocks = None if blocks is None else blocks - 1
            if not reading.items:
                self._work.popleft()
                if reading.done is not None:
                    reading.done()
            elif pressed():
                return

    def _emit(self, reading: _Reading, block: list[Run | Part]) -> None:
        default = LEVEL_OF[self.name]
        shown = []
        for item in block:
            level = default if isinstance(item, Part) else item.level
            reading.voice.last_lines.add([item.content] if isinstance(item, Part) else item.lines)
            if self._journal.shows(level):
                shown.append((level, item))
            else:
                self.hidden += _events(item)
        count = sum(_events(item) for _, item in shown)
        if not count:
            return
        self.events += count

        def render(seq: int) -> bytes:
            made = []
            for level, item in shown:
                made.append(_render(reading.form, level, item, seq))
                seq += _events(item)
            return b"".join(made)

        self._journal.emit_block(reading.voice.about, self.source, count, render)


def _portions(runs: list[Run]) -> Iterator[Run]:
    """The same runs, those of many plain lines in several."""
    for run in runs:
        if run.kind or len(run.lines) <= MOST_LINES:
            yield run
            continue
        for start in range(0, len(run.lines), MOST_LINES):
            yield run._replace(lines=run.lines[start : start + MOST_LINES])


def _next_block(items: deque[Run | Part]) -> list[Run | Part]:
    """Take about MOST_LINES events, or BLOCK_BYTES of the large ones, off the items."""
    block: list[Run | Part] = []
    lines, size = 0, 0
    while items and lines < MOST_LINES and size < BLOCK_BYTES:
        item = items.popleft()
        block.append(item)
        lines += _events(item)
        size += len(item.content) if isinstance(item, Part) else 0
    return block


def _render(form: OutputForm, level: str, item: Run | Part, seq: int) -> bytes:
    if isinstance(item, Part):
        return form.part(level, item, seq)
    return form.run(item, seq) if item.kind else form.lines(level, item.lines, seq)


def _events(item: Run | Part) -> int:
    return len(item.lines) if isinstance(item, Run) and not item.kind else 1
