"""The claim on the run directory, the sweep of what a killed supervisor left, and what its death takes along."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelworker.scoreboard import read_record

from support.instance import LIMIT, Instance, environment, marked_processes, wait_for
from support.peers import ask, dial, order_frame

Make = Callable[..., Instance]
START = [sys.executable, "-m", "modelsupervisor", "start", "-c"]


@pytest.fixture
def echo(instance: Make) -> Instance:
    """An instance of the test model, configured and not started."""
    made = instance()
    made.write(made.model())
    return made


def gone_within(mark: str, seconds: float) -> None:
    """Fail where a process of an instance lives for longer than so many seconds from now."""
    wait_for(lambda: not marked_processes(mark), "every process to be gone", seconds)


def identities(instance: Instance) -> dict[str, tuple[int, int]]:
    """Name → (inode, change time) of everything in the run directory."""
    return {
        entry.name: (entry.stat().st_ino, entry.stat().st_ctime_ns)
        for entry in os.scandir(instance.run_dir)
    }


# -- one at a time -------------------------------------------------------------------------------------------------------


class Starter:
    """One of many that start at once, with files of its own."""

    def __init__(self, instance: Instance, number: int) -> None:
        self.log = instance.folder / f"starter-{number}.jsonl"
        self.errors = instance.folder / f"starter-{number}.stderr"
        with self.log.open("wb") as log, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*START, str(instance.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=errors,
                env=environment(instance.mark),
            )


def test_of_twenty_starts_one_runs(echo: Instance) -> None:
    """One runs and answers, 19 exit 75 with one clear line and log nothing."""
    starters = [Starter(echo, number) for number in range(20)]

    def losers() -> list[Starter]:
        return [each for each in starters if each.process.poll() is not None]

    wait_for(lambda: len(losers()) >= 19, "19 starters to give up")
    (winner,) = (each for each in starters if each not in losers())
    echo.process, echo.log = winner.process, winner.log
    echo.wait_event("supervisor.ready")
    assert ask(echo.socket()) == b"hello"
    for loser in losers():
        assert loser.process.returncode == 75
        said = loser.errors.read_text()
        assert said.count("\n") == 1, said
        assert "already running in" in said and str(echo.run_dir) in said
        assert loser.log.read_bytes() == b""
    assert echo.events("leftover.removed") == []


def test_a_second_start_disturbs_nothing(echo: Instance) -> None:
    """Beside a running supervisor a start exits 75 and names its pid; inodes, and a connection in use, stay as they are."""
    echo.start()
    before = identities(echo)
    status = echo.status()
    with dial(echo.socket()) as peer:
        second = echo.cli("start", "-c", str(echo.config))
        assert second.returncode == 75
        assert f"pid {echo.pid}" in second.stderr
        assert second.stderr.count("\n") == 1
        assert second.stdout == ""
        peer.sendall(order_frame(do="nothing"))
        assert peer.recv(4096)
    assert identities(echo) == before
    assert (
        echo.status()["models"][0]["workers"][0]["pid"] == status["models"][0]["workers"][0]["pid"]
    )


def test_the_lock_says_who_holds_it(echo: Instance) -> None:
    """The lock holds the pid and the configuration's path, is for us alone, and stays when the supervisor is gone."""
    echo.start()
    lock = echo.run_dir / "lock"
    assert lock.read_text() == f"{echo.pid}\n{echo.config}\n"
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    assert echo.stop() == 0
    assert os.listdir(echo.run_dir) == ["lock"]
    echo.start()


def test_a_lock_with_the_pid_of_somebody_alive_does_not_count(echo: Instance) -> None:
    """What counts is the lock on the file and not the number in it (gunicorn's stale pid file)."""
    echo.run_dir.mkdir(mode=0o700)
    (echo.run_dir / "lock").write_text(f"{os.getpid()}\n")
    (echo.run_dir / "lock").chmod(0o600)
    echo.start()


# -- what a killed supervisor leaves -------------------------------------------------------------------------------------


def test_leftovers_are_swept_and_named(echo: Instance) -> None:
    """After kill -9 everything lies there; the next start removes it, says so, and succeeds."""
    echo.start()
    left = set(os.listdir(echo.run_dir))
    expected = {
        "lock",
        "control.sock",
        "scoreboard",
        "echo.0.sock",
        "echo.0.stdout",
        "echo.0.stderr",
    }
    assert left == expected
    echo.signal(signal.SIGKILL)
    assert echo.wait() == -signal.SIGKILL
    assert set(os.listdir(echo.run_dir)) == left
    echo.start()
    assert {event["name"] for event in echo.events("leftover.removed")} == left - {"lock"}
    assert ask(echo.socket()) == b"hello"


