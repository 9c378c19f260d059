"""Top-KG: whole hidden units of several CNN students, chosen into one.

E experts; U units of a layer, I units it reads, N weights into a unit, M weights out of it. A
unit is a channel or a neuron. It stays whole: its row of weights, its bias and its batch norm come
from one expert, for halves of two experts' units don't fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import torch

from moist.errors import ConfigError, StageError
from moist.store.artifacts import State

HIDDEN = ("conv1", "conv2", "fc1")
"""The CNN's hidden layers, as activities name them."""

Activity = Mapping[str, torch.Tensor]


class Layer(NamedTuple):
    """Names of a layer's tensors; `vectors` have one entry a unit: bias and batch norm."""

    weight: str
    vectors: tuple[str, ...]
    inputs: int

    def columns_UIR(self, state: State) -> torch.Tensor:
        """Reshape weights by unit and by unit read: R is a kernel, or in `fc1` a feature map."""
        weight = state[self.weight]
        return weight.reshape(len(weight), self.inputs, -1)


class Units(NamedTuple):
    """What scores may use of one hidden layer of one network."""

    weight_UN: torch.Tensor
    bias_U: torch.Tensor
    outgoing_UM: torch.Tensor
    activity_U: torch.Tensor | None

    @property
    def incoming_UN(self) -> torch.Tensor:
        """Return weights and bias into each unit."""
        return torch.cat((self.weight_UN, self.bias_U[:, None]), 1)


def norm(rows_UN: torch.Tensor) -> torch.Tensor:
    """Return the length of each row."""
    return rows_UN.square().sum(1).sqrt()


def moved(units: Units, ancestor: Units) -> torch.Tensor:
    """Score how far a unit has moved from its ancestor (ours)."""
    return norm(units.incoming_UN - ancestor.incoming_UN)


def magnitude(units: Units, _: Units) -> torch.Tensor:
    """Score the norm of a unit's weights; whether it is OneS's is not known to us."""
    return norm(units.weight_UN)


def connected(units: Units, _: Units) -> torch.Tensor:
    """Score incoming norm times outgoing norm: of weights and bias, and of weights out (ours).

    Scaling a unit's inputs up and its outputs down changes no function of ReLU, nor this score.
    """
    return norm(units.incoming_UN) * norm(units.outgoing_UM)


def active(units: Units, _: Units) -> torch.Tensor:
    """Score mean |activation| times outgoing norm (ours)."""
    if units.activity_U is None:
        raise StageError(
            "`merge.score=act` ranks units by their activity, but none was measured",
            "measure every student's activity first, or set `merge.score=inout`",
        )
    return units.activity_U * norm(units.outgoing_UM)


SCORES: dict[str, Callable[[Units, Units], torch.Tensor]] = {
    "delta": moved,
    "in": magnitude,
    "inout": connected,
    "act": active,
}


def mean(parts_E: Sequence[torch.Tensor]) -> torch.Tensor:
    """Average in float64, returned in the given type: the mean of equal weights is that weight."""
    stacked = torch.stack(list(parts_E))
    return stacked.double().mean(0).to(stacked.dtype)


def chain(state: State) -> tuple[Layer, ...]:
    """List the CNN's layers from image to logits; modules may be in forward or in text order."""
    weights = sorted((n for n in state if state[n].ndim > 1), key=lambda n: -state[n].ndim)
    if [state[weight].ndim for weight in weights] != [4, 4, 2, 2]:
        raise ConfigError(
            "`merge.method=topk` chooses units of two convolutions and two linear layers,"
            f" but the student has {len(weights)} weights: {', '.join(weights)}",
            "set `merge.method` to average, sum or svd, or `student.arch=cnn`",
        )
    vectors: dict[str, list[str]] = {weight: [] for weight in weights}
    last = ""
    for _, module in groupby(state, lambda name: name.rpartition(".")[0]):
        names = list(module)
        last = next((name for name in names if name in vectors), last)
        vectors[last] += [name for name in names if state[name].ndim == 1]
    inputs = [state[weights[0]].shape[1], *(len(state[weight]) for weight in weights)]
    return tuple(Layer(w, tuple(vectors[w]), i) for w, i in zip(weights, inputs, strict=False))


