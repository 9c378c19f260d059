"""What is removed is what nothing else refers to; what is in use is refused."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from shell import Said
from toy import ref

from moist.errors import ConfigError, StoreError
from moist.store.objects import ObjectStore
from moist.store.runs import Run, RunRecords
from moist.study.ledger import opened
from moist.study.removal import plan_removal
from moist.study.storage import load, names


@pytest.fixture(scope="module")
def home(trained) -> Path:
    """A home of which nothing is removed: the study `four`, one run of which is older than it."""
    return trained()


def outputs(runs: list[Run]) -> set[str]:
    return {key for run in runs for keys in run.artifacts.values() for key in keys}


def older(home: Path) -> str:
    """Return the key of the run that was there before the study."""
    return RunRecords(home).all()[-1].key


def files(home: Path) -> list[Path]:
    return sorted(path for path in home.rglob("*") if path.suffix != ".lock")


def test_a_study_goes_with_its_own_runs_and_what_only_they_used(trained, capsys):
    home = trained()
    kept, study, before = older(home), ref(home, "four"), RunRecords(home).all()
    spec, _ = load(study)
    with opened(replace(study, name="four.reseed"), spec):  # the study of its members' new seeds
        pass
    said = Said(capsys, "rm", "four", "--yes", "--home", home)
    assert said.code == 0 and "3 runs" in said.out and "1 run kept" in said.out
    left = RunRecords(home).all()
    assert [run.key for run in left] == [kept] and names(study) == []
    stored = set(ObjectStore(home).keys())
    assert outputs(left) <= stored and not stored & (outputs(before) - outputs(left))
    for folder in ("logs", "plots", "artifacts"):
        assert not [path for path in (home / folder).rglob("*") if path.is_file()]
    assert Said(capsys, "rm", "last", "--yes", "--home", home).code == 0
    assert not RunRecords(home).all() and not ObjectStore(home).keys()


@pytest.mark.parametrize("words", [["--dry-run"], ["--dry-run", "--json"], []])
def test_nothing_is_removed_without_a_yes(home, capsys, monkeypatch, words):
    before = files(home)
    monkeypatch.setattr(sys, "stdin", io.StringIO("no\n"))
    said = Said(capsys, "rm", "four", *words, "--home", home)
    assert said.code == (0 if words else 1) and files(home) == before
    assert "runs" in said.out and ("nothing was changed" in said.err) == (not words)


def test_the_run_of_a_study_goes_only_with_the_study(home):
    key = older(home)
    with pytest.raises(ConfigError, match="is a trial of study `four`") as refused:
        plan_removal([key[:8]], ref(home))
    assert f"moist rm four {key[:8]}" in refused.value.hint
    both = plan_removal(["four", key[:8]], ref(home))
    assert key in both.runs and not both.kept and len(both.runs) == 4


def test_a_driven_study_and_a_run_that_is_computed_now_are_refused(trained):
    home = trained()
    study = ref(home, "four")
    spec, trials = load(study)
    with opened(study, spec), pytest.raises(StoreError, match="study `four` is driven by process"):
        plan_removal(["four"], study)
    key = RunRecords(home).find(trials[-1].key or "").artifacts["train_jointly"][0]
    with (
        ObjectStore(home).locked(key),
        pytest.raises(StoreError, match=f"`{key[:8]}`.* is computed by process"),
    ):
        plan_removal(["four"], study)
    ObjectStore(home).discard(key)  # as while it is computed for the first time, free again
    assert key not in {entry.key for entry in plan_removal(["four"], study).outputs}


def test_a_damaged_record_is_removed_by_its_key(trained, capsys):
    home = trained()
    path = RunRecords(home).path("ffff0000")
    path.write_text("{}")
    assert Said(capsys, "rm", "ffff", "--yes", "--home", home).code == 0
    assert not path.exists() and len(RunRecords(home).all()) == 4


def test_a_word_that_means_nothing_is_answered_with_the_nearest_study(home):
    with pytest.raises(ConfigError, match="no study is called `fuor`") as refused:
        plan_removal(["fuor"], ref(home))
    assert refused.value.hint == "did you mean `four`?"
