"""The whole method: which key depends on what, and a run that computes what its plan said."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from moist.config import Config, JointConfig, TrainingConfig, flat, systems
from moist.config.overrides import parse
from moist.config.schema import choices, keys
from moist.config.systems import epochs_of
from moist.data.augment import normalize
from moist.env import Env, Silent
from moist.errors import ConfigError, StageError
from moist.nets.build import module
from moist.pipeline import run, stages
from moist.reporting.run_tables import name_of, print_report
from moist.results.report import Report
from moist.serving.predict import predict_images
from moist.store import maintenance
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.runs import RunRecords
from moist.store.store import Store
from moist.systems.outputs import run_key

SWEEPS = Path(__file__).parents[1] / "sweeps"
TINY = [
    f"@{SWEEPS / 'tiny.yaml'}",
    *(f"{section}.epochs=1" for section in ("teacher", "distill", "routing", "joint", "merge")),
    "distill.views=2", "latency.repeats=10", "latency.seconds=0.01",
]  # fmt: skip

TAUGHT = ("prepare", "latency", "teacher", "logits", "student")
SPECIALIZED = (*TAUGHT, "clusters", "router", "mixture")
BESIDE = ("student measured", "teacher measured")
LABELS = (*SPECIALIZED, "mixture measured", "oracle measured", *BESIDE)

LATENCY = {"latency"}
MIXTURE = {"mixture", "mixture measured", "oracle measured"}
ROUTER = {"router"} | MIXTURE
CLUSTERS = {"clusters"} | ROUTER
STUDENT = {"student", "student measured"} | MIXTURE
LOGITS = {"logits"} | STUDENT | CLUSTERS
TEACHER = {"teacher", "teacher measured"} | LOGITS
ALL = {"prepare"} | TEACHER | LATENCY

READ = {
    "joint.objective=em joint.mask_students=false": ("joint.teacher_prior", "joint.prior_weight"),
    "joint.objective=switch joint.mask_students=false": ("joint.balance", "joint.balance_form"),
    "joint.objective=noisy_topk joint.mask_students=false k=3": (
        "joint.balance", "joint.balance_form", "joint.top",
    ),
    "distill.loss=dkd": ("distill.target_weight", "distill.others_weight"),
    "distill.loss=dist": ("distill.rows_weight", "distill.columns_weight"),
    "distill.loss=moe_kd": ("distill.gate", "distill.experts", "distill.tie"),
    "teacher.optimizer=sgd": ("teacher.momentum", "teacher.nesterov"),
    "distill.optimizer=sgd": ("distill.momentum", "distill.nesterov"),
    "routing.optimizer=sgd": ("routing.momentum", "routing.nesterov"),
    "joint.optimizer=sgd": ("joint.momentum", "joint.nesterov"),
}  # fmt: skip
"""What the tiny config does not read, by what must be said for it to be read."""
ALSO = {"distill.gate": LATENCY, "distill.experts": LATENCY | {"levels"}}
"""What the form of a latent teacher decides, beside what is trained."""
VAIN = {name for names in READ.values() for name in names}

CHANGES = {
    "data.root": set[str](),  # digits have none; what it holds counts, not where
    "data": ALL,
    "augment": TEACHER,
    "precision": TEACHER | LATENCY,
    "seed": TEACHER,
    "teacher": TEACHER,
    "teacher.arch": TEACHER | LATENCY,
    "distill.views": LOGITS,
    "distill": STUDENT,
    "student": STUDENT | LATENCY,
    "hidden_width": STUDENT | LATENCY,
    "temperature": STUDENT,
    "cluster": CLUSTERS,
    "k": CLUSTERS | LATENCY,
    "router": ROUTER | LATENCY,
    "routing": ROUTER,
    "routing.widths": ROUTER | LATENCY,
    "routing.dropout": ROUTER | LATENCY,
    "joint": MIXTURE,
    "joint.mask_students": MIXTURE | LATENCY,
    **{key: set[str]() for key in VAIN},
    "latency": LATENCY,
    "merge": set[str](),
    "ensemble": set[str](),
    "mixture": set[str](),
    "cascade": set[str](),
}
"""Key, or section, to what is computed anew when it changes: what takes it, and what follows.

