"""The commands of sweeps and studies: their output and exit codes."""

import csv
import io
import json
import os
import re
import signal
import socket
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path

import optuna
import pytest
import toy
import yaml
from click.testing import CliRunner
from forked import MOIST, Forked
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from shell import Said
from sweep_texts import written
from tiny import STUDY

from moist.cli.main import cli
from moist.errors import ConfigError
from moist.reporting import study_tables
from moist.results.objectives import parse_objectives
from moist.results.trials import Trial
from moist.store.runs import RunRecords
from moist.study.ledger import opened
from moist.study.samplers import suggest
from moist.study.spec import FACTS, study_spec
from moist.sweepfile import Sweep, read_sweep

PATIENCE = 240.0


@pytest.fixture(scope="module")
def file(trained_once) -> Path:
    """The sweep file of the finished study."""
    return trained_once / "files" / "four.yaml"


@pytest.fixture(scope="module")
def home(trained) -> Path:
    """A home with a finished study of four trials."""
    return trained()


@pytest.fixture
def ask(home, capsys):
    """Run a command in the home of the finished study."""
    return lambda *words: Said(capsys, *words, "--home", home)


def test_restarting_a_finished_sweep_computes_nothing_and_prints_the_frontier(ask, file):
    said = ask("sweep", "optuna", file)
    assert said.code == 0 and "Pareto frontier of four" in said.out
    assert "4 trials in the study; now none" in said.out and "0 stages computed" in said.out
    assert "four: 4 of 4 trials complete before" in said.err
    command = said.out.splitlines()[-1].split()
    assert command[:3] == ["moist", "best", "four"] and command[-2] == "--home"
    best = ask(*command[1:], "--json").json
    assert best["trial"] in ask("pareto", "four", "--json").json


SPACES = {
    "k": st.sampled_from(
        [{"value": 2}, {"values": [2, 3]}, {"min": 1, "max": 3}, {"min": 3, "max": 1}]
    ),
    "router": st.sampled_from(
        [{"value": "oracle"}, {"values": ["linear", "oracle"]}, {"values": ["linear", "cnn"]}]
    ),
    "data.val_fraction": st.sampled_from(
        [{"value": 0}, {"values": [0, 0.1]}, {"min": 0.0, "max": 0.3}, {"min": 0.1, "max": 0.3}]
    ),
    "temperature": st.sampled_from(
        [{"min": 1.0, "max": 4.0}, {"distribution": "q_uniform", "min": 1, "max": 4, "q": 0.5},
         {"distribution": "log_uniform_values", "min": 0, "max": 4}]
    ),
    "joint.top": st.just({"values": [2, 3]}),
}  # fmt: skip
NAMES = ["some", "a study", ".some", "-some", "s" * 196, "s" * 220, "ö" * 110]


