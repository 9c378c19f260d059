"""A latent teacher: EM against autograd, heads against their definition, levels on real images."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig, DistillConfig, StudentConfig, TeacherConfig
from moist.data.augment import Pass, batches
from moist.env import Env, Silent
from moist.measure.multiply_adds import cost
from moist.nets.build import module
from moist.nets.cnn import STUDENTS
from moist.nets.latent_head import LatentHead, give_head
from moist.stages.levels import probed, table, teacher_levels
from moist.stages.teacher import train_teacher
from moist.store import checkpoint
from moist.store.artifacts import Dataset, Levels, Spec, Split, Teacher, pack, unpack
from moist.training.moe_kd import Heads, Latent, em_bound, offsets_matrix

ENV = Env(device=torch.device("cpu"), stage="levels")
AUGMENT = AugmentConfig(flip=False, shift=1, cutout=2)
FORMS = ("offsets", "heads")
GATES = ("student", "teacher")
C, M = 10, 3
laws = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**20)


def drawn(seed: int, *shape: int, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def digits(n: int = 300) -> Dataset:
    found = load_digits()
    pixels = torch.tensor(found.images[:n] * 15, dtype=torch.uint8)[..., None]
    split = Split(pixels, torch.tensor(found.target[:n]))
    empty = Split(pixels[:0], split.labels_N[:0])
    return Dataset("digits", tuple("0123456789"), (0.3,), (0.4,), split, empty, split)


@cache
def teacher() -> Teacher:
    config = TeacherConfig(arch="resnet8", epochs=4, batch_size=32)
    return train_teacher(
        ENV, data=digits(), teacher=config, augment=AUGMENT, precision="float32", seed=0
    )


def seen(env: Env = ENV, views: int = 1) -> Levels:
    return teacher_levels(
        env, data=digits(), teacher=teacher(), augment=AUGMENT, views=views,
        precision="float32", seed=3,
    )  # fmt: skip


levels = cache(seen)
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@cache
def batch(size: int = 100) -> Batch:
    """Images, labels, and the teacher's logits and levels."""
    data = digits()
    found = next(batches(
        data, Pass(view=0, order=0), augment=AUGMENT, seed=3, batch_size=size, device=ENV.device,
    ))  # fmt: skip
    with torch.inference_mode():
        logits_BC = module(teacher()).eval()(found.images_BCHW)
    features_BD = levels().features_VND[0, found.index_B].float()
    return found.images_BCHW, found.labels_B, logits_BC.clone(), features_BD


def student() -> nn.Module:
    return STUDENTS["cnn"].build(
        (1, 8, 8), C, hidden_width=16, channels=(4, 8), batch_norm=False
    )  # fmt: skip


def latent(form: str = "offsets", gate: str = "student", tie: float = 1.0) -> Latent:
    """A student in training whose every parameter has left its start."""
    distill = DistillConfig(loss="moe_kd", experts=form, gate=gate, tie=tie)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Latent(student(), STUDENTS["cnn"].last, levels(), distill, temperature=4.0)
        with torch.no_grad():
            for parameter in net.experts.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def terms(net: Latent) -> tuple[torch.Tensor, torch.Tensor]:
    """By definition, of the batch: log gate (B, Z), and log p(y|x,z) (B, Z, C) of every y."""
    images_BCHW, _, teacher_BC, _ = batch()
    x = net.net(images_BCHW)
    logits = teacher_BC / 4 if net.phi is None else net.phi(x) @ net.weight_CF.T + net.bias_C
    every = [net.experts.log_fit(x, torch.full((len(x),), y)) for y in range(C)]
    return logits.log_softmax(1), torch.stack(every, 2)


def marginal(net: Latent) -> torch.Tensor:
    """-log p(y|x), a mean over the batch: what EM lowers."""
    log_gate_BZ, log_fit_BZC = terms(net)
    return F.nll_loss(torch.logsumexp(log_gate_BZ[:, :, None] + log_fit_BZC, 1), batch()[1])


