"""A sweep file but for its parameters: objectives, and what W&B and moist can run."""

from pathlib import Path

import pytest
from sweep_texts import ACCURACY, CUSTOM, HEAD, MFLOPS, begins, written

from moist.agents.register import registration
from moist.results.objectives import Objective
from moist.sweepfile import read_sweep
from moist.sweepfile.header import WORDS

SWEEPS = Path(__file__).parents[2] / "sweeps"


def test_metrics_are_the_objectives_and_a_metric_is_not(read):
    custom = HEAD.replace("random", "custom") + "scheduler: {engine: optuna}\nrun_cap: 30\n"
    found = read("k: {min: 1, max: 3}", head=f"{custom}metrics: [{ACCURACY}, {MFLOPS}]\n")
    assert found.objectives == (Objective("accuracy", "max"), Objective("mflops", "min"))
    assert found.run_cap == 30
    bayes = HEAD.replace("random", "bayes") + "metric: {name: objective/bytes, goal: minimize}\n"
    assert read("k: {min: 1, max: 3}", head=bayes).objectives is None


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("program: moist", "program: train.py", "`program`: expected `moist`, found `train.py`"),
        (
            "program: moist",
            "program: moist\nmetrik: 1",
            "unknown key `metrik`; did you mean `metric`?",
        ),
        (
            "program: moist",
            "program: moist\nzzz: 1",
            "unknown key `zzz`; there are: program, command,",
        ),
        ('"${args_no_hyphens}"', '"${args}"', "`command`: expected a list that ends in `${args_n"),
        ("command: [", "command: moist run #", "`command`: expected a list that ... found `moist"),
        (
            'hyphens}"',
            'hyphens}", seed=3',
            "`command`: `seed=3` would win over the parameters; write it before `${args_no_hyph",
        ),
        ("moist, run", "python, x.py", "`command`: expected a list that ends in `${args_n"),
        (
            "random",
            "random\nearly_terminate: {type: hyperband, max_iter: 9}",
            "`early_terminate`: expected `type: hyperband` with `min_iter`, or with `max_iter`",
        ),
        (
            "random",
            "random\nearly_terminate: {}",
            "`early_terminate`: expected `type: hyperband",
        ),
        ("random", "null", "`method`: expected grid | random | bayes | custom, found `none`"),
        ("random", "bayes\nmetric: null", "`method: bayes` needs a `metric`; write"),
        ("random", "custom\nscheduler: ~", "`method: custom` needs a `scheduler`, or W&B starts"),
        (
            "random",
            "random\ncontroller: null",
            "`controller`: expected {type: cloud}, found `null`",
        ),
        ("method: random", "", "`method`: expected grid | random | bayes | custom, found `none`"),
        ("random", "tpe", "`method`: expected grid | random | bayes | custom, found `tpe`"),
        ("random", "bayes", "`method: bayes` needs a `metric`; write {name: objective/accuracy,"),
        ("random", "custom", "`method: custom` needs a `scheduler`, or W&B starts no run; write"),
        ("random", f"random\nmetrics: [{ACCURACY}, {MFLOPS}]", "`metrics` need `method: custom`"),
        ("random", "random\nrun_cap: 0", "`run_cap`: expected a whole number above 0, found `0`"),
        ("random", "random\nrun_cap: 1.5", "`run_cap`: expected a whole number above 0, found `1"),
        ("random", "random\nrun_cap: yes", "`run_cap`: expected a whole number above 0, found `y"),
        (
            "random",
            "random\nscheduler: {engine: optuna}",
            "`scheduler`: `engine: optuna` does not go with `method: random`; write `method: cus",
        ),
        (
            "random",
            "random\nscheduler: optuna",
            "`scheduler`: expected {engine: optuna | ax | wandb}, found `optuna`",
        ),
        (
            "random",
            "random\nscheduler: {engine: wandb}\nearly_terminate: {type: hyperband, min_iter: 3}",
            "`early_terminate` does not go with a `scheduler`",
        ),
        (
            "random",
            f"{CUSTOM}metric: {ACCURACY}\nmetrics: [{ACCURACY}, {MFLOPS}]",
            "`metric` and `metrics` are both given",
        ),
        (
            "random",
            f"{CUSTOM}metrics: [{ACCURACY}]",
            "`metrics`: expected a list of two or more {name, goal}, ... one objective",
        ),
        (
            "random",
            f"{CUSTOM}metrics: [{ACCURACY}, {ACCURACY}]",
            "`metrics`: an objective is given twice",
        ),
        (
            "random",
            "bayes\nmetric: {name: accuracy, goal: maximize}",
            "`metric`: unknown objective `accuracy`; did you mean `objective/accuracy`?",
        ),
        (
            "random",
            "bayes\nmetric: {name: objective/speed, goal: maximize}",
            "`metric`: unknown objective `objective/speed`; there are: objective/accuracy",
        ),
        (
            "random",
            "bayes\nmetric: accuracy",
            "`metric`: unknown objective `accuracy`; did",
        ),
        (
            "random",
            "bayes\nmetric: {name: objective/accuracy}",
            "`metric`: `objective/accuracy` needs `goal: maximize` or `goal: minimize`, f",
        ),
        (
            "random",
            "bayes\nmetric: {name: objective/accuracy, goal: max}",
            "`metric`: `objective/accuracy` needs `goal: maximize` or ..., found `max`",
        ),
        (
            "random",
            "bayes\nmetric: {name: objective/accuracy, goal: maximize, weight: 2}",
            "unknown key `metric.weight`; there are: metric.name, metric.goal, metric.target",
        ),
    ],
)
def test_a_file_that_wandb_or_moist_can_not_run_is_rejected(refused, old, new, line):
    assert old in HEAD
    assert begins(refused("k: {min: 1, max: 3}", HEAD.replace(old, new)), line)