@given(
    st.fixed_dictionaries({}, optional=SPACES).filter(bool),
    st.sampled_from(["grid", "random"]),
    st.sampled_from([None, ["mflops", "params"], ["accuracy", "params"]]),
    st.sampled_from(NAMES),
)
@example({"router": {"value": "oracle"}, "data.val_fraction": {"value": 0}}, "grid", None, "a b")
@example({"data.val_fraction": {"values": [0, 0.1]}}, "random", ["mflops", "params"], "some")
@settings(max_examples=6, deadline=None)
def test_check_passes_what_a_sweep_starts_with_and_finds_all_else(
    tmp_path_factory, entries, method, metrics, name
):
    folder = tmp_path_factory.mktemp("sweeps")
    content = {
        "program": "moist",
        "method": "custom" if metrics else method,
        "command": ["${env}", "moist", "run", "${args_no_hyphens}"],
        "parameters": entries,
    }
    if metrics:
        content["scheduler"] = {"engine": "optuna"}
        content["metrics"] = [
            {"name": f"objective/{one}", "goal": "maximize" if one == "accuracy" else "minimize"}
            for one in metrics
        ]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    found = CliRunner().invoke(cli, ["sweep", "check", str(path)])
    words = ["--dry-run", "--trials", "1", "--quiet", "--home", str(folder)]
    started = CliRunner().invoke(cli, ["sweep", "optuna", str(path), *words])
    if found.exit_code == 0:
        assert started.exit_code == 0, started.exception
    else:
        assert found.exit_code == 2 and isinstance(started.exception, ConfigError)
        assert found.stdout == f"{started.exception.args[0]}\n"


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("router: {value: oracle}", "`router=oracle` knows each image's class"),
        ("router: {values: [cnn, oracle]}", "`router=oracle` knows each image's class"),
        ("data.val_fraction: {value: 0}", "`accuracy` is measured on validation images"),
        ("data.val_fraction: {min: 0.0, max: 0.1}", "`accuracy` is measured on validation"),
    ],
)
def test_values_that_no_study_may_have_are_problems(tmp_path, capsys, entry, problem):
    path = written(tmp_path, entry)
    said = Said(capsys, "sweep", "check", path)
    assert said.code == 2 and said.out.startswith(problem)
    assert (f"one run: `moist run @{path}`" in said.out) == ("value:" in entry)
    started = Said(capsys, "sweep", "optuna", path, "--home", tmp_path, "--quiet")
    assert started.code == 2 and started.err == f"error: {said.out}"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a/b", "`a/b` can't be a study's name"),
        ("../b", "`../b` can't be a study's name"),
        (".b", "`.b` can't be a study's name"),
        ("-b", "`-b` can't be a study's name"),
        ("a b", "`a b` can't be a study's name"),
        ("a\n", "can't be a study's name"),
        ("a\0b", "`--study=a\\0b` has a zero byte"),
        ("s" * 201, "`ssssssssssssssssssss...` is too long for a study's name: 201 bytes"),
        ("ö" * 101, "is too long for a study's name: 202 bytes"),
    ],
)
def test_a_name_that_can_not_be_a_files_is_rejected_before_anything_is_made(
    tmp_path, capsys, name, problem
):
    path = written(tmp_path, "k: {values: [2, 3]}")
    words = ["sweep", "optuna", path, f"--study={name}", "--home", tmp_path / "home"]
    for dry in ([], ["--dry-run"]):
        said = Said(capsys, *words, *dry)
        assert (said.code, said.out) == (2, "") and problem in said.err
    assert not (tmp_path / "home").exists()


def test_a_plot_that_can_not_be_written_comes_after_the_table(trained, capsys, file):
    home = trained()
    (home / "plots" / "four.html").unlink()
    (home / "plots").rmdir()
    (home / "plots").write_text("no folder")
    said = Said(capsys, "sweep", "optuna", file, "--home", home)
    assert said.code == 1 and "Pareto frontier of four" in said.out and "can't write" in said.err


def test_a_sweep_writes_a_page_with_its_frontier(home):
    page = (home / "plots" / "four.html").read_text()
    assert "<h1>Study four</h1>" in page and "<script src" not in page


def test_pareto_prints_the_same_trials_as_table_json_and_csv(ask):
    trials = [Trial.model_validate(record) for record in ask("pareto", "four", "--json").json]
    rows = list(csv.DictReader(io.StringIO(ask("pareto", "four", "--csv").out)))
    table = ask("pareto", "four").out
    assert [int(row["trial"]) for row in rows] == [trial.number for trial in trials]
    for trial, row in zip(trials, rows, strict=True):
        assert float(row["accuracy"]) == trial.values["accuracy"] == trial.quantities["accuracy"]
        assert float(row["test_accuracy"]) == trial.reported["accuracy"]
        assert row["key"] == trial.key and trial.key[:8] in table
    costs = [trial.values["mflops"] for trial in trials]
    accuracies = [trial.values["accuracy"] for trial in trials]
    assert costs == sorted(costs) and accuracies == sorted(accuracies) and trials


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize(
    "words",
    [
        "pareto four",
        "best four",
        "table four",
        "sweep status four",
        "studies",
        "runs",
        "show last",
        "plan",
    ],
)
def test_a_narrow_terminal_gets_every_value(ask, monkeypatch, words, columns):
    whole = ask(*words.split()).out.replace(":", " ").split()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", columns)
    narrow = re.sub(r"\x1b\[[\d;]*m|:", " ", ask(*words.split()).out).split()
    values = {word for word in whole if re.search(r"\d|=", word)}
    assert values and values <= set(narrow)


