"""The laws of a routed mixture: what it answers, what it costs, and whom it asks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from moist.config import RoutingConfig, StudentConfig
from moist.errors import StageError
from moist.measure.multiply_adds import cost
from moist.nets.build import module
from moist.nets.cnn import CNN, STUDENTS
from moist.nets.mixture import MoIST, duplicate
from moist.nets.routers import IMPOSSIBLE, ROUTERS, LinearRouter, OracleRouter
from moist.store.artifacts import Clusters, Mixture, Router, Spec, Student

SHAPE = (1, 8, 8)
CIFAR = (3, 32, 32)
CLUSTERS = Clusters((0, 1, 0, 2, 1, 1), {})
CLASSES = len(CLUSTERS.of_class)
LABELS = torch.arange(12) % CLASSES

laws = settings(deadline=None, max_examples=10)
seeds = st.integers(0, 2**20)


def images(n: int = 12) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(n))


def mixture(
    seed: int = 0,
    *,
    masked: bool = False,
    gated: bool = False,
    batch_norm: bool = False,
    clusters: Clusters = CLUSTERS,
) -> MoIST:
    """Unequal students behind a linear router, ready to evaluate."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        students = [CNN(SHAPE, CLASSES, 6, (2, 3), batch_norm) for _ in range(clusters.k)]
        router = LinearRouter(SHAPE, clusters.k, widths=(), dropout=0.0)
        for net in (router, *students):
            for parameter in net.parameters():
                nn.init.normal_(parameter, std=0.4)
    return MoIST(router, students, clusters, masked=masked, gated=gated).eval()


def always(net: MoIST, j: int) -> MoIST:
    """The mixture with a router that is certain of cluster j."""
    assert isinstance(net.router, LinearRouter)
    head = net.router.layers[-1]
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(F.one_hot(torch.tensor(j), len(net.students)) * 1e3)
    return net


# whom it asks


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("j", [0, 1, 2])
def test_a_certain_router_makes_the_mixture_one_expert(j: int, gated: bool) -> None:
    net = always(mixture(gated=gated), j)
    torch.testing.assert_close(net(images()), net.students[j](images()))


@pytest.mark.parametrize("j", [0, 1, 2])
def test_a_certain_router_makes_a_masked_mixture_one_expert_on_its_classes(j: int) -> None:
    net = always(mixture(masked=True), j)
    own = torch.tensor(CLUSTERS.of_class) == j
    probs_BC = net(images()).softmax(1)
    expected = net.students[j](images())[:, own].softmax(1)
    torch.testing.assert_close(probs_BC[:, own], expected)
    assert not probs_BC[:, ~own].any()


@laws
@given(seeds, st.permutations(range(3)), st.booleans(), st.booleans())
def test_the_order_of_the_experts_does_not_matter(
    seed: int, order: list[int], masked: bool, gated: bool
) -> None:
    net = mixture(seed, masked=masked, gated=gated)
    assert isinstance(net.router, LinearRouter)
    head = net.router.layers[-1]
    shuffled = LinearRouter(SHAPE, 3, widths=(), dropout=0.0)
    shuffled.load_state_dict(
        {"layers.1.weight": head.weight[order], "layers.1.bias": head.bias[order]}
    )
    clusters = Clusters(tuple(order.index(j) for j in CLUSTERS.of_class), {})
    students = [net.students[j] for j in order]
    other = MoIST(shuffled, students, clusters, masked=masked, gated=gated).eval()
    with torch.inference_mode():
        torch.testing.assert_close(other(images()), net(images()))


@laws
@given(seeds, st.lists(st.integers(0, 2), min_size=1, max_size=12), st.booleans())
def test_grouped_dispatch_equals_one_image_at_a_time(
    seed: int, expert_B: list[int], batch_norm: bool
) -> None:
    net = mixture(seed, batch_norm=batch_norm)
    x_BCHW = images(len(expert_B))
    with torch.inference_mode():
        grouped_BC = net.dispatch(x_BCHW, torch.tensor(expert_B))
        alone_BC = [net.students[j](x_BCHW[i : i + 1]) for i, j in enumerate(expert_B)]
    torch.testing.assert_close(grouped_BC, torch.cat(alone_BC), rtol=1e-5, atol=1e-5)


@laws
@given(seeds, st.booleans(), st.booleans(), st.booleans())
def test_a_batch_is_answered_as_one_image_at_a_time(
    seed: int, masked: bool, gated: bool, batch_norm: bool
) -> None:
    net = mixture(seed, masked=masked, gated=gated, batch_norm=batch_norm)
    with torch.inference_mode():
        alone_BC = torch.cat([net(image) for image in images().split(1)])
        torch.testing.assert_close(net(images()), alone_BC, rtol=1e-5, atol=1e-5)


