"""Queries of a study through W&B, from files or its server, equal those of its database."""

import json
import re
import shlex
import sys
from pathlib import Path

import forked
import pytest
import toy
from tracked import log, offline, writing
from wandb_standin import Client, Server

from moist.cli.main import main
from moist.errors import ConfigError
from moist.results.objectives import DEFAULT
from moist.results.trials import Trial
from moist.study.events import StudyOpened, TrialEnded
from moist.study.storage import load as load_study
from moist.study.tracking import WandbObserver, about_of
from moist.tracking.files import LoggedRun
from moist.tracking.results import load, trials_of


def fail(message: str) -> None:
    raise AssertionError(message)


def trials_in(source: Path | str, group: str | None = None) -> list[Trial]:
    return load(str(source), group, DEFAULT, fail)[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A study with a failed trial, logged to W&B: its trials in any order, and its own run."""
    home = tmp_path_factory.mktemp("home")
    toy.search(toy.Start(home, 6, script={2: toy.FAIL}, retries=0))
    spec, trials = load_study(toy.ref(home))
    with offline(home) as tracker:
        observer = WandbObserver(tracker)
        observer.observe(StudyOpened("toy", spec, 6))
        for trial in reversed(trials):
            observer.observe(TrialEnded(trial, "trained"))
        tracker.open(about_of("toy", spec, "study", "study", {})).end("complete")
    return home


@pytest.fixture
def ask(capsys, home):
    """Run a command in this process, and return what it prints."""

    def run_command(*words: object) -> str:
        before, sys.argv = sys.argv, ["moist", *map(str, words), "--home", str(home)]
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            sys.argv = before
        found = capsys.readouterr()
        assert not ended.value.code, found.err
        return found.out

    return run_command


QUESTIONS = [
    [],
    ["--json"],
    ["--csv"],
    ["--x", "params", "--json"],
    ["--hypervolume"],
    ["--hypervolume", "--reference", "accuracy=0", "--reference", "mflops=600", "--json"],
]


@pytest.mark.parametrize("options", QUESTIONS, ids=" ".join)
def test_files_answer_what_the_study_answers(ask, home, options):
    through = ask("pareto", "--wandb", home / "wandb", *options)
    assert through == ask("pareto", "toy", *options)
    assert through.strip()


def test_a_study_and_its_files_are_one_in_a_comparison(ask, home):
    both = json.loads(ask("pareto", "toy", "--wandb", home, "--compare", "--json"))
    assert both["a"] == both["b"] and both["a"]["coverage"] == 1 and both["a"]["joint"]
    twice = json.loads(
        ask("pareto", *["--wandb", home] * 2, *["--group", "toy"] * 2, "--compare", "--json")
    )
    assert twice == both


@pytest.mark.slow
def test_a_plot_is_drawn_of_files(ask, home, tmp_path):
    ask("pareto", "--wandb", home, "--plot", tmp_path / "front.svg")
    assert "Pareto frontier of toy" in (tmp_path / "front.svg").read_text()


def test_every_trial_is_read_back_as_it_was_logged(home):
    before = load_study(toy.ref(home))[1]
    after = trials_in(home)
    assert [trial.state for trial in after].count("failed") == 1 and len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        assert one.model_dump() == other.model_dump()


@pytest.mark.slow
def test_the_server_answers_what_files_answer(ask, home, wandb_server: Server, tmp_path):
    client = Client(wandb_server, tmp_path)
    client.wandb("sync", *map(str, (home / "wandb").glob("offline-run-*")))
    before = len(wandb_server.operations)
    words = ["pareto", "--json", "--wandb"]
    found = forked.moist(*words, "tester/moist", env=client.environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout == ask("pareto", "--wandb", home, "--json")
    assert wandb_server.operations[before:].count("Runs") == 1
    missing = forked.moist(*words, "tester/other", env=client.environment)
    assert missing.returncode == 2 and "`tester/other`" in missing.stderr


@pytest.mark.slow
def test_a_sweeps_runs_have_the_parameters_that_it_searches(wandb_server: Server, tmp_path):
    client = Client(wandb_server, tmp_path, WANDB_PROJECT="p")
    path = client.sweep("""
program: train.py
method: grid
parameters: {k: {values: [2, 3]}, seed: {value: 1}, hidden_width: {values: [8]}}
""")
    agent = Client(wandb_server, tmp_path, WANDB_PROJECT="p", WANDB_SWEEP_ID=path.split("/")[2])
    agent.python("""
import wandb
for k in (2, 3):
    with wandb.init(config={"k": k, "seed": 1, "hidden_width": 8}, reinit="create_new") as run:
        run.summary["objective/accuracy"] = k / 10
        run.summary["objective/mflops"] = k
""")
    code = f"""
from moist.results.objectives import DEFAULT
from moist.tracking.results import load
for trial in load({path!r}, None, DEFAULT, print)[1]:
    print(trial.model_dump_json())
"""
    found = [json.loads(line) for line in client.python(code).splitlines()]
    assert [trial["params"] for trial in found] == [
        {"k": 2, "hidden_width": 8},
        {"k": 3, "hidden_width": 8},
    ]
    assert [trial["number"] for trial in found] == [0, 1]
    assert found[1]["values"] == {"accuracy": 0.3, "mflops": 3.0}


def test_runs_of_several_studies_are_distinguished_by_name(tmp_path):
    for study in ("one", "two"):
        values = {"objective/accuracy": 0.5, "objective/mflops": len(study)}
        log(tmp_path, f"{study}-00004", values=values, group=study, trial=4)
    with pytest.raises(ConfigError, match="runs of 2 studies: `one`, `two`"):
        trials_in(tmp_path)
    with pytest.raises(ConfigError, match=r"no runs of `three`.*\n.*`one`, `two`"):
        trials_in(tmp_path, "three")
    assert [trial.number for trial in trials_in(tmp_path, "two")] == [4]


def test_studies_of_one_name_are_distinguished_by_their_ids(tmp_path):
    for id in ("aaaa-00000", "bbbb-00000"):
        log(tmp_path, id, values={"objective/mflops": 1.0}, trial=0)
    with pytest.raises(ConfigError, match="`aaaa-00000` and `bbbb-00000`"):
        trials_in(tmp_path)
    assert len(trials_in(tmp_path, "bbbb")) == 1


@pytest.mark.slow
def test_a_run_that_is_not_done_is_in_no_frontier(tmp_path):
    values = {"objective/accuracy": 0.5, "objective/mflops": 1.0}
    for number, state in enumerate(("complete", "pruned", "failed", "killed")):
        log(tmp_path, state, state, values, trial=number)
    with writing(tmp_path, "running") as kill:
        trials = trials_in(tmp_path)
        states = [trial.state for trial in trials]
        assert states == ["complete", "pruned", "failed", "failed", "running"]
        assert [bool(trial.quantities) for trial in trials] == [True, False, False, False, False]
        assert trials[3].reason == "killed"
        kill()
    assert trials_in(tmp_path)[4].state == "failed"


def run(number: int, **config: object) -> LoggedRun:
    return LoggedRun(
        id=f"r{number}", name="", project=None, entity=None, group=None, job_type="run",
        sweep=None, tags=(),
        config=config, summary={"objective/accuracy": 0.5, "limit/mflops": 2.0}, state="finished",
        exit_code=0, started=f"{number}", paths=(),
    )  # fmt: skip


def test_runs_without_a_study_have_as_parameters_what_differs():
    runs = [run(0, k=2, router="cnn", moist="1"), run(1, k=3, router="cnn", moist="2")]
    assert [trial.params for trial in trials_of(runs, DEFAULT)] == [{"k": 2}, {"k": 3}]
    listed = [run(0, k=2, router="cnn", params=["router"])]
    assert trials_of(listed, DEFAULT)[0].params == {"router": "cnn"}


def test_a_run_beyond_a_limit_is_not_feasible():
    (trial,) = trials_of([run(0)], DEFAULT)
    assert trial.constraints == {"mflops": 2.0} and not trial.feasible


@pytest.mark.parametrize("source", ["nowhere", "a//b", "a/b/c/d"])
def test_a_source_that_does_not_exist_is_rejected(source):
    with pytest.raises(ConfigError, match=f"`--wandb {source}` is neither a folder"):
        trials_in(source)


def test_a_folder_without_runs_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="no runs of W&B in"):
        trials_in(tmp_path)


def test_the_command_on_a_plot_repeats_it(ask, home, tmp_path):
    ask("pareto", "--wandb", home, "--plot", tmp_path / "front.html")
    page = re.sub("</?span>", "", (tmp_path / "front.html").read_text())
    assert shlex.join(["moist", "pareto", "--wandb", str(home), "--group", "toy"]) in page
