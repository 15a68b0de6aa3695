"""What a worker prints: every byte that reached the kernel is in the log, in order, as its own, also when it was its last."""

from __future__ import annotations

import base64
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelsupervisor.runtime.streams import LAST_LINES
from support.faults import Caller, ask, crash, facts, kill_worker, ready, request, template_pid
from support.instance import Event, Instance, state_of, wait_for

Running = Callable[..., Instance]

KILL: dict[str, Any] = {"do": "kill"}


def written(text: str, fd: int = 1) -> dict[str, Any]:
    """The fault that writes this (latin-1) to a descriptor."""
    return {"do": "write", "text": text, "fd": fd}


def output(instance: Instance, stream: str = "stdout", **match: Any) -> list[Event]:
    """The output events of a stream so far."""
    return instance.events("worker.output", stream=stream, **match)


def content(event: Event) -> bytes:
    """The bytes of a line."""
    if "line_b64" in event:
        return base64.b64decode(event["line_b64"])
    return str(event["line"]).encode()


def test_lines_are_events_of_their_stream(running: Running) -> None:
    """stdout at level info, stderr at level warning, with the worker's identity."""
    instance = running(workers=2)
    pid = instance.worker(index=1)["pid"]
    ask(instance, "print", index=1, lines=3, text="to stdout")
    ask(instance, "print", index=1, lines=2, text="to stderr", stream="stderr")
    instance.wait_event("worker.output", count=5)
    identity = {"model": "echo", "worker": 1, "pid": pid, "generation": 1}
    out = output(instance, level="info", **identity)
    assert [event["line"] for event in out] == [f"to stdout {number}" for number in range(3)]
    err = output(instance, "stderr", level="warning", **identity)
    assert [event["line"] for event in err] == ["to stderr 0", "to stderr 1"]
    assert not any(key in event for event in out + err for key in ("part", "more", "partial"))


def test_what_is_printed_while_loading_is_the_templates(running: Running) -> None:
    """template.output, with the template's pid; nothing of it is in a worker's output."""
    instance = running()
    (event,) = instance.events("template.output")
    assert event["line"] == f"loading faults in {template_pid(instance)}"
    assert (event["pid"], event["stream"], event["level"]) == (
        template_pid(instance),
        "stdout",
        "info",
    )
    assert not instance.events("worker.output")


def test_ten_thousand_lines_and_then_sigkill(running: Running) -> None:
    """Plain print without a flush, and the worker is killed right after: all lines are there, in order, before its end."""
    instance = running("worker.exited")
    crash(instance, "all", of=[{"do": "print", "lines": 10_000, "text": "number"}, KILL])
    exited = instance.wait_event("worker.exited")
    lines = output(instance, generation=1, pid=exited["pid"])
    assert [event["line"] for event in lines] == [f"number {n}" for n in range(10_000)]
    assert all(event["seq"] < exited["seq"] for event in lines)
    assert exited["last_lines"] == [f"number {n}" for n in range(10_000 - LAST_LINES, 10_000)]


def test_what_c_prints_and_then_sigkill(running: Running) -> None:
    """C's stdout is line-buffered too, as it is not by itself on a pipe."""
    instance = running("worker.exited")
    crash(instance, "all", of=[{"do": "printf", "lines": 1000}, KILL])
    instance.wait_event("worker.exited")
    assert [event["line"] for event in output(instance)] == [f"from C {n}" for n in range(1000)]


def test_a_full_fifo_at_death_is_read_to_its_last_byte(running: Running) -> None:
    """While the supervisor could not read, the worker wrote 250,000 bytes and died: all of it comes before its end."""
    instance = running("worker.exited")
    pid = instance.worker()["pid"]
    text = "".join(f"{number:07d}\n" for number in range(31_250))
    os.kill(instance.pid, signal.SIGSTOP)
    try:
        with Caller(instance.socket(), request("all", of=[written(text), KILL])):
            wait_for(lambda: state_of(pid) == "Z", "the worker to have died")
    finally:
        os.kill(instance.pid, signal.SIGCONT)
    exited = instance.wait_event("worker.exited")
    assert exited["signal"] == "SIGKILL"
    assert [event["line"] for event in output(instance)] == text.splitlines()
    ready(instance, 2)


def test_an_unfinished_line_is_kept_and_marked(running: Running) -> None:
    """What reached the kernel without a newline is the dead one's last line, and not the beginning of its successor's first."""
    instance = running("worker.exited")
    crash(
        instance,
        "all",
        of=[written("whole\nhalf a li"), written("fatal: cannot conti", fd=2), KILL],
    )
    ready(instance, 2)
    ask(instance, "print", text="of the successor")
    instance.wait_event("worker.output", generation=2)
    told = [
        (event["line"], event.get("partial"), event["generation"]) for event in output(instance)
    ]
    assert told == [
        ("whole", None, 1),
        ("half a li", True, 1),
        ("of the successor 0", None, 2),
    ]
    (half,) = output(instance, "stderr")
    assert (half["line"], half["partial"]) == ("fatal: cannot conti", True)
    (exited,) = instance.events("worker.exited")
    assert exited["last_lines"] == ["whole", "half a li", "fatal: cannot conti"]
    assert half["pid"] == exited["pid"]


