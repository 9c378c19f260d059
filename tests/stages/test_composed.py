"""What a stage minimizes, put together by hand from its parts: the value, and the gradient."""

from dataclasses import replace

import pytest
import torch
from test_integrate import ENV, dataset, gathered, merging, mixture_views, student, taught
from test_joint import CLUSTERS, batch, joint, network, train, value
from torch.nn import functional as F

from moist.config import (
    AugmentConfig,
    DistillConfig,
    JointConfig,
    MergeConfig,
    Section,
    StudentConfig,
)
from moist.config.schema import choices
from moist.data.augment import plain_batches
from moist.nets.build import module
from moist.nets.mixture import MoIST
from moist.stages.distill import distill_ensemble, distill_student
from moist.stages.integrate import integrate
from moist.stages.joint import QUIETEST, Soft, teacher_prior
from moist.store.artifacts import Dataset, Student
from moist.training.distillation import distillation
from moist.training.gates import importance, load, noisy, squared_variation, top_gates

OTHERS = {
    "teacher_prior": 0.5, "prior_weight": 3.0, "balance": 2.0, "balance_form": "plain", "top": 3,
    "base": "absolute", "layout": "block", "score": "in", "rank": 1, "scale": "sum",
    "target_weight": 3.0, "others_weight": 3.0, "rows_weight": 3.0, "columns_weight": 3.0,
    "gate": "teacher", "experts": "heads", "tie": 3.0, "alpha": 0.1, "momentum": 0.5,
    "nesterov": True,
}  # fmt: skip
"""Of every field that is read only under some choices, a value that is not its default."""
LABELS = [0, 1, 2, 3, 4, 0, 2]
SHARE_E = torch.tensor([2 / 5, 2 / 5, 1 / 5])
STILL = {"epochs": 1, "batch_size": 64, "lr": 1e-30, "weight_decay": 0, "schedule": "constant"}
"""An epoch of one batch that moves nothing: its row is the loss of the weights it began with."""


# joint training


def share(config: JointConfig) -> torch.Tensor:
    return SHARE_E if config.balance_form == "weighted" else torch.full((3,), 1 / 3)


def em(net: MoIST, config: JointConfig) -> torch.Tensor:
    x_BCHW, y_B, rho = batch(LABELS).images_BCHW, torch.tensor(LABELS), config.teacher_prior
    q_BE = teacher_prior(net, batch(LABELS), Soft(taught().train_VNC, 2.0))
    g_BE = net.route(x_BCHW).softmax(1)
    f_BE = net.experts(x_BCHW).softmax(2)[torch.arange(len(y_B)), :, y_B]
    r_BE = (g_BE ** (1 - rho) * q_BE**rho * f_BE).detach()
    r_BE = r_BE / r_BE.sum(1, keepdim=True)
    bound = (r_BE * (r_BE / (g_BE * f_BE)).log()).nansum(1).mean()
    return bound + config.prior_weight * (q_BE * (q_BE / g_BE).log()).sum(1).mean()


def switch(net: MoIST, config: JointConfig) -> torch.Tensor:
    x_BCHW, y_B = batch(LABELS).images_BCHW, torch.tensor(LABELS)
    g_BE = net.route(x_BCHW).softmax(1)
    best_B = g_BE.argmax(1)
    rows = torch.arange(len(y_B))
    scaled_BC = net.experts(x_BCHW)[rows, best_B] * g_BE[rows, best_B, None]
    routed_E = torch.bincount(best_B, minlength=3) / len(y_B)
    uneven = (routed_E * g_BE.mean(0) / share(config)).sum()
    return F.cross_entropy(scaled_BC, y_B) + config.balance * uneven


