"""The events of the supervisor itself, of its log, and of the processes that workers leave."""

from __future__ import annotations

from modelsupervisor.log.fields import REASON, TRACEBACK, Event, Field, Group, count, seconds, texts

SCHEMA_VERSION = 1
"""Raised when an event or a field changes its meaning or goes; a new event or field does not raise it."""

_NAME = Field("name", "string", "A name in the run directory.")
_COMMAND = Field("command", "string", "The command's name as the kernel has it.")

SUPERVISOR = Group(
    "The supervisor",
    (
        Event(
            "supervisor.starting",
            "supervisor",
            ("info",),
            "The lock of the run directory is ours; templates are started next.",
            (
                Field("version", "string", "Of modelsupervisor."),
                Field("schema", "integer", "The version of these events.", choices=(1,)),
                Field("config", "string", "The absolute path of the configuration file."),
                Field("run_dir", "string", "The absolute path of the run directory."),
            ),
        ),
        Event(
            "supervisor.ready",
            "supervisor",
            ("info", "warning"),
            "Every worker is READY; under `on_start_failure = continue` READY or FAILED, then `degraded` is true and `failed` "
            "counts the latter. Said once.",
            (count("workers"), count("failed"), Field("degraded", "boolean")),
        ),
        Event(
            "supervisor.start_failed",
            "supervisor",
            ("error",),
            "The start is given up (`on_start_failure = exit`); everything is stopped, exit code 1.",
            (REASON, Field("config", "string", "The file and line of the model.")),
        ),
        Event(
            "supervisor.stopping",
            "supervisor",
            ("info",),
            "A stop was asked for: the signal's name, `stop command`, or why the start failed.",
            (REASON,),
        ),
        Event(
            "supervisor.stopping_now",
            "supervisor",
            ("warning",),
            "A second request, or `stop_timeout` passed: whatever lives is killed.",
            (REASON,),
        ),
        Event(
            "supervisor.left_behind",
            "supervisor",
            ("error",),
            "What did not die of SIGKILL in time (a process stuck in the kernel); exit code 1.",
            (texts("left", "Workers as `digits/0`, templates as `template of digits`."),),
        ),
        Event(
            "supervisor.fault",
            "supervisor",
            ("error",),
            "A bug of ours while one descriptor was served; the supervisor goes on. Please report it.",
            (TRACEBACK,),
        ),
        Event(
            "supervisor.stopped",
            "supervisor",
            ("info",),
            "The last event; `code` is the exit code.",
            (Field("code", "integer"), seconds("uptime_s")),
        ),
        Event(
            "signal.ignored",
            "supervisor",
            ("info",),
            "A signal that has no meaning here.",
            (
                Field(
                    "signal", "string", "`SIGWINCH` and so on; `signal 40` where it has no name."
                ),
                Field("count", "integer", "How often it came since the last look.", minimum=1),
            ),
        ),
        Event(
            "leftover.removed",
            "supervisor",
            ("info",),
            "A socket, FIFO or scoreboard that a killed supervisor had left in the run directory is gone.",
            (_NAME, REASON),
        ),
        Event(
            "leftover.kept",
            "supervisor",
            ("warning", "error"),
            "Something in the run directory that is not ours, or not any more, was left alone, or could not be removed.",
            (_NAME, REASON),
        ),
    ),
)

_SINK = Field(
    "sink",
    "string",
    "`stdout`, `file`, `journal`, or `logs of pid N`: somebody who follows with `modelsupervisor logs -f`.",
    pattern=r"^(stdout|file|journal|logs of pid [0-9]+)$",
)
_PATH = Field("path", "string|null", "Of the file; null where the sink has none.")
_STREAMS = Field(
    "streams",
    "object",
    'The same by stream, as `{"digits/0 stdout": 120}`; those of a template as `digits template stdout`.',
    of="integer",
)

LOG = Group(
    "The log",
    (
        Event(
            "log.opened",
            "log",
            ("info",),
            "A sink took up its work. Not said of a standard output that is a pipe, socket or terminal, nor of those who follow.",
            (_SINK, Field("kind", "string", "What it writes to: `file`, `journal`."), _PATH),
        ),
        Event(
            "log.reopened",
            "log",
            ("info",),
            "The file was opened anew; everything from the next event on is in the new one. `reason`: `SIGUSR1`, `it was deleted`, "
            "`it was renamed`.",
            (_SINK, Field("path", "string"), REASON),
        ),
        Event(
            "log.failed",
            "log",
            ("error",),
            "A sink cannot be opened or written now. Said once for each failure, not for each try; what waits is kept.",
            (
                _SINK,
                _PATH,
                REASON,
                Field("next", "string", "What is done about it: `it is tried again every second`."),
            ),
        ),
        Event(
            "log.resumed",
            "log",
            ("info",),
            "It works again after `log.failed` or `log.stalled`, whose `reason` this is.",
            (_SINK, REASON),
        ),
        Event(
            "log.stalled",
            "log",
            ("warning",),
            "`log_buffer` is full because the sink does not take what is written: lines for it are dropped and counted from here.",
            (_SINK, REASON, count("buffered_bytes")),
        ),
        Event(
            "log.dropped",
            "log",
            ("warning",),
            "The sink did not get so many events since the last such event of that sink; life-cycle events have room of their own.",
            (
                _SINK,
                Field("lines", "integer", "Events that are missing.", minimum=1),
                REASON,
                _STREAMS,
            ),
        ),
        Event(
            "log.closed",
            "log",
            ("error",),
            "The sink's reader is gone for ever; everything further is counted.",
            (_SINK, REASON),
        ),
        Event(
            "log.writer_exited",
            "log",
            ("warning",),
            "The process that writes for this sink died; a new one goes on where it stopped, and nothing is lost.",
            (
                _SINK,
                Field("writer_pid", "integer", "The pid of that process.", minimum=1),
                REASON,
                seconds("retry_in_s", "Until the new one is started."),
            ),
        ),
    ),
    "For each sink and stream, events made = events logged + dropped + still buffered.",
)

ORPHANS = Group(
    "Processes that workers leave",
    (
        Event(
            "orphan.adopted",
            "process",
            ("warning",),
            "A process that left its worker's session lost its parent and is now the supervisor's to reap. It lives on.",
            (_COMMAND,),
        ),
        Event("orphan.exited", "process", ("info",), "Such a process ended.", (REASON,)),
        Event(
            "orphan.killed",
            "process",
            ("warning",),
            "Such a process was still there when the supervisor ended.",
            (_COMMAND,),
        ),
    ),
    "What stayed in a dead worker's session (its helpers) is killed with it and counted in the `reason` of its\n`worker.exited`. "
    "Orphans, in a container those of other programs too, are looked for when any child ends;\none that has ended itself by then "
    "is reaped without an event.",
)
