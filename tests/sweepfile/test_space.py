"""Sweep files as search spaces: what they mean, in Optuna and in W&B, and what is refused."""

import re
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moist.config import Config, flat
from moist.config.overrides import parse
from moist.errors import ConfigError
from moist.results.objectives import Objective
from moist.sweepfile import (
    Parameter,
    Sweep,
    active,
    config_of,
    distribution,
    grid,
    problems,
    read_sweep,
    size,
)

with warnings.catch_warnings(action="ignore"):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
    from wandb.sdk.sweeps.scheduler.optuna import search_space_from_sweep_config

SWEEPS = Path(__file__).parents[2] / "sweeps"
HEAD = """\
program: moist
method: random
command: ["${env}", moist, run, "${args_no_hyphens}"]
"""
ACCURACY = "{name: objective/accuracy, goal: maximize}"
MFLOPS = "{name: objective/mflops, goal: minimize}"
CUSTOM = "custom\nscheduler: {engine: ax}\n"


def written(folder: Path, entries: str, head: str = HEAD) -> Path:
    """A sweep file; entries are lines of `KEY: {...}`."""
    lines = "".join(f"  {line}\n" for line in entries.splitlines())
    (folder / "some.yaml").write_text(f"{head}parameters:\n{lines}")
    return folder / "some.yaml"


def begins(said: str, line: str) -> bool:
    """Whether a text begins with a line, in which `...` stands for anything."""
    return re.match(".*".join(map(re.escape, line.split("..."))), said) is not None


@pytest.fixture
def read(tmp_path):
    """From entries (and overrides) to the sweep."""
    return lambda entries, *overrides, head=HEAD: read_sweep(
        written(tmp_path, entries, head), overrides
    )


@pytest.fixture
def refused(tmp_path):
    """From entries to the one thing that is wrong with them."""

    def said(entries: str, head: str = HEAD) -> str:
        (line,) = problems(written(tmp_path, entries, head))
        return line

    return said


# one parameter, in Optuna's terms and W&B's

MAPPED = [
    "k: {values: [1, 2, auto]}",
    "k: {values: [5], distribution: categorical}",
    "temperature: {values: [1, 2.5]}",
    "augment.flip: {values: [yes, no]}",
    "teacher.horizon: {values: [null, 30]}",
    "student.channels: {values: ['8,16', '16,32']}",
    "k: {min: 1, max: 6}",
    "k: {distribution: int_uniform, min: 1, max: 6}",
    "temperature: {min: 1, max: 10}",
    "temperature: {min: 1.0, max: 10.0}",
    "temperature: {distribution: uniform, min: 1, max: 10.5}",
    "teacher.lr: {distribution: log_uniform_values, min: 1.0e-4, max: 1}",
    "hidden_width: {distribution: q_uniform, min: 64, max: 256, q: 64}",
    "hidden_width: {distribution: q_uniform, min: 64, max: 256}",
    "distill.alpha: {distribution: q_uniform, min: 0, max: 1, q: 0.25}",
    "distill.alpha: {distribution: q_uniform, min: 0.1, max: 0.7, q: 0.1}",
    "hidden_width: {distribution: q_log_uniform_values, min: 8, max: 512}",
    "hidden_width: {distribution: q_log_uniform_values, min: 8, max: 512, q: 1}",
]


@pytest.mark.parametrize("entry", MAPPED)
def test_a_parameter_is_to_optuna_what_wandbs_own_converter_makes_of_it(read, entry):
    (parameter,) = read(entry).parameters
    assert {parameter.name: distribution(parameter)} == search_space_from_sweep_config(
        yaml.safe_load(entry)
    )


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*")), ids=lambda path: path.name)
def test_a_file_in_sweeps_is_the_same_space_to_wandbs_optuna_engine(path):
    found = read_sweep(path)
    entries = yaml.safe_load(path.read_text())["parameters"]
    constants = {
        name: optuna.distributions.CategoricalDistribution([found.fixed[name]])
        for name in entries.keys() & found.fixed.keys()
    }
    assert {
        **constants,
        **{parameter.name: distribution(parameter) for parameter in found.parameters},
    } == search_space_from_sweep_config(entries)


