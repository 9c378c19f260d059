"""Numbers against a second derivation: accuracy, calibration, counting, timing."""

import math
import statistics
from collections import Counter
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from moist import config
from moist.data.augment import normalize
from moist.env import Env
from moist.errors import StageError
from moist.measure.accuracy import (
    EVAL_BATCH,
    accuracy,
    calibration_error,
    class_means,
    classify,
    inference,
    negative_log_likelihood,
)
from moist.measure.latency import (
    BLOCKS,
    is_enough,
    spread,
    summarize,
    time_apart,
    time_interleaved,
)
from moist.measure.multiply_adds import cost, count_flops
from moist.nets.build import Architecture, blank, module
from moist.nets.cnn import CNN, STUDENTS
from moist.nets.mixture import MoIST, duplicate
from moist.nets.routers import CNNRouter, TransformerRouter
from moist.results.report import STEADY, Timing, deferred_timing
from moist.stages.evaluate import evaluate, routing, with_oracle
from moist.stages.latency import (
    in_onnxruntime,
    in_turn,
    measure_exported_latency,
    measure_latency,
)
from moist.store.artifacts import Clusters, Dataset, Mixture, Router, Spec, Split, Student

CPU = torch.device("cpu")
ENV = Env(device=CPU)
laws = settings(deadline=None, max_examples=25)
seeds = st.integers(0, 2**20)
shares = st.none() | st.floats(0, 2)


def drawn(seed: int, n: int = 60, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_NC = torch.randn(n, classes, generator=generator) * 3
    return logits_NC, torch.randint(classes, (n,), generator=generator)


def split(n: int, classes: int = 4) -> Split:
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, 8, 8, 1), dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.arange(n) % classes)


def dataset(train: int = 8, val: int = 0, test: int = 8) -> Dataset:
    names = ("a", "b", "c", "d")
    return Dataset("tiny", names, (0.5,), (0.3,), split(train), split(val), split(test))


def student() -> Student:
    options = {"hidden_width": 4, "channels": (2, 3), "batch_norm": False}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = STUDENTS["cnn"].build((1, 8, 8), 4, **options).state_dict()
    return Student(Spec("cnn", (1, 8, 8), 4, options), state, ())


def mixture(masked: bool) -> Mixture:
    options = {"widths": (), "dropout": 0.0}
    spec = Spec("linear", (1, 8, 8), 2, options)
    weights = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    state = {"layers.1.weight": weights, "layers.1.bias": torch.zeros(2)}
    clusters = Clusters((0, 0, 1, 1), {})
    return Mixture(Router(spec, state, ()), duplicate(student(), 2), clusters, masked, False, ())


# accuracy and calibration


@laws
@given(seeds)
def test_accuracy_is_the_share_of_right_answers(seed: int) -> None:
    logits_NC, labels_N = drawn(seed)
    right = sum(
        int(np.argmax(row)) == label
        for row, label in zip(logits_NC.numpy(), labels_N.tolist(), strict=True)
    )
    assert accuracy(logits_NC, labels_N) == right / len(labels_N)


@laws
@given(seeds, st.integers(1, 20))
def test_calibration_error_is_the_sum_over_bins(seed: int, bins: int) -> None:
    logits_NC, labels_N = drawn(seed)
    probs_NC = logits_NC.softmax(1)
    expected = 0.0
    confidence_N, predicted_N = (values.numpy() for values in probs_NC.max(1))
    hit_N = predicted_N == labels_N.numpy()
    for b in range(bins):
        inside_N = (confidence_N >= b / bins) & (confidence_N < (b + 1) / bins)
        inside_N |= (confidence_N == 1) & (b == bins - 1)
        if inside_N.any():
            gap = abs(hit_N[inside_N].mean() - confidence_N[inside_N].astype(float).mean())
            expected += inside_N.mean() * gap
    assert calibration_error(probs_NC, labels_N, bins) == pytest.approx(expected, abs=1e-6)


