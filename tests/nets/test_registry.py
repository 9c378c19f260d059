"""The contract of every network of the registries; and that the config names exactly these."""

from pathlib import Path

import pytest
import torch
from torch import nn

from moist import config
from moist.config import schema
from moist.config.systems import SHARING
from moist.nets.build import module
from moist.nets.cnn import STUDENTS, TEACHERS
from moist.nets.entry import TRUNK
from moist.nets.routers import ROUTERS, OracleRouter
from moist.stages.joint import OBJECTIVES
from moist.store import checkpoint
from moist.store.artifacts import Network, Router, Spec, Student, Teacher
from moist.training.descent import schedule_factor

SHAPES = [(3, 32, 32), (1, 8, 8), (3, 30, 45)]

CASES = [
    *((Teacher, name, {}) for name in TEACHERS),
    *(
        (Student, name, entry.options(config.StudentConfig(arch=name), 16))
        for name, entry in STUDENTS.items()
    ),
    (Student, "cnn", STUDENTS["cnn"].options(config.StudentConfig(batch_norm=True), 16)),
    (Student, "residual", {"channels": (6, 4, 8), "blocks": (1, 3, 2)}),
    (Student, "residual", {"channels": (5,), "blocks": (1,)}),
    *(
        (Router, name, entry.options(config.RoutingConfig()))
        for name, entry in ROUTERS.items()
        if name != "oracle"
    ),
]

STUDENT_CASES = [(name, options) for kind, name, options in CASES if kind is Student]

every_network = pytest.mark.parametrize(("kind", "name", "options"), CASES)
every_classifier = pytest.mark.parametrize(
    ("kind", "name", "options"), [network for network in CASES if network[0] is not Router]
)
every_student = pytest.mark.parametrize(("name", "options"), STUDENT_CASES)
every_shape = pytest.mark.parametrize("shape", SHAPES)

NETWORKS = TEACHERS | STUDENTS
REGISTRIES = {Teacher: TEACHERS, Student: STUDENTS, Router: ROUTERS}