def noisy_topk(net: MoIST, config: JointConfig) -> torch.Tensor:
    x_BCHW, y_B = batch(LABELS).images_BCHW, torch.tensor(LABELS)
    gate_BE = net.route(x_BCHW)
    deviation_BE = (F.softplus(net.deviation_E) + QUIETEST).expand_as(gate_BE)
    noisy_BE = noisy(gate_BE, deviation_BE, torch.randn_like(gate_BE))
    prob_BE = top_gates(noisy_BE, config.top)
    f_BE = net.experts(x_BCHW).softmax(2)[torch.arange(len(y_B)), :, y_B]
    got_E, load_E = importance(prob_BE), load(gate_BE, deviation_BE, noisy_BE, config.top).sum(0)
    uneven = squared_variation(got_E, share(config)) + squared_variation(load_E, share(config))
    return -(prob_BE * f_BE).sum(1).log().mean() + config.balance * uneven


WHOLE = {"em": em, "switch": switch, "noisy_topk": noisy_topk}
JOINT = [
    joint("em", mask_students=False, teacher_prior=rho, prior_weight=weight)
    for rho in (0.0, 0.7)
    for weight in (0.0, 1.5)
] + [
    joint(objective, balance=weight, balance_form=form)
    for objective in ("switch", "noisy_topk")
    for weight, form in ((0.0, "weighted"), (3.0, "weighted"), (3.0, "plain"))
]


def called(config: JointConfig) -> str:
    return " ".join(
        str(getattr(config, name))
        for name in ("objective", "teacher_prior", "prior_weight", "balance", "balance_form")
    )


@pytest.mark.parametrize("config", JOINT, ids=called)
def test_a_joint_objective_is_the_sum_of_its_terms_and_so_is_its_gradient(
    config: JointConfig,
) -> None:
    net = network(config)
    found = value(config, net, LABELS)
    torch.manual_seed(0)  # the noise of noisy_topk
    expected = WHOLE[config.objective](net, config)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    parameters = list(net.parameters())
    slopes = [
        torch.autograd.grad(x, parameters, allow_unused=True, materialize_grads=True)
        for x in (found, expected)
    ]
    assert any(slope.any() for slope in slopes[1])
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_forms_of_balance_differ_where_clusters_do() -> None:
    for objective in ("switch", "noisy_topk"):
        net = network(joint(objective))
        one, other = (
            float(value(joint(objective, balance=3, balance_form=form), net, LABELS).detach())
            for form in ("weighted", "plain")
        )
        assert abs(one - other) > 1e-3
    assert CLUSTERS.of_class == (0, 1, 0, 2, 1)  # what SHARE_E says


# distillation, and the refinement of what was gathered


