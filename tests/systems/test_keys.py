"""Which config key changes the key of which stage, in every system.

Each stage has a list of the config keys that it takes; a changed one changes the keys of exactly
the stages that take it, and of those that need their outputs.
"""

import shutil
from pathlib import Path

import pytest
from recipes import CALLED, SPECIALISTS, env, plan_of, tiny, weights

from moist.config import Config, JointConfig, flat
from moist.config.schema import choices, keys
from moist.config.systems import SYSTEMS
from moist.config.unread import unread as unread_keys
from moist.pipeline import run, stages
from moist.stages import LATENCIES
from moist.store.calls import Call
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.store import Store
from moist.systems.outputs import run_key

COMMON = {"augment", "precision", "seed"}
SIZES = {"student", "hidden_width"}
GATHERING = {f"merge.{name}" for name in ("method", "base", "layout", "score", "rank", "scale")}
TAKES: dict[str, set[str]] = {
    "prepare": {"data"},
    "measure_latency": {"latency", "precision", "teacher.arch", *SIZES},
    "measure_exported_latency": {"latency", "precision", "teacher.arch", *SIZES},
    "train_teacher": {"teacher", *COMMON},
    "load_teacher": {"teacher.arch"},
    "teacher_logits": {"distill.views", "distill.mirror", *COMMON},
    "teacher_levels": {"distill.experts", *COMMON},
    "distill_student": {"distill", "temperature", *SIZES, *COMMON},
    "cluster_classes": {"cluster", "k", "seed"},
    "pretrain_router": {"router", "routing", *COMMON},
    "train_jointly": {"joint", *COMMON},
    "gather_students": {*GATHERING, "merge.head", *COMMON},
    "mixture_logits": {"merge.teacher", "distill.views", "temperature", *COMMON},
    "integrate": {"merge", "distill.views", "temperature", *COMMON},
    "distill_ensemble": {"ensemble", "k", "distill", "temperature", *SIZES, *COMMON},
    "distill_fallback": {"cascade.fallback", "distill", "temperature", *COMMON},
    "student_logits": {"distill.views", *COMMON},
    "train_specialists": {"specialists", "distill", "temperature", *COMMON},
    "choose_threshold": {"precision"},
    "evaluate": {"precision"},
}
"""Config keys and sections, by the stage that takes them."""

LATENCY: dict[str, set[str]] = {
    "moist": {"k", "router", "routing.widths", "routing.dropout", "joint.mask_students"},
    "ensemble": {"k", "ensemble"},
    "ones": set(),
    "student": set(),
    "specialists": {"k"},
}
"""What latency takes of each system, if the router is the tiny config's, which is linear."""

SECTIONS = {
    "teacher": "", "distill": "", "routing": "", "joint": "", "merge": "system=ones",
    "specialists": SPECIALISTS,
}  # fmt: skip
"""The sections of trainings, and a system that has each."""

UNREAD = {
    "joint.teacher_prior", "joint.prior_weight", "joint.balance", "joint.balance_form",
    "joint.top",
    "distill.target_weight", "distill.others_weight", "distill.rows_weight",
    "distill.columns_weight", "distill.gate", "distill.experts", "distill.tie",
    "merge.layout", "merge.score", "merge.rank", "merge.scale", "student.blocks",
    "teacher.stem_epochs",
    *(f"{section}.{name}" for section in SECTIONS
      for name in ("momentum", "nesterov")),
}  # fmt: skip
"""What the tiny config does not read."""

READ = {
    "joint.objective=em joint.mask_students=false": ("joint.teacher_prior", "joint.prior_weight"),
    "joint.objective=switch joint.mask_students=false": ("joint.balance", "joint.balance_form"),
    "joint.objective=noisy_topk joint.mask_students=false k=3": (
        "joint.balance", "joint.balance_form", "joint.top",
    ),
    "distill.loss=dkd": ("distill.target_weight", "distill.others_weight"),
    "distill.loss=dist": ("distill.rows_weight", "distill.columns_weight"),
    "distill.loss=moe_kd": ("distill.gate", "distill.experts", "distill.tie"),
    **{
        f"{section}.optimizer=sgd {under}": (f"{section}.momentum", f"{section}.nesterov")
        for section, under in SECTIONS.items()
    },
    "teacher.arch=fastnet": ("teacher.stem_epochs",),
    "system=ones merge.method=topk": ("merge.layout", "merge.score"),
    "system=ones merge.method=svd": ("merge.rank", "merge.scale"),
    "student.arch=residual": ("student.blocks",),
}  # fmt: skip
"""The same keys, by what must be chosen for them to be read."""

