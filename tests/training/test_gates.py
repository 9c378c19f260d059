"""The losses of router and mixture against their definitions, and the laws they promise."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moist.nets.routers import IMPOSSIBLE
from moist.training.gates import (
    balance,
    divergence,
    free_energy,
    importance,
    load,
    mixture_nll,
    noisy,
    squared_variation,
    top_gates,
    z_loss,
)

laws = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**20)
shares = st.floats(0, 1)
partitions = st.lists(st.integers(1, 6), min_size=2, max_size=7)
"""Sizes of clusters, in classes."""


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


# the mixture's likelihood


@laws
@given(seeds)
def test_mixture_nll_is_minus_the_mixtures_log_likelihood(seed: int) -> None:
    gate, experts, labels, _ = mixture(seed)
    marginal = -(gate.softmax(1) * fits(experts, labels)).sum(1).log().mean()
    found = mixture_nll(gate.softmax(1), experts, labels)
    torch.testing.assert_close(found, marginal)
    for one, other in zip(
        torch.autograd.grad(found, (gate, experts)),
        torch.autograd.grad(marginal, (gate, experts)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@laws
@given(seeds, st.sampled_from([1, 2]))
def test_an_expert_whose_gate_is_zero_adds_and_learns_nothing(seed: int, top: int) -> None:
    gate, experts, labels, _ = mixture(seed)
    prob = top_gates(gate, top)
    found = mixture_nll(prob, experts, labels)
    louder = torch.where(prob[:, :, None] == 0, 99 * experts, experts)
    assert torch.equal(found, mixture_nll(prob, louder, labels))
    to_gate, to_experts = torch.autograd.grad(found, (gate, experts))
    assert to_gate.isfinite().all()
    assert torch.equal(to_experts.abs().sum(2) > 0, prob > 0)


def test_mixture_nll_stays_finite_when_no_expert_gives_the_label_any_probability() -> None:
    gate, experts, labels, _ = (value.detach() for value in mixture(0))
    experts = (1e4 * (experts - 5 * F.one_hot(labels, 5)[:, None])).float().requires_grad_()
    assert not fits(experts, labels).any()
    found = mixture_nll(top_gates(gate.float(), 2), experts, labels)
    (pull,) = torch.autograd.grad(found, experts)
    assert found.isfinite()
    assert pull.isfinite().all()
    assert pull.any()


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


@laws
@given(partitions)
def test_right_routing_has_balance_one_and_is_fought_by_equal_shares(sizes: list[int]) -> None:
    share_E = torch.tensor(sizes) / sum(sizes)
    right = certain([j for j, size in enumerate(sizes) for _ in range(size)], len(sizes))
    assert float(balance(right, share_E)) == pytest.approx(1)
    plain = float(balance(right, torch.full((len(sizes),), 1 / len(sizes))))
    assert plain == pytest.approx(len(sizes) * float(share_E.square().sum()))
    assert len(set(sizes)) == 1 or plain > 1


def test_the_papers_clusters_under_plain_balance() -> None:
    right = certain([0, 0, 0, 1, 2], 3)
    assert float(balance(right, torch.full((3,), 1 / 3))) == pytest.approx(1.32)


@laws
@given(partitions, st.data())
def test_balance_of_one_that_takes_all_is_one_over_its_share(
    sizes: list[int], data: st.DataObject
) -> None:
    """With equal shares: the number of experts."""
    share_E = torch.tensor(sizes) / sum(sizes)
    taker = data.draw(st.integers(0, len(sizes) - 1))
    all_to_one = certain([taker] * 8, len(sizes))
    assert float(balance(all_to_one, share_E)) == pytest.approx(sum(sizes) / sizes[taker])


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


# squared variation


@pytest.mark.parametrize("sizes", [(2, 2, 2), (6, 2, 2), (1, 3, 1)])
def test_squared_variation_is_zero_when_each_expert_has_its_share(sizes: tuple[int, ...]) -> None:
    share_E = torch.tensor(sizes) / sum(sizes)
    assert float(squared_variation(7 * share_E, share_E)) == pytest.approx(0, abs=1e-12)
    assert squared_variation(torch.tensor([1.0, 2.0, 5.0]), share_E) > 0.1


@pytest.mark.parametrize("experts", [2, 3, 7])
def test_squared_variation_is_the_number_of_the_others_when_one_has_all(experts: int) -> None:
    values_E = F.one_hot(torch.tensor(1), experts) * 5.0
    found = squared_variation(values_E, torch.full((experts,), 1 / experts))
    assert float(found) == pytest.approx(experts - 1)


@laws
@given(seeds, st.floats(0.1, 100))
def test_with_equal_shares_squared_variation_is_that_of_the_values(
    seed: int, scale: float
) -> None:
    values_E = drawn(seed, 5).exp()
    expected = (values_E.numpy().std() / values_E.numpy().mean()) ** 2
    found = squared_variation(values_E * scale, torch.full((5,), 0.2))
    assert float(found) == pytest.approx(expected)


# z-loss


def test_z_loss_is_the_mean_square_of_the_log_partition() -> None:
    gate = torch.tensor([[0.0, 0.0], [3.0, 3.0]])
    log2 = float(torch.tensor(2.0).log())
    assert float(z_loss(gate)) == pytest.approx((log2**2 + (3 + log2) ** 2) / 2)


@pytest.mark.parametrize(("shift", "grows"), [(5.0, True), (-5.0, False)])
def test_descending_z_loss_pulls_the_log_partition_to_zero(shift: float, grows: bool) -> None:
    gate = torch.full((2, 3), shift, requires_grad=True)
    (slope,) = torch.autograd.grad(z_loss(gate), gate)
    assert ((slope > 0) == grows).all()


# noisy top-k gates


@laws
@given(seeds, st.integers(1, 5))
def test_top_gates_are_a_softmax_over_the_largest_logits(seed: int, top: int) -> None:
    gate = drawn(seed, 9, 5)
    found = top_gates(gate, top)
    assert ((found > 0).sum(1) == top).all()
    for row, logits in zip(found, gate, strict=True):
        kept = logits.sort(descending=True).indices[:top]
        torch.testing.assert_close(row[kept], logits[kept].softmax(0))
        assert float(row.sum()) == pytest.approx(1)


def test_a_single_top_gate_is_one_and_teaches_the_router_nothing() -> None:
    gate, experts, labels, _ = mixture(0)
    one, two = (
        torch.autograd.grad(mixture_nll(top_gates(gate, top), experts, labels), gate)[0]
        for top in (1, 2)
    )
    assert torch.equal(top_gates(gate, 1).max(1).values, torch.ones(6).double())
    assert not one.any()
    assert two.any()


def test_importance_is_what_each_expert_gets_of_the_gates() -> None:
    found = importance(torch.tensor([[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]]))
    assert torch.equal(found, torch.tensor([1.75, 0.25, 0.0]))


def noisy_gate(seed: int, images: int = 4, experts: int = 5) -> tuple[torch.Tensor, ...]:
    """The gate's logits, each expert's deviation, and standard normal noise."""
    gate = drawn(seed, images, experts, scale=1.0)
    return gate, drawn(seed + 1, experts).exp(), drawn(seed + 2, images, experts, scale=1.0)


@pytest.mark.parametrize("top", [1, 2, 4, 5])
def test_load_is_how_often_an_experts_new_noise_would_bring_it_in(top: int) -> None:
    gate, deviation, noise = noisy_gate(0)
    found = load(gate, deviation, noisy(gate, deviation, noise), top)
    for expert in range(5):
        again = noise.repeat(20_000, 1, 1)
        again[:, :, expert] = drawn(9 + expert, 20_000, 4, scale=1.0)
        chosen = noisy(gate, deviation, again).topk(top, 2).indices == expert
        frequency = chosen.any(2).double().mean(0)
        torch.testing.assert_close(found[:, expert], frequency, rtol=0, atol=0.02)


def test_over_all_noise_load_is_how_often_an_expert_is_chosen() -> None:
    gate, deviation, _ = noisy_gate(3)
    gate, noise = gate[:1].expand(20_000, 5), drawn(4, 20_000, 5, scale=1.0)
    logits = noisy(gate, deviation, noise)
    found = importance(load(gate, deviation, logits, 2)) / len(noise)
    often = importance((top_gates(logits, 2) > 0).double()) / len(noise)
    torch.testing.assert_close(found, often, rtol=0, atol=0.02)


# all of them


def losses(
    gate: torch.Tensor, experts: torch.Tensor, labels: torch.Tensor, prior: torch.Tensor
) -> dict[str, torch.Tensor]:
    share_E = torch.tensor([0.5, 0.25, 0.25])
    deviation_E = F.softplus(experts[0, :, 0]) + 0.1
    logits_BE = noisy(gate, deviation_E, drawn(11, *gate.shape, scale=1.0).to(gate.dtype))
    gates_BE, load_BE = top_gates(logits_BE, 2), load(gate, deviation_E, logits_BE, 2)
    return {
        "free_energy": free_energy(gate, experts, labels, prior, teacher_prior=0.0),
        "divergence": divergence(prior, gate),
        "balance": balance(gate, share_E),
        "z_loss": z_loss(gate),
        "mixture_nll": mixture_nll(gates_BE, experts, labels),
        "importance": squared_variation(importance(gates_BE), share_E),
        "load": squared_variation(importance(load_BE), share_E),
    }


NAMES = list(losses(*mixture(0)))


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_loss_is_that_of_finite_differences(name: str) -> None:
    gate, experts, labels, prior = mixture(3, images=3)

    def loss(gate: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
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