@pytest.mark.parametrize("entry", MAPPED)
def test_what_optuna_draws_is_among_the_values_and_all_of_them_are_drawn(read, entry):
    (parameter,) = read(entry).parameters
    if not parameter.finite or len(parameter.values()) > 10:
        return
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {parameter.name: distribution(parameter)}
    drawn = {study.ask(space).params[parameter.name] for _ in range(100)}
    assert drawn == set(parameter.values())


@pytest.mark.parametrize(
    ("entry", "choices"),
    [
        ("k: {values: [3, 4.0, '5', auto]}", (3, 4, 5, "auto")),
        ("temperature: {values: [1, '2', 1e-1]}", (1.0, 2.0, 0.1)),
        ("augment.flip: {values: [no, 'true']}", (False, True)),
        ("student.channels: {values: ['8, 16', '[16,32]']}", ("8,16", "16,32")),
        ("data.image_size: {values: [null, 32]}", (None, 32)),
    ],
)
def test_choices_are_typed_as_the_config_shows_them(read, entry, choices):
    (parameter,) = read(entry).parameters
    assert parameter.choices == choices
    assert [type(one) for one in parameter.choices] == [type(one) for one in choices]
    for one in choices:
        assert flat(parse([f"{parameter.name}={one}"]))[parameter.name] == one


def test_what_yaml_would_take_for_something_else_is_read_as_text_in_quotes(read):
    assert read("hidden_width: {value: '0100'}").fixed == {"hidden_width": 100}
    assert read("data.root: {values: ['0123']}").parameters[0].choices == ("0123",)


def test_a_range_is_read_with_its_bounds_step_and_logarithm(read):
    found = read(
        "k: {min: 2, max: 6}\n"
        "temperature: {min: 1.5, max: 9.5}\n"
        "hidden_width: {distribution: q_uniform, min: 64, max: 192, q: 64}\n"
        "distill.alpha: {distribution: q_uniform, min: 0.0, max: 0.5, q: 0.25}\n"
        "teacher.lr: {distribution: log_uniform_values, min: 0.01, max: 1.0}"
    )
    assert found.parameters == (
        Parameter("k", "int", low=2, high=6),
        Parameter("temperature", "float", low=1.5, high=9.5),
        Parameter("hidden_width", "int", low=64, high=192, step=64),
        Parameter("distill.alpha", "float", low=0.0, high=0.5, step=0.25),
        Parameter("teacher.lr", "float", low=0.01, high=1.0, log=True),
    )
    width, alpha = found.parameters[2:4]
    assert list(width.values()) == [64, 128, 192]
    assert alpha.values() == [0.0, 0.25, 0.5]
    with pytest.raises(ConfigError, match=r"^`temperature` .* no end\nhint: write `values`, or"):
        found.parameters[1].values()


