"""The run directory: one supervisor at a time, and nothing in it touched that this supervisor did not make.

Theory of operation
-------------------
The directory is opened once and checked (a directory, ours, closed to others); every later operation is relative to that
descriptor, so that whoever moves it or plants a link in its place moves nothing of ours. The claim is a `flock` on the file
`lock`: it ends with the process whatever kills it, it is not inherited by what we exec, and the pid inside is for people only.

What this supervisor made is known by (device, inode), and only that is unlinked. What a killed predecessor left is swept under the
lock: it lies in our directory, belongs to us, has a name that we form, is a socket or a FIFO (or the scoreboard), and nobody
answers on it. Its workers die by their death signal, but a process that is being torn down still holds its listening socket for a
moment and the probe then connects; so a socket that answers is asked again for SWEEP_PATIENCE before it counts as alive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from modelworker.scoreboard import RECORD_SIZE

from modelsupervisor.errors import (
    AlreadyRunningError,
    ModelSupervisorError,
    RunDirectoryError,
    StartError,
)

LOCK = "lock"
CONTROL = "control.sock"
SCOREBOARD = "scoreboard"
ASIDE = ".bind"  # a socket is bound under this name, and linked to its own when it listens
# Capped by net.core.somaxconn; clients of a worker that is being replaced queue here
BACKLOG = 1024
# Seconds; a killed worker with a large model takes tens of milliseconds to be torn down [measured]
SWEEP_PATIENCE = 3.0
SWEEP_STEP = 0.02

Identity = tuple[int, int]


@contextlib.contextmanager
def _owner_bits() -> Iterator[None]:
    """A umask that leaves the owner's bits: under 0777 whoever is not root could not open what it just made."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _told_as(kind: type[ModelSupervisorError], what: str) -> Iterator[None]:
    """A system call that fails in here becomes an error of ours: these words, and the kernel's reason."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror}") from error


@dataclass(frozen=True)
class Access:
    """Who may use the sockets: mode bits of a socket, and the group (None: ours) that directory and sockets are given to."""

    socket_mode: int = 0o600
    gid: int | None = None

    @property
    def directory_mode(self) -> int:
        """0750 where a group is to reach the sockets, else 0700."""
        return 0o700 if self.gid is None else 0o750


@dataclass(frozen=True)
class Leftover:
    """What the sweep did with one name: `removed`, or why it was left alone."""

    name: str
    removed: bool
    reason: str


def _identity(status: os.stat_result) -> Identity:
    return (status.st_dev, status.st_ino)


def _is_scoreboard(status: os.stat_result) -> bool:
    """A regular file as we make it: closed to others, under one name, whole records or none."""
    closed = stat.S_ISREG(status.st_mode) and not stat.S_IMODE(status.st_mode) & ~0o600
    return closed and status.st_nlink == 1 and status.st_size % RECORD_SIZE == 0


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISFIFO, "a FIFO"),
    )
    return next((name for test, name in kinds if test(mode)), "a device")


class RunDirectory:
    """An open run directory. `open` and `lock` come first; `close` removes what was made and lets the lock go."""

    def __init__(self, path: str, access: Access) -> None:
        self.path = path
        self.access = access
        self._fd = -1
        self._lock = -1
        self._made: dict[str, Identity] = {}

    # -- the directory and its lock ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the directory where it is missing, open and check it. Raises RunDirectoryError."""
        mode = self.access.directory_mode
        with _told_as(RunDirectoryError, f"cannot make run directory {self.path}"):
            try:
                with _owner_bits():
                    os.mkdir(self.path, mode)
                made = True
            except FileExistsError:
                made = False
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags)
        except OSError as error:
            text = error.strerror
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                text = "it is not a directory, or a symbolic link"
            raise RunDirectoryError(f"cannot use run directory {self.path}: {text}") from None
        with _told_as(RunDirectoryError, f"cannot use run directory {self.path}"):
            if made:  # whatever the umask was
                self._give(self._fd, mode)
            status = os.fstat(self._fd)
        self._check(status, mode)

    def _give(self, target: int | str, mode: int) -> None:
        if self.access.gid is not None:
            os.chown(target, -1, self.access.gid)
        os.chmod(target, mode)

    def _check(self, status: os.stat_result, mode: int) -> None:
        found = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid():
            raise RunDirectoryError(
                f"run directory {self.path} belongs to uid {status.st_uid}, expected uid {os.geteuid()}"
            )
        if found & ~mode:
            raise RunDirectoryError(
                f"run directory {self.path} has mode {found:04o}, expected at most {mode:04o}: "
                f"chmod {mode:04o} {self.path}"
            )
        if self.access.gid is not None and status.st_gid != self.access.gid:
            raise RunDirectoryError(
                f"run directory {self.path} belongs to gid {status.st_gid}, "
                f"expected gid {self.access.gid} (socket_group)"
            )

    def lock(self, about: str) -> None:
        """Claim the directory for this process's life. Raises AlreadyRunningError; nothing else was touched by then."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            lock = os.open(LOCK, flags, 0o600, dir_fd=self._fd)
        except OSError as error:
            text = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
            raise RunDirectoryError(f"cannot use {self.path}/{LOCK}: {text}") from None
        try:
            with _told_as(RunDirectoryError, f"cannot use {self.path}/{LOCK}"):
                self._claim(lock)
        except ModelSupervisorError:
            os.close(lock)
            raise
        self._lock = lock
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n{about}\n".encode(errors="surrogateescape"), 0)
        except OSError:
            pass  # a full disk: the lock is the truth, the text in it a courtesy

    def _claim(self, lock: int) -> None:
        status = os.fstat(lock)
        ours = status.st_uid == os.geteuid() and status.st_nlink == 1
        if not stat.S_ISREG(status.st_mode) or not ours:
            raise RunDirectoryError(
                f"{self.path}/{LOCK} is not a regular file of ours, with one name; left alone"
            )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 4096, 0).decode(errors="replace").split("\n")
            raise AlreadyRunningError(
                f"a supervisor is already running in {self.path} "
                f"(pid {holder[0] or 'unknown'}); nothing was touched"
            ) from None
        # Whatever the umask was: without it the next start might not open its own file
        os.fchmod(lock, 0o600)

    # -- the sweep ------------------------------------------------------------------------------------------------

    def sweep(
        self, is_ours: Callable[[str], bool], needed: Iterable[str], pause: Callable[[float], None]
    ) -> list[Leftover]:
        """Remove what a killed predecessor left. `pause(seconds)` waits between probes and may raise to end the start.

        Raises RunDirectoryError naming every needed path on which something lies that is not a leftover of ours.
        """
        with _told_as(RunDirectoryError, f"cannot list run directory {self.path}"):
            found = [name for name in sorted(os.listdir(self._fd)) if is_ours(name)]
        patience = SWEEP_PATIENCE
        results: dict[str, Leftover] = {}
        while True:
            for name in found:
                if name not in results or not results[name].removed:
                    results[name] = self._sweep_one(name)
            waiting = [left for left in results.values() if left.reason == _ANSWERS]
            if not waiting or patience <= 0:
                break
            pause(SWEEP_STEP)
            patience -= SWEEP_STEP
        wanted = set(needed)
        refused = [left for left in results.values() if not left.removed and left.name in wanted]
        if refused:
            lines = [f"{self.path}/{left.name}: {left.reason}; left alone" for left in refused]
            raise RunDirectoryError(
                "\n".join(["something that is not ours is in the way:", *lines])
            )
        return list(results.values())

    def _sweep_one(self, name: str) -> Leftover:
        try:
            return self._sweep_found(name, os.stat(name, dir_fd=self._fd, follow_symlinks=False))
        except FileNotFoundError:
            return Leftover(name, True, "gone")
        except OSError as error:
            return Leftover(name, False, f"it cannot be removed: {error.strerror}")

    def _sweep_found(self, name: str, status: os.stat_result) -> Leftover:
        mode = status.st_mode
        board = name == SCOREBOARD and _is_scoreboard(status)
        if not (stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode) or board):
            return Leftover(name, False, f"{_kind(mode)} that we did not make")
        if status.st_uid != os.geteuid():
            return Leftover(name, False, f"{_kind(mode)} of uid {status.st_uid}")
        if stat.S_ISSOCK(mode) and self._answers(name):
            return Leftover(name, False, _ANSWERS)
        self._unlink_if(name, _identity(status))
        return Leftover(name, True, f"{_kind(mode)} of a supervisor that is gone")

    def _answers(self, name: str) -> bool:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            probe.connect(self.through_fd(name))
        except BlockingIOError:
            return True  # its backlog is full: somebody listens
        except OSError:
            return False
        else:
            return True
        finally:
            probe.close()

    # -- making and removing --------------------------------------------------------------------------------------

    def through_fd(self, name: str) -> str:
        """A path to `name` by way of the open directory, for calls that take no directory descriptor."""
        return f"/proc/self/fd/{self._fd}/{name}"

    def listen(self, name: str) -> socket.socket:
        """A listening socket under a name: it appears there bound, with its mode, and listening, or not at all."""
        with _told_as(StartError, f"cannot make socket {self.path}/{name}"):
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                self._show(listener, name)
            except OSError:
                listener.close()
                raise
        return listener

    def _show(self, listener: socket.socket, name: str) -> None:
        listener.bind(self.through_fd(ASIDE))
        aside = os.stat(ASIDE, dir_fd=self._fd, follow_symlinks=False)
        self._made[ASIDE] = _identity(aside)
        self._give(self.through_fd(ASIDE), self.access.socket_mode)
        listener.listen(BACKLOG)
        os.link(ASIDE, name, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
        self._made[name] = _identity(aside)
        self.remove(ASIDE)

    def fifo(self, name: str, size: int) -> int:
        """A FIFO under a name, open for reading and writing: so it never blocks, never ends, and keeps a dead worker's words.

        `size` is the buffer in bytes that is asked for; the kernel may grant less to an unprivileged user.
        """
        with _told_as(StartError, f"cannot make FIFO {self.path}/{name}"):
            with _owner_bits():
                os.mkfifo(name, 0o600, dir_fd=self._fd)
            self._made[name] = _identity(os.stat(name, dir_fd=self._fd, follow_symlinks=False))
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            fifo = os.open(name, flags, dir_fd=self._fd)
            try:
                os.fchmod(fifo, 0o600)
            except OSError:
                os.close(fifo)
                raise
        try:
            fcntl.fcntl(fifo, fcntl.F_SETPIPE_SZ, size)
        except OSError:
            # Over the user's pipe budget: the default size serves too, it only slows a flood earlier
            pass
        return fifo

    def scoreboard(self, size: int) -> int:
        """The shared memory file, of `size` bytes that are really there: a mapping of a full file system's hole is a SIGBUS."""
        with _told_as(StartError, f"cannot make {self.path}/{SCOREBOARD} of {size} bytes"):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            board = os.open(SCOREBOARD, flags, 0o600, dir_fd=self._fd)
            try:
                self._made[SCOREBOARD] = _identity(os.fstat(board))
                os.fchmod(board, 0o600)
                os.posix_fallocate(board, 0, size)
            except OSError:
                os.close(board)
                raise
        return board

    def identity(self, name: str) -> Identity | None:
        """The (device, inode) of what we made under a name."""
        return self._made.get(name)

    def remove(self, name: str) -> bool:
        """Unlink what we made under a name, if it is still that; False where something else lies there now.

        Raises OSError where the file system refuses; then it is still ours to remove.
        """
        identity = self._made.get(name)
        removed = identity is not None and self._unlink_if(name, identity)
        self._made.pop(name, None)
        return removed

    def _unlink_if(self, name: str, identity: Identity) -> bool:
        try:
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            if _identity(status) != identity:
                return False
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> list[Leftover]:
        """Remove everything that we made and let the lock go; returns what is left, and why: it turned out to be somebody else's,
        or the file system refused twice.
        """
        kept: dict[str, Leftover] = {}
        for name in [*self._made, *self._made]:
            if name in self._made:
                kept.pop(name, None)
                reason = self._remove_at_last(name)
                if reason:
                    kept[name] = Leftover(name, False, reason)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        return list(kept.values())

    def _remove_at_last(self, name: str) -> str:
        """Why a name of ours is still there, "" where it is not."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            return "" if self.remove(name) else "it is not ours any more"
        except FileNotFoundError:
            del self._made[name]
            return ""
        except OSError as error:
            return f"it cannot be removed: {error.strerror}"


_ANSWERS = "a living socket: something answers on it"
