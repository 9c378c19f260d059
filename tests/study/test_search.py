"""Searches of real trials, which share their stages, and plans of them."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import acme
import pytest
import torch
from PIL import Image
from recipes import weights
from shell import Said
from toy import ref

from moist.config import Config
from moist.config.overrides import parse
from moist.env import Env, Silent, make_env
from moist.errors import ConfigError, DataError, StageError
from moist.pipeline import run, stages
from moist.results.objectives import DEFAULT, QUANTITIES, SPREAD, TRAINED, quantities
from moist.store import maintenance
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.runs import RunRecords
from moist.store.store import Store
from moist.study.costs import CostEstimator
from moist.study.executor import Task
from moist.study.ledger import opened
from moist.study.samplers import Untried, suggest
from moist.study.search import (
    TRIALS,
    SearchPlan,
    check_start,
    plan_search,
    requested_trials,
    search,
)
from moist.study.settings import SearchResult, Settings
from moist.study.spec import check_content, study_spec, sweep_of
from moist.study.trainer import Trainer
from moist.study.workers import Slot, machine_of, make_slots
from moist.sweepfile import Sweep, config_of, read_sweep
from moist.sweepfile import grid as points_of

SWEEPS = Path(__file__).parents[2] / "sweeps"
TINY = [
    "data.name=digits", "teacher.arch=resnet8", "student.channels=4,8", "hidden_width=16",
    "router=linear", "precision=float32", "distill.views=1", "latency.repeats=10",
    "latency.seconds=0.01",
    *(f"{section}.epochs=1" for section in ("teacher", "distill", "routing", "joint")),
]  # fmt: skip
GRID = """
program: moist
method: grid
command: ["${env}", moist, run, "${args_no_hyphens}"]
parameters:
  k: {values: [2, 3]}
  temperature: {values: [2.0, 4.0]}
