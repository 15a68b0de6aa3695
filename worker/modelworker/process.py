"""What a process of ours does to itself at its start: death signal, session, signals, buffers, CPUs, title.

Shared by the template (after exec) and by the worker (after the fork). The order matters and is the caller's; each step's reason
stands with it. Only calls that this needs are made through ctypes; what is missing on an older kernel or C library is skipped
where the guarantee has a second line of defence, and raised where it has none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import socket
import struct
import sys
import time
from typing import Iterable, List, NoReturn, Optional, Tuple

PR_SET_PDEATHSIG = 1  # prctl(2)
_PEER_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_IOLBF = 1  # setvbuf(3), glibc and musl alike
_PROT_READ_WRITE = 0x1 | 0x2  # mmap(2)
_MAP_SHARED = 0x1
_MAP_FAILED = ctypes.c_void_p(-1).value
_FOREVER_IGNORED = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
_UNTOUCHABLE = {signal.SIGKILL, signal.SIGSTOP}
_FAULTS = {signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGBUS, signal.SIGILL}


class Orphaned(Exception):
    """The supervisor is not our parent, or not any more."""


def die_with_parent(libc: ctypes.CDLL, supervisor: int) -> None:
    """Have the kernel kill this process when the supervisor dies, however busy it is in C.

    The signal is bound to the parent at the time of *its* death, so this comes after the reparenting; and the parent may have died
    before the call, so it is looked at again afterwards [measured: set before the reparenting, it kills the worker at it].
    """
    if libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != supervisor:
        raise Orphaned("parent is %d, not the supervisor %d" % (os.getppid(), supervisor))


def await_reparenting(intermediate: int, supervisor: int, limit: float = 10.0) -> None:
    """Return when the intermediate process is gone and the supervisor, a subreaper, is the parent.

    The intermediate exits right after its fork, so a few turns of giving the processor away are enough on a quiet machine; the
    bound is for a busy one.
    """
    deadline = time.monotonic() + limit
    turns = 0
    while True:
        parent = os.getppid()
        if parent == supervisor:
            return
        if parent != intermediate or time.monotonic() > deadline:
            raise Orphaned("parent became %d, not the supervisor %d" % (parent, supervisor))
        turns += 1
        if turns < 50:
            os.sched_yield()
        else:
            time.sleep(0.0002)


def default_signals() -> None:
    """Signals unblocked and default, except the two that CPython ignores by itself.

    With SIGPIPE at its default a client that leaves kills the worker [measured]. SIGINT goes back to its default as well: Ctrl-C
    is for the supervisor, and a KeyboardInterrupt inside a handler is nobody's wish.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - _UNTOUCHABLE:
        wanted = signal.SIG_IGN if number in _FOREVER_IGNORED else signal.SIG_DFL
        known = signal.getsignal(number)
        if number in _FAULTS and known is wanted:
            continue  # default as far as Python knows: faulthandler's by now, or a framework's own
        try:
            # Also where Python knows nothing else: a library may have set it in C while it was loaded.
            signal.signal(number, wanted)
        except (OSError, ValueError):
            continue  # reserved by the C library
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def limit_core_files() -> None:
    """No core files: a worker with a large model that dies in a loop would fill the disk with them."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def line_buffer(libc: ctypes.CDLL) -> None:
    """Line-buffer Python's and C's stdout, so that SIGKILL takes no finished line along.

    Measured: C stdio on a pipe loses 100 of 100 lines otherwise, Python its last 8 KiB. Must run before anything was printed
    through C's stdout.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        stdout = ctypes.c_void_p.in_dll(libc, "stdout")
    except ValueError:
        return  # a C library without the symbol: C output stays block-buffered
    libc.setvbuf(stdout, None, _IOLBF, ctypes.c_size_t(0))


def pin(cpus: Optional[Iterable[int]]) -> List[int]:
    """Bind every thread of this process to the CPUs; None leaves them. Returns the main thread's CPUs as they are then.

    Every thread, since a framework's own fork handlers start threads before Python runs in the child: those carry the template's
    mask. Where some of the CPUs are offline, or not in the cpuset any more, the kernel leaves them out; where all are it says
    EINVAL, and OSError is raised that says which.
    """
    if cpus is not None:
        wanted = set(cpus)
        for task in os.listdir("/proc/self/task"):
            try:
                os.sched_setaffinity(int(task), wanted)
            except ProcessLookupError:
                continue
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                listed = ", ".join(str(cpu) for cpu in sorted(wanted))
                said = "none of the planned CPUs (%s) may be used: offline, or not in the cpuset"
                raise OSError(errno.EINVAL, said % listed) from error
    return sorted(os.sched_getaffinity(0))


def map_shared(libc: ctypes.CDLL, descriptor: int, size: int, offset: int) -> memoryview:
    """Map `size` bytes of a file for as long as this process lives. Raises OSError.

    Through C, because Python's own mmap keeps a duplicate of the descriptor (its `trackfd` came with 3.13), and the handler would
    then hold not one record of the file but all of its siblings'.
    """
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    address = libc.mmap(None, size, _PROT_READ_WRITE, _MAP_SHARED, descriptor, offset)
    if address is None or address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, "mmap: " + os.strerror(number))
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def set_title(title: str) -> None:
    """Show what this process is in ps and top, where setproctitle is importable in the model's environment."""
    try:
        import setproctitle
    except ImportError:
        return
    setproctitle.setproctitle(title)


def flush_output() -> None:
    """Push out what Python and C still buffer, before an exit that runs no handlers."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # closed or broken by the handler: there is nobody left to tell
    try:
        ctypes.CDLL(None).fflush(None)
    except (OSError, AttributeError):
        return


def peer_credentials(sock: socket.socket) -> Tuple[int, int]:
    """The pid and uid at the other end of a unix socket, when it connected."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, _ = _PEER_CREDENTIALS.unpack(raw)
    return pid, uid


def leave(leaving: SystemExit) -> NoReturn:
    """End the process as the handler asked, reading the argument of sys.exit as Python does."""
    code = leaving.code
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    flush_output()
    os._exit((code or 0) & 0xFF)