Of the router's options, latency takes those of the tiny config's router: it is linear. What other
systems take, the tiny config has no use for.
"""

CALLED = {"system", "mixture.top", "cascade.fallback"}
"""What decides which stages are called: see `SYSTEMS`."""

DOUBTING = (*SPECIALIZED, "threshold", "model measured", "oracle measured", *BESIDE)
SYSTEMS = {
    "system=student": (*TAUGHT, "model measured", *BESIDE),
    "system=ensemble": (*TAUGHT, "ensemble", "model measured", *BESIDE),
    "system=ones": (
        *SPECIALIZED, "gathered", "said", "refined",
        "model measured", *BESIDE, "mixture measured", "gathered measured",
    ),
    "mixture.top=2": (*DOUBTING, "first measured"),
    "cascade.fallback=teacher": (*DOUBTING, "first measured"),
    "cascade.fallback=resnet8": (
        *SPECIALIZED, "fallback", *DOUBTING[len(SPECIALIZED):], "first measured",
    ),
    "system=ones cascade.fallback=teacher": (
        *SPECIALIZED, "gathered", "said", "refined", "threshold",
        "model measured", *BESIDE, "mixture measured", "gathered measured", "first measured",
    ),
}  # fmt: skip
"""The stages of another system, in the order in which they are called."""

STAGES = {
    "prepare": "prepare", "latency": "measure_latency", "teacher": "train_teacher",
    "logits": "teacher_logits", "student": "distill_student", "clusters": "cluster_classes",
    "router": "pretrain_router", "mixture": "train_jointly", "gathered": "gather_students",
    "said": "mixture_logits", "refined": "integrate", "ensemble": "distill_ensemble",
    "fallback": "distill_fallback", "threshold": "choose_threshold",
}  # fmt: skip
"""Whose work a label is; all others are `evaluate`'s."""

REFINED = {"refined", "model measured"}
GATHERED = {"gathered", "gathered measured"} | REFINED
ENSEMBLE = {"ensemble", "model measured"}
THRESHOLD = {"threshold", "model measured"}
FIRST = {"mixture", "oracle measured", "first measured"} | THRESHOLD

IN_SYSTEMS = [
    ("system=student", "k=3 router=cnn joint.lr=1 routing.lr=1", set()),
    ("system=student", "hidden_width=9", {"latency", "student", *BESIDE[:1], "model measured"}),
    ("system=ensemble", "router=cnn cluster.method=random joint.lr=1", set()),
    ("system=ensemble", "k=3", ENSEMBLE | LATENCY),
    ("system=ensemble", "ensemble.views=filtered", ENSEMBLE | LATENCY),
    ("system=ensemble", "temperature=2", ENSEMBLE | {"student", "student measured"}),
    ("system=ones", "joint.lr=1", {"mixture", "mixture measured", "said"} | GATHERED),
    ("system=ones", "router=cnn", {"router", "mixture", "mixture measured", "said"} | GATHERED),
    ("system=ones", "ensemble.views=filtered cascade.defer=0.5", set()),
    ("mixture.top=2", "mixture.second=0.5", THRESHOLD),
    ("mixture.top=2", "joint.lr=1", FIRST),
    ("mixture.top=2", "cascade.defer=0.5 merge.lr=1", set()),
    ("cascade.fallback=teacher", "cascade.defer=0.5", THRESHOLD),
    ("cascade.fallback=teacher", "mixture.second=0.5", set()),
    ("cascade.fallback=teacher", "cascade.fallback=teacher routing.lr=1", FIRST | {"router"}),
    ("cascade.fallback=resnet8", "cascade.fallback=resnet20", {"fallback", "latency"} | THRESHOLD),
    ("cascade.fallback=resnet8", "distill.lr=1",
     {"student", "student measured", "fallback"} | FIRST),
    ("system=ones cascade.fallback=teacher", "merge.lr=1",
     {"refined", "first measured"} | THRESHOLD),
]  # fmt: skip
"""A system, a change, and what is computed anew for it."""

OTHER = {
    "data.root": "/elsewhere", "data.image_size": "16", "data.val_fraction": "0.2", "k": "4",
    "augment.shift": "2", "precision": "float32", "teacher.arch": "resnet18",
    "student.channels": "16,16", "cluster.method": "random", "router": "cnn",
    "routing.widths": "32", "joint.objective": "em", "seed": "1", "student.arch": "resnet8",
}  # fmt: skip


