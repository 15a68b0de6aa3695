"""The cache of unpacked archives: one folder for each content, shared by whoever loads it, gone when nobody uses it any more.

Theory of operation
-------------------
An archive is unpacked by the template that is to load it: never in the supervisor's loop, within the model's `startup_timeout`,
as a failed load with its reason where it fails, and a template that is killed takes it along.

A folder's name is the SHA-256 of the archive, so that two models, or two supervisors of one user, share it, and a changed archive
is another folder. A folder is *used* by whoever holds a shared flock on it: the template takes one, and its workers inherit the
descriptor, so that the kernel knows the users, and forgets the killed ones. It is made as DIGEST.part under an exclusive flock and
renamed when it is complete; who wants the same meanwhile waits for that lock. Whatever can be locked exclusively is used by nobody:
an extraction of yesterday or half of one. It is renamed to DIGEST.N.gone at once and removed file by file afterwards.

Looking and renaming happen under a flock on the cache folder itself, which nobody holds for longer than that takes; so a user and a
remover never meet. An extraction does not outlive its users on purpose: it costs seconds, and what is unpacked at each start is
what the archive holds, whatever a model wrote into its folder yesterday.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from typing import BinaryIO, Iterator, List, NamedTuple, Optional, Tuple

from modelworker.archive import Contents, digest_of, open_archive, read_contents, unpack
from modelworker.zipindex import ArchiveError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OURS = re.compile(r"[0-9a-f]{64}(\.part)?")
_GONE = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.gone")
# Milliseconds between two looks after a restart: the old template's last descendants may still be dying
_LOOKS = (0, 100, 1000, 5000)
_VISITS = 4  # of one folder that is being removed, while somebody still fills it


Version = Tuple[int, int, int]
"""Of a file: size and times; an archive that is overwritten while it is read has another one afterwards."""


class CacheError(Exception):
    """The cache folder cannot be used."""


class Extraction(NamedTuple):
    """An unpacked archive. While `lock` is open, here or in a child that inherited it, the folder stays."""

    path: str
    lock: int
    digest: str
    fresh: bool  # unpacked now, not found


# -- the cache folder -------------------------------------------------------------------------------------------------


def open_cache(path: str) -> int:
    """A descriptor of the cache folder, which is made where it is missing. Raises CacheError where it is not ours alone."""
    before = os.umask(0o077)
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        cache = os.open(path, _FOLDER)
    except OSError as error:
        raise CacheError("cannot use model cache %s: %s" % (path, error.strerror)) from None
    finally:
        os.umask(before)
    status = os.fstat(cache)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.geteuid() or mode & 0o077:
        os.close(cache)
        said = "model cache %s has mode %04o and belongs to uid %d, expected 0700 and uid %d"
        raise CacheError(said % (path, mode, status.st_uid, os.geteuid()))
    return cache


@contextlib.contextmanager
def _alone(cache: int, flags: int = fcntl.LOCK_EX) -> Iterator[None]:
    """The cache to ourselves. With LOCK_NB raises BlockingIOError where it is not to be had at once."""
    own = os.open(".", _FOLDER, dir_fd=cache)  # a lock belongs to the opening, not to the process
    try:
        fcntl.flock(own, flags)
        yield
    finally:
        os.close(own)


# -- using ------------------------------------------------------------------------------------------------------------


def obtain(archive: str, cache_path: str, largest: int) -> Extraction:
    """The unpacked form of an archive: found, or awaited, or made. Raises ArchiveError or CacheError."""
    cache = open_cache(cache_path)
    try:
        with open_archive(archive) as stream:
            before = _version(stream)
            contents = read_contents(stream, largest)
            digest = digest_of(stream)
            lock, fresh = _find(cache, digest)
            for _ in sweep(cache, wait=True):  # after the lock on ours, before the disk is needed
                pass
            if fresh:
                _make(cache, digest, lock, stream, contents, before)
    except ArchiveError as error:
        raise ArchiveError("archive %s: %s" % (archive, error.message), error.expected) from None
    except OSError as error:
        said = "cannot unpack %s into %s: %s" % (archive, cache_path, error.strerror)
        raise ArchiveError(said) from error
    finally:
        os.close(cache)
    return Extraction(os.path.join(os.path.realpath(cache_path), digest), lock, digest, fresh)


def _make(
    cache: int, digest: str, lock: int, stream: BinaryIO, contents: Contents, before: Version
) -> None:
    """Fill the empty folder and give it its name; or remove it, and those who wait for it try for themselves."""
    umask = os.umask(0o077)
    try:
        unpack(stream, contents, lock)
        if _version(stream) != before:
            raise ArchiveError("it was changed while it was read")
        with _alone(cache):
            os.rename(digest + ".part", digest, src_dir_fd=cache, dst_dir_fd=cache)
            fcntl.flock(lock, fcntl.LOCK_SH)
    except BaseException:
        os.close(lock)  # and so it is nobody's
        for _ in sweep(cache, wait=True):
            pass
        raise
    finally:
        os.umask(umask)


def _version(stream: BinaryIO) -> Version:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _find(cache: int, digest: str) -> Tuple[int, bool]:
    """(a descriptor of the complete folder with a shared lock, False), or (of an empty one with an exclusive lock, True)."""
    part = digest + ".part"
    while True:
        with _alone(cache):
            lock = _open_locked(cache, digest, fcntl.LOCK_SH)
            if lock is not None:
                return lock, False
            _condemn_unused(cache, part)  # its maker is dead
            other = _begin(cache, part)
            if other is None:
                lock = os.open(part, _FOLDER, dir_fd=cache)
                os.fchmod(lock, 0o700)  # whatever the umask was
                fcntl.flock(lock, fcntl.LOCK_EX)
                return lock, True
        # Somebody unpacks it. Its lock is free when that is done, or failed, or dead; then we look again.
        try:
            fcntl.flock(other, fcntl.LOCK_SH)
        finally:
            os.close(other)


def _begin(cache: int, part: str) -> Optional[int]:
    """Make the folder that is filled; where somebody else fills it now, a descriptor of his."""
    try:
        os.mkdir(part, 0o700, dir_fd=cache)
    except FileExistsError:
        return os.open(part, _FOLDER, dir_fd=cache)
    return None


def _open_locked(cache: int, name: str, how: int) -> Optional[int]:
    """A descriptor of a folder of the cache with a lock on it; None where there is none, or it is locked otherwise."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=cache)
    except FileNotFoundError:
        return None
    if _lock(folder, how):
        return folder
    os.close(folder)
    return None


