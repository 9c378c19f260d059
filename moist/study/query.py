"""Query a study from Python: its trials, frontier, best trial, all of it as a data frame."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moist.disk import home_of
from moist.results import queries
from moist.results.frames import trial_frame
from moist.results.objectives import Objective, known, parse_limits
from moist.results.trials import Trial
from moist.study.ref import StudyRef, database_of, storage_shown
from moist.study.spec import StudySpec
from moist.study.storage import find, load

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """A study that exists; each query reads its trials anew, so that a running one can be asked.

    Trials have `params`, `quantities` (as `accuracy` on validation images, a fraction, and
    `mflops`), `key` for `moist.load`, and `command`.
    """

    ref: StudyRef

    def __repr__(self) -> str:
        return f"<study {self.ref.name} in {self.ref.shown}>"

    def trials(self) -> list[Trial]:
        """Return all trials, in order. Raises ConfigError if there is no such study."""
        return self._loaded()[1]

    def frontier(self) -> list[Trial]:
        """Return the trials of the Pareto frontier, by rising cost."""
        spec, trials = self._loaded()
        return queries.members(trials, spec.objectives)

    def best(
        self,
        max: Mapping[str, float] | None = None,
        min: Mapping[str, float] | None = None,
        by: str | None = None,
    ) -> Trial:
        """Return the best trial within limits, as `moist best` does.

        `max` and `min` are limits by quantity, as `{"mflops": 0.06}`; `by` is the quantity to rank
        by, by default the study's first objective. Raises ConfigError, with the nearest trial, if
        none is within the limits, and for an unknown quantity.
        """
        spec, trials = self._loaded()
        limits = parse_limits(*(words_of(one) for one in (max, min)))
        return queries.best(
            trials, limits, Objective(by, known(by).better) if by else spec.objectives[0]
        )

    def frame(self) -> pd.DataFrame:
        """Return a row for each trial: a column a parameter and a quantity, `test_NAME` for
        accuracies on the test split, `key`, `state`, `seconds`, `reason` and `command`."""
        return trial_frame(self.trials())

    def _loaded(self) -> tuple[StudySpec, list[Trial]]:
        return load(self.ref)


def study(name: str, *, home: str | Path | None = None, storage: str | None = None) -> Study:
    """Return a study by name, to query it.

    It is looked for in `storage` (a database's URL; default: MOIST_STORAGE, else
    HOME/studies.db). Raises ConfigError, listing similar names, if there is none.
    """
    found = Study(ref_of(name, home, storage))
    find(found.ref)
    return found


def best(
    name: str,
    max: Mapping[str, float] | None = None,
    min: Mapping[str, float] | None = None,
    by: str | None = None,
    *,
    home: str | Path | None = None,
    storage: str | None = None,
) -> Trial:
    """Return a study's best trial within limits; `moist.load(trial.key)` loads its model.

    Raises ConfigError for an unknown study and as `Study.best` does.
    """
    return Study(ref_of(name, home, storage)).best(max, min, by)


def ref_of(name: str, home: str | Path | None, storage: str | None) -> StudyRef:
    """Refer to a study; commands that find it again name what was given here."""
    folder, url = home_of(home), storage or os.environ.get("MOIST_STORAGE")
    given: dict[str, Any] = {"--home": home and folder, "--storage": storage}
    options = {name: storage_shown(str(value)) for name, value in given.items() if value}
    return StudyRef(name, database_of(url, folder), folder, options)


def words_of(limits: Mapping[str, float] | None) -> list[str]:
    """Return limits as the command's words."""
    return [f"{name}={value}" for name, value in (limits or {}).items()]
