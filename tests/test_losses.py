"""The losses against their definitions, and the laws that they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moist.losses import balance, distillation, divergence, free_energy
from moist.routers import IMPOSSIBLE

laws = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**20)
shares = st.floats(0, 1)


def drawn(seed: int, *shape: int, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def mixture(
    seed: int, images: int = 6, experts: int = 3, classes: int = 5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the gate and of the experts, labels, and a prior over experts."""
    return (
        drawn(seed, images, experts).requires_grad_(),
        drawn(seed + 1, images, experts, classes).requires_grad_(),
        torch.arange(images) % classes,
        drawn(seed + 2, images, experts).softmax(1),
    )


def fits(experts_BEC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """p_j(y|x) of each image and expert."""
    return experts_BEC.softmax(2)[torch.arange(len(labels_B)), :, labels_B]


# distillation


@laws
@given(seeds, shares, st.floats(0.5, 20))
def test_distillation_is_hintons_formula(seed: int, alpha: float, temperature: float) -> None:
    student, teacher = drawn(seed, 7, 4), drawn(seed + 1, 7, 4)
    labels = torch.arange(7) % 4
    expected = 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        p = np.exp(t / temperature) / np.exp(t / temperature).sum()
        q = np.exp(s / temperature) / np.exp(s / temperature).sum()
        hard = -math.log(np.exp(s[y]) / np.exp(s).sum())
        soft = float((p * np.log(p / q)).sum())
        expected += ((1 - alpha) * hard + alpha * temperature**2 * soft) / 7
    found = distillation(student, teacher, labels, alpha=alpha, temperature=temperature)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@laws
@given(seeds, st.floats(0.5, 20), st.floats(-50, 50))
def test_the_soft_loss_is_zero_when_student_and_teacher_agree(
    seed: int, temperature: float, shift: float
) -> None:
    teacher = drawn(seed, 5, 4)
    found = distillation(
        teacher + shift, teacher, torch.zeros(5).long(), alpha=1.0, temperature=temperature
    )
    assert float(found) == pytest.approx(0, abs=1e-9)


def test_without_soft_loss_distillation_is_cross_entropy() -> None:
    student, labels = drawn(0, 6, 4), torch.arange(6) % 4
    found = distillation(student, drawn(1, 6, 4) * 99, labels, alpha=0.0, temperature=3.0)
    torch.testing.assert_close(found, F.cross_entropy(student, labels))


@pytest.mark.parametrize("temperature", [4.0, 5.0, 20.0])
def test_temperature_leaves_the_size_of_the_soft_gradient_nearly_alone(temperature: float) -> None:
    def size(temperature: float) -> float:
        student = drawn(0, 32, 10, scale=0.3).requires_grad_()
        labels = torch.zeros(32).long()
        teacher = drawn(1, 32, 10, scale=0.3)
        distillation(student, teacher, labels, alpha=1.0, temperature=temperature).backward()
        assert student.grad is not None
        return float(student.grad.norm())

    assert size(temperature) == pytest.approx(size(1.0), rel=0.1)


# the mixture's bound


@laws
@given(seeds)
def test_plain_free_energy_is_minus_the_mixtures_log_likelihood(seed: int) -> None:
    gate, experts, labels, prior = mixture(seed)
    marginal = -(gate.softmax(1) * fits(experts, labels)).sum(1).log().mean()
    found = free_energy(gate, experts, labels, prior, teacher_prior=0.0)
    torch.testing.assert_close(found, marginal)


@laws
@given(seeds)
def test_plain_free_energy_has_the_gradient_of_the_log_likelihood(seed: int) -> None:
    gate, experts, labels, prior = mixture(seed)
    marginal = -(gate.softmax(1) * fits(experts, labels)).sum(1).log().mean()
    found = free_energy(gate, experts, labels, prior, teacher_prior=0.0)
    for one, other in zip(
        torch.autograd.grad(found, (gate, experts)),
        torch.autograd.grad(marginal, (gate, experts)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@laws
@given(seeds, shares)
def test_the_gate_is_pulled_towards_the_responsibilities(seed: int, rho: float) -> None:
    gate, experts, labels, prior = mixture(seed)
    fit = fits(experts, labels)
    score = gate.softmax(1) ** (1 - rho) * prior**rho * fit
    responsibility = score / score.sum(1, keepdim=True)
    found = free_energy(gate, experts, labels, prior, teacher_prior=rho)
    (pull,) = torch.autograd.grad(found, gate)
    torch.testing.assert_close(pull, (gate.softmax(1) - responsibility) / len(labels))


@laws
@given(seeds, shares)
def test_free_energy_bounds_minus_the_log_likelihood_from_above(seed: int, rho: float) -> None:
    gate, experts, labels, prior = mixture(seed)
    marginal = -(gate.softmax(1) * fits(experts, labels)).sum(1).log().mean()
    found = free_energy(gate, experts, labels, prior, teacher_prior=rho)
    assert (found - marginal).detach() >= -1e-9


@laws
@given(seeds, shares)
def test_with_masked_experts_free_energy_is_the_two_level_softmax(seed: int, rho: float) -> None:
    gate, experts, labels, prior = mixture(seed)
    cluster_C = torch.tensor([0, 1, 0, 2, 1])
    foreign_EC = cluster_C[None] != torch.arange(3)[:, None]
    gate, masked = gate.float(), experts.float().masked_fill(foreign_EC, IMPOSSIBLE)
    found = free_energy(gate, masked, labels, prior.float(), teacher_prior=rho)
    cluster_B = cluster_C[labels]
    within = F.cross_entropy(masked[torch.arange(len(labels)), cluster_B], labels)
    torch.testing.assert_close(found, F.cross_entropy(gate, cluster_B) + within)
    for gradient in torch.autograd.grad(found, (gate, experts)):
        assert gradient.isfinite().all()
        assert gradient.any()


def test_a_prior_of_zero_excludes_an_expert_and_stays_finite() -> None:
    gate, experts, labels, prior = mixture(0)
    prior = torch.tensor([[1.0, 0.0, 0.0]]).expand(6, 3)
    found = free_energy(gate.float(), experts.float(), labels, prior, teacher_prior=1.0)
    (pull,) = torch.autograd.grad(found, experts)
    assert found.isfinite()
    assert pull[:, 0].any()
    assert float(pull[:, 1:].abs().max()) < 1e-6


# divergence


@laws
@given(seeds)
def test_divergence_is_zero_for_equal_distributions_and_only_then(seed: int) -> None:
    gate, prior = drawn(seed, 6, 3), drawn(seed + 2, 6, 3).softmax(1)
    assert float(divergence(gate.softmax(1), gate)) == pytest.approx(0, abs=1e-12)
    expected = (prior * (prior / gate.softmax(1)).log()).sum(1).mean()
    assert float(expected) > 1e-6
    torch.testing.assert_close(divergence(prior, gate), expected)


def test_divergence_from_a_certain_prior_is_cross_entropy() -> None:
    gate, labels = drawn(0, 4, 3), torch.tensor([0, 2, 1, 2])
    found = divergence(F.one_hot(labels, 3).double(), gate)
    torch.testing.assert_close(found, F.cross_entropy(gate, labels))


# balance


def certain(expert_B: list[int], experts: int) -> torch.Tensor:
    return F.one_hot(torch.tensor(expert_B), experts).float() * 100


@pytest.mark.parametrize("sizes", [(2, 2, 2), (6, 2, 2), (1, 3, 1)])
def test_balance_is_one_when_each_cluster_gets_its_share(sizes: tuple[int, ...]) -> None:
    share_E = torch.tensor(sizes) / sum(sizes)
    routed = [j for j, size in enumerate(sizes) for _ in range(size)]
    assert float(balance(certain(routed, 3), share_E)) == pytest.approx(1)


@pytest.mark.parametrize("experts", [2, 3, 7])
def test_balance_is_the_number_of_experts_when_one_takes_all(experts: int) -> None:
    share_E = torch.full((experts,), 1 / experts)
    assert float(balance(certain([1] * 8, experts), share_E)) == pytest.approx(experts)


@laws
@given(seeds)
def test_with_equal_shares_balance_is_switchs_formula(seed: int) -> None:
    gate = drawn(seed, 9, 4)
    fraction = torch.bincount(gate.argmax(1), minlength=4) / 9
    expected = 4 * (fraction * gate.softmax(1).mean(0)).sum()
    torch.testing.assert_close(balance(gate, torch.full((4,), 0.25)), expected)


def test_descending_balance_moves_a_collapsed_gate_towards_the_others() -> None:
    gate = torch.tensor([[2.0, 0.0, 0.0]]).repeat(4, 1).requires_grad_()
    (slope,) = torch.autograd.grad(balance(gate, torch.full((3,), 1 / 3)), gate)
    assert (slope[:, 0] > 0).all()
    assert (slope[:, 1:] < 0).all()


# all of them


def losses(
    gate: torch.Tensor, experts: torch.Tensor, labels: torch.Tensor, prior: torch.Tensor
) -> dict[str, torch.Tensor]:
    student, teacher = experts[:, 0], experts[:, 1].detach()
    return {
        "distillation": distillation(student, teacher, labels, alpha=0.6, temperature=3.0),
        "free_energy": free_energy(gate, experts, labels, prior, teacher_prior=0.0),
        "divergence": divergence(prior, gate),
        "balance": balance(gate, torch.tensor([0.5, 0.25, 0.25])),
    }


@pytest.mark.parametrize("name", ["distillation", "free_energy", "divergence", "balance"])
def test_the_gradient_of_a_loss_is_that_of_finite_differences(name: str) -> None:
    gate, experts, labels, prior = mixture(3, images=3)
    teacher = experts[:, 1].detach().clone()

    def loss(gate: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        if name == "distillation":
            return distillation(experts[:, 0], teacher, labels, alpha=0.6, temperature=3.0)
        return losses(gate, experts, labels, prior)[name]

    assert torch.autograd.gradcheck(loss, (gate, experts))


def test_losses_are_computed_in_float32_under_mixed_precision() -> None:
    gate, experts, labels, prior = (value.detach() for value in mixture(5))
    inputs = (gate.float(), experts.float(), labels, prior.float())
    plain = losses(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = losses(*inputs)
    for name, value in plain.items():
        assert mixed[name].dtype == torch.float32
        assert torch.equal(mixed[name], value), name


@pytest.mark.parametrize("scale", [0.0, 50.0, 1e4])
def test_losses_and_their_gradients_stay_finite_for_extreme_logits(scale: float) -> None:
    gate, experts, labels, prior = mixture(7)
    gate, experts = gate.float() * scale, experts.float() * scale
    gate, experts = gate.detach().requires_grad_(), experts.detach().requires_grad_()
    total = torch.stack(list(losses(gate, experts, labels, prior.float()).values())).sum()
    assert total.isfinite()
    for gradient in torch.autograd.grad(total, (gate, experts)):
        assert gradient.isfinite().all()
