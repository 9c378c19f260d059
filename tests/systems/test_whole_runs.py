"""Runs of every system: what is computed, what is reported, what is stored and used again."""

from collections.abc import Callable

import pytest
import torch
from PIL import Image
from recipes import CALLED, SPECIALISTS, env, plan_of, ran, tiny
from safetensors.torch import save_file

from moist.config import Config, JointConfig, flat
from moist.config.schema import choices
from moist.config.systems import SYSTEMS, system_of
from moist.data.augment import normalize
from moist.env import Silent
from moist.errors import ConfigError, StageError
from moist.nets.build import module
from moist.pipeline import run, stages
from moist.reporting.run_tables import print_report
from moist.results.report import Report
from moist.serving.export import export_model
from moist.serving.exported import ExportedModel
from moist.serving.predict import TorchModel
from moist.store import maintenance
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.runs import RunRecords
from moist.store.store import Store


class Warnings(Silent):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warned(self, message: str) -> None:
        self.warnings.append(message)


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


def test_a_second_run_computes_nothing_and_reports_the_same(home):
    first, _ = ran(home)
    second, computed = ran(home)
    assert computed == [] and second == first


def test_one_seed_gives_one_report_in_every_home_and_another_seed_another(tmp_path, home):
    report, _ = ran(home)
    again, computed = ran(tmp_path)
    assert len(computed) == len(CALLED[""])
    assert again.timeless() == report.timeless()
    other, computed = ran(tmp_path, "seed=1")
    assert len(computed) == len(CALLED[""]) - 2  # neither data set nor latency has a seed
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
    assert report.stage_seconds.keys() == set(CALLED[""])
    for row in (report, report.baselines.teacher, report.baselines.student):
        assert 0 <= row.accuracy <= 1 and row.mflops > 0
        assert row.latency_n.keys() == {"batch_1", "batch_256"}
        assert all(n >= 10 for n in row.latency_n.values())
        assert all(row.latency_p95_ms[b] >= row.latency_ms[b] > 0 for b in row.latency_n)
    assert report.baselines.oracle.latency_ms is None
    assert report.mflops > report.baselines.student.mflops  # the router counts
    assert Report.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    "system",
    [
        "router=shared mixture.top=2",
        "system=ones joint.objective=noisy_topk joint.mask_students=false",
        "system=ensemble distill.loss=dkd",
        "distill.loss=moe_kd router=shared",
        "system=student cascade.fallback=residual_7mf",
    ],
)
def test_a_residual_student_serves_in_every_system(home, system):
    sizes = ["student.arch=residual", "student.channels=4,8", "student.blocks=1,2"]
    report, _ = ran(home, *sizes, *system.split())
    assert report.baselines.student.accuracy > 0.1
    assert report.mflops >= report.baselines.student.mflops > 0


def test_seconds_of_one_run_count_each_stage_once(home):
    """Even if a store serves several runs, and two stages are one computation."""
    store = Store(home, env())
    first = run(tiny("router=oracle"), store)
    again = run(tiny("router=oracle"), store)
    once = {call.key: call.seconds for call in store.calls}
    assert first.seconds == again.seconds == pytest.approx(sum(once.values()))


# damage

FILES = {
    "prepare": "tensors.safetensors", "train_teacher": "tensors.safetensors",
    "teacher_logits": "artifact.json", "distill_student": "tensors.safetensors",
    "cluster_classes": "artifact.json", "pretrain_router": "manifest.json",
    "train_jointly": "tensors.safetensors", "evaluate": "artifact.json",
    "measure_latency": "artifact.json",
}  # fmt: skip


@pytest.mark.parametrize("stage", FILES)
def test_a_damaged_output_is_reported_computed_again_and_gives_the_same_report(home, stage):
    report, _ = ran(home)
    store = Store(home, env())
    stages(tiny(), store)
    key = {call.stage: call.key for call in store.calls}[stage]
    path = ObjectStore(home).folder(key) / FILES[stage]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    seen = Warnings()
    again, computed = ran(home, progress=seen)
    assert computed == [stage]
    assert len(seen.warnings) == 1 and f"`{stage}` {key[:8]} is damaged" in seen.warnings[0]
    assert again.timeless() == report.timeless()
    assert ran(home, progress=seen)[1] == [] and len(seen.warnings) == 1


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
    "precision=bf16": lambda r: r.accuracy > 0,
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
    SPECIALISTS: {"oracle", "first"},
    f"{SPECIALISTS} k=1": {"oracle", "first"},
}
"""What stands beside a system's model, beyond teacher and student."""


