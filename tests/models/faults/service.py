"""A handler that does what it is told, good or bad: the faults of the process tests are asked for through the model.

A request is JSON: {"do": NAME, …}; anything else is echoed. At load it looks at the environment variable FAULT_AT_LOAD and at the
file named by FAULT_FILE, so that a fault can be mended while the supervisor runs.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time


def _meet(fault):
    """Carry out one fault."""
    name = fault.get("do")
    if name == "kill":
        os.kill(os.getpid(), fault.get("signal", signal.SIGKILL))
        time.sleep(1000)  # until it arrives
    elif name == "exit":
        os._exit(fault.get("code", 3))
    elif name == "sys_exit":
        sys.exit(fault.get("code", 4))
    elif name == "segfault":
        ctypes.string_at(0)
    elif name == "raise":
        raise ValueError(fault.get("text", "the handler was told to fail"))
    elif name == "memory":
        raise MemoryError
    elif name == "sleep":
        time.sleep(fault.get("seconds", 1000))
    elif name == "busy_in_c":
        # Holds the GIL in C for ever: PyDLL does not release it.
        ctypes.PyDLL(None).pause() if fault.get("quiet") else ctypes.PyDLL(None).sleep(100000)
    elif name == "ignore_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif name == "print":
        for number in range(fault.get("lines", 1)):
            print(fault.get("text", "line"), number, file=getattr(sys, fault.get("stream", "stdout")))
    elif name == "write":
        os.write(fault.get("fd", 1), fault["text"].encode("latin-1"))
    elif name == "helper":
        return str(_helper(fault))
    elif name == "facts":
        return json.dumps(_facts())
    return None


def _helper(fault):
    """Start a helper process and leave it alone; returns its pid."""
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(1000)"],
        start_new_session=fault.get("session", False),
    ).pid


def _facts():
    with open("/proc/self/status", encoding="ascii") as status:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "sid": os.getsid(0),
        "pgid": os.getpgid(0),
        "status": lines,
        "fds": {fd: _target(fd) for fd in os.listdir("/proc/self/fd")},
        "affinity": sorted(os.sched_getaffinity(0)),
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "path": sys.path,
        "random": __import__("random").random(),
    }


def _target(fd):
    try:
        return os.readlink("/proc/self/fd/" + fd)
    except OSError:
        return None


class Faults:
    def initialize(self, context):
        print("loading faults in", os.getpid())
        path = os.environ.get("FAULT_FILE")
        fault = os.environ.get("FAULT_AT_LOAD", "{}")
        if path and os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                fault = file.read() or "{}"
        _meet(json.loads(fault))

    def after_fork(self, context):
        fault = os.environ.get("FAULT_AFTER_FORK")
        if fault:
            _meet(json.loads(fault))

    def handle(self, data, context):
        answers = []
        for request in data:
            body = request.get("body")
            if isinstance(body, dict) and "do" in body:
                said = _meet(body)
                answers.append("done" if said is None else said)
            else:
                answers.append(body)
        return answers