def test_listed_runs_show_the_parameters_that_differ_and_two_of_them_what_is_shared(ask):
    both = ask("runs", "--study", "four", "--where", "k=3", "--sort", "mflops", "--json").json
    assert [run["config"]["hidden_width"] for run in both] == [4, 32]
    keys = [run["key"][:8] for run in both]
    listed = ask("runs", "--where", "k=3", "--sort", "mflops").out.splitlines()
    assert "parameters that differ" in listed[1]
    for line, key, width in zip(listed[3:], keys, (4, 32), strict=False):
        assert line.split()[0] == key and line.split()[-1] == f"hidden_width={width}"
    assert len(ask("runs", "--limit", 3, "--json").json) == 3
    assert "none of 4 runs meets" in ask("runs", "--where", "k=5").err
    said = ask("diff", *keys)
    assert re.search(r"^ hidden_width +4 +32 $", said.out, re.M) and "\n k " not in said.out
    assert re.search(r"stages shared: .*train_teacher", said.out, re.S)
    found = ask("diff", *keys, "--json").json
    assert found["parameters"] == {"hidden_width": [4, 32]} and "prepare" in found["shared"]


def test_all_studies_are_listed_with_their_state_and_driver(tmp_path, capsys):
    url = toy.ref(tmp_path).shown
    assert "no studies in" in Said(capsys, "studies", "--home", tmp_path).err
    assert not list(tmp_path.iterdir())
    sweep = read_sweep(written(tmp_path, "k: {values: [2, 3]}"))
    spec = study_spec(sweep, parse_objectives(["mflops"]), 0, "moist sweep optuna some.yaml")
    for name in ("older", "some", "damaged"):
        with opened(toy.ref(tmp_path, name), spec) as ledger:
            for cost in (5.0, 3.0) if name == "some" else ():
                number, _ = ledger.ask(RandomSampler(), partial(suggest, sweep), {})
                ledger.complete(number, {"mflops": cost})
            ledger.enqueue([{"k": 7}])
            if name == "damaged":
                ledger.study.set_user_attr(FACTS, {})
    optuna.create_study(storage=url, study_name="of others")
    with opened(toy.ref(tmp_path, "some"), spec):
        said = Said(capsys, "studies", "--home", tmp_path, "--json")
        assert [one["name"] for one in said.json] == ["some", "older"]
        assert "study `damaged` is not listed: can't read the search" in said.err
        some, older = said.json
        assert some["trials"] == {"complete": 2, "waiting": 1} and some["best"]["number"] == 1
        assert some["objectives"] == ["mflops:min"] and str(os.getpid()) in some["driver"]
        assert older["best"] is older["driver"] is None
        row = Said(capsys, "studies", "--home", tmp_path).out.splitlines()[3]
    assert re.match(r" some +2 complete, 1 waiting +mflops:min +3 MFLOPs +20\d\d-", row), row


def test_a_table_has_a_row_for_each_setting_and_columns_across_a_parameter(ask):
    trials = ask("sweep", "status", "four", "--json").json["trials"]
    rows = ask("table", "four", "--json").json
    assert [row["params"] for row in rows] == [trial["params"] for trial in trials]
    for row, trial in zip(rows, trials, strict=True):
        found = {name: one["mean"] for name, one in row["values"].items()}
        assert found == {**trial["values"], "test/accuracy": trial["reported"]["accuracy"]}
    across = ask("table", "four", "--across", "k", "--show", "test/student").out
    heads = [line for line in across.splitlines() if "parameters" in line]
    assert "2: test %, student" in heads[0] and "3: test %, student" in heads[0]
    shown = [line.split() for line in across.splitlines() if "hidden_width=" in line]
    student = {t["params"]["hidden_width"]: t["reported"]["student"] for t in trials}
    assert [line[0] for line in shown] == ["hidden_width=4", "hidden_width=32"]
    for line, width in zip(shown, (4, 32), strict=True):
        assert line[1:] == ["1", *[f"{100 * student[width]:.2f}"] * 2]
    over = ask("table", "four", "--over", "k", "--json").json
    assert [row["params"] for row in over] == [{"hidden_width": 4}, {"hidden_width": 32}]
    assert [row["values"]["accuracy"]["n"] for row in over] == [2, 2]
    lines = list(csv.DictReader(io.StringIO(ask("table", "four", "--csv").out)))
    assert [line["key"] for line in lines] == [trial["key"] for trial in trials]
    assert "4 of 4 trials complete" in ask("table", "four").out


