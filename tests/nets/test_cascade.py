"""More than one opinion: what an average says, who is asked in doubt, and what it costs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from moist.config import StudentConfig
from moist.env import Env
from moist.measure.accuracy import accuracy, answers, classify
from moist.measure.multiply_adds import cost
from moist.nets.build import Architecture, Model, blank, module
from moist.nets.cascade import CascadeNet, threshold_for
from moist.nets.cnn import CNN
from moist.nets.ensemble import FILTERS, EnsembleNet, views_of
from moist.nets.mixture import MoIST
from moist.nets.routers import LinearRouter
from moist.stages.evaluate import evaluate
from moist.stages.threshold import choose_threshold
from moist.store.artifacts import Cascade, Clusters, Dataset, Router, Split, Teacher

SHAPE = (3, 8, 8)
CLUSTERS = Clusters((0, 1, 0, 2, 1), {})
CLASSES = 5
ENV = Env(torch.device("cpu"))

laws = settings(deadline=None, max_examples=10)
seeds = st.integers(0, 2**20)


def images(n: int = 12) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(n))


def loud(net: nn.Module, seed: int) -> nn.Module:
    """The network with weights large enough for opinions that differ."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
    return net.eval()


def student(seed: int = 0) -> nn.Module:
    return loud(CNN(SHAPE, CLASSES, 6, (2, 3), batch_norm=False), seed)


def mixture(seed: int = 0, *, masked: bool = False, clusters: Clusters = CLUSTERS) -> MoIST:
    students = [student(seed + j) for j in range(clusters.k)]
    router = loud(LinearRouter(SHAPE, clusters.k, widths=(), dropout=0.0), seed + 9)
    return MoIST(router, students, clusters, masked=masked).eval()


# an average


@laws
@given(seeds, st.integers(1, len(FILTERS)))
def test_an_average_is_the_mean_of_the_students_probabilities(seed: int, k: int) -> None:
    students = [student(seed + j) for j in range(k)]
    names = [*FILTERS][:k]
    with torch.inference_mode():
        found = EnsembleNet(students, names)(images())
        each = [
            one(FILTERS[name](images())).softmax(1)
            for one, name in zip(students, names, strict=True)
        ]
    torch.testing.assert_close(found.exp(), sum(each) / k)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(12))


def test_an_ensemble_of_one_is_that_student() -> None:
    one = student()
    torch.testing.assert_close(
        EnsembleNet([one], ["plain"])(images()), one(images()).log_softmax(1)
    )


def test_an_average_costs_all_its_students() -> None:
    found = cost(EnsembleNet([student(j) for j in range(3)], ["plain"] * 3), SHAPE)
    one = cost(student(), SHAPE)
    assert [found.flops, found.macs, found.params] == [3 * one.flops, 3 * one.macs, 3 * one.params]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("shape", [SHAPE, (1, 5, 7)])
def test_a_filter_keeps_the_shape_and_only_plain_keeps_the_image(name, shape) -> None:
    x_BCHW = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    before = x_BCHW.clone()
    seen = FILTERS[name](x_BCHW)
    assert seen.shape == x_BCHW.shape and seen.isfinite().all()
    assert torch.equal(x_BCHW, before)
    assert torch.equal(seen, x_BCHW) == (name == "plain")


def test_filters_take_what_they_are_named_for() -> None:
    x_BCHW = images()
    torch.testing.assert_close(FILTERS["smooth"](x_BCHW) + FILTERS["edges"](x_BCHW), x_BCHW)
    flat = torch.full((1, *SHAPE), 2.0)
    inside = FILTERS["edges"](flat)[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.zeros_like(inside))


def test_views_go_round_the_filters() -> None:
    assert views_of("same", 3) == ("plain",) * 3
    assert views_of("filtered", 5) == (*FILTERS, *[*FILTERS][:2])


# a second opinion of the mixture's


@laws
@given(seeds, st.booleans())
def test_two_experts_together_are_a_distribution(seed: int, masked: bool) -> None:
    net = mixture(seed, masked=masked)
    with torch.inference_mode():
        _, gate_BE, own_BC = net.answer(images())
        found = net.two_experts(images(), gate_BE, own_BC)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(12))


@laws
@given(seeds)
def test_two_unmasked_experts_are_weighted_by_the_router(seed: int) -> None:
    net = mixture(seed)
    with torch.inference_mode():
        _, gate_BE, own_BC = net.answer(images())
        found = net.two_experts(images(), gate_BE, own_BC).exp()
        for row, image in enumerate(images().split(1)):
            a, b = gate_BE[row].topk(2).indices.tolist()
            weight = gate_BE[row].softmax(0)
            said = [net.students[j](image)[0].softmax(0) for j in (a, b)]
            expected = (weight[a] * said[0] + weight[b] * said[1]) / (weight[a] + weight[b])
            torch.testing.assert_close(found[row], expected)