def head(form: str, seed: int = 0, scale: float = 1.0) -> LatentHead:
    """One whose table is drawn, too."""
    found = LatentHead(6, C, form, M)
    state = {n: drawn(seed + i, *t.shape) for i, (n, t) in enumerate(found.state_dict().items())}
    state["table_ZK"] = state["table_ZK"].softmax(1)
    found.load_state_dict(state)
    with torch.no_grad():
        for linear in (found.gate, found.experts):
            linear.weight.mul_(scale)
    return found


# EM


@laws
@given(seeds)
def test_a_step_on_the_bound_is_a_step_on_the_likelihood(seed: int) -> None:
    gate = drawn(seed, 5, 4).requires_grad_()
    fit = drawn(seed + 1, 5, 4, 3).requires_grad_()
    labels = torch.arange(5) % 3
    log_gate = gate.log_softmax(1)
    log_fit = fit.log_softmax(2)[torch.arange(5), :, labels]
    exact = -(log_gate.exp() * log_fit.exp()).sum(1).log().mean()
    bound = em_bound(log_gate, log_fit)
    assert bound >= exact
    for one, other in zip(
        torch.autograd.grad(bound, (gate, fit), retain_graph=True),
        torch.autograd.grad(exact, (gate, fit)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 1e-3


def test_the_bound_is_the_loss_and_the_uncertainty_about_z() -> None:
    log_gate, log_fit = drawn(0, 5, 4).log_softmax(1), -drawn(1, 5, 4).abs()
    posterior = (log_gate + log_fit).softmax(1)
    entropy = -(posterior * posterior.log()).sum(1).mean()
    exact = -torch.logsumexp(log_gate + log_fit, 1).mean()
    torch.testing.assert_close(em_bound(log_gate, log_fit), exact + entropy)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("form", FORMS)
def test_without_tie_and_regression_the_loss_has_the_likelihoods_gradient(
    form: str, gate: str
) -> None:
    net = latent(form, gate, tie=0.0)
    parameters = [p for name, p in net.named_parameters() if "projectors" not in name]
    expected = torch.autograd.grad(marginal(net), parameters)
    images, labels, logits, features = batch()
    loss = net.loss(images, labels, logits, features)
    if form == "heads":
        loss = loss - net.experts.regression(net.net(images), features)
    for one, other in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("form", FORMS)
def test_small_steps_of_generalized_em_lower_the_loss_of_real_images(form: str, gate: str) -> None:
    net = latent(form, gate, tie=0.0)
    images, labels, logits, features = batch()
    found = [float(marginal(net).detach())]
    for _ in range(5):
        net.zero_grad()
        loss = net.loss(images, labels, logits, features)
        if form == "heads":
            loss = loss - net.experts.regression(net.net(images), features)
        loss.backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter -= 0.01 * parameter.grad
        found.append(float(marginal(net).detach()))
    assert all(after < before for before, after in pairwise(found))


def test_the_tie_is_zero_when_gate_and_teacher_agree_and_only_then() -> None:
    loose, tied = latent(tie=0.0), latent(tie=3.0)
    images, labels, logits, features = batch()
    log_gate_BZ, _ = terms(tied)
    agreed, other = 4 * log_gate_BZ.detach() + 7, logits
    for teacher_BC, nothing in ((agreed, True), (other, False)):
        asked = (images, labels, teacher_BC, features)
        one, more = (float(n.loss(*asked).detach()) for n in (loose, tied))
        assert (more - one < 1e-5) == nothing
    told = F.softmax(logits / 4, 1)
    expected = 3 * (told * (told.log() - log_gate_BZ)).sum(1).mean()
    assert more - one == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_tie_draws_the_gate_to_the_teacher() -> None:
    """Its gradient is that of the divergence, for what makes the gate and for nothing else."""
    loose, tied = latent(tie=0.0), latent(tie=3.0)
    names = [name for name, _ in tied.named_parameters()]
    slopes = [
        torch.autograd.grad(net.loss(*batch()), list(net.parameters())) for net in (loose, tied)
    ]
    log_gate_BZ, _ = terms(tied)
    told = F.softmax(batch()[2] / 4, 1)
    divergence = 3 * (told * (told.log() - log_gate_BZ)).sum(1).mean()
    expected = torch.autograd.grad(divergence, list(tied.parameters()), allow_unused=True)
    for name, without, found, wanted in zip(names, *slopes, expected, strict=True):
        assert (wanted is None) == name.startswith("experts"), name
        added = torch.zeros_like(found) if wanted is None else wanted
        torch.testing.assert_close(found - without, added, rtol=1e-3, atol=1e-5)
    assert any(wanted is not None and wanted.any() for wanted in expected)


# experts


@laws
@given(seeds)
def test_offsets_are_the_log_tables_in_proportions_that_sum_to_one(seed: int) -> None:
    tables = drawn(seed, M, C, C).softmax(2)
    one = torch.zeros(M).double()
    one[1] = 1
    torch.testing.assert_close(offsets_matrix(tables, one), (tables[1] + 1e-3).log())
    found = offsets_matrix(tables, drawn(seed, M).softmax(0)).exp()
    assert (found >= 1e-3).all() and (found <= 1 + 1e-3).all()
    same = tables[:1].expand(M, C, C)
    torch.testing.assert_close(
        offsets_matrix(same, drawn(seed, M).softmax(0)), same[0].add(1e-3).log()
    )


def test_lambda_and_the_mixing_weights_stay_on_the_simplex_while_they_learn() -> None:
    for form in FORMS:
        net = latent(form)
        before = net.experts.table().detach().clone()
        optimizer = torch.optim.SGD(net.parameters(), 1.0)
        for _ in range(5):
            optimizer.zero_grad()
            net.loss(*batch()).backward()
            optimizer.step()
        found = net.experts.table().detach()
        assert not torch.allclose(found, before)
        share = net.experts.mix_M.softmax(0) if form == "offsets" else found
        assert (share >= 0).all()
        torch.testing.assert_close(share.sum(-1), torch.ones(share.shape[:-1]))


def test_a_projector_that_gives_the_levels_misses_nothing_and_their_mean_misses_all() -> None:
    net, features_ND = latent("heads"), levels().features_VND[0].float()
    wanted = torch.split(features_ND, levels().widths, 1)
    image_ND = torch.eye(len(features_ND))  # features that tell the images apart, and no more
    for perfect, missed in ((True, 0.0), (False, 1.0)):
        for projector, level_ND in zip(net.experts.projectors, wanted, strict=True):
            apart = level_ND - level_ND.mean(0)
            scale = level_ND.var(0).mean().sqrt()
            projector.weight.data = perfect * apart.T / scale
            projector.bias.data = torch.zeros(len(apart.T))
        found = net.experts.regression(image_ND, features_ND).detach()
        assert float(found) == pytest.approx(missed, abs=5e-3)  # of the unbiased variance


@laws
@given(st.floats(0.01, 100), st.floats(-10, 10))
def test_a_level_counts_the_same_on_every_scale(scale: float, shift: float) -> None:
    def missed(scale: float, shift: float) -> float:
        features = drawn(0, 1, 300, 6).float() * scale + shift
        found = replace(levels(), features_VND=features, widths=(4, 2))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            experts = Heads(nn.Linear(5, C), found)
        return float(experts.regression(drawn(1, 300, 5).float(), features[0]).detach())

    assert missed(scale, shift) == pytest.approx(missed(1, 0), rel=1e-3)


# what is trained


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_learns_and_what_the_teacher_gave_does_not(form: str, gate: str) -> None:
    net = latent(form, gate)
    net.loss(*batch()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    given = ("tables_MCC",) if form == "offsets" else ("mean_D", "scale_D")
    frozen = {"weight_CF", "bias_C", *(f"experts.{name}" for name in given)}
    assert {name for name, _ in net.named_buffers()} == frozen
    assert not any(buffer.requires_grad for buffer in net.buffers())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("form", FORMS)
def test_a_latent_students_loss_is_finite_and_the_same_in_mixed_precision(
    form: str, gate: str
) -> None:
    net = latent(form, gate)
    plain = net.loss(*batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = net.loss(*batch())
    assert mixed.dtype == torch.float32
    assert float(mixed.detach()) == pytest.approx(float(plain.detach()), rel=0.02)


# what is deployed


@pytest.mark.parametrize("form", FORMS)
def test_the_folded_head_gives_the_distribution_that_was_trained(form: str) -> None:
    net = latent(form)
    log_gate_BZ, log_fit_BZC = terms(net)
    expected = torch.logsumexp(log_gate_BZ[:, :, None] + log_fit_BZC, 1)
    torch.testing.assert_close(net(batch()[0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("form", FORMS)
def test_the_deployed_student_is_the_validated_one(form: str, gate: str) -> None:
    net = latent(form, gate)
    state, deployed = net.deployed()
    assert deployed == (form if gate == "student" else None)
    spec = Spec("cnn", (1, 8, 8), C, {})
    tree, tensors = pack(Teacher(spec, state, ()))
    back = unpack(tree, tensors, {}).state
    bare = student()
    if deployed:
        give_head(bare, STUDENTS["cnn"].last, deployed, M)
    bare.load_state_dict(back)
    found = bare.eval()(batch()[0]).log_softmax(1)
    torch.testing.assert_close(found, net(batch()[0]), rtol=1e-5, atol=1e-5)
    assert not any(tensor.requires_grad for tensor in state.values())


def test_a_student_whose_gate_is_the_teacher_is_deployed_as_its_experts_alone() -> None:
    images, labels, _, _ = batch()
    net = latent("offsets", "teacher")
    plain = net.experts.head(net.net(images)).log_softmax(1)
    torch.testing.assert_close(net(images), plain)
    net = latent("heads", "teacher")
    x = net.net(images)
    pairs = zip(net.experts.heads, net.experts.projectors, strict=True)
    logits_BMC = torch.stack([h(p(x)) for h, p in pairs], 1)
    share_M = net.experts.table().mean(0)
    mean_BC = (share_M[:, None] * logits_BMC.log_softmax(2)).sum(1)
    torch.testing.assert_close(net(images), mean_BC.log_softmax(1), rtol=1e-5, atol=1e-5)
    assert F.nll_loss(net(images), labels) <= F.nll_loss(mean_BC, labels)


@pytest.mark.parametrize("form", FORMS)
@laws
@given(seed=seeds)
def test_a_head_is_the_mixture_of_its_definition(form: str, seed: int) -> None:
    found, x = head(form, seed).double(), drawn(seed, 7, 6)
    gate = found.gate(x).softmax(1)
    logits = found.experts(x).view(7, -1, C)
    if form == "offsets":
        fit = (logits + found.table_ZK.log()).softmax(2)
    else:
        fit = torch.einsum("zm,bmc->bzc", found.table_ZK, logits.softmax(2))
    expected = (gate[:, :, None] * fit).sum(1)
    torch.testing.assert_close(found.float()(x).exp().double(), expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(expected.sum(1), torch.ones(7).double())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_a_heads_answer_and_its_gradient_are_finite_in_every_precision(
    form: str, scale: float
) -> None:
    found, x = head(form, scale=scale), drawn(0, 7, 6).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = found(x)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, found(x))
    torch.testing.assert_close(mixed.exp().sum(1), torch.ones(7))
    F.nll_loss(mixed, torch.arange(7)).backward()
    assert mixed.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in found.parameters())


@pytest.mark.parametrize("arch", STUDENTS)
def test_every_student_can_be_taught_and_deployed(arch: str) -> None:
    images, *told = (x[:8] for x in batch())
    build = STUDENTS[arch].build
    options = STUDENTS[arch].options(StudentConfig(arch=arch), 16)
    distill = DistillConfig(loss="moe_kd", experts="heads")
    net = Latent(
        build((1, 8, 8), C, **options), STUDENTS[arch].last, levels(), distill, temperature=4.0
    ).eval()
    assert net.loss(images, *told).isfinite()
    state, form = net.deployed()
    bare = build((1, 8, 8), C, **options).eval()
    give_head(bare, STUDENTS[arch].last, form, M)
    bare.load_state_dict(state)
    torch.testing.assert_close(bare(images), net(images), rtol=1e-5, atol=1e-5)


# levels


def test_levels_are_the_teachers_pooled_outputs_on_the_images_that_a_student_sees() -> None:
    found, net = seen(views=2), module(teacher()).eval()
    assert found.features_VND.shape == (2, 300, sum(found.widths)) and found.widths == (16, 32, 64)
    assert found.features_VND.dtype == torch.float16
    data = digits()
    for view in range(2):
        for one in batches(
            data, Pass(view, order=9), augment=AUGMENT, seed=3, batch_size=50, device=ENV.device,
        ):  # fmt: skip
            with torch.inference_mode():
                x, parts = F.relu(net.bn1(net.conv1(one.images_BCHW))), []
                for block in net.blocks:
                    x = block(x)
                    parts.append(x.mean((2, 3)))
            features = found.features_VND[view, one.index_B].float()
            torch.testing.assert_close(features, torch.cat(parts, 1), rtol=2e-3, atol=2e-3)
    assert not torch.allclose(found.features_VND[0], found.features_VND[1], atol=1e-2)


def test_levels_hold_the_teachers_last_layer() -> None:
    _, _, teacher_BC, features_BD = batch()
    last = features_BD[:, -levels().widths[-1] :]
    said = last @ levels().weight_CF.T + levels().bias_C
    torch.testing.assert_close(said, teacher_BC, rtol=1e-2, atol=1e-2)


def test_a_deeper_level_predicts_the_class_better() -> None:
    tables_MCC = levels().tables_MCC
    assert tables_MCC.shape == (M, C, C) and (tables_MCC > 0).all()
    torch.testing.assert_close(tables_MCC.sum(2), torch.ones(M, C))
    right_M = tables_MCC.diagonal(dim1=1, dim2=2).mean(1)
    assert right_M[0] > 0.3 and right_M[2] > right_M[0]


def test_a_table_counts_classes_by_prediction_and_is_even_where_there_was_none() -> None:
    said, labels = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 2])
    third = 1 / 3
    expected = [
        [(2 + third) / 4, (1 + third) / 4, third / 4],
        [third / 2, third / 2, (1 + third) / 2],
        [third] * 3,
    ]
    torch.testing.assert_close(table(said, labels, 3), torch.tensor(expected))


def test_a_probe_separates_what_a_line_does_and_no_more() -> None:
    x, labels = drawn(0, 60, 2).float(), torch.arange(60) % 2
    apart = x + 30 * labels[:, None]
    constant = torch.cat([apart * 1000, torch.ones(60, 1)], 1)
    assert torch.equal(probed(constant, labels, 2), labels)
    crossed = torch.tensor([[0.0, 0], [1, 1], [0, 1], [1, 0]]).repeat(15, 1)
    assert (probed(crossed, torch.tensor([0, 0, 1, 1]).repeat(15), 2) == labels).sum() < 60


def test_levels_of_a_killed_stage_go_on_from_the_last_whole_view(tmp_path: Path) -> None:
    class Stops(Silent):
        """Progress of someone who interrupts after the first view."""

        def advanced(self, *told: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        seen(Env(ENV.device, Stops(), "levels", tmp_path), 2)
    found = checkpoint.load(tmp_path, print)
    assert found is not None and found[0] == 1
    resumed, unbroken = seen(ENV.at("levels", tmp_path), 2), seen(views=2)
    for name, tensor in pack(unbroken)[1].items():
        assert torch.equal(pack(resumed)[1][name], tensor), name
    assert resumed.widths == unbroken.widths


@pytest.mark.parametrize(("form", "head"), [("offsets", 16 * 20 + 200), ("heads", 16 * 50 + 40)])
def test_a_latent_head_costs_its_linear_layers_and_its_table(form: str, head: int) -> None:
    """2 d C + 2 C^2 for offsets, d (C + M C) + C M for heads; d=16, C=10, M=4."""
    found = cost(LatentHead(16, 10, form, 4), (16,))
    assert found.macs == head
