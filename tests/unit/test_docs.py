"""The reference pages say what the code does: event names and configuration keys are compared, not remembered."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from modelsupervisor.config import describe_keys
from support.pages import ROOT, documented_events

SOURCES = ("supervisor", "worker")
EVENT = re.compile(r"[a-z]+\.[a-z][a-z_]*")
# Whoever makes an event is called by one of these names, and the event's name is a literal there.
MAKERS = {
    "emit",
    "event",
    "note",
    "_note",
    "_make",
    "_tell",
    "slot_note",
    "template_note",
    "Note",
    "_event",
}
# A name that is chosen before it is passed on is a literal elsewhere; then its first word gives it away.
SUBJECTS = {
    "leftover", "log", "metrics", "orphan", "request", "restart", "signal", "supervisor", "template", "worker",
}  # fmt: skip
FILES = {"control.sock", "log.jsonl"}


def _trees() -> Iterator[ast.Module]:
    for root in SOURCES:
        for path in sorted((ROOT / root).rglob("*.py")):
            yield ast.parse(path.read_text(encoding="utf-8"), str(path))


def _is_event(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and bool(EVENT.fullmatch(node.value))
    )


def _emitted() -> set[str]:
    """Every event name that is a literal in the code."""
    found: set[str] = set()
    for tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = (
                    node.func.attr
                    if isinstance(node.func, ast.Attribute)
                    else getattr(node.func, "id", "")
                )
                if called in MAKERS:
                    found.update(each.value for each in node.args if _is_event(each))
            elif _is_event(node) and node.value.partition(".")[0] in SUBJECTS:
                found.add(node.value)
    return found - FILES


def test_every_event_of_the_code_stands_in_the_page() -> None:
    """A new event, or a new name for an old one, needs its row in docs/events.md."""
    assert sorted(_emitted() - set(documented_events())) == []


def test_every_event_of_the_page_is_made_by_the_code() -> None:
    """A row does not outlive its event."""
    assert sorted(set(documented_events()) - _emitted()) == []


def test_the_scan_of_the_code_sees_both_ways_of_naming_an_event() -> None:
    """Names passed as literals, and names chosen before."""
    assert {
        "worker.ready",
        "worker.bad_frame",
        "leftover.kept",
        "worker.spawn_failed",
    } <= _emitted()


def _configuration_page() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "configuration_page", ROOT / "tools" / "configuration_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_current() -> None:
    """`make docs` writes it; forgetting that fails here."""
    made = _configuration_page().page()
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == made


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
