"""Gathering of weights against its definitions: average, sum, SVD, and who owns a class."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from moist.config import MergeConfig
from moist.nets.cnn import CNN
from moist.nets.merge import gather, truncated
from moist.nets.peers import ResNet8
from moist.store.artifacts import State

laws = settings(deadline=None, max_examples=10)
seeds = st.integers(0, 2**20)
IMAGE = (2, 8, 8)
OF_CLASS = (0, 1, 1, 2, 0)
ARCHITECTURES = ("cnn", "cnn with batch norm", "resnet8")
bases = pytest.mark.parametrize("base", ["delta", "absolute"])
everywhere = pytest.mark.parametrize("arch", ARCHITECTURES)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def net(arch: str) -> nn.Module:
    """No width is a multiple of all others, so that a mistaken axis can't pass."""
    if arch == "resnet8":
        return ResNet8(IMAGE, len(OF_CLASS))
    normed = arch == "cnn with batch norm"
    return CNN(IMAGE, len(OF_CLASS), hidden_width=11, channels=(6, 7), batch_norm=normed)


def changed(state: State, seed: int) -> dict[str, torch.Tensor]:
    """The state with every weight and statistic somewhere else; counters count on."""
    found = {}
    for i, (name, tensor) in enumerate(state.items()):
        if tensor.is_floating_point():
            moved = tensor + 0.3 * drawn(seed + i, *tensor.shape)
            found[name] = moved.abs() + 0.1 if name.endswith("running_var") else moved
        else:
            found[name] = tensor + seed % 97
    return found