"""
POINTS = [{"k": k, "temperature": t} for k in (2, 3) for t in (2.0, 4.0)]


@dataclass(frozen=True)
class Study:
    """A small grid over the smallest networks, in a home."""

    home: Path
    sweep: Sweep

    def arguments(self, trials: int, **settings: Any) -> dict[str, Any]:
        return {
            "ref": ref(self.home, self.sweep.name),
            "sweep": self.sweep,
            "spec": study_spec(self.sweep, DEFAULT, 0, "moist sweep optuna some.yaml"),
            "settings": Settings(trials, best={}, **settings),
            "slots": make_slots("cpu", 2, 1),
        }

    def plan(self, trials: int, **settings: Any) -> SearchPlan:
        return plan_search(**self.arguments(trials, **settings))

    def keys(self, points: Iterable[dict[str, Any]]) -> set[str]:
        """Return the stages of some points."""
        plan = Plan(self.home, Env(torch.device("cpu")))
        for point in points:
            stages(config_of(self.sweep, point), plan)
        return {call.key for call in plan.calls}

    def search(self, trials: int, **settings: Any) -> SearchResult:
        return search(**self.arguments(trials, **settings))


def grid(home: Path, text: str = GRID, name: str = "some") -> Study:
    home.mkdir(exist_ok=True)
    path = home / f"{name}.yaml"
    path.write_text(text)
    return Study(home, read_sweep(path, TINY))


def files(home: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in home.rglob("*")}


# what is computed, once


@dataclass(frozen=True)
class Searched:
    """A study searched in two starts, planned before each and after."""

    study: Study
    plans: list[SearchPlan]
    outcomes: list[SearchResult]
    objects: list[int]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    study = grid(tmp_path_factory.mktemp("searched"))
    plans, outcomes, objects = [study.plan(4)], [], []
    for trials in (1, 4):
        plans.append(study.plan(trials))
        outcomes.append(study.search(trials))
        objects.append(len(maintenance.entries(ObjectStore(study.home))))
    return Searched(study, [*plans, study.plan(4)], outcomes, objects)


@pytest.fixture
def home(searched: Searched, tmp_path: Path) -> Path:
    """Copy the home that was searched, with all its stages stored."""
    shutil.copytree(searched.study.home, tmp_path / "home")
    return tmp_path / "home"


def test_a_plan_lists_exactly_what_is_then_computed_and_nothing_is_computed_twice(searched):
    whole, first, second, after = searched.plans
    one, two = (outcome.stats.computed for outcome in searched.outcomes)
    assert (one, two) == (len(first.missing), len(second.missing))
    assert (
        one + two
        == len(whole.missing)
        == whole.record()["stages_distinct"]
        == searched.objects[-1]
    )
    assert searched.objects == [one, one + two]
    assert (whole.trials, first.trials, second.trials, after.trials) == (4, 1, 3, 0)
    assert (first.complete, second.complete, after.complete) == (0, 1, 4)
    assert len(whole.calls) == 4 * len(first.calls) and not after.calls


def test_trials_share_what_their_configs_share(searched):
    """One teacher; a student a temperature; latency, clusters and router a number of students."""
    found: dict[str, int] = {}
    for entry in maintenance.entries(ObjectStore(searched.study.home)):
        found[entry.stage] = found.get(entry.stage, 0) + 1
    assert found == {
        "prepare": 1, "train_teacher": 1, "teacher_logits": 1, "distill_student": 2,
        "measure_latency": 2, "cluster_classes": 2, "pretrain_router": 2, "train_jointly": 4,
        "evaluate": 4 * 2 + 2 + 1,
    }  # fmt: skip


def test_statistics_add_up_to_what_is_stored(searched):
    stored = sum(entry.seconds for entry in maintenance.entries(ObjectStore(searched.study.home)))
    assert sum(one.stats.seconds for one in searched.outcomes) == pytest.approx(stored)
    for outcome in searched.outcomes:
        assert set(outcome.stats.outcomes) == {"trained"}
    trials = searched.outcomes[-1].trials
    assert sum(trial.saved for trial in trials) == pytest.approx(
        sum(one.stats.saved for one in searched.outcomes)
    )
    assert searched.outcomes[-1].stats.saved > 0 and len(trials) == 4


def test_a_trial_finds_what_a_single_run_finds(searched, tmp_path):
    trial = searched.outcomes[-1].trials[3]
    config = config_of(searched.study.sweep, trial.params)
    alone = run(config, Store(tmp_path, Env(torch.device("cpu"))))
    shared = RunRecords(searched.study.home).get(str(trial.key))
    assert shared is not None and shared.report.timeless() == alone.timeless()
    assert trial.quantities == quantities(shared.report)
    assert trial.values == {name: trial.quantities[name] for name in ("accuracy", "mflops")}


def test_every_point_of_the_grid_has_a_trial_whose_command_repeats_it(searched):
    trials = searched.outcomes[-1].trials
    assert [trial.params for trial in trials] == POINTS
    for trial in trials:
        words = str(trial.command).split()
        assert words[:2] == ["moist", "run"]
        assert parse(words[2:]) == config_of(searched.study.sweep, trial.params)
        assert set(trial.curves) == {"distill_student", "train_jointly"}


def test_without_reuse_every_trial_is_planned_to_compute_all_its_stages(home):
    study = grid(home, name="another")
    assert study.plan(4).missing == []
    one, four = (study.plan(trials, reuse=False) for trials in (1, 4))
    assert four.trials == 4 and len(four.missing) == len(four.calls) == 4 * len(one.calls)
    assert four.expected.seconds == pytest.approx(4 * one.expected.seconds, rel=0.5)


def test_a_plan_expects_times_from_comparable_stages(searched):
    whole, _, second, _ = searched.plans
    before, after = whole.record(), second.record()
    assert before["seconds"] is None
    assert before["stages_without_comparable"] == before["stages_to_compute"]
    assert 0 < after["seconds_low"] < after["seconds"] < after["seconds_high"]
    assert after["stages_without_comparable"] == 0


# plans


def test_a_plan_writes_nothing(tmp_path):
    study = grid(tmp_path)
    before = files(tmp_path)
    assert study.plan(4).trials == 4
    assert files(tmp_path) == before


def test_a_plan_of_a_study_that_was_begun_writes_nothing_either(home):
    study, before = grid(home), files(home)
    assert study.plan(4).complete == 4
    assert files(home) == before


def test_a_plan_of_a_random_search_draws_what_the_search_draws(home):
    text = GRID.replace("method: grid", "method: random")
    study = grid(home, text.replace("{values: [2.0, 4.0]}", "{min: 1.0, max: 9.0}"), "random")
    for trials in (1, 3):
        found = study.plan(trials)
        assert 0 < len(found.missing) == study.search(trials).stats.computed
    assert study.plan(3).trials == 0


def test_a_plan_starts_with_trials_that_were_begun_or_requeued(home):
    """Of three trials one was lost with its driver and one is to be retried."""
    study = grid(home, name="begun")
    spec = study.arguments(4)["spec"]
    with opened(ref(home, "begun"), spec) as ledger:
        for index in range(3):
            sampler = Untried(study.sweep, "grid", index, ledger.tried)
            ledger.ask(sampler, partial(suggest, study.sweep), {})
        ledger.fail(1, "no luck")
        ledger.complete(2, {"accuracy": 0.5, "mflops": 1.0})
        assert ledger.retry_failed() == [1]
    for trials in (1, 2, 3):
        found = study.plan(trials)
        assert (found.trials, found.complete, found.missing) == (2, 1, [])
        assert {call.key for call in found.calls} == study.keys(POINTS[:2])
    found = study.plan(99)
    assert (found.trials, found.complete) == (3, 1)
    assert {call.key for call in found.calls} == study.keys([*POINTS[:2], POINTS[3]])


def test_a_plan_skips_conflicting_values(tmp_path):
    entries = ["joint.mask_students: {values: [true, false]}",
               "joint.objective: {values: [switch, students_only]}"]  # fmt: skip
    study = grid(tmp_path, "\n  ".join([GRID.rstrip(), *entries]))
    points = [point for point in points_of(study.sweep) if valid(study.sweep, point)]
    assert 0 < len(points) < 16
    assert study.plan(99).trials == len(points)


def valid(sweep: Sweep, point: dict[str, Any]) -> bool:
    try:
        config_of(sweep, point)
    except ConfigError:
        return False
    return True


def test_a_plan_ends_with_the_last_point(tmp_path):
    assert grid(tmp_path).plan(99).trials == 4


# estimates


@dataclass
class Pauses:
    """Stands for paused workers, and keeps what was stored when they were paused."""

    home: Path
    stored: list[set[str]]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.stored.append({entry.stage for entry in maintenance.entries(ObjectStore(self.home))})
        yield


def estimator(home: Path, reuse: bool = True) -> tuple[CostEstimator, Pauses]:
    pauses = Pauses(home, [])
    return CostEstimator(Store(home, Env(torch.device("cpu"))), reuse, pauses), pauses


def tiny(*overrides: str) -> Config:
    return parse([*TINY, *overrides])


def test_workers_are_paused_once_for_each_architecture_that_is_timed(tmp_path):
    """And not while the data are prepared: one of them may hold their lock."""
    estimate, pauses = estimator(tmp_path)
    for overrides in ("k=2", "k=2 temperature=3", "k=2 seed=5", "k=3", "k=3 distill.alpha=0.1"):
        found = estimate(tiny(*overrides.split())).measured().quantities
        assert found.keys() == QUANTITIES.keys() - TRAINED | {SPREAD}
    assert pauses.stored == [{"prepare"}, {"prepare", "measure_latency"}]


def test_what_can_be_counted_is_known_before_anything_is_timed(tmp_path):
    estimate, pauses = estimator(tmp_path)
    found = estimate(tiny("k=2"))
    assert found.quantities.keys() == QUANTITIES.keys() - TRAINED - {"latency_ms"}
    assert pauses.stored == [] and {
        one.stage for one in maintenance.entries(ObjectStore(tmp_path))
    } == {"prepare"}


def test_no_worker_is_paused_for_a_latency_that_the_trial_measures(tmp_path):
    estimate, pauses = estimator(tmp_path)
    assert estimate(tiny("k=auto")).measured().quantities == {}
    afresh, still = estimator(tmp_path, reuse=False)
    assert afresh(tiny()).measured().quantities.keys() == QUANTITIES.keys() - TRAINED - {
        "latency_ms"
    }
    assert pauses.stored == still.stored == []


def test_a_trial_elsewhere_reports_the_latency_that_the_driver_measured(tmp_path):
    """And measures none itself; another number of threads is another machine."""
    try:
        there = make_env(Silent(), "cpu", 2)
        machine = there.machine()
        measured = CostEstimator(Store(tmp_path, there))(tiny("k=2")).measured().quantities
    finally:
        torch.set_num_threads(1)
    sent: list[Any] = []
    task = Task(0, tiny("k=2"), "moist run", timed_on=machine)
    Trainer(tmp_path)(sent.append, task, "cpu", 1)
    found = quantities(sent[-1].report)
    assert {name: found[name] for name in measured} == measured
    with pytest.raises(StageError, match=r"2 threads.* has not timed this model"):
        Trainer(tmp_path)(sent.append, replace(task, config=tiny("k=3")), "cpu", 1)


def test_an_estimate_has_the_runs_key_and_each_of_its_stages_once(home, tmp_path):
    config = tiny("k=2", "router=oracle")
    new = estimator(tmp_path)[0].plan(config)
    assert new.quantities == {} and maintenance.entries(ObjectStore(tmp_path)) == []
    store = Store(home, Env(torch.device("cpu")))
    assert new.key == run(config, store).key
    keys = dict.fromkeys(call.key for call in store.calls)
    assert [call.key for call in new.calls] == list(keys) and len(keys) < len(store.calls)
    stored, afresh = (estimator(home, reuse)[0].plan(config) for reuse in (True, False))
    for found, reused in ((new, False), (stored, True), (afresh, False)):
        assert {call.reused for call in found.calls} == {reused}


def test_a_config_that_can_not_work_on_the_data_fails_before_any_training(tmp_path):
    with pytest.raises(ConfigError, match="`k=11`"):
        estimator(tmp_path)[0](tiny("k=11"))


# what a search is


@pytest.mark.parametrize("name", ["router_size", "quickstart"])
def test_a_search_is_rebuilt_without_its_file(name):
    sweep = read_sweep(SWEEPS / f"{name}.yaml", ["data.name=folder", "data.root=some"])
    again = sweep_of(study_spec(sweep, DEFAULT, 3, "moist"), sweep.name)
    assert again.parameters == sweep.parameters and again.fixed == sweep.fixed
    assert again.method == sweep.method


def test_where_the_data_are_is_no_part_of_what_is_searched():
    here, there = (
        study_spec(read_sweep(SWEEPS / "width.yaml", [f"data.root={root}"]), DEFAULT, 0, "moist")
        for root in ("here", "there")
    )
    assert here.facts == there.facts and here.where != there.where


@pytest.mark.parametrize(
    ("given", "changes", "expected"),
    [
        (7, {"run_cap": 5}, 7),
        (None, {"run_cap": 5}, 5),
        (None, {}, 4),
        (None, {"method": "random"}, TRIALS),
    ],
)
def test_the_number_of_trials_is_the_given_one_else_the_files_else_the_grids(
    tmp_path, given, changes, expected
):
    assert requested_trials(replace(grid(tmp_path).sweep, **changes), given) == expected


def test_workers_share_out_devices_and_threads():
    found = make_slots("cpu,meta", 3, 5)
    assert [(one.device, one.threads) for one in found] == [("cpu", 5), ("meta", 5), ("cpu", 5)]
    assert all(one.threads >= 1 for one in make_slots("cpu", 999, None))


@pytest.mark.parametrize("devices", ["cpu,cuda:99", "abacus", "cpu,"])
def test_a_missing_device_raises_an_error_before_any_worker_starts(devices):
    with pytest.raises(ConfigError, match=f"`--device {devices.split(',')[-1]}`"):
        make_slots(devices, 1, 1)


def test_a_study_stores_its_machine_when_it_needs_a_latency_and_only_then():
    found, other = (
        machine_of(make_slots("cpu", 2, threads), {"latency_ms"}) for threads in (1, 2)
    )
    assert found == Env(torch.device("cpu")).machine().model_copy(update={"threads": 1})
    assert other == found.model_copy(update={"threads": 2})
    assert machine_of(make_slots("cpu", 2, 1), {"mflops"}) is None


def test_latencies_of_one_study_are_not_measured_on_workers_that_differ():
    with pytest.raises(ConfigError, match=r"1 threads.* and .*2 threads"):
        machine_of([Slot("cpu", 1), Slot("cpu", 2)], {"latency_ms"})


def test_a_plan_reports_data_that_are_not_downloaded_yet(tmp_path):
    grid(tmp_path)
    sweep = read_sweep(tmp_path / "some.yaml", [*TINY, "data.name=cifar10"])
    with pytest.raises(DataError, match="moist data prepare cifar10"):
        Study(tmp_path, sweep).plan(1)


def images(root: Path, classes: int, each: int = 4) -> Path:
    """Write a folder data set of small images; return its root."""
    for split in ("train", "test"):
        for name in range(classes):
            for number in range(each):
                path = root / split / f"class{name}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 10 * name + number).save(path)
    return root


def test_a_study_is_continued_only_on_the_data_and_the_weights_that_it_was_made_from(tmp_path):
    here, file = images(tmp_path / "here", 3), weights(tmp_path / "teacher.pth", 3, 3)
    path = tmp_path / "some.yaml"
    path.write_text(GRID)

    def study(root: Path, file: Path = file) -> Study:
        words = ["data.name=folder", f"data.root={root}", f"teacher.weights={file}"]
        return Study(tmp_path, read_sweep(path, [*TINY, *words]))

    made = study(here).arguments(1)
    spec, *_ = check_start(*(made[name] for name in ("ref", "sweep", "spec", "settings")))
    with opened(made["ref"], spec):  # the study exists from here on
        pass
    assert study(here).plan(1).trials == 1
    shutil.copytree(here, tmp_path / "copy")
    (tmp_path / "more").mkdir()
    shutil.copy(file, tmp_path / "more" / "renamed.pth")
    assert study(tmp_path / "copy", tmp_path / "more" / "renamed.pth").plan(1).trials == 1

    there = images(tmp_path / "there", 5)
    with pytest.raises(ConfigError, match=r"other data: .*3 classes, 24 im.*; now .*5 classes"):
        study(there).plan(1)
    (here / "train" / "class0" / "0.png").unlink()
    with pytest.raises(ConfigError, match=r"24 images \(content \w+\); now .*23 images"):
        study(here).plan(1)
    weights(file, 3, 3, seed=1)
    with pytest.raises(ConfigError, match=r"other teacher.weights: weights of content \w+; now"):
        study(tmp_path / "copy").plan(1)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("value: none.pth", r"can't read teacher.weights `.*none.pth`: No such"),
        ("values: [none.pth, fits.pth]", r"can't read teacher.weights `.*none.pth`: No such"),
        ("value: page.pth", "it is a web page"),
        ("values: [fits.pth, page.pth]", "it is a web page"),
        ("value: four.pth", "does not fit teacher.arch=resnet8 on 10 classes"),
        (
            "values: [four.pth, five.pth]",
            r"4 of 4 points .*`k=2 .*=four.pth`: `four.pth` does not",
        ),
    ],
)
def test_a_search_does_not_begin_with_weights_that_fail_every_trial(
    form: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("page.pth").write_text("<html>")
    for name, classes in (("fits", 10), ("four", 4), ("five", 5)):
        weights(Path(f"{name}.pth"), classes=classes)
    text = GRID.replace("temperature: {values: [2.0, 4.0]}", f"teacher.weights: {{{form}}}")
    study = grid(tmp_path / "home", text)
    for start in (study.plan, study.search):
        with pytest.raises(ConfigError, match=said):
            start(1)
    assert files(study.home).keys() == {study.sweep.path}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (
            "k: {values: [11, 12]}",
            "4 of 4 points of the space .*`k=11 temperature=2.0`: `k=11` is",
        ),
        ("k: {value: 11}", "^`k=11` is more clusters"),
        ("k: {min: 11, max: 99}", r"178 of 178 points of .*`k=11 temperature=2.0`"),
        (
            "k: {min: 11, max: 900}",
            r"100 of 100 points drawn at random .*`k=\d+ temperature=[24].0`",
        ),
        ("data.image_size: {values: [2, 3]}", "4 of 4 .*poolings leave nothing of 2x2 images"),
        (
            "augment.shift: {values: [8, 9]}",
            "4 of 4 .*`augment.shift=8` is too far for 8x8 images",
        ),
    ],
)
def test_a_search_of_which_no_point_can_run_on_the_data_does_not_begin(
    entry: str, said: str, tmp_path: Path
) -> None:
    study = grid(tmp_path, GRID.replace("k: {values: [2, 3]}", entry))
    for start in (study.plan, study.search):
        with pytest.raises(ConfigError, match=said):
            start(1)


def test_points_that_can_not_run_are_counted_with_an_example(tmp_path: Path) -> None:
    study = grid(tmp_path, GRID.replace("[2, 3]", "[2, 11, 12]") + "  augment.shift: {value: 9}\n"
                 "  data.image_size: {values: [16]}\n")  # fmt: skip
    made = study.arguments(1)
    *_, warning = check_start(*(made[name] for name in ("ref", "sweep", "spec", "settings")))
    expected = "4 of 6 points of the space can't run, for example `k=11 temperature=2.0 data.image"
    assert warning.startswith(expected)
    assert study.plan(99).trials == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [("k=11 --study new", "`k=11` is more"), ("temperature=3", "was made for another search")],
)
def test_a_start_is_refused_before_it_says_how_it_tracks(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = grid(tmp_path)
    made = study.arguments(1)
    with opened(made["ref"], made["spec"]):
        pass
    command = ["sweep", "optuna", study.sweep.path, *TINY, *words.split(), "--wandb", "offline"]
    found = Said(capsys, *command, "--home", tmp_path)
    assert found.code == 2 and found.err.startswith("error: ") and said in found.err


def test_a_study_is_not_continued_with_another_version_of_a_package(tmp_path: Path) -> None:
    site, file = tmp_path / "site", tmp_path / "routers.yaml"
    file.write_text("method: grid\nparameters:\n  router: {values: [linear, mlp]}\n")
    found = []
    for version in ("1.0", "2.0"):
        acme.install(site, version=version)
        with acme.installed(site):
            sweep = read_sweep(file, TINY[:4])
            spec = study_spec(sweep, DEFAULT, 0, "moist sweep optuna routers.yaml")
            found.append(check_start(ref(tmp_path), sweep, spec, Settings(trials=1))[0])
    check_content(ref(tmp_path), found[0], found[0])
    with pytest.raises(ConfigError, match=r"made from other packages: acme 1.0; now acme 2.0"):
        check_content(ref(tmp_path), *found)
