"""A sweep file as a whole: its mistakes, conflicting values and overrides."""

import warnings

import pytest
import yaml
from sweep_texts import HEAD, WIDTHS, written

from moist.config.files import flattened
from moist.config.overrides import given, parse
from moist.errors import ConfigError
from moist.sweepfile import (
    config_of,
    grid,
    problems,
    read_sweep,
    size,
)

with warnings.catch_warnings(action="ignore"):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args


def test_a_sweep_has_its_name_method_constants_and_parameters_in_order(read, tmp_path):
    found = read("seed: {value: 7}\nrouter: {values: [linear]}\nk: {min: 1, max: 3}")
    assert (found.name, found.path, found.method) == ("some", tmp_path / "some.yaml", "random")
    assert found.fixed == {"seed": 7}
    assert [one.name for one in found.parameters] == ["router", "k"]
    assert (found.objectives, found.run_cap) == (None, None)
    assert config_of(found, {"router": "linear", "k": 2}) == parse(
        ["seed=7", "k=2", "router=linear"]
    )


@pytest.mark.parametrize("parameters", ["", "parameters: {}\n", "parameters: 3\n"])
def test_a_file_without_parameters_is_rejected(tmp_path, parameters):
    (tmp_path / "some.yaml").write_text(HEAD + parameters)
    (line,) = problems(tmp_path / "some.yaml")
    assert line == "`parameters`: expected `KEY: {value: VALUE}` lines, found none"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: [", "is not YAML: "),
        ("k: 2026-13-45", "is not YAML: "),
        (
            "k: {value: 1}\nseed: {value: 2}\nk: {min: 1, max: 2}",
            "YAML: `k` is given twice in line 3",
        ),
        ("[1, 2]", "is not a W&B sweep"),
        ("", "is not a W&B sweep"),
    ],
)
def test_a_file_that_is_not_a_sweep_is_one_problem(tmp_path, text, message):
    (tmp_path / "some.yaml").write_text(text)
    (line,) = problems(tmp_path / "some.yaml")
    assert line.startswith(f"`{tmp_path / 'some.yaml'}` ") and message in line
    assert problems(tmp_path / "none.yaml") == [
        f"can't read `{tmp_path / 'none.yaml'}`: No such file or directory"
    ]


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path):
    entries = (
        "k: {value: 0}\nzzz: {value: 1}\nrouter: {values: [a, b, a]}\n"
        "temperature: {min: 0, max: 101}\n"
        "seed: {min: 1, max: 2, when: {router: a}}"
    )
    path = written(tmp_path, entries, "method: x\n")
    lines = problems(path)
    assert [line.split("`")[1] for line in lines] == [
        "method", "k=0", "zzz", "router=a", "router=b", "temperature=0", "temperature=101",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        read_sweep(path)
    assert str(caught.value) == "\n".join(lines) + f"\nhint: correct `{path}`"


# conflicting values


def test_a_value_that_conflicts_with_a_fixed_one_is_rejected(refused):
    message = refused(
        "teacher.epochs: {value: 9}\nteacher.horizon: {values: [5, 20]}\nseed: {min: 0, max: 9999}"
    )
    assert message == "`teacher.horizon=5` is shorter than `teacher.epochs=9`"
    message = refused("teacher.horizon: {value: 9}\nteacher.epochs: {min: 5, max: 30}")
    assert message == "`teacher.horizon=9` is shorter than `teacher.epochs=30`"
    message = refused(
        "student.channels: {values: ['8', '8,16']}\ntemperature: {min: 1.0, max: 2.0}"
    )
    assert message == "`student.channels` needs two widths, found 1"
    assert refused("joint.objective: {values: [switch, em]}").startswith(
        "`joint.objective=switch` trains a student on images of any class"
    )


def test_each_conflicting_value_is_reported_once_even_if_no_other_remains(tmp_path):
    entries = "teacher.epochs: {value: 9}\nteacher.horizon: {values: [5, 6]}\nk: {min: 1, max: 2}"
    assert problems(written(tmp_path, entries)) == [
        f"`teacher.horizon={horizon}` is shorter than `teacher.epochs=9`" for horizon in (5, 6)
    ]


def test_conflicting_constants_are_rejected_unless_an_override_fixes_them(read, refused):
    entries = "teacher.epochs: {value: 9}\nteacher.horizon: {value: 5}"
    assert refused(entries) == "`teacher.horizon=5` is shorter than `teacher.epochs=9`"
    assert read(entries, "teacher.epochs=5").fixed["teacher.epochs"] == 5


def test_conflicting_combinations_are_allowed_unless_all_conflict(read, refused):
    some = "teacher.epochs: {values: [4, 9]}\nteacher.horizon: {values: [5, 6]}"
    found = read(some)
    with pytest.raises(ConfigError):
        config_of(found, {"teacher.epochs": 9, "teacher.horizon": 5})
    message = refused(some.replace("4", "8"))
    assert message == (
        "no combination of values works: `teacher.horizon=5` is shorter than `teacher.epochs=8`"
    )


# overrides


def test_an_overridden_parameter_is_fixed_and_no_longer_searched(read):
    found = read(
        "k: {min: 1, max: 3}\nseed: {value: 1}\nhidden_width: {min: 8, max: 16}", "k=7", "seed=2"
    )
    assert found.fixed == {"seed": 2, "k": 7}
    assert [one.name for one in found.parameters] == ["hidden_width"]
    assert read("k: {min: 1, max: 3}", "teacher.lr=1e-4").fixed == {"teacher.lr": 1e-4}


def test_a_parameter_that_can_not_apply_with_an_overridden_value_is_dropped(read):
    entries = f"{WIDTHS}\nrouting.epochs: {{min: 1, max: 2, when: {{routing.widths: '64'}}}}"
    assert [one.name for one in read(entries, "router=cnn").parameters] == []
    assert size(read(entries, "router=cnn")) == 1
    assert size(read(entries, "router=linear")) == 3
    kept = read(entries, "routing.widths=64", "router=cnn")
    assert [one.name for one in kept.parameters] == ["routing.epochs"]
    assert kept.fixed == {"routing.widths": "64", "router": "cnn"}
    assert [point["routing.epochs"] for point in grid(kept)] == [1, 2]


def test_files_of_values_are_overrides_too_and_later_ones_win(read, tmp_path):
    (tmp_path / "more.yaml").write_text("k: 5\nseed: 3\n")
    found = read("k: {min: 1, max: 3}", "k=4", f"@{tmp_path / 'more.yaml'}", "seed=9")
    assert found.fixed == {"k": 5, "seed": 9} and found.parameters == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("k=0", "`k=0`: expected 1 to 1000 | auto"),
        ("kk=1", "unknown key `kk`\nhint: "),
        ("k", "expected KEY=VALUE or @FILE, found `k`\nhint: "),
    ],
)
def test_a_wrong_override_is_rejected(read, override, message):
    with pytest.raises(ConfigError) as caught:
        read("k: {min: 1, max: 3}", override)
    assert str(caught.value).startswith(message)


