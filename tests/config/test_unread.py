"""Settings without effect: an error in words and paths, not in a recipe for several systems."""

import pytest

from moist.config.overrides import parse
from moist.config.unread import check_read
from moist.errors import ConfigError
from moist.store.runs import command_for


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("data.root=IMAGES", "`data.root` has no effect with `data.name=digits`; it needs `data"),
        (
            "system=student k=3",
            "`k` has no effect with `system=student`; it needs `system=moist o",
        ),
        ("merge.alpha=0.2", "`merge.alpha` has no effect with `system=moist`; it needs `system=o"),
        ("joint.top=3", "`joint.top` has no effect with `joint.objective=hierarchical`; it needs"),
        (
            "student.arch=resnet8 hidden_width=9",
            "`hidden_width` has no effect with `student.arch=",
        ),
        ("cascade.defer=0.5", "`cascade.defer` has no effect with `cascade.fallback=none`; it ne"),
    ],
)
def test_a_word_without_effect_is_rejected_with_what_it_needs(words, reason):
    with pytest.raises(ConfigError) as caught:
        check_read(words.split())
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    "words",
    ["", "k=2 router=linear routing.widths=8", "@short system=student", "system=ones merge.rank=2 "
     "merge.method=svd", "data.name=folder data.root=IMAGES", "@paper teacher.weights=x.pth"],
)  # fmt: skip
def test_words_that_are_read_and_recipes_are_allowed(words):
    check_read(words.split())


def test_a_path_that_is_not_read_is_an_error_in_a_file_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("data.root: IMAGES\njoint.top: 3\n")
    with pytest.raises(ConfigError, match=r"^`data.root` has no effect with [^\n]*\nhint"):
        check_read([f"@{tmp_path / 'mine.yaml'}"])


def test_a_printed_command_has_no_word_that_would_be_rejected():
    words = command_for(parse(["@short", "system=student", "temperature=2"])).split()[2:]
    check_read(words)
    assert "temperature=2.0" in words and not any(word.startswith("joint.") for word in words)
