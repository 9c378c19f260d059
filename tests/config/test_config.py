"""Every key is described, bounded and read by its own type; mistakes are reported with a fix."""

import inspect
import re
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from moist.config import (
    Config,
    JointConfig,
    Section,
    StudentConfig,
    TeacherConfig,
    conflicts,
    flat,
    keyed,
    sections,
    systems,
)
from moist.config.fields import Peer, added
from moist.config.overrides import build, parse
from moist.config.schema import bounds, choices, keys
from moist.errors import ConfigError

SPECS = keys()
LOCATIONS = {"data.root", "teacher.weights"}
PEERS = get_args(Peer)


def others(key: str, spec: dict[str, Any] | None = None) -> list[str]:
    """Return valid values of a key, as text, by its schema; its default may be among them."""
    spec = spec or SPECS[key]
    if "items" in spec:
        return ["4,8", "8,4"]
    if "anyOf" in spec:
        return [value for one in spec["anyOf"] for value in others(key, one)]
    if "enum" in spec:
        return [str(value) for value in spec["enum"]]
    if "const" in spec:
        return [str(spec["const"])]
    if spec["type"] == "boolean":
        return ["true", "false"]
    if spec["type"] == "null":
        return ["none"]
    if spec["type"] == "string":
        return [f"/tmp/{key}"]
    low = spec.get("minimum", spec.get("exclusiveMinimum"))
    high = spec.get("maximum", spec.get("exclusiveMaximum"))
    number = int if spec["type"] == "integer" else float
    between = [number(low + (high - low) * part) for part in (0.001, 0.01, 0.25)]
    edges = [spec[name] for name in ("minimum", "maximum") if name in spec]
    return [str(value) for value in [*between, *edges]]


def needed(key: str, value: str) -> list[str]:
    """Return the overrides without which a value conflicts with a default."""
    if key.endswith(".horizon") and value != "none":
        return [f"{key.removesuffix('.horizon')}.epochs=1"]
    if key == "joint.objective":
        return ["joint.mask_students=false"]
    if (key, value) == ("system", "specialists"):
        return ["cascade.fallback=resnet8"]
    return ["k=1000"] if key == "joint.top" else []


def test_every_key_has_a_description_and_its_values():
    assert list(SPECS) == list(flat(Config()))
    for name, spec in SPECS.items():
        assert spec["description"], name
        assert bounds(spec) not in {"", "integer", "number"}, name


@pytest.mark.parametrize("section", [Config, *sections().values()])
def test_every_number_has_two_bounds_and_a_default_within_them(section):
    assert section.model_validate(section().model_dump()) == section()
    for name, spec in section.model_json_schema()["properties"].items():
        for one in (spec, *spec.get("anyOf", []), spec.get("items", {})):
            if one.get("type") in {"integer", "number"}:
                assert any("inimum" in bound for bound in one), name
                assert any("aximum" in bound for bound in one), name


@pytest.mark.parametrize("key", SPECS)
def test_a_default_written_out_changes_nothing(key):
    assert parse([f"{key}={flat(Config())[key]}"]) == Config()


@pytest.mark.parametrize("key", SPECS)
def test_every_valid_value_is_read_and_returned_under_its_key(key):
    for value in others(key):
        more = needed(key, value)
        config = parse([f"{key}={value}", *more])
        again = parse([f"{name}={leaf}" for name, leaf in flat(config).items()])
        assert again == config
        changed = {name for name, leaf in flat(config).items() if leaf != flat(parse(more))[name]}
        assert changed <= {key}


def digests(key: str, *more: str) -> tuple[set[str], set[str]]:
    """Return, over all values of a key, the keyed and the complete forms of the config."""
    changed = [
        build(dict(m.split("=") for m in [f"{key}={value}", *needed(key, value), *more]))
        for value in others(key)
    ]
    return {str(keyed(one)) for one in changed}, {str(flat(one)) for one in changed}


@pytest.mark.parametrize("key", SPECS)
def test_every_key_but_that_of_a_path_is_part_of_the_digest(key):
    found, distinct = digests(key, *using(key))
    assert len(found) == (1 if key in LOCATIONS else len(distinct))
    assert len(distinct) > 1


@pytest.mark.parametrize("key", [key for key in SPECS if "only" in SPECS[key]])
def test_a_key_that_is_not_used_is_not_part_of_the_digest(key):
    """It is so under each choice of its section that does not use the key."""
    section = key.partition(".")[0]
    for by, at in SPECS[key]["only"].items():
        for choice in set(SPECS[f"{section}.{by}"]["enum"]) - set(at):
            settled = [one for one in using(key) if not one.startswith(f"{section}.{by}=")]
            found, distinct = digests(key, *settled, f"{section}.{by}={choice}")
            assert len(found) == 1 < len(distinct)


