"""The cache of unpacked archives: shared, private, used by locks, and empty when nobody uses anything.

A descriptor of this process stands for a template and its workers: locks belong to the opening, so that one process can play all.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelworker import extractions
from modelworker.extractions import (
    CacheError,
    Extraction,
    Sweeper,
    obtain,
    sweep_path,
)
from modelworker.zipindex import ArchiveError

from support.archives import model_archive
from support.instance import wait_for

LARGEST = 1024**3


class Place:
    """An archive, a cache, and who uses what of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.archive = folder / "m.mar"
        self.archive.write_bytes(model_archive("old"))
        self.used: list[Extraction] = []

    def obtain(self, archive: Path | None = None) -> Extraction:
        """Begin to use."""
        self.used.append(obtain(str(archive or self.archive), str(self.cache), LARGEST))
        return self.used[-1]

    def release(self, extraction: Extraction) -> None:
        """The last process that used it is gone."""
        os.close(extraction.lock)
        self.used.remove(extraction)

    def sweep(self) -> list[str]:
        """Sweep; what is left."""
        for _ in sweep_path(str(self.cache)):
            pass
        return sorted(os.listdir(self.cache))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place that is released at the end."""
    made = Place(tmp_path)
    yield made
    for each in list(made.used):
        made.release(each)


def test_an_archive_becomes_a_private_folder(place: Place) -> None:
    """Named by its contents, in a folder of ours alone."""
    umask = os.umask(0)
    try:
        made = place.obtain()
    finally:
        os.umask(umask)
    digest = hashlib.sha256(place.archive.read_bytes()).hexdigest()
    assert (made.path, made.digest, made.fresh) == (str(place.cache / digest), digest, True)
    assert "old" in (Path(made.path) / "service.py").read_text()
    for path in (place.cache, Path(made.path), Path(made.path) / "service.py"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_two_models_share_one(place: Place) -> None:
    """The same contents under another name are the same folder, and it stays until both are gone."""
    other = place.folder / "other.mar"
    other.write_bytes(place.archive.read_bytes())
    first, second = place.obtain(), place.obtain(other)
    assert (first.path, second.path) == (second.path, first.path)
    assert (first.fresh, second.fresh) == (True, False)
    place.release(first)
    assert place.sweep() == [second.digest]
    place.release(second)
    assert place.sweep() == []


def test_a_changed_archive_is_another(place: Place) -> None:
    """The old one stays while it is used, and goes after that."""
    old = place.obtain()
    place.archive.write_bytes(model_archive("new"))
    new = place.obtain()
    assert new.path != old.path
    assert place.sweep() == sorted([old.digest, new.digest])
    place.release(old)
    assert place.sweep() == [new.digest]


def test_a_child_uses_what_it_inherited(place: Place) -> None:
    """A worker holds the folder after its template closed it, and the kernel forgets it with the worker."""
    made = place.obtain()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    place.release(made)
    try:
        assert place.sweep() == [made.digest]
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)
    assert place.sweep() == []


def test_what_was_left_is_swept_before_the_next_is_made(place: Place) -> None:
    """Yesterday's extraction, half of one, and one that was being removed: of supervisors that were killed."""
    old = place.obtain()
    place.release(old)
    half = place.cache / ("a" * 64 + ".part")
    gone = place.cache / ("b" * 64 + ".0123456789abcdef.gone")
    for folder in (half, gone):
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "weights").write_bytes(b"x" * 1000)
    (gone / "link").symlink_to("/etc")
    (gone / "closed").mkdir(mode=0)
    place.archive.write_bytes(model_archive("new"))
    new = place.obtain()
    assert sorted(os.listdir(place.cache)) == [new.digest]
    assert os.path.isdir("/etc")


def test_what_is_not_ours_is_left_alone(place: Place) -> None:
    """Only names that we form are looked at."""
    place.cache.mkdir(mode=0o700)
    (place.cache / "notes").mkdir()
    (place.cache / ("c" * 63)).mkdir()
    assert place.sweep() == ["c" * 63, "notes"]


def test_half_of_the_same_is_begun_anew(place: Place) -> None:
    """A template that was killed while it unpacked leaves a part, which is not taken for the whole."""
    digest = hashlib.sha256(place.archive.read_bytes()).hexdigest()
    part = place.cache / f"{digest}.part"
    part.mkdir(parents=True)
    place.cache.chmod(0o700)
    (part / "service.py").write_text("half")
    made = place.obtain()
    assert made.fresh
    assert "old" in (Path(made.path) / "service.py").read_text()


