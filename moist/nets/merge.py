"""OneS, knowledge gathering: the experts' weights become one student's (Xue et al. 2022).

Only the abstract and second-hand summaries of OneS are known to us. It gathers the feed-forward
layers of transformers; here every layer has experts, so every layer is gathered, a convolution as
a matrix with one row per channel (ours). Sums are float64: the mean of equal weights is that
weight. E experts, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from moist.config import MergeConfig
from moist.nets.topk import Activity, aligned, block, mean, scored
from moist.store.artifacts import State


def gather(
    experts: Sequence[State],
    ancestor: State,
    merge: MergeConfig,
    of_class: Sequence[int],
    activity: Sequence[Activity] | None = None,
) -> dict[str, torch.Tensor]:
    """Merge the experts' states into the state of one student, with the same names and shapes.

    `ancestor` is the state that all experts started from, `of_class[c]` the expert of class c,
    `activity` each expert's mean |activation| of `topk.HIDDEN`, which only score `act` uses.
    Running statistics of batch norm are the experts' mean: measure them again before use.
    """
    owner_C = of_class if merge.head == "owner" else None
    if merge.method == "topk":
        scores_EU = scored(experts, ancestor, merge.score, activity)
        if merge.layout == "block":
            return block(experts, scores_EU, owner_C)
        state = aligned(experts, scores_EU)
    else:
        state = {name: combined(name, experts, ancestor, merge) for name in ancestor}
    return state if owner_C is None else state | owned(experts, owner_C)


def average(parts_E: Sequence[torch.Tensor], _: MergeConfig) -> torch.Tensor:
    """Average weights."""
    return mean(parts_E)


def total(parts_E: Sequence[torch.Tensor], _: MergeConfig) -> torch.Tensor:
    """Add weights; added changes of weights are task arithmetic (Ilharco et al. 2023)."""
    return torch.stack(list(parts_E)).sum(0)


def svd(parts_E: Sequence[torch.Tensor], merge: MergeConfig) -> torch.Tensor:
    """Average or add the parts at lower rank (SVD-KG); at full rank, the parts themselves.

    It makes no difference whether the experts' factors are concatenated or their products added.
    OneS's rank is not known to us; by default the experts share the full rank equally (ours). A
    vector has no rank and stays whole.
    """
    if parts_E[0].ndim > 1:
        full = min(parts_E[0].flatten(1).shape)
        rank = merge.rank or max(1, full // len(parts_E))
        parts_E = [truncated(part, rank) for part in parts_E]
    return METHODS["sum" if merge.scale == "sum" else "average"](parts_E, merge)


METHODS: dict[str, Callable[[Sequence[torch.Tensor], MergeConfig], torch.Tensor]] = {
    "average": average,
    "sum": total,
    "svd": svd,
}


def truncated(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """Find the nearest weight of at most that rank, as a matrix of its outputs' rows.

    It is the projection on the leading left singular vectors (Eckart & Young 1936), which are
    eigenvectors of W W': several times faster than a decomposition of a wide W, and in float64 as
    good for weights that were float32.
    """
    matrix = weight.flatten(1)
    _, vectors = torch.linalg.eigh(matrix @ matrix.T)
    leading: torch.Tensor = vectors[:, -rank:]
    return (leading @ (leading.T @ matrix)).reshape(weight.shape)


def combined(
    name: str, experts: Sequence[State], ancestor: State, merge: MergeConfig
) -> torch.Tensor:
    """Merge one tensor of all experts. Batch norm is averaged whatever the method, since it
    rescales each unit's output and a sum would do so twice; counters are the first expert's."""
    parts_E = [expert[name] for expert in experts]
    if not parts_E[0].is_floating_point():
        return parts_E[0]
    norm = f"{name.rpartition('.')[0]}.running_mean" in ancestor
    method = "average" if norm else merge.method
    base = ancestor[name].double() if merge.base == "delta" else torch.zeros(()).double()
    merged = base + METHODS[method]([part.double() - base for part in parts_E], merge)
    return merged.to(parts_E[0].dtype)


def owned(experts: Sequence[State], owner_C: Sequence[int]) -> dict[str, torch.Tensor]:
    """Take each class's row and bias of the last layer from the expert of its cluster (ours)."""
    last = [name for name, tensor in experts[0].items() if tensor.ndim == 2][-1]
    names = (last, last.removesuffix("weight") + "bias")
    return {
        name: torch.stack([experts[owner][name][c] for c, owner in enumerate(owner_C)])
        for name in names
    }
