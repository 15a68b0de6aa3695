"""What is shown on a terminal has no power over it: the words of models, requests and exceptions are shown, never obeyed."""

from __future__ import annotations


def one_line(text: str) -> str:
    """`text` as one line that a terminal shows as it is: a model's answer must not move the
    cursor or break the columns."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def output_line(text: str) -> str:
    """A line of output: as `one_line`, but a tab stays what it is."""
    return "\t".join(one_line(part) for part in text.split("\t"))


def harmless_json(encoded: bytes) -> bytes:
    """The same JSON without the characters that a terminal obeys: DEL and the C1 controls, of which U+009B begins an escape
    sequence, may stand in JSON as they are. The newlines of JSON in several lines stay."""
    text = encoded.decode()
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text).encode()


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