@laws
@given(seeds)
def test_two_masked_experts_share_out_their_clusters_and_the_others_are_even(seed: int) -> None:
    net = mixture(seed, masked=True)
    cluster_C = torch.tensor(CLUSTERS.of_class)
    with torch.inference_mode():
        _, gate_BE, own_BC = net.answer(images())
        found = net.two_experts(images(), gate_BE, own_BC).exp()
        for row, image in enumerate(images().split(1)):
            asked = gate_BE[row].topk(2).indices.tolist()
            for j in range(3):
                own = cluster_C == j
                share_C = found[row][own] / gate_BE[row].softmax(0)[j]
                even_C = torch.full((int(own.sum()),), 1 / int(own.sum()))
                inner_C = net.students[j](image)[0][own].softmax(0) if j in asked else even_C
                torch.testing.assert_close(share_C, inner_C)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("j", [0, 1, 2])
def test_all_weight_on_one_expert_gives_that_expert(j: int, masked: bool) -> None:
    net = mixture(masked=masked)
    gate_BE = (F.one_hot(torch.tensor(j), 3) * 1e3).expand(12, 3)
    with torch.inference_mode():
        found = net.two_experts(images(), gate_BE, net.expert(j, images()))
        torch.testing.assert_close(found.exp(), net.expert(j, images()).softmax(1))


@laws
@given(seeds, st.permutations(range(3)), st.booleans())
def test_the_order_of_the_experts_does_not_matter(
    seed: int, order: list[int], masked: bool
) -> None:
    net = mixture(seed, masked=masked)
    assert isinstance(net.router, LinearRouter)
    head = net.router.layers[-1]
    router = LinearRouter(SHAPE, 3, widths=(), dropout=0.0)
    router.load_state_dict(
        {"layers.1.weight": head.weight[order], "layers.1.bias": head.bias[order]}
    )
    clusters = Clusters(tuple(order.index(j) for j in CLUSTERS.of_class), {})
    other = MoIST(router, [net.students[j] for j in order], clusters, masked=masked).eval()
    with torch.inference_mode():
        found = [CascadeNet(one, None, 0.5)(images()) for one in (net, other)]
    torch.testing.assert_close(found[0], found[1])


# whom it asks


def models(name: str, threshold: float) -> CascadeNet:
    if name == "second expert":
        return CascadeNet(mixture(), None, threshold)
    if name == "masked second expert":
        return CascadeNet(mixture(masked=True), None, threshold)
    if name == "student and specialists":
        return CascadeNet(student(), specialists(), threshold)
    first = mixture() if name == "mixture and student" else student()
    return CascadeNet(first, student(5), threshold)


def specialists(clusters: Clusters = CLUSTERS) -> MoIST:
    """Students that a first model routes to, each of other weights."""
    return MoIST(None, [student(5 + j) for j in range(clusters.k)], clusters, masked=False).eval()


NAMES = [
    "second expert",
    "masked second expert",
    "mixture and student",
    "student and student",
    "student and specialists",
]


@pytest.mark.parametrize("name", NAMES)
def test_images_grouped_are_answered_as_one_by_one(name: str) -> None:
    with torch.inference_mode():
        certainty_B = models(name, 0.0).first_pass(images()).certainty_B
        ordered_B = certainty_B.sort().values  # between two: rounding mustn't decide who asks
        net = models(name, float(ordered_B[5:7].mean()))
        asked = int((certainty_B < net.threshold).sum())
        alone_BC = torch.cat([net(image) for image in images().split(1)])
        torch.testing.assert_close(net(images()), alone_BC, rtol=1e-5, atol=1e-5)
    assert asked == 6