def scored(
    experts: Sequence[State], ancestor: State, score: str, activity: Sequence[Activity] | None
) -> list[torch.Tensor]:
    """Score the units of each hidden layer: (E, U) a layer."""
    layers = chain(ancestor)

    def units(state: State, depth: int, activity: Activity | None) -> Units:
        own, reader = layers[depth], layers[depth + 1]
        return Units(
            state[own.weight].flatten(1),
            state[own.weight.removesuffix("weight") + "bias"],
            reader.columns_UIR(state).transpose(0, 1).flatten(1),
            None if activity is None else activity[HIDDEN[depth]],
        )

    def score_EU(depth: int) -> torch.Tensor:
        before = units(ancestor, depth, None)
        each_E = [None] * len(experts) if activity is None else activity
        after_E = [units(e, depth, a) for e, a in zip(experts, each_E, strict=True)]
        return torch.stack([SCORES[score](after, before) for after in after_E])

    return [score_EU(depth) for depth in range(len(HIDDEN))]


def quotas(units: int, experts: int) -> list[int]:
    """Divide units equally; the first experts get a unit more of the remainder each."""
    share, rest = divmod(units, experts)
    return [share + (i < rest) for i in range(experts)]


def suppliers(score_EU: torch.Tensor) -> torch.Tensor:
    """Choose each unit's expert (U,): highest scores first, until an expert's quota is full."""
    experts, units = score_EU.shape
    open_slots, supplier = quotas(units, experts), [-1] * units
    for flat in score_EU.flatten().argsort(descending=True, stable=True).tolist():
        expert, unit = divmod(flat, units)
        if supplier[unit] < 0 and open_slots[expert]:
            supplier[unit] = expert
            open_slots[expert] -= 1
    return torch.tensor(supplier)


def aligned(experts: Sequence[State], scores_EU: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep every unit in its place, each from one expert; average the last layer (ours).

    Rests on the common ancestor: unit j means about the same in every expert. A unit's supplier
    sets its row, so weights between two units follow the one that reads. The last layer's rows
    are classes, not hidden units, so no expert is chosen for them.
    """
    *hidden, head = chain(experts[0])
    state = dict(experts[0])
    for layer, score_EU in zip(hidden, scores_EU, strict=True):
        unit_U = torch.arange(score_EU.shape[1])
        for name in (layer.weight, *layer.vectors):
            state[name] = torch.stack([e[name] for e in experts])[suppliers(score_EU), unit_U]
    for name in (head.weight, *head.vectors):
        state[name] = mean([expert[name] for expert in experts])
    return state


def picks(scores_EU: list[torch.Tensor], i: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """List, for each hidden layer, the places of expert i and its units that go there."""
    found = []
    for score_EU in scores_EU:
        share = quotas(score_EU.shape[1], len(score_EU))
        best = score_EU[i].argsort(descending=True, stable=True)[: share[i]]
        found.append((torch.arange(share[i]) + sum(share[:i]), best.sort().values))
    return found


def block(
    experts: Sequence[State], scores_EU: list[torch.Tensor], owner_C: Sequence[int] | None
) -> dict[str, torch.Tensor]:
    """Place the experts' best units side by side: narrow networks whose logits are added.

    Weights between units of two experts are 0. The last bias is the experts' mean, so each narrow
    net brings 1/E of its own. With `owner_C`, a class has the logit of its owner's narrow net
    instead of a sum: its whole row would meet other experts' units (ours).
    """
    layers = chain(experts[0])
    head = layers[-1]
    state = dict(experts[0])
    for name in (name for layer in layers for name in (layer.weight, *layer.vectors)):
        state[name] = torch.zeros(experts[0][name].shape)
    all_channels = (torch.arange(layers[0].inputs),) * 2
    for i, expert in enumerate(experts):
        served = [c for c in range(len(state[head.weight])) if not owner_C or owner_C[c] == i]
        steps = [all_channels, *picks(scores_EU, i), (torch.tensor(served, dtype=torch.long),) * 2]
        for layer, ((into, unit), (place, chosen)) in zip(layers, pairwise(steps), strict=True):
            kept = layer.columns_UIR(expert)[chosen[:, None], unit]
            layer.columns_UIR(state)[place[:, None], into] = kept
            for name in layer.vectors:
                state[name][place] = expert[name][chosen]
    if not owner_C:
        state |= {name: mean([e[name] for e in experts]) for name in head.vectors}
    return state
