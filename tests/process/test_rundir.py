"""What is not ours in or at the run directory: refused by name, left as it was, and everything of ours cleaned up."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support.instance import Instance, wait_for
from support.peers import ask, dial
from support.unprivileged import NOBODY, as_nobody, launch_as_nobody

Make = Callable[..., Instance]

PATHS = (
    "echo.0.sock",
    "echo.0.stdout",
    "echo.0.stderr",
    "control.sock",
    "scoreboard",
    "lock",
    ".bind",
)
as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to give files away")


@pytest.fixture
def echo(instance: Make) -> Instance:
    """An instance of the test model with its run directory made and empty."""
    made = instance()
    made.write(made.model())
    made.run_dir.mkdir(mode=0o700)
    return made


def refused(echo: Instance, *naming: str) -> str:
    """Start; hold that it exits 78 saying all these words; return what it said."""
    echo.launch()
    assert echo.wait() == 78
    said = (echo.folder / "stderr").read_text()
    for words in naming:
        assert words in said, said
    assert "Traceback" not in said
    return said


def cleaned(echo: Instance, *foreign: str) -> None:
    """Hold that nothing but these lies in the run directory (the lock may), and take them away for the fixture's own check."""
    left = set(os.listdir(echo.run_dir)) - {"lock"}
    assert left == set(foreign) - {"lock"}
    for name in foreign:
        path = echo.run_dir / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)


# -- things in our way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_a_symbolic_link(echo: Instance, name: str) -> None:
    """Refused by name with 78; neither the link nor its target is touched, were it ours and a stale socket."""
    target = echo.folder / "target"
    target.write_text("precious")
    (echo.run_dir / name).symlink_to(target)
    refused(echo, str(echo.run_dir / name), "symbolic link")
    assert target.read_text() == "precious"
    assert os.readlink(echo.run_dir / name) == str(target)
    cleaned(echo, name)


def test_a_symbolic_link_to_a_stale_socket(echo: Instance) -> None:
    """What a link points at is never looked at."""
    stale = echo.folder / "stale.sock"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(stale))
    (echo.run_dir / "echo.0.sock").symlink_to(stale)
    refused(echo, "echo.0.sock", "symbolic link")
    assert stale.is_socket()
    cleaned(echo, "echo.0.sock")


@pytest.mark.parametrize("name", [name for name in PATHS if name != "lock"])
def test_a_regular_file(echo: Instance, name: str) -> None:
    """Refused by name with 78, its bytes as they were; one that is called scoreboard and is none of ours, too."""
    (echo.run_dir / name).write_text("precious")
    (echo.run_dir / name).chmod(0o600)
    refused(echo, str(echo.run_dir / name), "regular file")
    assert (echo.run_dir / name).read_text() == "precious"
    cleaned(echo, name)


def test_a_second_name_of_a_file_as_lock(echo: Instance) -> None:
    """A hard link planted as lock would have its text written over: refused, the file as it was."""
    target = echo.folder / "target"
    target.write_text("precious")
    os.link(target, echo.run_dir / "lock")
    refused(echo, str(echo.run_dir / "lock"))
    assert target.read_text() == "precious"
    cleaned(echo, "lock")


@pytest.mark.parametrize("name", PATHS)
def test_a_directory(echo: Instance, name: str) -> None:
    """Refused by name with 78, and still there."""
    (echo.run_dir / name).mkdir()
    refused(echo, str(echo.run_dir / name), "irectory")
    assert (echo.run_dir / name).is_dir()
    cleaned(echo, name)


@as_root
@pytest.mark.parametrize("name", PATHS)
def test_a_file_of_somebody_else(echo: Instance, name: str) -> None:
    """A stale socket, FIFO, lock or scoreboard of the right kind, but of another uid: refused by name and left."""
    path = echo.run_dir / name
    if name in ("scoreboard", "lock"):
        path.touch(mode=0o600)
    elif name.endswith(("stdout", "stderr")):
        os.mkfifo(path, 0o600)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    os.chown(path, NOBODY, NOBODY)
    identity = path.lstat().st_ino
    refused(echo, str(path))
    assert (path.lstat().st_ino, path.lstat().st_uid) == (identity, NOBODY)
    cleaned(echo, name)


