"""Where the file of an `@FILE` or of a sweep is found, and what it includes."""

from pathlib import Path

import pytest

from moist.config import Config, flat
from moist.config.files import included, locate, packaged
from moist.config.overrides import given, parse
from moist.errors import ConfigError

SWEEPS = Path(__file__).parents[2] / "sweeps"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A working folder, and a sweep file in `project/sweeps/own.yaml` elsewhere."""
    work, sweeps = tmp_path / "work", tmp_path / "project" / "sweeps"
    for folder in (work, sweeps):
        folder.mkdir(parents=True)
    monkeypatch.chdir(work)
    return work, sweeps / "own.yaml"


def test_moist_comes_with_the_files_of_sweeps():
    assert packaged() == {path.stem: path for path in SWEEPS.glob("*.yaml")}


@pytest.mark.parametrize("name", ["paper", "sweeps/paper.yaml"])
def test_a_packaged_file_is_found_by_name_and_by_path_from_any_folder(folders, name):
    assert locate(name) == SWEEPS / "paper.yaml"
    assert parse([f"@{name}"]) == parse([f"@{SWEEPS / 'paper.yaml'}"])


@pytest.mark.parametrize("name", ["paper", "sweeps/paper.yaml"])
def test_a_file_in_the_working_folder_comes_before_a_packaged_one(folders, name):
    work, _ = folders
    (work / "sweeps").mkdir()
    (work / name).write_text("k: 7\n")
    assert locate(name) == Path(name)
    assert parse([f"@{name}"]).k == 7


def test_a_folder_is_not_taken_for_a_file(folders):
    work, _ = folders
    (work / "paper").mkdir()
    assert locate("paper") == SWEEPS / "paper.yaml"


@pytest.mark.parametrize("name", ["recipe.yaml", "sweeps/recipe.yaml"])
def test_an_included_file_is_found_beside_the_including_one_and_from_its_parent(folders, name):
    _, own = folders
    (own.parent / "recipe.yaml").write_text("k: 7\n")
    assert locate(name, own).read_text() == "k: 7\n"
    with pytest.raises(ConfigError, match="can't find"):
        locate(name)


def test_an_included_file_may_be_in_the_working_folder_or_come_with_moist(folders):
    work, own = folders
    (work / "recipe.yaml").write_text("k: 7\n")
    assert locate("recipe.yaml", own) == Path("recipe.yaml")
    assert locate("sweeps/short.yaml", own) == locate("short", own) == SWEEPS / "short.yaml"


def test_different_files_of_one_name_are_ambiguous_and_equal_ones_are_not(folders):
    work, own = folders
    for folder in (work, own.parent):
        (folder / "recipe.yaml").write_text("k: 7\n")
    assert locate("recipe.yaml", own) == Path("recipe.yaml")
    (work / "recipe.yaml").write_text("k: 8\n")
    with pytest.raises(ConfigError, match=r"`recipe\.yaml` is ambiguous") as refused:
        locate("recipe.yaml", own)
    assert str(work / "recipe.yaml") in str(refused.value)
    assert str(own.parent / "recipe.yaml") in str(refused.value)
    assert locate(str(own.parent / "recipe.yaml"), own) == own.parent / "recipe.yaml"


def test_a_missing_file_is_reported_with_the_places_and_the_nearest_name(folders):
    work, own = folders
    with pytest.raises(ConfigError) as refused:
        locate("sweeps/shrt.yaml", own)
    for folder in (work, own.parent, own.parent.parent):
        assert f"`{folder}`" in refused.value.args[0]
    assert refused.value.hint == "did you mean `short`?"
    with pytest.raises(ConfigError) as refused:
        locate("papr")
    assert refused.value.hint == "did you mean `paper`?"
    with pytest.raises(ConfigError, match=r"`moist sweep list` shows them: .*paper, "):
        locate("zzz")


def test_the_words_of_a_command_after_run_are_what_an_agent_passes_on():
    command = ["${env}", "A=1", "moist", "run", "--home=x", "@a.yaml", "k=3", "${args_no_hyphens}"]
    assert included({"command": command}) == ["@a.yaml", "k=3"]
    assert included({"command": command[:3]}) == included({"command": "run"}) == []
    assert included({}) == []


def test_a_recipe_may_include_another_and_its_own_values_win(folders):
    _, own = folders
    (own.parent / "inner.yaml").write_text("k: 2\nseed: 3\ntemperature: 9\n")
    command = 'command: [moist, run, "@{}", seed=4, "${{args_no_hyphens}}"]\n'
    for name, inner, entries in (("outer", "inner", "k: {value: 5}"), ("own", "outer", "{}")):
        text = command.format(f"{inner}.yaml") + f"parameters:\n  {entries}\n"
        (own.parent / f"{name}.yaml").write_text(text)
    changed = {"k": 5, "seed": 4, "temperature": 9.0}
    assert flat(parse([f"@{own}"])) == flat(Config()) | changed
    assert parse([f"@{own}", "k=6"]).k == 6


def test_a_file_that_includes_itself_is_rejected(folders):
    _, own = folders
    for name, other in (("own", "other"), ("other", "own")):
        text = f'command: [run, "@{other}.yaml"]\nparameters: {{k: {{value: 1}}}}\n'
        (own.parent / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"includes itself: `own.yaml` -> `other.yaml` -> `own"):
        given([f"@{own}"])