def routed(overrides: str) -> bool:
    """Return whether a model sends images to students."""
    system = SYSTEMS[tiny(*overrides.split()).system]
    return system.routes or system.routes_deferred


@pytest.mark.parametrize("overrides", BASELINES)
def test_a_system_runs_and_stands_beside_what_it_is_to_beat(home, overrides):
    first, _ = ran(home, *overrides.split())
    report, computed = ran(home, *overrides.split())
    assert computed == [] and report == first
    rows = {name: row for name, row in report.baselines if row is not None}
    assert rows.keys() == {"teacher", "student"} | BASELINES[overrides]
    assert 0 < report.accuracy <= 1 and report.val_accuracy is not None
    assert Report.model_validate_json(report.model_dump_json()) == report
    if "system=student" in overrides or SPECIALISTS in overrides:
        alone = rows.get("first", report)
        assert (alone.accuracy, alone.loss) == (rows["student"].accuracy, rows["student"].loss)
    if "system=ones" in overrides:
        alone = rows.get("first", report)
        assert (alone.mflops, alone.params) == (rows["student"].mflops, rows["student"].params)
    routes = routed(overrides)
    assert (report.routing_accuracy is not None, bool(report.sent)) == (routes, routes)
    assert bool(report.clusters) == (routes or "ones" in overrides)


@pytest.mark.parametrize("overrides", [one for one in BASELINES if "first" in BASELINES[one]])
def test_a_cascade_costs_the_second_pass_of_deferred_images_and_no_more(home, overrides):
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
def test_a_systems_model_is_stored_printed_and_classifies_images(
    home, capsys, folder, tmp_path, overrides
):
    store = Store(home, env())
    config = tiny(*overrides.split())
    report = run(config, store)
    prepared = [call.key for call in store.calls if call.stage == "prepare"]
    record = RunRecords(home).save(
        command="", config=config, report=report, artifacts={"prepare": tuple(prepared)}
    )
    paths = sorted(folder.rglob("*.png"))[:3]
    said = list(TorchModel(store, record).records(paths))
    assert [row["image"] for row in said] == [str(path) for path in paths]
    assert all(row["class"] in "0123456789" and 0 < row["probability"] <= 1 for row in said)
    assert all(("deferred" in row) == (report.deferral is not None) for row in said)
    assert all(("expert" in row) == routed(overrides) for row in said)
    if overrides.startswith(SPECIALISTS):
        assert all((row["expert"] is None) != row["deferred"] for row in said)
    (file := tmp_path / "model.onnx").write_bytes(export_model(store, record).data)
    for row, exported in zip(said, ExportedModel(file).records(paths), strict=True):
        same = ("image", "class", "expert", "deferred")
        assert [row.get(name) for name in same] == [exported.get(name) for name in same]
        assert row["probability"] == pytest.approx(exported["probability"], abs=1e-4)
    print_report(report, flat(config), "moist run ...")
    shown = capsys.readouterr().out
    name = system_of(flat(config)).title(flat(config), report.k)
    assert name in shown and "teacher resnet8" in shown
    assert ("\ndeferred " in shown) == (report.deferral is not None)


def test_the_second_pass_is_computed_for_deferred_images_only(home, tmp_path, monkeypatch):
    """However many images there are: the class of one does not depend on the others."""
    overrides = ("cascade.fallback=teacher", "cascade.defer=0.5")
    store, config = Store(home, env()), tiny(*overrides)
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
    said = list(TorchModel(store, record).records(paths))
    assert [row["deferred"] for row in said] == settled.deferred_B.tolist()
    top_N = settled.logits_BC.softmax(1).amax(1)
    assert [row["probability"] for row in said] == pytest.approx(top_N.tolist(), abs=1e-5)
    assert [row["image"] for row in said] == [str(path) for path in paths]


def test_a_folder_of_images_trains_end_to_end(tmp_path, folder):
    data = ["data.name=folder", f"data.root={folder}", "k=2", "teacher.batch_size=4"]
    report, computed = ran(tmp_path / "home", *data)
    assert len(computed) == len(CALLED[""])
    assert (report.n_test, report.n_val) == (9, 3)
    assert sorted(sum(report.clusters, ())) == ["blue", "green", "red"]
    with pytest.raises(ConfigError, match=r"augment\.shift=9"):
        ran(tmp_path / "home", *data, "augment.shift=9")


def test_a_teacher_from_a_file_is_the_teacher_that_was_saved(tmp_path, home):
    report, _ = ran(home)
    teacher = Store(home, env()).load(
        {call.stage: call.key for call in plan_of(home)}["train_teacher"]
    )
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