def _lock(folder: int, how: int) -> bool:
    try:
        fcntl.flock(folder, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# -- removing ---------------------------------------------------------------------------------------------------------


def sweep(cache: int, wait: bool) -> Iterator[None]:
    """Remove what nobody uses, a file a step. Without `wait`, nothing is done while somebody else looks at the cache."""
    try:
        with _alone(cache, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB):
            for name in os.listdir(cache):
                if _OURS.fullmatch(name):
                    _condemn_unused(cache, name)
        for name in os.listdir(cache):
            if _GONE.fullmatch(name):
                yield from _remove(cache, name)
    except OSError:
        return  # held by another, or beyond our rights: the next sweep tries again


def _condemn_unused(cache: int, name: str) -> None:
    """Rename a folder that nobody holds to what nobody looks for. The cache is ours alone meanwhile."""
    folder = _open_locked(cache, name, fcntl.LOCK_EX)
    if folder is not None:
        gone = "%s.%s.gone" % (name[:64], os.urandom(8).hex())
        os.rename(name, gone, src_dir_fd=cache, dst_dir_fd=cache)
        os.close(folder)


def _remove(cache: int, name: str) -> Iterator[None]:
    """Remove a tree, a file a step, links not followed; another remover may be at it too."""
    pending = [name]
    visits = {name: 0}
    while pending:
        path = pending[-1]
        visits[path] += 1
        if visits[path] > _VISITS:
            return
        try:
            os.rmdir(path, dir_fd=cache)
            pending.pop()
        except FileNotFoundError:
            pending.pop()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            for below in _folders_in(cache, path):
                visits.setdefault(below, 0)
                pending.append(below)
        yield


def _folders_in(cache: int, path: str) -> List[str]:
    """Unlink what is no folder; the names of the folders."""
    os.chmod(path, 0o700, dir_fd=cache)  # a model may have closed its own
    folder = os.open(path, _FOLDER, dir_fd=cache)
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found.append(os.path.join(path, entry.name))
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.name, dir_fd=folder)
    finally:
        os.close(folder)
    return found


class Sweeper:
    """The sweeps of a template that has nothing else to do, in steps between which it looks at its channel."""

    def __init__(self, cache_path: str) -> None:
        self._path = cache_path
        self._looks: List[int] = []
        self._steps: Optional[Iterator[None]] = None

    def order(self) -> None:
        """Begin anew: something has become unused."""
        self._looks = list(_LOOKS)

    def patience(self) -> Optional[int]:
        """Milliseconds until the next step is due; None for never."""
        if self._steps is not None:
            return 0
        return self._looks[0] if self._looks else None

    def step(self) -> None:
        """The next step; never raises: what cannot be removed now is removed by another sweep."""
        if self._steps is None:
            self._looks.pop(0)
            self._steps = sweep_path(self._path)
        if next(self._steps, self) is self:
            self._steps = None


def sweep_path(cache_path: str, wait: bool = False) -> Iterator[None]:
    """`sweep` of the cache at a path; of one that is not there, nothing."""
    try:
        cache = os.open(cache_path, _FOLDER)
    except OSError:
        return
    try:
        yield from sweep(cache, wait)
    finally:
        os.close(cache)