def test_a_living_socket(echo: Instance) -> None:
    """Sockets that somebody listens on, one of them with a full backlog, are refused by name; they go on listening."""
    names = ("echo.0.sock", "control.sock", ".bind")
    with contextlib.ExitStack() as stack:
        for name in names:
            foreign = stack.enter_context(socket.socket(socket.AF_UNIX))
            foreign.bind(str(echo.run_dir / name))
            foreign.listen(0 if name == "control.sock" else 100)
        queued = stack.enter_context(dial(echo.run_dir / "control.sock"))
        identities = [(echo.run_dir / name).stat().st_ino for name in names]
        said = refused(echo, *(str(echo.run_dir / name) for name in names))
        assert said.count("living socket") == 3
        assert [(echo.run_dir / name).stat().st_ino for name in names] == identities
        queued.settimeout(0.0)
        with pytest.raises(BlockingIOError):  # still in the backlog: nobody hung up on it
            queued.recv(1)
    cleaned(echo, *names)


def test_everything_in_the_way_is_named_at_once(echo: Instance) -> None:
    """Who mends one thing does not learn of the next by the next start."""
    names = ("echo.0.sock", "echo.0.stdout", "control.sock", "scoreboard")
    for name in names:
        (echo.run_dir / name).symlink_to("/dev/null")
    refused(echo, *(str(echo.run_dir / name) for name in names))
    cleaned(echo, *names)


def test_what_is_under_other_names_is_left_alone(echo: Instance) -> None:
    """A file, socket, FIFO or link that we do not form the name of, and a foreign thing under a name not needed now, stay."""
    (echo.run_dir / "notes.txt").write_text("precious")
    os.mkfifo(echo.run_dir / "pipe")
    (echo.run_dir / "link").symlink_to("/dev/null")
    (echo.run_dir / "old.7.stdout").write_text("precious")  # our kind of name, but a file
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(echo.run_dir / "app.sock"))
    names = ("notes.txt", "pipe", "link", "old.7.stdout", "app.sock")
    echo.start()
    assert [event["name"] for event in echo.events("leftover.kept")] == ["old.7.stdout"]
    assert echo.stop() == 0
    cleaned(echo, *names)


# -- things done to us while we run --------------------------------------------------------------------------------------


def test_a_file_that_somebody_put_in_our_place_is_not_removed(instance: Make) -> None:
    """What lies under our name at the end and is not what we made stays, and is named."""
    echo = instance("leftover.kept")
    echo.write(echo.model())
    echo.start()
    echo.socket().unlink()
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(echo.socket()))
        foreign.listen()
        (echo.run_dir / "echo.0.stdout").unlink()
        (echo.run_dir / "echo.0.stdout").write_text("precious")
        assert echo.stop() == 0
        with dial(echo.socket()):
            pass
    assert {event["name"] for event in echo.events("leftover.kept")} == {
        "echo.0.sock",
        "echo.0.stdout",
    }
    assert (echo.run_dir / "echo.0.stdout").read_text() == "precious"
    cleaned(echo, "echo.0.sock", "echo.0.stdout")


def test_files_that_somebody_removed_are_not_missed(echo: Instance) -> None:
    """Who empties the run directory under us does not keep us from stopping."""
    echo.start()
    for name in os.listdir(echo.run_dir):
        (echo.run_dir / name).unlink()
    assert echo.stop() == 0


def test_the_directory_is_moved_away(echo: Instance) -> None:
    """All is done relative to the open directory: a link planted in the place of it leads nowhere, and ours is cleaned."""
    echo.start()
    moved, decoy = echo.folder / "moved", echo.folder / "decoy"
    echo.run_dir.rename(moved)
    decoy.mkdir()
    (decoy / "control.sock").write_text("precious")
    echo.run_dir.symlink_to(decoy)
    assert echo.stop() == 0
    assert os.listdir(moved) == ["lock"]
    assert (decoy / "control.sock").read_text() == "precious"
    echo.run_dir.unlink()


# -- the directory itself ------------------------------------------------------------------------------------------------


def test_the_directory_is_a_symbolic_link(echo: Instance) -> None:
    """Refused by name, were the target in order."""
    target = echo.folder / "target"
    echo.run_dir.rename(target)
    echo.run_dir.symlink_to(target)
    refused(echo, str(echo.run_dir), "symbolic link")
    assert os.listdir(target) == []


