"""The events of templates and workers, but for the lines of output that both write."""

from __future__ import annotations

from dataclasses import replace

from modelsupervisor.log.fields import (
    EVIDENCE,
    LOST_BEFORE,
    PEAK_RSS,
    REASON,
    TRACEBACK,
    Event,
    Field,
    Group,
    count,
    seconds,
    texts,
    word,
)

# -- ends -------------------------------------------------------------------------------------------------------------

_CODE = Field("code", "integer|null", "The exit code, null where it has none.")
_SIGNAL = Field("signal", "string|null", "The signal that ended it, by name.")
_UPTIME = seconds("uptime_s", "From the moment it was asked for.")
_RETRY_IN = seconds("retry_in_s", "Until the next try, null where none is due.", null=True)
_FAILURES = count("failures", "Failures in a row.")
_CONFIG = Field(
    "config", "string|null", "The file and line of the model; null where the end was asked for."
)

_WORKER_END = (
    REASON,
    _CODE,
    _SIGNAL,
    _UPTIME,
    count("requests", "What this process answered."),
    texts("in_hand", "The ids of what it did not answer, at most 64."),
    word(
        "next",
        *("restart", "back_off", "failed", "wait_for_template", "stop", "none"),
        meaning="`failed`: it gave up, see `worker.failed`; `wait_for_template`: the successor is born once the template can; "
        "`stop`: the supervisor's start has failed with it; `none`: it was to go.",
    ),
    _RETRY_IN,
    _FAILURES,
    texts("last_lines", "Its last lines of output, at most 50, oldest first."),
    Field(
        "at",
        "string",
        "When it was seen, UTC, ISO 8601, milliseconds.",
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$",
    ),
)

# -- templates --------------------------------------------------------------------------------------------------------

_VERSIONS = (
    Field("python", "string", "The interpreter's version.", required=False),
    *(
        Field(name, "string", "Its version, where the model has imported it.", required=False)
        for name in ("numpy", "mxnet", "onnxruntime", "torch")
    ),
)

TEMPLATES = Group(
    "Templates",
    (
        Event(
            "template.starting",
            "template",
            ("info",),
            "An interpreter is started that will load the model.",
        ),
        Event(
            "template.ready",
            "template",
            ("info",),
            "The model is loaded and, with `warmed`, was run once. Of one that died at the same moment there are no facts.",
            (
                *_VERSIONS,
                Field("warmed", "boolean", required=False),
                seconds("load_s", required=False),
                seconds("warmup_s", required=False),
                seconds("start_s", "From the start of the interpreter.", required=False),
                Field(
                    "archive_sha256",
                    "string",
                    "The archive that the model was loaded from.",
                    required=False,
                ),
                seconds(
                    "unpack_s",
                    "Checking and unpacking it; not said where another model had it unpacked already.",
                    required=False,
                ),
            ),
        ),
        Event(
            "template.exited",
            "template",
            ("info", "error"),
            "A template is gone; living workers go on.",
            (
                word(
                    "cause",
                    *("stopped", "load_failed", "memory", "start_timeout", "hung"),
                    *("signal", "oom_suspected", "exit", "spawn_failed"),
                    meaning="`memory`: the load failed for want of it; `oom_suspected`: see `evidence`; `hung`: it did not fork "
                    "when asked; `spawn_failed`: there never was a process.",
                ),
                REASON,
                EVIDENCE,
                _CODE,
                _SIGNAL,
                _UPTIME,
                Field("loaded", "boolean", "It had become ready."),
                word("next", "restart", "back_off", "failed", "stop", "none"),
                _RETRY_IN,
                _FAILURES,
                _CONFIG,
                replace(TRACEBACK, type="string|null"),
                texts("last_lines", "Null where the end was asked for.", null=True),
            ),
        ),
        Event(
            "template.bad_message",
            "template",
            ("warning",),
            "A message from a template that is not the protocol.",
            (REASON,),
        ),
        Event(
            "restart.failed",
            "template",
            ("error",),
            "A `restart` was not carried out to its end; the same words went to whoever asked.",
            (REASON,),
        ),
    ),
)

# -- workers ----------------------------------------------------------------------------------------------------------

_PEER = (
    count("peer_pid", "Of the client's process, as the kernel has it."),
    Field("peer_uid", "integer", "Its user."),
)
_ERROR = Field("error", "string", "What went wrong, in words.")

