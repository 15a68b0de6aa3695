"""The reference pages say what the code does: events and configuration keys are compared, not remembered."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from modelsupervisor.config import describe_keys
from modelsupervisor.log.catalogue import ENVELOPE, EVENTS
from support.pages import ROOT

SOURCES = ("supervisor", "worker")
EVENT = re.compile(r"[a-z]+\.[a-z][a-z_]*")
# Whoever makes an event is called by one of these names, and the event's name is a literal there.
MAKERS = {
    "emit",
    "event",
    "note",
    "_note",
    "_make",
    "_say",
    "_tell",
    "slot_note",
    "template_note",
    "Note",
    "_event",
}
# A name that is chosen before it is passed on is a literal elsewhere; then its first word gives it away.
SUBJECTS = {name.partition(".")[0] for name in EVENTS}
NO_EVENTS = {"control.sock", "log.jsonl", "log.level"}  # files, and a key of other people's JSON
LEVELS = {"debug", "info", "warning", "error"}


class Call(NamedTuple):
    """A call that makes an event: who is called, with which level, event and facts, as far as they are literals."""

    maker: str
    level: str | None
    event: str
    facts: frozenset[str]


def _trees(*roots: str) -> Iterator[ast.Module]:
    """The code, but not the catalogue itself: it would prove nothing."""
    for root in roots or SOURCES:
        for path in sorted((ROOT / root).rglob("*.py")):
            if not path.name.startswith("catalogue"):
                yield ast.parse(path.read_text(encoding="utf-8"), str(path))


def _event_name(node: ast.AST) -> str | None:
    """The name of an event that a literal could be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value if EVENT.fullmatch(node.value) else None
    return None


def _calls(tree: ast.Module) -> Iterator[Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            maker = getattr(node.func, "attr", getattr(node.func, "id", ""))
            literals = [each.value for each in node.args if isinstance(each, ast.Constant)]
            levels = [each for each in literals if each in LEVELS]
            facts = frozenset(keyword.arg for keyword in node.keywords if keyword.arg is not None)
            for event in filter(None, map(_event_name, node.args)):
                if maker in MAKERS:
                    yield Call(maker, levels[0] if levels else None, event, facts)


@functools.cache
def _emitted() -> frozenset[str]:
    """Every event name that is a literal in the code."""
    found: set[str] = set()
    for tree in _trees():
        found.update(call.event for call in _calls(tree))
        for node in ast.walk(tree):
            name = _event_name(node)
            if name is not None and name.partition(".")[0] in SUBJECTS:
                found.add(name)
    return frozenset(found - NO_EVENTS)


def test_every_event_of_the_code_stands_in_the_catalogue() -> None:
    """A new event, or a new name for an old one, needs its row in modelsupervisor.log.catalogue."""
    assert sorted(_emitted() - set(EVENTS)) == []


def test_every_event_of_the_catalogue_is_made_by_the_code() -> None:
    """A row does not outlive its event."""
    assert sorted(set(EVENTS) - _emitted()) == []


def test_levels_and_facts_that_are_literals_stand_in_the_catalogue() -> None:
    """Seen without running the line: an error path that no test takes may not say what the page does not."""
    envelope = {field.name for field in ENVELOPE}
    wrong = []
    for tree in _trees():
        for call in _calls(tree):
            event = EVENTS[call.event]
            if call.level is not None and call.level not in event.levels:
                wrong.append(f"{call.event} with level {call.level}")
            known = {field.name for field in event.fields} | envelope
            if (
                call.maker != "Note"
            ):  # its keywords are its own; the histories of test_core look into it
                wrong += [f"{call.event} with {fact}" for fact in sorted(call.facts - known)]
    assert wrong == []


def test_what_workers_send_is_what_the_catalogue_has_them_send() -> None:
    """An event of modelworker's is accepted by the supervisor only where the catalogue says that it is told."""
    sent = {call.event for tree in _trees("worker") for call in _calls(tree)}
    assert sent == {event.name for event in EVENTS.values() if event.told}


def test_the_scan_of_the_code_sees_both_ways_of_naming_an_event() -> None:
    """Names passed as literals, and names chosen before."""
    assert {
        "worker.ready",
        "worker.bad_frame",
        "leftover.kept",
        "worker.spawn_failed",
    } <= _emitted()


def _tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_current() -> None:
    """`make docs` writes it; forgetting that fails here."""
    made = _tool("configuration_page").page()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == made


def test_the_page_and_the_schema_of_events_are_current() -> None:
    """`make docs` writes them too."""
    tool = _tool("events_page")
    assert (ROOT / "docs" / "events.md").read_text(encoding="utf-8") == tool.page()
    assert (ROOT / "docs" / "events.schema.json").read_text(encoding="utf-8") == tool.schema_text()


def test_every_key_is_in_the_configuration_page() -> None:
    """The page's tables hold the whole table of keys."""
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert [row.key for row in describe_keys() if f"| `{row.key}` |" not in text] == []


def _links(page: Path) -> Iterator[Path]:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text):
        if "://" not in target:
            yield page.parent / target


def test_links_between_pages_lead_somewhere() -> None:
    """A relative link in a page names a file of the repository."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]
    assert [
        f"{page.name}: {link}" for page in pages for link in _links(page) if not link.exists()
    ] == []


def test_files_that_the_readme_names_exist() -> None:
    """Paths of this repository in README's code are real: a reader types them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"(?<![\w./-])((?:conf|models|docs|tests|tools|benchmarks)/[\w./-]*\w)", text)
    )
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_targets_that_the_pages_name_exist() -> None:
    """`make x` in README and CONTRIBUTING is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in ("README.md", "CONTRIBUTING.md"):
        named = set(
            re.findall(
                r"(?:`|^ *|\$ )make ([a-z-]+)",
                (ROOT / page).read_text(encoding="utf-8"),
                re.MULTILINE,
            )
        )
        assert named, page
        assert named <= targets, page
