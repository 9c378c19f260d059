"""The updates of a network: optimizer, parameter groups, schedule and averaging of the weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from moist.config import TrainingConfig

AVERAGE_DECAY = 0.95
"""Of the average, a step, at the end of the schedule; before, it is less (Jordan 2024)."""


class Descent:
    """The configured updates of a network; `state` is what a checkpoint needs to continue them."""

    def __init__(self, net: nn.Module, training: TrainingConfig) -> None:
        self.training = training
        self.optimizer = make_optimizer(net, training)
        self.factors = [group["lr"] / training.lr for group in self.optimizer.param_groups]
        self.lr = training.lr
        self.average = Average(net, training.lookahead) if training.lookahead else None

    def step(self, loss: torch.Tensor, progress: float) -> None:
        """Follow the gradient of `loss`, at `progress` in [0, 1] of the horizon."""
        self.lr = self.training.lr * schedule_factor(self.training.schedule, progress)
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = self.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.average is not None:
            self.average.step(progress)

    def finish(self) -> None:
        """End the training: the network gets the average of its weights, if they are averaged."""
        if self.average is not None:
            self.average.update(decay=1.0)

    def state(self) -> dict[str, Any]:
        """Return tensors and JSON values that `load` continues from."""
        slots = self.optimizer.state_dict()["state"]
        state: dict[str, Any] = {"optimizer": {str(index): slot for index, slot in slots.items()}}
        return state if self.average is None else state | {"average": self.average.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        slots = {
            int(index): {
                name: _laid_out(value, parameters[int(index)]) for name, value in slot.items()
            }
            for index, slot in state["optimizer"].items()
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        if self.average is not None:
            self.average.load(state["average"])


class Average:
    """A moving average of what a network learns, from which it continues every few steps.

    Lookahead (Zhang et al. 2019) as Jordan 2024 has it: the average takes 1 - d of the weights,
    and they become the average, where d grows from 0 with the cube of the progress.
    """

    def __init__(self, net: nn.Module, every: int) -> None:
        self.every, self.steps = every, 0
        self.learned = {name: p.data for name, p in net.named_parameters() if p.requires_grad}
        for name, module in net.named_modules():
            if isinstance(module, _BatchNorm):
                self.learned |= {f"{name}.{key}": buffer for key, buffer in module.named_buffers()
                                 if buffer.is_floating_point()}  # fmt: skip
        self.averages = {name: tensor.clone() for name, tensor in self.learned.items()}

    def step(self, progress: float) -> None:
        """Count a step; after every few, average."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.update(decay=AVERAGE_DECAY**self.every * progress**3)

    def update(self, decay: float) -> None:
        """Give the average 1 - `decay` of the weights, and the weights the average."""
        for name, tensor in self.learned.items():
            tensor.copy_(self.averages[name].lerp_(tensor, 1 - decay))

    def state(self) -> dict[str, Any]:
        """Return tensors and JSON values that `load` continues from."""
        return {"steps": self.steps, "averages": self.averages}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self.steps = state["steps"]
        for name, tensor in state["averages"].items():
            self.averages[name].copy_(tensor)


def schedule_factor(schedule: str, progress: float) -> float:
    """Return the learning rate over its peak at `progress` in [0, 1] of the horizon.

    `one_cycle` climbs for a quarter of the way and falls along a cosine (Smith 2018);
    `triangular` climbs from 0.2 for 23 % of the way and falls to 0.07 (Jordan 2024).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if schedule == "triangular":
        climb = 0.23
        if progress < climb:
            return 0.2 + 0.8 * progress / climb
        return 1 - 0.93 * (progress - climb) / (1 - climb)
    climb = 0.25
    if progress < climb:
        return 0.04 + 0.96 * progress / climb
    return (1 + math.cos(math.pi * (progress - climb) / (1 - climb))) / 2


class Uncompiled:
    """The methods of an optimizer without what hides them from torch's compiler.

    That imports the compiler when one of them is first called, which takes longer than all else
    that a training needs before its first step; nothing here is compiled.
    """

    add_param_group: Any = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict: Any = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict: Any = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad: Any = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(Uncompiled, torch.optim.AdamW):
    """AdamW that starts at once."""

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class SGD(Uncompiled, torch.optim.SGD):
    """Gradient descent with momentum that starts at once."""

    step: Any = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def make_optimizer(net: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Make the configured optimizer over the parameters that are not frozen."""
    groups = parameter_groups(net, training)
    if training.optimizer == "adamw":
        return AdamW(groups, training.lr, fused=True)
    return SGD(
        groups, training.lr, momentum=training.momentum, nesterov=training.nesterov, fused=True
    )


def parameter_groups(net: nn.Module, training: TrainingConfig) -> list[dict[str, Any]]:
    """Split the parameters that are not frozen by their learning rate and weight decay.

    A decay goes with the rate: what a step of `norm_lr` times the rate decays by stays the same.
    """
    biases = {id(m.bias) for m in net.modules() if isinstance(m, _BatchNorm)}
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in net.parameters():
        if parameter.requires_grad:
            factor = training.norm_lr if id(parameter) in biases else 1.0
            decays = training.decay == "all" or parameter.dim() > 1
            decay = training.weight_decay / factor if decays else 0.0
            found.setdefault((factor, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": training.lr * factor, "weight_decay": decay}
        for (factor, decay), parameters in found.items()
    ]


def _laid_out(value: Any, parameter: torch.Tensor) -> Any:
    """Copy an optimizer's value into the memory order of its parameter: fused optimizers walk
    both in memory order, and a checkpoint does not store channels_last."""
    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).detach().copy_(value)
    return value
