"""Train a network on a data set's images, or run one over augmented views of them.

Both write checkpoints, and a killed stage continues from there. V views, N images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass

import torch
from torch import nn

from moist.config import AugmentConfig, TrainingConfig
from moist.data.augment import Batch, Pass, batches, draw, render
from moist.data.random import seeded
from moist.env import Env, autocast
from moist.errors import StageError
from moist.measure.accuracy import accuracy, classify
from moist.nets.cascade import CascadeNet
from moist.store import checkpoint
from moist.store.artifacts import Dataset, NotFinite, Row, not_finite
from moist.training.descent import Descent

Loss = Callable[[Batch], torch.Tensor]
Answer = Callable[[torch.Tensor], torch.Tensor]
"""Images (B, C, H, W) to one row per image."""

BATCH = 256
"""Images that a network is run on at a time, where nothing is trained."""


@dataclass(frozen=True)
class Job:
    """The work of a stage on a data set: where it runs, and what decides views and arithmetic.

    With `shown_VN` training shows of each view only the images for which it is true.
    """

    env: Env
    data: Dataset
    _: KW_ONLY
    augment: AugmentConfig
    precision: str
    seed: int
    shown_VN: torch.Tensor | None = None

    def batches(self, epoch: int, batch_size: int, views: int | None = None) -> Iterator[Batch]:
        """Shuffle an epoch's batches: of a fresh view each epoch, or of `views` in turn."""
        return batches(
            self.data,
            self._pass(epoch, views),
            augment=self.augment,
            seed=self.seed,
            batch_size=batch_size,
            device=self.env.device,
        )

    def _pass(self, epoch: int, views: int | None) -> Pass:
        view = epoch % views if views else epoch
        return Pass(view, epoch, None if self.shown_VN is None else self.shown_VN[view])

    def _images(self, epoch: int, views: int | None) -> int:
        """Count the images that an epoch shows."""
        shown_N = self._pass(epoch, views).shown_N
        return len(self.data.train) if shown_N is None else int(shown_N.sum())

    def fit(
        self,
        net: nn.Module,
        loss: Loss,
        training: TrainingConfig,
        *,
        views: int | None = None,
        validate: bool = True,
    ) -> tuple[Row, ...]:
        """Train `net` in place; return one row of scalars an epoch.

        With `validate` a row has `val_accuracy`, if there is a validation split. A killed run
        continues after its last full epoch, and gives what an unbroken one gives: all randomness
        of an epoch comes from (seed, stage, epoch). Raises StageError when the loss stops being
        finite.
        """
        env = self.env
        descent = Descent(net, training)
        done, rows = _resume(env, net, descent)
        for epoch in range(done, training.epochs):
            started = time.perf_counter()
            with seeded(self.seed, env.stage, epoch):
                mean_loss = self._epoch(net, loss, descent, epoch=epoch, views=views)
            if epoch + 1 == training.epochs:
                descent.finish()
            if not math.isfinite(mean_loss):
                raise StageError(
                    f"`{env.stage}` diverged: the loss is {mean_loss} in epoch {epoch + 1}",
                    f"lower the learning rate (it is {training.lr})",
                )
            row = {
                "loss": mean_loss,
                "lr": descent.lr,
                "images_per_second": self._images(epoch, views) / (time.perf_counter() - started),
                **(self._validation(net) if validate else {}),
            }
            rows = (*rows, row)
            state = {"module": net.state_dict(), **descent.state(), "rows": rows}
            checkpoint.save(env.checkpoints, state, epoch + 1)
            env.advanced(epoch + 1, training.epochs, **row)
        net.eval()
        return rows

    def _epoch(
        self,
        net: nn.Module,
        loss: Loss,
        descent: Descent,
        *,
        epoch: int,
        views: int | None,
    ) -> float:
        """Take one step a batch; return the mean loss of an image."""
        net.train()
        training = descent.training
        horizon = training.horizon or training.epochs
        begin, length = epoch / horizon, self._images(epoch, views) * horizon
        total = torch.zeros((), device=self.env.device)
        seen = 0
        for batch in self.batches(epoch, training.batch_size, views):
            with autocast(self.env.device, self.precision):
                value = loss(batch)
            descent.step(value, begin + seen / length)
            total += value.detach() * len(batch.labels_B)
            seen += len(batch.labels_B)
        return float(total) / max(seen, 1)

    def _validation(self, net: nn.Module) -> Row:
        """Measure `val_accuracy`; return nothing without a validation split."""
        val = self.data.val
        if not len(val):
            return {}
        answers = classify(self.env, net, val, self.data, precision=self.precision)
        logits_NC = answers.logits_NC
        if isinstance(net, CascadeNet):
            logits_NC = answers.at_threshold(net.threshold)
        return {"val_accuracy": accuracy(logits_NC, val.labels_N)}

    def over_views(self, answer: Answer, views: int) -> torch.Tensor:
        """Run `answer` over `views` views of the training images, in their order.

        Returns float16 (V, N, ...) on the CPU, and raises NotFinite for what that can't hold. A
        killed stage keeps the views it finished. View v of an image is the very tensor that a
        student sees in epochs v, v + views, ...
        """
        env = self.env
        found = checkpoint.load(env.checkpoints, env.progress.warned)
        done: list[torch.Tensor] = [_joined(view) for view in found[1]] if found else []
        for view in range(len(done), views):
            done.append(self._over_view(answer, view))
            checkpoint.save(env.checkpoints, tuple(done), view + 1)
            env.advanced(view + 1, views)
        return torch.stack(done)

    def _over_view(self, answer: Answer, view: int) -> torch.Tensor:
        """Run `answer` over one view: float16 (N, ...)."""
        data, device = self.data, self.env.device
        shape = data.image_shape[1:]
        drawn = draw(len(data.train), self.augment, shape, seed=self.seed, view=view).to(device)
        parts = []
        with torch.inference_mode(), autocast(device, self.precision):
            for rows in torch.split(torch.arange(len(data.train)), BATCH):
                images_BHWC = data.train.images_NHWC[rows].to(device)
                x_BCHW = render(
                    images_BHWC, drawn[rows.to(device)], self.augment, mean=data.mean, std=data.std
                )
                values = answer(x_BCHW)
                parts.append(values.half().cpu())
                if not_finite(parts[-1]):
                    what = not_finite(values)
                    most = f"{values.abs().max():.4g}, and float16 ends at 65504"
                    raise NotFinite(
                        f"the {self.env.stage.replace('_', ' ')} "
                        + (f"have {what}" if what else f"exceed float16: they reach {most}")
                    )
        return torch.cat(parts)


def _joined(view: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Read a checkpointed view; `teacher_levels` used to keep its levels apart."""
    return view if isinstance(view, torch.Tensor) else torch.cat(view, 1)


def _resume(env: Env, net: nn.Module, descent: Descent) -> tuple[int, tuple[Row, ...]]:
    """Load the newest checkpoint of this stage, if there is one: epochs done, and their rows."""
    found = checkpoint.load(env.checkpoints, env.progress.warned)
    if found is None:
        return 0, ()
    done, state = found
    net.load_state_dict(state["module"])
    descent.load(state)
    return done, state["rows"]
