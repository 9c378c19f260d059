"""Runs of the tiny recipe in every system: what they call, what they compute, what they report."""

from pathlib import Path

import torch
from tiny import SWEEPS

from moist.config import Config
from moist.config.overrides import parse
from moist.env import Env, Silent
from moist.nets.cnn import TEACHERS
from moist.pipeline import run, stages
from moist.results.report import Report
from moist.store.calls import Call
from moist.store.plan import Plan
from moist.store.store import Store

EPOCH = [
    f"@{SWEEPS / 'tiny.yaml'}",
    *(f"{section}.epochs=1" for section in ("teacher", "distill", "routing", "joint", "merge")),
    "specialists.epochs=1", "precision=float32",
    "distill.views=2", "latency.repeats=10", "latency.seconds=0.01",
]  # fmt: skip
"""The tiny recipe with an epoch a stage."""

STUDENT = ["prepare", "train_teacher", "teacher_logits", "distill_student"]
MIXTURE = [*STUDENT, "cluster_classes", "pretrain_router", "train_jointly"]
ONES = [*MIXTURE, "gather_students", "mixture_logits", "integrate"]
THRESHOLD = "choose_threshold"
SPECIALISTS = "system=specialists cascade.fallback=resnet8"
CALLED = {
    "": [*MIXTURE, *["evaluate"] * 4],
    "distill.loss=moe_kd": [
        *STUDENT[:3], "teacher_levels", *MIXTURE[3:], *["evaluate"] * 4
    ],
    "system=student": [*STUDENT, *["evaluate"] * 3],
    "system=ensemble": [*STUDENT, "distill_ensemble", *["evaluate"] * 3],
    "system=ones": [*ONES, *["evaluate"] * 5],
    "mixture.top=2": [*MIXTURE, THRESHOLD, *["evaluate"] * 5],
    "cascade.fallback=teacher": [*MIXTURE, THRESHOLD, *["evaluate"] * 5],
    "cascade.fallback=resnet8": [*MIXTURE, "distill_fallback", THRESHOLD, *["evaluate"] * 5],
    "system=ones cascade.fallback=teacher": [*ONES, THRESHOLD, *["evaluate"] * 6],
    "system=student cascade.fallback=resnet8": [
        *STUDENT, "distill_fallback", THRESHOLD, *["evaluate"] * 4
    ],
    SPECIALISTS: [
        *STUDENT, "cluster_classes", "student_logits", "distill_fallback", "train_specialists",
        THRESHOLD, *["evaluate"] * 5,
    ],
}  # fmt: skip
for stages_called in CALLED.values():
    stages_called.append("measure_latency")
CALLED["latency.runtime=onnxruntime"] = [*CALLED[""][:-1], "measure_exported_latency"]
"""The stages that each system calls, in order; all measure the latency in the end."""


def of_system(name: str) -> str:
    """Return the overrides that select a system, with what it can't do without."""
    return SPECIALISTS if name == "specialists" else f"system={name}"


def weights(path: Path, channels: int = 1, classes: int = 10, seed: int = 0) -> Path:
    """Save the state dict of an untrained resnet8, the teacher of the tiny recipe."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(TEACHERS["resnet8"].build((channels, 8, 8), classes).state_dict(), path)
    return path


def env(progress: Silent | None = None) -> Env:
    return Env(torch.device("cpu"), progress or Silent())


def tiny(*overrides: str) -> Config:
    return parse([*EPOCH, *overrides])


def plan_of(home: Path, *overrides: str) -> list[Call]:
    """Return the calls of a run, planned."""
    plan = Plan(home, env())
    stages(tiny(*overrides), plan)
    return plan.calls


def ran(home: Path, *overrides: str, progress: Silent | None = None) -> tuple[Report, list[str]]:
    """Run; return the report, and the stages that were computed for it."""
    store = Store(home, env(progress))
    report = run(tiny(*overrides), store)
    return report, [call.stage for call in store.calls if not call.reused]