def test_leftovers_of_a_model_that_is_gone_are_swept(echo: Instance) -> None:
    """Sockets and FIFOs of a model, or of a worker, that the file has no longer go too."""
    echo.write(echo.model() + echo.model("other.v2", workers=2))
    echo.start()
    echo.signal(signal.SIGKILL)
    echo.wait()
    echo.write(echo.model())
    echo.start()
    assert not [name for name in os.listdir(echo.run_dir) if name.startswith("other")]


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        ({"do": "sleep"}, "request"),
        ({"do": "busy_in_c"}, "request"),
        ({"do": "all", "of": [{"do": "ignore_sigterm"}, {"do": "busy_in_c"}]}, "request"),
        ({"do": "busy_in_c"}, "FAULT_AT_LOAD"),
        ({"do": "busy_in_c"}, "FAULT_AFTER_FORK"),
        ({"do": "kill", "signal": int(signal.SIGSTOP)}, "request"),
    ],
    ids=["idle-in-python", "in-c", "deaf-in-c", "template-loading", "worker-starting", "stopped"],
)
def test_workers_die_with_their_supervisor(
    instance: Make, fault: dict[str, object], key: str
) -> None:
    """Within a second of kill -9 no process is left, whatever it does just now, C with the GIL held included; a start succeeds."""
    made = instance()
    told = {} if key == "request" else {f"env__{key}": json.dumps(fault)}
    made.write(made.model(workers=2, **told))
    made.launch()
    if key == "request":
        made.wait_event("supervisor.ready")
        with dial(made.socket()) as peer:
            peer.sendall(order_frame(**fault))
            wait_for(lambda: in_hand(made), "the request to be in hand")
            made.signal(signal.SIGKILL)
    else:
        awaited = "template.output" if key == "FAULT_AT_LOAD" else "worker.starting"
        made.wait_event(awaited)
        made.signal(signal.SIGKILL)
    made.wait()
    gone_within(made.mark, 1.0)
    made.write(made.model())
    made.start()
    assert ask(made.socket()) == b"hello"


def in_hand(made: Instance) -> bool:
    """The first worker's scoreboard record says that it has a request in hand."""
    return bool(read_record((made.run_dir / "scoreboard").read_bytes()).in_hand)


def test_a_start_right_after_kill_9_succeeds(echo: Instance) -> None:
    """A start does not mistake the sockets of workers that are being torn down for living ones."""
    echo.write(echo.model(workers=4))
    echo.start()
    for _ in range(3):
        echo.signal(signal.SIGKILL)
        echo.wait()
        echo.start()
        assert ask(echo.socket(index=3)) == b"hello"


def kill_at_random(made: Instance, rounds: int, seed: int) -> None:
    """Kill -9 a starting supervisor at random moments around its forks, again and again: no orphan ever."""
    luck = random.Random(seed)
    made.write(made.model(workers=4))
    for number in range(rounds):
        made.launch()
        made.wait_event(luck.choice(["template.starting", "template.ready", "worker.ready"]))
        time.sleep(luck.uniform(0, 0.02))
        made.signal(signal.SIGKILL)
        made.wait()
        try:
            gone_within(made.mark, 5)
        except AssertionError as error:
            raise AssertionError(f"round {number}, seed {seed}: {error}\n{made.story()}") from None


@pytest.mark.slow
def test_no_orphan_after_kill_9_in_mid_fork(instance: Make) -> None:
    """20 random moments around the forks: no process is ever left, and the last leftovers are swept."""
    made = instance()
    kill_at_random(made, 20, random.randrange(10**6))
    made.start()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_orphan_after_200_kill_9_in_mid_fork(instance: Make) -> None:
    """The same, 200 times."""
    made = instance()
    kill_at_random(made, 200, random.randrange(10**6))
    made.start()


# -- how a socket appears ------------------------------------------------------------------------------------------------