def test_what_a_wandb_agent_passes_on_builds_the_config_of_the_point(read):
    found = read(
        "k: {values: [3, auto]}\naugment.flip: {values: [yes, no]}\n"
        "data.image_size: {values: [null, 16]}\nteacher.lr: {values: [1e-4, 0.01]}\n"
        "student.channels: {value: '8,16'}"
    )
    for point in grid(found):
        args = {name: {"value": value} for name, value in {**found.fixed, **point}.items()}
        words = create_sweep_command_args({"args": args})["args_no_hyphens"]
        assert parse(words) == config_of(found, point)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        # a key, and the form of its entry
        ("distill.temprature: {value: 3}", "unknown key `distill.temprature`; did you mean `te"),
        ("teacher: {value: 3}", "unknown key `teacher`; give one of its keys, as in `teacher.e"),
        ("temprature: 3", "unknown key `temprature`; did you mean `temperature`?"),
        ("k: 3", "`k`: expected `value`, `values`, or `min` and `max`, ...; found `3`"),
        ("k: {}", "`k`: expected `value`, `values`, or `min` and `max`, ...; found"),
        ("k: {vals: [3]}", "`k`: expected ... found `vals`"),
        ("k: {value: 3, values: [3]}", "`k`: expected ... found `value`, `values`"),
        ("k: {value: 3, min: 1, max: 2}", "`k`: expected ... found `value`, `min`, `max`"),
        ("k: {value: 3, mu: 1}", "`k`: expected ... found `value`, `mu`"),
        ("k: {min: 3}", "`k`: expected ... found `min`"),
        ("k: {max: 3}", "`k`: expected ... found `max`"),
        # values
        ("k: {value: 0}", "`k=0`: expected 1 to 1000 | auto"),
        ("router: {values: [cnn, mlp]}", "`router=mlp`: expected cnn | linear | transformer |"),
        ("k: {values: 3}", "`k`: `values` expects a list of values, found `3`"),
        ("k: {values: []}", "`k`: `values` expects a list of values, found `[]`"),
        ("k: {values: [3, 2, 3.0]}", "`k`: `values` holds `3` twice"),
        (
            "student.channels: {values: [[8, 16]]}",
            "`student.channels`: `values` holds `[8, 16]`, and Optuna can't choose a list;"
            ' write it as text, `"8, 16"`',
        ),
        ("hidden_width: {value: 0100}", "`hid...: YAML 1.1, and so W&B, takes `0100` for `64`; w"),
        ("latency.repeats: {value: 010}", "`latency.repeats`: ... takes `010` for `8`; write"),
        ("data.root: {values: [0123]}", "`data.root`: ... takes `0123` for `83`; write `'0123'`"),
        ("k: {values: [3], distribution: uniform}", "`k`: `distribution: uniform` does not go w"),
        (
            "k: {value: 3, distribution: categorical}",
            "`k`: ... not go with `value`; ... `constant`",
        ),
        (
            "k: {min: 1, max: 3, distribution: constant}",
            "`k`: ... with `min`; write `int_uniform`",
        ),
        # bounds
        ("k: {min: 3, max: 1}", "`k`: `min` must be below `max`, found `min: 3` and `max: 1`"),
        ("k: {min: 3, max: 3}", "`k`: `min` must be below `max`, found `min: 3` and `max: 3`"),
        ("k: {min: 0, max: 3}", "`k=0`: expected 1 to 1000 | auto"),
        ("temperature: {min: 1.0, max: 100.5}", "`temperature=100.5`: expected above 0 to 100"),
        ("augment.flip: {min: 1, max: 2}", "`augment.flip=2`: expected true | false"),
        ("temperature: {min: 1, max: 3.0}", "`temperature`: W&B can't tell if this is whole numb"),
        ("teacher.lr: {min: 1e-4, max: 0.1}", "`teacher.lr`: `min: 1e-4` is ...; write `0.0001`"),
        ("teacher.lr: {min: 1e-5, max: 0.1}", "`teacher.lr`: `min: 1e-5` is ...; write `1.0e-05`"),
        ("teacher.lr: {min: 0.1, max: .inf}", "`teacher.lr`: `max: .inf` is no finite number"),
        (
            "k: {min: no, max: 3}",
            "`k`: `min: no` is no finite number to YAML 1.1, nor to W&B; write a n",
        ),
        ("k: {min: [1], max: 3}", "`k`: `min: ... is no finite number to YAML"),
        ("k: {min: 1, max: 3, q: 1}", "`k`: `q` needs `distribution: q_uniform`"),
        ("k: {min: 1, max: 4, q: 0, distribution: q_uniform}", "`k`: `q` must be above 0, found"),
        (
            "k: {min: 1, max: 6, q: 3, distribution: q_uniform}",
            "`k`: W&B draws multiples of `q: 3",
        ),
        (
            "k: {min: 2, max: 5, q: 2, distribution: q_uniform}",
            "`k`: W&B draws multiples of `q: 2",
        ),
        ("k: {min: 1.5, max: 4.5, distribution: int_uniform}", "`k`: `distribution: int_uniform`"),
        (
            "hidden_width: {min: 1.0, max: 9.0}",
            "`hidden_width`: ... write `distribution: int_unif",
        ),
        (
            "k: {min: 1, max: 9, distribution: log_uniform_values}",
            "`k`: expected 1 to 1000 | auto, but `log_uniform_values` draws fractions;"
            " write `distribution: q_log_uniform_values` with whole numbers",
        ),
        (
            "seed: {min: 0, max: 9, distribution: q_log_uniform_values}",
            "`seed`: a logarithm needs `min` above 0, found `min: 0` and `max: 9`",
        ),
        (
            "k: {min: 1, max: 9, q: 2, distribution: q_log_uniform_values}",
            "`k`: Optuna has no steps of `q: 2` in logarithms; write no `q`, or `q_uniform`",
        ),
    ],
)
def test_an_entry_that_can_not_be_is_answered_with_what_to_write(refused, entry, line):
    assert begins(refused(entry), line)