class Told(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def env(progress: Silent | None = None) -> Env:
    return Env(torch.device("cpu"), progress or Silent())


def tiny(*overrides: str) -> Config:
    return parse([*TINY, *overrides])


def ran(home: Path, *overrides: str, progress: Silent | None = None) -> tuple[Report, list[str]]:
    """The report, and the stages that were computed for it."""
    store = Store(home, env(progress))
    report = run(tiny(*overrides), store)
    return report, [call.stage for call in store.calls if not call.reused]


def planned(home: Path, *overrides: str, labels: Sequence[str] = LABELS) -> dict[str, str]:
    """Key by label."""
    plan = Plan(home, env())
    stages(tiny(*overrides), plan)
    return dict(zip(labels, [call.key for call in plan.calls], strict=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all tests that only add to it, with the tiny run in it."""
    home = tmp_path_factory.mktemp("home")
    ran(home)
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of eight training and three test images, 8x8 in colour, told by their hue."""
    random = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for c, name in enumerate(("blue", "green", "red")):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 60, (8, 8, 3), dtype=np.uint8)
                pixels[..., 2 - c] += 180
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "images"


# keys


def another(key: str) -> str:
    """An admissible value of a key that is not the tiny config's."""
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


@pytest.mark.parametrize(
    "key", [key for key in keys() if key not in {"data.name", "teacher.weights", *CALLED}]
)
def test_a_key_changes_the_stages_that_take_it_and_all_that_follow(tmp_path, key):
    before, after = planned(tmp_path), planned(tmp_path, f"{key}={another(key)}")
    expected = CHANGES[key] if key in CHANGES else CHANGES[key.partition(".")[0]]
    assert {label for label in LABELS if before[label] != after[label]} == expected


@pytest.mark.parametrize(("under", "key"), [(u, key) for u, keys in READ.items() for key in keys])
def test_what_is_not_read_decides_nothing_until_it_is(tmp_path, under, key):
    latent = "moe_kd" in under
    labels = (*LABELS[:4], "levels", *LABELS[4:]) if latent else LABELS
    before, after = (
        planned(tmp_path, *under.split(), *more, labels=labels)
        for more in ([], [f"{key}={another(key)}"])
    )
    expected = CHANGES[key.partition(".")[0]] | ALSO.get(key, set())
    assert {label for label in labels if before[label] != after[label]} == expected


def test_the_table_of_changes_covers_every_key():
    assert {key for key in CHANGES if key not in keys()} == {
        name for name in Config.model_fields if name not in keys()
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_calls_the_stages_that_it_is_made_of(tmp_path, system):
    plan = Plan(tmp_path, env())
    stages(tiny(*system.split()), plan)
    expected = [STAGES.get(label, "evaluate") for label in SYSTEMS[system]]
    assert [call.stage for call in plan.calls] == expected


@pytest.mark.parametrize(
    "system",
    [*SYSTEMS, *(f"system={name} cascade.fallback=resnet8" for name in systems.SYSTEMS)],
)
def test_a_stages_steps_come_after_those_of_all_stages_called_before(tmp_path, system):
    """W&B takes no step that is less than one before."""
    config, plan = tiny(*system.split()), Plan(tmp_path, env())
    stages(config, plan)
    trains = [call.stage for call in plan.calls if call.stage in epochs_of(config)]
    assert trains == list(epochs_of(config))
    assert systems.SYSTEMS[config.system].model_stage in trains


@pytest.mark.parametrize(("system", "change", "expected"), IN_SYSTEMS)
def test_in_other_systems_too_a_change_computes_what_takes_it(tmp_path, system, change, expected):
    labels = SYSTEMS[system]
    before = planned(tmp_path, *system.split(), labels=labels)
    after = planned(tmp_path, *system.split(), *change.split(), labels=labels)
    assert {label for label in labels if before[label] != after[label]} == expected


OF_METHOD = {
    "base": "average", "layout": "topk", "score": "topk", "rank": "svd", "scale": "svd",
    "head": "average",
}  # fmt: skip
"""What gathers, and a method that reads it."""
VAINLY = {"merge.rank=2 merge.scale=sum": "average", "merge.score=in": "svd",
          "merge.layout=block": "ancestor", "merge.base=absolute": "topk"}  # fmt: skip


@pytest.mark.parametrize("key", [key for key in keys() if key.startswith("merge.")])
def test_what_only_the_refinement_reads_gathers_nothing_anew(tmp_path, key):
    labels, name = SYSTEMS["system=ones"], key.partition(".")[2]
    under = ["system=ones", f"merge.method={OF_METHOD.get(name, 'average')}"]
    under += ["merge.optimizer=sgd"] * (name in {"momentum", "nesterov"})
    before = planned(tmp_path, *under, labels=labels)
    after = planned(tmp_path, *under, f"{key}={another(key)}", labels=labels)
    refines = name in {*TrainingConfig.model_fields, "teacher", "alpha"}
    expected = REFINED if refines else GATHERED
    expected = expected | ({"said"} if key == "merge.teacher" else set())
    assert {label for label in labels if before[label] != after[label]} == expected


@pytest.mark.parametrize(("vain", "method"), VAINLY.items())
def test_what_a_method_of_merging_does_not_read_decides_nothing(tmp_path, vain, method):
    labels, under = SYSTEMS["system=ones"], ["system=ones", f"merge.method={method}"]
    before = planned(tmp_path, *under, labels=labels)
    assert planned(tmp_path, *under, *vain.split(), labels=labels) == before
    alone = [label for label in labels if label != "said"]
    under.append("merge.teacher=none")
    before = planned(tmp_path, *under, labels=alone)
    assert planned(tmp_path, *under, "merge.alpha=0.2", labels=alone) == before


def test_a_mixture_labels_views_only_where_it_refines_and_once_for_every_gathering(tmp_path):
    def said(*overrides: str) -> list[str]:
        plan = Plan(tmp_path, env())
        stages(tiny("system=ones", *overrides), plan)
        return [call.key for call in plan.calls if call.stage == "mixture_logits"]

    assert said("merge.teacher=none") == said("merge.teacher=teacher") == []
    (mixed,), (hard,) = said("merge.teacher=mixture"), said("merge.teacher=hard")
    assert said("merge.teacher=both", "merge.method=svd") == [mixed] != [hard]
    assert said("merge.teacher=hard", "merge.method=random", "merge.lr=1") == [hard]


def test_every_stage_of_a_system_stands_beside_the_models_that_it_shares(tmp_path):
    """Up to where they part, systems are one computation."""
    base = planned(tmp_path)
    for system, labels in SYSTEMS.items():
        other = planned(tmp_path, *system.split(), labels=labels)
        for label in {*SPECIALIZED, *BESIDE} - LATENCY & {*labels}:
            assert other[label] == base[label], (system, label)
        if "first measured" in labels and "ones" not in system:
            assert other["first measured"] == base["mixture measured"]


@pytest.mark.parametrize("objective", choices(JointConfig, "objective"))
def test_latency_is_measured_on_the_mixture_that_its_objective_trains(home, objective):
    overrides = [f"joint.objective={objective}", "joint.mask_students=false"]
    store = Store(home, env())
    out = stages(tiny(*overrides), store)
    recipe = ObjectStore(home).manifest(out.latencies.key).recipe
    mixture, arch = out.models.model.value, recipe["arch"]
    assert (arch["masked"], arch["gated"]) == (mixture.masked, mixture.gated)
    assert dict(arch["options"]) == {"widths": [128, 64], "dropout": 0.2} and recipe["k"] == 2


def test_latency_waits_for_the_clusters_only_to_know_how_many_there_are(tmp_path):
    def called(*overrides: str) -> list[tuple[str, str]]:
        plan = Plan(tmp_path, env())
        stages(tiny(*overrides), plan)
        return [(call.stage, call.key) for call in plan.calls]

    def latency(*overrides: str) -> str:
        return dict(called(*overrides))["measure_latency"]

    assert [stage for stage, _ in called()][:2] == ["prepare", "measure_latency"]
    names = [stage for stage, _ in called("k=auto")]
    assert names[:2] == ["prepare", "train_teacher"]
    assert names.index("cluster_classes") < names.index("measure_latency")
    assert names.index("measure_latency") == names.index("evaluate") - 1
    assert latency("seed=1") == latency() != latency("k=auto")
    assert latency("k=auto", "temperature=2") == latency("k=auto") != latency("k=auto", "seed=1")


def test_the_same_config_has_the_same_keys_wherever_it_runs(tmp_path, home):
    assert planned(tmp_path) == planned(home) == planned(tmp_path / "elsewhere")


def test_a_folder_of_images_is_known_by_its_content_and_not_by_its_place(tmp_path, folder):
    def keys_of(place: Path) -> dict[str, str]:
        return planned(tmp_path / "home", "data.name=folder", f"data.root={place}")

    first = keys_of(folder)
    moved = folder.rename(tmp_path / "moved")
    assert keys_of(moved) == first
    picture = moved / "train" / "red" / "0.png"
    picture.write_bytes((moved / "train" / "red" / "1.png").read_bytes())
    assert {label for label in LABELS if keys_of(moved)[label] != first[label]} == ALL


def test_only_em_depends_on_the_temperature_in_joint_training(home):
    """Its student depends on it too, so the manifest has to say."""
    for objective in ("em", "hierarchical"):
        ran(home, f"joint.objective={objective}")
        key = planned(home, f"joint.objective={objective}")["mixture"]
        recipe = ObjectStore(home).manifest(key).recipe
        em = objective == "em"
        assert (recipe["temperature"], recipe["logits"] is None) == (4.0 if em else None, not em)


def test_behind_an_oracle_the_mixture_is_measured_once(tmp_path):
    oracle = planned(tmp_path, "router=oracle")
    assert oracle["mixture measured"] == oracle["oracle measured"]


def test_weights_from_a_file_are_known_by_their_content(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (planned(tmp_path / "home", f"teacher.weights={tmp_path / name}") for name in "abc")
    assert a == b != c
    assert {label for label in LABELS if a[label] != c[label]} == TEACHER
    slower = planned(tmp_path / "home", f"teacher.weights={tmp_path / 'a'}", "teacher.lr=1")
    assert slower == a  # training options of a teacher that isn't trained decide nothing


# a run


def test_a_plan_predicts_what_a_run_computes_and_writes_nothing(tmp_path):
    changes = ((), ("temperature=2",), ("router=oracle",), ("router=oracle", "seed=1"))
    for overrides in changes:
        plan = Plan(tmp_path / "home", env())
        stages(tiny(*overrides), plan)
        if not overrides:
            assert not (tmp_path / "home").exists()
        store = Store(tmp_path / "home", env())
        run(tiny(*overrides), store)
        expected = [(call.stage, call.key, call.reused) for call in plan.calls]
        assert [(call.stage, call.key, call.reused) for call in store.calls] == expected


@pytest.mark.parametrize("overrides", [[], ["router=oracle"]])
def test_a_runs_key_is_known_before_anything_is_computed(tmp_path, home, overrides):
    config = tiny(*overrides)
    planned_key = run_key(config, stages(config, Plan(tmp_path, env())))
    report, _ = ran(home, *overrides)
    assert report.key == planned_key


def test_a_runs_key_tells_apart_what_was_measured_and_for_how_long(tmp_path):
    changes = ([], ["seed=1"], ["latency.repeats=11"], ["latency.seconds=1"])
    found = {run_key(tiny(*c), stages(tiny(*c), Plan(tmp_path, env()))) for c in changes}
    assert len(found) == len(changes)


def test_a_second_run_computes_nothing_and_reports_the_same(home):
    first, _ = ran(home)
    second, computed = ran(home)
    assert computed == [] and second == first


def test_one_seed_gives_one_report_in_every_home_and_another_seed_another(tmp_path, home):
    report, _ = ran(home)
    again, computed = ran(tmp_path)
    assert len(computed) == len(LABELS)
    assert again.timeless() == report.timeless()
    other, computed = ran(tmp_path, "seed=1")
    assert len(computed) == len(LABELS) - 2  # neither data set nor latency has a seed
    assert (
        other.loss != report.loss and other.baselines.teacher.loss != report.baselines.teacher.loss
    )


def test_another_temperature_computes_the_student_and_what_follows(home):
    _, computed = ran(home, "temperature=2")
    assert computed == ["distill_student", "train_jointly", "evaluate", "evaluate", "evaluate"]


def test_a_report_adds_up(home):
    report, _ = ran(home)
    assert report.n_test == 360 and report.n_val == 142
    assert sum(sum(row) for row in report.sent.values()) == report.n_test
    assert (
        sorted(sum(report.clusters, ())) == list(report.per_class_accuracy) == list("0123456789")
    )
    assert report.k == len(report.clusters) == len(report.per_cluster_accuracy) == 2
    assert report.silhouette.keys() == {"2"}
    assert report.seconds == sum(report.stage_seconds.values())
    assert report.stage_seconds.keys() == {
        entry.stage for entry in maintenance.entries(ObjectStore(home))
    }
    for row in (report, report.baselines.teacher, report.baselines.student):
        assert 0 <= row.accuracy <= 1 and row.mflops > 0
        assert row.latency_n == {"batch_1": 10, "batch_256": 10}
        assert all(row.latency_p95_ms[b] >= row.latency_ms[b] > 0 for b in row.latency_n)
    assert report.baselines.oracle.latency_ms is None
    assert report.mflops > report.baselines.student.mflops  # the router counts
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_seconds_of_one_run_count_each_stage_once(home):
    """Even if a store serves several runs, and two stages are one computation."""
    store = Store(home, env())
    first = run(tiny("router=oracle"), store)
    again = run(tiny("router=oracle"), store)
    once = {call.key: call.seconds for call in store.calls}
    assert first.seconds == again.seconds == pytest.approx(sum(once.values()))


# what can't work is said before anything is computed


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["k=11"], r"`k=11` .* than `digits` has classes \(10\)\nhint: set k between 1 and 10"),
        (["augment.shift=8"], "`augment.shift=8` is too far for 8x8 images\nhint: .*shift=7"),
        (["data.image_size=12", "augment.shift=12"], "too far for 12x12 images"),
        (["data.image_size=3"], "leave nothing of 3x3 images\nhint: set `data.image_size=4`"),
        (["data.name=folder"], "needs `data.root`"),
    ],
)
def test_a_request_that_can_not_work_computes_nothing(tmp_path, overrides, said):
    config = tiny(*overrides)
    for store in (Plan(tmp_path, env()), Store(tmp_path, env())):
        with pytest.raises(ConfigError, match=f"(?s){said}"):
            run(config, store)
    assert maintenance.entries(ObjectStore(tmp_path)) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("augment.shift=8", "`augment.shift=8` is too far for 8x8 images"),
        (
            "student.arch=mobilenetv2_x0_5",
            "(?s)leaves one pixel of 8x8 images, .*set `data.image_size=16`",
        ),
    ],
)
def test_a_folders_images_are_looked_at_before_anything_is_computed(
    tmp_path, folder, overrides, said
):
    data = ["data.name=folder", f"data.root={folder}", overrides]
    with pytest.raises(ConfigError, match=said):
        ran(tmp_path / "home", *data)
    assert maintenance.entries(ObjectStore(tmp_path / "home")) == []