def test_bytes_that_are_no_text_travel_unchanged(running: Running) -> None:
    """Not UTF-8: base64; control characters, NUL, CR and empty lines: as they are."""
    instance = running()
    lines = ["\xff\xfe junk \x80", "", "nul \x00 bell \x07 \x1b[31mred", "cr \r here", "\xc3\xa4"]
    ask(instance, "all", of=[written("\n".join(lines) + "\n")])
    instance.wait_event("worker.output", count=len(lines))
    found = output(instance)
    assert [content(event) for event in found] == [line.encode("latin-1") for line in lines]
    assert ["line_b64" in event for event in found] == [True, False, False, False, False]
    assert found[-1]["line"] == "ä"


def test_a_long_line_comes_in_parts(running: Running) -> None:
    """Consecutive events of max_line bytes, numbered, all but the last marked `more`; shorter lines around it are whole."""
    instance = running("worker.exited", max_line="512B")
    long = "".join(chr(97 + number % 26) for number in range(1300))
    ask(instance, "all", of=[written(f"before\n{long}\nafter\n"), written("x" * 512 + "\n")])
    instance.wait_event("worker.output", count=6)
    found = output(instance)
    assert [(event.get("part"), event.get("more"), len(event["line"])) for event in found] == [
        (None, None, 6),
        (1, True, 512),
        (2, True, 512),
        (3, False, 276),
        (None, None, 5),
        (None, None, 512),
    ]
    assert "".join(event["line"] for event in found[1:4]) == long
    crash(instance, "all", of=[written("y" * 600), KILL])
    instance.wait_event("worker.exited")
    rest = output(instance)[6:]
    assert [(event["part"], event["more"], event.get("partial")) for event in rest] == [
        (1, True, None),
        (2, False, True),
    ]
    assert "".join(event["line"] for event in rest) == "y" * 600


@pytest.mark.parametrize("seed", [1, 2])
def test_any_bytes_can_be_put_together_again(running: Running, seed: int) -> None:
    """Random bytes in random pieces, ended by SIGKILL: the lines of the log, joined, are the stream."""
    dice = random.Random(seed)
    alphabet = b"\n\n\r\x00\xff\xc3\xa4abc"
    stream = bytes(dice.choice(alphabet) for _ in range(6000)) + b"\xe2" * 1500
    cuts = sorted(dice.sample(range(len(stream)), 40))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    instance = running("worker.exited", max_line="512B")
    crash(instance, "all", of=[*(written(each.decode("latin-1")) for each in pieces), KILL])
    instance.wait_event("worker.exited")
    joined = b""
    for event in output(instance):
        ended = not event.get("more") and not event.get("partial")
        joined += content(event) + (b"\n" if ended else b"")
    assert joined == stream


def test_last_lines_are_the_newest_of_that_process_alone(running: Running) -> None:
    """At most LAST_LINES, both streams, and nothing of the generation before; `status` keeps them with the last exit."""
    instance = running("worker.exited")
    ask(instance, "print", lines=LAST_LINES + 10, text="early")
    instance.wait_event("worker.output", count=LAST_LINES + 10)
    kill_worker(instance, signal.SIGKILL)
    first = instance.wait_event("worker.exited")
    assert first["last_lines"] == [f"early {number}" for number in range(10, LAST_LINES + 10)]
    ready(instance, 2)
    crash(instance, "all", of=[{"do": "print", "text": "late", "stream": "stderr"}, KILL])
    second = instance.wait_event("worker.exited", count=2)
    assert second["last_lines"] == ["late 0"]
    assert instance.worker()["last_exit"]["last_lines"] == ["late 0"]


def test_a_worker_that_makes_its_stdout_nonblocking_harms_only_itself(running: Running) -> None:
    """O_NONBLOCK belongs to the open file, which is a fresh one for each generation."""
    instance = running("worker.exited", workers=2)
    ask(instance, "unblock_stdout")
    assert facts(instance)["blocking"] == [True, False, True]
    assert facts(instance, index=1)["blocking"] == [True, True, True]
    kill_worker(instance, signal.SIGKILL)
    ready(instance, 2)
    assert facts(instance)["blocking"] == [True, True, True]
    ask(instance, "print", text="still heard")
    assert instance.wait_event("worker.output", generation=2)["line"] == "still heard 0"


def test_a_working_directory_that_was_deleted(running: Running, tmp_path: Path) -> None:
    """A pruned release under a running supervisor: a template's end names the configuration all the same, and all goes on."""
    instance = running("template.exited")
    working = tmp_path / "release"
    working.mkdir()
    assert instance.stop() == 0
    command = [sys.executable, "-m", "modelsupervisor", "start", "-c", str(instance.config)]
    instance.launch(command=["sh", "-c", f'cd "{working}" && exec "$@"', "sh", *command])
    instance.wait_event("supervisor.ready")
    working.rmdir()
    os.kill(template_pid(instance), signal.SIGKILL)
    told = instance.wait_event("template.exited", signal="SIGKILL")
    assert "workers.ini:" in told["config"] and told["config"].endswith(" [model:echo]")
    instance.wait_event("template.ready", generation=2)
