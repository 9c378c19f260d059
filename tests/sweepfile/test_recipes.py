"""Sweep files that include a recipe in their `command`."""

import warnings
from pathlib import Path

import pytest
import yaml

from moist.config.overrides import parse
from moist.errors import ConfigError
from moist.sweepfile import config_of, grid, problems, read_sweep

with warnings.catch_warnings(action="ignore"):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

SWEEPS = Path(__file__).parents[2] / "sweeps"


@pytest.fixture
def write(tmp_path):
    """Write a sweep file with a recipe beside it, as lines of entries and of values."""

    def made(entries: str, recipe: str, word: str = "@recipe.yaml") -> Path:
        (tmp_path / "recipe.yaml").write_text(recipe)
        lines = "".join(f"  {line}\n" for line in entries.splitlines())
        path = tmp_path / "some.yaml"
        path.write_text(
            "program: moist\nmethod: random\n"
            f'command: ["${{env}}", moist, run, "{word}", "${{args_no_hyphens}}"]\n'
            f"parameters:\n{lines}"
        )
        return path

    return made


def test_values_of_a_recipe_are_fixed_and_parameters_of_the_file_override_them(write):
    path = write("k: {values: [2, 3]}\nseed: {value: 5}", "k: 9\nseed: 1\nteacher.lr: 1e-4\n")
    found = read_sweep(path)
    assert found.fixed == {"seed": 5, "teacher.lr": 1e-4}
    assert [(one.name, one.choices) for one in found.parameters] == [("k", (2, 3))]
    assert read_sweep(path, ["teacher.lr=1", "k=4"]).fixed == {"seed": 5, "teacher.lr": 1, "k": 4}


def test_a_file_with_a_recipe_is_the_file_with_its_lines_written_out(write, tmp_path):
    entries = (
        "router: {values: [linear, cnn]}\nrouting.widths: {values: ['8', '16'], when: {k: 2}}"
    )
    short = read_sweep(write(entries, "k: 2\nrouter: shared\naugment.flip: yes\n"))
    long = tmp_path / "long.yaml"
    text = short.path.read_text().replace('"@recipe.yaml", ', "")
    long.write_text(text + "  k: {value: 2}\n  augment.flip: {value: true}\n")
    assert read_sweep(long).fixed == short.fixed
    assert read_sweep(long).parameters == short.parameters


@pytest.mark.parametrize("name", ["ones_ablation", "longer", "router", "students"])
def test_what_a_wandb_agent_runs_is_the_config_of_the_point(name, monkeypatch):
    """W&B's own code makes the command line, and `moist run` reads it."""
    monkeypatch.chdir(SWEEPS.parent)
    sweep = read_sweep(SWEEPS / f"{name}.yaml")
    content = yaml.safe_load(sweep.path.read_text())
    own = {key: entry["value"] for key, entry in content["parameters"].items() if "value" in entry}
    for point in grid(sweep):
        args = {key: {"value": value} for key, value in {**own, **point}.items()}
        words = create_sweep_command_args({"args": args})
        command = create_sweep_command(content["command"])
        line = [*command[: command.index("${args_no_hyphens}")], *words["args_no_hyphens"]]
        assert parse(line[line.index("run") + 1 :]) == config_of(sweep, point)


@pytest.mark.parametrize(
    ("entries", "recipe", "line"),
    [
        ("k: {value: 2}", "distill.temprature: 3", "`@recipe.yaml`: unknown key `distill.temp"),
        ("k: {value: 2}", "teacher.epochs: 0", "`@recipe.yaml`: `teacher.epochs=0`: expected 1 "),
        ("k: {value: 2}", "parameters: {k: {values: [1]}}", "`@recipe.yaml`: `"),
        (
            "routing.widths: {values: ['8'], when: {router: linear}}\n"
            "router: {values: [linear, cnn]}",
            "routing.widths: 16",
            "`routing.widths`: it has a `when`, and where that does not hold a W&B agent would",
        ),
    ],
)
def test_a_mistake_in_a_recipe_is_reported_with_the_recipe(write, entries, recipe, line):
    (found,) = problems(write(entries, recipe))
    assert found.startswith(line)


def test_a_recipe_that_is_not_found_is_reported(write):
    (found,) = problems(write("k: {value: 2}", "", "@missing.yaml"))
    assert found.startswith("`@missing.yaml`: can't find `missing.yaml` in `")


def test_a_value_in_the_command_is_fixed_too(write):
    assert read_sweep(write("k: {value: 2}", "", "seed=4")).fixed == {"k": 2, "seed": 4}
    (found,) = problems(write("k: {value: 2}", "", "sed=4"))
    assert found == "`command`: unknown key `sed`; did you mean `seed`?"


def test_a_file_is_searched_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = read_sweep(SWEEPS / "width.yaml")
    assert expected.fixed["joint.objective"] == "students_only"
    assert read_sweep(Path("width")) == read_sweep(Path("sweeps/width.yaml")) == expected
    with pytest.raises(ConfigError, match="did you mean `width`"):
        read_sweep(Path("widht"))
