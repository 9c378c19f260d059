"""The sweep files that come with moist, and what the first comment of each says about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moist.config.files import packaged

WORDS = ("Question", "Cost", "Expect")


@dataclass(frozen=True)
class CatalogEntry:
    """A sweep file with its question, cost and expected answer."""

    name: str
    question: str
    cost: str
    expect: str
    path: str


def catalog() -> list[CatalogEntry]:
    """Return the sweep files that come with moist, by name."""
    found = []
    for name, path in packaged().items():
        question, cost, expect = comment(path).values()
        found.append(CatalogEntry(name, question, cost, expect=expect, path=str(path)))
    return found


def comment(path: Path) -> dict[str, str]:
    """Return the `Question:`, `Cost:` and `Expect:` of a file's first comment, empty if absent.

    Each begins a line; it ends at the next one, or at an empty line.
    """
    found = dict.fromkeys(WORDS, "")
    current = ""
    for line in path.read_text("utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line[1:].strip()
        word, colon, rest = text.partition(":")
        if colon and word in WORDS:
            current, text = word, rest.strip()
        elif not text:
            current = ""
        if current:
            found[current] = f"{found[current]} {text}".strip()
    return found
