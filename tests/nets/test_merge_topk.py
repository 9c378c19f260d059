"""Top-KG: units stay whole, shares are equal, and blocks are narrow nets side by side."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_merge import IMAGE, OF_CLASS, changed, drawn, family, laws, logits, same, seeds

from moist.config import MergeConfig
from moist.errors import ConfigError, StageError
from moist.nets.cnn import CNN
from moist.nets.merge import gather
from moist.nets.topk import SCORES, quotas, scored, suppliers
from moist.store.artifacts import State

WIDTHS = {"conv1": 6, "conv2": 7, "fc1": 11}
CNNS = {
    "cnn": {"conv1": ["trunk.0"], "conv2": ["trunk.3"], "fc1": ["fc1"]},
    "cnn with batch norm": {
        "conv1": ["trunk.0", "trunk.1"],
        "conv2": ["trunk.4", "trunk.5"],
        "fc1": ["fc1"],
    },
}
each_cnn = pytest.mark.parametrize("arch", CNNS)
each_score = pytest.mark.parametrize("score", SCORES)
NEAR = {"rtol": 1e-4, "atol": 1e-5}


def aligned(score: str = "delta", head: str = "gather") -> MergeConfig:
    return MergeConfig(method="topk", score=score, head=head)


def block(score: str = "in", head: str = "gather") -> MergeConfig:
    return MergeConfig(method="topk", layout="block", base="absolute", score=score, head=head)


def activities(seed: int, experts: int = 3) -> list[dict[str, torch.Tensor]]:
    return [
        {name: drawn(seed + 31 * i + width, width).abs() for name, width in WIDTHS.items()}
        for i in range(experts)
    ]


def rows(state: State, modules: list[str]) -> torch.Tensor:
    """All that a layer's units have of their own: (U, weights, bias, batch norm)."""
    own = [t for n, t in state.items() if n.rpartition(".")[0] in modules and t.ndim]
    return torch.cat(
        [tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in own], 1
    )


# both layouts


@each_cnn
@each_score
@pytest.mark.parametrize("head", ["gather", "owner"])
@pytest.mark.parametrize("layout", [aligned, block])
def test_what_is_chosen_is_a_state_of_the_same_network(arch, score, head, layout) -> None:
    experts, ancestor = family(1, arch)
    found = gather(experts, ancestor, layout(score, head), OF_CLASS, activities(1))
    assert list(found) == list(ancestor)
    for name, tensor in ancestor.items():
        assert found[name].shape == tensor.shape
        assert found[name].dtype == tensor.dtype
    assert logits(found, arch).isfinite().all()


@each_cnn
@each_score
@pytest.mark.parametrize("layout", [aligned, block])
def test_one_expert_stays_as_it_is(arch, score, layout) -> None:
    (expert,), ancestor = family(2, arch, experts=1)
    found = gather([expert], ancestor, layout(score), OF_CLASS, activities(2, experts=1))
    same(found, expert)
    assert torch.equal(logits(found, arch), logits(expert, arch))


@each_cnn
@pytest.mark.parametrize("layout", [aligned, block])
def test_the_experts_are_left_as_they_were(arch, layout) -> None:
    experts, ancestor = family(3, arch)
    gather(experts, ancestor, layout(), OF_CLASS)
    for expert, before in zip(experts, family(3, arch)[0], strict=True):
        same(expert, before)


@each_cnn
@pytest.mark.parametrize("layout", [aligned, block])
def test_the_order_in_which_a_state_lists_its_modules_makes_no_difference(arch, layout) -> None:
    experts, ancestor = family(4, arch)
    found = gather(
        [dict(sorted(e.items())) for e in experts],
        dict(sorted(ancestor.items())),
        layout(),
        OF_CLASS,
    )
    same(found, dict(sorted(gather(experts, ancestor, layout(), OF_CLASS).items())))


def test_only_the_cnns_units_can_be_chosen() -> None:
    experts, ancestor = family(5, "resnet8")
    with pytest.raises(ConfigError, match=r"two linear layers, but .* has 10 weights"):
        gather(experts, ancestor, aligned(), OF_CLASS)


# scores


