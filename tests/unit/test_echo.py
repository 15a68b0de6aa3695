"""The echo example: bytes come back as they are, a JSON list of numbers comes back as its mean."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "models" / "echo"


class FakeContext:
    """The names of the MMS context that this handler uses; `headers` are those of every request."""

    def __init__(self, headers: dict[str, str] | None = None) -> None:
        self.headers = headers or {}
        self.statuses: dict[int, int] = {}
        self.content_types: dict[int, str] = {}

    def get_request_header(self, idx: int, key: str) -> str | None:
        return self.headers.get(key)

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.statuses[idx] = code

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.content_types[idx] = value


@pytest.fixture(scope="module")
def echo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("echo_handler", FOLDER / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_call_at_load_is_answered(echo: ModuleType) -> None:
    """MMS calls a module function once with None when it loads it."""
    assert echo.handle(None, FakeContext()) is None


def test_bytes_come_back_as_the_same_object_with_their_content_type(echo: ModuleType) -> None:
    """Nothing is copied."""
    body = bytes(range(256))
    context = FakeContext({"Content-Type": "image/png"})
    (reply,) = echo.handle([{"body": body}], context)
    assert reply is body
    assert context.content_types == {0: "image/png"}


def test_without_a_content_type_none_is_set(echo: ModuleType) -> None:
    """The default of the server stands."""
    context = FakeContext()
    assert echo.handle([{"body": b"x"}, {}], context) == [b"x", b""]
    assert context.content_types == {}
    assert context.statuses == {}


@pytest.mark.parametrize("document", [{"a": [1, 2]}, "text", 7, None, True])
def test_json_that_is_no_list_comes_back(echo: ModuleType, document: Any) -> None:
    """The reply is the document, which the server encodes again."""
    context = FakeContext({"Content-Type": "application/json"})
    assert echo.handle([{"body": document}], context) == [document]
    assert context.statuses == {}


def test_a_list_of_numbers_is_answered_with_its_mean(echo: ModuleType) -> None:
    """Integers and floats alike; each request of a batch has its own."""
    context = FakeContext()
    replies = echo.handle([{"body": [1, 2, 6]}, {"body": b"x"}, {"body": [0.5]}], context)
    assert replies == [{"mean": 3.0, "n": 3}, b"x", {"mean": 0.5, "n": 1}]
    assert context.content_types == {0: "application/json", 2: "application/json"}


@pytest.mark.parametrize(
    "values",
    [[], [1, "2"], [[1, 2], [3, 4]], [None], [True], [float("nan")], [float("inf")], [10**400]],
    ids=["empty", "text", "nested", "null", "boolean", "nan", "infinite", "huge"],
)
def test_a_list_without_a_finite_mean_gets_400(echo: ModuleType, values: list[Any]) -> None:
    """And the rest of its batch is answered."""
    context = FakeContext()
    replies = echo.handle([{"body": values}, {"body": [4]}], context)
    assert "error" in replies[0]
    assert replies[1] == {"mean": 4.0, "n": 1}
    assert context.statuses == {0: 400}
