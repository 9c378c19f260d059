"""What the rows of an experiment say: settings with all their seeds, means and differences."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from moist.results.aggregate import spread

Row = Mapping[str, str]
Rows = Sequence[Row]


def settings(rows: Iterable[Row]) -> dict[str, dict[int, Row]]:
    """Group runs by their setting, the point without its seed: in each by seed."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        words = shlex.split(row["point"])
        [seed] = [word for word in words if word.startswith("seed=")]
        setting = shlex.join(word for word in words if word != seed)
        found.setdefault(setting, {})[int(seed.removeprefix("seed="))] = row
    return {setting: dict(sorted(runs.items())) for setting, runs in found.items()}


def mean(name: str, factor: float = 1.0, digits: int = 2) -> Callable[[Rows], str]:
    """Return the text of a number's mean and deviation over runs; empty if a run lacks it."""

    def text(rows: Rows) -> str:
        values = [factor * float(row[name]) for row in rows if row.get(name)]
        if len(values) < len(rows):
            return ""
        found = spread(values)
        deviation = f" ± {found.sd:.{digits}f}" if found.sd else ""
        return f"{found.mean:.{digits}f}{deviation}"

    return text


def distinct(texts: Iterable[str]) -> str:
    """Join texts, each once."""
    return "; ".join(dict.fromkeys(texts))


def difference(runs: Mapping[int, Row], control: Mapping[int, Row]) -> str:
    """Compare test accuracies, in points, with a control's runs of the same seeds.

    A mean ± its standard error over the seeds; without that for one seed.
    """
    found = [
        100 * (float(row["accuracy"]) - float(control[seed]["accuracy"]))
        for seed, row in runs.items()
        if seed in control
    ]
    if not found:
        return ""
    each = spread(found)
    error = f" ± {each.sd / each.n**0.5:.2f}" if each.n > 1 else ""
    return f"{each.mean:+.2f}{error}"