@pytest.mark.parametrize(
    ("entry", "word", "instead"),
    [
        ("{parameters: {epochs: {value: 3}}}", "parameters", "dotted name, as in `teacher.epochs"),
        ("{values: [1, 2], probabilities: [0.2, 0.8]}", "probabilities", "`values` alone"),
        ("{values: [1], distribution: W}", "categorical_w_probabilities", "`values` alone"),
        ("{distribution: W, mu: 1, sigma: 2}", "normal", "`distribution: uniform` with"),
        ("{distribution: W, mu: 1, sigma: 2}", "log_normal", "log_uniform_values` with `min` an"),
        ("{distribution: W, mu: 1, sigma: 2}", "q_normal", "q_uniform` with `min`, `max` and"),
        ("{distribution: W, mu: 1}", "q_log_normal", "`distribution: q_log_uniform_values` wi"),
        ("{distribution: W, a: 1, b: 2}", "beta", "`distribution: uniform` with"),
        ("{distribution: W, a: 1, b: 2}", "q_beta", "`distribution: q_uniform` with"),
        ("{distribution: W, min: 1, max: 2}", "inv_log_uniform", "log_uniform_values` with"),
        ("{distribution: W, min: 1, max: 2}", "inv_log_uniform_values", "log_uniform_values` wi"),
        ("{distribution: W, min: 1, max: 2}", "log_uniform", "with the bounds, not their log"),
        ("{distribution: W, min: 1, max: 2}", "q_log_uniform", "with the bounds, not their log"),
    ],
)
def test_what_optuna_has_no_counterpart_for_is_refused_with_what_it_has(
    refused, entry, word, instead
):
    said = refused(f"temperature: {entry.replace('W', word)}")
    assert said.startswith(f"`temperature`: `{word}` has no counterpart in Optuna; write ")
    assert instead in said


# the file


def test_a_sweep_says_its_name_method_constants_and_parameters_in_order(read, tmp_path):
    found = read("seed: {value: 7}\nrouter: {values: [linear]}\nk: {min: 1, max: 3}")
    assert (found.name, found.path, found.method) == ("some", tmp_path / "some.yaml", "random")
    assert found.fixed == {"seed": 7}
    assert [one.name for one in found.parameters] == ["router", "k"]
    assert (found.objectives, found.run_cap) == (None, None)
    assert config_of(found, {"router": "linear", "k": 2}) == parse(
        ["seed=7", "k=2", "router=linear"]
    )


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
        ("program: moist", "", "`program`: expected `moist`, found `none`"),
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
        (
            "command: [",
            "description: [",
            "`command`: expected a list that ... found `None`; write",
        ),
        ("method: random", "", "`method`: expected grid | random | bayes | custom, found `none`"),
        ("random", "tpe", "`method`: expected grid | random | bayes | custom, found `tpe`"),
        ("random", "bayes", "`method: bayes` needs a `metric`; write {name: objective/accuracy,"),
        ("random", "custom", "`method: custom` needs a `scheduler`, or W&B starts nothing; write"),
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
            "random\nscheduler: {engine: wandb}\nearly_terminate: {type: hyperband}",
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
def test_what_wandb_or_moist_could_not_work_with_is_said(refused, old, new, line):
    assert old in HEAD
    assert begins(refused("k: {min: 1, max: 3}", HEAD.replace(old, new)), line)


@pytest.mark.parametrize(
    "entry",
    [
        "temperature: {min: 1.0, max: 2.0}",
        "k: {distribution: q_uniform, min: 2, max: 4, q: 2}",
        "k: {distribution: q_log_uniform_values, min: 2, max: 4}",
    ],
)
def test_a_grid_over_what_wandbs_grid_does_not_take_is_refused(refused, entry):
    said = refused(entry, HEAD.replace("random", "grid"))
    assert said.startswith(
        f"`{entry.split(':')[0]}`: W&B's `method: grid` takes `values`, or whole"
    )


