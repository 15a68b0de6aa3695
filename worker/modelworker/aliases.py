"""The import names of MMS, for handlers that say `from mms.service import PredictionException`.

They are made of our own modules, and only where no real `mms` can be imported: an environment that
has it keeps its own classes, and `respond` knows a PredictionException by its name.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Dict

from modelworker import __version__, metrics, service

_MODULES: Dict[str, Dict[str, Any]] = {
    "mms": {"__version__": __version__},
    "mms.service": {
        "PredictionException": service.PredictionException,
        "Context": service.Context,
        "RequestProcessor": service.RequestProcessor,
    },
    "mms.context": {"Context": service.Context, "RequestProcessor": service.RequestProcessor},
    "mms.metrics": {},
    "mms.metrics.dimension": {"Dimension": metrics.Dimension},
    "mms.metrics.metric": {"Metric": metrics.Metric},
    "mms.metrics.metrics_store": {"MetricsStore": metrics.MetricsStore},
    "mms.metrics.unit": {"Units": metrics.Units},
}
_PACKAGES = ("mms", "mms.metrics")


def install_mms_aliases() -> bool:
    """Make `mms` importable; False where it was already."""
    if "mms" in sys.modules or importlib.util.find_spec("mms") is not None:
        return False
    for name, members in _MODULES.items():
        module = ModuleType(name, "An alias of modelworker's API, for handlers written for MMS.")
        module.__spec__ = ModuleSpec(name, None, is_package=name in _PACKAGES)
        if name in _PACKAGES:
            module.__path__ = []
        vars(module).update(members)
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)
    return True