def test_dispatch_runs_the_given_expert_and_no_other() -> None:
    net = mixture()
    expert_B = torch.tensor([2, 0, 2, 0])
    logits_BC = net.dispatch(images(4), expert_B)
    for row, j in enumerate(expert_B.tolist()):
        torch.testing.assert_close(
            logits_BC[row : row + 1], net.students[j](images(4)[row : row + 1])
        )
    logits_BC.sum().backward()
    asked = [any(p.grad is not None for p in student.parameters()) for student in net.students]
    assert asked == [True, False, True]


def test_all_experts_at_once_are_the_experts_one_by_one() -> None:
    net = mixture(masked=True)
    stacked_BEC = net.experts(images())
    assert stacked_BEC.shape == (12, 3, CLASSES)
    for j in range(3):
        assert torch.equal(stacked_BEC[:, j], net.expert(j, images()))


# what it answers


@laws
@given(seeds)
def test_a_masked_mixture_is_a_distribution_that_keeps_the_routers(seed: int) -> None:
    net = mixture(seed, masked=True)
    with torch.inference_mode():
        log_probs_BC, gate_BE = net.routed(images())
        student_BC = net.dispatch(images(), gate_BE.argmax(1))
    torch.testing.assert_close(log_probs_BC.exp().sum(1), torch.ones(12))
    cluster_C = torch.tensor(CLUSTERS.of_class)
    for row, (log_probs_C, gate_E) in enumerate(zip(log_probs_BC, gate_BE, strict=True)):
        chosen = int(gate_E.argmax())
        for j in range(3):
            inside = cluster_C == j
            share_C = log_probs_C.exp()[inside] / gate_E.softmax(0)[j]
            even_C = torch.full((int(inside.sum()),), 1 / int(inside.sum()))
            own_C = student_BC[row][inside].softmax(0)
            torch.testing.assert_close(share_C, own_C if j == chosen else even_C)


@laws
@given(seeds)
def test_the_two_level_likelihood_is_router_and_student_cross_entropy(seed: int) -> None:
    """Of every class of the cluster that an image is sent to."""
    net = mixture(seed, masked=True)
    with torch.inference_mode():
        log_probs_BC, gate_BE = net.routed(images())
        sent_B = gate_BE.argmax(1)
        within_BC = net.dispatch(images(), sent_B)
    for row, sent in enumerate(sent_B):
        classes_B = (net.cluster_C == sent).nonzero()[:, 0]
        router = F.cross_entropy(gate_BE[row], sent)
        for c in classes_B:
            found = F.nll_loss(log_probs_BC[row], c)
            torch.testing.assert_close(found, router + F.cross_entropy(within_BC[row], c))


@laws
@given(seeds)
def test_gate_times_masked_experts_sums_to_one_over_the_classes(seed: int) -> None:
    net = mixture(seed, masked=True)
    with torch.inference_mode():
        gate_BE = net.route(images()).softmax(1)
        probs_BC = (gate_BE[:, :, None] * net.experts(images()).softmax(2)).sum(1)
    torch.testing.assert_close(probs_BC.sum(1), torch.ones(12))


def test_a_masked_student_gives_no_probability_to_foreign_classes() -> None:
    net = mixture(masked=True)
    for j in range(3):
        probs_BC = net.expert(j, images() * 20).softmax(1)
        assert not probs_BC[:, ~net.member_EC[j]].any()
        assert probs_BC[:, net.member_EC[j]].any()


def test_an_unsure_masked_student_loses_to_a_likely_cluster_of_one_class() -> None:
    net = mixture(masked=True, clusters=Clusters((0, 0, 0, 0, 0, 1), {}))
    gate_BE = torch.tensor([[0.55, 0.45], [0.95, 0.05]]).log()
    unsure_BC = torch.zeros(2, CLASSES).masked_fill(~net.member_EC[0], IMPOSSIBLE)
    logits_BC = net.combine(gate_BE, gate_BE.argmax(1), unsure_BC)
    expected = torch.tensor([[0.11] * 5 + [0.45], [0.19] * 5 + [0.05]])
    torch.testing.assert_close(logits_BC.exp(), expected)
    assert (logits_BC.argmax(1) == 5).tolist() == [True, False]


def test_a_gated_mixture_scales_the_students_logits_by_the_routers_probability() -> None:
    net = mixture(gated=True)
    with torch.inference_mode():
        logits_BC, gate_BE = net.routed(images())
        best_B = gate_BE.softmax(1).max(1)
        expected = best_B.values[:, None] * net.dispatch(images(), best_B.indices)
    torch.testing.assert_close(logits_BC, expected)


def test_a_gated_mixture_hands_its_router_a_gradient_and_an_ungated_one_does_not() -> None:
    for gated in (True, False):
        net = mixture(gated=gated)
        F.cross_entropy(net(images()), LABELS).backward()
        assert all((p.grad is not None) == gated for p in net.router.parameters())


