"""The teacher: trained here, or supplied as a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig, TeacherConfig
from moist.data.augment import Batch, normalize
from moist.data.random import seeded
from moist.disk import sha256
from moist.env import Env
from moist.errors import ConfigError, first_line
from moist.nets.build import fresh, module
from moist.nets.cnn import TEACHERS
from moist.nets.fastnet import whiten
from moist.stages import stage
from moist.store.artifacts import Dataset, Spec, Teacher
from moist.training.job import Job

WHITENED = 5000
"""Training images from whose patches a whitening stem is made."""


@dataclass(frozen=True)
class WeightsFile:
    """A trained state dict; its content is its key."""

    path: Path
    key: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "key", sha256(self.path))
        except OSError as error:
            raise ConfigError(
                f"can't read teacher.weights `{self.path}`: {error.strerror}"
            ) from None


def spec_of(arch: str, data: Dataset) -> Spec:
    """Describe the network of a teacher."""
    return Spec(arch, data.image_shape, len(data.classes), {})


@stage(version=1)
def train_teacher(
    env: Env,
    *,
    data: Dataset,
    teacher: TeacherConfig,
    augment: AugmentConfig,
    precision: str,
    seed: int,
) -> Teacher:
    """Train a teacher on the labels."""
    spec = spec_of(teacher.arch, data)
    with seeded(seed, "teacher"):
        net = module(fresh(Teacher, spec), env.device)
    entry, bias = TEACHERS[spec.name], None
    if entry.stem:
        stem = net.get_submodule(entry.stem)
        assert isinstance(stem, nn.Conv2d)
        whiten(stem, sample(data, WHITENED))
        bias = stem.bias

    def loss(batch: Batch) -> torch.Tensor:
        if bias is not None:
            bias.requires_grad_(batch.epoch < teacher.stem_epochs)
        return F.cross_entropy(
            net(batch.images_BCHW).float(), batch.labels_B,
            label_smoothing=teacher.label_smoothing,
        )  # fmt: skip

    job = Job(env, data, augment=augment, precision=precision, seed=seed)
    history = job.fit(net, loss, teacher)
    return Teacher(spec, net.state_dict(), history)


def sample(data: Dataset, count: int) -> torch.Tensor:
    """Return `count` training images, normalized, at equal distances: folders are sorted."""
    index_B = torch.linspace(0, len(data.train) - 1, min(count, len(data.train))).long()
    return normalize(data.train.images_NHWC[index_B], data.mean, data.std)


@stage(version=1)
def load_teacher(env: Env, *, data: Dataset, arch: str, weights: WeightsFile) -> Teacher:
    """Load a teacher's state dict, as float32. Raises ConfigError naming what does not fit."""
    spec = spec_of(arch, data)
    wanted = TEACHERS[arch].build(spec.image_shape, spec.outputs).state_dict()
    found = read_state(weights.path)
    if WeightsFile(weights.path).key != weights.key:
        raise ConfigError(f"`{weights.path}` changed while it was read", "run again")
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    state = {name: wanted[name] for name in counters} | found
    differ = [
        f"`{name}`: the network has {_shape(wanted, name)}, the file {_shape(state, name)}"
        for name in sorted(wanted.keys() | state.keys())
        if _shape(wanted, name) != _shape(state, name)
    ]
    if differ:
        rest = f"\n  and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise ConfigError(
            f"`{weights.path}` does not fit teacher.arch={arch} on {spec.outputs} classes of"
            f" {spec.image_shape} images:\n  " + "\n  ".join(differ[:5]) + rest,
            "choose the teacher.arch and the data set it was trained for",
        )
    return Teacher(spec, {name: state[name].to(wanted[name].dtype) for name in wanted}, ())


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a .safetensors file, or of a .pth without running any code."""
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises IndexError, KeyError, struct.error, ...
        raise ConfigError(f"can't read teacher.weights `{path}`: {first_line(error)}") from None
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ConfigError(
            f"`{path}` does not contain a state dict of tensors", "save it with `net.state_dict()`"
        )
    return state


def _shape(state: dict[str, torch.Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "no such tensor"