def test_an_unknown_name_in_a_table_is_rejected_with_the_known_ones(ask):
    said = ask("table", "four", "--across", "router")
    assert said.code == 2 and "differ in: k, hidden_width" in said.err
    said = ask("table", "four", "--show", "speed")
    assert said.code == 2 and "test/student" in said.err


def test_a_trial_agrees_with_its_run_record(ask, home):
    records = {run.key: run for run in RunRecords(home).all()}
    trials = ask("sweep", "status", "four", "--json").json["trials"]
    assert len(trials) == len(records) == 4
    for trial in trials:
        run = records[trial["key"]]
        assert trial["values"] == {
            "accuracy": run.report.val_accuracy,
            "mflops": run.report.mflops,
        }
        assert trial["reported"]["accuracy"] == run.report.accuracy
        assert all(str(run.config[name]) == str(value) for name, value in trial["params"].items())
        assert trial["command"] == run.command


def test_best_is_within_its_limits_and_prints_how_to_reproduce_it(ask):
    cheap = ask("best", "four", "--min", "accuracy=0.0", "--by", "mflops", "--json").json
    limit = f"mflops={cheap['mflops']}"
    assert ask("best", "four", "--max", limit, "--json").json == cheap
    assert ask("show", cheap["key"], "--json").json | {"trial": cheap["trial"]} == cheap
    said = ask("best", "four", "--max", limit)
    assert cheap["command"] in said.out and f"moist show {cheap['key'][:8]}" in said.out
    assert ask("best", "four", "--knee").code == 0


def test_best_is_answered_where_the_home_has_no_record_of_the_run(home, tmp_path, capsys):
    storage = ["--storage", f"sqlite:///{home}/studies.db", "--home", tmp_path]
    said = Said(capsys, "best", "four", "--json", *storage)
    assert said.json.keys() == {"key", "command", "trial"}
    assert f"no record of trial {said.json['trial']['number']}" in said.err


def test_best_reports_how_far_off_the_nearest_trial_is(ask):
    said = ask("best", "four", "--max", "mflops=0.001")
    assert said.code == 2 and "no trial keeps `mflops <= 0.001`" in said.err
    assert "hint: it passes with `--max mflops=" in said.err


def test_the_hypervolume_of_a_study_and_its_comparison_with_itself(ask):
    corner = ["--reference", "accuracy=0", "--reference", "mflops=1"]
    found = ask("pareto", "four", "--hypervolume", *corner, "--json").json
    assert 0 < found["hypervolume"] < 1
    both = ask("pareto", "four", "four", "--compare", *corner, "--json").json
    assert both["a"] == both["b"] and both["a"]["coverage"] == 1
    assert both["a"]["hypervolume"] == found["hypervolume"]
    assert ask("pareto", "four", "four", "--compare").code == 0


def test_a_plot_is_written_to_the_given_file(ask, tmp_path):
    for name in ("f.svg", "f.png", "f.html"):
        said = ask("pareto", "four", "--x", "latency_ms", "--plot", tmp_path / name)
        assert said.code == 0 and (tmp_path / name).stat().st_size > 1000
    said = ask("pareto", "four", "--plot", tmp_path / "f.gif")
    assert said.code == 2 and ".svg" in said.err


def test_a_missing_study_is_reported_with_the_nearest_name(ask, tmp_path, capsys):
    said = ask("pareto", "fuor")
    assert said.code == 2 and "hint: did you mean `four`?" in said.err
    said = Said(capsys, "best", "four", "--home", tmp_path)
    assert said.code == 2 and "moist sweep optuna sweeps/quickstart.yaml" in said.err
    assert not list(tmp_path.iterdir())


def test_pareto_of_two_studies_needs_compare(ask):
    said = ask("pareto", "four", "four")
    assert said.code == 2 and "expected 1 study, found 2" in said.err


def test_a_different_search_can_not_use_the_name_of_a_study(ask, file):
    said = ask("sweep", "optuna", file, "temperature=2")
    assert said.code == 2 and "`temperature` was 4.0; now it is 2.0\nhint: " in said.err
    assert "--study NAME" in said.err


