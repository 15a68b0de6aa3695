"""The events that carry a line of output of a worker or a template."""

from __future__ import annotations

from modelsupervisor.log.fields import Event, Field, Group, word

_METRIC = (
    Field("name", "string"),
    Field("unit", "string"),
    Field("value", "number"),
    Field("dimensions", "object", of="string"),
    Field("host", "string"),
    Field("time", "number", "Seconds since 1970."),
    Field("request_id", "string", required=False),
)

_STREAM = word("stream", "stdout", "stderr")

_LINE = (
    Field("line", "string", "Without its newline.", required=False),
    Field(
        "line_b64",
        "string",
        "Base64, in place of `line` where the bytes are not UTF-8.",
        required=False,
        pattern=r"^[A-Za-z0-9+/]*={0,2}$",
    ),
    Field(
        "part",
        "integer",
        "Counts from 1 the parts of a line that is longer than `max_line`.",
        required=False,
        minimum=1,
    ),
    Field("more", "boolean", "Another part follows.", required=False),
    Field(
        "partial",
        "boolean",
        "True on what a dead process left without a newline; else absent.",
        required=False,
        choices=(True,),
    ),
    Field(
        "kind",
        "string",
        "What the line was recognised as; absent for a plain one.",
        required=False,
        choices=("traceback", "metric", "json"),
    ),
    Field(
        "error",
        "string",
        "Of a traceback: its last exception line, `ValueError: boom`, at most 1000 characters; empty where there is none.",
        kind="traceback",
    ),
    Field(
        "lines",
        "integer",
        "Of a traceback: how many lines `line` holds, joined by newlines.",
        minimum=1,
        kind="traceback",
    ),
    Field(
        "metric",
        "object",
        "Of a `[METRICS]` line: what it measured.",
        fields=_METRIC,
        kind="metric",
    ),
    Field("fields", "object", "Of a line that is one JSON object: that object.", kind="json"),
)

_IN_HAND_AT_READ = Field(
    "in_hand_at_read",
    "array",
    "The ids of the requests that were in hand when the line was read, where there were any: the line may be about one of them, "
    "or about one before.",
    required=False,
    of="string",
)

_LEVELS_OF_OUTPUT = ("info", "warning", "error")

_WORKER_OUTPUT = Event(
    "worker.output",
    "worker",
    _LEVELS_OF_OUTPUT,
    "A line that it wrote. The level is what the line says of itself, but never below info; where it says nothing stdout is info "
    "and stderr warning. A Python traceback is one event.",
    (_STREAM, _IN_HAND_AT_READ, *_LINE),
    one_of=("line", "line_b64"),
    together=("part", "more"),
)

_TEMPLATE_OUTPUT = Event(
    "template.output",
    "template",
    _LEVELS_OF_OUTPUT,
    "A line that the template wrote; as `worker.output`.",
    (_STREAM, *_LINE),
    one_of=("line", "line_b64"),
    together=("part", "more"),
)

OUTPUT = Group(
    "Lines of output",
    (_WORKER_OUTPUT, _TEMPLATE_OUTPUT),
    "While no `log.dropped` says otherwise, every byte that a worker wrote is in the log: of each event of a stream, in order,\n"
    "the bytes of `line` or `line_b64`, and a newline unless `more` or `partial` is true.",
)
