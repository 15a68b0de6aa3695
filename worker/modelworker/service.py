"""The Python API that handlers are written against: MMS's context, request processor and exception.

One `Context` lives as long as the model, as in MMS, and each batch passes through it. What MMS
builds for every request (a property map, a response map, a metrics store) is made here when a
handler first asks for it: an answer that leaves status, headers and metrics alone costs three
assignments.

`request_processor[i]` and every `idx` count the requests that the handler was given; a request that
could not be decoded never reaches it and is not counted.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from modelworker.frames import Request
from modelworker.metrics import MetricsStore

__all__ = ["Context", "MetricsStore", "PredictionException", "RequestProcessor"]


class PredictionException(Exception):  # the name is MMS's
    """Raised by a handler to fail the batch with a code and a message of its own."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


class RequestProcessor:
    """One request's headers and content types, and the status and headers of its response."""

    def __init__(self, request_header: Dict[str, Any]) -> None:
        self._status_code: Any = 200
        self._reason_phrase: Any = None
        self._response_header: Dict[Any, Any] = {}
        self._request_header = request_header

    def get_request_property(self, key: str) -> Any:
        """Return a header, or `{"content-type": …}` for the name of a parameter, or None."""
        return self._request_header.get(key)

    def get_request_properties(self) -> Dict[str, Any]:
        """Return all of them."""
        return self._request_header

    def report_status(self, code: int, reason_phrase: Optional[str] = None) -> None:
        """Set the response's status."""
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> Any:
        """Return the response's status, 200 unless it was set."""
        return self._status_code

    def get_response_status_phrase(self) -> Any:
        """Return the reason phrase, None unless it was set."""
        return self._reason_phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header of the response."""
        self._response_header[key] = value

    def get_response_headers(self) -> Dict[Any, Any]:
        """Return the headers of the response."""
        return self._response_header

    def get_response_header(self, key: str) -> Any:
        """Return one of them, None where it was not set."""
        return self._response_header.get(key)


def _properties(request: Request) -> Dict[str, Any]:
    """Return what MMS calls the headers: content types of the parameters, then the headers."""
    properties: Dict[str, Any] = {
        name: {"content-type": content_type} for name, content_type, _ in request.parameters
    }
    properties.update(request.headers)
    return properties


class Context:
    """What a handler knows of its model and of the batch in hand."""

    def __init__(  # the signature is MMS's
        self,
        model_name: str,
        model_dir: str,
        manifest: Any,
        batch_size: int,
        gpu: Optional[int],
        mms_version: str,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self._system_properties: Dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": mms_version,
        }
        self._requests: Optional[Sequence[Request]] = None
        self._request_ids: Optional[Dict[int, str]] = None
        self._processors: Optional[List[RequestProcessor]] = None
        self._metrics: Optional[MetricsStore] = None

    def begin_batch(self, requests: Sequence[Request]) -> None:
        """Take up the requests that the handler is about to be given. For the server."""
        self._requests = requests

    def end_batch(self) -> Optional[MetricsStore]:
        """Let go of the batch; return its metrics if the handler asked for any. For the server."""
        metrics = self._metrics
        self._requests = self._request_ids = self._processors = self._metrics = None
        return metrics

    def processors_in_use(self) -> Optional[List[RequestProcessor]]:
        """Return the batch's processors, None where the handler asked for none. For the server."""
        return self._processors

    @property
    def system_properties(self) -> Dict[str, Any]:
        """model_dir, gpu_id (None is the CPU), batch_size, server_name, server_version."""
        return self._system_properties

    @property
    def request_ids(self) -> Optional[Dict[int, str]]:
        """The ids of the batch by index; None while the model is loaded."""
        if self._request_ids is None and self._requests is not None:
            self._request_ids = {
                index: request.request_id for index, request in enumerate(self._requests)
            }
        return self._request_ids

    @request_ids.setter
    def request_ids(self, request_ids: Optional[Dict[int, str]]) -> None:
        self._request_ids = request_ids

    @property
    def request_processor(self) -> Optional[List[RequestProcessor]]:
        """One RequestProcessor a request; None while the model is loaded."""
        if self._processors is None and self._requests is not None:
            self._processors = [RequestProcessor(_properties(item)) for item in self._requests]
        return self._processors

    @request_processor.setter
    def request_processor(self, request_processor: Optional[List[RequestProcessor]]) -> None:
        self._processors = request_processor

    @property
    def metrics(self) -> MetricsStore:
        """The store whose lines are printed when the batch ends."""
        if self._metrics is None:
            self._metrics = MetricsStore(self.request_ids, self.model_name)
        return self._metrics

    @metrics.setter
    def metrics(self, metrics: Optional[MetricsStore]) -> None:
        self._metrics = metrics

    def _processor(self, idx: int) -> RequestProcessor:
        processors = self.request_processor
        if processors is None:
            raise LookupError("no request in hand: the model is being loaded")
        return processors[idx]

    def get_request_id(self, idx: int = 0) -> Optional[str]:
        """Return the id of a request."""
        return (self.request_ids or {}).get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """Return a header of a request, None where there is none."""
        return self._processor(idx).get_request_property(key)

    def get_all_request_header(self, idx: int) -> Dict[str, Any]:
        """Return all headers of a request."""
        return self._processor(idx).get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the content type of a response."""
        self._processor(idx).add_response_property("content-type", value)

    def get_response_content_type(self, idx: int) -> Any:
        """Return the content type of a response, None unless it was set."""
        return self._processor(idx).get_response_header("content-type")

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of one response."""
        self._processor(idx).report_status(code, reason_phrase=phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of every response of the batch."""
        for processor in self.request_processor or ():
            processor.report_status(code, reason_phrase=phrase)

    def get_response_status(self, idx: int) -> Tuple[Any, Any]:
        """Return code and phrase of a response."""
        processor = self._processor(idx)
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of a response."""
        self._processor(idx).add_response_property(key, value)

    def get_response_headers(self, idx: int) -> Dict[Any, Any]:
        """Return the headers of a response."""
        return self._processor(idx).get_response_headers()