def test_a_grid_takes_values_and_whole_numbers(read):
    entries = "k: {min: 1, max: 3}\nrouter: {values: [cnn, linear]}"
    assert size(read(entries, head=HEAD.replace("random", "grid"))) == 6


@pytest.mark.parametrize("parameters", ["", "parameters: {}\n", "parameters: 3\n"])
def test_a_file_without_parameters_is_refused(tmp_path, parameters):
    (tmp_path / "some.yaml").write_text(HEAD + parameters)
    (line,) = problems(tmp_path / "some.yaml")
    assert line == "`parameters`: expected `KEY: {value: VALUE}` lines, found none"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("k: [", "is not YAML: "),
        ("k: 2026-13-45", "is not YAML: "),
        (
            "k: {value: 1}\nseed: {value: 2}\nk: {min: 1, max: 2}",
            "YAML: `k` is given twice in line 3",
        ),
        ("[1, 2]", "holds no W&B sweep"),
        ("", "holds no W&B sweep"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_problem(tmp_path, text, said):
    (tmp_path / "some.yaml").write_text(text)
    (line,) = problems(tmp_path / "some.yaml")
    assert line.startswith(f"`{tmp_path / 'some.yaml'}` ") and said in line
    assert problems(tmp_path / "none.yaml") == [
        f"can't read `{tmp_path / 'none.yaml'}`: No such file or directory"
    ]


def test_everything_wrong_is_said_at_once_and_where(tmp_path):
    entries = (
        "k: {value: 0}\nzzz: {value: 1}\nrouter: {values: [a, b, a]}\n"
        "temperature: {min: 0, max: 101}\n"
        "seed: {min: 1, max: 2, when: {router: a}}"
    )
    path = written(tmp_path, entries, "method: x\n")
    lines = problems(path)
    assert [line.split("`")[1] for line in lines] == [
        "program", "command", "method", "k=0", "zzz", "router=a", "router=b", "temperature=0",
        "temperature=101",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    assert str(caught.value) == "\n".join(lines) + f"\nhint: correct `{path}`"


# values that don't go together


def test_a_value_that_can_not_work_with_what_is_fixed_is_refused(refused):
    said = refused(
        "teacher.epochs: {value: 9}\nteacher.horizon: {values: [5, 20]}\nseed: {min: 0, max: 9999}"
    )
    assert said == "`teacher.horizon=5` is shorter than `teacher.epochs=9`"
    said = refused("teacher.horizon: {value: 9}\nteacher.epochs: {min: 5, max: 30}")
    assert said == "`teacher.horizon=9` is shorter than `teacher.epochs=30`"
    said = refused("student.channels: {values: ['8', '8,16']}\ntemperature: {min: 1.0, max: 2.0}")
    assert said == "`student.channels` needs two widths, found 1"
    assert refused("joint.objective: {values: [switch, em]}").startswith(
        "`joint.objective=switch` s"
    )


def test_each_hopeless_value_is_named_once_even_if_no_other_is_left(tmp_path):
    entries = "teacher.epochs: {value: 9}\nteacher.horizon: {values: [5, 6]}\nk: {min: 1, max: 2}"
    assert problems(written(tmp_path, entries)) == [
        f"`teacher.horizon={horizon}` is shorter than `teacher.epochs=9`" for horizon in (5, 6)
    ]


def test_constants_that_do_not_go_together_are_refused_unless_an_override_mends_them(
    read, refused
):
    entries = "teacher.epochs: {value: 9}\nteacher.horizon: {value: 5}"
    assert refused(entries) == "`teacher.horizon=5` is shorter than `teacher.epochs=9`"
    assert read(entries, "teacher.epochs=5").fixed["teacher.epochs"] == 5


def test_combinations_that_fail_are_no_mistake_unless_all_do(read, refused):
    some = "teacher.epochs: {values: [4, 9]}\nteacher.horizon: {values: [5, 6]}"
    found = read(some)
    with pytest.raises(ConfigError):
        config_of(found, {"teacher.epochs": 9, "teacher.horizon": 5})
    said = refused(some.replace("4", "8"))
    assert said == (
        "no combination of values works: `teacher.horizon=5` is shorter than `teacher.epochs=8`"
    )


# conditions

ROUTER = "router: {values: [cnn, linear]}\n"
WIDTHS = f"{ROUTER}routing.widths: {{values: ['64', '32'], when: {{router: linear}}}}"


def test_a_parameter_applies_only_where_its_condition_holds(read):
    found = read(WIDTHS)
    widths = found.parameters[1]
    assert widths.when == {"router": ("linear",)}
    assert active(found, {"router": "linear"}, widths)
    assert not active(found, {"router": "cnn"}, widths)
    assert not active(found, {}, widths)
    assert list(grid(found)) == [
        {"router": "cnn"},
        {"router": "linear", "routing.widths": "64"},
        {"router": "linear", "routing.widths": "32"},
    ]
    assert config_of(found, {"router": "cnn"}).routing.widths == Config().routing.widths


def test_a_constant_may_be_conditional_too(read):
    found = read(
        "joint.objective: {values: [hierarchical, students_only]}\n"
        "joint.mask_students: {value: false, when: {joint.objective: [students_only]}}"
    )
    assert found.fixed == {}
    configs = [config_of(found, point).joint for point in grid(found)]
    assert [(one.objective, one.mask_students) for one in configs] == [
        ("hierarchical", True),
        ("students_only", False),
    ]


def test_a_parameter_comes_after_what_it_depends_on_and_the_rest_as_in_the_file(read):
    found = read(
        "seed: {min: 0, max: 3}\nrouting.epochs: {min: 1, max: 2, when: {k: 2, router: linear}}\n"
        "router: {values: [cnn, linear], when: {k: [1, 2]}}\nhidden_width: {min: 1, max: 2}\n"
        "k: {min: 1, max: 3}"
    )
    names = [one.name for one in found.parameters]
    assert names == ["seed", "k", "router", "routing.epochs", "hidden_width"]


@pytest.mark.parametrize(
    ("when", "line"),
    [
        ("cnn", "`when` expects `{KEY: VALUE}`, found `cnn`"),
        ("{}", "`when` expects `{KEY: VALUE}`, found `{}`"),
        (
            "{rooter: cnn}",
            "`when` names the unknown parameter `rooter`; did you mean `router`?",
        ),
        (
            "{data.name: digits}",
            "`when` names the unknown parameter `data.name`; add `data.n",
        ),
        (
            "{temperature: 2}",
            "asks for `temperature`, a range of reals, which hardly ever has a cert",
        ),
        ("{router: []}", "`when` lists no value of `router`"),
        ("{router: [cnn, oracle]}", "asks for `router=oracle`, which has cnn, linear"),
        ("{k: 9}", "asks for `k=9`, which has 1 to 3"),
        ("{hidden_width: 96}", "asks for `hidden_width=96`, which has 64 to 128 by 64"),
        ("{seed: 1}", "asks for `seed=1`, which has 0"),
    ],
)
def test_a_condition_that_means_nothing_is_refused(refused, when, line):
    said = refused(
        "router: {values: [cnn, linear]}\nk: {min: 1, max: 3}\nseed: {value: 0}\n"
        "hidden_width: {distribution: q_uniform, min: 64, max: 128, q: 64}\n"
        "temperature: {min: 1.0, max: 3.0}\n"
        f"routing.epochs: {{min: 1, max: 3, when: {when}}}"
    )
    assert said.startswith("`routing.epochs`: ") and line in said


def test_a_value_of_a_condition_that_its_key_does_not_admit_is_said_in_the_keys_terms(refused):
    said = refused(WIDTHS.replace("router: linear", "router: mlp"))
    assert said == "`router=mlp`: expected cnn | linear | transformer | shared | oracle"


@pytest.mark.parametrize(
    ("entries", "circle"),
    [
        ("k: {min: 1, max: 2, when: {k: 1}}", "`k` -> `k`"),
        (
            "k: {min: 1, max: 2, when: {seed: 1}}\nseed: {min: 1, max: 2, when: {k: 1}}",
            "`k` -> `seed` -> `k`",
        ),
    ],
)
def test_conditions_that_go_round_are_refused(refused, entries, circle):
    said = refused(entries)
    assert said.startswith("`when` goes round in a circle: ")
    assert set(said.split(": ")[1].split(" -> ")) == set(circle.split(" -> "))


def test_conditions_that_contradict_each_other_are_refused(refused):
    when = "{router: cnn, routing.widths: '64'}"
    said = refused(f"{WIDTHS}\nrouting.epochs: {{min: 1, max: 2, when: {when}}}")
    assert said == (
        "`routing.epochs`: its `when`, and those of what it depends on, can never hold together"
    )


# overrides


def test_an_overridden_parameter_is_fixed_and_searched_no_more(read):
    found = read(
        "k: {min: 1, max: 3}\nseed: {value: 1}\nhidden_width: {min: 8, max: 16}", "k=7", "seed=2"
    )
    assert found.fixed == {"seed": 2, "k": 7}
    assert [one.name for one in found.parameters] == ["hidden_width"]
    assert read("k: {min: 1, max: 3}", "teacher.lr=1e-4").fixed == {"teacher.lr": 1e-4}


def test_what_can_not_apply_with_an_overridden_value_is_dropped_and_what_must_is_kept(read):
    entries = f"{WIDTHS}\nrouting.epochs: {{min: 1, max: 2, when: {{routing.widths: '64'}}}}"
    assert [one.name for one in read(entries, "router=cnn").parameters] == []
    assert size(read(entries, "router=cnn")) == 1
    assert size(read(entries, "router=linear")) == 3
    kept = read(entries, "routing.widths=64", "router=cnn")
    assert [one.name for one in kept.parameters] == ["routing.epochs"]
    assert kept.fixed == {"routing.widths": "64", "router": "cnn"}
    assert [point["routing.epochs"] for point in grid(kept)] == [1, 2]


def test_files_of_values_override_too_and_later_ones_win(read, tmp_path):
    (tmp_path / "more.yaml").write_text("k: 5\nseed: 3\n")
    found = read("k: {min: 1, max: 3}", "k=4", f"@{tmp_path / 'more.yaml'}", "seed=9")
    assert found.fixed == {"k": 5, "seed": 9} and found.parameters == ()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("k=0", "`k=0`: expected 1 to 1000 | auto"),
        ("kk=1", "unknown key `kk`\nhint: "),
        ("k", "expected KEY=VALUE or @FILE, found `k`\nhint: "),
    ],
)
def test_an_override_that_can_not_be_is_refused(read, override, said):
    with pytest.raises(ConfigError) as caught:
        read("k: {min: 1, max: 3}", override)
    assert str(caught.value).startswith(said)


