"""paging.py: the pages of a status, put together to the object that a single one would be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from modelsupervisor import paging
from modelsupervisor.errors import ControlError
from modelsupervisor.paging import patient_status, whole_status

PAGE = 3


class Pages:
    """A connection to a supervisor with these workers (model, index), of which it tells PAGE a time."""

    def __init__(self, workers: list[tuple[str, int]]) -> None:
        self.workers = workers
        self.asked: list[dict[str, object]] = []
        self.pss: int | None = 5

    def call(self, command: str, arguments: Mapping[str, object], _timeout: float) -> Any:
        assert command == "status"
        self.asked.append(dict(arguments))
        offset = int(str(arguments.get("offset", 0)))
        page = self.workers[offset : offset + PAGE]
        models = {
            name: [
                {"index": index, "rss_bytes": 9, "pss_bytes": self.pss}
                for model, index in page
                if model == name
            ]
            for name in dict.fromkeys(model for model, _ in page)
        }
        streams = {f"{model}/{index} stdout": {"logged": index} for model, index in page}
        found: dict[str, Any] = {
            "supervisor": {"pid": 1},
            "models": [{"name": name, "workers": rows} for name, rows in models.items()],
            "log": {"sinks": [{"name": "stdout", "streams": streams}]},
        }
        if offset + PAGE < len(self.workers):
            found["next"] = offset + PAGE
        return found


def whole(pages: Any, **asked: object) -> dict[str, Any]:
    """The status that comes of these pages."""
    return whole_status(pages, asked)


def test_one_page_is_the_status() -> None:
    """Nothing is added to it, and nothing is asked twice."""
    pages = Pages([("a", 0), ("a", 1)])
    assert whole(pages) == pages.call("status", {}, 1.0)
    assert pages.asked[0] == {}
    assert len(pages.asked) == 2  # the second is the test's own


def test_pages_are_joined_in_order() -> None:
    """A model that goes on over several pages is one model, and every stream is in its sink."""
    workers = [("a", index) for index in range(5)] + [("b", index) for index in range(4)]
    result = whole(Pages(workers))
    found = [
        (model["name"], worker["index"])
        for model in result["models"]
        for worker in model["workers"]
    ]
    assert found == workers
    assert [model["name"] for model in result["models"]] == ["a", "b"]
    assert len(result["log"]["sinks"][0]["streams"]) == 9
    assert "next" not in result


def test_what_was_asked_for_is_asked_on_every_page() -> None:
    """The arguments go along with each offset."""
    pages = Pages([("a", index) for index in range(7)])
    whole(pages, model="a")
    assert pages.asked == [
        {"model": "a"},
        {"model": "a", "offset": 3},
        {"model": "a", "offset": 6},
    ]


@pytest.mark.parametrize("following", [0, -1, "3", 1.5, None])
def test_pages_without_an_end(following: object) -> None:
    """A supervisor whose pages do not go forward is not followed for ever."""
    pages = Pages([("a", index) for index in range(9)])
    call = pages.call

    def odd(command: str, arguments: Mapping[str, object], timeout: float) -> Any:
        return {**call(command, arguments, timeout), "next": following}

    pages.call = odd  # type: ignore[method-assign]
    if following is None:
        assert len(whole(pages)["models"][0]["workers"]) == PAGE
        return
    with pytest.raises(ControlError, match="no end"):
        whole(pages)


def test_what_is_no_status() -> None:
    """It is said, not run into."""
    pages = Pages([])
    pages.call = lambda *_: [1, 2]  # type: ignore[method-assign]
    with pytest.raises(ControlError, match="is not one"):
        whole(pages)


def test_people_wait_a_moment_for_the_memory_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again while a PSS is missing, and no longer than PSS_PATIENCE."""
    pages: Any = Pages([("a", 0)])
    pages.pss = None
    monkeypatch.setattr(paging, "PSS_STEP", 0.005)

    def come(_: float) -> None:
        pages.pss = 7

    monkeypatch.setattr(paging.time, "sleep", come)
    assert patient_status(pages)["models"][0]["workers"][0]["pss_bytes"] == 7
    assert len(pages.asked) == 2
    pages.pss = None
    monkeypatch.setattr(paging.time, "sleep", lambda _: None)
    monkeypatch.setattr(paging, "PSS_PATIENCE", 0.02)
    assert patient_status(pages)["models"][0]["workers"][0]["pss_bytes"] is None
