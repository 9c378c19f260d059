"""What the dashboard shows with a trial: how it came about, its record, its workers' log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def note(how: str, facts: Mapping[str, Any]) -> str:
    """In Markdown, from what is told of a trial."""
    lines = [f"**{how}**", facts.get("reason")]
    if "command" in facts:
        lines.append(f"`{facts['command']}`")
    if "seconds" in facts:
        lines.append(f"{facts['seconds']:.1f} s computed, {facts['saved']:.1f} s saved")
    return "\n\n".join(filter(None, lines))


def with_content(paths: Iterable[Path]) -> list[Path]:
    """Those files that are there and not empty."""
    return [path for path in paths if path.exists() and path.stat().st_size > 0]
