"""The thread variables of a model's processes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from modelworker import threads
from modelworker.threads import THREAD_VARIABLES, openmp_threads, thread_environment

ALONE = {
    "OMP_NUM_THREADS": "3",
    "MXNET_OMP_MAX_THREADS": "3",
    "MKL_NUM_THREADS": "3",
    "OPENBLAS_NUM_THREADS": "3",
    "NUMEXPR_NUM_THREADS": "3",
    "MXNET_USE_OPERATOR_TUNING": "0",
    "MXNET_CPU_WORKER_NTHREADS": "1",
    "MXNET_CPU_PRIORITY_NTHREADS": "1",
}


def test_all_variables_where_the_operator_set_none() -> None:
    """The number of threads for every pool; waiting threads sleep only where workers share CPUs."""
    assert thread_environment(3, False, {"PATH": "/bin"}) == ALONE
    assert thread_environment(3, True, {}) == {**ALONE, "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", [variable.name for variable in THREAD_VARIABLES])
@pytest.mark.parametrize("value", ["7", ""])
def test_what_the_operator_set_is_left_alone(name: str, value: str) -> None:
    """Each variable by itself, also one that was set to nothing."""
    expected = {**ALONE, "OMP_WAIT_POLICY": "PASSIVE"}
    del expected[name]
    result = thread_environment(3, True, {name: value})
    assert set(result) == set(expected)
    if name != "OMP_NUM_THREADS":
        assert result == expected


def test_the_operators_openmp_count_is_not_outranked() -> None:
    """OMP_NUM_THREADS is meant for every library that falls back to it; ours are not first."""
    result = thread_environment(3, False, {"OMP_NUM_THREADS": "8,2", "MKL_NUM_THREADS": "5"})
    pools = {name: value for name, value in result.items() if name.endswith("_THREADS")}
    assert pools == {
        "MXNET_OMP_MAX_THREADS": "8",
        "OPENBLAS_NUM_THREADS": "8",
        "NUMEXPR_NUM_THREADS": "8",
    }


@pytest.mark.parametrize("text", ["", "0", "-2", "many", "1.5", "٣", ",4", "9999999", " "])
def test_an_openmp_count_that_is_none(text: str) -> None:
    """What OpenMP would ignore is ignored here too."""
    assert openmp_threads(3, {"OMP_NUM_THREADS": text}) == 3


def test_every_variable_has_its_reason() -> None:
    """`plan` prints a sentence for each."""
    assert all(v.reason.endswith(".") and len(v.reason) > 20 for v in THREAD_VARIABLES)


def test_the_module_runs_in_any_models_environment() -> None:
    """Python 3.8 can parse it, and it imports nothing but the standard library's typing."""
    tree = ast.parse(Path(threads.__file__).read_text(), feature_version=(3, 8))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert imported == ["__future__", "typing"]
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))
