"""Updates of a network: which learning rate and decay a parameter gets, and the averaging."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from moist.config import TrainingConfig
from moist.training import descent
from moist.training.descent import Descent, parameter_groups


def network() -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    net[0].weight.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {(1, 0.1): {"0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}}),
        (
            {"norm_lr": 4},
            {(1, 0.1): {"0.bias", "1.weight", "3.weight", "3.bias"}, (4, 0.025): {"1.bias"}},
        ),
        (
            {"norm_lr": 4, "decay": "weights"},
            {(1, 0): {"0.bias", "1.weight", "3.bias"}, (4, 0): {"1.bias"}, (1, 0.1): {"3.weight"}},
        ),
    ],
)
def test_a_parameter_has_the_rate_and_decay_of_its_kind_and_a_frozen_one_none(
    options: dict, expected: dict
) -> None:
    net = network()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    training = TrainingConfig(lr=0.5, weight_decay=0.1, **options)
    found = {
        (group["lr"] / 0.5, group["weight_decay"]): {names[id(p)] for p in group["params"]}
        for group in parameter_groups(net, training)
    }
    assert found == expected


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_group_follows_the_schedule_at_its_own_rate(optimizer: str) -> None:
    net = network()
    training = TrainingConfig(
        lr=0.5, optimizer=optimizer, momentum=0, weight_decay=0, schedule="cosine", norm_lr=4
    )
    descent, before = Descent(net, training), [p.detach().clone() for p in net.parameters()]
    descent.step(sum(p.sum() for p in net.parameters()), 0.5)
    moved = [(a - b).mean().item() for a, b in zip(before, net.parameters(), strict=True)]
    assert descent.lr == 0.25
    assert moved == pytest.approx([0, 0.25, 0.25, 1.0, 0.25, 0.25], rel=1e-5)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_optimizer_steps_as_torchs_does(name: str) -> None:
    found = []
    for kind in (getattr(descent, name), getattr(torch.optim, name)):
        torch.manual_seed(0)
        net = network()
        optimizer, options = None, {"lr": 0.1, "weight_decay": 0.1, "fused": True}
        for _ in range(3):
            again = kind(net[3].parameters(), **options)
            again.add_param_group({"params": net[1].parameters()})
            if optimizer is not None:
                again.load_state_dict(optimizer.state_dict())
            optimizer = again
            optimizer.zero_grad()
            net(torch.randn(5, 3, 1, 1)).square().sum().backward()
            optimizer.step()
        assert torch.is_grad_enabled()
        found.append([*net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


STARTED = """
import sys
import torch
from moist.config import TrainingConfig
from moist.nets.cnn import TEACHERS
from moist.training.descent import Descent
for optimizer in ("sgd", "adamw"):
    net = TEACHERS["resnet18"].build((1, 8, 8), 2)
    descent = Descent(net, TrainingConfig(optimizer=optimizer))
    descent.step(net(torch.ones(2, 1, 8, 8)).sum(), 0.0)
    descent.load(descent.state())
assert not {"torch._dynamo", "torchvision", "fvcore", "sklearn"} & sys.modules.keys()
"""


@pytest.mark.slow
def test_a_training_starts_without_importing_what_takes_longer_than_its_first_steps() -> None:
    assert subprocess.run([sys.executable, "-c", STARTED]).returncode == 0


def test_weights_are_averaged_as_jordan_does() -> None:
    """Against his rule written out for one number that falls by 0.1 a step."""
    net = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(net.weight)
    training = TrainingConfig(
        lr=0.1, optimizer="sgd", momentum=0, weight_decay=0, schedule="constant", lookahead=3
    )
    descent, weight, average = Descent(net, training), 1.0, 1.0
    for step in range(1, 9):
        progress = step / 8
        descent.step(net.weight.sum(), progress)
        weight -= 0.1
        if step % 3 == 0:
            decay = 0.95**3 * progress**3
            weight = average = decay * average + (1 - decay) * weight
        assert net.weight.item() == pytest.approx(weight)
    descent.finish()
    assert net.weight.item() == pytest.approx(average) != pytest.approx(weight)


def test_the_statistics_of_batch_norm_are_averaged_and_its_counter_is_not() -> None:
    net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    training = TrainingConfig(optimizer="sgd", schedule="constant", lookahead=2)
    descent = Descent(net, training)
    for _ in range(2):
        descent.step(net(torch.tensor([[4.0], [6.0]])).sum(), 0.5)
    mean = 0.95**2 * 0.5**3 * 0 + (1 - 0.95**2 * 0.5**3) * (0.9 * 0.5 + 0.5)
    assert net[0].running_mean.item() == pytest.approx(mean)
    assert net[0].num_batches_tracked.item() == 2