# the points

KEYS = ["k", "hidden_width", "seed", "teacher.epochs", "joint.epochs", "latency.repeats"]
Entries = dict[str, dict[str, Any]]


@st.composite
def spaces(draw: st.DrawFn) -> Entries:
    """Entries of whole numbers, some conditional on others, in any order."""
    entries: Entries = {}
    for name in draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=5, unique=True)):
        some = draw(st.lists(st.integers(10, 13), min_size=1, max_size=3, unique=True))
        low, high = min(some), max(some)
        entry: dict[str, Any] = {"values": some}
        if low < high and draw(st.booleans()):
            entry = {"min": low, "max": high}
        elif len(some) == 1:
            entry = {"value": low}
        deciders = draw(st.lists(st.sampled_from([*entries] or [""]), max_size=2, unique=True))
        when = {
            key: draw(st.lists(st.sampled_from(domain(entries[key])), min_size=1, unique=True))
            for key in deciders
            if key
        }
        entries[name] = {**entry, "when": when} if when else entry
    return {name: entries[name] for name in draw(st.permutations([*entries]))}


def domain(entry: dict[str, Any]) -> list[int]:
    if "value" in entry:
        return [entry["value"]]
    return entry.get("values") or [*range(entry["min"], entry["max"] + 1)]