def using(key: str) -> list[str]:
    """Return the overrides under which a key is used."""
    section = key.partition(".")[0]
    found = [f"{section}.{by}={at[0]}" for by, at in SPECS[key].get("only", {}).items()]
    return [*found, "joint.mask_students=false"] if found and section == "joint" else found


def test_paths_in_a_nested_section_are_not_part_of_the_digest():
    class Inner(Section):
        nested: TeacherConfig = TeacherConfig()

    class Outer(Section):
        inner: Inner = Inner()

    found = keyed(Outer(inner=Inner(nested=TeacherConfig(weights=Path("x")))))
    assert found == {"inner": {"nested": keyed(TeacherConfig())}}
    assert "weights" not in found["inner"]["nested"] and "lr" in found["inner"]["nested"]


def test_a_field_that_was_added_later_is_part_of_the_digest_once_it_is_not_its_default():
    class Before(Section):
        kind: str = "a"

    class Inner(Section):
        width: int = 1

    class After(Before):
        extra: int = Field(0, json_schema_extra=added())
        inner: Inner = Field(Inner(), json_schema_extra=added())
        only_b: int = Field(0, json_schema_extra=added(kind="b"))

    assert keyed(After()) == keyed(After(only_b=1)) == keyed(Before())
    assert keyed(After(extra=2)) == keyed(Before()) | {"extra": 2}
    assert keyed(After(inner=Inner(width=2))) == keyed(Before()) | {"inner": {"width": 2}}
    assert keyed(After(kind="b", only_b=1)) == keyed(Before(kind="b")) | {"only_b": 1}


def test_a_config_can_not_be_changed_in_place():
    with pytest.raises(ValidationError):
        Config().k = 2


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("augment.flip=True", "augment.flip", True),
        ("augment.flip=False", "augment.flip", False),
        ("teacher.horizon=None", "teacher.horizon", None),
        ("teacher.horizon=null", "teacher.horizon", None),
        ("teacher.weights=None", "teacher.weights", None),
        ("data.image_size=", "data.image_size", None),
        ("teacher.lr=1e-4", "teacher.lr", 1e-4),
        ("teacher.lr=1E-4", "teacher.lr", 1e-4),
        ("k=3.0", "k", 3),
        ("k=auto", "k", "auto"),
        (" k = 4 ", "k", 4),
        ("student.channels=[8, 16]", "student.channels", "8,16"),
        ("student.channels=(8, 16)", "student.channels", "8,16"),
        ("routing.widths=5", "routing.widths", "5"),
        ("routing.widths=[]", "routing.widths", ""),
        ("data.root=a=b", "data.root", "a=b"),
    ],
)
def test_values_are_read_as_a_shell_or_an_agent_prints_them(override, key, value):
    found = flat(parse([override]))[key]
    assert found == value and type(found) is type(value)


@given(st.lists(st.integers(1, 65536), max_size=4))
def test_widths_are_read_in_every_notation_that_has_one_meaning(widths):
    separated = (separator.join(map(str, widths)) for separator in (",", ", ", " ,"))
    for text in (*separated, str(widths), str(tuple(widths)), f" {widths} "):
        assert parse([f"routing.widths={text}"]).routing.widths == tuple(widths)


@pytest.mark.parametrize(
    "text",
    [
        "128 64", "128;64", "128x64", "128\t64", "[128, 64", "128, 64)", "(128, 64]", "128,,64",
        ",64", "[[128], [64]]", "[128 64]",
    ],
)  # fmt: skip
def test_widths_in_another_notation_are_rejected_whole(text):
    for value in (text, [text]):  # on a command line, and in a list of a file
        with pytest.raises(ConfigError, match=r"`routing.widths=.*: expected 1 to 65536, comma"):
            build({"routing.widths": value})


def test_later_overrides_win_and_files_count_at_their_position(tmp_path):
    (tmp_path / "f.yaml").write_text("k: 4\nseed: 7\n")
    file = f"@{tmp_path / 'f.yaml'}"
    assert parse(["k=2", "k=5"]).k == 5
    assert (parse(["k=2", file]).k, parse([file, "k=2"]).k) == (4, 2)
    assert parse([file, "k=2"]).seed == 7


