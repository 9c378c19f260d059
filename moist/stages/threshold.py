"""Choose the images that a cascade defers, by certainty on validation images."""

from __future__ import annotations

from moist.env import Env
from moist.errors import StageError
from moist.measure.accuracy import classify
from moist.nets.build import module
from moist.nets.cascade import threshold_for
from moist.stages import stage
from moist.store.artifacts import Cascade, Dataset, Ensemble, Mixture, Network, Student


@stage(version=1)
def choose_threshold(
    env: Env,
    *,
    data: Dataset,
    first: Mixture | Ensemble | Student,
    fallback: Network | Mixture | None,
    share: float,
    precision: str,
) -> Cascade:
    """Choose the threshold that defers the least certain `share` of the validation images.

    Without a `fallback`, the mixture's two best experts classify deferred images together.
    """
    if not len(data.val):
        raise StageError(
            "there are no validation images to choose a threshold on: classes have too few images",
            "raise `data.val_fraction`",
        )
    model = Cascade(first, fallback, 0.0)
    answers = classify(env, module(model, env.device), data.val, data, precision=precision)
    assert answers.certainty_N is not None
    return Cascade(first, fallback, threshold_for(answers.certainty_N, share))
