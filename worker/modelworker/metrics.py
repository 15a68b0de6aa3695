"""Metrics that a handler records, in the API and the line format of MMS.

A handler finds a `MetricsStore` at `context.metrics`; it is made when first asked for, and its
lines are printed to stdout when the batch ends. Unlike MMS, a batch whose handler records nothing
prints nothing: a line for every request costs more than many a handler does.

    [METRICS]name.unit:value|#Dim:val,Dim:val|#hostname:h,epoch_s[,request-id]

Three defects of the ancestors are not kept: the `dimensions` argument counts in every method, a
list that the handler passes in is not changed, and an error metric has the unit `unit`, since their
reader accepts no empty one.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Any, Dict, List, Mapping, Optional, Tuple

from modelworker.channel import Channel

_UNITS = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "GB": "Gigabytes",
    "MB": "Megabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
}
_TIME_UNITS = ("ms", "s")
_SIZE_UNITS = ("GB", "MB", "kB", "B")


class Units:
    """MMS's table of unit names."""

    def __init__(self) -> None:
        self.units: Dict[Optional[str], str] = {None: "unit"}
        self.units.update(_UNITS)


class Dimension:
    """A name and a value that a metric is counted under."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"

    def to_dict(self) -> Dict[str, Any]:
        """Return the name and the value under those keys."""
        return {"name": self.name, "value": self.value}


class Metric:
    """One value under a name, a unit and dimensions; `metric_method` "counter" adds up."""

    def __init__(
        self,
        name: str,
        value: Any,
        unit: Optional[str],
        dimensions: List[Dimension],
        request_id: Optional[str] = None,
        metric_method: Optional[str] = None,
    ) -> None:
        self.name = name
        self.value = value
        self.unit = _UNITS.get(unit, unit) if unit else "unit"
        self.dimensions = dimensions
        self.request_id = request_id
        self.metric_method = metric_method

    def update(self, value: Any) -> None:
        """Take in another value."""
        if self.metric_method == "counter":
            self.value += value
        else:
            self.value = value

    def __str__(self) -> str:
        dimensions = ",".join(str(dimension) for dimension in self.dimensions)
        place = f"hostname:{socket.gethostname()},{int(time.time())}"
        if self.request_id:
            place += f",{self.request_id}"
        return f"{self.name}.{self.unit}:{self.value}|#{dimensions}|#{place}"

    def to_dict(self) -> Dict[str, Any]:
        """Return what MMS's method of this name returns."""
        return {
            "MetricName": self.name,
            "Value": self.value,
            "Unit": self.unit,
            "Dimensions": self.dimensions,
            "Timestamp": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "HostName": socket.gethostname(),
            "RequestId": self.request_id,
        }


Dimensions = Optional[List[Dimension]]


class MetricsStore:
    """What a handler recorded for one batch. `request_ids` maps an index of the batch to an id."""

    def __init__(self, request_ids: Optional[Mapping[int, str]], model_name: str) -> None:
        self.request_ids = request_ids
        self.model_name = model_name
        self.store: List[Metric] = []
        self.cache: Dict[Tuple[str, ...], Metric] = {}

    def add_counter(
        self, name: str, value: int, idx: Optional[int] = None, dimensions: Dimensions = None
    ) -> None:
        """Add to a counter; `idx` names the request, None all of the batch."""
        self._record(name, value, self._ids(idx), "count", dimensions, "counter")

    def add_time(
        self,
        name: str,
        value: float,
        idx: Optional[int] = None,
        unit: str = "ms",
        dimensions: Dimensions = None,
    ) -> None:
        """Record a duration in `ms` or `s`; another unit is a ValueError."""
        _check_unit(unit, _TIME_UNITS)
        self._record(name, value, self._ids(idx), unit, dimensions)

    def add_size(
        self,
        name: str,
        value: float,
        idx: Optional[int] = None,
        unit: str = "MB",
        dimensions: Dimensions = None,
    ) -> None:
        """Record a size in `GB`, `MB`, `kB` or `B`; another unit is a ValueError."""
        _check_unit(unit, _SIZE_UNITS)
        self._record(name, value, self._ids(idx), unit, dimensions)

    def add_percent(
        self, name: str, value: float, idx: Optional[int] = None, dimensions: Dimensions = None
    ) -> None:
        """Record a percentage."""
        self._record(name, value, self._ids(idx), "percent", dimensions)

    def add_error(self, name: str, value: Any, dimensions: Dimensions = None) -> None:
        """Record an error of no request in particular."""
        self._record(name, value, None, None, dimensions)

    def add_metric(
        self,
        name: str,
        value: Any,
        idx: Optional[int] = None,
        unit: Optional[str] = None,
        dimensions: Dimensions = None,
    ) -> None:
        """Record a value of any unit."""
        self._record(name, value, self._ids(idx), unit, dimensions)

    def _ids(self, idx: Optional[int]) -> str:
        ids = self.request_ids or {}
        return ids[idx] if idx is not None and idx in ids else ",".join(ids.values())

    def _record(
        self,
        name: str,
        value: Any,
        request_id: Optional[str],
        unit: Optional[str],
        dimensions: Dimensions,
        method: Optional[str] = None,
    ) -> None:
        if dimensions is not None and not isinstance(dimensions, list):
            raise ValueError("Please provide a list of dimensions")
        level = "Error" if request_id is None else "Model"
        own = [] if request_id is None else [Dimension("ModelName", self.model_name)]
        complete = [*(dimensions or []), *own, Dimension("Level", level)]
        key = (name, str(unit), str(request_id), *(str(dimension) for dimension in complete))
        if key in self.cache:
            self.cache[key].update(value)
        else:
            self.cache[key] = Metric(name, value, unit, complete, request_id, method)
            self.store.append(self.cache[key])


def _check_unit(unit: str, units: Tuple[str, ...]) -> None:
    if unit not in units:
        raise ValueError(f"unit {unit!r}; expected one of {', '.join(units)}")


def print_metrics(store: Optional[MetricsStore]) -> None:
    """Print the lines of a store, in one write. Raises OSError or ValueError without a stdout."""
    if store is not None and store.store:
        sys.stdout.write("".join(f"[METRICS]{metric}\n" for metric in store.store))
        sys.stdout.flush()


def print_or_tell(store: MetricsStore, channel: Channel) -> None:
    """Print what the handler recorded; a broken stdout or value is told, and not the worker's end."""
    try:
        print_metrics(store)
    except Exception as error:  # noqa: BLE001 - anything can be in a metric, and the batch is answered
        said = f"{type(error).__name__}: {error}"
        channel.event("warning", "metrics.lost", error=said)