# mistakes


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("distill.temprature", "temperature"),
        ("distill.temperature", "temperature"),
        ("distil.alpha", "distill.alpha"),
        ("jont.epochs", "joint.epochs"),
        ("distill.batchsize", "distill.batch_size"),
        ("hiden_width", "hidden_width"),
        ("router.dropout", "routing.dropout"),
        ("teacher_epochs", "teacher.epochs"),
        ("tie", "distill.tie"),
    ],
)
def test_an_unknown_key_is_reported_with_the_nearest_one(key, near):
    assert refusal(f"{key}=1") == f"unknown key `{key}`\nhint: did you mean `{near}`?"


def test_a_key_of_several_sections_is_reported_with_all_of_them():
    assert refusal("views=1").endswith("did you mean `distill.views` or `ensemble.views`?")
    message = refusal("epochs=1")
    names = ("teacher", "distill", "routing", "joint", "specialists", "merge")
    assert message.endswith(" or ".join(f"`{name}.epochs`" for name in names) + "?")


def test_a_key_unlike_all_others_is_reported_with_the_command_that_lists_them():
    assert refusal("zzz=1") == "unknown key `zzz`\nhint: `moist config --keys` lists all keys"


def test_the_name_of_a_section_is_reported_with_one_of_its_keys():
    assert refusal("teacher=1").endswith("hint: give one of its keys, as in `teacher.epochs=...`")


@pytest.mark.parametrize("word", ["k", "run", ""])
def test_an_argument_that_is_not_an_override_is_reported_with_an_example(word):
    assert refusal(word).startswith(f"expected KEY=VALUE or @FILE, found `{word}`\nhint: ")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("k=0", "1 to 1000 | auto"),
        ("k=three", "1 to 1000 | auto"),
        ("k=1.5", "1 to 1000 | auto"),
        ("k=True", "1 to 1000 | auto"),
        ("seed=-1", "0 to below 2147483648"),
        ("router=mlp", "cnn | linear | transformer | shared | oracle"),
        ("augment.flip=maybe", "true | false"),
        ("data.image_size=0", "1 to 1024 | none"),
        ("teacher.lr=0", "above 0 to 10"),
        ("teacher.lr=nan", "above 0 to 10"),
        ("latency.seconds=inf", "above 0 to 3600"),
        ("student.channels=0,8", "1 to 65536, comma-separated"),
        ("student.arch=vit", f"cnn | residual | {' | '.join(PEERS)}"),
        ("cascade.fallback=cnn", f"none | teacher | {' | '.join(PEERS)}"),
        ("mixture.top=3", "1 to 2"),
    ],
)
def test_an_invalid_value_is_reported_in_one_line_with_the_valid_ones(override, expected):
    assert refusal(override) == f"`{override}`: expected {expected}"


@pytest.mark.parametrize("key", [key for key in SPECS if "aximum" in str(SPECS[key])])
def test_values_beyond_either_bound_are_rejected(key):
    for value in ("-1", "1e12"):
        assert refusal(f"{key}={value}").startswith(f"`{key}={value}`: expected ")


def test_all_invalid_values_are_reported_at_once():
    message = refusal("k=0", "seed=x").splitlines()
    assert [line.partition("=")[0] for line in message] == ["`k", "`seed"]


UNMASKED = "joint.mask_students=false"
ALONE = {
    "teacher.horizon=3 teacher.epochs=15": "`teacher.horizon=3` is .*`teacher.epochs=15`",
    "joint.horizon=1 joint.epochs=2": "`joint.horizon=1` is .*`joint.epochs=2`",
    "merge.nesterov=true merge.momentum=0": "`merge.nesterov=true` needs a `merge.momentum`",
    "student.channels=8": "`student.channels` needs two widths, found 1",
    "student.arch=residual student.channels=[]": "`student.channels` needs a width .*found none",
    "student.arch=residual student.channels=8 student.blocks=1,2": "`student.blocks` .* found 2",
    "joint.objective=switch": "`joint.objective=switch` .*; set `joint.mask_students=false`",
    "joint.objective=students_only": "`joint.objective=students_only` .*`joint.mask_students",
    "joint.objective=noisy_topk": "`joint.objective=noisy_topk` .*`joint.mask_students",
    f"joint.objective=students_only joint.z_loss=0.1 {UNMASKED}": "`joint.z_loss` .*students_only",
    "joint.objective=routed": "`joint.objective=routed` .*; set `joint.mask_students=false`",
    f"joint.objective=noisy_topk joint.top=3 k=auto {UNMASKED}": "`joint.top=3` .*`k=auto` may",
    "distill.standardize=true distill.loss=dist": "`distill.standardize` .*`distill.loss=kd`",
}
"""Conflicts inside a section: its keys are named with the section."""

