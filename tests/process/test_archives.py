"""Models that come as archives, under a real supervisor: start, prediction, restart, sharing, and what is left of it all."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from modelworker.wire import LoadCommand, LoadResponse, ResponseReader, encode_load
from modelworker.zipindex import MOST_MEMBERS

from support.archives import SERVICE, archive_of, model_archive, packed, replaced
from support.faults import crash, echo, ready, template_pid
from support.instance import LIMIT, ROOT, Instance, wait_for
from support.unprivileged import NOBODY, launch_as_nobody

Make = Callable[..., Instance]


def _unpacked(cache: Path) -> list[str]:
    return sorted(os.listdir(cache)) if cache.exists() else []


def _restart(instance: Instance, target: str) -> subprocess.CompletedProcess[str]:
    return instance.cli("restart", target, "-c", str(instance.config))


def _archive(instance: Instance, content: bytes, name: str = "m.mar") -> Path:
    """Write an archive beside the configuration, as a deployment does: aside, then renamed."""
    aside = instance.folder / "aside"
    aside.write_bytes(content)
    return aside.rename(instance.folder / name)


def _section(instance: Instance, archive: Path, name: str = "echo", **keys: object) -> str:
    """A model's section without a handler: the manifest names it."""
    lines = [f"{key} = {value}" for key, value in keys.items()]
    return "\n".join([f"[model:{name}]", f"path = {archive}", *lines, ""])


