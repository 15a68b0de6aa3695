"""limits.py: what a start needs and what there is, on machines that are written down."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from modelsupervisor.cli import main
from modelsupervisor.config import Settings, load_settings
from modelsupervisor.errors import StartError
from modelsupervisor.runtime import limits, planning
from modelsupervisor.runtime.limits import Limit, read_limits, require_limits

GIB = 1 << 30
UID = 1000
PLAIN = {
    "proc/sys/kernel/pid_max": "4194304",
    "proc/sys/kernel/threads-max": "200000",
    "proc/loadavg": "0.10 0.20 0.30 2/345 6789",
    "proc/meminfo": "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable:    4194304 kB",
    "proc/self/status": "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000",
    "proc/self/cgroup": "0::/",
    "proc/self/mountinfo": "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
}
V1 = {
    "proc/self/cgroup": "8:pids:/jobs/a\n4:memory:/jobs\n0::/",
    "proc/self/mountinfo": "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids",
}

Loaded = Callable[..., Settings]


@pytest.fixture(autouse=True)
def user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user like any other, whose limits are high; `tmp_path` first, which looks at who it is for."""
    monkeypatch.setattr(os, "getuid", lambda: UID)
    set_rlimits(monkeypatch, 1 << 20, 1 << 20)


def set_rlimits(monkeypatch: pytest.MonkeyPatch, nofile: int, nproc: int) -> None:
    """These are the hard limit of descriptors and the soft one of processes."""
    found = {resource.RLIMIT_NOFILE: (256, nofile), resource.RLIMIT_NPROC: (nproc, nproc)}
    monkeypatch.setattr(resource, "getrlimit", lambda which: found[which])


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """A file with a model `a` of so many workers."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "handler.py").write_text("def handle(data, context):\n    return data\n")

    def write(workers: int, spares: int = 0) -> Path:
        file = tmp_path / "workers.ini"
        keys = f"path = model\nhandler = handler\nworkers = {workers}\nspares = {spares}\n"
        file.write_text(f"[supervisor]\nrun_dir = run\n[model:a]\n{keys}")
        return file

    return write


@pytest.fixture
def loaded(written: Callable[..., Path]) -> Loaded:
    """Settings of a model of so many workers."""
    return lambda *arguments: load_settings(str(written(*arguments)))


def machine(folder: Path, *changes: dict[str, str]) -> str:
    """The root of a machine with these files."""
    files = dict(PLAIN)
    for each in changes:
        files |= each
    for name, text in files.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(folder / "root")


def by_name(found: tuple[Limit, ...], name: str, what: str = "") -> Limit:
    """The limit of this name."""
    (limit,) = (each for each in found if each.name == name and what in each.what)
    return limit


def broken(found: tuple[Limit, ...]) -> list[str]:
    """The names of those that do not hold."""
    return [each.name for each in found if not each.holds]


def test_a_machine_with_room(loaded: Loaded, tmp_path: Path) -> None:
    """Every limit is looked at, and holds."""
    found = read_limits(loaded(1000, 2), str(tmp_path / "run"), machine(tmp_path))
    assert broken(found) == []
    require_limits(found)
    assert [each.name for each in found] == [
        *("RLIMIT_NOFILE", "RLIMIT_NPROC", "kernel.pid_max", "kernel.threads-max", "pids.max"),
        *("MemAvailable", "run_dir", "run_dir"),
    ]
    assert by_name(found, "RLIMIT_NOFILE").needed == 1000 * 5 + 2 * 2 + 6 + 32
    assert by_name(found, "RLIMIT_NPROC").needed == 1000 + 2 + 3
    assert by_name(found, "kernel.threads-max").found == 200000 - 345
    assert by_name(found, "run_dir", "bytes").needed == 1000 * 8192
    assert by_name(found, "run_dir", "inodes").needed == 3004


def test_one_error_names_them_all(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limit, needed, found and what helps, for each that does not hold; one that holds is not named."""
    set_rlimits(monkeypatch, 500, 1 << 20)
    root = machine(tmp_path, {"proc/sys/kernel/threads-max": "400"})
    with pytest.raises(StartError) as caught:
        require_limits(read_limits(loaded(100), root=root))
    assert str(caught.value).splitlines() == [
        "the machine has no room for this:",
        "RLIMIT_NOFILE: 538 descriptors needed, 500 to be had; "
        "raise the hard limit (ulimit -Hn, LimitNOFILE=)",
        "kernel.threads-max: 103 processes needed, 55 to be had; "
        "raise it (sysctl kernel.threads-max)",
        "or run fewer workers; nothing was started",
    ]