VAIN = {
    "system=ones merge.method=average": "merge.rank=2 merge.scale=sum",
    "system=ones merge.method=svd": "merge.score=in",
    "system=ones merge.method=ancestor": "merge.layout=block",
    "system=ones merge.method=topk": "merge.base=absolute",
    "system=ones merge.teacher=none": "merge.alpha=0.2",
    "cascade.fallback=teacher": "cascade.fallback=teacher mixture.second=0.5",
    "teacher.arch=resnet8": "data.root=/elsewhere",
    "student.arch=residual": "hidden_width=64 student.batch_norm=true",
    "system=student student.arch=residual_7mf": "student.channels=4,8 student.blocks=4",
    "student.arch=resnet8": "hidden_width=9 student.channels=4,4 student.batch_norm=true",
}
"""Changes of what is not read under other choices."""

OTHER = {
    "data.image_size": "16", "data.val_fraction": "0.2", "k": "4", "augment.shift": "2",
    "precision": "bf16", "teacher.arch": "resnet18", "student.channels": "16,16",
    "student.blocks": "1,3",
    "cluster.method": "random", "router": "cnn", "routing.widths": "32", "joint.objective": "em",
    "seed": "1", "student.arch": "resnet20", "data.root": "/elsewhere",
}  # fmt: skip


def takes(stage: str, c: Config) -> set[str]:
    """List the keys and sections that a stage takes from a config."""
    found = TAKES[stage]
    if stage in LATENCIES:
        latent = {"distill.gate", "distill.experts"} if c.distill.loss == "moe_kd" else set()
        found = found | LATENCY[c.system] | latent
    if stage == "choose_threshold":
        found = found | {"mixture.second" if c.mixture.top == 2 else "cascade.defer"}
    return found


def another(key: str) -> str:
    """Return an admissible value of a key that is not the tiny config's."""
    if key in OTHER:
        return OTHER[key]
    spec, now = keys()[key], flat(tiny())[key]
    for one in (spec, *spec.get("anyOf", [])):
        if "enum" in one:
            return next(str(value) for value in one["enum"] if value != now)
        if one.get("type") == "boolean":
            return str(not now)
        if one.get("type") == "integer":
            return str(11 if now is None else now + 1)
        if one.get("type") == "number":
            return str((now + one.get("minimum", one.get("exclusiveMinimum"))) / 2 or 0.5)
    raise AssertionError(key)


def names(calls: list[Call]) -> list[str]:
    """Name the calls of a run, those of one stage by their number."""
    stages = [call.stage for call in calls]
    return [f"{stage}/{stages[:i].count(stage)}" for i, stage in enumerate(stages)]


def changed(before: list[Call], after: list[Call]) -> set[str]:
    """Find the calls whose keys differ, in two runs of the same stages."""
    assert names(before) == names(after)
    pairs = zip(names(before), before, after, strict=True)
    return {name for name, one, other in pairs if one.key != other.key}


def expected(calls: list[Call], key: str, config: Config) -> set[str]:
    """Find the calls that take a config key, and those that need their outputs."""
    found, stale = set(), set()
    for name, call in zip(names(calls), calls, strict=True):
        if {key, key.partition(".")[0]} & takes(call.stage, config) or stale & {*call.needs}:
            found.add(name)
            stale.add(call.key)
    return found


NO_CHANGE = {
    "system", "mixture.top", "cascade.fallback", "data.name", "teacher.weights", "latency.runtime"
}  # fmt: skip
"""These decide which stages are called."""
LATENT = "distill.loss=moe_kd"