def test_one_cluster_makes_the_mixture_its_student() -> None:
    for masked in (True, False):
        net = mixture(masked=masked, clusters=Clusters((0,) * CLASSES, {}))
        found, expected = net(images()), net.students[0](images())
        torch.testing.assert_close(found.softmax(1), expected.softmax(1))


def test_one_class_a_cluster_makes_a_masked_mixture_its_router() -> None:
    net = mixture(masked=True, clusters=Clusters(tuple(range(CLASSES)), {}))
    torch.testing.assert_close(net(images()).softmax(1), net.route(images()).softmax(1))


def test_answers_are_float32_under_mixed_precision() -> None:
    net = mixture(masked=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BC, gate_BE = net.routed(images())
        assert net.router(images()).dtype == torch.bfloat16
    assert logits_BC.dtype == gate_BE.dtype == torch.float32
    torch.testing.assert_close(logits_BC.exp().sum(1), torch.ones(12))


# the oracle


@pytest.mark.parametrize("masked", [False, True])
def test_the_oracle_sends_each_image_to_the_student_of_its_class(masked: bool) -> None:
    plain = mixture(masked=masked)
    net = MoIST(OracleRouter(SHAPE, 3), list(plain.students), CLUSTERS, masked=masked).eval()
    found = net(images(), LABELS).softmax(1)
    expected = net.dispatch(images(), net.cluster_C[LABELS]).softmax(1)
    torch.testing.assert_close(found, expected)


def test_the_oracle_needs_labels() -> None:
    net = MoIST(OracleRouter(SHAPE, 3), list(mixture().students), CLUSTERS, masked=False)
    with pytest.raises(StageError, match="oracle"):
        net(images())


def test_labels_change_nothing_for_a_router_that_looks_at_images() -> None:
    net = mixture()
    assert torch.equal(net(images(), LABELS), net(images()))


# building


def artifact(router: str = "cnn", width: int = 256, k: int = 3, **student: object) -> Mixture:
    options = STUDENTS["cnn"].options(StudentConfig(**student), width)
    one = Student(
        Spec("cnn", CIFAR, 10, options),
        STUDENTS["cnn"].build(CIFAR, 10, **options).state_dict(),
        (),
    )
    clusters = Clusters(tuple(min(c, k - 1) for c in range(10)), {})
    routing = ROUTERS[router].options(RoutingConfig())
    net = ROUTERS[router].build(CIFAR, k, **routing)
    spec = Spec(router, CIFAR, k, routing)
    return Mixture(
        Router(spec, net.state_dict(), ()), duplicate(one, k), clusters, True, False, ()
    )


def test_the_students_start_alike_and_share_no_memory() -> None:
    net = module(artifact(width=4, channels=(2, 2)))
    assert isinstance(net, MoIST)
    first, second, third = (student.state_dict() for student in net.students)
    for name in first:
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], third[name])
        assert len({student[name].data_ptr() for student in (first, second, third)}) == 3


def test_a_frozen_router_stays_in_evaluation_mode() -> None:
    net = mixture(batch_norm=True).train()
    net.freeze_router()
    assert not any(part.training for part in net.router.modules())
    for mode in (True, False, True):
        net.train(mode)
        assert not any(part.training for part in net.router.modules())
        assert all(part.training == mode for part in net.students.modules())
    assert not any(p.requires_grad for p in net.router.parameters())
    assert all(p.requires_grad for p in net.students.parameters())


# cost


@pytest.mark.parametrize(
    ("router", "width", "macs"),
    [("cnn", 256, 12_782_464), ("cnn", 1024, 15_935_872), ("linear", 256, 7_056_064)],
)
def test_a_mixture_costs_its_router_and_one_student_to_the_unit(
    router: str, width: int, macs: int
) -> None:
    model = artifact(router, width)
    found = cost(module(model), CIFAR)
    parts = [cost(module(part), CIFAR) for part in (model.router, model.students[0])]
    assert found.macs == macs == parts[0].macs + parts[1].macs
    assert found.flops == parts[0].flops + parts[1].flops
    assert found.macs > parts[1].macs
    assert found.params == parts[0].params + 3 * parts[1].params


@pytest.mark.parametrize("router", ["cnn", "linear", "transformer"])
def test_more_clusters_cost_more_weights_but_only_the_routers_head_more_time(router: str) -> None:
    few, many = (cost(module(artifact(router, 16, k)), CIFAR) for k in (2, 5))
    heads = [cost(module(artifact(router, 16, k).router), CIFAR).macs for k in (2, 5)]
    student = cost(module(artifact(router, 16, 2).students[0]), CIFAR)
    assert many.macs - few.macs == heads[1] - heads[0] < 1000
    assert many.params - few.params >= 3 * student.params


def test_an_oracles_mixture_costs_its_student_only() -> None:
    model = artifact("oracle")
    found = cost(module(model), CIFAR)
    assert found.macs == found.flops == 6_654_464
    assert found.params == 3 * cost(module(model.students[0]), CIFAR).params