@pytest.mark.parametrize("name", NAMES)
def test_below_the_threshold_the_second_pass_counts_and_above_it_the_first(name: str) -> None:
    with torch.inference_mode():
        first, net = models(name, 0.0)(images()), models(name, 2.0)
        second = net(images())
        certainty_B = net.first_pass(images()).certainty_B
        for threshold in (0.0, float(certainty_B.median()), 2.0):
            net.threshold = threshold
            composed = torch.where((certainty_B < threshold)[:, None], second, first)
            torch.testing.assert_close(net(images()), composed, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(answers(net, images()).at_threshold(threshold), composed)
        assert not torch.allclose(first, second)


def test_a_threshold_of_zero_defers_no_image_and_one_of_two_all() -> None:
    x_BCHW = images()
    with torch.inference_mode():
        assert torch.equal(models("student and student", 0.0)(x_BCHW), student()(x_BCHW))
        always = models("student and student", 2.0)(x_BCHW)
        torch.testing.assert_close(always, student(5)(x_BCHW))


@laws
@given(seeds)
def test_certainty_is_the_top_probability_or_the_routers_margin(seed: int) -> None:
    with torch.inference_mode():
        net = mixture(seed)
        top_B = CascadeNet(student(seed), student(), 0.0).first_pass(images()).certainty_B
        margin_B = CascadeNet(net, None, 0.0).first_pass(images()).certainty_B
        torch.testing.assert_close(top_B, student(seed)(images()).softmax(1).max(1).values)
        ordered_BE = net.route(images()).softmax(1).sort(1, descending=True).values
        torch.testing.assert_close(margin_B, ordered_BE[:, 0] - ordered_BE[:, 1])


# specialists


@laws
@given(seeds)
def test_the_first_model_routes_by_the_sum_of_its_probabilities_over_each_cluster(
    seed: int,
) -> None:
    with torch.inference_mode():
        first = student(seed)
        prob_BC = first(images()).softmax(1)
        net = CascadeNet(first, specialists(), 2.0)
        gate_BE = answers(net, images()).gate_NE
        assert gate_BE is not None
        sums = [
            prob_BC[:, [c for c in range(CLASSES) if CLUSTERS.of_class[c] == j]] for j in range(3)
        ]
        sum_BE = torch.stack([part.sum(1) for part in sums], 1)
        torch.testing.assert_close(gate_BE.exp(), sum_BE)
        each = [student(5 + j)(images()) for j in range(3)]
        own_BC = torch.stack([each[j][row] for row, j in enumerate(sum_BE.argmax(1).tolist())])
        torch.testing.assert_close(net(images()), own_BC)


@laws
@given(seeds, st.permutations(range(3)))
def test_the_order_of_the_clusters_and_their_specialists_does_not_matter(
    seed: int, order: list[int]
) -> None:
    net = specialists()
    clusters = Clusters(tuple(order.index(j) for j in CLUSTERS.of_class), {})
    other = MoIST(None, [net.students[j] for j in order], clusters, masked=False).eval()
    with torch.inference_mode():
        found = [CascadeNet(student(seed), one, 0.5)(images()) for one in (net, other)]
    torch.testing.assert_close(found[0], found[1])


def test_one_specialist_is_a_fallback() -> None:
    with torch.inference_mode():
        one = CascadeNet(student(), specialists(Clusters((0,) * CLASSES, {})), 0.5)
        assert torch.equal(one(images()), CascadeNet(student(), student(5), 0.5)(images()))


# where the threshold lies


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_a_threshold_defers_the_share_to_one_image_unless_certainties_tie(
    certainties: list[float], share: float
) -> None:
    """Images of one certainty are asked for all together: then fewer, never more."""
    certainty_N = torch.tensor(certainties)
    threshold = threshold_for(certainty_N, share)
    below, wanted = int((certainty_N < threshold).sum()), round(share * len(certainties))
    tied = int((certainty_N == threshold).sum())
    assert below <= wanted <= below + tied
    if len(set(certainties)) == len(certainties):
        assert below == wanted and abs(below - share * len(certainties)) <= 0.5


# measured


def split(n: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.randint(CLASSES, (n,), generator=generator))


DATA = Dataset(
    "tiny", tuple("abcde"), (0.5,) * 3, (0.3,) * 3, split(8, 0), split(43, 1), split(31, 2)
)


def untrained(**values: object) -> Model:
    known = {"student": StudentConfig(channels=(2, 3)), "hidden_width": 4, "latent": None}
    linear = {"router": "linear", "options": (("widths", ()), ("dropout", 0.0)), "masked": True}
    given = {"system": "moist", "teacher": "resnet8", **linear, **values}
    return blank(Architecture.model_validate({**known, **given}), SHAPE, CLASSES, 3)


def cascade(share: float = 0.3, data: Dataset = DATA, **values: object) -> Cascade:
    """The threshold chosen for an untrained model with louder opinions than its own."""
    model = untrained(**values)
    assert isinstance(model, Cascade)
    first = model.first
    if hasattr(first, "router"):
        weight = torch.randn(3, 192, generator=torch.Generator().manual_seed(0))
        state = {**first.router.state, "layers.1.weight": weight * 0.1}
        first = replace(first, router=Router(first.router.spec, state, ()))
    return choose_threshold(
        ENV, data=data, first=first, fallback=model.fallback, share=share, precision="float32"
    )


KINDS = {
    "second expert": {"top": 2},
    "teacher": {"fallback": "teacher"},
    "student": {"fallback": "teacher", "system": "student"},
    "ensemble": {"fallback": "teacher", "system": "ensemble"},
    "specialists": {"fallback": "resnet8", "system": "specialists"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_costs_the_first_pass_and_the_deferred_share_of_the_second(kind: str) -> None:
    model = cascade(**KINDS[kind])
    found = evaluate(ENV, data=DATA, model=model, oracle=False, precision="float32")
    assert found.deferral is not None
    first = cost(module(model.first), SHAPE)
    if model.fallback is None:
        second = cost(module(model.first.students[0]), SHAPE)
    else:
        second = cost(module(model.fallback), SHAPE)
    if kind == "specialists":  # one of three, and no router
        one = cost(module(model.fallback.students[0]), SHAPE)
        assert (second.flops, second.macs) == (one.flops, one.macs)
        assert second.params == 3 * one.params
    asked = found.deferral.chosen.deferral_rate
    assert 0 < asked < 1
    assert found.cost.flops == pytest.approx(first.flops + asked * second.flops, rel=1e-9)
    assert found.cost.macs == pytest.approx(first.macs + asked * second.macs, rel=1e-9)
    assert found.deferral.chosen.mflops == pytest.approx(found.cost.mflops, rel=1e-9)
    for point in found.deferral.curve:
        for rate, mflops, mmacs in (
            (point.deferral_rate, point.mflops, point.mmacs),
            (point.val_deferral_rate, point.val_mflops, point.val_mmacs),
        ):
            assert mflops == pytest.approx(first.mflops + rate * second.mflops, rel=1e-9)
            assert mmacs == pytest.approx(first.mmacs + rate * second.mmacs, rel=1e-9)
    more = 0 if model.fallback is None else second.params
    assert found.cost.params == first.params + more


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_goes_from_deferring_no_image_to_deferring_all(kind: str) -> None:
    model = cascade(**KINDS[kind])
    found = evaluate(ENV, data=DATA, model=model, oracle=False, precision="float32")
    alone = evaluate(ENV, data=DATA, model=model.first, oracle=False, precision="float32")
    assert found.deferral is not None
    curve, chosen = found.deferral.curve, found.deferral.chosen
    for name in ("threshold", "deferral_rate", "val_deferral_rate", "mflops", "mmacs"):
        values = [getattr(point, name) for point in curve]
        assert values == sorted(values), name
    assert (curve[0].val_deferral_rate, curve[-1].val_deferral_rate, curve[-1].deferral_rate) == (
        0,
        1,
        1,
    )
    assert curve[0].val_accuracy == alone.val_accuracy
    if curve[0].deferral_rate == 0:
        assert curve[0].accuracy == alone.accuracy
    assert chosen.threshold == model.threshold
    assert (chosen.accuracy, chosen.val_accuracy) == (found.accuracy, found.val_accuracy)
    assert chosen.val_deferral_rate == pytest.approx(0.3, abs=0.5 / 43 + 1e-9)
    answered = classify(ENV, module(model), DATA.test, DATA, precision="float32").at_threshold(
        model.threshold
    )
    assert found.accuracy == accuracy(answered, DATA.test.labels_N)


def test_the_threshold_comes_from_validation_images_alone() -> None:
    other = split(31, 5)
    changed = replace(DATA, test=other, train=split(8, 6))
    for kind in ("second expert", "teacher"):
        same = cascade(data=changed, **KINDS[kind])
        assert same.threshold == cascade(**KINDS[kind]).threshold
        elsewhere = replace(DATA, val=split(43, 7))
        assert cascade(data=elsewhere, **KINDS[kind]).threshold != same.threshold


def test_the_labels_of_validation_images_are_not_read_either() -> None:
    shuffled = replace(DATA, val=Split(DATA.val.images_NHWC, DATA.val.labels_N.flip(0)))
    for kind in ("second expert", "teacher"):
        same = cascade(data=shuffled, **KINDS[kind])
        assert same.threshold == cascade(**KINDS[kind]).threshold


@pytest.mark.parametrize(("share", "asked"), [(0.0, 0.0), (1.0, 1.0)])
def test_a_share_of_none_or_all_defers_no_image_or_all(share: float, asked: float) -> None:
    model = cascade(share, fallback="teacher")
    found = evaluate(ENV, data=DATA, model=model, oracle=False, precision="float32")
    assert isinstance(model.fallback, Teacher) and found.deferral is not None
    alone = model.fallback if asked else model.first
    expected = evaluate(ENV, data=DATA, model=alone, oracle=False, precision="float32")
    assert found.deferral.chosen.val_deferral_rate == asked
    assert found.val_accuracy == expected.val_accuracy
