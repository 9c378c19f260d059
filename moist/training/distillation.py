"""Losses of distillation, from teacher and labels. B images, C classes, O = C-1 others.

All take float32 logits, teacher's and student's of the same images, and return a scalar mean.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.nn import functional as F

from moist.config import DistillConfig
from moist.config.plugins import CONTRACT, Registry
from moist.errors import ConfigError, brief


class Soft(Protocol):
    """A soft loss: what a student learns from its teacher's logits."""

    def __call__(
        self,
        student_BC: torch.Tensor,
        teacher_BC: torch.Tensor,
        labels_B: torch.Tensor,
        distill: DistillConfig,
        /,
        *,
        temperature: float,
    ) -> torch.Tensor: ...


FLAT = 1e-8  # a squared length far below this counts as no variation


def distillation(
    student_BC: torch.Tensor,
    teacher_BC: torch.Tensor,
    labels_B: torch.Tensor,
    distill: DistillConfig,
    *,
    temperature: float,
    ramp: float = 1.0,
) -> torch.Tensor:
    """Return (1-a) cross-entropy + a times the soft loss of `distill`, with a = alpha ramp.

    One form for all, Hinton's; ours where a paper differs. DKD and DIST write cross-entropy +
    w soft: the same but for the factor 1-a, with w = a / (1-a). Their warm-up, `ramp` from 0 to
    1, leaves the cross-entropy alone; here its weight falls as that of the soft loss grows.
    At a = 0 the teacher is not looked at.
    """
    hard = F.cross_entropy(student_BC, labels_B)
    alpha = distill.alpha * ramp
    if alpha == 0:
        return hard
    if distill.standardize:
        student_BC, teacher_BC = standardized(student_BC), standardized(teacher_BC)
    soft = SOFT[distill.loss](student_BC, teacher_BC, labels_B, distill, temperature=temperature)
    return (1 - alpha) * hard + alpha * soft


def standardized(logits_BC: torch.Tensor) -> torch.Tensor:
    """Scale logits to mean 0 and deviation 1, image by image (Sun et al., CVPR 2024).

    The student then learns how the teacher's logits relate, not how large they are.
    """
    deviation_B1 = logits_BC.std(1, keepdim=True)
    return (logits_BC - logits_BC.mean(1, keepdim=True)) / (deviation_B1 + 1e-7)


def kd(student_BC: torch.Tensor, teacher_BC: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 KL(teacher at T, student at T) (Hinton et al. 2015)."""
    return kd_from(student_BC, F.log_softmax(teacher_BC / temperature, 1), temperature)


def kd_from(
    student_BC: torch.Tensor, teacher_log_prob_BC: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return `kd` for a teacher of log-probabilities at T without logits, as a mixture is.

    T^2 keeps the gradient at the same scale whatever the temperature.
    """
    log_prob_BC = F.log_softmax(student_BC / temperature, 1)
    return temperature**2 * _divergence(teacher_log_prob_BC, log_prob_BC)


def dkd(
    student_BC: torch.Tensor,
    teacher_BC: torch.Tensor,
    labels_B: torch.Tensor,
    distill: DistillConfig,
    *,
    temperature: float,
) -> torch.Tensor:
    """Return T^2 of the weighted KLs of target against rest, and of the others among themselves.

    `kd` is their sum with weights 1 and, image by image, 1 - p_t(y): a certain teacher suppresses
    its information on the other classes. DKD gives that a weight of its own (Zhao et al., CVPR
    2022).
    """
    student_B2, student_BO = _decoupled(student_BC / temperature, labels_B)
    teacher_B2, teacher_BO = _decoupled(teacher_BC / temperature, labels_B)
    target = distill.target_weight * _divergence(teacher_B2, student_B2)
    others = distill.others_weight * _divergence(teacher_BO, student_BO)
    return temperature**2 * (target + others)


def dist(
    student_BC: torch.Tensor, teacher_BC: torch.Tensor, distill: DistillConfig, temperature: float
) -> torch.Tensor:
    """Return T^2 of the weighted sum of 1 - correlation of the probabilities at T (DIST, Huang et
    al., NeurIPS 2022): over an image's classes, and over a class's images, so the batch
    matters.

    A student that is surer or less sure by one measure for all, p_s = (1-e) p_t + e/C, loses
    nothing.
    """
    student_BC, teacher_BC = (F.softmax(z / temperature, 1) for z in (student_BC, teacher_BC))
    rows = 1 - _correlation(student_BC, teacher_BC, 1).mean()
    columns = 1 - _correlation(student_BC, teacher_BC, 0).mean()
    return temperature**2 * (distill.rows_weight * rows + distill.columns_weight * columns)


def _decoupled(logits_BC: torch.Tensor, labels_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split into log-probabilities of target and rest (B, 2), and of the others alone (B, O).

    The others are gathered, where the authors' code subtracts 1000 from the target's logit: exact
    however large the logits, and free of log 0.
    """
    classes = logits_BC.shape[1]
    step_O = torch.arange(1, classes, device=labels_B.device)
    target_B1 = logits_BC.gather(1, labels_B[:, None])
    others_BO = logits_BC.gather(1, (labels_B[:, None] + step_O) % classes)
    pair_B2 = torch.cat([target_B1, others_BO.logsumexp(1, keepdim=True)], 1)
    return F.log_softmax(pair_B2, 1), F.log_softmax(others_BO, 1)


def _divergence(teacher_log_prob: torch.Tensor, student_log_prob: torch.Tensor) -> torch.Tensor:
    """Return KL(teacher, student), averaged over images: `mean` would divide by classes too."""
    return F.kl_div(student_log_prob, teacher_log_prob, reduction="batchmean", log_target=True)


def _correlation(one: torch.Tensor, other: torch.Tensor, axis: int) -> torch.Tensor:
    """Return Pearson's correlation along `axis`, and 0 where either is constant.

    `FLAT` under the root (ours) bounds the gradient there to 1e4; the authors add 1e-8 to the
    product of lengths, which bounds it to 1e8. Equal values score alike under both.
    """
    one, other = (x - x.mean(axis, keepdim=True) for x in (one, other))
    squares = (one.square().sum(axis) + FLAT) * (other.square().sum(axis) + FLAT)
    return (one * other).sum(axis) / squares.sqrt()


def soft_loss(found: Any, what: str) -> Soft:
    """Return the soft loss of another package's, which checks what it returns.

    Raises ConfigError unless it is a function.
    """
    if not callable(found):
        raise ConfigError(f"{what} is unfit: expected a function, found {type(found).__name__}")

    def loss(
        student_BC: torch.Tensor,
        teacher_BC: torch.Tensor,
        labels_B: torch.Tensor,
        _: DistillConfig,
        /,
        *,
        temperature: float,
    ) -> torch.Tensor:
        try:
            value = found(student_BC, teacher_BC, labels_B, temperature=temperature)
        except Exception as error:
            raise ConfigError(f"{what} failed: {brief(error)}") from error
        if not (isinstance(value, torch.Tensor) and value.dim() == 0 and value.requires_grad):
            shape = f" {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
            raise ConfigError(
                f"{what} is unfit: expected a scalar tensor with a gradient, found"
                f" {type(value).__name__}{shape}",
                CONTRACT,
            )
        return value

    return loss


SOFT: Registry[Soft] = Registry(
    "losses",
    {
        "kd": lambda student, teacher, _labels, _, *, temperature: kd(
            student, teacher, temperature
        ),
        "dkd": dkd,
        "dist": lambda student, teacher, _, distill, *, temperature: dist(
            student, teacher, distill, temperature
        ),
    },
    soft_loss,
)
