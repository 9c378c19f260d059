"""The losses of joint training, of router and students together. B images, C classes, E experts.

All take float32; `gate_BE` are the router's logits, `gate_prob_BE` probabilities made of them.
The losses return a scalar mean over images.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

# the mixture's likelihood


def mixture_nll(
    gate_prob_BE: torch.Tensor, experts_BEC: torch.Tensor, labels_B: torch.Tensor
) -> torch.Tensor:
    """Return -log sum_j G_j p_j(y|x), from the gate's probabilities and the experts' logits.

    A gate of 0 takes its expert out, of the value and of every gradient.
    """
    out_BE = gate_prob_BE == 0
    log_gate_BE = gate_prob_BE.masked_fill(out_BE, 1).log().masked_fill(out_BE, -torch.inf)
    return -(log_gate_BE + _log_fit(experts_BEC, labels_B)).logsumexp(1).mean()


def free_energy(
    gate_BE: torch.Tensor,
    experts_BEC: torch.Tensor,
    labels_B: torch.Tensor,
    prior_BE: torch.Tensor,
    *,
    teacher_prior: float,
) -> torch.Tensor:
    """Return the bound that EM lowers on -log sum_j g_j(x) p_j(y|x), from logits.

    Responsibilities r_j ~ g_j^(1-rho) q_j^rho p_j(y), detached; q is `prior_BE` (probabilities)
    and rho is `teacher_prior`. At rho=0 the value is the negative log-likelihood itself and its
    gradient is exact; at rho=1 the teacher gates. (Jordan & Jacobs 1994; the teacher's share is
    our reading of MoE-KD, ICLR 2025 submission 4895.)
    """
    log_gate_BE = F.log_softmax(gate_BE, 1)
    log_fit_BE = _log_fit(experts_BEC, labels_B)
    with torch.no_grad():
        log_q_BE = prior_BE.clamp_min(1e-12).log()
        score_BE = (1 - teacher_prior) * log_gate_BE + teacher_prior * log_q_BE + log_fit_BE
        log_r_BE = F.log_softmax(score_BE, 1)
    return (log_r_BE.exp() * (log_r_BE - log_gate_BE - log_fit_BE)).sum(1).mean()


def divergence(prior_BE: torch.Tensor, gate_BE: torch.Tensor) -> torch.Tensor:
    """Return KL(prior, softmax of the gate's logits)."""
    return F.kl_div(F.log_softmax(gate_BE, 1), prior_BE, reduction="batchmean")


def _log_fit(experts_BEC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """Return log p_j(y|x) (B, E) of the labels."""
    index_BE1 = labels_B[:, None, None].expand(-1, experts_BEC.shape[1], 1)
    return F.log_softmax(experts_BEC, 2).gather(2, index_BE1).squeeze(2)


# the size and the balance of the gates


def z_loss(gate_BE: torch.Tensor) -> torch.Tensor:
    """Return the squared log-partition, which keeps logits small (ST-MoE, Zoph et al. 2022)."""
    return gate_BE.logsumexp(1).square().mean()


def balance(gate_BE: torch.Tensor, share_E: torch.Tensor) -> torch.Tensor:
    """Return Switch's load balance, weighted by the share of classes that each cluster has.

    sum_i f_i P_i / pi_i, with f the routed fraction and P the mean probability: 1 at perfect
    routing. Fedus et al. 2021 have pi = 1/E, which fights correct routing to unequal clusters.
    """
    routed_E = F.one_hot(gate_BE.argmax(1), gate_BE.shape[1]).float().mean(0)
    return (routed_E * F.softmax(gate_BE, 1).mean(0) / share_E).sum()


def squared_variation(values_E: torch.Tensor, share_E: torch.Tensor) -> torch.Tensor:
    """Return the squared coefficient of variation, over experts, of values per share of classes.

    0 when each expert has its share. Shazeer et al. 2017 have equal shares; dividing is ours, as
    in `balance`.
    """
    part_E = values_E / share_E
    return part_E.var(correction=0) / part_E.mean().square()


# noisy top-k gates (Shazeer et al. 2017)


def noisy(
    gate_BE: torch.Tensor, deviation_BE: torch.Tensor, noise_BE: torch.Tensor
) -> torch.Tensor:
    """Add standard normal noise to the logits, at the deviation (> 0) of each expert or logit.

    While training only: it lets near misses be tried, and makes `load` smooth.
    """
    return gate_BE + deviation_BE * noise_BE


def top_gates(gate_BE: torch.Tensor, top: int) -> torch.Tensor:
    """Return probabilities (B, E) over the `top` largest logits of each image, 0 for the others.

    With top=1 the one gate left is 1 whatever its logit, so the task's loss gives the router
    nothing: Switch's order, softmax before the choice, is for that.
    """
    kept_BE = torch.zeros_like(gate_BE, dtype=torch.bool)
    kept_BE = kept_BE.scatter(1, gate_BE.topk(top, 1).indices, True)
    return F.softmax(gate_BE.masked_fill(~kept_BE, -torch.inf), 1)


def importance(gate_prob_BE: torch.Tensor) -> torch.Tensor:
    """Return each expert's sum of gates (E,)."""
    return gate_prob_BE.sum(0)


def load(
    gate_BE: torch.Tensor, deviation_BE: torch.Tensor, noisy_BE: torch.Tensor, top: int
) -> torch.Tensor:
    """Return each expert's probability (B, E) to be in the top k if its noise alone is redrawn.

    What the gates' sum can't see: how many images an expert gets, however small their gates. The
    bar is the k-th largest noisy logit of the other experts (appendix A). Sum over images.
    """
    if top == gate_BE.shape[1]:
        return torch.ones_like(gate_BE)
    ranked_BK = noisy_BE.topk(top + 1, 1).values
    last_B1, next_B1 = ranked_BK[:, top - 1, None], ranked_BK[:, top, None]
    bar_BE = torch.where(noisy_BE > next_B1, next_B1, last_B1)
    above_BE: torch.Tensor = torch.special.ndtr((gate_BE - bar_BE) / deviation_BE)
    return above_BE
