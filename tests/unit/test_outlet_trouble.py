"""outlet.py: a sink of which it is known why it does not take. The reason is said once, and so is the end of it."""

from __future__ import annotations

from modelsupervisor.log.outlet import Outlet, PortFailing
from support.schema import check_words
from support.sinks import ScriptedPort, block

FULL = "it cannot be written: No space left on device"
NOT_TAKING = "it does not take what is written"


class FailingPort(ScriptedPort):
    """Fails while `full`."""

    full = False

    def write(self, payloads: list[memoryview]) -> int:
        """Take the beginning of it, or fail."""
        if self.full:
            raise PortFailing("No space left on device")
        return super().write(payloads)


def made(limit: int = 1000) -> tuple[FailingPort, Outlet]:
    """A port that takes everything, and its outlet."""
    port = FailingPort()
    return port, Outlet("stdout", port, limit)


def said(outlet: Outlet) -> list[tuple[str, str]]:
    """Names and reasons of the events that it wants made since the last call."""
    found = outlet.take_said()
    for each in found:
        check_words(each.level, each.event, each.facts)
    return [(each.event, each.facts["reason"]) for each in found]


def test_a_failure_is_said_once_and_its_end_once() -> None:
    """However often it is tried; nothing of it is dropped."""
    port, outlet = made()
    port.full = True
    for _ in range(3):
        outlet.put(block("digits/0 stdout", 1, 100))
        outlet.flush(0.0)
    assert outlet.trouble == FULL
    assert said(outlet) == [("log.failed", FULL)]
    port.full = False
    outlet.flush(1.0)
    outlet.flush(2.0)
    assert (outlet.trouble, outlet.backlog) == ("", False)
    assert said(outlet) == [("log.resumed", FULL)]


def test_a_failure_that_fills_the_buffer_ends_once() -> None:
    """The stall has the failure's reason, both end with one log.resumed, and what was dropped is said after it."""
    port, outlet = made()
    port.full = True
    outlet.put(block("digits/0 stdout", 1, 10))
    outlet.flush(0.0)
    for _ in range(3):
        outlet.put(block("digits/0 stdout", 10, 600))
    assert said(outlet) == [("log.failed", FULL), ("log.stalled", FULL)]
    port.full = False
    outlet.flush(1.0)
    assert said(outlet) == [("log.resumed", FULL), ("log.dropped", FULL)]


def test_a_little_room_is_no_end_of_trouble() -> None:
    """A pipe to a writer that cannot write takes some more of it: neither a return nor a second stall is said."""
    port, outlet = made()
    port.room = 0
    outlet.trouble = FULL
    for _ in range(3):
        outlet.put(block("digits/0 stdout", 1, 600))
    port.room = 600
    outlet.flush(0.0)
    assert not outlet.buffer.stalled
    for _ in range(3):
        outlet.put(block("digits/0 stdout", 1, 600))
    assert said(outlet) == [("log.stalled", FULL)]
    outlet.trouble = ""
    outlet.flush(1.0)
    assert said(outlet) == []
    port.room = 10_000
    outlet.flush(2.0)
    assert said(outlet) == [("log.resumed", FULL), ("log.dropped", FULL)]


def test_a_stall_without_a_known_reason_says_so() -> None:
    """All that is known is that it does not take."""
    port, outlet = made()
    port.room = 0
    for _ in range(3):
        outlet.put(block("digits/0 stdout", 1, 600))
    assert said(outlet) == [("log.stalled", NOT_TAKING)]