def test_certain_answers_are_calibrated_when_right_and_not_when_wrong() -> None:
    labels_N = torch.tensor([0, 1, 2, 0])
    probs_NC = nn.functional.one_hot(labels_N, 3).float()
    assert calibration_error(probs_NC, labels_N) == 0
    assert calibration_error(probs_NC, (labels_N + 1) % 3) == 1


@laws
@given(seeds)
def test_negative_log_likelihood_is_the_mean_surprise(seed: int) -> None:
    logits_NC, labels_N = drawn(seed)
    probs_NC = logits_NC.double().softmax(1)
    expected = -sum(
        math.log(probs_NC[i, label]) for i, label in enumerate(labels_N.tolist())
    ) / len(labels_N)
    assert negative_log_likelihood(logits_NC, labels_N) == pytest.approx(expected, rel=1e-9)


def test_class_means_are_means_of_groups_and_zero_for_an_empty_one() -> None:
    values_N = torch.tensor([True, False, True, True])
    assert class_means(values_N, torch.tensor([2, 2, 0, 2]), 4) == [1, 0, pytest.approx(2 / 3), 0]


# classifying a split


@pytest.mark.parametrize("n", [5, EVAL_BATCH + 3])
def test_classify_answers_in_the_order_of_the_split(n: int) -> None:
    data = dataset(test=n)
    net = module(student())
    said = classify(ENV, net, data.test, data, precision="float32")
    x_NCHW = ((data.test.images_NHWC.float() / 255 - 0.5) / 0.3).permute(0, 3, 1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(said.logits_NC, net.eval()(x_NCHW), rtol=1e-4, atol=1e-5)
    assert said.gate_NE is said.certainty_N is said.second_NC is None


def test_classify_gives_a_mixtures_routing_too() -> None:
    data = dataset()
    net = module(mixture(masked=True))
    said = classify(ENV, net, data.test, data, precision="float32")
    assert said.gate_NE is not None and said.gate_NE.shape == (8, 2)
    torch.testing.assert_close(said.logits_NC.exp().sum(1), torch.ones(8))


def test_inference_gives_the_module_back_as_it_was_even_after_an_error() -> None:
    net = CNNRouter((1, 8, 8), 2, 4, 0.5).train()
    with pytest.raises(KeyError), inference(net, CPU, "float32"):
        assert not net.dropout.training
        raise KeyError
    assert net.dropout.training
    assert not torch.is_inference_mode_enabled()


def test_classifying_leaves_the_module_training_and_as_it_was() -> None:
    net = CNN((1, 8, 8), 4, 4, (2, 3), batch_norm=True).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    data = dataset(val=7)
    first, again = (classify(ENV, net, data.val, data, precision="float32") for _ in range(2))
    assert torch.equal(first.logits_NC, again.logits_NC)
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


# evaluating


def test_an_evaluation_agrees_with_what_it_is_made_of() -> None:
    data = dataset(test=24, val=9)
    model = mixture(masked=True)
    found = evaluate(ENV, data=data, model=model, oracle=False, precision="float32")
    said = classify(ENV, module(model), data.test, data, precision="float32")
    assert said.gate_NE is not None and found.routing is not None and found.deferral is None
    assert found.accuracy == accuracy(said.logits_NC, data.test.labels_N)
    assert found.accuracy == pytest.approx(sum(found.per_class.values()) / 4)
    assert found.accuracy == pytest.approx(sum(found.routing.cluster_accuracy) / 2)
    assert (found.n, found.n_val) == (24, 9)
    assert found.cost == cost(module(model), data.image_shape)
    assert sum(map(sum, found.routing.sent.values())) == 24


def test_routing_counts_where_each_class_was_sent() -> None:
    data = dataset(test=8)  # labels 0 1 2 3 0 1 2 3
    experts = torch.tensor([0, 1, 1, 1, 0, 0, 0, 1])
    gate_NE = nn.functional.one_hot(experts, 2).float()
    hit_N = torch.tensor([1, 0, 1, 1, 1, 0, 0, 0]).bool()
    found = routing(data, Clusters((0, 0, 1, 1), {}), gate_NE, hit_N, torch.ones_like(hit_N))
    assert found.accuracy == 6 / 8
    assert found.per_cluster == (3 / 4, 3 / 4)
    assert found.cluster_accuracy == (2 / 4, 2 / 4)
    assert found.sent == {"a": (2, 0), "b": (1, 1), "c": (1, 1), "d": (0, 2)}


def test_the_oracle_routes_without_error_and_costs_no_router() -> None:
    data = dataset(test=16)
    found = evaluate(ENV, data=data, model=mixture(False), oracle=True, precision="float32")
    assert found.routing is not None and found.routing.accuracy == 1
    assert found.cost == cost(module(with_oracle(mixture(False))), data.image_shape)
    assert found.cost.macs == cost(module(student()), data.image_shape).macs


# counting


class Gammas(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.lgamma()


def test_a_module_with_an_operator_of_unknown_cost_is_refused() -> None:
    with pytest.raises(StageError, match="lgamma"):
        cost(nn.Sequential(nn.Conv2d(1, 2, 3), Gammas()), (1, 8, 8))


def test_counting_leaves_the_module_and_torch_as_they_were() -> None:
    for net in (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Sequential(Gammas())):
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with suppress(StageError):
            count_flops(net.train(), (1, 8, 8))
        assert net.training
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_transformer_counts_the_same_in_training_and_in_evaluation() -> None:
    net = TransformerRouter((1, 8, 8), 3)
    assert count_flops(net.train(), (1, 8, 8)) == count_flops(net.eval(), (1, 8, 8))


# timing


def test_each_call_is_timed_equally_often_and_in_turn() -> None:
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in ("one", "two", "three")}
    found = time_interleaved(calls, lambda: None, repeats=25, seconds=1e-9)
    assert log == ["one", "two", "three"] * (2 + BLOCKS)
    assert {timing.n for timing in found.values()} == {BLOCKS}
    assert list(found) == ["one", "two", "three"]


def test_calls_that_would_slow_one_another_are_timed_one_after_the_other() -> None:
    log: list[str] = []
    calls = {name: (lambda name=name: log.append(name)) for name in ("one", "two")}
    found = time_apart(calls, lambda: None, repeats=25, seconds=1e-9)
    assert log == ["one"] * (2 + BLOCKS) + ["two"] * (2 + BLOCKS)
    assert [*found] == ["one", "two"] and {timing.n for timing in found.values()} == {BLOCKS}


def test_a_call_is_timed_until_the_device_has_finished() -> None:
    log: list[str] = []
    calls = {"a": lambda: log.append("a"), "b": lambda: log.append("b")}
    time_interleaved(calls, lambda: log.append("sync"), repeats=10, seconds=1e-9, warm_up=0)
    assert log == ["a", "sync", "b", "sync"] * 10


def test_a_timing_is_median_95th_percentile_and_spread() -> None:
    found = summarize([float(n) for n in range(100, -1, -1)])
    assert (found.median, found.p95, found.n) == (50, 95, 101)
    assert found.spread == (50 - 5) / 50  # the first tenth, of 11 calls, is farther


times = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=120)


