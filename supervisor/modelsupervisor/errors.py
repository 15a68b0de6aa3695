"""Every error that modelsupervisor raises, sorted by whose fault it is.

    ModelSupervisorError
    ├── ConfigurationError      the file's: one or more settings are wrong; nothing was started        exit 78
    ├── RunDirectoryError       the place's: no usable run directory, or a foreign object in it        exit 78
    ├── AlreadyRunningError     the operator's: another supervisor holds this run directory            exit 75
    ├── NotRunningError         the operator's: no supervisor answers there                            exit 3
    ├── StartError              the machine's: a system call that start cannot do without failed       exit 1
    ├── ControlError            the running supervisor refused a command, or could not carry it out    exit 1
    ├── ClientError             a prediction could not be had                                          exit 1
    │   ├── WorkerUnavailableError   no worker of the model takes connections
    │   ├── WorkerCrashedError       the workers died while they had the request, as often as we asked
    │   ├── PredictionTimeoutError   the deadline passed first
    │   ├── PredictionFailedError    a worker answered with an error of its own
    │   └── ProtocolError            a worker's bytes are not the protocol
    └── InvariantError          ours: a bug in modelsupervisor; please report it                       exit 1

What the world does to a running supervisor (a worker that dies, a fork that fails) is an event of the core and never an
exception; these are for the edges, where a person or a program asked for something and has to be told why it is not done.
"""

from __future__ import annotations

from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3
EXIT_ALREADY_RUNNING = 75  # EX_TEMPFAIL of sysexits.h
EXIT_CONFIGURATION = 78  # EX_CONFIG of sysexits.h


class ModelSupervisorError(Exception):
    """The root; `exit_code` is what the command line ends with."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration file.

    `line` is 0 where the mistake has no line of its own (a missing file); `section`, `key` and `value` are empty where
    they do not apply; `expected` says what would be right.
    """

    file: str
    line: int = 0
    section: str = ""
    key: str = ""
    value: str = ""
    expected: str = ""
    message: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        parts = [f"{place}:"]
        if self.section:
            parts.append(f"[{self.section}]")
        if self.key and self.value:
            parts.append(f"{self.key} = {self.value}:")
        elif self.key:
            parts.append(f"{self.key}:")
        said = "; ".join(
            text for text in (self.message, self.expected and f"expected {self.expected}") if text
        )
        return " ".join([*parts, said])


class ConfigurationError(ModelSupervisorError):
    """The configuration file is wrong; `problems` holds every mistake found in it."""

    exit_code = EXIT_CONFIGURATION

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [str(problem) for problem in self.problems]
        lines.append(f"{count} mistake{'s' if count != 1 else ''}; nothing was started")
        return "\n".join(lines)


class RunDirectoryError(ModelSupervisorError):
    """There is no usable run directory, or something that is not ours lies at a path that we need."""

    exit_code = EXIT_CONFIGURATION


class AlreadyRunningError(ModelSupervisorError):
    """Another supervisor holds the lock of this run directory; nothing was touched."""

    exit_code = EXIT_ALREADY_RUNNING


class NotRunningError(ModelSupervisorError):
    """No supervisor answers in this run directory."""

    exit_code = EXIT_NOT_RUNNING


class StartError(ModelSupervisorError):
    """A system call that the start cannot do without failed; what had been made was removed."""


class ControlError(ModelSupervisorError):
    """The supervisor refused a command or could not carry it out; `code` is the control protocol's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class ClientError(ModelSupervisorError):
    """A prediction could not be had from the workers of a model."""


class WorkerUnavailableError(ClientError):
    """No worker of the model takes connections: every socket is missing, refuses or closes at once."""


class WorkerCrashedError(ClientError):
    """A worker died with the request before it answered, and so did the ones asked after it."""


class PredictionTimeoutError(ClientError):
    """The deadline of the call passed before the complete answer was there."""


class PredictionFailedError(ClientError):
    """The worker answered with an error for the whole batch; `code` and the message are the worker's."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.message = message


class ProtocolError(ClientError):
    """The bytes that came back are not the worker protocol."""


class InvariantError(ModelSupervisorError):
    """Something that cannot be was seen: a bug of ours. Not raised for anything a worker, a file or a peer does."""