def family(
    seed: int, arch: str = "cnn", experts: int = 3
) -> tuple[list[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Experts and the ancestor that they started from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ancestor = changed(net(arch).state_dict(), seed)
    return [changed(ancestor, seed + 1000 * (i + 1)) for i in range(experts)], ancestor


def logits(state: State, arch: str, seed: int = 0) -> torch.Tensor:
    model = net(arch).eval()
    model.load_state_dict(dict(state))
    with torch.inference_mode():
        return model(drawn(seed, 4, *IMAGE))


def same(found: State, expected: State) -> None:
    assert list(found) == list(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def close(found: State, expected: State) -> None:
    torch.testing.assert_close(dict(found), dict(expected))


def ranks(state: State) -> dict[str, int]:
    return {
        name: int(torch.linalg.matrix_rank(tensor.flatten(1).double(), rtol=1e-5))
        for name, tensor in state.items()
        if tensor.ndim > 1
    }


# every method


METHODS = [
    MergeConfig(method=method, base=base, scale=scale, head=head)
    for method, scale in [("average", "mean"), ("sum", "mean"), ("svd", "mean"), ("svd", "sum")]
    for base in ("delta", "absolute")
    for head in ("gather", "owner")
]


@everywhere
@pytest.mark.parametrize("merge", METHODS, ids=lambda m: f"{m.method}-{m.base}-{m.scale}-{m.head}")
def test_what_is_gathered_is_a_state_of_the_same_network(arch: str, merge: MergeConfig) -> None:
    experts, ancestor = family(1, arch)
    found = gather(experts, ancestor, merge, OF_CLASS)
    assert list(found) == list(ancestor)
    for name, tensor in ancestor.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == tensor.dtype
    assert logits(found, arch).isfinite().all()


@everywhere
@bases
@pytest.mark.parametrize("method", ["average", "svd"])
@laws
@given(seeds, st.integers(1, 4))
def test_equal_experts_gather_to_that_expert(
    arch: str, base: str, method: str, seed: int, experts: int
) -> None:
    (expert,), ancestor = family(seed, arch, experts=1)
    merge = MergeConfig(method=method, base=base, rank=1024)
    of_class = [j % experts for j in OF_CLASS]
    found = gather([expert] * experts, ancestor, merge, of_class)
    if method == "average":
        same(found, expert)
        assert torch.equal(logits(found, arch), logits(expert, arch))
    close(found, expert)


@pytest.mark.parametrize("merge", METHODS, ids=lambda m: f"{m.method}-{m.base}-{m.scale}-{m.head}")
def test_the_order_of_the_experts_makes_no_difference(merge: MergeConfig) -> None:
    experts, ancestor = family(3, "cnn")
    order = [2, 0, 1]
    found = gather(
        [experts[i] for i in order], ancestor, merge, [order.index(j) for j in OF_CLASS]
    )
    close(found, gather(experts, ancestor, merge, OF_CLASS))


@everywhere
def test_batch_norm_is_averaged_and_counters_are_the_first_experts(arch: str) -> None:
    experts, ancestor = family(4, arch)
    summed = gather(experts, ancestor, MergeConfig(method="sum", base="absolute"), OF_CLASS)
    modules = {name.rpartition(".")[0] for name in ancestor if name.endswith("running_mean")}
    assert bool(modules) == (arch != "cnn")
    for module in modules:
        for name in ("weight", "bias", "running_mean", "running_var"):
            own = torch.stack([expert[f"{module}.{name}"] for expert in experts])
            torch.testing.assert_close(summed[f"{module}.{name}"], own.mean(0))
        counter = f"{module}.num_batches_tracked"
        assert summed[counter] == experts[0][counter] != experts[1][counter]


# average and sum


@laws
@given(seeds)
def test_averages_of_changes_and_of_whole_weights_agree(seed: int) -> None:
    experts, ancestor = family(seed)
    expected = {n: torch.stack([expert[n] for expert in experts]).mean(0) for n in ancestor}
    close(gather(experts, ancestor, MergeConfig(), OF_CLASS), expected)
    close(gather(experts, ancestor, MergeConfig(base="absolute"), OF_CLASS), expected)


@laws
@given(seeds)
def test_a_sum_of_changes_is_task_arithmetic(seed: int) -> None:
    experts, ancestor = family(seed)
    expected = {n: w + sum(expert[n] - w for expert in experts) for n, w in ancestor.items()}
    close(gather(experts, ancestor, MergeConfig(method="sum"), OF_CLASS), expected)


def test_a_sum_of_whole_weights_is_that_of_weights_and_biases() -> None:
    experts, ancestor = family(5)
    found = gather(experts, ancestor, MergeConfig(method="sum", base="absolute"), OF_CLASS)
    close(found, {n: sum(expert[n] for expert in experts) for n in ancestor})


# svd


@laws
@given(seeds)
def test_svd_of_full_rank_is_the_sum_or_the_average(seed: int) -> None:
    experts, ancestor = family(seed, "cnn with batch norm")
    for base in ("delta", "absolute"):
        for scale, plain in (("sum", "sum"), ("mean", "average")):
            full = MergeConfig(method="svd", base=base, scale=scale, rank=1024)
            expected = gather(experts, ancestor, MergeConfig(method=plain, base=base), OF_CLASS)
            close(gather(experts, ancestor, full, OF_CLASS), expected)


@laws
@given(seeds, st.integers(1, 8), st.sampled_from([(5, 12), (12, 5), (8, 2, 3, 3)]))
def test_truncation_keeps_the_largest_singular_triplets(
    seed: int, rank: int, shape: tuple[int, ...]
) -> None:
    weight = drawn(seed, *shape).double()
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ v[:rank]
    torch.testing.assert_close(truncated(weight, rank), expected.reshape(shape))


@laws
@given(seeds, st.integers(1, 3))
def test_concatenated_factors_are_the_sum_of_truncations(seed: int, rank: int) -> None:
    experts, ancestor = family(seed)
    factors = [
        torch.linalg.svd(expert["fc1.weight"].double(), full_matrices=False) for expert in experts
    ]
    u = torch.cat([u[:, :rank] for u, _, _ in factors], 1)
    s = torch.cat([s[:rank] for _, s, _ in factors])
    v = torch.cat([v[:rank] for _, _, v in factors])
    merge = MergeConfig(method="svd", base="absolute", scale="sum", rank=rank)
    found = gather(experts, ancestor, merge, OF_CLASS)["fc1.weight"]
    torch.testing.assert_close(found, ((u * s) @ v).float())


@laws
@given(seeds, st.integers(1, 2))
def test_the_rank_is_at_most_that_of_all_experts_together(seed: int, rank: int) -> None:
    experts, ancestor = family(seed)
    merge = MergeConfig(method="svd", base="absolute", rank=rank)
    found = ranks(gather(experts, ancestor, merge, OF_CLASS))
    assert found == {n: min(3 * rank, full) for n, full in ranks(ancestor).items()}


def test_by_default_the_experts_share_the_full_rank_equally() -> None:
    experts, ancestor = family(6)
    found = ranks(gather(experts, ancestor, MergeConfig(method="svd", base="absolute"), OF_CLASS))
    widths = {"trunk.0.weight": 6, "trunk.3.weight": 7, "fc1.weight": 11, "fc2.weight": 5}
    assert found == {name: width // 3 * 3 for name, width in widths.items()}


def test_with_more_experts_than_ranks_each_keeps_one() -> None:
    experts, ancestor = family(7, experts=8)
    found = gather(experts, ancestor, MergeConfig(method="svd", base="absolute"), OF_CLASS)
    one = gather(experts, ancestor, MergeConfig(method="svd", base="absolute", rank=1), OF_CLASS)
    assert torch.equal(found["fc2.weight"], one["fc2.weight"])


# head


@everywhere
@pytest.mark.parametrize("method", ["average", "sum", "svd"])
def test_an_owners_rows_are_exactly_its_own_and_the_rest_is_gathered(
    arch: str, method: str
) -> None:
    experts, ancestor = family(8, arch)
    found = gather(experts, ancestor, MergeConfig(method=method, head="owner"), OF_CLASS)
    plain = gather(experts, ancestor, MergeConfig(method=method), OF_CLASS)
    last = "fc" if arch == "resnet8" else "fc2"
    head = {f"{last}.weight", f"{last}.bias"}
    for c, owner in enumerate(OF_CLASS):
        for name in head:
            assert torch.equal(found[name][c], experts[owner][name][c])
    assert {n for n in found if not torch.equal(found[n], plain[n])} == head
