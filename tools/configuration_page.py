"""docs/configuration.md, made from the table of keys that the reader of configuration files itself works by.

The page says what the code accepts, and cannot say anything else; tests/unit/test_docs.py fails while the page in the repository is
not what this prints. `make docs` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from modelsupervisor.config import KeyRow, describe_keys

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

_HEAD = """\
# Configuration

<!-- Made by `make docs` from supervisor/modelsupervisor/config/keys.py; change it there. -->

One INI file says what runs; `modelsupervisor check -c FILE` prints what it means with every default filled in, or everything
that is wrong with it at once: file, line, section, key, value and what was expected. Nothing is started from a file with a mistake
in it; the exit code is 78.

- `[supervisor]` is for the whole instance and may be left out; there is one `[model:NAME]` for each model. NAME is at most 64
  letters, digits, `_`, `.` and `-`, the first one a letter or digit; clients use it.
- An unknown section or key, a key twice, or a value of another type is a mistake, never a warning.
- Paths are relative to the file's folder.
- Times carry a unit: `500ms`, `10s`, `2m`, `1h`. Sizes too: `512B`, `64KiB`, `16MiB`. A bare number is a mistake there.
- Names of keys are case-sensitive. `%` and `$` mean themselves. Comments stand on lines of their own and begin with `#` or `;`.
"""

_TAIL = """\
## CPUs and threads

`modelsupervisor plan -c FILE` prints which CPUs and how many threads each worker would get here, with the reason for each number.

- What may be used is the process's affinity within its cpuset. Where a cgroup (version 1 or 2, its own or one above it) sets a CPU
  quota, as many CPUs are used as it pays for, rounded down, at least one: half a CPU more would be a thread that is stopped half of
  the time, while all others wait for it. Fast cores are taken first, and second hardware threads last.
- The workers of all models with `cpus = auto` divide these into equal shares of whole cores. SMT siblings stay together; a worker
  has cores of one NUMA node, and of one kind where a processor has fast and slow ones. What does not divide stays free.
- More workers than cores take turns: each has one core, and shares it.
- A list is divided among the workers of its own model, in the order in which it is written.
- `threads = auto` is one number for a model: the cores of its smallest share, not their hardware threads.
- A slot keeps its CPUs over restarts.

## The environment of a model's processes

The supervisor's own, then `env.NAME`, then what the operator has set in neither: `OMP_NUM_THREADS`, `MXNET_OMP_MAX_THREADS`,
`MKL_NUM_THREADS`, `OPENBLAS_NUM_THREADS` and `NUMEXPR_NUM_THREADS` (the model's `threads`), `MXNET_USE_OPERATOR_TUNING=0`,
`MXNET_CPU_WORKER_NTHREADS=1`, `MXNET_CPU_PRIORITY_NTHREADS=1`, and, where workers share CPUs, `OMP_WAIT_POLICY=PASSIVE`.

## Example

`conf/workers.ini`, with a comment on each key that it sets, and `conf/echo.ini`, the smallest one that runs.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(rows: list[KeyRow]) -> str:
    lines = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for row in rows:
        # A default that is a sentence (what leaving the key out means) is not something to write into a file.
        default = (
            row.default if " " in row.default or row.default == "required" else f"`{row.default}`"
        )
        lines.append(
            f"| `{row.key}` | {_cell(row.type)} | {_cell(default)} | {_cell(row.sentence)} |"
        )
    return "\n".join(lines)


def page() -> str:
    """The whole page, ending in a newline."""
    rows = describe_keys()
    sections = {
        section: [row for row in rows if row.section == section]
        for section in (row.section for row in rows)
    }
    tables = [f"## `[{section}]`\n\n{_table(its_rows)}\n" for section, its_rows in sections.items()]
    return "\n".join([_HEAD, *tables, _TAIL])


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