def inputs(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    (found,) = plain_batches(
        data.train, mean=data.mean, std=data.std, batch_size=64, device=ENV.device
    )
    return found.images_BCHW, found.labels_B


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("who", ["none", "teacher", "mixture", "both"])
def test_a_refinement_weighs_labels_and_its_teachers(who: str, alpha: float) -> None:
    teachers = {"none": (), "teacher": (taught(1),), "mixture": (mixture_views(2.0),)}
    teachers["both"] = (*teachers["mixture"], *teachers["teacher"])
    data, t = dataset(), 2.0
    start = student(7)
    x_BCHW, y_B = inputs(data)
    given = tuple(replace(one, train_VNC=one.train_VNC[:1]) for one in teachers[who])
    after = integrate(
        ENV, data=data, student=start, taught=given, views=1,
        merge=merging(who, alpha=alpha, **STILL), temperature=t, augment=AugmentConfig(shift=0),
        precision="float32", seed=0,
    )  # fmt: skip
    with torch.inference_mode():
        z_BC = module(start)(x_BCHW)
        loss = F.cross_entropy(z_BC, y_B)
        if given:
            p_BC = torch.stack([(g.train_VNC[0].float() / t).softmax(1) for g in given]).mean(0)
            divergence = (p_BC * (p_BC.log() - (z_BC / t).log_softmax(1))).sum(1).mean()
            loss = (1 - alpha) * loss + alpha * t**2 * divergence
    assert after.history[0]["loss"] == pytest.approx(float(loss), rel=1e-4)


def distilled(distill: DistillConfig, data: Dataset) -> Student:
    return distill_student(
        ENV, data=data, logits=taught(1), levels=None,
        student=StudentConfig(channels=(4, 6)), hidden_width=8, distill=distill,
        temperature=2.0, augment=AugmentConfig(shift=0), precision="float32", seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist"])
def test_the_soft_loss_warms_up_epoch_by_epoch(loss: str) -> None:
    data = dataset()
    still = {**STILL, "epochs": 4}
    warm = DistillConfig.model_validate({"loss": loss, "alpha": 0.8, "warmup": 3, **still})
    found = distilled(warm, data)
    x_BCHW, y_B = inputs(data)
    with torch.inference_mode():
        z_BC, taught_BC = module(found)(x_BCHW), taught(1).train_VNC[0].float()
        expected = [
            float(distillation(z_BC, taught_BC, y_B, warm, temperature=2.0, ramp=ramp))
            for ramp in (1 / 3, 2 / 3, 1.0, 1.0)
        ]
    assert [row["loss"] for row in found.history] == pytest.approx(expected, rel=1e-4)
    assert len({round(x, 4) for x in expected[:3]}) == 3


def test_the_students_of_an_ensemble_start_apart_and_are_trained_on_the_sum_of_their_losses():
    data = dataset()
    distill = DistillConfig.model_validate({"alpha": 0.8, **STILL})
    found = distill_ensemble(
        ENV, data=data, logits=taught(1), k=3, views=("plain",) * 3,
        student=StudentConfig(channels=(4, 6)), hidden_width=8, distill=distill,
        temperature=2.0, augment=AugmentConfig(shift=0), precision="float32", seed=0,
    )  # fmt: skip
    x_BCHW, y_B = inputs(data)
    with torch.inference_mode():
        each = [module(one)(x_BCHW) for one in found.students]
        losses = [
            float(
                distillation(z_BC, taught(1).train_VNC[0].float(), y_B, distill, temperature=2.0)
            )
            for z_BC in each
        ]
    assert found.history[0]["loss"] == pytest.approx(sum(losses), rel=1e-4)
    for i, one in enumerate(each):
        assert not any(torch.allclose(one, other, atol=1e-2) for other in each[:i])


# what a key leaves out


def not_read(section: type[Section], by: str, choice: str) -> dict[str, object]:
    """Other values of all that a choice leaves unread, as the section declares it."""
    declared = {
        name: (field.json_schema_extra or {}).get("only", {})
        for name, field in section.model_fields.items()
    }
    return {
        name: OTHERS[name] for name, at in declared.items() if choice not in at.get(by, choice)
    }


def test_every_field_that_is_not_always_read_is_tried():
    for section in (JointConfig, MergeConfig, DistillConfig):
        declared = {
            n for n, f in section.model_fields.items() if "only" in (f.json_schema_extra or {})
        }
        assert declared <= OTHERS.keys()


@pytest.mark.parametrize("objective", choices(JointConfig, "objective"))
def test_joint_training_does_not_read_what_its_objective_leaves_out(objective: str) -> None:
    config = joint(objective)
    vain = not_read(JointConfig, "objective", objective) | not_read(
        JointConfig, "optimizer", "adamw"
    )
    assert {"momentum", "nesterov"} < vain.keys()
    one, other = (train(c).students for c in (config, config.model_copy(update=vain)))
    for a, b in zip(one, other, strict=True):
        assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)


@pytest.mark.parametrize("method", choices(MergeConfig, "method"))
def test_gathering_does_not_read_what_its_method_leaves_out(method: str) -> None:
    vain = not_read(MergeConfig, "method", method)
    assert vain
    one, other = (
        gathered(MergeConfig(method=method).model_copy(update=more)) for more in ({}, vain)
    )
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist"])
def test_distillation_does_not_read_what_its_loss_leaves_out(loss: str) -> None:
    config = DistillConfig.model_validate({"loss": loss, "epochs": 1, "batch_size": 8, "lr": 0.01})
    vain = not_read(DistillConfig, "loss", loss) | not_read(DistillConfig, "optimizer", "adamw")
    assert "tie" in vain
    states = [distilled(config.model_copy(update=more), dataset()).state for more in ({}, vain)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