def test_k_auto_needs_three_classes(tmp_path, folder):
    for split in ("train", "test"):
        (folder / split / "red").rename(tmp_path / split)
    with pytest.raises(ConfigError, match="`k=auto` needs 3 or more classes, found 2"):
        ran(tmp_path / "home", "data.name=folder", f"data.root={folder}", "k=auto")
    assert maintenance.entries(ObjectStore(tmp_path / "home")) == []


def test_weights_that_are_not_there_are_refused_before_anything_trains(tmp_path):
    with pytest.raises(ConfigError, match=r"can't read teacher.weights `/nowhere.pth`"):
        ran(tmp_path, "teacher.weights=/nowhere.pth")
    assert {entry.stage for entry in maintenance.entries(ObjectStore(tmp_path))} <= {"prepare"}


def test_weights_that_do_not_fit_are_refused_by_tensor(tmp_path):
    save_file({"fc.weight": torch.ones(3, 64)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"does not fit teacher.arch=resnet8 on 10 classes"):
        ran(tmp_path / "home", f"teacher.weights={tmp_path / 'w.safetensors'}")
    stored = {entry.stage for entry in maintenance.entries(ObjectStore(tmp_path / "home"))}
    assert stored == {"prepare", "measure_latency"}


# damage

FILES = {
    "prepare": "tensors.safetensors", "train_teacher": "tensors.safetensors",
    "teacher_logits": "artifact.json", "distill_student": "tensors.safetensors",
    "cluster_classes": "artifact.json", "pretrain_router": "manifest.json",
    "train_jointly": "tensors.safetensors", "evaluate": "artifact.json",
    "measure_latency": "artifact.json",
}  # fmt: skip


@pytest.mark.parametrize("stage", FILES)
def test_a_damaged_output_is_told_computed_again_and_gives_the_same_report(home, stage):
    report, _ = ran(home)
    store = Store(home, env())
    stages(tiny(), store)
    key = {call.stage: call.key for call in store.calls}[stage]
    path = ObjectStore(home).folder(key) / FILES[stage]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    told = Told()
    again, computed = ran(home, progress=told)
    assert computed == [stage]
    assert len(told.warnings) == 1 and f"`{stage}` {key[:8]} is damaged" in told.warnings[0]
    assert again.timeless() == report.timeless()
    assert ran(home, progress=told)[1] == [] and len(told.warnings) == 1


# variants


@pytest.mark.parametrize("objective", choices(JointConfig, "objective"))
@pytest.mark.parametrize("router", choices(Config, "router"))
def test_every_objective_trains_behind_every_router(home, objective, router):
    overrides = [f"router={router}", f"joint.objective={objective}", "joint.mask_students=false"]
    told = router == "oracle" and objective in {"em", "switch", "noisy_topk"}
    if told or (router == "shared" and objective == "students_only"):
        with pytest.raises(ConfigError):
            tiny(*overrides)
        return
    report, _ = ran(home, *overrides)
    assert 0 < report.accuracy < 1 and report.loss > 0
    if router == "oracle":
        assert report.routing_accuracy == 1 and report.accuracy == report.baselines.oracle.accuracy


VARIANTS: dict[str, Callable[[Report], bool]] = {
    "k=1": lambda r: r.k == 1 and r.routing_accuracy == 1,
    "k=10": lambda r: r.k == 10 and all(len(names) == 1 for names in r.clusters),
    "k=auto": lambda r: r.k == int(max(r.silhouette, key=lambda n: r.silhouette[n])),
    "cluster.method=spectral": lambda r: r.k == 2,
    "cluster.method=random": lambda r: r.k == 2,
    "student.batch_norm=true": lambda r: r.accuracy > 0,
    "precision=float32": lambda r: r.accuracy > 0,
    "teacher.optimizer=sgd": lambda r: r.accuracy > 0,
    "data.val_fraction=0": lambda r: r.val_accuracy is None and r.n_val == 0,
    "augment.shift=0": lambda r: r.accuracy > 0,
    "data.image_size=12": lambda r: r.accuracy > 0,
    "distill.loss=dkd distill.warmup=2": lambda r: r.accuracy > 0,
    "distill.loss=dist": lambda r: r.accuracy > 0,
    **{
        f"distill.loss=moe_kd distill.gate={gate} distill.experts={experts}": (
            lambda r, more=gate == "student": (r.baselines.student.mmacs > 0.0255) == more
        )
        for gate in ("student", "teacher")
        for experts in ("offsets", "heads")
    },
}
"""What is not the tiny config, and what its report shows. The tiny student has 0.0254 MMACs: a
latent head costs more, a folded one no more."""


@pytest.mark.parametrize("overrides", VARIANTS)
def test_a_variant_runs_and_reports_what_it_should(home, overrides):
    report, computed = ran(home, *overrides.split())
    assert computed and VARIANTS[overrides](report)
    assert (report.baselines.teacher.val_accuracy is None) == (report.n_val == 0)


BASELINES = {
    "": {"oracle"},
    "router=shared": {"oracle"},
    "system=student": set(),
    "system=ensemble": set(),
    "system=ensemble ensemble.views=filtered k=3": set(),
    "system=ones": {"mixture", "gathered"},
    "mixture.top=2": {"oracle", "first"},
    "router=shared mixture.top=2": {"oracle", "first"},
    "cascade.fallback=teacher": {"oracle", "first"},
    "system=student cascade.fallback=resnet8": {"first"},
    "system=ensemble cascade.fallback=teacher": {"first"},
    "system=ones cascade.fallback=teacher": {"mixture", "gathered", "first"},
}
"""What stands beside a system's model, beyond teacher and student."""


@pytest.mark.parametrize("overrides", BASELINES)
def test_a_system_runs_and_stands_beside_what_it_is_to_beat(home, overrides):
    first, _ = ran(home, *overrides.split())
    report, computed = ran(home, *overrides.split())
    assert computed == [] and report == first
    rows = {name: row for name, row in report.baselines if row is not None}
    assert rows.keys() == {"teacher", "student"} | BASELINES[overrides]
    assert 0 < report.accuracy <= 1 and report.val_accuracy is not None
    assert Report.model_validate_json(report.model_dump_json()) == report
    if "system=student" in overrides:
        alone = rows.get("first", report)
        assert (alone.accuracy, alone.loss) == (rows["student"].accuracy, rows["student"].loss)
    if "system=ones" in overrides:
        alone = rows.get("first", report)
        assert (alone.mflops, alone.params) == (rows["student"].mflops, rows["student"].params)
    routes = "system" not in overrides
    assert (report.routing_accuracy is not None, bool(report.sent)) == (routes, routes)
    assert bool(report.clusters) == (routes or "ones" in overrides)


@pytest.mark.parametrize("overrides", [one for one in BASELINES if "first" in BASELINES[one]])
def test_a_second_opinion_costs_what_was_asked_for_and_no_more(home, overrides):
    store = Store(home, env())
    config = tiny(*overrides.split())
    report, timed = run(config, store), stages(config, store).latencies.value.models
    first, deferral = report.baselines.first, report.deferral
    assert first is not None and deferral is not None
    chosen, curve = deferral.chosen, deferral.curve
    assert (chosen.accuracy, chosen.val_accuracy) == (report.accuracy, report.val_accuracy)
    assert chosen.mflops == pytest.approx(report.mflops)
    share = 0.2 if "top" in overrides else config.cascade.defer
    assert chosen.val_deferral_rate == pytest.approx(share, abs=0.51 / report.n_val)
    second = (curve[-1].mflops - first.mflops) / curve[-1].deferral_rate
    assert report.mflops == pytest.approx(first.mflops + chosen.deferral_rate * second)
    never, always = (timed[name]["batch_1"].median for name in ("model", "asked"))
    assert first.latency_ms["batch_1"] == never
    mean = (1 - chosen.val_deferral_rate) * never + chosen.val_deferral_rate * always
    assert report.latency_ms == {"batch_1": pytest.approx(mean)}


@pytest.mark.parametrize("overrides", BASELINES)
def test_a_systems_model_is_stored_told_of_and_classifies_images(home, capsys, folder, overrides):
    store = Store(home, env())
    config = tiny(*overrides.split())
    report = run(config, store)
    prepared = [call.key for call in store.calls if call.stage == "prepare"]
    record = RunRecords(home).save(
        command="", config=config, report=report, artifacts={"prepare": tuple(prepared)}
    )
    paths = sorted(folder.rglob("*.png"))[:3]
    said = predict_images(store, record, paths)
    assert [row["image"] for row in said] == [str(path) for path in paths]
    assert all(row["class"] in "0123456789" and 0 < row["probability"] <= 1 for row in said)
    assert all(("second_opinion" in row) == (report.deferral is not None) for row in said)
    assert all(("expert" in row) == ("system" not in overrides) for row in said)
    print_report(report, flat(config), "moist run ...")
    shown = capsys.readouterr().out
    assert name_of(flat(config), report.k) in shown and "teacher resnet8" in shown
    assert ("\ndeferred " in shown) == (report.deferral is not None)


def test_a_second_opinion_is_asked_only_of_images_in_doubt(home, tmp_path, monkeypatch):
    """However many images there are: what is said of one does not depend on the others."""
    doubts = ("cascade.fallback=teacher", "cascade.defer=0.5", "precision=float32")
    store, config = Store(home, env()), tiny(*doubts)
    report = run(config, store)
    prepared = [call.key for call in store.calls if call.stage == "prepare"]
    record = RunRecords(home).save(
        command="", config=config, report=report, artifacts={"prepare": tuple(prepared)}
    )
    data = store.load(prepared[0])
    paths = [tmp_path / f"{i}.png" for i in range(30)]
    for path, image_HWC in zip(paths, data.test.images_NHWC, strict=False):
        Image.fromarray(image_HWC[:, :, 0].numpy()).save(path)
    asked: list[int] = []
    net = module(store.load(report.model_key)).eval()
    net.fallback.register_forward_pre_hook(lambda _net, given: asked.append(len(given[0])))
    with torch.inference_mode():
        settled = net.answer(normalize(data.test.images_NHWC[:30], data.mean, data.std))
    assert 0 < sum(asked) == int(settled.deferred_B.sum()) < 30
    monkeypatch.setattr("moist.serving.predict.EVAL_BATCH", 7)
    said = predict_images(store, record, paths)
    assert [row["second_opinion"] for row in said] == settled.deferred_B.tolist()
    top_N = settled.logits_BC.softmax(1).amax(1)
    assert [row["probability"] for row in said] == pytest.approx(top_N.tolist(), abs=1e-5)
    assert [row["image"] for row in said] == [str(path) for path in paths]


def test_a_folder_of_images_trains_end_to_end(tmp_path, folder):
    data = ["data.name=folder", f"data.root={folder}", "k=2", "teacher.batch_size=4"]
    report, computed = ran(tmp_path / "home", *data)
    assert len(computed) == len(LABELS)
    assert (report.n_test, report.n_val) == (9, 3)
    assert sorted(sum(report.clusters, ())) == ["blue", "green", "red"]
    with pytest.raises(ConfigError, match=r"augment\.shift=9"):
        ran(tmp_path / "home", *data, "augment.shift=9")


def test_a_teacher_from_a_file_is_the_teacher_that_was_saved(tmp_path, home):
    report, _ = ran(home)
    teacher = Store(home, env()).load(planned(home)["teacher"])
    save_file(teacher.state, tmp_path / "w.safetensors")
    torch.save(dict(teacher.state), tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        loaded, computed = ran(home, f"teacher.weights={tmp_path / name}")
        assert computed[0] == "load_teacher" and "train_teacher" not in computed
        assert loaded.timeless()["baselines"] == report.timeless()["baselines"]
        assert loaded.accuracy == report.accuracy


def test_training_that_diverges_is_an_error_and_is_not_stored(home):
    before = len(maintenance.entries(ObjectStore(home)))
    with pytest.raises(StageError, match="`train_teacher` diverged: the loss is nan"):
        ran(home, "teacher.lr=10", "teacher.optimizer=sgd", "teacher.momentum=0.99",
            "teacher.weight_decay=1", "teacher.schedule=constant", "teacher.epochs=3")  # fmt: skip
    assert len(maintenance.entries(ObjectStore(home))) == before
