"""A real supervisor under test, and the invariants that hold after every one of them.

Nothing here sleeps for luck: every wait is for a fact (an event in the log, a process gone, a socket answering) with a limit that
is reached only when the test fails. Every process of an instance carries its mark in the environment, so that what it leaves
behind is found whoever its parent is by then.

After each test: no marked process, nothing in the run directory but the lock, `seq` without a gap, and no event of level error that
the test did not expect. Every event that is read here is held against docs/events.schema.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from support.schema import check

ROOT = Path(__file__).resolve().parent.parent.parent
MARK = "MODELSUPERVISOR_TEST_MARK"
_FRESH = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
LIMIT = 30.0  # seconds; some hundred times what is seen

Event = dict[str, Any]
_Fact = TypeVar("_Fact")


def wait_for(fact: Callable[[], _Fact], what: str, limit: float = LIMIT) -> _Fact:
    """The first true value of `fact`; fails naming what was waited for."""
    deadline = time.monotonic() + limit
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit} s in vain for {what}")
        time.sleep(0.002)


def marked_processes(mark: str) -> list[int]:
    """The living processes (zombies too, while their environment can be read) that carry a mark."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                environ = Path(f"/proc/{name}/environ").read_bytes()
            except OSError:
                continue
            if f"{MARK}={mark}".encode() in environ:
                found.append(int(name))
    return found