def points(entries: Entries) -> list[dict[str, int]]:
    """Every point of a space, by giving every key a value and striking those that don't apply."""
    found = []
    for values in product(*map(domain, entries.values())):
        point = dict(zip(entries, values, strict=True))
        for _ in entries:
            point = {
                name: value
                for name, value in point.items()
                if all(point.get(key) in ok for key, ok in entries[name].get("when", {}).items())
            }
        if point not in found:
            found.append(point)
    return found


def constants(entries: Entries) -> set[str]:
    return {name for name, entry in entries.items() if "value" in entry and "when" not in entry}


def check_points(found: Sweep, entries: Entries) -> None:
    """The grid is what striking gives, once each; and every point builds, with its values."""
    expected = points(entries)
    searched = [
        {name: value for name, value in point.items() if name not in constants(entries)}
        for point in expected
    ]
    listed = list(grid(found))
    assert sorted(map(repr, map(sorted, map(dict.items, listed)))) == sorted(
        map(repr, map(sorted, map(dict.items, searched)))
    )
    assert size(found) == len(listed)
    assert {one.name for one in found.parameters} == {name for point in searched for name in point}
    whole = {repr(sorted(point.items())) for point in expected}
    for point in listed:
        config = flat(config_of(found, point))
        changed = {**found.fixed, **point}
        assert config == {**flat(Config()), **changed}
        assert repr(sorted(changed.items())) in whole