def test_no_socket_is_seen_before_it_listens(instance: Make) -> None:
    """A client that connects without pause from before the start sees no such file, and then success: never a refusal."""
    made = instance()
    made.write(made.model(workers=2))
    made.run_dir.mkdir(mode=0o700)
    paths = [made.run_dir / "control.sock", made.socket(index=0), made.socket(index=1)]
    seen: dict[Path, set[str]] = {path: set() for path in paths}
    over = threading.Event()

    def spin() -> None:
        while not over.is_set() and any("connected" not in outcomes for outcomes in seen.values()):
            for path in paths:
                if "connected" in seen[path]:
                    continue
                with socket.socket(socket.AF_UNIX) as peer:
                    try:
                        peer.connect(str(path))
                    except OSError as error:
                        seen[path].add(type(error).__name__)
                    else:
                        seen[path].add("connected")

    spinner = threading.Thread(target=spin)
    spinner.start()
    made.start()
    spinner.join(LIMIT)
    over.set()
    assert all(outcomes == {"FileNotFoundError", "connected"} for outcomes in seen.values()), seen


def test_modes_do_not_depend_on_the_umask(instance: Make) -> None:
    """Directory 0700; sockets, FIFOs, scoreboard and lock 0600, with a umask that takes everything or nothing."""
    for mask in (0o000, 0o777):
        made = instance()
        made.write(made.model())
        before = os.umask(mask)
        try:
            process = subprocess.Popen(
                [*START, str(made.config)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(made.mark),
            )
        finally:
            os.umask(before)
        with process:
            try:
                wait_for(lambda m=made: (m.run_dir / "control.sock").exists(), "the control socket")
                modes = {
                    entry.name: stat.S_IMODE(entry.stat().st_mode)
                    for entry in os.scandir(made.run_dir)
                }
                assert stat.S_IMODE(made.run_dir.stat().st_mode) == 0o700
                assert set(modes.values()) <= {0o600}, (oct(mask), modes)
            finally:
                process.terminate()
        assert process.returncode == 0


# -- a poor environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["0<&- 1>&- 2>&-", "0<&-", "1>&-", "2>&-", "0<&- 1>&-"])
def test_standard_descriptors_closed_at_start(echo: Instance, closed: str) -> None:
    """With standard descriptors closed it serves and stops as ever: nothing of ours got their numbers and is written to."""
    command = f'exec "$0" "$@" {closed}'
    echo.launch(command=["sh", "-c", command, *START, str(echo.config)])
    wait_for(lambda: (echo.run_dir / "control.sock").exists(), "the control socket")
    assert ask(echo.socket()) == b"hello"
    for fd in range(3):
        target = os.readlink(f"/proc/{echo.pid}/fd/{fd}")
        assert target.startswith("/"), (
            fd,
            target,
        )  # a file; not a socket, pipe or epoll set of ours
    assert echo.stop() == 0
    assert (echo.folder / "stderr").read_text() == ""


def test_no_descriptors_to_be_had(echo: Instance) -> None:
    """Where the hard limit has no room for the workers, start says so with numbers, exits 1 and leaves nothing."""
    echo.write(echo.model(workers=100))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))

    ended = subprocess.run(
        [*START, str(echo.config)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env=environment(echo.mark),
        check=False,
    )
    assert ended.returncode == 1
    assert "RLIMIT_NOFILE: 538 descriptors needed, 200 to be had" in ended.stderr
    assert "ulimit -Hn" in ended.stderr and "nothing was started" in ended.stderr
    assert not echo.run_dir.exists()


@pytest.fixture
def small_disk(short_tmp: Path) -> Iterator[Path]:
    """A file system of one page, full."""
    place = short_tmp / "disk"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "tmpfs", str(place)]
    made = subprocess.run(line, capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    try:
        (place / "filler").write_bytes(b"x" * 4096)
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_no_space_on_the_disk_of_the_run_directory(echo: Instance, small_disk: Path) -> None:
    """What needs room, the scoreboard, is named with what there is, before anything is made; exit 1."""
    text = echo.config.read_text().replace(str(echo.run_dir), str(small_disk))
    echo.config.write_text(text)
    echo.launch()
    assert echo.wait() == 1
    said = (echo.folder / "stderr").read_text()
    assert "8192 bytes needed, 4096 to be had; make room in the file system" in said
    assert sorted(os.listdir(small_disk)) == ["filler"]


def test_a_configuration_in_a_strange_place(instance: Make) -> None:
    """A folder whose name is no UTF-8 is a folder like any other."""
    made = instance()
    made.write(made.model())
    folder = Path(os.fsdecode(os.fsencode(made.folder) + b"/\xff\xfe ab"))
    folder.mkdir()
    made.config = made.config.rename(folder / "workers.ini")
    made.start()
    assert os.fsencode(made.config) in (made.run_dir / "lock").read_bytes()
    assert ask(made.socket()) == b"hello"
    status = made.cli("status", "--json", "-c", str(made.config))
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["supervisor"]["pid"] == made.pid