def _load(instance: Instance, path: str) -> LoadResponse:
    """A worker's answer to MMS's `L`."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(LIMIT)
        peer.connect(str(instance.socket()))
        peer.sendall(encode_load(LoadCommand("echo", path, 1, "service", -1, "fd")))
        reader = ResponseReader()
        while (answer := reader.next_load_response()) is None:
            reader.feed(peer.recv(4096))
        return answer


def test_a_model_from_an_archive(instance: Make) -> None:
    """The model `faults`, packed: it starts, answers, crashes, is replaced, and leaves nothing; its folder is private."""
    made = instance("worker.exited")
    archive = _archive(made, archive_of(ROOT / "tests" / "models" / "faults", "service"))
    made.write(_section(made, archive, workers=2))
    checked = made.cli("check", "-c", str(made.config)).stdout
    assert f"# model cache: {made.run_dir}/models" in checked
    assert not made.run_dir.exists()
    made.start()
    assert echo(made) == b"are you there"
    crash(made, "kill")
    ready(made, 2)
    assert [echo(made, index=index) for index in (0, 1)] == [b"are you there"] * 2
    event = made.wait_event("template.ready")
    cache = made.run_dir / "models"
    assert _unpacked(cache) == [event["archive_sha256"]]
    assert event["unpack_s"] > 0
    folder = cache / event["archive_sha256"]
    assert os.readlink(f"/proc/{template_pid(made)}/cwd") == str(folder)
    for path in (cache, folder, folder / "service.py"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    assert made.stop() == 0
    assert not cache.exists()


def test_the_model_path_of_the_protocol(instance: Make) -> None:
    """A front end may name the archive, which it knows, or the folder; another archive is another model."""
    made = instance()
    archive = _archive(made, model_archive("x"))
    made.write(_section(made, archive))
    made.start()
    folder = made.run_dir / "models" / made.wait_event("template.ready")["archive_sha256"]
    assert _load(made, str(archive)).code == 200
    assert _load(made, str(folder)).code == 200
    refused = _load(made, str(made.folder / "other.mar"))
    assert refused.code == 409
    assert str(folder) in refused.message


def test_restart_after_the_archive_changed(instance: Make) -> None:
    """New contents, new extraction; the old one goes with the last worker that used it, while the supervisor runs."""
    made = instance()
    archive = _archive(made, model_archive("old"))
    made.write(_section(made, archive, workers=2))
    made.start()
    assert echo(made) == b"old"
    old = _unpacked(made.run_dir / "models")
    _archive(made, model_archive("new"))
    assert echo(made) == b"old"
    assert _restart(made, "echo").returncode == 0
    assert [echo(made, index=index) for index in (0, 1)] == [b"new", b"new"]
    new = [made.wait_event("template.ready", generation=2)["archive_sha256"]]
    assert new != old
    wait_for(lambda: _unpacked(made.run_dir / "models") == new, "the old extraction to be gone")
    assert _restart(made, "echo").returncode == 0
    again = made.wait_event("template.ready", generation=3)
    assert again["archive_sha256"] == new[0]
    assert "unpack_s" not in again
    assert _unpacked(made.run_dir / "models") == new


def test_restart_with_a_bad_archive_leaves_the_old_one_serving(instance: Make) -> None:
    """The reason names the archive and the member; the workers, and the folder that they use, stay."""
    made = instance("template.exited", "restart.failed")
    archive = _archive(made, model_archive("old"))
    made.write(_section(made, archive))
    made.start()
    before = _unpacked(made.run_dir / "models")
    _archive(made, replaced(model_archive("new"), b"service.py", b"../../x.py", 2))
    failed = made.cli("restart", "echo", "--run-dir", str(made.run_dir))
    assert failed.returncode == 1
    reason = made.wait_event("template.exited")["reason"]
    assert f"archive {archive}: the name of the member '../../x.py' leads out of" in reason
    assert echo(made) == b"old"
    assert _unpacked(made.run_dir / "models") == before
    assert not (made.run_dir / "x.py").exists()


def test_two_models_share_an_archive(instance: Make) -> None:
    """One extraction for both; each goes on with it when the other is replaced."""
    made = instance()
    archive = _archive(made, model_archive("one"))
    made.write(_section(made, archive, "echo") + _section(made, archive, "other"))
    made.start()
    ready_events = made.events("template.ready")
    assert len({event["archive_sha256"] for event in ready_events}) == 1
    assert len([event for event in ready_events if "unpack_s" in event]) == 1
    assert len(_unpacked(made.run_dir / "models")) == 1
    _archive(made, model_archive("two"))
    assert _restart(made, "other").returncode == 0
    assert echo(made) == b"one"
    assert len(_unpacked(made.run_dir / "models")) == 2


def test_two_supervisors_share_a_cache(instance: Make, short_tmp: Path) -> None:
    """`model_cache`: one extraction, which stays until both are gone."""
    cache = short_tmp / "cache"
    first, second = instance(), instance()
    for made in (first, second):
        archive = _archive(made, model_archive("x"))
        made.write(_section(made, archive), f"model_cache = {cache}")
        made.launch()
    for made in (first, second):
        made.wait_event("supervisor.ready")
    assert len(_unpacked(cache)) == 1
    assert first.stop() == 0
    assert len(_unpacked(cache)) == 1
    crashed = second.worker()["pid"]
    assert _restart(second, "echo/0").returncode == 0
    assert second.worker()["pid"] != crashed
    assert echo(second) == b"x"
    assert second.stop() == 0
    assert cache.exists()
    assert _unpacked(cache) == []


def test_what_a_killed_supervisor_left_is_swept(instance: Make) -> None:
    """kill -9 leaves an extraction; the next start with another archive removes it."""
    made = instance()
    archive = _archive(made, model_archive("old"))
    made.write(_section(made, archive))
    made.start()
    old = _unpacked(made.run_dir / "models")
    made.signal(signal.SIGKILL)
    made.wait()
    assert _unpacked(made.run_dir / "models") == old
    _archive(made, model_archive("new"))
    made.start()
    assert echo(made) == b"new"
    new = _unpacked(made.run_dir / "models")
    assert len(new) == 1
    assert new != old


def _slow_archive() -> bytes:
    """As many members as there may be: a second of unpacking, which a signal may interrupt."""
    many: dict[str, bytes | str] = {f"{number}/x": b"" for number in range(MOST_MEMBERS - 1)}
    return packed({"service.py": SERVICE % "x", **many})


def test_a_signal_while_it_unpacks(instance: Make) -> None:
    """The supervisor obeys at once, and the half goes with the template."""
    made = instance()
    archive = _archive(made, _slow_archive())
    made.write(_section(made, archive, handler="service"))
    made.launch()
    cache = made.run_dir / "models"
    wait_for(lambda: any(n.endswith(".part") for n in _unpacked(cache)), "half an extraction")
    assert made.stop(5.0) == 0
    assert not cache.exists()


def test_unpacking_is_within_the_deadline_of_the_load(instance: Make) -> None:
    """An extraction that somebody else never finishes is a load that hangs: `startup_timeout` ends the wait."""
    made = instance("template.exited", "supervisor.start_failed")
    archive = _archive(made, model_archive("x"))
    made.write(_section(made, archive, startup_timeout="500ms"))
    cache = made.run_dir / "models"
    made.run_dir.mkdir(mode=0o700)
    cache.mkdir(mode=0o700)
    code = "import fcntl, os, sys; fd = os.open(sys.argv[1], 0); fcntl.flock(fd, 2); print(flush=True); sys.stdin.read()"
    line = [sys.executable, "-c", code, str(cache)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        made.launch()
        assert made.wait() == 1
        other.communicate()
    assert made.wait_event("template.exited")["cause"] == "start_timeout"


def test_damage_that_only_unpacking_shows(instance: Make) -> None:
    """The index is sound and a member is not: the start fails with the reason and the line of the model."""
    made = instance("template.exited", "supervisor.start_failed")
    weights = b"0123456789abcdef"
    archive = packed({"service.py": SERVICE % "x", "w": weights}, 0)
    _archive(made, replaced(archive, weights, weights[::-1], 1))
    made.write(_section(made, made.folder / "m.mar", handler="service"))
    assert made.cli("check", "-c", str(made.config)).returncode == 0
    made.launch()
    assert made.wait() == 1
    exited = made.wait_event("template.exited")
    assert "m.mar: the member 'w' is damaged" in exited["reason"]
    assert exited["config"] == "workers.ini:5 [model:echo]"


def test_a_cache_that_others_can_enter_is_refused(instance: Make) -> None:
    """Exit 78 before anything is loaded; the folder is named, and left alone."""
    made = instance()
    cache = made.folder / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    made.write(_section(made, _archive(made, model_archive("x"))), f"model_cache = {cache}")
    made.launch()
    assert made.wait() == 78
    assert "has mode 0777" in (made.folder / "stderr").read_text()
    assert "set model_cache in [supervisor]" in (made.folder / "stderr").read_text()
    assert _unpacked(cache) == []


def test_the_cache_of_systemd(instance: Make) -> None:
    """CacheDirectory= is open to read for all by default: ours is a private folder in it."""
    made = instance()
    made.write(_section(made, _archive(made, model_archive("x"))))
    given = made.folder / "given"
    given.mkdir(mode=0o755)
    made.start(CACHE_DIRECTORY=str(given))
    assert len(_unpacked(given / "models")) == 1
    assert stat.S_IMODE((given / "models").stat().st_mode) == 0o700
    assert made.stop() == 0
    assert _unpacked(given) == ["models"]
    assert _unpacked(given / "models") == []


def test_nobody_runs_an_archive(instance: Make) -> None:
    """An unprivileged user: unpack, predict, restart with another, stop; nothing is left."""
    made = instance()
    archive = _archive(made, model_archive("old"))
    made.write(_section(made, archive))
    launch_as_nobody(made).wait_event("supervisor.ready")
    (digest,) = _unpacked(made.run_dir / "models")
    assert (made.run_dir / "models" / digest).stat().st_uid == NOBODY
    _archive(made, model_archive("new"))
    assert _restart(made, "echo").returncode == 0
    assert echo(made) == b"new"
    wait_for(lambda: digest not in _unpacked(made.run_dir / "models"), "the old one to be gone")
    assert made.stop() == 0
