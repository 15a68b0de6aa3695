"""A handler that does what it is told, good or bad: the faults of the process tests are asked for through the model.

A request is JSON: {"do": NAME, …}; anything else is echoed. At load it looks at the environment variable FAULT_AT_LOAD and at the
file named by FAULT_FILE, so that a fault can be mended while the supervisor runs; after the fork at FAULT_AFTER_FORK and the file
named by FAULT_AFTER_FORK_FILE.
"""

import ctypes
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
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
    elif name == "sour_signals":  # as a library might, in Python and in C
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, lambda number, frame: None)
        ctypes.CDLL(None).signal(int(signal.SIGHUP), ctypes.c_void_p(1))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    elif name == "print":
        for number in range(fault.get("lines", 1)):
            print(
                fault.get("text", "line"), number, file=getattr(sys, fault.get("stream", "stdout"))
            )
    elif name == "write":
        left = fault["text"].encode("latin-1")
        while left:
            left = left[os.write(fault.get("fd", 1), left) :]
    elif name == "unblock_stdout":
        os.set_blocking(1, False)
    elif name == "printf":
        for number in range(fault.get("lines", 1)):
            ctypes.CDLL(None).printf(b"from C %d\n", number)
    elif name == "all":
        return [_meet(each) for each in fault["of"]][-1]
    elif name == "no_forks":
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # not for root
    elif name == "open":
        os.open(fault["path"], os.O_RDONLY)  # and never closed
    elif name == "thread_at_fork":
        os.register_at_fork(after_in_child=_start_thread)
    elif name == "close_all":
        os.closerange(3, 4096)
    elif name == "babble":
        _babble(fault["messages"])
    elif name == "helper":
        return str(_helper(fault))
    elif name == "facts":
        return json.dumps(_facts())
    return None


def _start_thread():
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def _babble(messages):
    """Send these (latin-1) to the supervisor over the worker's own channel."""
    for number in os.listdir("/proc/self/fd"):
        try:
            channel = socket.socket(fileno=os.dup(int(number)))
        except OSError:
            continue  # not a socket, or the listing's own
        with channel:
            if channel.type == socket.SOCK_SEQPACKET:
                for message in messages:
                    channel.send(message.encode("latin-1"))


def _helper(fault):
    """Start a helper process and leave it alone; returns its pid."""
    if fault.get("orphaned"):  # its own parent, a shell, is gone at once
        return int(subprocess.check_output(["sh", "-c", "sleep 1000 >&- 2>&- & echo $!"]))
    return subprocess.Popen(["sleep", "1000"], start_new_session=fault.get("session", False)).pid


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
        "affinity": {
            task: sorted(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task")
        },
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "path": sys.path,
        "random": random.random(),
        "blocking": [os.get_blocking(number) for number in (0, 1, 2)],
    }


def _told(variable, file):
    """The fault that a variable holds, or the file that another one names, where that exists."""
    path = os.environ.get(file)
    if path and os.path.exists(path):
        with open(path, encoding="utf-8") as stream:
            return json.loads(stream.read() or "{}")
    return json.loads(os.environ.get(variable) or "{}")


def _target(fd):
    try:
        return os.readlink("/proc/self/fd/" + fd)
    except OSError:
        return None


class Faults:
    def initialize(self, context):
        print("loading faults in", os.getpid())
        _meet(_told("FAULT_AT_LOAD", "FAULT_FILE"))

    def after_fork(self, context):
        _meet(_told("FAULT_AFTER_FORK", "FAULT_AFTER_FORK_FILE"))

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
