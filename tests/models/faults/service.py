"""A handler that does what it is told, good or bad: the faults of the process tests are asked for through the model.

A request is JSON: {"do": NAME, …}; anything else is echoed. At load it looks at the environment variable FAULT_AT_LOAD and at the
file named by FAULT_FILE, so that a fault can be mended while the supervisor runs; after the fork at FAULT_AFTER_FORK and the file
named by FAULT_AFTER_FORK_FILE.
"""

import ctypes
import faulthandler
import json
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

_HELD = []  # memory that is never given back


def _meet(fault, context=None):
    """Carry out one fault, where it is meant for this worker: one with a `slot` is for that one alone."""
    if "slot" in fault and not os.readlink("/proc/self/fd/1").endswith(f".{fault['slot']}.stdout"):
        return None
    name = fault.get("do")
    if name in _WORDS:
        return _WORDS[name](fault)
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
    elif name == "all":
        return [_meet(each, context) for each in fault["of"]][-1]
    elif name == "no_forks":
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # not for root
    elif name == "open":
        os.open(fault["path"], os.O_RDONLY)  # and never closed
    elif name == "thread_at_fork":
        os.register_at_fork(after_in_child=_start_thread)
    elif name == "stop_at_fork":
        os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGSTOP))
    elif name == "close_all":
        os.closerange(3, 4096)
    elif name == "babble":
        _babble(fault["messages"])
    elif name == "helper":
        return str(_helper(fault))
    elif name == "facts":
        return json.dumps(_facts())
    elif name == "metrics":
        _record(context.metrics)
    elif name == "hold":
        _HELD.append(b"\1" * fault["bytes"])
    elif name == "wait_for_file":
        _wait_for_file(fault["path"])
    return None


def _wait_for_file(path):
    while not os.path.exists(path):
        time.sleep(0.002)


def _record(metrics):
    metrics.add_counter("Pictures", 2, 0)
    metrics.add_time("Looking", 12.5, 0)
    metrics.add_percent("Certainty", 99.5, 0)


# -- output -----------------------------------------------------------------------------------------------------------
# None of these flushes what it was not told to: what a library's author forgets is what is tested.


def _print(fault):
    stream = getattr(sys, fault.get("stream", "stdout"))
    for number in range(fault.get("lines", 1)):
        print(fault.get("text", "line"), number, file=stream)
    if "rest" in fault:
        print(fault["rest"], end="", file=stream, flush=True)


def _printf(fault):
    libc = ctypes.CDLL(None)
    for number in range(fault.get("lines", 1)):
        libc.printf(b"from C %d\n", number)
    if "rest" in fault:
        libc.printf(b"%s", fault["rest"].encode())
        libc.fflush(None)


def _write(fault):
    _write_all(fault.get("fd", 1), fault["text"].encode("latin-1"))


def _write_all(fd, content):
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def _copy(fault):
    """The content of a file, as it is, to a descriptor."""
    with open(fault["path"], "rb") as file:
        while chunk := file.read(fault.get("chunk", 65536)):
            _write_all(fault.get("fd", 1), chunk)


def _flood(fault):
    """Write a text to each descriptor in turn, without end; `texts` is of pairs."""
    while True:
        for fd, text in fault["texts"]:
            _write_all(fd, text.encode())


def _log(fault):
    logging.basicConfig()
    try:
        if fault["level"] == "EXCEPTION":
            raise KeyError(fault["text"])
        logging.getLogger("net.layer").log(getattr(logging, fault["level"]), fault["text"])
    except KeyError:
        logging.getLogger("net.layer").exception("could not look")


def _raise_in_thread(fault):
    def fail():
        try:
            raise KeyError("cat")
        except KeyError as error:
            raise ValueError("no such animal") from error

    thread = threading.Thread(target=fail, name="watcher")
    thread.start()
    thread.join()


def _speak_later(fault):
    """Print a line when a file is there, and no request is in hand any more."""

    def speak():
        _wait_for_file(fault["path"])
        print(fault["text"])

    threading.Thread(target=speak, daemon=True).start()


def _die_soon(fault):
    """Be dead some `seconds` from now, whatever this process does then."""
    threading.Timer(fault.get("seconds", 0.01), os._exit, [7]).start()


