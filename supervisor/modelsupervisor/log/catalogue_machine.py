"""The events of the machine below the plan: what it does not tell, and where workers are not as planned."""

from __future__ import annotations

from modelsupervisor.log.fields import REASON, Event, Field, Group, word

MACHINE = Group(
    "The machine and the plan",
    (
        Event(
            "machine.degraded",
            "supervisor",
            ("warning",),
            "Something of the machine could not be read at the start; `reason` says what is assumed instead.",
            (REASON,),
        ),
        Event(
            "worker.drift",
            "worker",
            ("warning",),
            "A worker is not as planned: said once for each generation and difference. `status` shows what is so at the last look.",
            (
                word(
                    "what",
                    *("cpus", "threads", "version"),
                    meaning="`cpus`: threads that may run on others than planned; `threads`: an OpenMP runtime with another count; "
                    "`version`: a package that is not its template's.",
                ),
                Field("planned", "string", "As `plan` and the configuration write it."),
                Field("found", "string", "In the same form."),
                REASON,
            ),
        ),
    ),
)