@pytest.mark.parametrize("under", CALLED)
def test_a_key_changes_the_stages_that_take_it_and_those_that_need_their_outputs(tmp_path, under):
    config, before, seen = tiny(*under.split()), plan_of(tmp_path, *under.split()), set()
    ignored = unread_keys(config)
    unread = {*UNREAD, "data.root", "data.test_fraction", "data.crop"} - {*READ.get(under, ())}
    tried = keys().keys() - NO_CHANGE
    if under == LATENT:  # soft losses have a weight, a ramp and logits; this one has none of them
        tried -= {"distill.loss", "distill.warmup", "distill.standardize"}
        unread |= {"distill.alpha"}
    for key in tried:
        after = plan_of(tmp_path, *under.split(), f"{key}={another(key)}")
        want = set() if key in unread else expected(before, key, config)
        assert changed(before, after) == want, key
        seen |= want
        assert (key in ignored) == (not want), key  # what moist.config knows without any stage
    assert seen == {*names(before)}  # no stage is free of the config


@pytest.mark.parametrize(("under", "key"), [(u, key) for u, keys in READ.items() for key in keys])
def test_what_is_not_read_decides_nothing_until_it_is(tmp_path, under, key):
    before = plan_of(tmp_path, *under.split())
    after = plan_of(tmp_path, *under.split(), f"{key}={another(key)}")
    assert changed(before, after) == expected(before, key, tiny(*under.split())) != set()
    assert key in UNREAD


def test_every_key_that_is_not_read_is_read_somewhere():
    assert {key for found in READ.values() for key in found} == UNREAD


@pytest.mark.parametrize(("under", "change"), VAIN.items())
def test_what_a_choice_does_not_read_decides_nothing(tmp_path, under, change):
    before = plan_of(tmp_path, *under.split())
    assert changed(before, plan_of(tmp_path, *under.split(), *change.split())) == set()


@pytest.mark.parametrize(
    ("under", "change", "stage"),
    [
        ("cascade.fallback=resnet8", "cascade.fallback=resnet20", "distill_fallback"),
        ("system=student cascade.fallback=resnet8", "cascade.fallback=resnet20",
         "distill_fallback"),
    ],
)  # fmt: skip
def test_another_fallback_is_distilled_timed_and_given_a_threshold(tmp_path, under, change, stage):
    before = plan_of(tmp_path, *under.split())
    after = plan_of(tmp_path, *under.split(), change)
    assert changed(before, after) == {
        f"{stage}/0", "measure_latency/0", "choose_threshold/0", "evaluate/0"
    }  # fmt: skip


def test_a_mixture_labels_views_only_where_it_refines_and_once_for_every_gathering(tmp_path):
    def labelled(*overrides: str) -> list[str]:
        calls = plan_of(tmp_path, "system=ones", *overrides)
        return [call.key for call in calls if call.stage == "mixture_logits"]

    assert labelled("merge.teacher=none") == labelled("merge.teacher=teacher") == []
    (mixed,), (hard,) = labelled("merge.teacher=mixture"), labelled("merge.teacher=hard")
    assert labelled("merge.teacher=both", "merge.method=svd") == [mixed] != [hard]
    assert labelled("merge.teacher=hard", "merge.method=random", "merge.lr=1") == [hard]


def test_systems_share_every_stage_up_to_where_they_part(tmp_path):
    base = {call.stage: call.key for call in plan_of(tmp_path) if call.stage != "evaluate"}
    mixture = next(call.key for call in plan_of(tmp_path) if call.stage == "evaluate")
    for under in CALLED.keys() - {LATENT}:
        calls = plan_of(tmp_path, *under.split())
        for call in calls:
            if call.stage in base and call.stage != "measure_latency":
                assert call.key == base[call.stage], (under, call.stage)
        if "system" not in under:  # the model before its deferrals, or the model
            assert mixture in [call.key for call in calls if call.stage == "evaluate"]