def by_hand(
    score: str, state: State, ancestor: State, active: State, layer: str, unit: int
) -> float:
    """A unit's score from its definition, slice by slice."""
    (module,) = CNNS["cnn"][layer]
    row, bias = state[f"{module}.weight"][unit], state[f"{module}.bias"][unit]
    row_0, bias_0 = ancestor[f"{module}.weight"][unit], ancestor[f"{module}.bias"][unit]
    reader, columns = {
        "conv1": ("trunk.3", [unit]),
        "conv2": ("fc1", [4 * unit + pixel for pixel in range(4)]),
        "fc1": ("fc2", [unit]),
    }[layer]
    out = state[f"{reader}.weight"][:, columns].norm()
    values = {
        "delta": ((row - row_0).square().sum() + (bias - bias_0) ** 2).sqrt(),
        "in": row.norm(),
        "inout": (row.square().sum() + bias**2).sqrt() * out,
        "act": active[layer][unit] * out,
    }
    return float(values[score])


@each_score
def test_a_score_is_its_definition(score) -> None:
    experts, ancestor = family(6)
    active = activities(6)
    for layer, found_EU in zip(WIDTHS, scored(experts, ancestor, score, active), strict=True):
        expected = [
            [by_hand(score, e, ancestor, a, layer, unit) for unit in range(WIDTHS[layer])]
            for e, a in zip(experts, active, strict=True)
        ]
        torch.testing.assert_close(found_EU, torch.tensor(expected))


def test_activity_that_was_not_measured_is_an_error_that_says_what_to_do() -> None:
    experts, ancestor = family(7)
    with pytest.raises(StageError, match=r"none was measured\nhint: .*merge.score=inout"):
        gather(experts, ancestor, aligned("act"), OF_CLASS)


# shares


@given(st.integers(1, 300), st.integers(1, 12))
def test_shares_differ_by_one_at_most_and_the_first_have_more(units, experts) -> None:
    found = quotas(units, experts)
    assert sum(found) == units
    assert found == sorted(found, reverse=True)
    assert found[0] - found[-1] <= 1


@laws
@given(seeds, st.integers(1, 5), st.integers(1, 13))
def test_units_go_to_the_highest_score_that_is_left(seed, experts, units) -> None:
    score_EU = drawn(seed, experts, units)
    found = suppliers(score_EU)
    assert torch.bincount(found, minlength=experts).tolist() == quotas(units, experts)
    left, open_EU = quotas(units, experts), score_EU.clone()
    for _ in range(units):
        open_EU[[not share for share in left]] = -torch.inf
        expert, unit = divmod(int(open_EU.argmax()), units)
        assert found[unit] == expert
        left[expert] -= 1
        open_EU[:, unit] = -torch.inf


# aligned


@each_cnn
@each_score
def test_each_unit_comes_whole_from_its_one_supplier(arch, score) -> None:
    experts, ancestor = family(8, arch)
    found = gather(experts, ancestor, aligned(score), OF_CLASS, activities(8))
    scores_EU = scored(experts, ancestor, score, activities(8))
    for score_EU, (layer, modules) in zip(scores_EU, CNNS[arch].items(), strict=True):
        own = torch.stack([rows(expert, modules) for expert in experts])
        match_EU = (own == rows(found, modules)).all(2)
        assert match_EU.sum(0).tolist() == [1] * WIDTHS[layer]
        assert match_EU.sum(1).tolist() == quotas(WIDTHS[layer], 3)
        assert torch.equal(match_EU.int().argmax(0), suppliers(score_EU))


def test_aligned_classes_are_averaged() -> None:
    experts, ancestor = family(9)
    found = gather(experts, ancestor, aligned(), OF_CLASS)
    for name in ("fc2.weight", "fc2.bias"):
        torch.testing.assert_close(found[name], torch.stack([e[name] for e in experts]).mean(0))


@each_cnn
@each_score
def test_equal_experts_align_to_that_expert(arch, score) -> None:
    (expert,), ancestor = family(10, arch, experts=1)
    found = gather([expert] * 3, ancestor, aligned(score), OF_CLASS, activities(10))
    same(found, expert)
    assert torch.equal(logits(found, arch), logits(expert, arch))


def test_a_unit_that_only_one_expert_has_moved_comes_from_it() -> None:
    _, ancestor = family(11)
    expert = {name: tensor.clone() for name, tensor in ancestor.items()}
    expert["fc1.weight"][4] += 1
    found = gather([ancestor, ancestor, expert], ancestor, aligned(), OF_CLASS)
    same({**found, "fc2.weight": ancestor["fc2.weight"]}, expert)


