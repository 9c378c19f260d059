"""A study as its driver writes it: trials that are drawn, lost, requeued and ended.

A trial's results are on disk, as run record and stored stages, before they are written here; so
the driver that follows a killed one finds them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optuna.trial import TrialState

from moist.disk import writing
from moist.errors import ConfigError
from moist.results.trials import Trial
from moist.study.leases import lease, turn
from moist.study.ref import StudyRef
from moist.study.samplers import point
from moist.study.spec import FACTS, StudySpec, continued
from moist.study.storage import ASKED, ATTEMPTS, RETRY_OF, RUN, open_storage, trial_of

if TYPE_CHECKING:
    import optuna
    from optuna.artifacts._protocol import ArtifactStore
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {"max": "maximize", "min": "minimize"}
DRIVER_LOST = "its driver was lost"
METRIC_NAMES = "study:metric_names"
"""Optuna's name of what `Study.set_metric_names` stores, which warns that it is experimental."""
FLAT = ("key", "seconds", "saved", "reason", "command")
"""User attributes of a trial that has ended, beside its quantities and its test accuracy."""
LINE = 90
"""Characters on a line of optuna-dashboard's page of a trial, 1280 pixels wide."""
NOTE = 2000
"""Characters of a note: the length of an attribute that every database can store."""

Suggest = Callable[["optuna.Trial"], dict[str, Any]]


