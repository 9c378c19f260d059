"""Names of entries in other packages: listed and checked without importing what they name."""

import sys
from collections.abc import Iterator
from pathlib import Path

import acme
import pytest
from acme import ADDED, PROJECT, installed

from moist.config import flat, keyed, sections
from moist.config.overrides import parse, place
from moist.config.schema import bounds, keys
from moist.errors import ConfigError

KEYS = {
    "routers": "router", "students": "student.arch", "teachers": "teacher.arch",
    "losses": "distill.loss", "datasets": "data.name",
}  # fmt: skip
"""The key of each registry."""
NAMES = [(KEYS[registry], name) for registry, names in ADDED.items() for name in names]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder of installed packages with the example's."""
    acme.install(tmp_path)
    with installed(tmp_path):
        yield tmp_path


def test_the_example_adds_one_of_each() -> None:
    assert ADDED.keys() == KEYS.keys()
    assert {spec.get("registry", "") for spec in keys().values()} == {
        "", *(f"moist.{registry}" for registry in KEYS)
    }  # fmt: skip


@pytest.mark.parametrize(("key", "name"), NAMES)
def test_a_name_of_an_installed_package_is_one_of_the_keys_values(site, key, name) -> None:
    config = parse([f"{key}={name}"])
    section, leaf = place(key)
    inner = getattr(config, section) if section else config
    assert bounds(keys()[key]).split(" | ").count(name) == 1
    assert flat(config)[key] == name
    assert keyed(inner)[leaf] == f"{name} (acme {PROJECT['version']})"
    assert parse([f"{key}={getattr(inner, leaf)}"]) == config
    assert "acme" not in sys.modules


@pytest.mark.parametrize(("key", "name"), NAMES)
def test_a_misspelled_name_is_answered_with_all_names_and_the_nearest(site, key, name) -> None:
    wrong = f"{name}_"
    with pytest.raises(ConfigError) as error:
        parse([f"{key}={wrong}"])
    assert str(error.value) == (
        f"`{key}={wrong}`: expected {bounds(keys()[key])}; did you mean `{name}`?"
    )


@pytest.mark.parametrize(("key", "name"), NAMES)
def test_a_name_of_no_installed_package_is_unknown(key, name) -> None:
    with pytest.raises(ConfigError, match=f"`{key}={name}`: expected"):
        parse([f"{key}={name}"])


def test_another_version_is_another_name_in_keys_and_not_in_records(site) -> None:
    before = parse(["student.arch=mlp"])
    acme.install(site, version="2.0+local")
    acme.forget()
    after = parse(["student.arch=mlp"])
    assert keyed(after.student)["arch"] == "mlp (acme 2.0)" != keyed(before.student)["arch"]
    assert flat(after) == flat(before)
    with pytest.raises(ConfigError, match=r"was of acme 1.0, and acme 2.0 is installed"):
        parse([f"student.arch={before.student.arch}"])


@pytest.mark.parametrize("key", ["distill.alpha=0.5", "data.root=/"])
def test_an_option_that_all_entries_but_one_read_is_read_by_those_of_packages(site, key) -> None:
    from moist.config.unread import check_read

    check_read(["distill.loss=logits", "data.name=stripes", key])


def test_a_weight_is_part_of_the_key_of_a_loss_from_a_package(site) -> None:
    one, other = (
        keyed(parse(["distill.loss=logits", f"distill.alpha={alpha}"]).distill)
        for alpha in (0.1, 0.2)
    )
    assert one != other


def test_two_packages_with_one_name_are_ambiguous(site) -> None:
    acme.install(site, name="other", points={"moist.routers": {"mlp": "other:mlp"}})
    acme.forget()
    with pytest.raises(ConfigError, match=r"`mlp` is ambiguous: acme 1.0 and other 1.0 add it"):
        parse(["router=mlp"])


def test_a_package_can_not_take_a_name_of_moists(site) -> None:
    acme.install(site, points={"moist.routers": {"linear": "acme:mlp"}})
    acme.forget()
    with pytest.raises(ConfigError, match=r"acme 1.0 adds `linear` to moist.routers, and moist"):
        parse(["router=linear"])


def test_a_network_of_a_package_that_is_missing_says_what_to_install(monkeypatch) -> None:
    from importlib.metadata import PackageNotFoundError

    from moist.config import plugins

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(plugins, "version", missing)
    with pytest.raises(ConfigError, match=r"(?s)needs timm, .*pip install 'moist\[timm\]'"):
        parse(["teacher.arch=timm:resnet10t"])


def test_sections_without_names_have_none(site) -> None:
    assert not any("registry" in keys()[key] for key in keys() if key.startswith("joint."))
    assert sections()