@pytest.mark.parametrize("objective", choices(JointConfig, "objective"))
def test_latency_is_measured_on_the_mixture_that_its_objective_trains(home, objective):
    store = Store(home, env())
    out = stages(tiny(f"joint.objective={objective}", "joint.mask_students=false"), store)
    recipe = ObjectStore(home).manifest(out.latencies.key).recipe
    mixture, arch = out.models.model.value, recipe["arch"]
    assert (arch["masked"], arch["gated"]) == (mixture.masked, mixture.gated)
    assert dict(arch["options"]) == {"widths": [128, 64], "dropout": 0.2} and recipe["k"] == 2


def test_latency_waits_for_the_clusters_only_to_know_how_many_there_are(tmp_path):
    def latency(*overrides: str) -> str:
        return {call.stage: call.key for call in plan_of(tmp_path, *overrides)}["measure_latency"]

    for overrides in ([], ["k=auto"]):
        assert [call.stage for call in plan_of(tmp_path, *overrides)][-1] == "measure_latency"
    assert latency("seed=1") == latency() != latency("k=auto")
    assert latency("k=auto", "temperature=2") == latency("k=auto") != latency("k=auto", "seed=1")


def test_the_same_config_has_the_same_keys_wherever_it_runs(tmp_path, home):
    found = [[call.key for call in plan_of(place)] for place in (tmp_path, home, tmp_path / "x")]
    assert found[0] == found[1] == found[2]


def test_a_folder_of_images_is_known_by_its_content_and_not_by_its_place(tmp_path, folder):
    def calls_of(place: Path) -> list[Call]:
        return plan_of(tmp_path / "home", "data.name=folder", f"data.root={place}")

    first = calls_of(folder)
    moved = folder.rename(tmp_path / "moved")
    assert changed(first, calls_of(moved)) == set()
    picture = moved / "train" / "red" / "0.png"
    picture.write_bytes((moved / "train" / "red" / "1.png").read_bytes())
    assert changed(first, calls_of(moved)) == {*names(first)}


def test_only_em_depends_on_the_temperature_in_joint_training(home):
    """Its student depends on it too, so the manifest has to say."""
    for objective in ("em", "hierarchical"):
        store = Store(home, env())
        run(tiny(f"joint.objective={objective}"), store)
        recipe = ObjectStore(home).manifest(store.keys()["train_jointly"][0]).recipe
        em = objective == "em"
        assert (recipe["temperature"], recipe["logits"] is None) == (4.0 if em else None, not em)


def test_behind_an_oracle_the_mixture_is_measured_once(tmp_path):
    measured = [c.key for c in plan_of(tmp_path, "router=oracle") if c.stage == "evaluate"]
    assert measured[0] == measured[1] != measured[2]


def test_weights_from_a_file_are_known_by_their_content(tmp_path):
    shutil.copy(weights(tmp_path / "a"), tmp_path / "b")
    weights(tmp_path / "c", seed=1)
    a, b, c = (plan_of(tmp_path / "home", f"teacher.weights={tmp_path / name}") for name in "abc")
    assert changed(a, b) == set()
    assert {"load_teacher/0"} <= changed(a, c) == {*names(a)} - {"prepare/0", "measure_latency/0"}
    slower = plan_of(tmp_path / "home", f"teacher.weights={tmp_path / 'a'}", "teacher.lr=1")
    assert changed(a, slower) == set()  # nothing reads the training options of a given teacher


@pytest.mark.parametrize("overrides", [[], ["router=oracle"]])
def test_a_runs_key_is_known_before_anything_is_computed(tmp_path, home, overrides):
    config = tiny(*overrides)
    planned = run_key(config, stages(config, Plan(tmp_path, env())))
    assert run(config, Store(home, env())).key == planned


def test_a_runs_key_tells_apart_what_was_measured_and_for_how_long(tmp_path):
    changes = ([], ["seed=1"], ["latency.repeats=11"], ["latency.seconds=1"])
    found = {run_key(tiny(*c), stages(tiny(*c), Plan(tmp_path, env()))) for c in changes}
    assert len(found) == len(changes)


def test_every_system_is_in_these_tables():
    assert LATENCY.keys() == SYSTEMS.keys()
    assert {call for calls in CALLED.values() for call in calls} <= TAKES.keys()
