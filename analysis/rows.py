"""What the rows of an experiment say: settings with all their seeds, means and differences."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

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


def beside(accuracy: float, rows: Rows) -> tuple[str, bool]:
    """Compare a repeated run's test accuracy with the committed runs of its setting.

    Returns a text, and whether it is within three standard deviations of their mean. One committed
    run has no deviation, and any accuracy passes.
    """
    found = spread([100 * float(row["accuracy"]) for row in rows])
    gap = 100 * accuracy - found.mean
    deviation = f" ± {found.sd:.2f}" if found.n > 1 else ""
    text = (
        f"committed {found.mean:.2f}{deviation} % of the test images (n = {found.n}),"
        f" repeated {100 * accuracy:.2f} %: {gap:+.2f} points"
    )
    return text, found.n == 1 or abs(gap) <= 3 * found.sd


def distinct(texts: Iterable[str]) -> str:
    """Join texts, each once."""
    return "; ".join(dict.fromkeys(texts))


def packed(right_N: NDArray[np.bool_]) -> str:
    """Return which images are classified right as text, a bit each."""
    return base64.b64encode(np.packbits(right_N).tobytes()).decode()


def unpacked(row: Row) -> NDArray[np.bool_]:
    """Return which of a run's test images (N) are classified right."""
    bits = np.frombuffer(base64.b64decode(row["right"]), np.uint8)
    return np.unpackbits(bits, count=int(row["n_test"])).astype(bool)


def difference(runs: Mapping[int, Row], control: Mapping[int, Row]) -> str:
    """Compare test accuracies, in points, with a control's runs of the same seeds.

    A mean with two standard errors, of which each regards one thing as drawn at random: the seeds
    (n > 1), and the test images, paired, by the mean of each over the seeds.
    """
    both = [(row, control[seed]) for seed, row in runs.items() if seed in control]
    if not both:
        return ""
    each = spread(
        [100 * (float(one["accuracy"]) - float(other["accuracy"])) for one, other in both]
    )
    errors = [f"{each.sd / each.n**0.5:.2f} (seeds)"] if each.n > 1 else []
    if all(row.get("right") for pair in both for row in pair):
        gains = [100.0 * unpacked(one) - 100.0 * unpacked(other) for one, other in both]
        gain_N = np.mean(gains, axis=0)
        errors.append(f"{gain_N.std(ddof=1) / len(gain_N) ** 0.5:.2f} (images)")
    return " ± ".join([f"{each.mean:+.2f}", *errors])
