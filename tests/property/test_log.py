"""The log against its promises: every byte that was read is in the events, every event is accounted for in every sink.

`test_every_byte_comes_back` prints anything into a pipe and puts the stream together again from the JSON. `Sinks` is a journal
with sinks that take when they like; after every step it asks what became of every event. `test_the_newest_of_a_ring` compares a
ring with a list.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelsupervisor.log.journal import Journal
from modelsupervisor.log.outlet import Outlet
from modelsupervisor.log.render import Block
from modelsupervisor.log.ring import Ring, Rings
from modelsupervisor.runtime import streams
from support.sinks import EVERYTHING, ScriptedPort
from support.source import Source, always, never

quick = settings(derandomize=True, deadline=None, max_examples=200)

# Every byte ----------------------------------------------------------------------------------------------------------

_FRAGMENTS = st.sampled_from(
    [
        *(b"\n", b"\n\n", b"\r\n", b"\0", b"x" * 40, b"plain\n", b"ERROR:root:x\n", "é\n".encode()),
        *(b"Traceback (most recent call last):\n", b'  File "a.py", line 1, in f\n', b"    f()\n"),
        *(
            b"ValueError: x\n",
            b"KeyError\n",
            b"\xff\xfe\n",
            b"[METRICS]a.Count:1|#b:c|#hostname:h,1\n",
        ),
        b"\nDuring handling of the above exception, another exception occurred:\n\n",
        b"  + Exception Group Traceback (most recent call last):\n",
        b"  | ExceptionGroup: x (1 sub-exception)\n",
        b"Stack trace:\n  [bt] (0) libmxnet.so\n",
        *(b'{"a": 1}\n', b'{"level": "error", "b":\r[1e400]}\n', b'{"line": "%d", "seq": 0}\n'),
    ]
)
_STREAMS = st.lists(_FRAGMENTS | st.binary(max_size=30), max_size=25).map(b"".join)


def put_together(events: list[dict[str, Any]]) -> bytes:
    """The stream, as docs/events.md says how."""
    found = b""
    for event in events:
        line = event["line"].encode() if "line" in event else base64.b64decode(event["line_b64"])
        found += line + (b"" if event.get("more") or event.get("partial") else b"\n")
    return found


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@given(
    content=_STREAMS,
    turns=st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.booleans()), max_size=12),
    last=st.integers(0, 40),
    max_line=st.sampled_from([1, 2, 7, 30, 64, 1000]),
    max_block=st.sampled_from([1, 50, 150, 65536]),
    in_hand=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)
@quick
def test_every_byte_comes_back(
    name: str,
    content: bytes,
    turns: list[tuple[int, bool, bool]],
    last: int,
    max_line: int,
    max_block: int,
    in_hand: tuple[str, ...],
) -> None:
    """Whatever is printed, in whatever pieces, with whatever patience: the events put together are the bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "MOST_HELD", max_block)
        patch.setattr(streams, "MOST_LINES", 3)
        source = Source(name, max_line=max_line)
        try:
            source.in_hand = in_hand
            at = 0
            for size, pressed, releases in turns:
                source.prints(content[at : at + size])
                at += size
                source.serve(always if pressed else never)
                if releases:
                    source.stream.release(never)
            source.prints(content[at : at + last])
            left = source.stream.read_what_is_there() + content[at + last :]
            source.finish(left)
            assert put_together(source.events()) == content
            assert source.stream.report()["bytes"] == len(content)
            assert source.stream.report()["events"] == source.journal.seq
        finally:
            source.close()


# Every event ---------------------------------------------------------------------------------------------------------

LIMIT, RESERVED = 2000, 3000
SOURCES = ("digits/0 stdout", "digits/0 stderr", "digits/1 stdout")
WHICH = st.integers(0, 1)