class Ledger:
    """The trials of one study, also kept in memory, as no other process writes them.

    `drawn` is the number of fresh draws, which seeds the next; `tried` are all points drawn. What
    is written in a block of `together` is one transaction.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        spec: StudySpec,
        artifacts: ArtifactStore | None = None,
        held: Callable[[], None] = lambda: None,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.study = study
        self.storage = storage
        self.spec = spec
        self.objectives = spec.objectives
        self.artifacts = artifacts
        self.check_lease = held
        self.together = together
        self._ids: dict[int, int] = {}
        self._trials: dict[int, Trial] = {}
        self.drawn = 0
        self.tried: set[str] = set()
        names = [one.name for one in spec.objectives]
        if study.metric_names != names:
            storage.set_study_system_attr(study._study_id, METRIC_NAMES, names)
        self._read_all()

    def trials(self) -> list[Trial]:
        """Return all trials, in order of number."""
        return [self._trials[number] for number in sorted(self._trials)]

    def trial(self, number: int) -> Trial:
        """Return the trial of that number."""
        return self._trials[number]

    def ask(
        self, sampler: BaseSampler, suggest: Suggest, origin: Mapping[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        """Start a queued trial, or draw a new one; return its number and parameters.

        `origin` is stored once all parameters are known.
        """
        self.study.sampler = sampler
        trial = self.study.ask()
        self._ids[trial.number] = trial._trial_id
        with self.together():
            params = suggest(trial)
            self._set(trial.number, ASKED, dict(origin))
        self._read(self.storage.get_trial(trial._trial_id))
        return trial.number, params

    def unfinished(self) -> list[Trial]:
        """Return trials whose driver is gone, to be run again under their numbers.

        One whose parameters were still being drawn is requeued: the next draw gives the same
        ones, as it depends on the trials before it alone. One that was requeued already
        (`requeue_unfinished` was killed) is failed.
        """
        running = [trial for trial in self.trials() if trial.state == "running"]
        again = {trial.retry_of for trial in self.trials()}
        for trial in running:
            if trial.number in again:
                self.fail(trial.number, DRIVER_LOST)
            elif not trial.drawn:
                identity = self._ids[trial.number]
                self.storage.set_trial_state_values(identity, TrialState.WAITING)
                self._read(self.storage.get_trial(identity))
        return [trial for trial in running if trial.drawn and trial.number not in again]

    def has_waiting(self) -> bool:
        """Return whether a trial is queued."""
        return any(trial.state == "waiting" for trial in self._trials.values())

    def note_stages(self, names: Iterable[str]) -> None:
        """Store the versions of the stages that a trial calls: a resumed study compares them."""
        installed = self.spec.installed
        new = {n: installed[n] for n in names if n in installed and n not in self.spec.stages}
        if new:
            stages = dict(sorted((self.spec.stages | new).items()))
            self.spec = self.spec.model_copy(update={"stages": stages})
            self.study.set_user_attr(FACTS, self.spec.model_dump(mode="json"))

    def lost(self, number: int, attempts: Sequence[str]) -> None:
        """Store why each attempt at a trial was lost; the trial goes on running."""
        self._set(number, ATTEMPTS, list(attempts))

    def complete(self, number: int, found: Mapping[str, float], **run: Any) -> None:
        """End a trial with its quantities, among them every objective."""
        values = [found[objective.name] for objective in self.objectives]
        with self.together():
            self._store(number, {"quantities": dict(found), **run})
            self.study.tell(number, values)
        self._read(self.storage.get_trial(self._ids[number]))

    def prune(self, number: int, reason: str, **run: Any) -> None:
        """End a trial that is not worth training."""
        self._finish(number, "PRUNED", reason, run)

    def fail(self, number: int, reason: str, **run: Any) -> None:
        """End a trial that failed, with the reason."""
        self._finish(number, "FAIL", reason, run)

    def report(self, number: int, epoch: int, accuracy: float) -> None:
        """Store the validation accuracy after an epoch as Optuna's intermediate value."""
        self.storage.set_trial_intermediate_value(self._ids[number], epoch, accuracy)

    def limit(self, number: int, name: str, excess: float) -> None:
        """Store how far a trial exceeds a limit (at most 0: kept); samplers learn from it."""
        self.storage.set_trial_system_attr(self._ids[number], f"constraints:{name}", excess)

    def retry_failed(self, reason: str = "") -> list[int]:
        """Requeue failed trials whose reason contains a text, each once; return their numbers."""
        trials = self.trials()
        again = {trial.retry_of for trial in trials}
        failed = [
            trial
            for trial in trials
            if trial.state == "failed" and trial.drawn and trial.number not in again
        ]
        chosen = [trial for trial in failed if reason in (trial.reason or "")]
        for trial in chosen:
            self._retry(trial)
        return [trial.number for trial in chosen]

    def requeue_unfinished(self) -> None:
        """Requeue trials whose driver is gone, and fail each after that."""
        for trial in self.unfinished():
            self._retry(trial)
            self.fail(trial.number, DRIVER_LOST)

    def _retry(self, trial: Trial) -> None:
        self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})
        self._read_all()

    def enqueue(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Queue the points that have no trial yet."""
        for params in points:
            if point(params) not in self.tried:
                self.study.enqueue_trial(dict(params), skip_if_exists=True)
        self._read_all()

    def _finish(self, number: int, state: str, reason: str, run: Mapping[str, Any]) -> None:
        with self.together():
            self._store(number, {"reason": reason, **run})
            self.study.tell(number, state=TrialState[state])
        self._read(self.storage.get_trial(self._ids[number]))

    def _store(self, number: int, run: Mapping[str, Any]) -> None:
        """Store what a trial that ends found, once to be read, and flat for Optuna's own tools.

        optuna-dashboard breaks no line of an attribute: a text that fits on none, as a long
        command, is in the note alone. Objectives are values, and have their names there.
        """
        self.storage.set_trial_system_attr(self._ids[number], RUN, dict(run))
        found = {**run.get("quantities", {}), **{name: run.get(name) for name in FLAT}}
        found["test_accuracy"] = run.get("reported", {}).get("accuracy")
        objectives = {one.name for one in self.objectives}
        for name, value in found.items():
            if name not in objectives and value is not None and len(str(value)) <= LINE:
                self._set(number, name, value)

    def annotate(self, number: int, note: str, files: Iterable[Path]) -> None:
        """Attach a note (Markdown) and files, for optuna-dashboard. Call before the trial ends."""
        from optuna.artifacts import get_all_artifact_meta, upload_artifact

        trial, study = self._ids[number], self.study._study_id
        self.storage.set_study_system_attr(study, f"dashboard:{trial}:note_ver", 1)
        self.storage.set_study_system_attr(study, f"dashboard:{trial}:note_str:0", note[:NOTE])
        if self.artifacts is None:
            return
        # a driver that was killed before it ended the trial may have done this
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

    def _read_all(self) -> None:
        for one in self.study.get_trials(deepcopy=False):
            self._read(one)

    def _read(self, one: FrozenTrial) -> None:
        """Update the copy in memory from the database."""
        trial = trial_of(one, self.objectives)
        self._ids[trial.number] = one._trial_id
        fresh = trial.drawn and trial.retry_of is None
        known = self._trials.get(trial.number)
        self.drawn += fresh and not (known and known.drawn)
        self.tried |= {point(trial.params)} if trial.drawn else set()
        self._trials[trial.number] = trial


def in_memory(spec: StudySpec) -> Ledger:
    """Make a study that is not stored, to see what a sampler would draw."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, directions=_directions(spec))
    return Ledger(study, storage, spec)


def _directions(spec: StudySpec) -> list[Literal["maximize", "minimize"]]:
    return [DIRECTIONS[objective.direction] for objective in spec.objectives]


@contextmanager
def opened(ref: StudyRef, spec: StudySpec) -> Iterator[Ledger]:
    """Open a study to be driven by this process alone, creating it if there is none.

    Raises AlreadyDriven when another process drives it, and ConfigError when it was made for
    another search, from other data, with other directions, or timed on another machine.
    """
    import optuna
    from sqlalchemy import event

    from moist.study.sole_writer import SoleWriter

    with ref.translated_errors(), lease(ref) as held, ExitStack() as stack:
        database = open_storage(ref, write=True)
        stack.callback(database.engine.dispose)
        event.listen(database.engine, "commit", lambda _: held())
        storage = SoleWriter(database)
        with turn(ref):
            study = optuna.create_study(
                study_name=ref.name,
                storage=storage,
                directions=_directions(spec),
                load_if_exists=True,
            )
        spec = continued(ref, study, spec)
        _check_directions(study, spec)
        stored = spec.model_dump(mode="json")
        if stored != study.user_attrs.get(FACTS):
            study.set_user_attr(FACTS, stored)
        with writing(ref.home):
            (ref.home / "artifacts").mkdir(parents=True, exist_ok=True)
        yield Ledger(study, storage, spec, artifact_store(ref.home), held, storage.together)


def _check_directions(study: optuna.Study, spec: StudySpec) -> None:
    """Raise ConfigError for a study of other directions: Optuna would rank its trials by them."""
    found = [direction.name.lower() for direction in study.directions]
    if found != (wanted := _directions(spec)):
        raise ConfigError(
            f"study `{study.study_name}` exists with other directions: {', '.join(found)}; this"
            f" search needs {', '.join(wanted)} for {', '.join(map(str, spec.objectives))}",
            "choose another `--study`",
        )


def artifact_store(home: Path) -> ArtifactStore:
    """Return the folder of trials' files that optuna-dashboard shows."""
    from optuna.artifacts import FileSystemArtifactStore

    return FileSystemArtifactStore(home / "artifacts")