# the language of W&B's public examples

LR = "distribution: log_uniform_values, min: 1.0e-5"


@pytest.mark.parametrize(
    ("form", "plain"),
    [
        (
            "distill.lr: {min: !!float 1e-5, max: !!float '1'}",
            "distill.lr: {min: 1.0e-5, max: 1.0}",
        ),
        ("k: {values: !!seq [!!int '2', !!str 3]}", "k: {values: [2, 3]}"),
        (
            f"distill.lr: &lr {{{LR}, max: 1.0}}\njoint.lr: *lr",
            f"distill.lr: {{{LR}, max: 1.0}}\njoint.lr: {{{LR}, max: 1.0}}",
        ),
        (
            f"distill.lr: &lr {{{LR}, max: 1.0}}\njoint.lr:\n  <<: *lr\n  max: 0.1",
            f"distill.lr: {{{LR}, max: 1.0}}\njoint.lr: {{{LR}, max: 0.1}}",
        ),
        (
            "distill:\n  parameters:\n    lr: {value: 1e-4}\n    views: {min: 1, max: 3}",
            "distill.lr: {value: 0.0001}\ndistill.views: {min: 1, max: 3}",
        ),
        ("temperature: {min: 1, max: 2.5}", "temperature: {min: 1.0, max: 2.5}"),
        ("k:\n  distribution: categorical\n  values:\n  - 2\n  - 3", "k: {values: [2, 3]}"),
    ],
)
def test_every_form_that_yaml_has_for_an_entry_is_read_as_wandb_reads_it(tmp_path, form, plain):
    found, expected = (read_sweep(written(tmp_path, text)) for text in (form, plain))
    assert found == expected
    entries = flattened(yaml.safe_load(form))
    assert entries.keys() == {*expected.fixed, *(one.name for one in expected.parameters)}