def test_who_comes_second_waits_for_the_first(place: Place) -> None:
    """While somebody unpacks the same contents, nobody else does; when he fails, the next one tries."""
    digest = hashlib.sha256(place.archive.read_bytes()).hexdigest()
    part = place.cache / f"{digest}.part"
    part.mkdir(parents=True)
    place.cache.chmod(0o700)
    first = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(first, fcntl.LOCK_EX)
    second = threading.Thread(target=place.obtain)
    second.start()
    inode = part.stat().st_ino

    def waits() -> bool:
        lines = Path("/proc/locks").read_text().splitlines()
        return any("->" in line and f":{inode} " in line for line in lines)

    wait_for(waits, "the second to wait for the first")
    os.rename(part, place.cache / digest)
    (place.cache / digest / "service.py").write_text("the first one's")
    os.close(first)
    second.join(10)
    (made,) = place.used
    assert not made.fresh
    assert (Path(made.path) / "service.py").read_text() == "the first one's"


def test_many_at_once_make_one(place: Place) -> None:
    """Eight processes want the same contents at the same moment: one unpacks it, and all use it."""
    reading, writing = os.pipe()
    pids = []
    for _ in range(8):
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                made = obtain(str(place.archive), str(place.cache), LARGEST)
                whole = os.path.isfile(os.path.join(made.path, "service.py"))
                os.write(writing, b"F" if made.fresh else b"S")
                code = 0 if whole else 2
            finally:
                os._exit(code)
        pids.append(pid)
    keeper = place.obtain()
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    os.close(writing)
    told = os.read(reading, 100)
    os.close(reading)
    assert codes == [0] * 8
    assert len(told) == 8
    assert place.sweep() == [keeper.digest]


def test_a_failed_one_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle: the reason is told with both paths, and the part is gone."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(extractions, "unpack", full)
    with pytest.raises(ArchiveError, match="No space left on device") as caught:
        place.obtain()
    assert str(place.archive) in str(caught.value)
    assert str(place.cache) in str(caught.value)
    assert place.sweep() == []


def test_an_archive_that_changes_while_it_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was hashed is not what was unpacked: refused, with nothing left."""
    real = extractions.unpack

    def slow(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        os.utime(place.archive, ns=(1, 1))

    monkeypatch.setattr(extractions, "unpack", slow)
    with pytest.raises(ArchiveError, match="was changed while it was read"):
        place.obtain()
    assert place.sweep() == []


def test_a_bad_archive_is_named(place: Place) -> None:
    """The reason of a failed load names the file."""
    place.archive.write_bytes(b"PK")
    with pytest.raises(ArchiveError) as caught:
        place.obtain()
    assert str(caught.value) == f"archive {place.archive}: it is not a zip file, or cut short"


def test_a_cache_that_others_can_enter_is_refused(place: Place) -> None:
    """Whoever may write there could put another model into place."""
    place.cache.mkdir()
    place.cache.chmod(0o755)
    with pytest.raises(CacheError, match="has mode 0755"):
        place.obtain()
    place.cache.rmdir()
    place.cache.symlink_to(place.folder)
    with pytest.raises(CacheError, match="cannot use model cache"):
        place.obtain()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_another_user_is_refused(place: Place) -> None:
    """Its owner could do the same."""
    place.cache.mkdir(mode=0o700)
    os.chown(place.cache, 65534, 65534)
    with pytest.raises(CacheError, match="belongs to uid 65534"):
        place.obtain()


def test_nobody_is_waited_for_without_wait(place: Place) -> None:
    """A supervisor that ends does not hang on one that was stopped while it looked at the cache."""
    made = place.obtain()
    place.release(made)
    other = os.open(place.cache, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert place.sweep() == [made.digest]
    os.close(other)
    assert place.sweep() == []


def test_the_steps_of_a_sweeper(place: Place) -> None:
    """Nothing to do until it is ordered; then looks at growing distances, and a file a step."""
    sweeper = Sweeper(str(place.cache))
    assert sweeper.patience() is None
    made = place.obtain()
    sweeper.order()
    waits = []
    while (wait := sweeper.patience()) is not None:
        waits.append(wait)
        sweeper.step()
        if len(waits) == 2:
            place.release(made)  # the old template took a moment to die
    assert [wait for wait in waits if wait] == [100, 1000, 5000]
    assert os.listdir(place.cache) == []


def test_a_folder_that_is_still_filled_is_given_up(place: Place) -> None:
    """Somebody writes into what is being removed: the sweep ends all the same."""
    made = place.obtain()
    place.release(made)
    steps = sweep_path(str(place.cache))
    for number, _ in enumerate(steps):
        assert number < 100
        for name in os.listdir(place.cache):
            (place.cache / name / "more").touch()
    assert os.listdir(place.cache)[0].endswith(".gone")
