"""The time of distillation in moist against the script that one writes at first.

B images, C classes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from moist.bench.rows import Row, row
from moist.config import Config
from moist.config.overrides import build
from moist.env import Env
from moist.measure.multiply_adds import cost
from moist.nets.build import fresh, module, student_spec
from moist.stages.distill import distill_student
from moist.stages.latency import synchronizer
from moist.stages.logits import teacher_logits
from moist.store.artifacts import Dataset, Logits, Spec, Student, Teacher
from moist.store.store import Store
from moist.systems.shared import prepared

KEYS = {
    "augment.flip": True, "augment.shift": 4, "data.val_fraction": 0, "student.batch_norm": True,
    "distill.views": 5, "distill.epochs": 20, "distill.batch_size": 128,
}  # fmt: skip
"""What is measured, unless other values are given."""
IMAGES, SIDE, CLASSES = 512, 32, 10
EPOCHS = 4
WORKERS = 2
"""Of the script's data loader."""


def train(values: Mapping[str, Any], env: Env, *, rounds: int) -> list[Row]:
    """Time a student's training from stored logits, and with them, against a plain script.

    The script decodes and augments each image again, runs the teacher in every step, and computes
    in float32. Both train the same student on drawn JPEG images; times are ms an image. `values`
    are config keys. With the logits, their time on `distill.views` copies is spread over
    `distill.epochs`.
    """
    with drawn(values, env) as training:
        return _compared(training, rounds)


@dataclass(frozen=True)
class Training:
    """A student's training on drawn images, from an untrained teacher."""

    config: Config
    data: Dataset
    env: Env
    folder: Path
    """The training images, as the plain script reads them."""

    @cached_property
    def teacher(self) -> Teacher:
        c = self.config.teacher
        return fresh(Teacher, Spec(c.arch, self.data.image_shape, CLASSES, {}))

    @cached_property
    def student(self) -> Student:
        c = self.config
        spec = student_spec(c.student, c.hidden_width, self.data.image_shape, CLASSES)
        return fresh(Student, spec)

    @cached_property
    def logits(self) -> Logits:
        """Return the teacher's logits on one view, computed once."""
        return self.infer()

    def infer(self) -> Logits:
        """Compute the teacher's logits on one view, as moist does."""
        return teacher_logits(
            self.env, data=self.data, teacher=self.teacher, views=1, **self._shared
        )

    def distill(self) -> Student:
        """Train the student for EPOCHS from stored logits, as moist does."""
        c = self.config
        section = c.distill.model_copy(update={"epochs": EPOCHS, "views": 1})
        return distill_student(
            self.env, data=self.data, logits=self.logits, levels=None, student=c.student,
            hidden_width=c.hidden_width, distill=section, temperature=c.temperature,
            **self._shared,
        )  # fmt: skip

    @cached_property
    def taught(self) -> nn.Module:
        """Return the teacher as the plain script runs it."""
        teacher = module(self.teacher, self.env.device)
        return teacher.to(memory_format=torch.contiguous_format).eval()

    def plain(self) -> None:
        """Train the student for one epoch as a plain script does."""
        student = module(self.student).to(self.env.device).train()
        plain_epoch(self.folder, self.taught, student, self.data, self.config)

    @property
    def _shared(self) -> dict[str, Any]:
        c = self.config
        return {"augment": c.augment, "precision": c.precision, "seed": 0}

    def flops(self, model: Student | Teacher) -> float:
        """Count an image's floating-point operations, a multiply-add being two."""
        return 2e6 * cost(module(model), self.data.image_shape).mflops


