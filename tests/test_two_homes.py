"""Two machines without a common disk, but with a store on an S3 server."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import MOIST, Forked
from forked import moist as run_moist
from s3 import BUCKET, serving
from shell import of_nobody
from tiny import STUDY, TINY, searched

from moist.store.maintenance import entries, verify
from moist.store.objects import ObjectStore
from moist.store.remote import Remote
from moist.store.runs import RunRecords

pytestmark = pytest.mark.slow
URL = f"s3://{BUCKET}/moist"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of someone who may use the server."""
    with serving() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield of_nobody(tmp_path_factory.mktemp("nobody"), **found)


@pytest.fixture(scope="module")
def filled(environment: dict[str, str], trained: Callable[[], Path]) -> Remote:
    """The store after a machine that had computed everything ran with it; it computes nothing."""
    home = trained()
    done = run_moist(
        "run", *TINY, "--store", URL, "--home", home, "--threads", 1, "--json", env=environment
    )
    assert done.returncode == 0 and json.loads(done.stdout)["computed"] == {}, done.stderr
    return Remote(URL)


def paths(store: Remote, name: str) -> list[str]:
    return [path for path in store.fs.find(f"{store.root}/objects") if name in path]


def test_an_empty_home_with_the_same_store_computes_nothing(filled, environment, tmp_path):
    words = [*TINY, "--store", URL, "--home", tmp_path, "--threads", 1]
    planned = run_moist("plan", *words, env=environment).stdout.splitlines()
    assert "0 of 12 stages to compute" in planned
    assert planned[-1] == f"12 to pull from {URL}"
    done = run_moist("run", *words, "--json", env=environment)
    assert done.returncode == 0 and json.loads(done.stdout)["computed"] == {}, done.stderr
    lines = done.stderr.splitlines()
    assert sum(f"pulled from {URL}, " in line for line in lines) == 12
    assert not paths(filled, ".pkl") and len(entries(ObjectStore(tmp_path))) == 12


def test_an_object_that_was_cut_in_the_store_is_computed_again_by_a_sweep_and_repaired(
    filled, environment, tmp_path
):
    manifests = {
        json.loads(filled.fs.cat_file(path))["stage"]: path
        for path in paths(filled, "manifest.json")
    }
    folder = manifests["distill_student"].rpartition("/")[0]
    (path,) = (path for path in paths(filled, "tensors") if path.startswith(folder))
    whole = filled.fs.cat_file(path)
    filled.fs.pipe_file(path, whole[:-1000])
    (tmp_path / "one.yaml").write_text(searched("grid", k="value: 2", width="value: 32"))
    words = ["sweep", "optuna", tmp_path / "one.yaml", "--store", URL, "--home", tmp_path / "home"]
    dry = run_moist(*words, "--dry-run", "--threads", 1, env=environment)
    assert "12 distinct, 0 to compute, 12 to pull from the shared store" in dry.stdout
    done = run_moist(*words, "--threads", 1, env=environment)
    assert done.returncode == 0, done.stderr
    assert "1 stage computed in" in done.stdout and f"; 11 pulled from {URL}" in done.stdout
    assert f"in `{URL}` is damaged (tensors.safetensors: " in done.stderr
    assert len(filled.fs.cat_file(path)) == len(whole)


LONG = {"teacher": 1, "distill": 150, "routing": 1, "joint": 1}
"""The first stage that stores an epoch before its last is the one to be preempted in."""


def preempted(process: Forked, reached: Callable[[], bool]) -> None:
    process.until(reached)
    process.signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, process.err
    assert "terminated; finished work and checkpoints are kept" in process.err


def steps(home: Path) -> list[Path]:
    return list(home.glob("partial/*/step-*"))


def test_a_job_preempted_in_a_stage_is_continued_by_the_same_command_on_another_machine(
    environment, tmp_path
):
    shared = ["--store", f"s3://{BUCKET}/job", "--storage", f"sqlite:///{tmp_path}/studies.db"]
    (tmp_path / "job.yaml").write_text(searched("grid", k="value: 2", width="value: 32", **LONG))
    words = [*MOIST, "sweep", "optuna", tmp_path / "job.yaml", *shared, "--threads", 1]
    first = Forked([*words, "--home", tmp_path / "a"], env=environment)
    preempted(first, lambda: bool(steps(tmp_path / "a")))
    (key,) = {path.parent.name for path in steps(tmp_path / "a")}
    store = Remote(f"s3://{BUCKET}/job")
    about = json.loads(store.fs.cat_file(f"{store.root}/partial/{key}/newest.json"))
    assert (tmp_path / "a" / "partial" / key / about["file"]).exists()
    second = Forked([*words, "--home", tmp_path / "b"], env=environment)
    assert second.wait() == 0, second.err
    assert not store.fs.find(f"{store.root}/partial")
    assert ObjectStore(tmp_path / "b").manifest(key).seconds > about["seconds"]
    status = run_moist("sweep", "status", "job", *shared[2:], "--json", env=environment)
    (trial,) = json.loads(status.stdout)["trials"]
    assert trial["state"] == "complete" and trial["attempts"] == []
    alone = Forked([*words[:-6], "--threads", 1, "--home", tmp_path / "c"], env=environment)
    assert alone.wait() == 0, alone.err
    found = {}
    for home in "bc":
        objects = ObjectStore(tmp_path / home)
        found[home] = {
            key: objects.manifest(key).files
            for key in objects.keys()
            if objects.manifest(key).stage in {"train_teacher", "distill_student", "train_jointly"}
        }
    assert len(found["b"]) == 3
    assert {k: v["tensors.safetensors"] for k, v in found["b"].items()} == {
        k: v["tensors.safetensors"] for k, v in found["c"].items()
    }


def test_a_sweep_whose_store_goes_away_says_so_and_is_completed(tmp_path):
    home, file = tmp_path / "home", tmp_path / "four.yaml"
    file.write_text(STUDY)
    words = ["sweep", "optuna", file, "--home", home, "--threads", 1, "--json", "--store", URL]
    with serving() as found:
        driving = Forked([*MOIST, *words], env=of_nobody(tmp_path / "nobody", **found))
        driving.until(lambda: RunRecords(home).all())
    assert driving.wait() == 0, driving.err
    assert "can't reach the store" in driving.err and "Traceback" not in driving.err
    trials = json.loads(driving.out)["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 4
    assert verify(ObjectStore(home)) == []
