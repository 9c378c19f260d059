"""Entries of a sweep file: what they mean to Optuna and to W&B, and which are rejected."""

import warnings
from pathlib import Path

import optuna
import pytest
import yaml
from sweep_texts import HEAD, WIDTHS, begins

from moist.config import flat
from moist.config.overrides import parse
from moist.errors import ConfigError
from moist.sweepfile import (
    Parameter,
    config_of,
    distribution,
    grid,
    read_sweep,
    size,
)

with warnings.catch_warnings(action="ignore"):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args
    from wandb.sdk.sweeps.scheduler.optuna import search_space_from_sweep_config

SWEEPS = Path(__file__).parents[2] / "sweeps"


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
    "temperature: {min: 1, max: 10.0}",
    "distill.lr: {min: !!float 1e-5, max: !!float 1}",
    "k: {values: !!seq [!!int '2', !!int 3]}",
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
def test_a_parameter_has_the_distribution_that_wandbs_own_converter_gives(read, entry):
    (parameter,) = read(entry).parameters
    assert {parameter.name: distribution(parameter)} == search_space_from_sweep_config(
        yaml.safe_load(entry)
    )


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*")), ids=lambda path: path.name)
def test_wandbs_optuna_engine_reads_the_same_space_from_a_file_of_sweeps(path):
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
def test_optuna_draws_all_values_of_a_parameter_and_no_others(read, entry):
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


def test_a_quoted_value_is_read_as_text(read):
    assert read("hidden_width: {value: '0100'}").fixed == {"hidden_width": 100}
    assert read("teacher.weights: {values: ['0123']}").parameters[0].choices == ("0123",)


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
    with pytest.raises(
        ConfigError, match=r"^`temperature` .* infinitely many values\nhint: write `values`, or"
    ):
        found.parameters[1].values()


def test_the_arguments_of_a_wandb_agent_build_the_config_of_the_point(read):
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
        ("hidden_width: {value: 0100}", "`hid...: YAML 1.1, and so W&B, reads `0100` as `64`; wr"),
        ("latency.repeats: {value: 010}", "`latency.repeats`: ... reads `010` as `8`; write"),
        ("data.root: {values: [0123]}", "`data.root`: ... reads `0123` as `83`; write `'0123'`"),
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
        (
            "k: {min: 1, max: 3.0}",
            "`k`: ... but `uniform` draws fractions; write `distribution: i",
        ),
        ("teacher.lr: {min: 1e-4, max: 0.1}", "`teacher.lr`: `min: 1e-4` is ...; write `0.0001`"),
        ("teacher.lr: {min: 1e-5, max: 0.1}", "`teacher.lr`: `min: 1e-5` is ...; write `1.0e-05`"),
        ("teacher.lr: {min: 0.1, max: .inf}", "`teacher.lr`: `max: .inf` is not a finite numb"),
        (
            "k: {min: '1', max: 3}",
            "`k`: `min: 1` is text, not a number, in YAML 1.1, ...; write `1`",
        ),
        (
            "k: {min: no, max: 3}",
            "`k`: `min: no` is not a finite number in YAML 1.1, which W&B reads; write a n",
        ),
        ("k: {min: [1], max: 3}", "`k`: `min: ... is not a finite number in YAML"),
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
def test_a_wrong_entry_is_rejected_with_what_to_write(refused, entry, line):
    assert begins(refused(entry), line)


@pytest.mark.parametrize(
    ("entry", "word", "instead"),
    [
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
def test_a_wandb_distribution_without_a_counterpart_is_rejected_with_what_to_write_instead(
    refused, entry, word, instead
):
    message = refused(f"temperature: {entry.replace('W', word)}")
    assert message.startswith(f"`temperature`: `{word}` has no counterpart in Optuna; write ")
    assert instead in message


@pytest.mark.parametrize(
    "entry",
    [
        "temperature: {min: 1.0, max: 2.0}",
        "k: {distribution: q_uniform, min: 2, max: 4, q: 2}",
        "k: {distribution: q_log_uniform_values, min: 2, max: 4}",
    ],
)
def test_a_grid_over_a_parameter_that_wandbs_grid_does_not_support_is_rejected(refused, entry):
    message = refused(entry, HEAD.replace("random", "grid"))
    assert message.startswith(
        f"`{entry.split(':')[0]}`: W&B's `method: grid` takes `values`, or whole"
    )


def test_a_grid_takes_values_and_whole_numbers(read):
    entries = "k: {min: 1, max: 3}\nrouter: {values: [cnn, linear]}"
    assert size(read(entries, head=HEAD.replace("random", "grid"))) == 6


# conditions


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
            "`when` names `temperature`, a range of reals, which hardly ever takes a give",
        ),
        ("{router: []}", "`when` lists no value of `router`"),
        ("{router: [cnn, oracle]}", "`when` names `router=oracle`, and `router` has cnn, linear"),
        ("{k: 9}", "`when` names `k=9`, and `k` has 1 to 3"),
        (
            "{hidden_width: 96}",
            "`when` names `hidden_width=96`, and `hidden_width` has 64 to 128 by 64",
        ),
        ("{seed: 1}", "`when` names `seed=1`, and `seed` has 0"),
    ],
)
def test_a_condition_that_can_not_hold_is_rejected(refused, when, line):
    message = refused(
        "router: {values: [cnn, linear]}\nk: {min: 1, max: 3}\nseed: {value: 0}\n"
        "hidden_width: {distribution: q_uniform, min: 64, max: 128, q: 64}\n"
        "temperature: {min: 1.0, max: 3.0}\n"
        f"routing.epochs: {{min: 1, max: 3, when: {when}}}"
    )
    assert message.startswith("`routing.epochs`: ") and line in message


def test_a_condition_with_an_invalid_value_reports_the_values_of_its_key(refused):
    message = refused(WIDTHS.replace("router: linear", "router: mlp"))
    assert message == "`router=mlp`: expected cnn | linear | transformer | shared | oracle"


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
def test_circular_conditions_are_rejected(refused, entries, circle):
    message = refused(entries)
    assert message.startswith("the conditions of `when` form a circle: ")
    assert set(message.split(": ")[1].split(" -> ")) == set(circle.split(" -> "))


def test_contradictory_conditions_are_rejected(refused):
    when = "{router: cnn, routing.widths: '64'}"
    message = refused(f"{WIDTHS}\nrouting.epochs: {{min: 1, max: 2, when: {when}}}")
    assert message == (
        "`routing.epochs`: its `when`, and those of what it depends on, can never hold together"
    )