@contextmanager
def drawn(values: Mapping[str, Any], env: Env) -> Iterator[Training]:
    """Draw images and prepare them; `values` are config keys beside KEYS."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="moist-bench-") as folder:
        draw_images(Path(folder) / "images")
        root = {"data.name": "folder", "data.root": f"{folder}/images"}
        config = build({**KEYS, **values, **root})
        data = prepared(config, Store(Path(folder) / "home", env))[0].value
        yield Training(config, data, env, Path(folder) / "images" / "train")


def _compared(training: Training, rounds: int) -> list[Row]:
    distill, env = training.config.distill, training.env
    calls: list[tuple[str, Callable[[], object], int]] = [
        ("logits", training.infer, 1),
        ("moist", training.distill, EPOCHS),
        ("plain", training.plain, 1),
    ]
    count, ms = len(training.data.train), dict[str, list[float]]()
    peaks, flops = dict[str, float](), list[float]()
    _ = training.logits, training.taught  # before anything is timed
    for _ in range(rounds):
        flops.append(matmul_flops(env, training.config.precision))
        for name, call, epochs in calls:
            seconds, peaks[name] = timed(env, call)
            ms.setdefault(name, []).append(1e3 * seconds / count / epochs)
    whole = [
        one + distill.views / distill.epochs * each
        for one, each in zip(ms["moist"], ms["logits"], strict=True)
    ]

    def share(name: str, flops_an_image: float) -> float:
        """Return per cent of the matrix product's speed."""
        return 100 * flops_an_image / (median(ms[name]) / 1e3) / median(flops)

    precision, script = training.config.precision, "plain script, float32"
    return [
        row(
            "train", f"student from stored logits, {precision}", script, ms["moist"], ms["plain"],
            percent_of_matmul=share("moist", 3 * training.flops(training.student)),
            matmul_gflops=median(flops) / 1e9, images=count,
            peak_mb=peaks["moist"], baseline_peak_mb=peaks["plain"],
        ),
        row(
            "train", f"student and its logits, {precision}", script, whole, ms["plain"],
            logits_percent_of_matmul=share("logits", training.flops(training.teacher)),
            views=distill.views, epochs=distill.epochs, peak_mb=peaks["logits"],
        ),
    ]  # fmt: skip


def plain_epoch(
    folder: Path, teacher: nn.Module, student: nn.Module, data: Dataset, config: Config
) -> None:
    """Distill for one epoch as a plain script does: the baseline, with nothing of moist's."""
    height, width = data.image_shape[1:]
    transform = transforms.Compose(
        [
            transforms.RandomCrop((height, width), padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    loader = DataLoader(
        ImageFolder(str(folder), transform),
        batch_size=config.distill.batch_size,
        shuffle=True,
        num_workers=WORKERS,
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.distill.lr)
    t, alpha = config.temperature, config.distill.alpha
    device = next(student.parameters()).device
    for images_BCHW, labels_B in loader:
        images_BCHW, labels_B = images_BCHW.to(device), labels_B.to(device)
        with torch.no_grad():
            soft_BC = F.softmax(teacher(images_BCHW) / t, 1)
        logits_BC = student(images_BCHW)
        soft = F.kl_div(F.log_softmax(logits_BC / t, 1), soft_BC, reduction="batchmean") * t * t
        loss = alpha * soft + (1 - alpha) * F.cross_entropy(logits_BC, labels_B)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def draw_images(root: Path) -> None:
    """Write JPEG images of drawn colors in a folder for each class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("test", CLASSES)):
        for index in range(count):
            path = root / split / f"class{index % CLASSES}" / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
            image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            image.save(path, quality=90)


def matmul_flops(env: Env, precision: str, size: int = 1536) -> float:
    """Measure a matrix product's flops a second, a multiply-add counting as two."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, synchronize, taken = (
        torch.randn(size, size, device=env.device).to(kind),
        synchronizer(env),
        [],
    )
    for _ in range(3):
        begin = time.perf_counter()
        torch.mm(a, a)
        synchronize()
        taken.append(time.perf_counter() - begin)
    return 2 * size**3 / min(taken)


def timed(env: Env, call: Callable[[], object]) -> tuple[float, float]:
    """Return a call's seconds, and the peak memory of this process or of the GPU meanwhile, MB.

    It is 0 on a system that reports no peak.
    """
    gpu, synchronize = env.device.type == "cuda", synchronizer(env)
    if gpu:
        torch.cuda.reset_peak_memory_stats(env.device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    begin = time.perf_counter()
    call()
    synchronize()
    seconds = time.perf_counter() - begin
    if gpu:
        return seconds, torch.cuda.max_memory_allocated(env.device) / 1e6
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return seconds, sum(float(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM"))
