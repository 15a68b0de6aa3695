"""Which thread variables a model's processes get, so that workers together have as many computing
threads as CPUs.

Left alone, every numeric library starts one thread for each CPU of the machine in each worker:
eight workers on eight CPUs become sixty-four threads that take turns. The libraries read these
variables once, when they are loaded; therefore they are in the environment before the template
imports anything. Pure: the caller applies the result.

What the operator has set (in the environment or as `env.NAME`) is never touched. Nor is it
outranked: OpenBLAS, MKL and NumExpr look at a variable of their own first and at OMP_NUM_THREADS
next, so where the operator gave OMP_NUM_THREADS alone, the others get that number too instead of
ours. MXNet 1.9.1 ignores its own cap once OMP_NUM_THREADS is set [measured: 3 against 6 gives the
same 11 threads as 6 against 6].
"""

from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Optional, Tuple


class ThreadVariable(NamedTuple):
    """One variable: `value` is fixed text, or None where it is the number of threads; `reason` is a
    sentence for `plan`.
    """

    name: str
    value: Optional[str]
    only_when_sharing: bool
    reason: str


OPENMP_VARIABLE = "OMP_NUM_THREADS"

THREAD_VARIABLES: Tuple[ThreadVariable, ...] = (
    ThreadVariable(
        OPENMP_VARIABLE,
        None,
        False,
        "OpenMP would otherwise start one thread for each CPU of the machine in every worker.",
    ),
    ThreadVariable(
        "MXNET_OMP_MAX_THREADS",
        None,
        False,
        "MXNet keeps a cap of its own beside OpenMP's, for processes in which OMP_NUM_THREADS "
        "went missing.",
    ),
    ThreadVariable("MKL_NUM_THREADS", None, False, "MKL has a thread pool of its own."),
    ThreadVariable(
        "OPENBLAS_NUM_THREADS",
        None,
        False,
        "OpenBLAS, inside NumPy and MXNet, has a thread pool of its own.",
    ),
    ThreadVariable("NUMEXPR_NUM_THREADS", None, False, "NumExpr has a thread pool of its own."),
    ThreadVariable(
        "MXNET_USE_OPERATOR_TUNING",
        "0",
        False,
        "MXNet would time its operators while it is imported: seconds of work on every CPU for "
        "each template.",
    ),
    ThreadVariable(
        "MXNET_CPU_WORKER_NTHREADS",
        "1",
        False,
        "A worker runs one batch at a time: operators in parallel would multiply the OpenMP "
        "threads.",
    ),
    ThreadVariable(
        "MXNET_CPU_PRIORITY_NTHREADS",
        "1",
        False,
        "MXNet keeps four threads for urgent copies between devices, which a CPU worker never "
        "makes.",
    ),
    ThreadVariable(
        "OMP_WAIT_POLICY",
        "PASSIVE",
        True,
        "Workers share CPUs: a thread that spins while it waits takes the CPU from a worker "
        "that computes.",
    ),
)


def thread_environment(
    threads: int, shares_cpus: bool, operator: Mapping[str, str]
) -> Dict[str, str]:
    """The variables to add to `operator`, the environment as the operator left it (with the model's
    `env.NAME`).

    `threads` is the model's number of computing threads; `shares_cpus` says that its workers can
    meet others on a CPU. A variable that the operator set is not in the result, even when it was
    set to nothing.
    """
    count = str(openmp_threads(threads, operator))
    return {
        variable.name: count if variable.value is None else variable.value
        for variable in THREAD_VARIABLES
        if variable.name not in operator and (shares_cpus or not variable.only_when_sharing)
    }


def openmp_threads(threads: int, operator: Mapping[str, str]) -> int:
    """The OpenMP count of a worker: the operator's OMP_NUM_THREADS where that is a number,
    otherwise `threads`.

    OpenMP allows one number for each level of nesting (`4,2`); the first is that of the outermost.
    """
    first = operator.get(OPENMP_VARIABLE, "").split(",")[0].strip()
    # At most six digits: int() of hostile text is slow, and nobody has a million threads.
    if first.isascii() and first.isdigit() and len(first) <= 6 and int(first) > 0:
        return int(first)
    return threads