TOGETHER = {
    "router=oracle joint.objective=em": "`router=oracle` .*`joint.objective=em`",
    "router=oracle system=ones": "`router=oracle` .*`system=ones`",
    "router=oracle joint.z_loss=0.1": "`router=oracle` .*`joint.z_loss`",
    "system=ones merge.head=owner merge.method=random":
        "`merge.head=owner` .*`merge.method=random`",
    "system=ensemble k=1 ensemble.views=filtered": "`ensemble.views=filtered` .*`k=1`",
    "distill.loss=moe_kd distill.warmup=2": "`distill.warmup` .*`distill.loss=moe_kd`",
    "system=student cascade.fallback=resnet8 student.arch=resnet8":
        "`cascade.fallback=resnet8` .*`student.arch=resnet8`",
    "system=specialists": "`cascade.fallback=none` .*`system=specialists`",
    "router=oracle mixture.top=2": "`router=oracle` .*`mixture.top=2`",
    "router=oracle cascade.fallback=teacher": "`router=oracle` .*`cascade.fallback`",
    "router=shared student.arch=resnet8": "`router=shared` .*`student.arch=resnet8`",
    f"router=shared joint.objective=students_only {UNMASKED}":
        "`router=shared` .*`joint.objective=students_only`",
    "router=shared system=ones": "`system=ones` .*`router=shared`",
    "system=ensemble k=auto": "`k=auto` .*`system=ensemble`",
    "system=ones merge.method=topk student.arch=resnet8":
        "`merge.method=topk` .*`student.arch=resnet8`",
    "system=ones merge.method=svd merge.base=absolute distill.loss=moe_kd":
        "`merge.method=svd` .*`distill.loss=moe_kd`; set `merge.base=delta`",
    "system=ones merge.head=owner distill.loss=moe_kd":
        "`merge.head=owner` .*`distill.loss=moe_kd`",
    "distill.loss=moe_kd system=ensemble": "`system=ensemble` .*`distill.loss=moe_kd`",
    "distill.loss=moe_kd cascade.fallback=resnet8":
        "`cascade.fallback=resnet8` .*`distill.loss=moe_kd`",
    f"joint.objective=noisy_topk joint.top=4 {UNMASKED}": "`joint.top=4` .*`k=3` gives",
    "system=ones merge.method=random distill.loss=moe_kd":
        "`merge.method=random` .*`distill.loss=moe_kd`",
    "router=oracle latency.runtime=onnxruntime": "`router=oracle` .*`latency.runtime=onnxruntime`",
    "mixture.top=2 system=student": "`mixture.top=2` .*`system=student`",
    "mixture.top=2 k=1": "`mixture.top=2` .*`k=1`",
    "mixture.top=2 cascade.fallback=teacher": "choose `mixture.top=2` or `cascade.fallback`",
    "mixture.top=2 data.val_fraction=0": "the threshold of .*`data.val_fraction=0`",
}  # fmt: skip
"""Conflicts between sections: both keys are named."""


@pytest.mark.parametrize(("overrides", "message"), [*ALONE.items(), *TOGETHER.items()])
def test_conflicting_values_are_reported_by_name(overrides, message):
    assert re.match(message, refusal(*overrides.split()))


def test_every_conflict_has_its_example():
    source = inspect.getsource(conflicts) + inspect.getsource(systems)
    assert len(re.findall(r"\byield (?!from)", source)) == len(TOGETHER)


@pytest.mark.parametrize(
    "overrides",
    [
        "router=oracle system=ensemble",
        "router=shared system=student student.arch=resnet8",
        "system=ones merge.method=topk distill.loss=moe_kd distill.gate=teacher",
        "router=oracle system=student cascade.fallback=teacher",
        "router=shared mixture.top=2",
        "router=shared student.arch=residual student.channels=8 student.blocks=3",
        "router=shared student.arch=residual_7mf cascade.fallback=residual_26mf",
        "router=shared cascade.fallback=shufflenetv2_x0_5",
        "system=ones merge.method=svd student.arch=resnet8",
        "system=ones merge.method=topk merge.head=owner",
        "system=ones distill.loss=moe_kd",
        "system=ones cascade.fallback=resnet8",
        "system=ensemble data.val_fraction=0",
        "system=ensemble cascade.fallback=teacher k=1",
        "distill.loss=moe_kd cascade.fallback=teacher",
        "distill.standardize=true distill.loss=dkd",
        f"joint.objective=noisy_topk k=auto joint.top=2 {UNMASKED}",
        "merge.method=topk distill.loss=moe_kd",
    ],
)
def test_values_without_a_conflict_are_accepted(overrides):
    assert parse(overrides.split()) != Config()