def test_a_dry_run_computes_nothing_and_counts_each_stage_once(ask, file, home):
    before = sorted(home.rglob("*"))
    said = ask(
        "sweep",
        "optuna",
        file,
        "temperature=2",
        "--study",
        "warm",
        "--threads",
        "1",
        "--dry-run",
        "--json",
    )
    found = said.json
    assert found["trials"] == 4 and found["complete"] == 0
    # two students, four joint trainings, their evaluations; data, teacher, logits, clusters,
    # routers and latencies are stored
    assert found["stages_to_compute"] == 2 + 4 + 2 + 4 + 4
    assert sorted(home.rglob("*")) == before


def test_check_finds_no_problem_in_a_valid_file_and_all_in_an_invalid_one(
    ask, file, tmp_path, capsys
):
    said = Said(capsys, "sweep", "check", file)
    assert said.code == 0 and "2 parameters" in said.out and "4 points" in said.out
    bad = tmp_path / "bad.yaml"
    bad.write_text(STUDY.replace("hidden_width:", "hiden_width:").replace("[2, 3]", "[2, -3]"))
    said = Said(capsys, "sweep", "check", bad)
    assert said.code == 2 and "hidden_width" in said.out and "-3" in said.out


def test_doctor_finds_a_lost_record_and_nothing_in_an_intact_study(ask, home):
    assert ask("sweep", "doctor", "four").code == 0
    run = RunRecords(home).all()[0]
    path = home / "runs" / f"{run.key}.json"
    content = path.read_bytes()
    path.unlink()
    try:
        said = ask("sweep", "doctor", "four")
        assert said.code == 1 and run.key[:8] in said.out and run.command in said.out
    finally:
        path.write_bytes(content)


def test_status_prints_states_seconds_and_the_command_that_continues(ask, file):
    said = ask("sweep", "status", "four")
    assert "four: 4 complete" in said.out and "no driver is running" in said.out
    assert f"moist sweep optuna {file}" in said.out


def test_a_frontier_under_new_seeds_is_planned_without_training(ask, home):
    before = sorted(home.rglob("*"))
    members = len(ask("pareto", "four", "--json").json)
    found = ask("pareto", "four", "--reseed", 3, "--dry-run", "--json", "--threads", "1").json
    assert (found["members"], found["seeds"], found["trials"]) == (members, 3, 3 * members)
    assert found["complete"] == 0 and found["stages_to_compute"] > 3 * members
    assert sorted(home.rglob("*")) == before
    said = ask("pareto", "four", "--dry-run")
    assert said.code == 2 and "`--dry-run` does nothing without `--reseed`" in said.err


@pytest.mark.slow
def test_a_frontier_under_new_seeds_has_means_deviations_and_probabilities(ask, home):
    front = ask("pareto", "four", "--json").json
    words = ["pareto", "four", "--reseed", "2", "--threads", "1", "--quiet"]
    members = ask(*words, "--json").json
    assert [one["number"] for one in members] == [trial["number"] for trial in front]
    for one in members:
        assert one["values"]["accuracy"]["n"] == 2 and one["values"]["mflops"]["sd"] == 0
        assert 0 <= one["on_front"] <= 1 and one["latency_ms"][0] > 0
    reseeded = ask("sweep", "status", "four.reseed", "--json").json["trials"]
    assert {trial["params"]["seed"] for trial in reseeded} == {1, 2}
    assert len(reseeded) == 2 * len(front)
    first = [t["values"]["accuracy"] for t in reseeded
             if {**t["params"], "seed": 0} == {**front[0]["params"], "seed": 0}]  # fmt: skip
    assert members[0]["values"]["accuracy"]["mean"] == pytest.approx(sum(first) / 2)
    assert "± " in ask(*words, "--plot", home / "plots" / "sure.svg").out


def test_the_dashboard_serves_the_study_with_notes_and_files_on_loopback(home):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["dashboard", "four", "--port", str(port), "--home", str(home)]
    with Forked([*MOIST, *words]) as server:
        server.until(lambda: "\n" in server.err)
        assert server.err.strip() == f"http://127.0.0.1:{port}/dashboard/studies/1"
        found = _fetched(f"http://127.0.0.1:{port}/api/studies/1", server)
        server.signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
    assert len(found["trials"]) == 4
    for trial in found["trials"]:
        assert "moist run" in trial["note"]["body"]
        assert any(one["filename"].endswith(".json") for one in trial["artifacts"])


