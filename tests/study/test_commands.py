"""Commands that are printed look where this one was told to look."""

import shlex

import click
import pytest

from moist.cli.options import HOME, STORAGE
from moist.study.commands import placed


def said(*words: str, command: str = "moist best four", storage: bool = True) -> list[str]:
    """The words of a command as another one, of these words, prints it."""

    @click.command()
    @HOME
    @STORAGE
    def ask(**_: object) -> str:
        return placed(command, storage)

    return shlex.split(ask.main(words, standalone_mode=False))[2:]


def test_what_was_given_on_the_command_line_is_given_again():
    assert said() == ["four"]
    assert said("--home", "a b") == ["four", "--home", "a b"]
    assert said("--storage", "sqlite:///x.db") == ["four", "--storage", "sqlite:///x.db"]


def test_what_an_environment_variable_says_it_says_again(monkeypatch):
    monkeypatch.setenv("MOIST_HOME", "there")
    monkeypatch.setenv("MOIST_STORAGE", "sqlite:///x.db")
    assert said() == ["four"]
    assert said("--home", "here") == ["four", "--home", "here"]


def test_a_password_is_not_printed():
    url = "postgresql://me:secret@host/name"
    assert said("--storage", url)[-1] == "postgresql://me:***@host/name"


@pytest.mark.parametrize("own", ["--home=there", "--home there"])
def test_a_command_that_says_itself_where_to_look_is_left_alone(own):
    assert said("--home", "here", command=f"moist best four {own}") == ["four", *own.split()]


def test_a_command_that_asks_no_study_needs_no_database():
    words = ["--home", "here", "--storage", "sqlite:///x.db"]
    assert said(*words, storage=False) == ["four", "--home", "here"]


def test_outside_of_a_command_a_command_is_itself():
    assert placed("moist best four") == "moist best four"
