"""Removal of runs and studies, and of the stored outputs that only these used."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moist.disk import warn, writing
from moist.errors import ConfigError, MoistError, StoreError, did_you_mean
from moist.store.keys import SHORT
from moist.store.maintenance import Entry, bytes_of, delete, entries
from moist.store.objects import ObjectStore
from moist.store.runs import Run, RunRecords, pick
from moist.study.leases import driver_of, lease
from moist.study.ref import StudyRef
from moist.study.storage import load, names, of_optuna, open_storage


@dataclass(frozen=True)
class Removal:
    """What is to be removed: studies with their number of trials, keys of runs, stored outputs.

    `files` are the records, logs, plots and attachments; `kept` the runs of the studies that were
    there before these, or that other studies refer to.
    """

    studies: tuple[tuple[StudyRef, int], ...]
    runs: tuple[str, ...]
    kept: tuple[str, ...]
    files: tuple[Path, ...]
    outputs: tuple[Entry, ...]

    @property
    def bytes(self) -> int:
        """Return the size of all files that are removed; the rows of a database have none."""
        return sum(map(bytes_of, self.files)) + sum(entry.bytes for entry in self.outputs)

    def record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "studies": {ref.name: trials for ref, trials in self.studies},
            "runs": self.runs,
            "runs_kept": self.kept,
            "outputs": [entry.key for entry in self.outputs],
            "bytes": self.bytes,
        }


def plan_removal(words: Sequence[str], anywhere: StudyRef) -> Removal:
    """Plan the removal of runs, by key, prefix or `last`, and of studies, by name.

    A study takes with it the runs that were made for it, and the study of its members under new
    seeds (`STUDY.reseed`). `anywhere` has the home and the database, its name is not read.

    Raises ConfigError for an unknown word and for a run that a remaining study refers to,
    StoreError for a study that is driven and a run that is computed now.
    """
    records, known = RunRecords(anywhere.home), names(anywhere)
    every = {run.key: run for run in records.all()}
    chosen, keys = _meant(words, known, records)
    chosen += [again for name in chosen if (again := f"{name}.reseed") in known]
    refs = {name: replace(anywhere, name=name) for name in known}
    studies = {name: load(refs[name]) for name in dict.fromkeys(chosen)}
    for name in studies:
        if driver := driver_of(refs[name]):
            raise StoreError(f"study `{name}` is driven by {driver}", "stop it, or await its end")
    users = {key: refs[name] for name in known if name not in studies for key in _keys(refs[name])}
    for key in keys:
        if key in users:
            raise ConfigError(
                f"run `{key[:SHORT]}` is a trial of study `{users[key].name}`",
                f"remove the study too: `{users[key].command('rm', key[:SHORT])}`",
            )
    kept: list[str] = []
    for spec, trials in studies.values():
        for key in dict.fromkeys(trial.key for trial in trials if trial.key in every):
            own = key not in users and every[key].created >= spec.created
            (keys if own else kept).append(key)
    keys = list(dict.fromkeys(keys))
    objects = ObjectStore(anywhere.home)
    outputs = _used(every[key] for key in keys if key in every)
    outputs -= _used(run for key, run in every.items() if key not in keys)
    for key in outputs:
        if process := objects.computed_by(key):
            raise StoreError(
                f"`{key[:SHORT]}`, an output of these runs, is computed by {process}",
                "stop it, or await its end",
            )
    return Removal(
        studies=tuple((refs[name], len(trials)) for name, (_, trials) in studies.items()),
        runs=tuple(keys),
        kept=tuple(key for key in dict.fromkeys(kept) if key not in keys),
        files=(
            *map(records.path, keys),
            *(path for name in studies for path in _files(refs[name])),
        ),
        outputs=tuple(entry for entry in entries(objects) if entry.key in outputs),
    )


def remove(planned: Removal, home: Path) -> None:
    """Remove what was planned: studies first, so that a study never lacks the runs it refers to.

    Raises AlreadyDriven for a study that has got a driver since, StoreError for a database or a
    file that can't be written.
    """
    for ref, _ in planned.studies:
        with ref.translated_errors(), lease(ref):
            storage = open_storage(ref, write=True)
            try:
                storage.delete_study(storage.get_study_id_from_name(ref.name))
            finally:
                storage.engine.dispose()
    with writing(home):
        for path in planned.files:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    delete(ObjectStore(home), planned.outputs)


def _meant(
    words: Iterable[str], known: Collection[str], records: RunRecords
) -> tuple[list[str], list[str]]:
    """Return the studies and the keys of runs that words mean, damaged records among these."""
    studies, keys = [], []
    stored = [path.stem for path in records.folder.glob("[!.]*.json")]
    for word in words:
        if word in known:
            studies.append(word)
        elif word in {"last", "latest"}:
            keys.append(records.find(word).key)
        elif any(key.startswith(word) for key in stored):
            keys.append(pick(word, stored, "runs"))
        else:
            raise ConfigError(
                f"no study is called `{word}`, and no run has a key that starts with it",
                did_you_mean(word, known, "`moist studies` and `moist runs` list them"),
            )
    return studies, keys


def _keys(ref: StudyRef) -> list[str]:
    """Return the keys of a study's runs; warn where it can't be read."""
    try:
        return [trial.key for trial in load(ref)[1] if trial.key]
    except MoistError as error:
        warn(f"which runs study `{ref.name}` refers to is not known: {error.args[0]}")
        return []


def _used(runs: Iterable[Run]) -> set[str]:
    """Return the keys of the outputs that runs used."""
    return {key for run in runs for keys in run.artifacts.values() for key in keys}


def _files(ref: StudyRef) -> list[Path]:
    """List a study's logs, its plot and the files attached to its trials."""
    from optuna.artifacts import get_all_artifact_meta

    study, home = of_optuna(ref), ref.home
    attached = [
        home / "artifacts" / meta.artifact_id
        for one in study.get_trials(deepcopy=False)
        for meta in get_all_artifact_meta(one, storage=study._storage)
    ]
    found = [home / "logs" / ref.name, home / "plots" / f"{ref.name}.html", *attached]
    return [path for path in found if path.exists()]
