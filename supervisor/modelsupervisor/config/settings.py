"""The settings of one run: what the configuration file says, typed, complete and unchangeable.

Every default is filled in and every path is absolute, so that whoever reads a setting never asks
where it came from. Times are seconds, sizes are bytes. The meaning of each field is the sentence of
its key in `keys.py`; the names are the same. Only `load_settings` makes these from a file; tests
and programs may make them by hand.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

CpuChoice: TypeAlias = Literal["auto", "none"] | tuple[int, ...]
ThreadChoice: TypeAlias = Literal["auto"] | int


class SupervisorSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[supervisor]`: what belongs to the whole instance."""

    run_dir: str | None = None  # absolute; None: the usual places are tried in order
    log_format: Literal["json", "console", "auto"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_to: tuple[str, ...] = ("auto",)  # of stdout, journal; or auto alone; () for none
    log_file: str | None = None  # absolute
    log_buffer: int = 8 * 1024 * 1024
    stop_timeout: float = 30.0
    on_start_failure: Literal["exit", "continue"] = "exit"
    socket_group: str | None = None
    socket_mode: int = 0o600
    model_cache: str | None = None  # absolute; None: the usual places are tried in order
    cpus: tuple[int, ...] | None = None  # None: the supervisor floats


class ModelSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`[model:NAME]`: one model and its workers."""

    name: str
    path: str  # absolute; of a folder the real path, of an archive as it is written: a link to it may be turned
    handler: str  # as written: "module:function" or "module", perhaps with ".py"
    workers: int = 1
    spares: int = 0
    max_requests: int | None = None
    memory_limit: int | None = None  # bytes of private memory
    cpus: CpuChoice = "auto"
    threads: ThreadChoice = "auto"
    preload: Literal["model", "import", "none"] = "model"
    python: str | None = None  # absolute; None: the supervisor's own interpreter
    gpus: tuple[int, ...] | None = None  # None: the workers are told of no GPU
    allow_load: bool = False
    batch_size: int = 1
    startup_timeout: float = 120.0
    response_timeout: float = 120.0
    stop_timeout: float = 10.0
    stable_after: float = 10.0
    max_failures: int = 5
    retry_failed_after: float = 60.0
    max_connections: int = 64
    frame_timeout: float = 30.0
    max_line: int = 65536
    warmup: str | None = None  # absolute
    max_archive_size: int = 8 * 1024**3
    env: dict[str, str] = msgspec.field(default_factory=dict)
    archive: bool = False  # path is an archive, which each load unpacks
    line: int = 0  # of the section's header in the file; 0 for a model that no file named


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file: `source` is its absolute path, the models are in its order."""

    source: str
    supervisor: SupervisorSettings
    models: tuple[ModelSettings, ...]
