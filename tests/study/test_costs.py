"""What is known before training is what the finished run says, to the unit."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

from moist.config import Config
from moist.config.overrides import parse
from moist.env import Env
from moist.errors import ConfigError, StoreError
from moist.nets.build import Model, blank, module, timed_models
from moist.pipeline import run, stages
from moist.results.objectives import QUANTITIES, SPREAD, TRAINED, quantities
from moist.store import maintenance
from moist.store.artifacts import Cascade, Ensemble, Mixture, Student
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.store import Store
from moist.study import costs
from moist.study.costs import time_together, untrained_quantities
from moist.systems import architecture

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
    pytest.param("teacher.arch=fastnet", marks=pytest.mark.slow),
    "precision=bf16",
    "data.image_size=13",
    "k=1",
    "k=10",
    "router=shared",
    "router=shared student.batch_norm=true routing.hidden_width=5 k=3",
    "system=student distill.epochs=3",
    "system=student k=7 distill.epochs=4",
    "system=ones",
    "system=ensemble k=3",
    "system=ensemble ensemble.views=filtered",
]

DOUBTING = ["mixture.top=2", "cascade.fallback=teacher", "system=student cascade.fallback=resnet8"]


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
    before = untrained_quantities(config, opened(home), latency=True)
    store = opened(home)
    report = run(config, store)
    assert before == {n: v for n, v in quantities(report).items() if n not in TRAINED}
    assert before.keys() == QUANTITIES.keys() - TRAINED | {SPREAD}
    computed = {call.stage for call in store.calls if not call.reused}
    assert computed.isdisjoint({"prepare", "measure_latency"})


def test_only_data_and_latency_are_computed_and_latency_only_on_request(tmp_path):
    counted = untrained_quantities(tiny(), opened(tmp_path), latency=False)
    assert {entry.stage for entry in maintenance.entries(ObjectStore(tmp_path))} == {"prepare"}
    timed = untrained_quantities(tiny(), opened(tmp_path), latency=True)
    assert {entry.stage for entry in maintenance.entries(ObjectStore(tmp_path))} == {
        "prepare",
        "measure_latency",
    }
    assert timed == {**counted, **{name: timed[name] for name in ("latency_ms", SPREAD)}}


def test_trials_of_one_architecture_share_one_measurement(home):
    first = untrained_quantities(tiny(), opened(home), latency=True)
    other = "seed=3 temperature=2 distill.alpha=0.1 joint.lr=0.1 routing.epochs=2 augment.shift=0"
    store = opened(home)
    assert untrained_quantities(tiny(other), store, latency=True) == first
    assert all(call.reused for call in store.calls)


@pytest.mark.parametrize("overrides", ["k=auto", *DOUBTING])
def test_what_training_decides_is_not_known_before(tmp_path, overrides):
    """How many clusters there are, and how many images ask for a second opinion; how long these
    take can be measured before."""
    assert untrained_quantities(tiny(overrides), opened(tmp_path), latency=True) == {}
    timed = set() if overrides == "k=auto" else {"prepare", "measure_latency"}
    assert {entry.stage for entry in maintenance.entries(ObjectStore(tmp_path))} == timed


def test_how_many_students_there_are_matters_only_where_they_are_the_model(home):
    def cost(overrides: str) -> dict[str, float] | None:
        return untrained_quantities(tiny(overrides), opened(home), latency=False)

    assert cost("system=student k=3") == cost("system=ones k=5") == cost("system=student")
    two, three = cost("system=ensemble k=2"), cost("system=ensemble k=3")
    assert all(three[name] == two[name] * 3 / 2 for name in two)


def test_a_config_that_can_not_work_on_the_data_raises_an_error(tmp_path):
    with pytest.raises(ConfigError, match="`k=11`"):
        untrained_quantities(tiny("k=11"), opened(tmp_path), latency=False)
    with pytest.raises(ConfigError, match=r"can't read teacher\.weights"):
        untrained_quantities(tiny("teacher.weights=/nowhere.pth"), opened(tmp_path), latency=False)


def test_a_data_set_is_loaded_for_its_shape_once_a_process(home):
    """A plan has no value to load, so it answers only if nothing is loaded."""
    config = tiny("data.val_fraction=0.25")
    with pytest.raises(StoreError):
        untrained_quantities(config, plan(home), latency=False)
    found = untrained_quantities(config, opened(home), latency=False)
    assert untrained_quantities(config, plan(home), latency=False) == found


def test_a_network_is_traced_once_however_it_is_trained(home):
    untrained_quantities(tiny("hidden_width=11"), opened(home), latency=False)
    traced = costs._cost.cache_info().misses
    for override in ("seed=1", "temperature=2", "routing.lr=0.1", "joint.lr=0.1", "merge.lr=0.1"):
        untrained_quantities(tiny(f"hidden_width=11 {override}"), opened(home), latency=False)
    assert costs._cost.cache_info().misses == traced
    untrained_quantities(tiny("hidden_width=12"), opened(home), latency=False)
    assert costs._cost.cache_info().misses == traced + 1


# the untrained model


BUILT = [
    "",
    "router=cnn student.batch_norm=true",
    "router=oracle",
    "router=shared",
    "joint.objective=switch joint.mask_students=false",
    "system=student",
    "system=ones",
    "system=ensemble ensemble.views=filtered k=3",
    *DOUBTING,
]


def built(config: Config) -> Model:
    """Of digits, at the size that a config asks for."""
    return blank(architecture(config), (1, 8, 8), 10, int(config.k))


@pytest.mark.parametrize("overrides", BUILT)
def test_an_untrained_model_is_built_like_the_trained_one(home, overrides):
    config = tiny(overrides)
    trained, fresh = stages(config, opened(home)).models.model.value, built(config)
    shapes = [
        {name: (t.shape, t.dtype) for name, t in module(model).state_dict().items()}
        for model in (fresh, trained)
    ]
    assert shapes[0] == shapes[1]
    one, other = (
        model.first if isinstance(model, Cascade) else model for model in (fresh, trained)
    )
    assert type(one) is type(other) and type(fresh) is type(trained)
    if isinstance(one, Mixture):
        assert one.clusters.k == other.clusters.k
        assert (one.masked, one.gated) == (other.masked, other.gated)
    if isinstance(one, Ensemble):
        assert one.views == other.views


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_an_untrained_mixture_deals_its_classes_evenly(sizes):
    classes, k = sizes
    mixture = blank(architecture(tiny()), (1, 8, 8), classes, k)
    assert isinstance(mixture, Mixture)
    got = [mixture.clusters.of_class.count(j) for j in range(k)]
    assert len(mixture.students) == mixture.clusters.k == k
    assert sum(got) == classes and max(got) - min(got) <= 1


def test_an_untrained_model_is_the_same_each_time_and_leaves_torchs_numbers_alone():
    before = torch.random.get_rng_state()
    first = built(tiny("cascade.fallback=teacher"))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    weights = [
        module(model).state_dict() for model in (first, built(tiny("cascade.fallback=teacher")))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("overrides", ["", *DOUBTING])
def test_a_fallback_is_timed_beside_the_first_model(overrides):
    config = tiny(overrides)
    timed = timed_models(architecture(config), (1, 8, 8), 10, 2)
    assert list(timed)[:3] == ["model", "student", "teacher"]
    assert ("asked" in timed) == architecture(config).cascades
    assert not isinstance(timed["model"], Cascade)
    assert isinstance(timed["student"], Student)
    assert [part.spec.name for part in (timed["student"], timed["teacher"])] == ["cnn", "resnet8"]


def test_a_cascades_latency_counts_the_share_of_images_that_is_deferred(home):
    shares = [0, 1]
    configs = [tiny(f"cascade.fallback=teacher cascade.defer={share}") for share in shares]
    never, always = time_together(configs, opened(home))
    assert always.median > never.median