def children_of(pid: int) -> list[int]:
    """The children of a process, zombies among them, but for the log writers of a supervisor."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children if not is_log_writer(int(child))]


def is_log_writer(pid: int) -> bool:
    """True for the process that moves a supervisor's log into a file."""
    try:
        return b"/log/writer.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def state_of(pid: int) -> str | None:
    """The state letter of a process (`Z` for a zombie), None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[0]


def alive(pid: int) -> bool:
    """True while a process runs (a zombie does not)."""
    return state_of(pid) not in (None, "Z")


def environment(mark: str, **extra: str) -> dict[str, str]:
    """The environment of a supervisor under test: ours, without what would hide its faults."""
    environ = dict(os.environ)
    hiding = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    outside = (
        "RUNTIME_DIRECTORY",
        "CACHE_DIRECTORY",
        "XDG_CACHE_HOME",
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
    )
    for name in (*hiding, *outside):
        environ.pop(name, None)
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "supervisor"), str(ROOT / "worker")])
    environ[MARK] = mark
    # setproctitle would write the title over the environment, and the mark with it
    environ["SPT_NOENV"] = "1"
    environ.update(extra)
    return environ


class Instance:
    """One supervisor: its configuration, its process, its log."""

    def __init__(self, folder: Path, expected_errors: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.config = folder / "workers.ini"
        self.log = folder / "log.jsonl"
        self.mark = uuid.uuid4().hex
        self.expected_errors = set(expected_errors)
        self.process: subprocess.Popen[bytes] | None = None
        self._logs = 0
        self._read: dict[Path, tuple[int, list[Event]]] = {}  # how far each log was parsed

    # -- starting and stopping --------------------------------------------------------------------------------------

    def write(self, models: str, supervisor: str = "") -> Path:
        """Write the configuration: `[supervisor]` with a run directory of its own, and the models' sections."""
        head = f"[supervisor]\nrun_dir = {self.run_dir}\n{supervisor}\n"
        self.config.write_text(f"{head}\n{models}\n")
        return self.config

    def model(self, name: str = "echo", folder: Path | str | None = None, **keys: object) -> str:
        """A model section; `folder` defaults to the test model `faults`."""
        path = folder or ROOT / "tests" / "models" / "faults"
        keys.setdefault("handler", "service")
        lines = "\n".join(f"{key.replace('__', '.')} = {value}" for key, value in keys.items())
        return f"[model:{name}]\npath = {path}\n{lines}\n"

    def launch(
        self,
        *arguments: str,
        command: list[str] | None = None,
        stdout: int | None = None,
        **environ: str,
    ) -> Instance:
        """Start the supervisor; returns at once. Its standard output is `log`, unless the test gives another descriptor for it."""
        self._logs += 1
        if self._logs > 1 and stdout is None:
            self.log = self.folder / f"log-{self._logs}.jsonl"
        line = command or [sys.executable, "-m", "modelsupervisor", "start", "-c", str(self.config)]
        log = os.dup(stdout) if stdout is not None else os.open(self.log, _FRESH, 0o600)
        with os.fdopen(log, "wb") as output, (self.folder / "stderr").open("ab") as errors:
            self.process = subprocess.Popen(
                [*line, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment(self.mark, **environ),
                cwd=self.folder,
            )
        return self

    def start(
        self, command: list[str] | None = None, stdout: int | None = None, **environ: str
    ) -> Instance:
        """Start the supervisor and wait until it is ready."""
        self.launch(command=command, stdout=stdout, **environ)
        self.wait_event("supervisor.ready")
        return self

    @property
    def pid(self) -> int:
        """The supervisor's pid."""
        assert self.process is not None
        return self.process.pid

    @property
    def over(self) -> bool:
        """The supervisor was started and has ended."""
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        """Signal the supervisor."""
        os.kill(self.pid, number)

    def wait(self, limit: float = LIMIT) -> int:
        """Wait for the supervisor's end; its exit code."""
        assert self.process is not None
        return self.process.wait(limit)

    def stop(self, limit: float = LIMIT) -> int:
        """TERM, and wait for the end."""
        self.signal(signal.SIGTERM)
        return self.wait(limit)

    # -- looking ----------------------------------------------------------------------------------------------------

    def events(self, name: str | None = None, **match: Any) -> list[Event]:
        """The events so far with this name and these facts; whole lines only."""
        offset, seen = self._read.get(self.log, (0, []))
        if self.log.exists():
            with self.log.open("rb") as log:
                log.seek(offset)
                text = log.read()
            whole = text[: text.rfind(b"\n") + 1]
            seen.extend(self._checked(whole.splitlines()))
            self._read[self.log] = offset + len(whole), seen
        return [
            event
            for event in seen
            if (name is None or event["event"] == name)
            and all(event.get(key) == value for key, value in match.items())
        ]

    def _checked(self, lines: list[bytes]) -> list[Event]:
        read: list[Event] = [json.loads(line) for line in lines]
        for event in read:
            check(event)
        return read

    def wait_event(self, name: str, *, count: int = 1, limit: float = LIMIT, **match: Any) -> Event:
        """Wait for the count-th event of this name and these facts; fails early when the supervisor is gone."""

        def look() -> list[Event]:
            over = self.over
            found = self.events(name, **match)
            if over and len(found) < count:
                raise AssertionError(f"no {name} {match}; the supervisor ended:\n{self.story()}")
            return found[count - 1 : count]

        try:
            return wait_for(look, f"{name} {match} number {count}", limit)[0]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def story(self) -> str:
        """The log and stderr, for a failing test."""
        log = self.log.read_text(errors="replace") if self.log.exists() else ""
        errors = (self.folder / "stderr").read_text(errors="replace")
        return f"--- log ---\n{log[-12000:]}\n--- stderr ---\n{errors[-4000:]}"

    def cli(self, *arguments: str, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line against this instance's configuration."""
        return subprocess.run(
            [sys.executable, "-m", "modelsupervisor", *arguments],
            capture_output=True,
            text=True,
            env=environment("cli-" + self.mark),
            timeout=limit,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        """The status JSON, over the control socket."""
        from modelsupervisor.control import ControlConnection
        from modelsupervisor.paging import whole_status

        with ControlConnection.open(str(self.run_dir)) as control:
            return whole_status(control, timeout=LIMIT)

    def worker(self, model: str = "echo", index: int = 0) -> dict[str, Any]:
        """One worker of the status JSON."""
        models = {entry["name"]: entry for entry in self.status()["models"]}
        worker: dict[str, Any] = models[model]["workers"][index]
        return worker

    def socket(self, model: str = "echo", index: int = 0) -> Path:
        """The path of a worker's socket."""
        return self.run_dir / f"{model}.{index}.sock"

    # -- the invariants ---------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Stop what still runs, then hold what is left against the invariants."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                self.process.wait()
                raise AssertionError(f"the supervisor did not stop\n{self.story()}") from None
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        """No process, no file, no gap, no unexpected error; to be called when the supervisor is gone."""
        try:
            wait_for(lambda: not marked_processes(self.mark), "all marked processes to be gone", 5)
        finally:
            for pid in marked_processes(self.mark):
                os.kill(pid, signal.SIGKILL)
        left = (
            sorted(entry.name for entry in self.run_dir.iterdir()) if self.run_dir.exists() else []
        )
        assert left in ([], ["lock"]), f"left in the run directory: {left}\n{self.story()}"
        if self.process is not None and self.process.returncode != -signal.SIGKILL:
            self.check_log()

    def check_log(self) -> None:
        """The log of the newest supervisor: a gapless `seq`, every event as the schema has it, no unexpected error."""
        events = self.events()
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1)), self.story()
        for event in events:
            # What a model says at level error is the model's affair.
            if event["level"] == "error" and not event["event"].endswith(".output"):
                assert event["event"] in self.expected_errors, f"{event}\n{self.story()}"


def instances(folder: Path) -> Iterator[Callable[..., Instance]]:
    """The body of the fixture `instance`: makes instances, and checks every one of them at the end."""
    made: list[Instance] = []

    def make(*expected_errors: str) -> Instance:
        place = folder / str(len(made))
        place.mkdir()
        made.append(Instance(place, expected_errors))
        return made[-1]

    yield make
    for each in made:
        each.finish()
