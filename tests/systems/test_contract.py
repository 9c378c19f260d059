"""The contract of every system: its descriptor, its builder and its stages agree."""

import importlib
import inspect
import pkgutil

import pytest
import torch
from recipes import CALLED, env, of_system, plan_of, tiny

from moist import stages as room
from moist.config import Config, flat, systems
from moist.config.conflicts import find_conflicts
from moist.config.overrides import parse
from moist.config.schema import choices, keys
from moist.config.systems import SYSTEMS, epochs_of, known_students
from moist.measure.multiply_adds import cost
from moist.nets.build import blank, module
from moist.pipeline import stages
from moist.store.artifacts import Cascade, Mixture, Student
from moist.store.plan import Plan
from moist.systems import BUILDERS, architecture

SHAPE = (1, 8, 8)
every_system = pytest.mark.parametrize("name", SYSTEMS)
CASCADES = ["", "cascade.fallback=teacher", "cascade.fallback=resnet8"]
every_cascade = pytest.mark.parametrize(
    ("name", "cascade"),
    [
        (name, cascade)
        for name in SYSTEMS
        for cascade in (CASCADES if not SYSTEMS[name].routes_deferred else CASCADES[2:])
    ],
)
CONFLICTS = {
    "moist": {"router": "oracle", "joint": {"objective": "em"}},
    "ones": {"router": "shared"},
    "ensemble": {"k": "auto"},
    "student": {"cascade": {"fallback": "resnet8"}, "student": {"arch": "resnet8"}},
    "specialists": {"cascade": {"fallback": "teacher"}},
}
"""A choice that each system refuses, and others do not, or not all."""


def stage_functions() -> dict[str, object]:
    """Return the stages by name."""
    modules = [
        importlib.import_module(f"{room.__name__}.{found.name}")
        for found in pkgutil.iter_modules(room.__path__)
    ]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and hasattr(value, "version")
    }


def test_the_config_the_descriptors_and_the_builders_name_the_same_systems():
    assert set(choices(Config, "system")) == SYSTEMS.keys() == BUILDERS.keys()


@every_system
def test_a_descriptor_names_stages_and_sections_that_exist(name):
    assert SYSTEMS[name].trains.keys() <= stage_functions().keys()
    for section in SYSTEMS[name].trains.values():
        assert getattr(Config(), section).epochs > 0
    assert SYSTEMS[name].model_stage in systems.CURVES


@pytest.mark.parametrize("under", CALLED)
def test_a_system_calls_the_stages_that_it_is_made_of(tmp_path, under):
    assert [call.stage for call in plan_of(tmp_path, *under.split())] == CALLED[under]


@every_cascade
def test_the_stages_that_train_are_called_in_the_order_of_their_steps(tmp_path, name, cascade):
    """W&B takes no step that is less than one before."""
    overrides = [f"system={name}", *cascade.split()]
    config = tiny(*overrides)
    called = [call.stage for call in plan_of(tmp_path, *overrides)]
    assert [stage for stage in called if stage in epochs_of(config)] == list(epochs_of(config))


@every_system
def test_the_model_is_what_its_stage_returns_and_is_made_of_as_many_students(tmp_path, name):
    config = tiny(*of_system(name).split())
    out = stages(config, Plan(tmp_path, env()))
    descriptor = SYSTEMS[name]
    trained = out.models.fallback if descriptor.routes_deferred else out.models.model
    assert trained is not None and trained.stage == descriptor.model_stage
    assert (out.models.clusters is not None) == descriptor.clusters
    assert (out.models.model is out.models.student) == descriptor.is_student
    assert ("oracle" in out.evaluations) == (descriptor.routes or descriptor.routes_deferred)
    assert descriptor.expert in keys()
    assert known_students(config) == (2 if descriptor.many_students else 1)


@every_cascade
def test_the_untrained_model_of_a_system_classifies_and_has_a_cost(name, cascade):
    config = tiny(f"system={name}", *cascade.split())
    arch = architecture(config)
    model = blank(arch, SHAPE, 10, known_students(config) or 2)
    assert isinstance(model, Cascade) == bool(cascade) == arch.cascades
    first = model.first if isinstance(model, Cascade) else model
    assert isinstance(first, Mixture) == SYSTEMS[name].routes
    many = SYSTEMS[name].many_students
    assert isinstance(first, Student) == (not many or SYSTEMS[name].routes_deferred)
    if SYSTEMS[name].routes_deferred:
        assert isinstance(model, Cascade) and isinstance(model.fallback, Mixture)
        assert len(model.fallback.students) == known_students(config)
    net = module(model).eval()
    with torch.inference_mode():
        logits_BC = net(torch.randn(2, *SHAPE))
    assert logits_BC.shape == (2, 10) and logits_BC.isfinite().all()
    assert cost(net, SHAPE).flops > 0


@every_system
def test_a_system_finds_its_conflicts_and_admits_the_defaults(name):
    assert list(find_conflicts(parse(of_system(name).split()))) == []
    with pytest.raises(ValueError, match=r"`[a-z._]+=[a-z0-9_]+`"):
        Config.model_validate({"system": name, **CONFLICTS[name]})


def test_every_system_has_a_title_of_its_own():
    configs = {name: flat(tiny(*of_system(name).split())) for name in SYSTEMS}
    titles = [system.title(configs[name], 3) for name, system in SYSTEMS.items()]
    assert len(set(titles)) == len(SYSTEMS)
    assert systems.system_of({}) is SYSTEMS["moist"]  # the oldest records name no system
