"""Printed commands find the study that the command which printed them found."""

import io
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path

import click
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moist.cli.main import main
from moist.cli.options import HOME, STORAGE, study_ref
from moist.config.schema import keys
from moist.disk import URL
from moist.errors import ConfigError, StoreError, masked
from moist.study.ref import database_of, this_command
from moist.study.storage import load


def printed(*words: str, command: str = "moist best four", storage: bool = True) -> list[str]:
    """Return the words of a command as printed by another that was given `words`."""

    @click.command()
    @HOME
    @STORAGE
    def ask(home, storage: str | None) -> str:
        return study_ref("four", storage, home).locate(command, where)

    where = storage
    return shlex.split(ask.main(words, standalone_mode=False))[2:]


def test_options_given_on_the_command_line_are_given_again():
    assert printed() == ["four"]
    assert printed("--home", "/a b") == ["four", "--home", "/a b"]
    assert printed("--storage", "sqlite:////x.db") == ["four", "--storage", "sqlite:////x.db"]


def test_paths_in_printed_commands_are_absolute_and_so_work_in_any_folder(tmp_path, monkeypatch):
    (here := tmp_path / "it's here").mkdir()
    monkeypatch.chdir(here)
    words = printed("--home", "a b", "--storage", "sqlite:///a b/x.db")
    monkeypatch.chdir(tmp_path)
    assert words[1:4] == ["--home", f"{here}/a b", "--storage"]
    assert database_of(words[4], tmp_path) == here / "a b" / "x.db"
    assert printed(*words[1:]) == words


def test_options_set_by_environment_variables_are_not_repeated(monkeypatch):
    monkeypatch.setenv("MOIST_HOME", "there")
    monkeypatch.setenv("MOIST_STORAGE", "sqlite:///x.db")
    assert printed() == ["four"]
    assert printed("--home", "/here") == ["four", "--home", "/here"]


def test_a_password_is_not_printed():
    url = "postgresql://me:secret@host/name"
    assert printed("--storage", url)[-1] == "postgresql://me:***@host/name"


@pytest.mark.parametrize("own", ["--home=there", "--home there"])
def test_a_command_with_options_of_its_own_is_not_changed(own):
    assert printed("--home", "/here", command=f"moist best four {own}") == ["four", *own.split()]


def test_a_command_that_reads_no_study_needs_no_database():
    words = ["--home", "/here", "--storage", "sqlite:///x.db"]
    assert printed(*words, storage=False) == ["four", "--home", "/here"]


def test_a_command_about_the_study_names_it(tmp_path):
    ref = study_ref("four", None, tmp_path)
    assert ref.command("sweep status") == "moist sweep status four"
    assert ref.command("best", "--max", "mflops=1") == "moist best four --max mflops=1"


FORMS = (
    "postgresql://u:{}@127.0.0.1:1/db",
    "postgresql://u@127.0.0.1:1/db?sslmode=disable&password={}",
    "postgresql://dom/u:{}@127.0.0.1:1/db",
    "postgresql//u:{}@127.0.0.1/db",
    "mysql://u:{}@127.0.0.1:1/db",
    "sqlite:///x.db?password={}",
)
ORDINARY = ("ABCD", "A@BCD", "A BCD", "A/B:C#D", "%41BCD", "A&BCD")
PASSWORDS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=4)


def printed_about(storage: str) -> str:
    """Return all that is printed and stored when a storage is named in any place."""
    shown = io.StringIO()
    paths = [
        ["config", f"data.root={storage}", "data.name=folder"],
        ["plan", f"teacher.weights={storage}"],
        ["predict", "last", storage],
        ["show", "last", "--home", storage],
        ["config", f"@{storage}"],
    ]
    for words in (
        *(paths if URL.match(storage) else ()),
        ["pareto", "four", "--storage", storage],
        ["best", "four", f"--storage={storage}"],
        ["best", "four", storage],
        ["run", storage],
        ["sweep", "optuna", "quickstart", f"k={storage}"],
    ):
        sys.argv = ["moist", *words]
        with redirect_stdout(shown), redirect_stderr(shown), pytest.raises(SystemExit):
            main()
        shown.write(masked(f"it can't open {storage}, or `{storage}`"))
        if "--storage" in " ".join(words):
            shown.write(this_command())
    with suppress(ConfigError):
        database_of(storage, Path("home"))
        shown.write(study_ref("four", storage, Path("home")).command("best"))
    return shown.getvalue()


@cache
def usual(form: str) -> str:
    """Return what is printed about ordinary passwords."""
    return "".join(printed_about(form.format(one)) for one in ORDINARY)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=30)
@given(password=PASSWORDS)
@example("p@ss%2Fw#rd")
@example("se cret@word")
@example("secret&word")
@example("secret`w'o\"rd")
@example("://secret:word@")
def test_no_four_characters_of_a_password_are_shown(form: str, password: str) -> None:
    shown = printed_about(form.format(password))
    for piece in (password[i : i + 4] for i in range(len(password) - 3)):
        assert piece not in shown or piece in usual(form) or any(piece in key for key in keys())


@pytest.mark.parametrize(
    "storage", ["postgresql://u:secretword", "postgresql:u:secretword", "u:secretword@host/db"]
)
def test_of_a_url_that_can_not_be_parsed_only_the_scheme_is_shown(storage, tmp_path) -> None:
    with pytest.raises(ConfigError, match="is not a database URL") as error:
        database_of(storage, tmp_path)
    assert "secret" not in str(error.value) and "word" not in str(error.value).partition("\n")[0]


def test_the_key_of_wandb_is_masked(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert masked(f"401: {'k' * 40} is not valid") == "401: *** is not valid"


def test_a_missing_client_is_named_with_what_to_install(tmp_path) -> None:
    for storage, install in (
        ("mysql://u@h/d", "pip install mysqlclient"),
        ("mysql+pymysql://u@h/d", "pip install pymysql"),
        ("postgresql+psycopg2://u@h/d", "pip install psycopg2-binary"),
    ):
        with pytest.raises(StoreError, match="No module named") as error:
            load(study_ref("four", storage, tmp_path))
        assert install in error.value.hint