def test_processes_of_the_user_count(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_NPROC is shared with all threads that the user has already, and with nobody else's."""
    set_rlimits(monkeypatch, 1 << 20, 50)
    root = machine(
        tmp_path,
        {"proc/10/status": "Uid:\t1000\t0\t0\t0\nThreads:\t30"},
        {"proc/11/status": "Uid:\t1001\t1000\t1000\t1000\nThreads:\t500"},
        {"proc/12/status": ""},
    )
    limit = by_name(read_limits(loaded(20), root=root), "RLIMIT_NPROC")
    assert (limit.needed, limit.found, limit.holds) == (23, 20, False)
    assert read_limits(loaded(17), root=root)[1].holds


@pytest.mark.parametrize("capabilities", ["0000000001000000", "0000000000200000"])
def test_who_is_above_the_limit_of_processes(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: str
) -> None:
    """CAP_SYS_RESOURCE and CAP_SYS_ADMIN are, and root."""
    set_rlimits(monkeypatch, 1 << 20, 1)
    root = machine(tmp_path, {"proc/self/status": f"CapEff:\t{capabilities}"})
    assert by_name(read_limits(loaded(20), root=root), "RLIMIT_NPROC").found is None
    monkeypatch.setattr(os, "getuid", lambda: 0)
    plain = machine(tmp_path)
    assert by_name(read_limits(loaded(20), root=plain), "RLIMIT_NPROC").found is None


def test_a_small_space_of_pids(loaded: Loaded, tmp_path: Path) -> None:
    """Those that are taken, as far as they are seen here, are not to be had."""
    taken = {f"proc/{pid}/status": "" for pid in range(1, 101)}
    root = machine(tmp_path, taken, {"proc/sys/kernel/pid_max": "400"})
    limit = by_name(read_limits(loaded(298), root=root), "kernel.pid_max")
    assert (limit.needed, limit.found) == (301, 300)
    assert not limit.holds


@pytest.mark.parametrize(
    ("changes", "folder"),
    [({"proc/self/cgroup": "0::/jobs/a"}, "sys/fs/cgroup"), (V1, "sys/fs/cgroup/pids")],
    ids=["v2", "v1"],
)
def test_control_groups(
    loaded: Loaded, tmp_path: Path, changes: dict[str, str], folder: str
) -> None:
    """The narrowest of the group and those above it goes, and is named by its file."""
    groups = {
        f"{folder}/jobs/a/pids.max": "max",
        f"{folder}/jobs/a/pids.current": "3",
        f"{folder}/jobs/pids.max": "64",
        f"{folder}/jobs/pids.current": "10",
    }
    found = read_limits(loaded(60), root=machine(tmp_path, changes, groups))
    limit = by_name(found, f"/{folder}/jobs/pids.max")
    assert (limit.needed, limit.found, limit.holds) == (63, 54, False)
    assert "--pids-limit" in str(limit)


def test_memory_for_full_fifos(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all FIFOs hold when they are full, and the scoreboard, against what is available."""
    monkeypatch.setattr(planning.os, "geteuid", lambda: 0)
    root = machine(tmp_path, {"proc/meminfo": "MemAvailable: 262144 kB"})
    limit = by_name(read_limits(loaded(1000), root=root), "MemAvailable")
    assert limit.needed == 2000 * 256 * 1024 + 1000 * 8192
    assert (limit.found, limit.holds) == (GIB // 4, False)


def test_what_cannot_be_read_is_no_limit(loaded: Loaded, tmp_path: Path) -> None:
    """A machine without /proc, or with nonsense in it, runs what it can."""
    settings = loaded(1000)
    for root in (
        str(tmp_path / "nowhere"),
        machine(tmp_path, dict.fromkeys(PLAIN, "what \x7f is\nthis: that")),
    ):
        found = read_limits(settings, root=root)
        assert broken(found) == []
        assert [each.name for each in found if each.found is not None] == [
            "RLIMIT_NOFILE",
            "RLIMIT_NPROC",
        ]


def test_a_run_directory_that_is_not_there_yet(loaded: Loaded, tmp_path: Path) -> None:
    """The file system is that of the folder it will be made in."""
    found = read_limits(loaded(1), str(tmp_path / "a" / "b"), machine(tmp_path))
    room = os.statvfs(tmp_path)
    assert by_name(found, "run_dir", "bytes").found == pytest.approx(
        room.f_bavail * room.f_frsize, rel=0.1
    )


def test_check_and_plan_say_it_too(
    written: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The file is right, and both go on; but start would fail here."""
    set_rlimits(monkeypatch, 500, 1 << 20)
    file = str(written(100))
    assert main(["check", "-c", file]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "# OK"
    assert said[-2].startswith(
        "# start would fail here: RLIMIT_NOFILE: 538 descriptors needed, 500"
    )
    assert main(["plan", "-c", file]) == 0
    below = capsys.readouterr().out.partition("\nLimits\n")[2]
    assert "RLIMIT_NOFILE: 538 descriptors needed, 500 to be had: start would fail here;" in below
    assert main(["plan", "--json", "-c", file]) == 0
    assert '"name":"RLIMIT_NOFILE","what":"descriptors","needed":538,"found":500' in (
        capsys.readouterr().out
    )


def test_the_soft_limit_is_raised(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what is needed and good to have, as far as it may be; one that is high enough is left alone."""
    set_: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda *arguments: set_.append(arguments))
    limits.claim_descriptors(loaded(100))
    assert set_ == [(resource.RLIMIT_NOFILE, (538 + 64 + 8, 1 << 20))]
    limits.claim_descriptors(loaded(5))
    assert len(set_) == 1
    set_rlimits(monkeypatch, 540, 1 << 20)
    limits.claim_descriptors(loaded(100))
    assert set_[1:] == [(resource.RLIMIT_NOFILE, (540, 540))]


def test_templates_need_descriptors_too(loaded: Loaded, tmp_path: Path) -> None:
    """A hundred models of one worker: each template has as many as a worker, and one more."""
    one = loaded(1)
    many = msgspec.structs.replace(one, models=one.models * 100)
    limit = by_name(read_limits(many, root=machine(tmp_path)), "RLIMIT_NOFILE")
    assert limit.needed == 100 * (5 + 6) + 32


def test_a_file_system_without_bounds(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ramfs, and a tmpfs of size 0, count no blocks and no inodes: that is no lack of them."""
    unbounded = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: unbounded)
    found = read_limits(loaded(8), str(tmp_path / "run"), machine(tmp_path))
    assert [each.found for each in found if each.name == "run_dir"] == [None, None]


def test_what_a_killed_supervisor_left_is_room(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are removed before ours are made: a file system that had room for it has room for its successor."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "scoreboard").write_bytes(b"x" * 8192)
    for number in range(6):
        (run_dir / f"a.{number}.sock").touch()
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 100, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    found = read_limits(loaded(1), str(run_dir), machine(tmp_path))
    assert by_name(found, "run_dir", "bytes").found == 8192
    assert by_name(found, "run_dir", "inodes").found == 7
    assert broken(found) == []


def test_a_control_group_that_is_not_to_be_seen(loaded: Loaded, tmp_path: Path) -> None:
    """What is mounted here is another's: nothing is taken from that."""
    other = {
        "proc/self/cgroup": "0::/../elsewhere",
        "sys/fs/cgroup/pids.max": "10",
        "sys/fs/cgroup/pids.current": "10",
    }
    found = read_limits(loaded(60), root=machine(tmp_path, other))
    assert by_name(found, "pids.max").found is None
