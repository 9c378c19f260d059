"""What students learn from: against the definitions, and the laws that they promise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moist.config import DistillConfig
from moist.training.distillation import SOFT, dist, distillation, dkd, kd, kd_from, standardized

laws = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**20)
shares = st.floats(0, 1)
temperatures = st.floats(0.5, 20)
ALL = [
    DistillConfig(loss=loss, alpha=0.6, standardize=standardize)
    for loss in SOFT
    for standardize in ((False,) if loss == "dist" else (False, True))
]


def drawn(seed: int, *shape: int, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def pairs(seed: int, images: int = 7, classes: int = 4) -> tuple[torch.Tensor, ...]:
    """A student's logits, its teacher's, and labels."""
    labels = torch.arange(images) % classes
    return drawn(seed, images, classes), drawn(seed + 1, images, classes), labels


def named(distill: DistillConfig) -> str:
    return f"{distill.loss}{' standardized' * distill.standardize}"


# the sum


@laws
@given(seeds, shares, temperatures)
def test_distillation_is_hintons_formula(seed: int, alpha: float, temperature: float) -> None:
    student, teacher, labels = pairs(seed)
    expected = 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        p = np.exp(t / temperature) / np.exp(t / temperature).sum()
        q = np.exp(s / temperature) / np.exp(s / temperature).sum()
        hard = -math.log(np.exp(s[y]) / np.exp(s).sum())
        soft = float((p * np.log(p / q)).sum())
        expected += ((1 - alpha) * hard + alpha * temperature**2 * soft) / 7
    found = distillation(
        student, teacher, labels, DistillConfig(alpha=alpha), temperature=temperature
    )
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("distill", ALL, ids=named)
@pytest.mark.parametrize(("alpha", "ramp"), [(0.0, 1.0), (0.7, 0.0)])
def test_without_soft_loss_distillation_is_cross_entropy_whatever_the_teacher(
    distill: DistillConfig, alpha: float, ramp: float
) -> None:
    student, teacher, labels = pairs(0)
    distill = distill.model_copy(update={"alpha": alpha})
    found = distillation(student, teacher * torch.nan, labels, distill, temperature=3.0, ramp=ramp)
    assert torch.equal(found, F.cross_entropy(student, labels))


@pytest.mark.parametrize("distill", ALL, ids=named)
@pytest.mark.parametrize("ramp", [0.25, 1.0])
def test_the_ramp_multiplies_alpha(distill: DistillConfig, ramp: float) -> None:
    student, teacher, labels = pairs(0)
    found = distillation(student, teacher, labels, distill, temperature=3.0, ramp=ramp)
    lower = distill.model_copy(update={"alpha": distill.alpha * ramp})
    torch.testing.assert_close(
        found, distillation(student, teacher, labels, lower, temperature=3.0)
    )


@pytest.mark.parametrize("distill", ALL, ids=named)
def test_only_the_soft_loss_sees_standardized_logits(distill: DistillConfig) -> None:
    student, teacher, labels = pairs(0)
    seen = (standardized(z) if distill.standardize else z for z in (student, teacher))
    soft = SOFT[distill.loss](*seen, labels, distill, temperature=3.0)
    found = distillation(student, teacher, labels, distill, temperature=3.0)
    torch.testing.assert_close(found, 0.4 * F.cross_entropy(student, labels) + 0.6 * soft)


@pytest.mark.parametrize("loss", SOFT)
@laws
@given(seeds, temperatures, st.floats(-50, 50))
def test_a_soft_loss_is_zero_when_student_and_teacher_agree_and_only_then(
    loss: str, seed: int, temperature: float, shift: float
) -> None:
    other, teacher, labels = pairs(seed)
    distill = DistillConfig(loss=loss, alpha=1)
    found = distillation(teacher + shift, teacher, labels, distill, temperature=temperature)
    slack = 1e-4 * temperature**2 if loss == "dist" else 1e-9
    assert float(found) == pytest.approx(0, abs=slack)
    assert distillation(other, teacher, labels, distill, temperature=temperature) > 1e-2


# Hinton's


@pytest.mark.parametrize("temperature", [4.0, 5.0, 20.0])
def test_temperature_leaves_the_size_of_the_soft_gradient_nearly_alone(temperature: float) -> None:
    def size(temperature: float) -> float:
        student = drawn(0, 32, 10, scale=0.3).requires_grad_()
        kd(student, drawn(1, 32, 10, scale=0.3), temperature).backward()
        assert student.grad is not None
        return float(student.grad.norm())

    assert size(temperature) == pytest.approx(size(1.0), rel=0.1)


@laws
@given(seeds, temperatures)
def test_equal_teachers_average_to_what_one_of_them_teaches(seed: int, temperature: float) -> None:
    student, teacher, _ = pairs(seed)
    prob_BC = torch.stack([teacher, teacher + 3]).div(temperature).softmax(2).mean(0)
    found = kd_from(student, prob_BC.log(), temperature)
    torch.testing.assert_close(found, kd(student, teacher, temperature))


# decoupled


@laws
@given(seeds, temperatures)
def test_weighted_by_the_teachers_uncertainty_of_the_target_dkd_is_kd(
    seed: int, temperature: float
) -> None:
    student, teacher, labels = pairs(seed)
    found = []
    for row in range(len(labels)):
        one = slice(row, row + 1)
        sure = (teacher[row] / temperature).softmax(0)[labels[row]]
        weights = DistillConfig(loss="dkd", target_weight=1, others_weight=float(1 - sure))
        found.append(
            dkd(student[one], teacher[one], labels[one], weights, temperature=temperature)
        )
    torch.testing.assert_close(torch.stack(found).mean(), kd(student, teacher, temperature))


@pytest.mark.parametrize(("target", "others"), [(1, 0), (0, 1), (1, 8)])
def test_dkd_is_the_papers_formula(target: float, others: float) -> None:
    (student, teacher, labels), temperature = pairs(3), 4.0
    s, t = ((z / temperature).softmax(1).numpy() for z in (student, teacher))
    expected = 0.0
    for p, q, y in zip(t, s, labels.tolist(), strict=True):
        pair = p[y] * math.log(p[y] / q[y]) + (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        p, q = (np.delete(x, y) / (1 - x[y]) for x in (p, q))
        expected += (target * pair + others * float((p * np.log(p / q)).sum())) * 16 / 7
    weights = DistillConfig(loss="dkd", target_weight=target, others_weight=others)
    found = dkd(student, teacher, labels, weights, temperature=temperature)
    assert float(found) == pytest.approx(expected)


def test_dkd_learns_the_other_classes_from_a_teacher_that_is_certain() -> None:
    teacher = torch.tensor([[200.0, 2.0, 0.0]])
    student = torch.tensor([[200.0, 0.0, 2.0]], requires_grad=True)
    labels = torch.tensor([0])
    assert float(kd(student, teacher, 1.0).detach()) == 0
    (pull,) = torch.autograd.grad(
        dkd(student, teacher, labels, DistillConfig(), temperature=1.0), student
    )
    assert pull[0, 1] < -1
    assert pull[0, 2] > 1


def test_with_two_classes_only_the_target_is_left() -> None:
    student, teacher, labels = pairs(0, classes=2)
    found = dkd(student, teacher, labels, DistillConfig(target_weight=1), temperature=2.0)
    torch.testing.assert_close(found, kd(student, teacher, 2.0))


# correlations


@pytest.mark.parametrize(("rows", "columns"), [(1, 0), (0, 1), (1, 2)])
def test_dist_is_one_minus_pearsons_correlation(rows: float, columns: float) -> None:
    student, teacher, _ = pairs(0)
    s, t = ((z / 4).softmax(1).numpy() for z in (student, teacher))
    over_classes = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s, t, strict=True)])
    over_images = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(s.T, t.T, strict=True)])
    expected = 16 * (rows * (1 - over_classes) + columns * (1 - over_images))
    weights = DistillConfig(loss="dist", rows_weight=rows, columns_weight=columns)
    assert float(dist(student, teacher, weights, 4.0)) == pytest.approx(expected, rel=1e-5)


@laws
@given(seeds, st.floats(0.1, 0.9))
def test_dist_forgives_a_student_that_is_less_sure_by_one_measure_for_all(
    seed: int, doubt: float
) -> None:
    _, teacher, _ = pairs(seed)
    student = ((1 - doubt) * teacher.softmax(1) + doubt / 4).log()
    assert float(dist(student, teacher, DistillConfig(), 1.0)) == pytest.approx(0, abs=1e-4)
    assert kd(student, teacher, 1.0) > 1e-3


def test_dist_forgives_an_uncertainty_of_each_image_only_within_images() -> None:
    _, teacher, _ = pairs(0)
    doubt = torch.linspace(0, 0.9, 7)[:, None]
    student = ((1 - doubt) * teacher.softmax(1) + doubt / 4).log()
    rows, columns = (
        dist(student, teacher, DistillConfig(rows_weight=row, columns_weight=1 - row), 1.0)
        for row in (1, 0)
    )
    assert float(rows) == pytest.approx(0, abs=1e-5)
    assert columns > 1e-2


@pytest.mark.parametrize("flat", ["student", "teacher", "both"])
def test_what_is_constant_correlates_with_nothing_and_its_gradient_is_bounded(flat: str) -> None:
    one, other, _ = (z.float() for z in pairs(0))
    student = (torch.zeros(7, 4) if flat != "teacher" else one).requires_grad_()
    teacher = torch.zeros(7, 4) if flat != "student" else other
    found = dist(student, teacher, DistillConfig(), 1.0)
    (pull,) = torch.autograd.grad(found, student)
    assert float(found.detach()) == pytest.approx(2)
    assert pull.abs().max() < 1e4
    assert bool(pull.any()) == (flat == "student")


# standardized logits


@laws
@given(seeds, st.floats(0.1, 50), st.floats(-50, 50))
def test_standardized_logits_forget_their_scale_and_their_shift(
    seed: int, scale: float, shift: float
) -> None:
    logits = drawn(seed, 5, 10)
    found = standardized(scale * logits + shift)
    torch.testing.assert_close(found, standardized(logits), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean(1), torch.zeros(5).double())
    torch.testing.assert_close(found.std(1), torch.ones(5).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", ["kd", "dkd"])
def test_with_standardized_logits_a_scaled_copy_of_the_teacher_has_nothing_to_learn(
    loss: str,
) -> None:
    _, teacher, labels = pairs(0)
    for standardize, nothing in ((True, True), (False, False)):
        distill = DistillConfig(loss=loss, alpha=1, standardize=standardize)
        found = distillation(0.2 * teacher - 3, teacher, labels, distill, temperature=2.0)
        assert (float(found) < 1e-9) == nothing


# all of them


@pytest.mark.parametrize("distill", ALL, ids=named)
def test_the_gradient_of_a_loss_is_that_of_finite_differences(distill: DistillConfig) -> None:
    student, teacher, labels = pairs(3)

    def loss(student: torch.Tensor) -> torch.Tensor:
        return distillation(student, teacher, labels, distill, temperature=3.0)

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


@pytest.mark.parametrize("distill", ALL, ids=named)
def test_losses_are_computed_in_float32_under_mixed_precision(distill: DistillConfig) -> None:
    student, teacher, labels = pairs(5)
    plain = distillation(student.float(), teacher.float(), labels, distill, temperature=3.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = distillation(student.float(), teacher.float(), labels, distill, temperature=3.0)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, plain)


@pytest.mark.parametrize("distill", ALL, ids=named)
@pytest.mark.parametrize("scale", [0.0, 50.0, 1e4])
def test_losses_and_their_gradients_stay_finite_for_extreme_logits(
    distill: DistillConfig, scale: float
) -> None:
    student, teacher, labels = pairs(7)
    student = (student.float() * scale).requires_grad_()
    found = distillation(student, teacher.float() * scale, labels, distill, temperature=3.0)
    (pull,) = torch.autograd.grad(found, student)
    assert found.isfinite()
    assert pull.isfinite().all()
