"""What is known before training is what the finished run says, to the unit."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moist import cache, static
from moist.artifacts import Mixture, Spec
from moist.config import Config
from moist.env import Env
from moist.errors import ConfigError, StoreError
from moist.mixture import module, untrained
from moist.objectives import QUANTITIES, TRAINED, quantities
from moist.overrides import parse
from moist.pipeline import run, stages
from moist.static import known
from moist.store import Plan, Store

SWEEPS = Path(__file__).parents[1] / "sweeps"
TINY = [
    f"@{SWEEPS / 'tiny.yaml'}",
    *(f"{section}.epochs=1" for section in ("teacher", "distill", "routing", "joint")),
    "distill.views=1", "latency.repeats=10", "latency.seconds=0.01",
]  # fmt: skip

VARIANTS = [
    "router=linear",
    "router=linear routing.widths=",
    "router=cnn",
    "router=cnn routing.hidden_width=7 k=3",
    "router=transformer",
    "router=oracle",
    "joint.mask_students=false",
    "joint.mask_students=false joint.objective=switch",
    "student.batch_norm=true hidden_width=9",
    "student.channels=3,5",
    "teacher.arch=resnet18",
    "precision=float32",
    "data.image_size=13",
    "k=1",
    "k=10",
]


def tiny(overrides: str = "") -> Config:
    return parse([*TINY, *overrides.split()])


def opened(home: Path) -> Store:
    return Store(home, Env(torch.device("cpu")))


def plan(home: Path) -> Plan:
    return Plan(home, Env(torch.device("cpu")))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all tests that only add to it."""
    return tmp_path_factory.mktemp("home")


# what is known


@pytest.mark.parametrize("overrides", VARIANTS)
def test_what_is_known_before_training_is_what_the_run_reports(home, overrides):
    config = tiny(overrides)
    before = known(config, opened(home), latency=True)
    store = opened(home)
    report = run(config, store)
    assert before == {n: v for n, v in quantities(report).items() if n not in TRAINED}
    assert before.keys() == QUANTITIES.keys() - TRAINED
    computed = {call.stage for call in store.calls if not call.reused}
    assert computed.isdisjoint({"prepare", "measure_latency"}) and computed


def test_only_data_and_latency_are_computed_to_know_it_and_latency_only_if_asked(tmp_path):
    counted = known(tiny(), opened(tmp_path), latency=False)
    assert {entry.stage for entry in cache.entries(tmp_path)} == {"prepare"}
    timed = known(tiny(), opened(tmp_path), latency=True)
    assert {entry.stage for entry in cache.entries(tmp_path)} == {"prepare", "measure_latency"}
    assert timed == {**counted, "latency_ms": timed["latency_ms"]}


def test_trials_of_one_architecture_share_one_measurement(home):
    first = known(tiny(), opened(home), latency=True)
    other = "seed=3 temperature=2 distill.alpha=0.1 joint.lr=0.1 routing.epochs=2 augment.shift=0"
    store = opened(home)
    assert known(tiny(other), store, latency=True) == first
    assert all(call.reused for call in store.calls)


def test_with_k_auto_nothing_is_known_and_nothing_computed(tmp_path):
    assert known(tiny("k=auto"), opened(tmp_path), latency=True) is None
    assert cache.entries(tmp_path) == []


def test_what_can_not_work_on_the_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="`k=11`"):
        known(tiny("k=11"), opened(tmp_path), latency=False)
    with pytest.raises(ConfigError, match=r"can't read teacher\.weights"):
        known(tiny("teacher.weights=/nowhere.pth"), opened(tmp_path), latency=False)


def test_a_data_set_is_loaded_for_its_shape_once_a_process(home):
    """A plan has no value to load, so it answers only if nothing is loaded."""
    config = tiny("data.val_fraction=0.25")
    with pytest.raises(StoreError):
        known(config, plan(home), latency=False)
    found = known(config, opened(home), latency=False)
    assert known(config, plan(home), latency=False) == found


def test_a_network_is_traced_once_however_it_is_trained(home):
    known(tiny("hidden_width=11"), opened(home), latency=False)
    traced = static._cost.cache_info().misses
    for override in ("seed=1", "temperature=2", "routing.lr=0.1", "joint.mask_students=false"):
        known(tiny(f"hidden_width=11 {override}"), opened(home), latency=False)
    assert static._cost.cache_info().misses == traced
    known(tiny("hidden_width=12"), opened(home), latency=False)
    assert static._cost.cache_info().misses == traced + 1


# the untrained mixture


@pytest.mark.parametrize("overrides", ["", "router=cnn student.batch_norm=true", "router=oracle"])
def test_an_untrained_mixture_is_built_like_the_trained_one(home, overrides):
    trained = stages(tiny(overrides), opened(home)).mixture.value
    fresh = untrained(
        trained.students[0].spec, trained.router.spec, masked=trained.masked, gated=trained.gated
    )
    shapes = [
        {name: (t.shape, t.dtype) for name, t in module(mixture).state_dict().items()}
        for mixture in (fresh, trained)
    ]
    assert shapes[0] == shapes[1]
    assert fresh.clusters.k == trained.clusters.k
    assert (fresh.masked, fresh.gated) == (trained.masked, trained.gated)


def drawn(classes: int, k: int) -> Mixture:
    options = {"hidden_width": 4, "channels": (2, 3), "batch_norm": False}
    router = Spec("linear", (1, 8, 8), k, {"widths": (), "dropout": 0.0})
    return untrained(Spec("cnn", (1, 8, 8), classes, options), router, masked=True, gated=False)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_an_untrained_mixture_deals_its_classes_evenly(sizes):
    classes, k = sizes
    mixture = drawn(classes, k)
    got = [mixture.clusters.of_class.count(j) for j in range(k)]
    assert len(mixture.students) == mixture.clusters.k == k
    assert sum(got) == classes and max(got) - min(got) <= 1


def test_an_untrained_mixture_is_the_same_each_time_and_leaves_torchs_numbers_alone():
    before = torch.random.get_rng_state()
    first = drawn(4, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    second = drawn(4, 2)
    for a, b in ((first.router, second.router), (first.students[0], second.students[0])):
        assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)