OPTIONAL = set(WORDS) - {"program", "command", "method", "parameters", "controller"}


@pytest.mark.parametrize("word", sorted(OPTIONAL))
@pytest.mark.parametrize("null", ["null", "~", ""])
def test_an_optional_setting_that_is_null_is_read_as_absent(tmp_path, word, null):
    entries = "k: {min: 1, max: 3}"
    expected = read_sweep(written(tmp_path, entries))
    path = written(tmp_path, entries, f"{HEAD}{word}: {null}\n")
    assert read_sweep(path) == expected
    assert word not in registration(path).content


def test_a_study_needs_neither_program_nor_command(read):
    lines = HEAD.splitlines(keepends=True)
    bare = "".join(line for line in lines if not line.startswith(("program:", "command:")))
    assert len(bare.splitlines()) == len(lines) - 2
    found, whole = (read("k: {min: 1, max: 3}", head=head) for head in (bare, HEAD))
    assert (found.parameters, found.fixed) == (whole.parameters, whole.fixed)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (f"bayes\nmetric: {ACCURACY}\n", {}),
        ("random\n", {}),
        (f"custom\nmetrics: [{ACCURACY}, {MFLOPS}]\nscheduler: {{engine: optuna}}\n", {}),
        (
            "bayes\nmetric: {name: objective/params, goal: minimize}\n"
            "early_terminate: {type: hyperband, min_iter: 3}\n",
            {"metric": "--objective", "early_terminate": "--prune"},
        ),
        (CUSTOM, {"engine: ax": "--sampler"}),
    ],
)
def test_settings_that_only_wandb_uses_are_listed_with_the_option_that_replaces_them(
    tmp_path, head, expected
):
    path = written(tmp_path, "k: {values: [2, 3]}", HEAD.replace("random\n", head))
    assert read_sweep(path).wandb_only == expected


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_file_of_sweeps_has_settings_that_only_wandb_uses(path):
    assert read_sweep(path).wandb_only == {}
