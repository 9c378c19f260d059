"""`router=shared`: students and router read one trunk, which is really one."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moist import config
from moist.config import AugmentConfig, JointConfig, RoutingConfig
from moist.env import Env
from moist.measure.multiply_adds import cost
from moist.nets.build import Architecture, blank, fresh, module, student_spec
from moist.nets.cascade import CascadeNet
from moist.nets.cnn import STUDENTS
from moist.nets.entry import TRUNK
from moist.nets.mixture import MoIST
from moist.nets.routers import ROUTERS
from moist.stages.joint import OBJECTIVES, train_jointly
from moist.stages.route import pretrain_router
from moist.store.artifacts import Cascade, Clusters, Dataset, Mixture, Router, Split, Student
from moist.store.checkpoint import read_artifact, write_artifact

SHAPE = (1, 8, 8)
CIFAR = (3, 32, 32)
CLUSTERS = Clusters((0, 1, 0, 2, 1), {})
ENV = Env(torch.device("cpu"), stage="shared")
SHARING = [name for name in OBJECTIVES if name != "students_only"]


PLAIN = config.StudentConfig(channels=(4, 6))
NORMED = config.StudentConfig(channels=(4, 6), batch_norm=True)
RESIDUAL = config.StudentConfig(arch="residual", channels=(4, 6), blocks=(1,))


every_student = pytest.mark.parametrize(
    "options", [PLAIN, NORMED, RESIDUAL], ids=["cnn", "cnn with batch norm", "residual"]
)


def student(options: config.StudentConfig = PLAIN) -> Student:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fresh(Student, student_spec(options, 8, SHAPE, 5))


def dataset(n: int = 20) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 100, (n, 8, 8, 1), dtype=torch.uint8, generator=generator)
    labels_N = torch.arange(n) % 5
    pixels[torch.arange(n), labels_N] += 150  # a bright row tells the class
    split = Split(pixels, labels_N)
    empty = Split(pixels[:0], labels_N[:0])
    return Dataset("tiny", tuple("abcde"), (0.5,), (0.3,), split, empty, split)


def images(n: int = 12) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(n))


COMMON = {"data": dataset(), "augment": AugmentConfig(shift=1), "precision": "float32", "seed": 0}


def routed(start: Student, **values: object) -> Router:
    return pretrain_router(
        ENV, clusters=CLUSTERS, student=start, router="shared",
        routing=RoutingConfig(epochs=2, batch_size=8, hidden_width=7, **values), **COMMON,
    )  # fmt: skip


def trained(
    objective: str = "hierarchical", options: config.StudentConfig = PLAIN, **values: object
) -> Mixture:
    start = student(options)
    joint = {"objective": objective, "mask_students": False, "epochs": 2, "batch_size": 8}
    return train_jointly(
        ENV, clusters=CLUSTERS, router=routed(start), student=start,
        joint=JointConfig.model_validate({**joint, "lr": 0.01, **values}), logits=None,
        temperature=None, **COMMON,
    )  # fmt: skip


def network(model: Mixture) -> MoIST:
    net = module(model)
    assert isinstance(net, MoIST)
    return net


def unshared(net: MoIST, model: Mixture) -> MoIST:
    """The mixture with a trunk for each student and one for the router, of the same weights."""
    students = [module(one) for one in model.students]
    router = nn.Sequential(module(model.students[0]).get_submodule(TRUNK), net.router)
    return MoIST(router, students, model.clusters, masked=model.masked, gated=model.gated).eval()


# one trunk


def test_there_is_one_trunk_and_every_student_moves_it() -> None:
    net = network(trained())
    names = [name for name, _ in net.named_parameters()]
    assert sum("trunk" in name for name in names) == 4
    assert len(names) == 4 + 3 * 4 + 4  # trunk, students' heads, router
    for j in range(3):
        net.zero_grad()
        net.expert(j, net.trunk(images())).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in net.trunk.parameters())
        moved = [one.fc1.weight.grad is not None for one in net.students]
        assert moved == [i == j for i in range(3)]


def test_the_router_moves_it_too() -> None:
    net = network(trained())
    F.cross_entropy(net.route(net.trunk(images())), torch.arange(12) % 3).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.trunk.parameters())


@every_student
@pytest.mark.parametrize("masked", [False, True])
def test_sharing_answers_as_copies_of_the_same_weights_would(
    masked: bool, options: config.StudentConfig
) -> None:
    model = replace(trained(options=options), masked=masked)
    net = network(model).eval()
    other = unshared(net, model)
    with torch.inference_mode():
        for found, expected in zip(net.routed(images()), other.routed(images()), strict=True):
            torch.testing.assert_close(found, expected)
        second, expected = (CascadeNet(one, None, 2.0)(images()) for one in (net, other))
        torch.testing.assert_close(second, expected)


@every_student
def test_a_mixture_that_shares_comes_back_from_the_disk_as_it_was(tmp_path, options) -> None:
    model = trained(options=options)
    write_artifact(tmp_path, model)
    net, again = network(model).eval(), network(read_artifact(tmp_path)).eval()
    weights, states = net.state_dict(), again.state_dict()
    assert weights.keys() == states.keys()
    assert all(torch.equal(weights[name], states[name]) for name in weights)
    for one, state in zip(model.students, again.student_states(), strict=True):
        assert one.state.keys() == state.keys() == student(options).state.keys()
        assert all(torch.equal(one.state[name], state[name]) for name in state)
    with torch.inference_mode():
        assert torch.equal(net(images()), again(images()))


# training


@pytest.mark.parametrize(
    ("options", "maps"), [(PLAIN, (6, 2, 2)), (NORMED, (6, 2, 2)), (RESIDUAL, (4, 4, 4))]
)
def test_pretraining_the_router_leaves_the_trunk_bit_identical(
    options: config.StudentConfig, maps: tuple[int, int, int]
) -> None:
    start = student(options)
    before = {name: value.clone() for name, value in start.state.items()}
    router = routed(start, lr=0.1)
    assert router.spec.image_shape == maps
    assert router.history[-1]["loss"] < router.history[0]["loss"]
    assert all(torch.equal(start.state[name], before[name]) for name in before)


@pytest.mark.parametrize("options", [NORMED, RESIDUAL], ids=["cnn", "residual"])
@pytest.mark.parametrize("objective", [name for name in SHARING if name != "em"])
def test_joint_training_moves_the_one_trunk_of_all(
    objective: str, options: config.StudentConfig
) -> None:
    model, before = trained(objective, options), student(options).state
    for name in before:
        if name.startswith(TRUNK):
            states = [one.state[name] for one in model.students]
            assert all(torch.equal(states[0], other) for other in states), name
            assert not torch.equal(states[0], before[name]), name
    last = STUDENTS[options.arch].last
    assert len({one.state[f"{last}.bias"].sum().item() for one in model.students}) > 1


def test_router_and_trunk_descend_together() -> None:
    history = trained(epochs=10).history
    assert history[-1]["loss"] < history[0]["loss"]


# cost


def shared(batch_norm: bool = True, **values: object) -> Architecture:
    options = tuple(ROUTERS["shared"].options(RoutingConfig()).items())
    return Architecture(
        system="moist", student=config.StudentConfig(batch_norm=batch_norm), hidden_width=256,
        latent=None, teacher="resnet18", router="shared", options=options, masked=True, **values,
    )  # fmt: skip


@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_costs_one_trunk_one_students_head_and_the_routers(batch_norm: bool) -> None:
    model = blank(shared(batch_norm), CIFAR, 10, 3)
    assert isinstance(model, Mixture)
    found, student = cost(module(model), CIFAR), cost(module(model.students[0]), CIFAR)
    trunk = 32 * 32 * 32 * 3 * 9 + 16 * 16 * 64 * 32 * 9
    router = 4096 * 128 + 128 * 3
    assert found.macs == trunk + (4096 * 256 + 256 * 10) + router
    assert found.flops == student.flops + router <= 7.3e6
    assert (student.flops > student.macs) == batch_norm


def test_its_weights_are_counted_once() -> None:
    model = blank(shared(), CIFAR, 10, 3)
    assert isinstance(model, Mixture)
    net = network(model)
    whole = cost(module(model.students[0]), CIFAR).params
    trunk = sum(p.numel() for p in net.trunk.parameters())
    router = sum(p.numel() for p in net.router.parameters())
    assert cost(net, CIFAR).params == 3 * whole - 2 * trunk + router


def test_a_second_expert_costs_its_head_alone() -> None:
    model = blank(shared(top=2), CIFAR, 10, 3)
    assert isinstance(model, Cascade)
    never, always = (cost(module(model), CIFAR, asked) for asked in (0.0, 1.0))
    assert always.macs - never.macs == always.flops - never.flops == 4096 * 256 + 256 * 10