def _chatter(fault):
    """Begin to print numbered lines from a thread: `pause` seconds between two of them, until the process ends."""

    def speak():
        number = 0
        while True:
            print("chatter", number)
            number += 1
            time.sleep(fault.get("pause", 0.001))

    threading.Thread(target=speak, daemon=True).start()


_NUMBERED_LINES = """
import os, sys
number = 0
while True:  # a write of at most 4096 bytes (PIPE_BUF) goes into a pipe whole, or not at all
    block = "".join("%s %020d\\n" % (sys.argv[1], n) for n in range(number, number + 30))
    os.write(1, block.encode())
    number += 30
"""


def _writing_helper(fault):
    """Start a process that writes numbered lines to stdout without end; returns its pid."""
    command = [sys.executable, "-S", "-E", "-c", _NUMBERED_LINES, fault["text"]]
    return str(subprocess.Popen(command, start_new_session=fault["session"]).pid)


# -- hangs ------------------------------------------------------------------------------------------------------------


def _spin(fault):
    while True:
        pass


def _grind(fault):
    """Hours in one operation of the interpreter, which holds it all the while."""
    return str(pow(3, 10**10) % 7)


def _livelock(fault):
    """Two threads that each take one lock, find the other taken, and give way to each other for ever."""
    locks = threading.Lock(), threading.Lock()

    def give_way(mine, other):
        mine.acquire()
        while True:
            if other.acquire(timeout=0.001):
                other.release()
            mine.release()
            mine.acquire()

    threading.Thread(target=give_way, args=locks, daemon=True).start()
    give_way(*reversed(locks))


def _hold_interpreter(fault):
    """When a file is there, and no request is in hand any more: a thread waits in C and keeps the interpreter."""

    def hold():
        _wait_for_file(fault["path"])
        ctypes.PyDLL(None).sleep(100000)

    threading.Thread(target=hold, daemon=True).start()


def _say_nothing(fault):
    """Have no last words: no handler for SIGABRT but one that does nothing, and no stderr."""
    faulthandler.disable()
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
    os.close(2)


# -- CPUs and memory --------------------------------------------------------------------------------------------------


def _stray(fault):
    """Move this thread, or a new one that stays, to these CPUs."""
    if not fault.get("thread"):
        os.sched_setaffinity(0, fault["cpus"])
        return
    moved = threading.Event()

    def stray():
        os.sched_setaffinity(0, fault["cpus"])
        moved.set()
        time.sleep(1000)

    threading.Thread(target=stray, daemon=True).start()
    moved.wait()


def _openmp(fault):
    """Load the OpenMP runtime and have it compute with so many threads, where a number is given."""
    runtime = ctypes.CDLL("libgomp.so.1")
    if "threads" in fault:
        runtime.omp_set_num_threads(fault["threads"])


def _fill(fault):
    """Fill the memory with small objects up to a limit that is `room` bytes above what is mapped now, and keep it."""
    if "room" in fault:
        with open("/proc/self/statm", encoding="ascii") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (mapped + fault["room"], hard))
    kept = []
    while True:
        kept.append(bytearray(fault.get("piece", 4096)))


def _abort(fault):
    resource.setrlimit(resource.RLIMIT_AS, (fault["limit"], resource.RLIM_INFINITY))
    os.abort()


_WORDS = {
    "spin": _spin,
    "grind": _grind,
    "livelock": _livelock,
    "hold_interpreter": _hold_interpreter,
    "say_nothing": _say_nothing,
    "stray": _stray,
    "openmp": _openmp,
    "fill": _fill,
    "abort": _abort,
    "print": _print,
    "printf": _printf,
    "write": _write,
    "copy": _copy,
    "flood": _flood,
    "unblock_stdout": lambda fault: os.set_blocking(1, False),
    "log": _log,
    "raise_in_thread": _raise_in_thread,
    "speak_later": _speak_later,
    "chatter": _chatter,
    "die_soon": _die_soon,
    "writing_helper": _writing_helper,
}


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
                said = _meet(body, context)
                answers.append("done" if said is None else said)
            else:
                answers.append(body)
        return answers