@laws
@given(times)
def test_the_spread_is_that_of_nine_of_ten_blocks_medians(taken: list[float]) -> None:
    found, middle = spread(taken), statistics.median(taken)
    n = len(taken)
    blocks = min(n, BLOCKS)
    sizes = [n // blocks + (i < n % blocks) for i in range(blocks)]
    starts = [sum(sizes[:i]) for i in range(blocks)]
    far = [
        abs(statistics.median(taken[at : at + size]) / middle - 1)
        for at, size in zip(starts, sizes, strict=True)
    ]
    assert found == pytest.approx(sorted(far)[blocks - 2 if blocks == BLOCKS else -1], abs=1e-9)
    assert spread([3 * one for one in taken]) == pytest.approx(found)


def test_a_pause_is_no_spread_but_a_drift_is() -> None:
    assert spread(([1.0] * 9 + [50.0]) * 10) == 0
    assert spread([1.0] * 90 + [1.2] * 10) == 0  # one block may be spoiled
    assert spread([1.0] * 80 + [1.2] * 20) == pytest.approx(0.2)


@laws
@given(
    st.lists(times, min_size=1, max_size=3),
    st.floats(0, 10),
    st.integers(10, 40),
    st.floats(0.01, 10),
)
def test_timing_ends_when_every_spread_is_small_or_the_seconds_are_over(
    taken: list[list[float]], passed: float, repeats: int, seconds: float
) -> None:
    rounds = min(map(len, taken))
    taken = [one[:rounds] for one in taken]
    enough = is_enough(taken, passed, repeats=repeats, seconds=seconds)
    steady = all(spread(one) <= STEADY for one in taken)
    if rounds < BLOCKS:
        assert not enough
    elif passed > seconds:
        assert enough
    else:
        assert enough == (steady and passed > seconds / 4 and rounds % repeats == 0)


@pytest.mark.parametrize(
    ("rounds", "passed", "enough"),
    [(99, 2.0, False), (100, 0.9, False), (100, 1.1, True), (9, 5.0, False), (10, 5.0, True)],
)
def test_calls_of_equal_times_are_timed_for_a_quarter_of_the_seconds(
    rounds: int, passed: float, enough: bool
) -> None:
    assert is_enough([[1.0] * rounds], passed, repeats=100, seconds=4.0) is enough


@laws
@given(
    st.builds(Timing, median=st.floats(1, 2), p95=st.just(3.0), n=st.just(9), spread=shares),
    st.builds(Timing, median=st.floats(2, 9), p95=st.just(9.0), n=st.just(8), spread=shares),
    st.floats(0, 1),
)
def test_a_model_that_defers_is_as_uncertain_as_the_worse_of_its_two_times(
    never: Timing, always: Timing, rate: float
) -> None:
    found = deferred_timing(never, always, rate)
    low, high = (
        deferred_timing(
            *(
                one.model_copy(update={"median": one.median * (1 + side * (one.spread or 0))})
                for one in (never, always)
            ),
            rate,
        ).median
        for side in (-1, 1)
    )
    if never.spread is None or always.spread is None:
        assert found.spread is None
    else:
        assert found.spread is not None
        assert found.median * (1 - found.spread) <= low + 1e-9
        assert found.median * (1 + found.spread) >= high - 1e-9


# timing what is not trained


def arch(router: str = "linear", **values: object) -> Architecture:
    """Of a mixture with the smallest networks."""
    options = (("widths", ()), ("dropout", 0.0)) if router == "linear" else ()
    known = {
        "system": "moist",
        "student": config.StudentConfig(channels=(2, 3)),
        "hidden_width": 4,
    }
    given = {"latent": None, "teacher": "resnet8", "router": router, "options": options}
    return Architecture.model_validate({**known, **given, "masked": True, **values})


def unready(router: str = "linear", k: int = 3) -> MoIST:
    """An untrained mixture for four classes, ready to be timed."""
    net = module(blank(arch(router), (1, 8, 8), 4, k)).eval()
    assert isinstance(net, MoIST)
    return net


@laws
@given(st.integers(1, 4), st.integers(2, 40), seeds)
def test_images_are_sent_in_turn_while_it_is_timed_and_only_then(
    k: int, n: int, seed: int
) -> None:
    net = unready(k=k)
    images = torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    before = net.route(images)
    with in_turn(net, images):
        assert net.route(images).argmax(1).tolist() == [i % k for i in range(n)]
    assert torch.equal(net.route(images), before)


def test_images_sent_in_turn_are_answered_by_the_student_they_are_sent_to() -> None:
    net = unready()
    net.masked = False
    for j, expert in enumerate(net.students):  # equal until now: they start from one student
        nn.init.normal_(expert.fc2.bias, mean=j)
    images = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with in_turn(net, images):
        expected = torch.stack([net.students[i % 3](images[i : i + 1])[0] for i in range(7)])
        torch.testing.assert_close(net(images), expected)


def test_a_single_image_goes_where_the_router_says() -> None:
    net = unready()
    images = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for image in images.split(1):
        alone = net.route(image)
        with in_turn(net, image):
            assert torch.equal(net.route(image), alone)


def test_an_oracle_sends_images_where_their_labels_say_also_when_timed() -> None:
    net, labels = unready("oracle", 2), torch.tensor([0, 0, 2, 1, 1])
    images = torch.zeros(5, 1, 8, 8)
    with in_turn(net, images):
        assert net.route(images, labels).argmax(1).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("router", "values", "asked"),
    [
        ("linear", {}, []),
        ("oracle", {}, []),
        ("linear", {"system": "ensemble"}, []),
        ("linear", {"top": 2}, ["asked"]),
        ("linear", {"fallback": "teacher"}, ["asked"]),
    ],
)
def test_latency_is_that_of_all_models_at_two_batch_sizes(router, values, asked) -> None:
    clusters = Clusters((0, 1, 1, 0), {})
    found = [
        measure_latency(
            ENV, data=dataset(), arch=arch(router, **values), k=k,
            latency=config.LatencyConfig(repeats=11, seconds=1e-9),
            precision="float32", machine=ENV.machine(),
        )
        for k in (2, clusters)
    ]  # fmt: skip
    for latencies in found:
        assert latencies.machine == ENV.machine()
        assert list(latencies.models) == ["model", "student", "teacher", *asked]
        for timings in latencies.models.values():
            assert list(timings) == ["batch_1", "batch_256"]
            assert all(t.n == BLOCKS and t.p95 >= t.median > 0 for t in timings.values())


