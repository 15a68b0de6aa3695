"""The one table of what may stand in a configuration file: key, type, default, sentence.

The reader refuses what is not in it, the renderer writes in its order, `describe_keys` gives it to
the documentation. A default is written as an operator would write it and goes through the same
parser, so that the table cannot promise a default that the file could not ask for. A key is here
from the release in which it works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from modelworker.archive import MANIFEST

from modelsupervisor.config import values
from modelsupervisor.config.handlers import handler_name
from modelsupervisor.config.paths import (
    file_path,
    log_path,
    model_path,
    place_path,
    program_path,
)
from modelsupervisor.config.values import ValueType


@dataclass(frozen=True)
class Key:
    """One key. `default` is INI text; None where leaving the key out has a meaning of its own
    (`unset` says which).
    """

    name: str
    type: ValueType
    default: str | None
    sentence: str
    unset: str = ""


class KeyRow(NamedTuple):
    """One row of the table, ready to be printed."""

    section: str
    key: str
    type: str
    default: str
    sentence: str


SUPERVISOR_KEYS: tuple[Key, ...] = (
    Key(
        "run_dir",
        place_path(),
        None,
        "Where the sockets, the FIFOs and the lock of this instance live; made if it does not "
        "exist.",
        unset="$RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/modelsupervisor, else "
        "/run/modelsupervisor for root",
    ),
    Key(
        "log_format",
        values.choice("json", "console", "auto"),
        "auto",
        "How events are written to standard output; auto is console on a terminal and json "
        "elsewhere.",
    ),
    Key(
        "log_level",
        values.choice("debug", "info", "warning", "error"),
        "info",
        "Events below this level are not made.",
    ),
    Key(
        "log_to",
        values.destinations("stdout", "journal"),
        "auto",
        "Where the log goes beside log_file: stdout, journal (journald's own protocol, with fields), "
        "both, or none; auto is the journal where standard output is connected to it, else stdout.",
    ),
    Key(
        "log_file",
        log_path(),
        None,
        "A file that the events are appended to as JSON, made 0640 where it is missing; SIGUSR1 "
        "has it opened anew.",
        unset="no file",
    ),
    Key(
        "log_buffer",
        values.size("1MiB", "1GiB"),
        "8MiB",
        "What may wait for a sink that does not take; beyond it lines of output are dropped for "
        "that sink and counted.",
    ),
    Key(
        "stop_timeout",
        values.duration(),
        "30s",
        "The whole instance is gone at most this long after it was asked to stop.",
    ),
    Key(
        "on_start_failure",
        values.choice("exit", "continue"),
        "exit",
        "What start does when a model cannot be loaded: exit stops everything, continue serves "
        "the others.",
    ),
    Key(
        "socket_group",
        ValueType("group", "a group of this machine", str),
        None,
        "The group that may enter the run directory and, where socket_mode lets it, use the "
        "sockets.",
        unset="the supervisor's own user alone",
    ),
    Key(
        "socket_mode",
        values.socket_mode(),
        "0600",
        "Permission bits of the sockets; bits for the group need socket_group.",
    ),
    Key(
        "model_cache",
        place_path(),
        None,
        "Where archives are unpacked to, for as long as their models run: a folder of this user's alone, mode 0700, on a file "
        "system with room for them; made if it does not exist.",
        unset="$CACHE_DIRECTORY/models, else $XDG_CACHE_HOME/modelsupervisor, else models in the run directory",
    ),
    Key(
        "cpus",
        values.cpu_list(),
        None,
        "The CPUs that the supervisor itself is kept to.",
        unset="it floats",
    ),
)

MODEL_KEYS: tuple[Key, ...] = (
    Key(
        "path",
        model_path(),
        None,
        "The folder of the model, or its archive, a file NAME.mar, which is unpacked at each load.",
        unset="required",
    ),
    Key(
        "handler",
        handler_name(),
        None,
        "What answers requests: module:function, or module, of a file in the folder or archive.",
        unset=f"what {MANIFEST} in it names",
    ),
    Key("workers", values.whole_number(1, 4096), "1", "How many worker processes serve the model."),
    Key(
        "spares",
        values.whole_number(0, 64),
        "0",
        "Workers that are kept ready beside them without serving: when one of the others dies, a spare takes its place.",
    ),
    Key(
        "max_requests",
        values.whole_number(1, 10**12),
        None,
        "A worker that has answered so many requests is replaced, one at a time, and its replacement comes first.",
        unset="never",
    ),
    Key(
        "memory_limit",
        values.size("1MiB", "1024GiB"),
        None,
        "A worker whose private memory is larger is replaced in the same way; it is looked at every ten seconds.",
        unset="never",
    ),
    Key(
        "cpus",
        values.cpu_choice(),
        "auto",
        "The CPUs that the workers divide among themselves, in whole cores: auto is all that may be "
        "used, none leaves them free; `plan` shows what comes of it.",
    ),
    Key(
        "threads",
        values.thread_count(1024),
        "auto",
        "Computing threads of each worker; auto is one for each core of the smallest share among "
        "the workers.",
    ),
    Key(
        "preload",
        values.choice("model", "import", "none"),
        "model",
        "What the template does before workers are forked from it: model loads and warms the "
        "whole model; import only imports the handler's module, and each worker loads its own "
        "copy; none does nothing, and each worker is a fresh interpreter.",
    ),
    Key(
        "python",
        program_path(),
        None,
        "The Python interpreter of the model's own environment, 3.8 or later; nothing of the "
        "supervisor's needs to be installed there.",
        unset="the supervisor's own interpreter",
    ),
    Key(
        "gpus",
        values.gpu_list(),
        None,
        "The GPUs, by the numbers of nvidia-smi; each worker is shown one of them, round robin. "
        "Not with preload = model.",
        unset="what the environment says",
    ),
    Key(
        "allow_load",
        values.truth(),
        "false",
        "Whether a client may have a worker load another model (L of the worker protocol): whoever "
        "reaches the socket then runs code in it.",
    ),
    # 1024 requests is what the worker's frame reader takes (modelworker.wire.Limits).
    Key(
        "batch_size",
        values.whole_number(1, 1024),
        "1",
        "The largest batch that the handler is told to expect.",
    ),
    Key(
        "startup_timeout",
        values.duration(),
        "120s",
        "A worker or template that is not ready by then is replaced.",
    ),
    Key(
        "response_timeout",
        values.duration(),
        "120s",
        "A worker that is busy with one batch for longer, or for as long answers nothing though it is idle, hangs: its stacks are "
        "logged, and it is replaced.",
    ),
    Key(
        "stop_timeout",
        values.duration(),
        "10s",
        "A worker that has not finished by then is ended by signals.",
    ),
    Key(
        "stable_after",
        values.duration(),
        "10s",
        "A worker that stayed ready this long has not failed to start.",
    ),
    Key(
        "max_failures",
        values.whole_number(1, 1000),
        "5",
        "After so many failures in a row a worker is FAILED and no longer restarted at once.",
    ),
    Key(
        "retry_failed_after", values.duration(), "60s", "How often a FAILED worker is tried again."
    ),
    Key(
        "max_connections",
        values.whole_number(1, 4096),
        "64",
        "Connections that one worker serves at a time; more wait in its backlog.",
    ),
    Key(
        "frame_timeout",
        values.duration(),
        "30s",
        "A connection with a half-sent frame older than this is closed.",
    ),
    Key(
        "max_line",
        values.size("512B", "16MiB"),
        "64KiB",
        "A longer line of a worker's output becomes several events.",
    ),
    Key(
        "warmup",
        file_path(),
        None,
        "A file that is sent through the handler as one request before a worker counts as ready.",
        unset="the handler's own warmup(context), where it has one",
    ),
    Key(
        "max_archive_size",
        values.size("1MiB", "1024GiB"),
        "8GiB",
        "The largest archive that is taken, packed and unpacked.",
    ),
)

ENV_PREFIX = "env."
ENV_ROW = KeyRow(
    "model:NAME",
    "env.NAME",
    "text",
    "the supervisor's own",
    "The environment variable NAME of the model's processes; shown masked when NAME holds KEY, "
    "TOKEN, SECRET or PASSWORD.",
)


def describe_keys() -> tuple[KeyRow, ...]:
    """The whole table in the order of the file, for documentation and `plan`."""
    rows = [
        KeyRow(
            section,
            key.name,
            key.type.name,
            key.default if key.default is not None else key.unset,
            key.sentence,
        )
        for section, keys in (("supervisor", SUPERVISOR_KEYS), ("model:NAME", MODEL_KEYS))
        for key in keys
    ]
    return (*rows, ENV_ROW)