def built(kind: type[Network], name: str, options: dict, shape: tuple, outputs: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return REGISTRIES[kind][name].build(shape, outputs, **options)


def images(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("section", "field", "registry"),
    [
        (config.TeacherConfig, "arch", TEACHERS),
        (config.StudentConfig, "arch", STUDENTS),
        (config.Config, "router", ROUTERS),
        (config.JointConfig, "objective", OBJECTIVES),
    ],
)
def test_the_config_admits_exactly_the_names_that_are_implemented(
    section: type[config.Section], field: str, registry: dict[str, object]
) -> None:
    assert sorted(schema.choices(section, field)) == sorted(registry)


def test_no_two_schedules_of_the_config_are_the_same() -> None:
    curves = {
        tuple(schedule_factor(name, step / 8) for step in range(9))
        for name in schema.choices(config.TrainingConfig, "schedule")
    }
    assert len(curves) == len(schema.choices(config.TrainingConfig, "schedule"))


@every_shape
@every_network
def test_a_network_gives_finite_logits_and_a_gradient_to_every_parameter(
    kind: type[Network], name: str, options: dict, shape: tuple[int, int, int]
) -> None:
    net = built(kind, name, options, shape, outputs=5)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        logits_BC = net(images(shape))
        (logits_BC * torch.randn(2, 5)).sum().backward()
    assert logits_BC.shape == (2, 5)
    assert logits_BC.isfinite().all()
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    # a bias before batch norm has gradient 0, and so has one of attention's keys
    assert all(p.grad.any() for p in net.parameters() if p.grad is not None and p.dim() > 1)


@every_shape
@every_network
def test_a_network_comes_back_from_its_stored_artifact_the_same(
    kind: type[Network],
    name: str,
    options: dict,
    shape: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    net = built(kind, name, options, shape, outputs=4)
    net(images(shape))  # moves the statistics of batch norm
    network = kind(Spec(name, shape, 4, options), net.state_dict(), ())
    checkpoint.write_artifact(tmp_path, network)
    back = module(checkpoint.read_artifact(tmp_path)).eval()
    assert back.state_dict().keys() == net.state_dict().keys()
    assert all(torch.equal(back.state_dict()[n], t) for n, t in net.state_dict().items())
    with torch.inference_mode():
        torch.testing.assert_close(back(images(shape)), net.eval()(images(shape)))


@every_network
def test_a_network_answers_for_each_image_by_itself_when_it_evaluates(
    kind: type[Network], name: str, options: dict
) -> None:
    net = built(kind, name, options, (3, 16, 16), outputs=5).eval()
    x_BCHW = images((3, 16, 16))
    with torch.inference_mode():
        alone_BC = torch.cat([net(x_BCHW[:1]), net(x_BCHW[1:])])
        torch.testing.assert_close(net(x_BCHW), alone_BC, rtol=1e-4, atol=1e-5)


@every_network
def test_a_network_returns_logits_not_probabilities(
    kind: type[Network], name: str, options: dict
) -> None:
    net = built(kind, name, options, (3, 32, 32), outputs=3).eval()
    with torch.inference_mode():
        logits_BC = net(images((3, 32, 32)))
    assert not torch.allclose(logits_BC.sum(1), torch.ones(2), atol=1e-2)
    assert (logits_BC < 0).any()


@every_classifier
def test_the_last_linear_layer_of_a_network_is_the_one_named(
    kind: type[Network], name: str, options: dict
) -> None:
    net = built(kind, name, options, (3, 32, 32), outputs=7).eval()
    last = net.get_submodule(NETWORKS[name].last)
    seen: list[torch.Tensor] = []
    last.register_forward_hook(lambda _, __, logits_BC: seen.append(logits_BC))
    with torch.inference_mode():
        logits_BC = net(images((3, 32, 32)))
    assert isinstance(last, nn.Linear)
    assert last.out_features == 7
    assert torch.equal(seen[0], logits_BC)


@pytest.mark.parametrize("name", TEACHERS)
def test_the_stages_of_a_teacher_give_feature_maps_that_shrink(name: str) -> None:
    net = built(Teacher, name, {}, (3, 32, 32), outputs=5).eval()
    seen: list[torch.Tensor] = []
    for level in TEACHERS[name].levels:
        net.get_submodule(level).register_forward_hook(lambda _, __, x_BCHW: seen.append(x_BCHW))
    with torch.inference_mode():
        net(images((3, 32, 32)))
    assert len(seen) == len(TEACHERS[name].levels)
    assert all(x_BCHW.dim() == 4 and len(x_BCHW) == 2 for x_BCHW in seen)
    sides = [x_BCHW.shape[3] for x_BCHW in seen]
    assert sides == sorted(set(sides), reverse=True)


def test_one_name_is_one_network() -> None:
    assert all(TEACHERS[name] is STUDENTS[name] for name in TEACHERS.keys() & STUDENTS.keys())


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, options in STUDENT_CASES if STUDENTS[name].reduction(**options)],
)
def test_a_student_reduces_images_of_its_reduction_to_one_pixel(name: str, options: dict) -> None:
    """Batch norm refuses to train on one such image, and not on a larger one."""
    reduction = STUDENTS[name].reduction(**options)
    for side, trains in ((reduction, False), (2 * reduction, True)):
        net = built(Student, name, options, (1, side, side), 3).train()
        image = torch.randn(1, 1, side, side)
        if trains:
            assert net(image).isfinite().all()
        else:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                net(image)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_students_with_sizes_to_choose_are_cnn_and_residual(name: str) -> None:
    options = STUDENTS[name].options(config.StudentConfig(arch=name, channels=(4, 8)), 16)
    sizes = {
        "cnn": {"hidden_width": 16, "channels": (4, 8), "batch_norm": False},
        "residual": {"channels": (4, 8), "blocks": (2,)},
    }
    assert options == sizes.get(name, {})


@every_student
def test_a_student_has_a_trunk_if_the_config_lets_it_share_one(name: str, options: dict) -> None:
    net = built(Student, name, options, (3, 30, 45), 5).eval()
    assert hasattr(net, TRUNK) == (name in SHARING)
    if name in SHARING:
        maps_BCHW = net.get_submodule(TRUNK)(images((3, 30, 45)))
        net.set_submodule(TRUNK, nn.Identity())
        assert maps_BCHW.dim() == 4
        assert net(maps_BCHW).shape == (2, 5)
        assert any(p.dim() > 1 for p in net.parameters())


def test_the_oracle_has_no_weights_and_routes_by_the_cluster() -> None:
    oracle = ROUTERS["oracle"].build((3, 8, 8), 3)
    assert isinstance(oracle, OracleRouter)
    assert not oracle.state_dict()
    gate_BE = oracle.logits_of(torch.tensor([2, 0, 2]))
    expected = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 1.0]])
    assert torch.equal(gate_BE.softmax(1), expected)