def _fetched(url: str, server: Forked) -> dict:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # of nobody else's

    def fetched() -> dict | None:
        with suppress(OSError), opener.open(url) as answer:
            return json.load(answer)

    return server.until(fetched)


# the start of a sweep


def test_a_sweep_prints_one_line_about_settings_that_only_wandb_uses(file, tmp_path, capsys):
    asks = tmp_path / "asks.yaml"
    asks.write_text(STUDY + "early_terminate: {type: hyperband, min_iter: 3}\n"
                    "metric: {name: objective/params, goal: minimize}\n")  # fmt: skip
    words = ["--dry-run", "--threads", "1", "--home", tmp_path]
    said = Said(capsys, "sweep", "optuna", asks, *words)
    line = (
        "ignored, for W&B only: `metric` (use `--objective`), `early_terminate` (use `--prune`)\n"
    )
    assert said.code == 0 and said.err == f"{asks}: {line}"
    given = Said(capsys, "sweep", "optuna", asks, *words, "--objective", "params")
    assert "`metric`" not in given.err and "`early_terminate`" in given.err
    assert Said(capsys, "sweep", "optuna", asks, *words, "--quiet").err == ""
    assert Said(capsys, "sweep", "optuna", file, *words).err == ""


def test_a_dry_run_rejects_a_different_search_with_the_message_of_a_start(ask, file):
    words = ["sweep", "optuna", file, "temperature=2"]
    rehearsed, started = ask(*words, "--dry-run"), ask(*words)
    assert rehearsed.code == started.code == 2 and rehearsed.err == started.err != ""


def test_latencies_of_two_machines_do_not_mix_in_a_study(ask, file):
    words = ["sweep", "optuna", file, "--study", "timed", "--objective", "latency_ms", "--quiet"]
    assert ask(*words, "--threads", "1").code == 0
    assert ask("sweep", "status", "timed", "--json").json["facts"]["machine"]["threads"] == 1
    for more in ((), ("--dry-run",)):
        said = ask(*words, "--threads", "2", *more)
        assert said.code == 2 and "(1 threads, " in said.err and "(2 threads, " in said.err
        assert "`--threads 1`" in said.err and "`--study NAME`" in said.err
    assert ask("sweep", "optuna", file, "--threads", "2", "--quiet").code == 0  # not timed


def test_a_missing_device_is_rejected_at_once(ask, file):
    said = ask("sweep", "optuna", file, "--devices", "cpu,abacus", "--study", "none")
    assert said.code == 2 and "`--device abacus`" in said.err
    assert ask("sweep", "status", "none").code == 2


@pytest.mark.parametrize("command", [["sweep", "optuna"], ["pareto"]])
def test_the_help_of_threads_says_that_they_are_per_worker(command, capsys):
    assert "CPU threads of each worker" in Said(capsys, *command, "--help").out


# printed commands


def test_printed_commands_find_the_study_again(ask, home):
    where = f"--home {home}"
    storage = f"sqlite:///{home / 'studies.db'}"
    assert f"moist show {ask('best', 'four', '--json').json['key'][:8]} {where}\n" in (
        ask("best", "four", "--storage", storage).out
    )
    said = ask("pareto", "fuor", "--storage", f"sqlite:///{home / 'none.db'}")
    assert f"{where} --storage sqlite:///{home / 'none.db'}`" in said.err


def test_a_home_from_the_environment_is_not_repeated(home, file, monkeypatch, capsys):
    monkeypatch.setenv("MOIST_HOME", str(home))
    said = Said(capsys, "sweep", "optuna", file, "--quiet")
    assert said.code == 0 and "moist best four" in said.out.splitlines()[-1]
    status = Said(capsys, "sweep", "status", "four")
    assert str(home) not in said.out.splitlines()[-1] + Said(capsys, "best", "four").out
    assert status.out.endswith(f"  moist sweep optuna {file} --quiet\n")
    given = Said(capsys, "sweep", "status", "four", "--home", home)
    assert given.out.endswith(f"  moist sweep optuna {file} --quiet --home {home}\n")