_LIVES = (
    Event(
        "worker.starting",
        "worker",
        ("info",),
        "The template of that generation was asked to fork this worker; or, with `spare`, bore that one before, and it was handed "
        "the slot.",
        (
            Field("template", "integer", "The generation of the template.", minimum=1),
            Field("spare", "integer", "The number of the spare.", required=False, minimum=1),
        ),
    ),
    Event(
        "worker.ready",
        "worker",
        ("info",),
        "It serves.",
        (
            seconds("start_s", "From the moment it was asked for."),
            Field(
                "warmed",
                "boolean",
                "Of a worker that loaded its own copy (`preload`), as are the next two: it ran it once.",
                required=False,
            ),
            seconds("load_s", required=False),
            seconds("warmup_s", required=False),
        ),
    ),
    Event(
        "worker.worn",
        "worker",
        ("info",),
        "It serves on until a replacement is parked, finishes its batch, and goes.",
        (word("wear", "max_requests", "memory_limit"), REASON),
    ),
    Event(
        "worker.stopping",
        "worker",
        ("info",),
        "It was told to finish what it has in hand and exit.",
    ),
    Event(
        "worker.overdue",
        "worker",
        ("warning",),
        "It has not ended by its deadline and was sent this signal: SIGTERM, then SIGKILL.",
        (word("sent", "SIGTERM", "SIGKILL"),),
    ),
    Event(
        "worker.hung",
        "worker",
        ("warning",),
        "It got nothing done for `response_timeout` though it had something to do, and is ended: by SIGABRT, at which it writes "
        "the stacks of its threads to its stderr, and a second later by SIGKILL.",
        (
            seconds("stuck_s", "For how long that was seen."),
            seconds("response_timeout_s"),
            Field(
                "busy",
                "boolean",
                "True: with a batch in hand; false: it had nothing in hand and did not answer a ping.",
            ),
            Field(
                "in_hand",
                "array",
                "The ids of the requests in hand, at most 64.",
                required=False,
                of="string",
            ),
            Field(
                "threads",
                "array",
                "What the kernel says of its threads, 32 at most: `4711 python: S, in pipe_read, system call 0`.",
                required=False,
                of="string",
            ),
        ),
    ),
    Event(
        "worker.exited",
        "worker",
        ("info", "warning", "error"),
        "Exactly one for each process.",
        (
            word(
                "cause",
                *("stopped", "recycled", "signal", "oom_suspected", "exit"),
                *("start_failed", "memory", "start_timeout", "hung"),
                meaning="`recycled`: see `worker.worn`; `oom_suspected`: killed, it seems, by the kernel, see `evidence`; "
                "`start_failed`: it said itself why it could not, in `traceback`; `memory`: so, and it was want of memory; "
                "`hung`: see `worker.hung`.",
            ),
            *_WORKER_END,
            EVIDENCE,
            PEAK_RSS,
            replace(TRACEBACK, type="string|null", required=False),
        ),
    ),
    Event(
        "worker.spawn_failed",
        "worker",
        ("info", "warning", "error"),
        "The same for a birth of which no process came.",
        (word("cause", "spawn_failed"), *_WORKER_END),
    ),
    Event(
        "worker.failed",
        "worker",
        ("error",),
        "`max_failures` in a row: the worker is FAILED, refuses connections, and is tried again every `retry_failed_after`.",
        (_FAILURES, seconds("retry_in_s")),
    ),
    Event(
        "worker.deaf",
        "worker",
        ("warning",),
        "The stop message could not be sent; the stop deadline ends the worker.",
        (REASON,),
    ),
    Event(
        "worker.bad_message",
        "worker",
        ("warning",),
        "A message from a worker that is not the protocol.",
        (REASON,),
    ),
)

_ASKED_MODEL = (
    Field("name", "string", "Of the model that was asked for."),
    Field("path", "string", "Its folder."),
    Field("handler", "string"),
)

_TOLD = (
    Event(
        "worker.bad_frame",
        "worker",
        ("warning",),
        "A client's bytes are not the wire protocol: it was answered with `code`, and that connection was closed.",
        (*_PEER, Field("code", "integer"), _ERROR, LOST_BEFORE),
        told=True,
    ),
    Event(
        "worker.frame_timeout",
        "worker",
        ("warning",),
        "A connection that sent half a frame, or does not read its answer, was closed.",
        (*_PEER, _ERROR, seconds("frame_timeout_s"), LOST_BEFORE),
        told=True,
    ),
    Event(
        "worker.model_loaded",
        "worker",
        ("info",),
        "A client had it load another model (`allow_load`), which it serves until it ends.",
        (
            *_PEER,
            *_ASKED_MODEL,
            Field("warmed", "boolean", "It was run once."),
            seconds("load_s"),
            seconds("warmup_s"),
            LOST_BEFORE,
        ),
        told=True,
    ),
    Event(
        "worker.model_refused",
        "worker",
        ("warning",),
        "A client asked for another model (`allow_load`) that does not load; it was answered with `code`, and the model before is "
        "served on.",
        (*_PEER, *_ASKED_MODEL, Field("code", "integer"), _ERROR, TRACEBACK, LOST_BEFORE),
        told=True,
    ),
    Event(
        "worker.accept_failed",
        "worker",
        ("warning",),
        "The worker cannot take connections for now (no descriptors, no memory) and tries again.",
        (_ERROR, seconds("pause_s", "Until it tries again."), LOST_BEFORE),
        told=True,
    ),
    Event(
        "request.failed",
        "worker",
        ("error",),
        "The handler raised or answered what is not an answer: the batch got `code`; the worker lives.",
        (
            texts("request_ids", "Of the batch, at most 64."),
            Field("requests", "integer", "How many the batch had.", minimum=1),
            Field("code", "integer"),
            Field("error", "string", "The exception's type."),
            Field("message", "string", "The exception's last line."),
            TRACEBACK,
            LOST_BEFORE,
        ),
        told=True,
    ),
    Event(
        "metrics.lost",
        "worker",
        ("warning",),
        "The metrics that a handler recorded could not be printed; its answer was sent.",
        (_ERROR, LOST_BEFORE),
        told=True,
    ),
)

WORKERS = Group("Workers", (*_LIVES, *_TOLD))
