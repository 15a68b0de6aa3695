"""The main job on real input, as a user does it from the command line; fails on anything.

    python tools/main_job.py .venv/bin/modelsupervisor

Start conf/workers.ini, predict every shipped digit and compare with its label, kill a worker, predict again at once, stop; then no
process of ours and no file but the lock may be left, and the log must hold the one death and no other error. Standard library only:
it knows the program by its commands alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "conf/workers.ini"
SAMPLES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "models/digits/samples").glob("*.png")
)
LABELS = json.loads((ROOT / "models/digits/samples/labels.json").read_text(encoding="utf-8"))
LIMIT = 120.0  # seconds for each step; some hundred times what is seen


class JobFailed(Exception):
    """The program did not do what it is for."""


def check(fact: bool, said: str) -> None:
    """Raise JobFailed where the fact does not hold."""
    if not fact:
        raise JobFailed(said)


def command(program: str, *arguments: str) -> str:
    """The output of a command that has to exit 0."""
    print("$ modelsupervisor", *arguments, flush=True)
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=LIMIT, check=False
    )
    check(done.returncode == 0, f"exit code {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def predict_all(program: str) -> None:
    """Predict every sample; each label has to be right."""
    output = command(program, "predict", "-c", CONFIG, "digits", *SAMPLES)
    print(output, end="", flush=True)
    answers = {
        Path(line.split("\t")[0]).name: int(line.split("\t")[1]) for line in output.splitlines()
    }
    check(answers == LABELS, f"expected {LABELS}")


def wait_for_event(log: Path, supervisor: subprocess.Popen[bytes], **match: Any) -> dict[str, Any]:
    """The first event of the log with these fields."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        text = log.read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].splitlines():
            event: dict[str, Any] = json.loads(line)
            if all(event.get(key) == value for key, value in match.items()):
                return event
        check(supervisor.poll() is None, f"the supervisor ended while we waited for {match}")
        time.sleep(0.02)
    raise JobFailed(f"no event {match} within {LIMIT} s")


def workers(program: str) -> list[dict[str, Any]]:
    """The workers in the status."""
    status = json.loads(command(program, "status", "-c", CONFIG, "--json"))
    found: list[dict[str, Any]] = status["models"][0]["workers"]
    return found


def ours(session_mark: str) -> list[str]:
    """Every process that carries our mark in its environment, whoever its parent is by now."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path("/proc", name, "environ").read_bytes()
        except OSError:
            continue
        if session_mark.encode() in environ and int(name) != os.getpid():
            found.append(name)
    return found


def run(program: str, log: Path, mark: str) -> None:
    """The story."""
    environ = {**os.environ, "MODELSUPERVISOR_JOB": mark}
    print("$ modelsupervisor start -c", CONFIG, "&", flush=True)
    with log.open("wb") as output:
        supervisor = subprocess.Popen(
            [program, "start", "-c", CONFIG],
            stdin=subprocess.DEVNULL,
            stdout=output,
            cwd=ROOT,
            env=environ,
        )
    try:
        wait_for_event(log, supervisor, event="supervisor.ready")
        predict_all(program)
        victim = workers(program)[0]["pid"]
        print("$ kill -9", victim, flush=True)
        os.kill(victim, signal.SIGKILL)
        predict_all(program)
        exited = wait_for_event(log, supervisor, event="worker.exited", pid=victim)
        check(exited["signal"] == "SIGKILL", f"the death of {victim} was not told: {exited}")
        ready = wait_for_event(log, supervisor, event="worker.ready", worker=0, generation=2)
        check(
            [each["phase"] for each in workers(program)] == ["READY", "READY"],
            "a worker is not READY",
        )
        check(workers(program)[0]["pid"] == ready["pid"], "the successor is not in its place")
        command(program, "stop", "-c", CONFIG)
        check(supervisor.wait(LIMIT) == 0, f"start exited with {supervisor.returncode}")
    finally:
        if supervisor.poll() is None:
            supervisor.kill()
            supervisor.wait()
    check(ours(mark) == [], f"processes are left: {ours(mark)}")
    left = os.listdir(ROOT / "run")
    check(left == ["lock"], f"files are left: {left}")
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    errors = [event for event in events if event["level"] == "error" and event.get("pid") != victim]
    check(errors == [], f"the log has errors: {errors}")


def main(program: str) -> int:
    """Run it; 0 where all of it held."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.jsonl")
        try:
            run(os.path.abspath(program), log, f"job-{os.getpid()}-{time.time_ns()}")
        except (JobFailed, subprocess.TimeoutExpired) as failure:
            print(
                f"main job failed: {failure}\n--- the supervisor's log ---\n{log.read_text(encoding='utf-8')}",
                file=sys.stderr,
            )
            return 1
    print("main job: done, nothing left")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