class Sinks(RuleBasedStateMachine):
    """Two small sinks of one journal, and one that takes everything and so has what was made."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.journal = Journal("info", Rings(10_000))
        self.witness = ScriptedPort()
        self.ports = (ScriptedPort(0), ScriptedPort(0))
        self.outlets = [Outlet(n, p, LIMIT) for n, p in zip(("stdout", "file"), self.ports)]
        for outlet in self.outlets:
            outlet.buffer.reserved = RESERVED
        everything = Outlet("journal", self.witness, EVERYTHING)
        self.journal.outlets += [*self.outlets, everything]
        self.made: Counter[str] = Counter()

    @rule(source=st.sampled_from(SOURCES), count=st.integers(1, 12), size=st.integers(1, 400))
    def output(self, source: str, count: int, size: int) -> None:
        """A worker prints; a block may be larger than a sink's limit."""

        def render(seq: int) -> bytes:
            event = {"event": "worker.output", "source": source, "line": "x" * size}
            made = [json.dumps(event | {"seq": seq + n}) + "\n" for n in range(count)]
            return "".join(made).encode()

        self.journal.emit_block(("digits", 0), source, count, render)
        self.made[source] += count

    @rule(size=st.integers(0, 600))
    def event(self, size: int) -> None:
        """Something happens in the life of the supervisor."""
        self.journal.emit("info", "worker.ready", text="x" * size)

    @rule(which=WHICH, size=st.integers(1, 3000), passed=st.sampled_from([0.0, 0.3, 11.0]))
    def takes(self, which: int, size: int, passed: float) -> None:
        """A sink has room for so much more, and is written to; a write may end within a line."""
        self.ports[which].room += size
        self.flush(which, passed)

    @rule(which=WHICH, passed=st.sampled_from([0.0, 0.3, 11.0]))
    def flush(self, which: int, passed: float) -> None:
        """In the midst of a turn, as reading does: what the sink has to say waits."""
        self.now += passed
        self.outlets[which].flush(self.now)
        self.outlets[which].holds(self.now)

    @rule()
    def tell(self) -> None:
        """At the end of a turn: what sinks have to say becomes events."""
        self.journal.tell_of_outlets(pid=1)

    @precondition(lambda self: self.journal.seq > 30)
    @rule(which=WHICH)
    def leaves(self, which: int) -> None:
        """A reader ends."""
        self.ports[which].gone = "Broken pipe"
        self.outlets[which].flush(self.now)

    def lines(self) -> dict[int, bytes]:
        """Every event that was made, by its number."""
        for outlet in self.journal.outlets[2:]:
            outlet.flush(self.now)
        made = bytes(self.witness.taken).splitlines(True)
        return {json.loads(line)["seq"]: line for line in made}

    @invariant()
    def every_event_is_accounted_for(self) -> None:
        """By stream and sink: made = logged + dropped + buffered."""
        made: dict[str | None, int] = {**self.made, None: self.journal.seq - self.made.total()}
        for outlet in self.outlets:
            tallies = outlet.buffer.tallies
            assert made == {
                source: (each.logged + each.dropped + each.buffered)
                for source, each in tallies.items()
            } | {source: 0 for source in made if source not in tallies}

    @invariant()
    def what_was_written_are_whole_lines_in_order(self) -> None:
        """What was taken and what waits are, end to end, lines that were made, none twice and none in pieces."""
        made = self.lines()
        for outlet, port in zip(self.outlets, self.ports):
            waits = b"".join(bytes(payload) for payload, _, _ in outlet.buffer._queue)
            waits = waits[outlet.buffer._sent :]
            assert len(waits) == outlet.buffer.size
            whole = bytes(port.taken) + waits
            if outlet.closed:
                whole = whole[: whole.rfind(b"\n") + 1]
            lines = whole.splitlines(True)
            seqs = [json.loads(line)["seq"] for line in lines]
            assert all(before < behind for before, behind in pairwise(seqs))
            assert lines == [made[seq] for seq in seqs]

    @invariant()
    def what_waits_is_bounded(self) -> None:
        """By the limit, the reserve, and one block that found half of the limit free."""
        for outlet in self.outlets:
            assert outlet.buffer.size <= LIMIT + RESERVED + 12 * 500

    @invariant()
    def who_is_stalled_will_not_be_for_ever(self) -> None:
        """More than half of the limit waits, so that there is something whose taking ends it."""
        for outlet in self.outlets:
            assert not outlet.buffer.stalled or outlet.buffer.size > LIMIT // 2

    def teardown(self) -> None:
        """When all is taken and told: the gaps of a sink's numbers are what its `log.dropped` say, in all and by stream."""
        for port in self.ports:
            port.room = EVERYTHING
        for _ in range(10):
            for outlet in self.outlets:
                outlet.flush(self.now)
            self.journal.tell_of_outlets(pid=1)
            for outlet in self.outlets:
                if not outlet.closed:
                    outlet.tell_dropped()
        made = self.lines()
        for outlet, port in zip(self.outlets, self.ports):
            if outlet.closed:
                continue
            assert not outlet.backlog and not outlet.said
            events = port.events()
            told = [
                event
                for event in events
                if event["event"] == "log.dropped" and event["sink"] == outlet.name
            ]
            assert sum(event["lines"] for event in told) == len(made) - len(events)
            streams_told: Counter[str] = Counter()
            for event in told:
                streams_told.update(event["streams"])
            logged = Counter(event["source"] for event in events if "source" in event)
            assert streams_told == self.made - logged


TestSinks = Sinks.TestCase
TestSinks.settings = settings(
    quick,
    stateful_step_count=40,
    # Shrinking a history of 40 steps takes minutes; what is printed can be replayed as it is.
    phases=[Phase.generate],
)


# The newest ----------------------------------------------------------------------------------------------------------


@quick
@given(
    blocks=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=5), max_size=20),
    size=st.integers(1, 600),
    count=st.integers(0, 80),
)
def test_the_newest_of_a_ring(blocks: list[list[int]], size: int, count: int) -> None:
    """A ring gives what the end of a list of all events would, as far back as it keeps whole blocks; and keeps all it may."""
    ring = Ring(size)
    everything: list[bytes] = []
    sizes: list[tuple[int, int]] = []
    for widths in blocks:
        lines = [
            b"%d " % (len(everything) + n) + b"x" * width + b"\n" for n, width in enumerate(widths)
        ]
        ring.add(Block(None, len(lines), b"".join(lines)))
        everything += lines
        sizes.append((len(lines), sum(map(len, lines))))
        kept, room = 0, size
        for place, (lines_of_block, bytes_of_block) in enumerate(reversed(sizes)):
            room -= bytes_of_block
            if room < 0 and place:
                break
            kept += lines_of_block
        wanted = min(count, kept)
        assert ring.newest(count) == everything[len(everything) - wanted :]
