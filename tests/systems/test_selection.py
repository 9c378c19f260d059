"""Nothing is selected on test images: with others, and shuffled labels, every choice stays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import SPECIALISTS, env, tiny

from moist.config.systems import SYSTEMS
from moist.data.sources import Source, locate
from moist.env import Env
from moist.pipeline import stages
from moist.results.objectives import quantities
from moist.stages import prepare as stage
from moist.stages import stage as marked
from moist.store.artifacts import Dataset, Split, pack
from moist.store.store import Store
from moist.study.trainer import curves
from moist.systems.outputs import report_of

MEASURED = {"prepare", "measure_latency", "evaluate"}
CHOOSES = {
    "moist": "k=auto mixture.top=2",
    "ones": "system=ones cascade.fallback=teacher",
    "ensemble": "system=ensemble cascade.fallback=teacher",
    "student": "system=student cascade.fallback=resnet8",
    "specialists": SPECIALISTS,
}
"""Each system with all that it can choose, a threshold among it."""


@marked(version=stage.prepare.version)
def prepare(env: Env, *, source: Source, val_fraction: float) -> Dataset:
    """Prepare data with other test images, their labels shuffled, under the same key."""
    data = stage.prepare(env, source=source, val_fraction=val_fraction)
    order_N = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    return replace(data, test=Split(255 - data.test.images_NHWC, data.test.labels_N[order_N]))


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, data = tmp_path_factory.mktemp("shuffled"), tiny().data
    source = locate(data, home)
    Store(home, env()).call(prepare, source=source, val_fraction=data.val_fraction)
    return home


def chosen(home: Path, overrides: str) -> tuple[list[Any], dict[str, float], float]:
    """Run; return all that was trained or chosen, what a study selects by, and the accuracy."""
    store, config = Store(home, env()), tiny(*overrides.split())
    out = stages(config, store)
    report = report_of(config, out, store.calls)
    made = [
        (call.stage, *packed(store.load(call.key)))
        for call in store.calls
        if call.stage not in MEASURED
    ]
    timed = {"latency_ms", "latency_spread"}
    selects = {name: value for name, value in quantities(report).items() if name not in timed}
    return [made, curves(out)], selects, report.accuracy


def packed(output: object) -> tuple[Any, dict[str, list[Any]]]:
    tree, tensors = pack(output)
    return timeless(tree), {name: tensor.flatten().tolist() for name, tensor in tensors.items()}


def timeless(tree: Any) -> Any:
    """Drop the speed from the rows of epochs."""
    if isinstance(tree, dict):
        return {name: timeless(one) for name, one in tree.items() if name != "images_per_second"}
    return [timeless(one) for one in tree] if isinstance(tree, list) else tree


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_choice_stays_when_the_test_images_and_their_labels_are_others(home, shuffled, name):
    made, selects, accuracy = chosen(home, CHOOSES[name])
    again, selects_again, accuracy_again = chosen(shuffled, CHOOSES[name])
    assert again == made
    assert selects_again == selects and "accuracy" in selects
    assert accuracy_again != accuracy
