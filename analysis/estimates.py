"""Are expected times true? Predicts each stage of 30 small, mixed runs before it is computed.

    python -m analysis.estimates [HOME]

Trains on digits and on a generated folder of images: several networks, widths, epochs, clusters
and systems, in a fixed random order, in one home (default: an empty one), with one thread and in
float32. Writes a row for each stage to analysis/results/estimates.csv, and prints the share of
the estimates that are within a factor of two. Takes about 10 minutes.

Seconds are the processor's here, which are those of a clock on an idle machine: the work of others
on the machine changes from one run to the next, and no estimate can know it.
"""

from __future__ import annotations

import csv
import importlib
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from moist.config.overrides import parse
from moist.env import Env
from moist.measure.stage_times import StageTimes
from moist.pipeline import run, stages
from moist.reporting.terminal import between, duration
from moist.results.expected import Expected
from moist.store.plan import Plan
from moist.store.store import Store
from moist.study.workers import PRELOADED

RUNS = 30
BASE = (
    "precision=float32 teacher.arch=resnet8 distill.views=2 latency.repeats=10"
    " latency.seconds=0.2 routing.widths=32"
).split()
CHOICES = {
    "system": ["moist", "moist", "moist", "student", "ensemble"],
    "student.arch": ["cnn", "residual"],
    "student.channels": ["8,16", "16,32"],
    "k": ["2", "3"],
    "router": ["linear", "cnn"],
    "teacher.epochs": ["1", "2"],
    "distill.epochs": ["2", "4", "8", "16"],
    "routing.epochs": ["2", "4", "8"],
    "joint.epochs": ["2", "4", "8"],
}
WIDTHS = ["16", "64", "256"]


class ProcessorEnv(Env):
    """Measures the seconds that the processor works for a stage."""

    def at(self, stage: str, checkpoints: Path) -> Env:
        """Return this environment for one stage."""
        return replace(self, stage=stage, checkpoints=checkpoints, began=time.process_time())

    def seconds(self) -> float:
        """Return the time that the stage has taken so far."""
        return time.process_time() - self.began


class Row(NamedTuple):
    """A stage that was computed: what was expected, if anything, and what it took."""

    run: int
    overrides: str
    stage: str
    expected: Expected | None
    seconds: float

    @property
    def ratio(self) -> float:
        """How many times longer than expected it took, or shorter."""
        assert self.expected is not None
        return max(self.seconds / self.expected.seconds, self.expected.seconds / self.seconds)

    @property
    def held(self) -> bool:
        """Whether it took a time in the range."""
        one = self.expected
        return one is not None and one.low <= self.seconds <= one.high


def configs(images: Path) -> Iterator[list[str]]:
    """Draw the overrides of the runs."""
    draw = random.Random(0)
    for _ in range(RUNS):
        words = {key: draw.choice(values) for key, values in CHOICES.items()}
        if words["student.arch"] == "cnn":
            words["hidden_width"] = draw.choice(WIDTHS)
        if draw.random() < 0.5:
            words |= {"data.name": "folder", "data.root": str(images)}
        yield [*BASE, *(f"{key}={value}" for key, value in words.items())]


def write_images(root: Path) -> None:
    """Write 400 images of 16x16 pixels, in four classes."""
    draw = np.random.default_rng(0)
    for c in range(4):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(100):
            pixels = draw.integers(0, 90, (16, 16, 3), dtype=np.uint8)
            pixels[4 * c : 4 * c + 4] += 120
            Image.fromarray(pixels).save(root / f"class {c}" / f"{i:03}.png")


def measure(home: Path, images: Path) -> Iterator[Row]:
    """Predict and run each config; yield a row for each stage that was computed."""
    torch.set_num_threads(1)
    env = ProcessorEnv(torch.device("cpu"))
    for number, words in enumerate(configs(images)):
        config = parse(words)
        stages(config, plan := Plan(home, env))
        expected = {call.key: call.expected for call in StageTimes(env).of(plan)}
        run(config, store := Store(home, env))
        shown = " ".join(word for word in words[len(BASE) :] if not word.startswith("data.root"))
        for call in store.calls:
            if not call.reused and call.seconds is not None:
                yield Row(number, shown, call.stage, expected[call.key], call.seconds)


def summarize(rows: Sequence[Row]) -> str:
    """Say how many estimates were true."""
    known = [row for row in rows if row.expected is not None]
    long = [row for row in known if row.seconds >= 1]
    lines = [
        f"{len(rows)} stages of {RUNS} runs, {len(rows) - len(known)} without a comparable run"
    ]
    for what, some in (("all", known), ("those of a second or more", long)):
        true = sum(row.ratio <= 2 for row in some)
        lines.append(
            f"{what}: {true} of {len(some)} within a factor of two ({true / len(some):.0%}),"
            f" {sum(row.held for row in some)} in their range"
        )
    return "\n".join(lines)


def write(out: Path, rows: Sequence[Row]) -> None:
    """Write a row for each stage; times in seconds."""
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("run overrides stage expected low high records seconds".split())
        for run, overrides, stage, one, seconds in rows:
            cells = [one.seconds, one.low, one.high] if one else [None] * 3
            shown = ["" if cell is None else f"{cell:.3g}" for cell in (*cells, seconds)]
            shown.insert(3, str(one.records if one else 0))
            writer.writerow([run, overrides, stage, *shown])


def main(home: Path, out: Path) -> None:
    """Measure, print each row, and write them all."""
    for module in PRELOADED:  # else the first stage of its kind takes seconds longer
        importlib.import_module(module)
    began, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory() as images:
        write_images(Path(images) / "images")
        for row in measure(home, Path(images) / "images"):
            rows.append(row)
            one = row.expected
            shown = between(one.low, one.high) if one else "-"
            print(f"{row.run:>2} {row.stage:<18} {shown:<16} {duration(row.seconds)}", flush=True)
    write(out, rows)
    print(f"{summarize(rows)}\nin {duration(time.monotonic() - began)}, see {out}")


if __name__ == "__main__":
    out = Path(__file__).parent / "results" / "estimates.csv"
    if sys.argv[1:]:
        main(Path(sys.argv[1]), out)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), out)
