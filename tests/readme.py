"""The README, and the commands in a text."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the content of each fenced block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[str]:
    """Each `moist ...` in a text, one command a line, without what surrounds it."""
    found = []
    for line in text.splitlines():
        for part in re.split(r"&&|\|\|", line.partition("  #")[0]):
            words = re.split(r"\s>", part)[0].strip().removeprefix("uv run ").strip()
            found += [words] if re.match(r"moist(\s|$)", words) else []
    return found
