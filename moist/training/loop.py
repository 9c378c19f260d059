"""The one training loop: seeded per epoch, checkpointed every epoch, and resumed from there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from moist.config import AugmentConfig, TrainingConfig
from moist.data.augment import Batch, batches
from moist.data.random import seeded
from moist.env import Env, autocast
from moist.errors import StageError
from moist.store import checkpoint
from moist.store.artifacts import Dataset, Row

Epoch = Callable[[int], Iterator[Batch]]
Loss = Callable[[Batch], torch.Tensor]


def passes(
    env: Env,
    data: Dataset,
    augment: AugmentConfig,
    batch_size: int,
    seed: int,
    views: int | None = None,
) -> Epoch:
    """Epoch -> its shuffled batches: a fresh view each epoch, or `views` of them in turn."""
    return lambda epoch: batches(
        data.train,
        mean=data.mean,
        std=data.std,
        augment=augment,
        seed=seed,
        view=epoch % views if views else epoch,
        order=epoch,
        batch_size=batch_size,
        device=env.device,
    )


def schedule_factor(schedule: str, progress: float) -> float:
    """Learning rate over its peak at `progress` in [0, 1] of the horizon.

    `one_cycle` climbs for a quarter of the way and falls along a cosine (Smith 2018).
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    climb = 0.25
    if progress < climb:
        return 0.04 + 0.96 * progress / climb
    return (1 + math.cos(math.pi * (progress - climb) / (1 - climb))) / 2


def make_optimizer(module: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """The update rule asked for, over the parameters that aren't frozen."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, training.lr, weight_decay=training.weight_decay, fused=True
        )
    return torch.optim.SGD(
        parameters,
        training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
        fused=True,
    )


def fit(
    env: Env,
    module: nn.Module,
    epoch_batches: Epoch,
    loss: Loss,
    *,
    images: int,
    training: TrainingConfig,
    precision: str,
    seed: int,
    validate: Callable[[], Row] | None = None,
) -> tuple[Row, ...]:
    """Train `module` in place; returns one row of scalars an epoch.

    A killed run continues after its last full epoch, and gives what an unbroken one gives: all
    randomness of an epoch comes from (seed, stage, epoch). Raises StageError when the loss stops
    being finite.
    """
    optimizer = make_optimizer(module, training)
    done, rows = _resume(env, module, optimizer)
    horizon = training.horizon or training.epochs
    for epoch in range(done, training.epochs):
        started = time.perf_counter()
        with seeded(seed, env.stage, epoch):
            mean_loss = _one_epoch(
                env, module, optimizer, epoch_batches(epoch), loss,
                training=training, precision=precision, begin=epoch / horizon,
                length=images * horizon,
            )  # fmt: skip
        if not math.isfinite(mean_loss):
            raise StageError(
                f"`{env.stage}` diverged: the loss is {mean_loss} in epoch {epoch + 1}",
                f"lower the learning rate (it is {training.lr})",
            )
        speed = images / (time.perf_counter() - started)
        row = {
            "epoch": epoch + 1,
            "loss": mean_loss,
            "lr": optimizer.param_groups[0]["lr"],
            "images_per_second": speed,
            **(validate() if validate else {}),
        }
        rows = (*rows, row)
        checkpoint.save(env.checkpoints, _state(module, optimizer, rows), epoch + 1)
        env.advanced(epoch + 1, training.epochs, **row)
    module.eval()
    return rows


def _one_epoch(
    env: Env,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    loss: Loss,
    *,
    training: TrainingConfig,
    precision: str,
    begin: float,
    length: float,
) -> float:
    """One pass; returns the mean loss of an image. `begin` is progress, 1/`length` an image's."""
    module.train()
    total = torch.zeros((), device=env.device)
    seen = 0
    for batch in batches:
        for group in optimizer.param_groups:
            group["lr"] = training.lr * schedule_factor(training.schedule, begin + seen / length)
        with autocast(env.device, precision):
            value = loss(batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += value.detach() * len(batch.labels_B)
        seen += len(batch.labels_B)
    return float(total) / max(seen, 1)


def _state(module: nn.Module, optimizer: torch.optim.Optimizer, rows: Any) -> dict[str, Any]:
    slots = optimizer.state_dict()["state"]
    return {
        "module": module.state_dict(),
        "optimizer": {str(index): slot for index, slot in slots.items()},
        "rows": rows,
    }


def _resume(
    env: Env, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, tuple[Row, ...]]:
    """Load the newest checkpoint of this stage, if there is one: epochs done, and their rows."""
    found = checkpoint.load(env.checkpoints, env.progress.warned)
    if found is None:
        return 0, ()
    done, state = found
    module.load_state_dict(state["module"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots = {
        int(index): {
            name: _laid_out(value, parameters[int(index)]) for name, value in slot.items()
        }
        for index, slot in state["optimizer"].items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return done, state["rows"]


def _laid_out(value: Any, parameter: torch.Tensor) -> Any:
    """An optimizer's value, its elements in the memory order of its parameter: fused optimizers
    walk both in memory order, and a checkpoint stores no channels_last."""
    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).detach().copy_(value)
    return value