def test_models_are_timed_in_the_configured_runtime_and_the_main_one_in_torch_beside() -> None:
    latencies = measure_exported_latency(
        ENV, data=dataset(), arch=arch(top=2), k=2, precision="float32", machine=ENV.machine(),
        latency=config.LatencyConfig(repeats=10, seconds=1e-9, runtime="onnxruntime"),
    )  # fmt: skip
    alone = ["model", "student", "teacher", "asked"]
    assert {*latencies.models} == {*alone, "model in torch", "asked in torch"}
    for timings in latencies.models.values():
        assert list(timings) == ["batch_1", "batch_256"]


def test_an_exported_model_also_sends_images_in_turn_while_it_is_timed() -> None:
    net, images = unready(), dataset().train.images_NHWC[:7]
    with in_turn(net, images):
        logits = in_onnxruntime(net, dataset(), images)()[0]
        x = normalize(images, dataset().mean, dataset().std)
        torch.testing.assert_close(torch.from_numpy(logits), net(x), atol=1e-4, rtol=1e-4)
        assert net.route(x).argmax(1).tolist() == [i % 3 for i in range(7)]


def test_a_mixture_is_timed_with_its_router_and_as_it_answers_after_training() -> None:
    ran: Counter[type[nn.Module]] = Counter()

    def count(part: nn.Module, _args: object, _output: object) -> None:
        assert not part.training
        ran[type(part)] += 1

    latency = config.LatencyConfig(repeats=10, seconds=1e-9)
    with register_module_forward_hook(count):
        measure_latency(
            ENV, data=dataset(), arch=arch(), k=3, latency=latency, precision="float32",
            machine=ENV.machine(),
        )  # fmt: skip
    calls = ran[MoIST]
    assert calls >= 20 and ran[type(unready().router)] == calls
    # half of the calls are of one image, which runs one student; the others run all three
    assert ran[CNN] == calls + (calls // 2) * (1 + 3)
