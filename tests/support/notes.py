"""A note of the core against the catalogue of events."""

from __future__ import annotations

from modelsupervisor.core.actions import Note
from support.schema import check_words


def check_note(note: Note) -> None:
    """Its name, its level and its facts are those of the catalogue. Of a spare the edge knows the number and the age."""
    facts = dict(note.fields)
    if note.spare is not None:
        facts |= {"spare": note.spare.number, "start_s": 0.0}
    if note.config_of is not None:
        facts["config"] = "the edge's"
    check_words(note.level, note.event, facts)
