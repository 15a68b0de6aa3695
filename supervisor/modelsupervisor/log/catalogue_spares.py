"""The events of spares: workers that wait for a slot."""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.log.catalogue_workers import _CODE, _FAILURES, _RETRY_IN, _SIGNAL, _UPTIME
from modelsupervisor.log.fields import (
    EVIDENCE,
    REASON,
    TRACEBACK,
    Event,
    Field,
    Group,
    seconds,
    word,
)

_NUMBER = Field("spare", "integer", "Counts the spares that the model ever had, from 1.", minimum=1)

SPARES = Group(
    "Spares",
    (
        Event(
            "spare.ready",
            "spare",
            ("info",),
            "A worker without a slot has everything else: the next slot of its model that needs a process gets this one, and "
            "`worker.starting` says so.",
            (_NUMBER, seconds("start_s", "From the moment it was asked for.")),
        ),
        Event(
            "spare.exited",
            "spare",
            ("info", "warning"),
            "A spare is gone before a slot needed it; nobody was served by it, and another one is born.",
            (
                _NUMBER,
                word(
                    "cause",
                    *("stopped", "signal", "oom_suspected", "exit", "start_failed", "memory"),
                    *("start_timeout", "spawn_failed"),
                    meaning="As for a worker.",
                ),
                REASON,
                EVIDENCE,
                _CODE,
                _SIGNAL,
                _UPTIME,
                _RETRY_IN,
                _FAILURES,
                replace(TRACEBACK, type="string|null"),
            ),
        ),
        Event(
            "spare.bad_message",
            "spare",
            ("warning",),
            "It sent something that is not a message of a spare; it was dropped.",
            (_NUMBER, REASON),
        ),
    ),
)