def test_settings_that_wandbs_public_examples_have_are_allowed(read):
    head = (
        "---\nname: one\ndescription: two\nproject: p\nentity: e\nprogram: moist\nmethod: bayes\n"
        "metric:\n  goal: maximize\n  name: objective/accuracy\nrun_cap: !!int '5'\n"
        "controller: {type: local}\n"
        "early_terminate: {type: hyperband, s: 2, eta: 3, max_iter: 27}\n"
        "command:\n- ${env}\n- moist\n- run\n- ${args_no_hyphens}\n- --quiet\n"
    )
    assert read("k: {min: 1, max: 3}", head=head).run_cap == 5


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("k: {values: [!!bool maybe]}", "`maybe` is no !!bool"),
        ("k: {values: !!python/tuple [2, 3]}", "could not determine a constructor for the tag"),
        ("k: &k {values: [*k]}", "found unconstructable recursive node"),
        (f"k: {'[' * 2000}", "is nested too deeply to be read"),
    ],
)
def test_what_wandb_can_not_read_is_one_problem(refused, text, problem):
    assert problem in refused(text)


def test_a_nested_entry_names_its_key_by_dots(refused):
    nested = "distill: {parameters: {PLACE: {value: 3}}}"
    assert refused(nested.replace("PLACE", "lr2")).startswith("unknown key `distill.lr2`; did you")
    twice = nested.replace("PLACE", "views") + "\ndistill.views: {value: 2}"
    assert refused(twice) == "`distill.views` is given twice, nested and by its dotted name"
    assert refused("distill: {parameters: {}}").startswith("unknown key `distill`; give one of")


def test_what_an_agent_writes_for_a_nested_entry_is_read_by_moist_run(tmp_path):
    entry = "distill: {parameters: {views: {value: 3}, lr: {value: 1e-4}, gate: {value: teacher}}}"
    content = yaml.safe_load(entry)["distill"]["parameters"]
    args = {"distill": {"value": {leaf: one["value"] for leaf, one in content.items()}}}
    words = create_sweep_command_args({"args": args})["args_no_hyphens"]
    assert given(words) == {"distill.views": "3", "distill.lr": "1e-4", "distill.gate": "teacher"}
    assert parse(["distill={'views': 2, 'lr': 0.5}"]) == parse(
        ["distill.views=2", "distill.lr=.5"]
    )
    (tmp_path / "recipe.yaml").write_text(f"parameters: {{{entry}}}")
    assert given([f"@{tmp_path / 'recipe.yaml'}"]) == given(words)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ("data.root: {value: IMAGES}", "`data.root` has no effect with `data.name=digits`; it n"),
        ("joint.top: {values: [2, 3]}", "`joint.top` has no effect with `joint.objective=hierarc"),
        (
            "distill.tie: {values: [1, 2]}\ndistill.loss: {values: [kd, dkd]}",
            "`distill.tie` has no effect with `distill.loss=kd` or `distill.loss=dkd`; it needs",
        ),
    ],
)
def test_a_parameter_that_no_point_reads_is_a_problem(refused, entries, reason):
    assert refused(entries).startswith(reason)


def test_a_parameter_that_some_point_reads_is_none(read):
    found = read("distill.tie: {values: [1, 2]}\ndistill.loss: {values: [kd, moe_kd]}")
    assert size(found) == 4
    assert read("distill.loss: {values: [kd, moe_kd]}", "seed=1").fixed == {"seed": 1}
    with pytest.raises(ConfigError, match=r"`merge\.epochs` has no effect with `system=moist`"):
        read("k: {values: [2, 3]}", "merge.epochs=2")


@pytest.mark.parametrize("entry", ["data.root: {values: [A, B]}", "data.root: {values: [A]}"])
def test_a_search_over_data_sets_is_a_problem_that_check_finds(refused, entry):
    message = refused(f"data.name: {{value: folder}}\n{entry}")
    assert message.startswith(
        "`data.root`: all trials of a study have one data set; write `value`"
    )