@settings(deadline=None)
@given(spaces())
def test_a_grid_has_every_combination_that_applies_once(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("space") / "some.yaml"
    path.write_text(HEAD + yaml.safe_dump({"parameters": entries}, sort_keys=False))
    never = {name for name in entries if not any(name in point for point in points(entries))}
    lines = problems(path)
    assert {line.split("`")[1] for line in lines} == never
    assert all("can never hold" in line for line in lines)
    if not never:
        check_points(read_sweep(path), entries)


@settings(deadline=None)
@given(spaces(), st.data())
def test_fixing_a_parameter_leaves_the_points_of_the_space_without_it(
    tmp_path_factory, entries, data
):
    path = tmp_path_factory.mktemp("space") / "some.yaml"
    path.write_text(HEAD + yaml.safe_dump({"parameters": entries}, sort_keys=False))
    name = data.draw(st.sampled_from([*entries]))
    value = data.draw(st.sampled_from(domain(entries[name])))
    if not problems(path):
        found = read_sweep(path, [f"{name}={value}"])
        assert found.fixed[name] == value
        check_points(found, {**entries, name: {"value": value}})


@given(spaces())
def test_each_parameter_comes_after_those_it_depends_on(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("space") / "some.yaml"
    path.write_text(HEAD + yaml.safe_dump({"parameters": entries}, sort_keys=False))
    if not problems(path):
        found = read_sweep(path)
        before = set(found.fixed)
        for one in found.parameters:
            assert one.when.keys() <= before
            before.add(one.name)
        if not any("when" in entry for entry in entries.values()):
            assert [one.name for one in found.parameters] == [
                name for name in entries if name not in constants(entries)
            ]


def test_a_range_of_reals_has_no_size_and_no_grid(read):
    found = read("k: {min: 1, max: 3}\ntemperature: {min: 1.0, max: 2.0}")
    assert size(found) is None
    with pytest.raises(ConfigError, match="`temperature` is a range of reals"):
        grid(found)


def test_the_size_of_a_large_space_is_known_at_once(read):
    keys = ("teacher", "distill", "routing", "joint")
    entries = "\n".join(f"{key}.epochs: {{min: 1, max: 10000}}" for key in keys)
    assert size(read(entries)) == 10_000**4


def test_reading_a_sweep_imports_nothing_heavy():
    heavy = {"torch", "optuna", "wandb", "pandas"}
    code = f"import sys, moist.sweepfile; sys.exit(len({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


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
def test_what_only_wandb_heeds_is_known_with_what_plays_its_part(tmp_path, head, expected):
    path = written(tmp_path, "k: {values: [2, 3]}", HEAD.replace("random\n", head))
    assert read_sweep(path).for_wandb == expected


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_sweep_of_ours_asks_for_what_only_wandb_heeds(path):
    assert read_sweep(path, ["data.root=some"]).for_wandb == {}
