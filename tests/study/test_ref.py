"""Printed commands find the study that the command which printed them found."""

import shlex

import click
import pytest

from moist.cli.options import HOME, STORAGE, study_ref


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
    assert printed("--home", "a b") == ["four", "--home", "a b"]
    assert printed("--storage", "sqlite:///x.db") == ["four", "--storage", "sqlite:///x.db"]


def test_options_set_by_environment_variables_are_not_repeated(monkeypatch):
    monkeypatch.setenv("MOIST_HOME", "there")
    monkeypatch.setenv("MOIST_STORAGE", "sqlite:///x.db")
    assert printed() == ["four"]
    assert printed("--home", "here") == ["four", "--home", "here"]


def test_a_password_is_not_printed():
    url = "postgresql://me:secret@host/name"
    assert printed("--storage", url)[-1] == "postgresql://me:***@host/name"


@pytest.mark.parametrize("own", ["--home=there", "--home there"])
def test_a_command_with_options_of_its_own_is_not_changed(own):
    assert printed("--home", "here", command=f"moist best four {own}") == ["four", *own.split()]


def test_a_command_that_reads_no_study_needs_no_database():
    words = ["--home", "here", "--storage", "sqlite:///x.db"]
    assert printed(*words, storage=False) == ["four", "--home", "here"]


def test_a_command_about_the_study_names_it(tmp_path):
    ref = study_ref("four", None, tmp_path)
    assert ref.command("sweep status") == "moist sweep status four"
    assert ref.command("best", "--max", "mflops=1") == "moist best four --max mflops=1"