def test_the_directory_is_a_file(echo: Instance) -> None:
    """Refused by name."""
    echo.run_dir.rmdir()
    echo.run_dir.write_text("precious")
    refused(echo, str(echo.run_dir), "not a directory")
    assert echo.run_dir.read_text() == "precious"
    echo.run_dir.unlink()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o755, 0o701, 0o1777, 0o2700])
def test_the_directory_is_open_to_others(echo: Instance, mode: int) -> None:
    """Refused by name, with the mode found and the command that mends it; the mode is not changed."""
    echo.run_dir.chmod(mode)
    said = refused(echo, str(echo.run_dir), f"{mode:04o}", f"chmod 0700 {echo.run_dir}")
    assert said.count("\n") == 1
    assert stat.S_IMODE(echo.run_dir.stat().st_mode) == mode
    assert os.listdir(echo.run_dir) == []


@as_root
def test_the_directory_belongs_to_somebody_else(echo: Instance) -> None:
    """Refused by name, with both uids."""
    os.chown(echo.run_dir, NOBODY, NOBODY)
    refused(echo, str(echo.run_dir), f"uid {NOBODY}", "uid 0")
    assert os.listdir(echo.run_dir) == []


def test_the_parent_is_missing(echo: Instance) -> None:
    """Refused by name: only the last folder of the path is made."""
    echo.run_dir.rmdir()
    echo.config.write_text(echo.config.read_text().replace(str(echo.run_dir), f"{echo.folder}/a/b"))
    refused(echo, f"{echo.folder}/a/b", "No such file or directory")
    assert not (echo.folder / "a").exists()


def test_the_path_is_too_long_for_clients(echo: Instance) -> None:
    """A socket's path over 107 bytes is refused before anything is made."""
    long = echo.folder / ("x" * 100)
    echo.config.write_text(echo.config.read_text().replace(str(echo.run_dir), str(long)))
    refused(echo, str(long))
    assert not long.exists()


def test_an_unprivileged_user_starts_too(instance: Make) -> None:
    """Nothing here needs root: as nobody it starts, answers and leaves nothing."""
    made = instance()
    made.write(made.model())
    launch_as_nobody(made)
    made.wait_event("supervisor.ready")
    assert ask(made.socket()) == b"hello"
    assert made.run_dir.stat().st_uid == NOBODY
    assert made.stop() == 0


def test_a_directory_that_cannot_be_made_or_entered(instance: Make) -> None:
    """As nobody: a parent that we may not write to, and a directory that we may not enter, are refused by name."""
    made = instance()
    made.write(made.model())
    text = made.config.read_text()
    for place, mode in (("/modelsupervisor-of-nobody", None), (str(made.folder / "closed"), 0o000)):
        if mode is not None:
            Path(place).mkdir(mode=mode)
        made.config.write_text(text.replace(str(made.run_dir), place))
        launch_as_nobody(made)
        if mode is not None:
            os.chown(place, NOBODY, NOBODY)
        assert made.wait() == 78
        said = (made.folder / "stderr").read_text()
        assert place in said and "Permission denied" in said
        assert "Traceback" not in said


@as_root
def test_nobody_gets_in(echo: Instance) -> None:
    """Another user's client is told that it may not, by the directory's mode alone."""
    echo.start()
    code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    for name in ("control.sock", "echo.0.sock"):
        line = as_nobody("/usr/bin/python3", "-c", code, str(echo.run_dir / name))
        tried = subprocess.run(line, capture_output=True, text=True, check=False)
        assert "PermissionError" in tried.stderr


@as_root
def test_a_group_is_let_in(instance: Make) -> None:
    """With socket_group and socket_mode the directory is 0750 and the sockets are the group's; the FIFOs stay ours alone."""
    made = instance()
    made.write(made.model(), supervisor="socket_group = nogroup\nsocket_mode = 0660\n")
    made.start()
    gid = grp.getgrnam("nogroup").gr_gid
    directory = made.run_dir.stat()
    assert (stat.S_IMODE(directory.st_mode), directory.st_gid) == (0o750, gid)
    modes = {
        entry.name: (stat.S_IMODE(entry.stat().st_mode), entry.stat().st_gid)
        for entry in os.scandir(made.run_dir)
    }
    for name in ("control.sock", "echo.0.sock"):
        assert modes[name] == (0o660, gid)
    for name in ("echo.0.stdout", "echo.0.stderr", "scoreboard", "lock"):
        assert modes[name][0] == 0o600
    wait_for(lambda: ask(made.socket()) == b"hello", "an answer")