# files


def test_a_file_of_values_and_a_sweep_of_single_values_are_equivalent(tmp_path):
    values = {"k": 4, "teacher.lr": "1e-4", "data.val_fraction": 0, "augment.flip": True}
    plain, sweep = tmp_path / "plain.yaml", tmp_path / "sweep.yaml"
    plain.write_text(yaml.safe_dump(values))
    single = {name: {"value": value} for name, value in values.items()}
    sweep.write_text(yaml.safe_dump({"program": "moist", "method": "grid", "parameters": single}))
    expected = parse(["k=4", "teacher.lr=1e-4", "data.val_fraction=0", "augment.flip=true"])
    assert parse([f"@{plain}"]) == parse([f"@{sweep}"]) == expected


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("teacher.lr: 1e-4", "teacher.lr", 1e-4),
        ("augment.flip: no", "augment.flip", False),
        ("data.image_size: null", "data.image_size", None),
        ("data.image_size:", "data.image_size", None),
        ("data.root: 0123", "data.root", "0123"),
        ("student.channels: [8, 16]", "student.channels", "8,16"),
        ("k: auto", "k", "auto"),
    ],
)
def test_a_file_is_read_by_the_types_of_its_keys(tmp_path, line, key, value):
    (tmp_path / "f.yaml").write_text(line + "\n")
    assert flat(parse([f"@{tmp_path / 'f.yaml'}"]))[key] == value


@pytest.mark.parametrize("spec", ["{values: [1, 2]}", "{min: 1}", "{value: 1, values: [1]}", "3"])
def test_a_sweep_of_many_runs_is_rejected_as_a_file_of_values(tmp_path, spec):
    (tmp_path / "s.yaml").write_text(f"parameters:\n  seed: {{value: 1}}\n  k: {spec}\n")
    message = refusal(f"@{tmp_path / 's.yaml'}")
    assert "describes many runs: `k` has no single `value`" in message and "hint: " in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k: [", "is not YAML"),
        ("\0", "is not YAML"),
        ("", "has no `key: value` lines"),
        ("- k", "has no `key: value` lines"),
        ("parameters: 3", "`parameters` has no"),
        ("teacher: {epochs: 3}", "hint: give one of its keys"),
        ("3: 4", "unknown key `3`"),
        ("k: {value: 3}", "expected 1 to 1000 | auto"),
        ("distil.alpha: 1", "did you mean `distill.alpha`?"),
    ],
)
def test_a_file_without_values_is_rejected(tmp_path, text, message):
    (tmp_path / "f.yaml").write_text(text)
    assert message in refusal(f"@{tmp_path / 'f.yaml'}")


def test_an_unreadable_file_is_reported_by_name(tmp_path):
    assert refusal(f"@{tmp_path}") == f"can't read `{tmp_path}`: Is a directory"
    assert "No such file" in refusal(f"@{tmp_path / 'nowhere'}")
    (tmp_path / "latin").write_bytes(b"k: \xff")
    assert "is not YAML" in refusal(f"@{tmp_path / 'latin'}")


# laws


@given(st.dictionaries(st.sampled_from(sorted(SPECS)), st.integers(0, 5), max_size=6))
def test_the_flat_form_of_a_config_builds_the_same_config(picks):
    chosen = {key: others(key)[pick % len(others(key))] for key, pick in picks.items()}
    try:
        config = build(chosen)
    except ConfigError as error:
        assert "`" in str(error)
    else:
        assert build(flat(config)) == config
        assert parse(f"{name}={value}" for name, value in flat(config).items()) == config


def test_no_two_keys_of_a_section_have_the_same_description():
    for name in sections():
        message = [
            spec["description"] for key, spec in SPECS.items() if key.startswith(f"{name}.")
        ]
        assert all(a != b for a, b in combinations(message, 2))


def test_choices_are_the_valid_names_of_a_field():
    objectives = ("hierarchical", "routed", "students_only", "em", "switch", "noisy_topk")
    assert choices(JointConfig, "objective") == objectives
    assert choices(StudentConfig, "arch") == ("cnn", "residual", *PEERS)
