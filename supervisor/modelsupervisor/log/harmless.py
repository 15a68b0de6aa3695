"""JSON for a terminal: the words of models, requests and exceptions are shown, never obeyed. Pure."""

from __future__ import annotations


def harmless_json(encoded: bytes) -> bytes:
    """The same JSON without the characters that a terminal obeys: DEL and the C1 controls, of which U+009B begins an escape
    sequence, may stand in JSON as they are. The newlines of JSON in several lines stay."""
    text = encoded.decode()
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text).encode()


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
