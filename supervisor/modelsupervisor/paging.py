"""`status` of however many workers: asked page by page, and put together to the one object that a single page would be.

Between two pages the supervisor goes on, so that the pages are of moments that lie some milliseconds apart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from modelsupervisor.control import ANSWER_TIMEOUT, FAILED, ControlConnection
from modelsupervisor.errors import ControlError

PSS_PATIENCE = 0.6  # seconds that a person waits for figures which are read a few at a time
PSS_STEP = 0.1  # seconds: the supervisor reads some more of them


def whole_status(
    control: ControlConnection,
    asked: Mapping[str, object] | None = None,
    timeout: float = ANSWER_TIMEOUT,
) -> dict[str, Any]:
    """The status of all workers, or of those that are `asked` for (StatusArguments); `timeout` in seconds is for each page."""
    asked = asked or {}
    result: dict[str, Any] = control.call("status", asked, timeout)
    if not isinstance(result, dict):
        raise ControlError(FAILED, "the supervisor's status is not one")
    offset = 0
    while (following := result.pop("next", None)) is not None:
        if not isinstance(following, int) or following <= offset:
            raise ControlError(FAILED, "the supervisor's pages of the status have no end")
        offset = following
        page = control.call("status", {**asked, "offset": offset}, timeout)
        _join(result, page)
    return result


def patient_status(control: ControlConnection) -> dict[str, Any]:
    """The same, and where the PSS of a process has not been read yet, once more after a moment; for people."""
    deadline = time.monotonic() + PSS_PATIENCE
    while True:
        result = whole_status(control)
        if not _lacks_pss(result) or time.monotonic() + PSS_STEP > deadline:
            return result
        time.sleep(PSS_STEP)


def _join(result: dict[str, Any], page: dict[str, Any]) -> None:
    """Add what a further page tells: workers to their models, streams to their sinks."""
    models = {model["name"]: model for model in result["models"]}
    for model in page["models"]:
        if model["name"] in models:
            models[model["name"]]["workers"].extend(model["workers"])
        else:
            result["models"].append(model)
    sinks = {sink["name"]: sink for sink in result["log"]["sinks"]}
    for sink in page["log"]["sinks"]:
        if sink["name"] in sinks:
            sinks[sink["name"]]["streams"].update(sink["streams"])
    if "next" in page:
        result["next"] = page["next"]


def _lacks_pss(result: dict[str, Any]) -> bool:
    models = result.get("models")
    return isinstance(models, list) and any(
        worker.get("rss_bytes") is not None and worker.get("pss_bytes") is None
        for model in models
        for worker in model.get("workers", ())
    )
