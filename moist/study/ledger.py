"""A study under its driver's hand: what is asked, lost, told. Nobody else writes to it.

What a trial found is on disk, as run record and stored stages, before it is told; so a driver
killed in between finds it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optuna.trial import TrialState

from moist.results.objectives import Objective
from moist.results.trials import Trial
from moist.study.leases import lease, turn
from moist.study.ref import StudyRef
from moist.study.resuming import resumed
from moist.study.samplers import point
from moist.study.storage import ASKED, ATTEMPTS, FACTS, RUN, Described, open_storage, trial_of

if TYPE_CHECKING:
    import optuna
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
LOST = "its driver was lost"
NOTE = 2000
"""Characters of a note: an attribute's room in every database."""

Suggest = Callable[["optuna.Trial"], dict[str, Any]]


class Ledger:
    """The trials of one study, kept in memory too, as nobody else writes them.

    `drawn` is how many were freshly drawn, which seeds the next; `tried` are the points asked for.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        objectives: Sequence[Objective],
        artifacts: ArtifactStore | None = None,
    ) -> None:
        self.study = study
        self.storage = storage
        self.objectives = objectives
        self.artifacts = artifacts
        self._ids: dict[int, int] = {}
        self._trials: dict[int, Trial] = {}
        self.drawn = 0
        self.tried: set[str] = set()
        self._take_in_all()

    def trials(self) -> list[Trial]:
        """All of them, in order of number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def trial(self, number: int) -> Trial:
        """One of them."""
        return self._trials[number]

    def ask(
        self, sampler: BaseSampler, suggest: Suggest, asked: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """A new trial, or one that waits to be retried: its number and parameters.

        `asked` is noted once the parameters are known.
        """
        self.study.sampler = sampler
        trial = self.study.ask()
        self._ids[trial.number] = trial._trial_id
        params = suggest(trial)
        self._set(trial.number, ASKED, dict(asked))
        self._take_in(self.storage.get_trial(trial._trial_id))
        return trial.number, params

    def unfinished(self) -> list[Trial]:
        """Trials whose driver was lost: to be run again, under their numbers.

        One whose parameters were still being drawn goes back in line: the next draw gives the
        same ones, as it depends on the trials before it alone. One that is in line again already
        (`requeue_unfinished` was killed) is failed.
        """
        running = [trial for trial in self.trials() if trial.state == "running"]
        again = {trial.retry_of for trial in self.trials()}
        for trial in running:
            if trial.number in again:
                self.fail(trial.number, LOST)
            elif not trial.asked:
                identity = self._ids[trial.number]
                self.storage.set_trial_state_values(identity, TrialState.WAITING)
                self._take_in(self.storage.get_trial(identity))
        return [trial for trial in running if trial.asked and trial.number not in again]

    def has_waiting(self) -> bool:
        """Whether a trial is in line to be asked for."""
        return any(trial.state == "waiting" for trial in self._trials.values())

    def lost(self, number: int, attempts: Sequence[str]) -> None:
        """Note why each attempt at a trial was lost; it stays to be tried again."""
        self._set(number, ATTEMPTS, list(attempts))

    def complete(self, number: int, found: Mapping[str, float], **run: Any) -> None:
        """Tell what a trial found, by quantity; every objective must be among it."""
        values = [found[objective.name] for objective in self.objectives]
        self._set(number, RUN, {"quantities": dict(found), **run})
        self.study.tell(number, values)
        self._take_in(self.storage.get_trial(self._ids[number]))

    def prune(self, number: int, reason: str, **run: Any) -> None:
        """Tell that a trial is not worth its training."""
        self._finish(number, "PRUNED", reason, run)

    def fail(self, number: int, reason: str, **run: Any) -> None:
        """Tell that a trial failed, and why."""
        self._finish(number, "FAIL", reason, run)

    def limit(self, number: int, name: str, excess: float) -> None:
        """Note how far a trial is beyond a limit (at most 0: kept); samplers learn from it."""
        self.storage.set_trial_system_attr(self._ids[number], f"constraints:{name}", excess)

    def retry_failed(self, reason: str = "") -> list[int]:
        """Put failed trials whose reason holds a text in line again, each once: their numbers."""
        trials = self.trials()
        again = {trial.retry_of for trial in trials}
        failed = [
            trial
            for trial in trials
            if trial.state == "failed" and trial.asked and trial.number not in again
        ]
        chosen = [trial for trial in failed if reason in (trial.reason or "")]
        for trial in chosen:
            self._retry(trial)
        return [trial.number for trial in chosen]

    def requeue_unfinished(self) -> None:
        """Fail trials that run for nobody, each once it has been put in line again."""
        for trial in self.unfinished():
            self._retry(trial)
            self.fail(trial.number, LOST)

    def _retry(self, trial: Trial) -> None:
        self.study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        self._take_in_all()

    def line_up(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Put points in line that have no trial yet."""
        for params in points:
            if point(params) not in self.tried:
                self.study.enqueue_trial(dict(params), skip_if_exists=True)
        self._take_in_all()

    def _finish(self, number: int, state: str, reason: str, run: Mapping[str, Any]) -> None:
        self._set(number, RUN, {"reason": reason, **run})
        self.study.tell(number, state=TrialState[state])
        self._take_in(self.storage.get_trial(self._ids[number]))

    def annotate(self, number: int, note: str, files: Iterable[Path]) -> None:
        """Show a note (Markdown) and files with a trial in optuna-dashboard. Before it is told."""
        from optuna.artifacts import get_all_artifact_meta, upload_artifact

        trial, study = self._ids[number], self.study._study_id
        self.storage.set_study_system_attr(study, f"dashboard:{trial}:note_ver", 1)
        self.storage.set_study_system_attr(study, f"dashboard:{trial}:note_str:0", note[:NOTE])
        if self.artifacts is None:
            return
        # a driver killed before it told the trial may have come so far
        attached = get_all_artifact_meta(self.storage.get_trial(trial), storage=self.storage)
        shown = {meta.filename for meta in attached}
        for path in files:
            if path.name not in shown:
                upload_artifact(
                    artifact_store=self.artifacts,
                    file_path=str(path),
                    study_or_trial=self.storage.get_trial(trial),
                    storage=self.storage,
                )

    def _set(self, number: int, name: str, value: Any) -> None:
        self.storage.set_trial_user_attr(self._ids[number], name, value)

    def _take_in_all(self) -> None:
        for one in self.study.get_trials(deepcopy=False):
            self._take_in(one)

    def _take_in(self, one: FrozenTrial) -> None:
        """Know a trial as the database has it."""
        trial = trial_of(one, self.objectives)
        self._ids[trial.number] = one._trial_id
        fresh = trial.asked and trial.retry_of is None
        known = self._trials.get(trial.number)
        self.drawn += fresh and not (known and known.asked)
        self.tried |= {point(trial.params)} if trial.asked else set()
        self._trials[trial.number] = trial


def in_memory(objectives: Sequence[Objective]) -> Ledger:
    """A study that nobody keeps, to see what a sampler would draw."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    directions = [DIRECTIONS[objective.direction] for objective in objectives]
    return Ledger(optuna.create_study(storage=storage, directions=directions), storage, objectives)


@contextmanager
def opened(ref: StudyRef, described: Described) -> Iterator[Ledger]:
    """The study of that name, created if there is none, to be driven by this process alone.

    Raises Held when another drives it, and ConfigError when it was made for another search, or
    its latencies on another machine.
    """
    import optuna

    with ref.translated_errors(), lease(ref), ExitStack() as stack:
        storage = open_storage(ref, keep=True)
        stack.callback(storage.engine.dispose)
        with turn(ref):
            study = optuna.create_study(
                study_name=ref.name,
                storage=storage,
                directions=[DIRECTIONS[o.direction] for o in described.objectives],
                load_if_exists=True,
            )
        facts = resumed(ref, study, described).model_dump(mode="json")
        if facts != study.user_attrs.get(FACTS):
            study.set_user_attr(FACTS, facts)
        yield Ledger(study, storage, described.objectives, artifact_store(ref.home))


def artifact_store(home: Path) -> ArtifactStore:
    """Where the files of trials lie that optuna-dashboard shows."""
    from optuna.artifacts import FileSystemArtifactStore

    folder = home / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder)
