"""Everything between a valid configuration and the loop, and everything after it.

The order is the safety. Signals are taken before anything is made, so that a TERM at any moment finds its way through the same
clean-up; the lock comes before the first look at what lies in the run directory; sockets are the last thing made. On every path
out, the files go first, then the lock, and the operators' connections last: their end of file says that all of it is done. One
step of the end that fails keeps no other from being taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import grp
import os
import select
import sys
from functools import partial

from modelworker.extractions import CacheError, open_cache, sweep_path

from modelsupervisor import __version__
from modelsupervisor.config import ModelSettings, Settings
from modelsupervisor.core import initial_state
from modelsupervisor.core.events import Event
from modelsupervisor.core.states import Policy, SlotKey, State
from modelsupervisor.core.topology import Topology
from modelsupervisor.errors import ConfigurationError, Problem, RunDirectoryError, StartError
from modelsupervisor.log.catalogue import SCHEMA_VERSION
from modelsupervisor.log.journal import Journal
from modelsupervisor.log.ring import Rings, ring_size
from modelsupervisor.paths import parse_worker_socket, resolve_model_cache
from modelsupervisor.runtime import rundir as files
from modelsupervisor.runtime.board import Board
from modelsupervisor.runtime.edge import Edge, ModelPlan
from modelsupervisor.runtime.intake import Intake
from modelsupervisor.runtime.limits import claim_descriptors, read_limits, require_limits
from modelsupervisor.runtime.machine import read_topology
from modelsupervisor.runtime.oom import OomKills
from modelsupervisor.runtime.operators import Operators
from modelsupervisor.runtime.outlets import Outlets
from modelsupervisor.runtime.place import Place
from modelsupervisor.runtime.planning import fifo_size, plan_fifos, plan_models
from modelsupervisor.runtime.reactor import Reactor
from modelsupervisor.runtime.report import Reporter
from modelsupervisor.runtime.rundir import Access, RunDirectory
from modelsupervisor.runtime.signals import STOP_SIGNALS, Signals
from modelsupervisor.runtime.standard_output import needs_writer
from modelsupervisor.runtime.supervisor import Supervisor

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
LAST_FLUSH = 2.0  # seconds that the end of the log is given to be taken


class _Stopped(Exception):
    """A stop signal came before there was anything to stop."""


def _policy(model: ModelSettings) -> Policy:
    return Policy(
        workers=model.workers,
        startup_timeout=model.startup_timeout,
        response_timeout=model.response_timeout,
        stop_timeout=model.stop_timeout,
        stable_after=model.stable_after,
        max_failures=model.max_failures,
        retry_failed_after=model.retry_failed_after,
        spares=model.spares,
    )


def _state(settings: Settings) -> State:
    return initial_state(
        {model.name: _policy(model) for model in settings.models},
        exit_on_start_failure=settings.supervisor.on_start_failure == "exit",
        stop_timeout=settings.supervisor.stop_timeout,
        luck=int.from_bytes(os.urandom(8), "little"),
    )


def _access(settings: Settings) -> Access:
    group = settings.supervisor.socket_group
    if group is None:
        return Access(settings.supervisor.socket_mode)
    try:
        gid = grp.getgrnam(group).gr_gid
    except KeyError:
        problem = Problem(
            settings.source, 0, "supervisor", "socket_group", group, "a group of this machine"
        )
        raise ConfigurationError((problem,)) from None
    return Access(settings.supervisor.socket_mode, gid)


def _shown_path(path: str) -> str:
    """Relative to the working directory, while there is one: somebody may delete it under a running supervisor."""
    try:
        return os.path.relpath(path)
    except OSError:
        return path


def _become_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise StartError("prctl(PR_SET_CHILD_SUBREAPER) failed: " + os.strerror(ctypes.get_errno()))


def _fill_standard_descriptors() -> None:
    """Open /dev/null on 0, 1 and 2 where they are closed: a socket of ours under such a number would be written to."""
    for number in (0, 1, 2):
        try:
            fcntl.fcntl(number, fcntl.F_GETFD)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


class Session:
    """One run in one run directory: what is made, in order, and its undoing."""

    def __init__(self, settings: Settings, run_dir: str) -> None:
        self._settings = settings
        self._signals = Signals()
        self._reactor = Reactor()
        self._rundir = RunDirectory(run_dir, _access(settings))
        self._operators: Operators | None = None
        self._cache: str | None = None
        self._places: dict[SlotKey, Place] = {}
        self._supervisor: Supervisor | None = None
        slots = sum(model.workers for model in settings.models)
        self._board = Board(self._rundir, slots)
        self._servants: set[int] = set()
        self._oom = OomKills()
        own = settings.supervisor
        self._journal = Journal(own.log_level, Rings(ring_size(slots)))
        self._outlets = Outlets(own, self._journal, self._reactor, self._servants, Edge.now)
        self._intake = Intake(self._reactor, self._outlets, Edge.now)

    def run(self) -> int:
        """The whole run; returns the exit code. Raises an error of our tree when it could not begin."""
        begun = Edge.now()
        code = 0
        try:
            supervisor = self._begin(begun)
            gc.freeze()  # what is here now stays: collecting need not look at it again
            code = supervisor.run()
        except _Stopped:
            pass
        finally:
            self._end(code, begun)
        return code

    def _begin(self, begun: float) -> Supervisor:
        """Everything that can fail before there is a supervisor; a call that fails is told by what it was for."""
        what = "take over the signals"
        try:
            self._signals.install()
            what = "make the event loop"
            self._reactor.open()
            self._intake.open()
            what = "prepare the log and the run directory"
            edge = self._prepare()
            what = f"open what is needed in {self._rundir.path}"
            return self._make(edge, begun)
        except OSError as error:
            raise StartError(f"cannot {what}: {error.strerror}; nothing was started") from error

    def _open_log(self) -> None:
        """Raises ConfigurationError for a log file that cannot be one, StartError where there is no log to be had."""
        path = self._settings.supervisor.log_file
        if path is not None:
            self._check_log_file(path)
        try:
            self._outlets.open()
        except OSError as error:
            message = f"cannot make a pipe or start the log writer, {sys.executable}"
            raise StartError(f"{message}: {error.strerror}; nothing was started") from None

    def _check_log_file(self, path: str) -> None:
        """Once, at the start: later troubles are events, and tried again."""
        target = path if os.path.exists(path) else os.path.dirname(path)
        message = ""
        if not os.access(target, os.W_OK):
            message = f"{target} may not be written by uid {os.geteuid()}"
        elif needs_writer(1) and target == path and os.path.samestat(os.stat(path), os.fstat(1)):
            message = "standard output goes there already, and each event would be written twice"
        if message:
            expected = "a file that this user may write, and nobody else does"
            where = (self._settings.source, 0, "supervisor", "log_file", path)
            raise ConfigurationError((Problem(*where, expected, message),))

    def _prepare(self) -> Edge:
        settings = self._settings
        allowed = tuple(sorted(os.sched_getaffinity(0)))
        cache = resolve_model_cache(settings.supervisor.model_cache, self._rundir.path)
        topology = read_topology("/", allowed)
        plans = plan_models(settings, topology, cache)
        require_limits(read_limits(settings, self._rundir.path))
        claim_descriptors(settings)
        _become_subreaper()
        if settings.supervisor.cpus is not None:
            os.sched_setaffinity(0, settings.supervisor.cpus)
        self._open_log()  # after that: a log writer keeps to the supervisor's CPUs
        self._rundir.open()
        self._rundir.lock(settings.source)
        if any(model.archive for model in settings.models):
            self._open_cache(cache)
        self._announce(topology)
        return self._edge(plans, allowed)

    def _edge(self, plans: dict[str, ModelPlan], allowed: tuple[int, ...]) -> Edge:
        """What the effect modules share."""
        settings = self._settings
        return Edge(
            settings=settings,
            reactor=self._reactor,
            journal=self._journal,
            post=self._post,
            plans=plans,
            places=self._places,
            board=self._board,
            pid=os.getpid(),
            config_path=_shown_path(settings.source),
            allowed_cpus=allowed,
            intake=self._intake,
            outlets=self._outlets,
            oom=self._oom,
            servants=self._servants,
            doomed=set(),
        )

    def _announce(self, topology: Topology) -> None:
        """The first event; and what of the machine could not be read, and is assumed otherwise from here on."""
        self._journal.emit(
            "info",
            "supervisor.starting",
            pid=os.getpid(),
            version=__version__,
            config=self._settings.source,
            run_dir=self._rundir.path,
            schema=SCHEMA_VERSION,
        )
        slots = sum(model.workers for model in self._settings.models)
        notes = [*topology.notes, plan_fifos(slots).note, self._oom.open(Edge.now())]
        for note in filter(None, notes):
            self._journal.emit("warning", "machine.degraded", pid=os.getpid(), reason=note)

    def _open_cache(self, path: str) -> None:
        """Once, at the start: what is wrong with the place is better said before a model fails to load. RunDirectoryError."""
        try:
            os.close(open_cache(path))
        except CacheError as error:
            raise RunDirectoryError(f"{error}; set model_cache in [supervisor]") from None
        self._cache = path

    def _clear_cache(self) -> None:
        """When all who used it are gone: what was unpacked goes, and the folder itself where nobody else looks for one."""
        if self._cache is None:
            return
        for _ in sweep_path(self._cache):
            pass
        if os.path.dirname(self._cache) == os.path.abspath(self._rundir.path):
            with contextlib.suppress(
                OSError
            ):  # a process that escaped us uses something in it still
                os.rmdir(self._cache)

    def _post(self, event: Event) -> None:
        assert self._supervisor is not None
        self._supervisor.post(event)

    def _make(self, edge: Edge, begun: float) -> Supervisor:
        state = _state(self._settings)
        for number, key in enumerate(sorted(state.slots)):
            self._places[key] = Place(key, number, self._rundir, self._reactor, self._intake)
        endings = ("sock", "stdout", "stderr")
        needed = {place.name(ending) for place in self._places.values() for ending in endings}
        self._sweep(needed | {files.CONTROL, files.SCOREBOARD, files.ASIDE})
        supervisor = Supervisor(edge, state, self._signals)
        self._supervisor = supervisor
        self._board.make()
        size = fifo_size(len(self._places))
        for place_ in self._places.values():
            max_line = edge.plans[place_.key.model].settings.max_line
            voice = partial(supervisor.voice, place_.key)
            place_.make(size, max_line, self._journal, voice)
        control = self._rundir.listen(files.CONTROL)
        gid = self._rundir.access.gid
        self._operators = Operators(self._reactor, control, gid, supervisor.command)
        self._operators.open()
        supervisor.take_signals()
        supervisor.serve_operators(
            self._operators, Reporter(edge, supervisor.workers, self._rundir.path, begun)
        )
        return supervisor

    def _sweep(self, needed: set[str]) -> None:
        def is_ours(name: str) -> bool:
            stem, dot, ending = name.rpartition(".")
            formed = dot and ending in ("sock", "stdout", "stderr")
            return name in needed or bool(formed and parse_worker_socket(f"{stem}.sock"))

        for left in self._rundir.sweep(is_ours, needed, self._pause):
            event = "leftover.removed" if left.removed else "leftover.kept"
            level = "info" if left.removed else "warning"
            self._journal.emit(level, event, pid=os.getpid(), name=left.name, reason=left.reason)

    def _pause(self, seconds: float) -> None:
        """Wait between two probes, unless a stop signal comes."""
        poll = select.poll()
        poll.register(self._signals.fileno(), select.POLLIN)
        poll.poll(seconds * 1000)
        if any(number in STOP_SIGNALS for number in self._signals.take()):
            raise _Stopped

    def _end(self, code: int, begun: float) -> None:
        """Undo everything, whatever of it was made; here in the order from the last to the first."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._signals.restore)
            undo.callback(self._reactor.close)
            if self._operators is not None:
                undo.callback(self._operators.close)
            undo.callback(self._intake.close)
            if self._supervisor is not None:
                undo.callback(self._supervisor.end_followers)
            undo.callback(self._outlets.end, LAST_FLUSH, pid=os.getpid())
            undo.callback(self._say_the_last, code, begun)
            undo.callback(self._remove_files)
            undo.callback(self._clear_cache)
            undo.callback(self._board.close)
            for place_ in self._places.values():
                undo.callback(place_.close)
            undo.callback(self._intake.finish_all, Edge.now() + LAST_FLUSH)
            if self._supervisor is not None:
                undo.callback(self._supervisor.take_rest)
                undo.callback(self._supervisor.end_orphans)

    def _remove_files(self) -> None:
        for left in self._rundir.close():
            self._journal.emit(
                "error", "leftover.kept", pid=os.getpid(), name=left.name, reason=left.reason
            )

    def _say_the_last(self, code: int, begun: float) -> None:
        if self._supervisor is not None:
            uptime = round(Edge.now() - begun, 3)
            self._journal.emit(
                "info", "supervisor.stopped", pid=os.getpid(), code=code, uptime_s=uptime
            )


def run(settings: Settings, run_dir: str) -> int:
    """Run the supervisor in the foreground until it is asked to stop; returns the exit code.

    Raises ConfigurationError, RunDirectoryError, AlreadyRunningError or StartError when it could not begin; by then everything
    that had been made is removed.
    """
    _fill_standard_descriptors()
    return Session(settings, run_dir).run()
