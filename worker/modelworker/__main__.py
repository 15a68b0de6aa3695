"""The start of a template, by file path: `python …/modelworker/__main__.py --supervisor PID --channel FD`; or, with
`--worker MODEL/N`, of a worker that is an interpreter of its own (`executed`).

The supervisor runs this file with the model's own interpreter. Were the folder above it put on that interpreter's import path,
everything installed beside modelworker would join the model's environment; so the package is loaded from its place under its own
name, and the folder of this file, which Python put first on the path, is taken off again.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def _load_package() -> None:
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != folder]
    if "modelworker" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "modelworker",
        os.path.join(folder, "__init__.py"),
        submodule_search_locations=[folder],
    )
    if spec is None or spec.loader is None:
        raise ImportError("modelworker is not in %s" % folder)
    package = importlib.util.module_from_spec(spec)
    sys.modules["modelworker"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    _load_package()
    if "--worker" in sys.argv:
        from modelworker.executed import main
    else:
        from modelworker.template import main
    main(sys.argv[1:])