def test_the_command_that_continues_a_study_is_the_latest(ask, file, home):
    for retries in ("3", "4"):
        assert ask("sweep", "optuna", file, "--retries", retries, "--quiet").code == 0
        said = ask("sweep", "status", "four").out
        assert said.endswith(f"{file} --retries {retries} --quiet --home {home}\n")


def test_status_names_the_trial_that_retries_a_failed_one(capsys):
    failed = Trial(number=3, state="failed", params={"k": 2}, reason="KeyError: 'who?'")
    other = Trial(number=4, state="failed", params={"k": 3}, reason="no luck")
    again = Trial(number=7, state="complete", params={"k": 2}, values={"mflops": 1}, retry_of=3)
    sweep = Sweep("some", Path("some.yaml"), "grid", None, {}, ())
    spec = study_spec(sweep, parse_objectives(["mflops"]), 0, "moist")
    study_tables.print_status(toy.ref(Path(), "some"), spec, [failed, other, again], "somebody")
    lines = capsys.readouterr().out.splitlines()
    assert "trial   3  failed: KeyError: 'who?'  k=2  (retried as trial 7)" in lines
    assert "trial   4  failed: no luck  k=3" in lines


# options that exclude each other


@pytest.mark.parametrize(
    "words",
    [
        ["pareto", "four", "--hypervolume", "--csv"],
        ["pareto", "four", "--reseed=2", "--csv"],
        ["pareto", "four", "four", "--compare", "--csv"],
        ["pareto", "four", "--hypervolume", "--reseed=2"],
        ["pareto", "four", "four", "--compare", "--hypervolume"],
        ["pareto", "four", "--csv", "--json"],
        ["pareto", "four", "four", "--compare", "--plot=f.svg"],
        ["best", "four", "--knee", "--by=mflops"],
        ["sweep", "optuna", "FILE", "--prune", "--prune-audit"],
    ],
)
def test_options_that_exclude_each_other_are_rejected_by_name(ask, file, words):
    said = ask(*[file if word == "FILE" else word for word in words])
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    both = {" and ".join(f"`{flag}`" for flag in order) for order in (flags, flags[::-1])}
    assert said.code == 2 and any(f"{one} can't be combined" in said.err for one in both)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--reference=mflops=1"], "`--hypervolume` or `--compare`"),
        (["--reference=mflops=1", "--csv"], "`--hypervolume` or `--compare`"),
        (["--reference=mflops=1", "--reseed=2"], "`--hypervolume` or `--compare`"),
        (["--workers=2"], "`--reseed`"),
        (["--threads=2", "--hypervolume"], "`--reseed`"),
    ],
)
def test_an_option_that_does_nothing_alone_is_rejected(ask, words, needed):
    said = ask("pareto", "four", *words)
    option = words[0].partition("=")[0]
    assert said.code == 2 and f"`{option}` does nothing without {needed}" in said.err


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["--gpus-per-trial=1"], "ray"),
        (["--address=auto", "--engine=local"], "ray"),
        (["--devices=cpu", "--engine=ray"], "local"),
    ],
)
def test_an_option_of_another_engine_is_rejected(ask, file, words, needed):
    said = ask("sweep", "optuna", file, *words)
    option = words[0].partition("=")[0]
    assert said.code == 2 and f"`{option}` does nothing without `--engine {needed}`" in said.err


@pytest.mark.parametrize("goal", ["--objective=latency_ms:min", "--max=latency_ms=2"])
@pytest.mark.parametrize("by_itself", ["k=auto", "--no-reuse"])
def test_trials_of_a_cluster_that_time_themselves_are_not_selected_by_it(
    ask, file, goal, by_itself
):
    said = ask("sweep", "optuna", file, "--engine", "ray", goal, by_itself)
    assert said.code == 2 and f"by `latency_ms` with `{by_itself}`" in said.err


def test_a_wrong_value_is_reported_with_its_option(ask, file):
    said = ask("sweep", "optuna", file, "--best", "accuracy=much")
    assert said.code == 2 and "`--best accuracy=much`" in said.err
    said = ask("pareto", "four", "--hypervolume", "--reference", "mflops=much")
    assert said.code == 2 and "`--reference mflops=much`" in said.err
