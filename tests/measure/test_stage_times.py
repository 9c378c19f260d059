"""Expected times: work counted from a stage's inputs, at the rate of records of its kind."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes import CALLED, env, tiny

from moist.config import RoutingConfig, StudentConfig
from moist.data.random import seeded
from moist.env import Env
from moist.measure.multiply_adds import cost
from moist.measure.stage_times import WORKS, Counts, Net, StageTimes, Work, _counts, expected
from moist.nets.build import network
from moist.nets.cnn import STUDENTS, TEACHERS
from moist.nets.routers import ROUTERS
from moist.pipeline import stages
from moist.results.expected import Expected, total
from moist.stages import VERSIONS, stage
from moist.store.artifacts import Clusters, Router, Spec, Student, Teacher
from moist.store.calls import Call
from moist.store.objects import ObjectStore
from moist.store.plan import Plan
from moist.store.store import Store

RATE = 1e10


def planned(home: Path, *overrides: str) -> list[Call]:
    plan = Plan(home, env())
    stages(tiny(*overrides), plan)
    return StageTimes(env()).of(plan)


# what a stage computes


def test_every_stage_has_a_work() -> None:
    assert WORKS.keys() == {
        "load_teacher",
        *(stage for called in CALLED.values() for stage in called),
    }


@pytest.mark.parametrize("overrides", [*CALLED, "router=shared", "k=auto", "joint.objective=em"])
def test_the_work_of_every_stage_of_every_system_is_counted_once_the_data_are_known(
    overrides: str, trained_once: Path
) -> None:
    plan = Plan(trained_once / "moist", env(), verify=False)
    stages(tiny(*overrides.split()), plan)
    times = StageTimes(env())
    times.of(plan)
    for key, request in plan.requests.items():
        work = times._work(key, request.name, request.version, request.recipe)
        assert work is not None and math.isfinite(work.size(RATE)), request.name
        trains = request.name.startswith(("train_", "distill_", "pretrain_", "integrate"))
        assert not trains or work.size(RATE) > 0.05


CASES = [
    *((Teacher, name, {}) for name in TEACHERS),
    *(
        (Student, name, entry.options(StudentConfig(arch=name), 64))
        for name, entry in STUDENTS.items()
    ),
    *((Router, name, entry.options(RoutingConfig())) for name, entry in ROUTERS.items()),
]


@pytest.mark.parametrize(
    ("kind", "name", "options"), CASES, ids=[f"{c[0].__name__}-{c[1]}" for c in CASES]
)
def test_multiply_adds_are_those_of_fvcore(kind, name, options) -> None:
    shape = (64, 8, 8) if name == "shared" else (3, 16, 16)
    spec = Spec(name, shape, 5, dict(options))
    if name == "oracle":
        assert _counts(kind, spec) == Counts()
        return
    with seeded(0, "any"):
        net = network(kind, spec)
    assert _counts(kind, spec).macs == pytest.approx(cost(net, shape).macs, rel=0.01)


# what it takes


def work(layers: float = 1, macs: float = 0, batches: float = 1e6) -> Work:
    return Work(("a",), Net((), lambda: Counts(layers, macs, macs)), batches, images=batches)


def test_a_time_is_that_of_a_record_scaled_to_the_work() -> None:
    assert expected(work(), [], RATE) is None
    same = expected(work(), [(work(), 8.0)], RATE)
    assert same is not None and same.seconds == pytest.approx(8) and same.records == 1
    for times in (0.01, 3, 1000):
        found = expected(work(batches=times * 1e6), [(work(), 8.0)], RATE)
        assert found is not None and found.seconds == pytest.approx(8 * times, rel=0.1)
        assert found.low < found.seconds < found.high
        assert times == 1 or found.high / found.low > same.high / same.low


def test_near_and_new_records_count_most_and_those_that_differ_widen_the_range() -> None:
    near, far = (work(macs=macs) for macs in (1e6, 1e8))
    between = expected(near, [(far, 100.0), (near, 8.0)], RATE)
    assert between is not None and between.seconds == pytest.approx(8, rel=0.2)
    newer, older = (expected(near, pair, RATE) for pair in (
        [(near, 8.0), (near, 4.0)], [(near, 4.0), (near, 8.0)],
    ))  # fmt: skip
    agreeing = expected(near, [(near, 8.0), (near, 8.0)], RATE)
    assert newer and older and agreeing and newer.seconds > older.seconds
    assert newer.high / newer.low > agreeing.high / agreeing.low


def test_only_records_of_the_kind_of_network_precision_version_and_machine_are_compared(
    trained_once: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = trained_once / "moist"

    def compared(*overrides: str, stage: str = "distill_student") -> bool:
        found = [call for call in planned(home, *overrides) if call.stage == stage]
        assert not found[0].reused
        return found[0].expected is not None

    assert compared("distill.epochs=9") and compared("distill.epochs=9", "hidden_width=99")
    assert not compared("student.arch=resnet8")
    assert not compared("precision=bf16")
    assert compared("routing.epochs=7", stage="pretrain_router")
    assert not compared("router=cnn", stage="pretrain_router")
    assert not compared("joint.objective=em", stage="train_jointly")
    monkeypatch.setitem(VERSIONS, "distill_student", 99)
    monkeypatch.setattr("moist.stages.distill.distill_student.version", 99)
    assert not compared("distill.epochs=9")
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert not compared("distill.epochs=9")


def test_epochs_and_images_decide_the_time(trained_once: Path) -> None:
    def seconds(epochs: int) -> float:
        calls = planned(trained_once / "moist", f"distill.epochs={epochs}")
        found = next(call for call in calls if call.stage == "distill_student")
        assert found.expected is not None
        return found.expected.seconds

    assert seconds(2000) == pytest.approx(10 * seconds(200), rel=0.1)


def test_a_record_whose_inputs_were_deleted_is_not_compared(trained: Callable[[], Path]) -> None:
    calls = planned(home := trained(), "distill.epochs=9")
    teacher = next(call for call in calls if call.stage == "train_teacher")
    shutil.rmtree(ObjectStore(home).folder(teacher.key))
    expected = {call.stage: call.expected for call in planned(home, "seed=9")}
    assert expected["train_teacher"] is None and expected["teacher_logits"] is None
    assert expected["train_jointly"] is not None


@stage(version=1)
def foreign(env: Env, *, source: str) -> Clusters:
    """Stand for a stage of another version of moist."""
    return Clusters((0,), {})


def test_a_plan_reads_past_damaged_data_and_stages_that_it_does_not_know(
    trained: Callable[[], Path],
) -> None:
    home = trained()
    Store(home, env()).call(foreign, source="x")
    assert any(call.expected for call in planned(home, "distill.epochs=9"))
    data = next(call for call in planned(home) if call.stage == "prepare")
    (ObjectStore(home).folder(data.key) / "tensors.safetensors").write_bytes(b"damaged")
    expected = {call.stage: call.expected for call in planned(home, "distill.epochs=9")}
    assert expected["distill_student"] is None and expected["cluster_classes"] is None


# the time of several


def test_workers_share_the_time_but_for_chains() -> None:
    def call(key: str, seconds: float, *needs: str) -> Call:
        one = Expected(seconds, seconds / 2, 2 * seconds, 3)
        return Call("stage", key, False, None, needs=needs, expected=one)

    calls = [call("a", 10.0), *(call(f"b{n}", 4.0, "a") for n in range(5))]
    calls.append(replace(call("c", 1.0, "a"), expected=None))
    assert total(calls) == Expected(30.0, 15.0, 60.0, 3)
    assert total([*calls, *calls]) == total(calls)  # each output is computed once
    two, many = total(calls, 2), total(calls, 100)
    assert two and two.seconds == 15.0 and many and many.seconds == 14.0
    assert total([calls[-1]]) is None