def test_whole_weights_and_changes_align_to_the_same() -> None:
    experts, ancestor = family(12)
    whole = MergeConfig(method="topk", base="absolute")
    same(
        gather(experts, ancestor, whole, OF_CLASS), gather(experts, ancestor, aligned(), OF_CLASS)
    )


@each_cnn
def test_an_owners_rows_are_exactly_its_own_in_an_aligned_student(arch) -> None:
    experts, ancestor = family(13, arch)
    found = gather(experts, ancestor, aligned(head="owner"), OF_CLASS)
    for c, owner in enumerate(OF_CLASS):
        for name in ("fc2.weight", "fc2.bias"):
            assert torch.equal(found[name][c], experts[owner][name][c])


# block


def narrow(expert: State, i: int, arch: str, experts: int, share: float) -> CNN:
    """Expert i's net of its best units (score `in`), with this share of its last bias."""
    first, second = (CNNS[arch][layer][0] for layer in ("conv1", "conv2"))
    kept = []
    for module in (first, second, "fc1"):
        norms = [float(row.norm()) for row in expert[f"{module}.weight"]]
        best = sorted(range(len(norms)), key=norms.__getitem__, reverse=True)
        kept.append(sorted(best[: len(norms) // experts + (i < len(norms) % experts)]))
    one, two, three = kept
    state = {}
    for layer, own in zip(CNNS[arch], kept, strict=True):
        for name in (n for n in expert if n.rpartition(".")[0] in CNNS[arch][layer]):
            state[name] = expert[name][own] if expert[name].ndim else expert[name]
    state[f"{second}.weight"] = state[f"{second}.weight"][:, one]
    columns = [4 * channel + pixel for channel in two for pixel in range(4)]
    state["fc1.weight"] = state["fc1.weight"][:, columns]
    state["fc2.weight"] = expert["fc2.weight"][:, three]
    state["fc2.bias"] = expert["fc2.bias"] * share
    net = CNN(
        IMAGE,
        len(OF_CLASS),
        hidden_width=len(three),
        channels=(len(one), len(two)),
        batch_norm="norm" in arch,
    )
    net.load_state_dict(state)
    return net.eval()


def narrow_logits(experts: list[dict], arch: str, share: float) -> torch.Tensor:
    """(E, B, C)"""
    with torch.inference_mode():
        return torch.stack(
            [
                narrow(expert, i, arch, len(experts), share)(drawn(0, 4, *IMAGE))
                for i, expert in enumerate(experts)
            ]
        )


@each_cnn
@pytest.mark.parametrize("experts", [2, 3, 4])
def test_blocks_add_the_logits_of_narrow_nets_with_a_share_of_their_bias(arch, experts) -> None:
    states, ancestor = family(14, arch, experts)
    found = logits(gather(states, ancestor, block(), OF_CLASS), arch)
    torch.testing.assert_close(found, narrow_logits(states, arch, 1 / experts).sum(0), **NEAR)


@each_cnn
def test_with_owners_a_blocks_class_has_the_logit_of_its_owners_narrow_net(arch) -> None:
    states, ancestor = family(15, arch)
    found = logits(gather(states, ancestor, block(head="owner"), OF_CLASS), arch)
    own_EBC = narrow_logits(states, arch, 1.0)
    expected = torch.stack([own_EBC[owner, :, c] for c, owner in enumerate(OF_CLASS)], 1)
    torch.testing.assert_close(found, expected, **NEAR)


def test_weights_between_units_of_two_experts_are_zero() -> None:
    states, ancestor = family(16)
    found = gather(states, ancestor, block(), OF_CLASS)
    expert_of = {
        layer: torch.tensor([i for i, n in enumerate(quotas(width, 3)) for _ in range(n)])
        for layer, width in WIDTHS.items()
    }
    between = expert_of["conv2"][:, None] != expert_of["conv1"]
    assert not found["trunk.3.weight"][between].any()
    assert found["trunk.3.weight"][~between].all()
    between = expert_of["fc1"][:, None] != expert_of["conv2"].repeat_interleave(4)
    assert not found["fc1.weight"][between].any()
    assert found["fc1.weight"][~between].all()


def test_an_expert_without_units_adds_nothing_but_its_share_of_the_bias() -> None:
    states, ancestor = family(17, experts=12)
    found = gather(states, ancestor, block(), OF_CLASS)
    silent = gather([*states[:11], changed(states[11], 5)], ancestor, block(), OF_CLASS)
    assert {n for n in found if not torch.equal(found[n], silent[n])} == {"fc2.bias"}
