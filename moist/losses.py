"""Losses. B images, C classes, E experts. All take float32 logits and return a scalar mean."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def distillation(
    student_BC: torch.Tensor,
    teacher_BC: torch.Tensor,
    labels_B: torch.Tensor,
    *,
    alpha: float,
    temperature: float,
) -> torch.Tensor:
    """(1-alpha) cross-entropy + alpha T^2 KL(teacher at T, student at T) (Hinton et al. 2015).

    T^2 keeps the gradient of the soft term at the same scale whatever the temperature.
    """
    hard = F.cross_entropy(student_BC, labels_B)
    soft = F.kl_div(
        F.log_softmax(student_BC / temperature, 1),
        F.log_softmax(teacher_BC / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - alpha) * hard + alpha * temperature**2 * soft


def free_energy(
    gate_BE: torch.Tensor,
    experts_BEC: torch.Tensor,
    labels_B: torch.Tensor,
    prior_BE: torch.Tensor,
    *,
    teacher_prior: float,
) -> torch.Tensor:
    """The bound that EM lowers on -log sum_j g_j(x) p_j(y|x), from logits of gate and experts.

    Responsibilities r_j ~ g_j^(1-rho) q_j^rho p_j(y), detached; q is `prior_BE` (probabilities)
    and rho is `teacher_prior`. At rho=0 the value is the negative log-likelihood itself and its
    gradient is exact; at rho=1 the teacher gates. (Jordan & Jacobs 1994; the teacher's share is
    our reading of MoE-KD, ICLR 2025 submission 4895.)
    """
    log_gate_BE = F.log_softmax(gate_BE, 1)
    index_BE1 = labels_B[:, None, None].expand(-1, gate_BE.shape[1], 1)
    log_fit_BE = F.log_softmax(experts_BEC, 2).gather(2, index_BE1).squeeze(2)
    with torch.no_grad():
        log_q_BE = prior_BE.clamp_min(1e-12).log()
        score_BE = (1 - teacher_prior) * log_gate_BE + teacher_prior * log_q_BE + log_fit_BE
        log_r_BE = F.log_softmax(score_BE, 1)
    return (log_r_BE.exp() * (log_r_BE - log_gate_BE - log_fit_BE)).sum(1).mean()


def divergence(prior_BE: torch.Tensor, gate_BE: torch.Tensor) -> torch.Tensor:
    """KL(prior, softmax of the gate's logits)."""
    return F.kl_div(F.log_softmax(gate_BE, 1), prior_BE, reduction="batchmean")


def balance(gate_BE: torch.Tensor, share_E: torch.Tensor) -> torch.Tensor:
    """Switch's load balance, weighted by the share of classes each cluster holds.

    sum_i f_i P_i / pi_i, with f the routed fraction and P the mean probability: 1 at perfect
    routing. Fedus et al. 2021 have pi = 1/E, which fights correct routing to unequal clusters.
    """
    routed_E = F.one_hot(gate_BE.argmax(1), gate_BE.shape[1]).float().mean(0)
    return (routed_E * F.softmax(gate_BE, 1).mean(0) / share_E).sum()
