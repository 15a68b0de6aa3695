"""Facts about the recogniser that hold for any lines in any pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupervisor.log.recognise import Recogniser, Run

quick = settings(derandomize=True, deadline=None, max_examples=300)

# What a recogniser makes something of, and what comes close.
PIECES = [
    b"",
    b"\r",
    b"plain",
    b"INFO:root:x",
    b"WARNING:root:x",
    b"ERROR:root:x",
    b"ERROR:root:Traceback (most recent call last):",
    b"2026-01-01 10:00:00,123 - a - ERROR - x",
    b"a.py:1: UserWarning: x",
    b"[02:10:22] src/a.cc:1: x",
    b"Traceback (most recent call last):",
    b"  + Exception Group Traceback (most recent call last):",
    b"  |   File",
    b"  | ExceptionGroup: x",
    b"  +------",
    b'  File "x.py", line 3',
    b"    f()",
    b"ValueError: x",
    b"a.B: Traceback (most recent call last):",
    b"KeyboardInterrupt",
    b"During handling of the above exception, another exception occurred:",
    b"The above exception was the direct cause of the following exception:",
    b"Stack trace:",
    b"  [bt] (0) x",
    b"[bt] (1) x",
    b'{"level":"error"}',
    b'{"a":1,"a":2}',
    b"{",
    b"[METRICS]a.b:1|#|#hostname:h,1",
    b"[METRICS]a",
    b"\x1b[1mERROR x",
    b"\xff\x00",
]
any_line = st.one_of(
    st.sampled_from(PIECES), st.binary(max_size=40).map(lambda line: line.replace(b"\n", b""))
)
any_lines = st.lists(any_line, max_size=60)
defaults = st.sampled_from(["info", "warning"])
# What a traceback may be followed by is reached far oftener when blocks are strung together.
blocks = st.lists(
    st.sampled_from(
        [
            PIECES[10:11] + PIECES[15:18],
            PIECES[11:15],
            [b"", PIECES[20], b""],
            [b"", PIECES[21], b""],
            [PIECES[22], PIECES[23]],
            [b""],
            [b"plain"],
            PIECES[6:7] + PIECES[15:17] + PIECES[18:19],
        ]
    ),
    max_size=12,
).map(lambda some: [line for block in some for line in block])


def in_pieces(recogniser: Recogniser, lines: list[bytes], sizes: list[int]) -> list[Run]:
    """All runs of these lines, fed in pieces of these sizes and then flushed."""
    runs: list[Run] = []
    start = 0
    for size in sizes:
        runs += recogniser.feed(lines[start : start + size])
        start += size
    return runs + recogniser.feed(lines[start:]) + recogniser.flush()


def joined(runs: list[Run]) -> list[Run]:
    """The runs, with plain ones of one level that follow each other as one."""
    result: list[Run] = []
    for run in runs:
        if result and not run.kind and not result[-1].kind and run.level == result[-1].level:
            result[-1] = result[-1]._replace(lines=result[-1].lines + run.lines)
        else:
            result.append(run)
    return result


@quick
@given(st.one_of(any_lines, blocks), st.lists(st.integers(0, 8)), defaults, st.integers(1, 300))
def test_every_line_once(lines: list[bytes], sizes: list[int], default: str, most: int) -> None:
    """Any lines in any pieces come out once and in order, in runs of the promised form, whatever may be held."""
    runs = in_pieces(Recogniser(default, most), list(lines), sizes)
    assert [line for run in runs for line in run.lines] == lines
    for run in runs:
        assert run.lines
        assert run.level in ("info", "warning", "error")
        match run.kind:
            case "":
                assert run.extra is None
            case "json":
                assert run.extra is None
                assert len(run.lines) == 1
            case "metric":
                assert run.extra is not None
                assert list(run.extra) == ["metric"]
                assert len(run.lines) == 1
            case kind:
                assert kind == "traceback"
                assert run.level == "error"
                assert run.extra is not None
                assert run.extra["lines"] == len(run.lines)
                assert isinstance(run.extra["error"], str)


@quick
@given(st.one_of(any_lines, blocks), st.lists(st.integers(0, 8)), defaults)
def test_pieces_do_not_matter(lines: list[bytes], sizes: list[int], default: str) -> None:
    """How the lines are cut into calls changes nothing but where runs of plain lines are cut."""
    at_once = in_pieces(Recogniser(default, 1 << 16), lines, [])
    assert joined(in_pieces(Recogniser(default, 1 << 16), lines, sizes)) == joined(at_once)
    for one, other in pairwise(at_once[:-1]):  # the last is what was flushed
        assert one.kind or other.kind or one.level != other.level


@quick
@given(st.one_of(any_lines, blocks), defaults, st.integers(1, 300))
def test_what_is_held_is_bounded(lines: list[bytes], default: str, most: int) -> None:
    """At most `max_block` bytes are held, but for one line that is longer by itself; what is not held has come out."""
    recogniser = Recogniser(default, most)
    out = 0
    for number, line in enumerate(lines, start=1):
        out += sum(len(run.lines) for run in recogniser.feed([line]))
        held = lines[out:number]
        assert recogniser.holding == bool(held)
        assert len(held) <= 1 or sum(len(each) + 1 for each in held) <= most
