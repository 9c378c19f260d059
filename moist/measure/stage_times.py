"""The time that a stage is expected to take: its work, at the rate of this machine's records.

The work of a stage follows from its inputs alone: images, epochs, multiply-adds. What a stored
stage of the same kind took for its own work is scaled to it; without one there is no estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from moist.config import RoutingConfig, StudentConfig
from moist.data.random import seeded
from moist.data.sources import Source
from moist.env import Env
from moist.errors import ConfigError, StoreError
from moist.nets.build import network, router_spec, student_spec
from moist.nets.entry import Shape
from moist.nets.routers import ROUTERS
from moist.results.expected import Expected
from moist.store.artifacts import Dataset, Network, Router, Spec, Student, Teacher
from moist.store.calls import Call, StageCall
from moist.store.checkpoint import read_artifact
from moist.store.objects import MANIFEST, Damaged, Manifest
from moist.store.plan import Plan

Recipe = Mapping[str, Any]
"""The inputs of a stage as in its key; those that are outputs have the form `{"ref": KEY}`."""

RECORDS = 1000
"""Stored outputs that are read, the most recently used: a machine's rates drift."""
OF_A_KIND = 30
"""Records that an estimate is made from, the newest."""
BATCH = 256
"""Images of a batch where nothing is trained."""
TRAINING = 3
"""Passes of a training step, in multiply-adds and in calls: forward, and backward twice."""
LAYER, RATES = 2e-4, {"cpu": 2e10}
"""Seconds to call a layer, and multiply-adds a second of a thread (other devices: FAST in all).

These only weigh the parts of a work against each other: records say what a whole takes.
"""
FAST = 5e12
STAGE, EPOCH = 0.05, 0.03
"""Seconds of what a stage, and an epoch, does beside calling layers."""
NOISE, DISTANCE = 0.25, 0.15
"""Deviation of the logarithm of a time: of equal work, and for each e-fold that works differ."""
WIDTH = 1.28
"""Deviations to either end of a range: it holds four of five times."""
FADES = 0.9
"""Weight of a record, compared to that of the next newer one."""


class Unknown(LookupError):
    """A work that can't be counted: an input is no longer stored, or its shape is not known."""


class Counts(NamedTuple):
    """The layers that a batch runs through, and the multiply-adds of an image.

    `dense` are those where all students of a mixture compute each image.
    """

    layers: float = 0.0
    macs: float = 0.0
    dense: float = 0.0


@dataclass(frozen=True)
class Net:
    """The names of networks, and how to count them: that builds them, and few must be counted."""

    names: tuple[str, ...] = ()
    count: Callable[[], Counts] = Counts

    def times(self, k: int) -> Net:
        """Return k such networks, of which each image runs through one."""

        def count() -> Counts:
            layers, macs, dense = self.count()
            return Counts(k * layers, macs, k * dense)

        return Net(self.names, count)

    def beside(self, other: Net) -> Net:
        """Return both, of which each image runs through both."""

        def count() -> Counts:
            return Counts(*(a + b for a, b in zip(self.count(), other.count(), strict=True)))

        return Net((*self.names, *other.names), count)

    def densely(self) -> Net:
        """Return the same, where each image runs through all students."""
        return Net(self.names, lambda: self.count()._replace(macs=self.count().dense))


@dataclass(frozen=True)
class Work:
    """What a stage computes: networks on batches and images, and seconds that do not scale.

    Works of one `kind` can be compared: the stage, its version, precision, networks and data.
    """

    kind: tuple[object, ...] = ()
    net: Net = Net()
    batches: float = 0.0
    images: float = 0.0
    seconds: float = STAGE

    def size(self, rate: float) -> float:
        """Weigh the parts, at `rate` multiply-adds a second; only ratios of sizes have a sense."""
        counts = self.net.count()
        layers, macs = self.batches * counts.layers, self.images * counts.macs
        return self.seconds + LAYER * layers + macs / rate


class Images(NamedTuple):
    """The numbers of images of a data set, and what decides the networks."""

    name: str
    train: float
    val: float
    test: float
    shape: Shape
    classes: int


class StageTimes:
    """Expected times of the stages of a plan, from the records in its home."""

    def __init__(self, env: Env) -> None:
        machine = env.machine()
        self.place = {"device": machine.device, "threads": machine.threads}
        self.rate = RATES.get(env.device.type, FAST / machine.threads) * machine.threads
        self.stored: dict[str, Manifest | None] = {}
        self.planned: dict[str, StageCall] = {}
        self.images: dict[str, Images] = {}

    def of(self, plan: Plan) -> list[Call]:
        """Return the calls of a plan, those to compute with the time that is expected of them."""
        self.objects = plan.objects
        self.planned |= plan.requests
        found: dict[str, Expected | None] = {}
        for key, request in plan.requests.items():
            if not next(call.reused for call in plan.calls if call.key == key):
                found[key] = self.expected(request)
        return [replace(call, expected=found.get(call.key)) for call in plan.calls]

    def expected(self, request: StageCall) -> Expected | None:
        """Return the time expected of one call; None without a comparable record."""
        work = self._work(request.key, request.name, request.version, request.recipe)
        if work is None:
            return None
        return expected(work, self._records.get(work.kind, [])[:OF_A_KIND], self.rate)

    @cached_property
    def _records(self) -> dict[tuple[object, ...], list[tuple[Work, float]]]:
        """Return the works of stored outputs that this machine computed, newest first, by kind."""
        paths = [self.objects.folder(key) / MANIFEST for key in self.objects.keys()]
        used = sorted((p.stat().st_mtime, p.parent.name) for p in paths if p.exists())
        manifests = [self._manifest(key) for _, key in used[-RECORDS:]]
        here = [
            one
            for one in manifests
            if one and all(one.machine.get(name) == value for name, value in self.place.items())
        ]
        found: dict[tuple[object, ...], list[tuple[Work, float]]] = {}
        for one in sorted(here, key=lambda one: one.created, reverse=True):
            if work := self._work(one.key, one.stage, one.version, one.recipe):
                found.setdefault(work.kind, []).append((work, one.seconds))
        return found

    def _manifest(self, key: str) -> Manifest | None:
        if key not in self.stored:
            try:
                self.stored[key] = self.objects.manifest(key)
            except Damaged:
                self.stored[key] = None
        return self.stored[key]

    def _work(self, key: str, stage: str, version: int, recipe: Recipe) -> Work | None:
        """Count a stage's work; None where that can't be done.

        As of what another version or package stored, whose inputs may read differently.
        """
        try:
            work = WORKS[stage](self, key, recipe)
        except (LookupError, ValueError, ConfigError):
            return None
        kind = (stage, version, recipe.get("precision"), *work.net.names, *work.kind)
        return replace(work, kind=kind)

    def recipe(self, ref: Any) -> tuple[str, Recipe]:
        """Return the stage and the inputs of an output among the inputs. Raises Unknown."""
        key = ref["ref"]
        if key in self.planned:
            return self.planned[key].name, self.planned[key].recipe
        if (manifest := self._manifest(key)) is None:
            raise Unknown(key)
        return manifest.stage, manifest.recipe

    def data(self, recipe: Recipe) -> Images:
        """Return the images that a stage works on: of the stored data, or their raw files."""
        key = recipe["data"]["ref"]
        if key not in self.images:
            if key in self.objects:
                self.images[key] = images_of(self._read(key))
            elif key in self.planned:
                inputs = self.planned[key].inputs
                self.images[key] = images_in(inputs["source"], inputs["val_fraction"])
            else:
                raise Unknown(key)
        return self.images[key]

    def _read(self, key: str) -> Any:
        """Read a stored output. Raises Unknown if it is damaged."""
        try:
            return read_artifact(self.objects.folder(key))
        except (OSError, ValueError, SafetensorError, StoreError) as error:
            raise Unknown(key) from error

    def clusters(self, ref: Any, images: Images) -> int:
        """Return how many clusters there are; the middle number until `k=auto` has chosen."""
        k, key = self.recipe(ref)[1]["k"], ref["ref"]
        if k != "auto":
            return int(k)
        if key in self.objects:
            return int(self._read(key).k)
        return (images.classes + 1) // 2

    def net(self, ref: Any) -> Net:
        """Return the networks of an output that is a model. Raises Unknown."""
        stage, recipe = self.recipe(ref)
        return NETS[stage](self, recipe)


def images_of(data: Dataset) -> Images:
    """Return the numbers of a data set that is stored."""
    return Images(
        data.name, len(data.train), len(data.val), len(data.test), data.image_shape,
        len(data.classes),
    )  # fmt: skip


def images_in(source: Source, val_fraction: float) -> Images:
    """Return the numbers of raw files before they are decoded. Raises Unknown."""
    if source.pixels is None or source.images is None or source.train is None:
        raise Unknown(source.name)
    rest = source.images - source.train
    shape = (source.channels, *source.pixels)
    if source.splits.val:
        return Images(source.name, source.train, rest / 2, rest / 2, shape, len(source.classes))
    val = val_fraction * source.train
    return Images(source.name, source.train - val, val, rest, shape, len(source.classes))


def expected(work: Work, records: list[tuple[Work, float]], rate: float) -> Expected | None:
    """Scale the times of records, newest first, to a work; None without any.

    Near ones and new ones weigh more. The range is wider where they differ, and where none is
    near.
    """
    if not records:
        return None
    size = math.log(work.size(rate))
    sizes = [math.log(one.size(rate)) for one, _ in records]
    found = [
        math.log(max(seconds, 1e-3)) + size - own
        for (_, seconds), own in zip(records, sizes, strict=True)
    ]
    weights = [FADES**n / (NOISE + abs(own - size)) ** 2 for n, own in enumerate(sizes)]
    total = sum(weights)
    mean = sum(w * one for w, one in zip(weights, found, strict=True)) / total
    variance = sum(w * (one - mean) ** 2 for w, one in zip(weights, found, strict=True)) / total
    nearest = min(abs(own - size) for own in sizes)
    factor = math.exp(WIDTH * math.hypot(NOISE, math.sqrt(variance), DISTANCE * nearest))
    middle = math.exp(mean)
    return Expected(middle, middle / factor, middle * factor, len(records))


# the networks of outputs


def _single(kind: type[Network], spec: Spec) -> Net:
    return Net((spec.name,), lambda: _counts(kind, spec))


_counted: dict[str, Counts] = {}


def _counts(kind: type[Network], spec: Spec) -> Counts:
    """Count a network, once, by running it on one image.

    Not with fvcore, whose traces of all networks on record would take longer than some stages;
    it counts the same but for operations of attention and of norms.
    """
    if (text := f"{kind.__name__} {spec}") not in _counted:
        with seeded(0, "counted"):
            net = network(kind, spec).eval()
        layers = [part for part in net.modules() if [*part.parameters(recurse=False)]]
        macs: list[int] = []
        for part in layers:
            part.register_forward_hook(lambda *call: macs.append(_multiply_adds(*call)))
        if layers:  # an oracle computes nothing
            with torch.inference_mode():
                net(torch.zeros(1, *spec.image_shape))
        _counted[text] = Counts(len(layers), sum(macs), sum(macs))
    return _counted[text]


def _multiply_adds(
    layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
) -> int:
    """Count the multiply-adds of a call of a layer; norms and other layers have none."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return output.numel() * layer.weight[0].numel()
    if isinstance(layer, nn.MultiheadAttention):
        batch, tokens, width = inputs[0].shape
        return batch * tokens * width * (4 * width + 2 * tokens)
    return 0


def _teacher(times: StageTimes, arch: str, recipe: Recipe) -> Net:
    images = times.data(recipe)
    return _single(Teacher, Spec(arch, images.shape, images.classes, {}))


def _student_spec(times: StageTimes, recipe: Recipe) -> Spec:
    images, section = times.data(recipe), StudentConfig.model_validate(recipe["student"])
    return student_spec(section, recipe["hidden_width"], images.shape, images.classes)


def _student(times: StageTimes, recipe: Recipe) -> Net:
    return _single(Student, _student_spec(times, recipe))


def _fallback(times: StageTimes, recipe: Recipe) -> Net:
    images = times.data(recipe)
    return _single(Student, Spec(recipe["arch"], images.shape, images.classes, {}))


def _router(times: StageTimes, recipe: Recipe) -> Net:
    """Return a router, without the trunk of the student that it may read."""
    images, name = times.data(recipe), recipe["router"]
    options = ROUTERS[name].options(RoutingConfig.model_validate(recipe["routing"]))
    k, reads = times.clusters(recipe["clusters"], images), None
    if recipe["student"] is not None:
        reads = _student_spec(times, times.recipe(recipe["student"])[1])

    def count() -> Counts:
        spec = router_spec(name, options, images.shape, k, reads=reads)
        return _counts(Router, spec)

    return Net((name,), count)


def _mixture(times: StageTimes, recipe: Recipe) -> Net:
    k = times.clusters(recipe["clusters"], times.data(recipe))
    return times.net(recipe["router"]).beside(times.net(recipe["student"]).times(k))


def _specialists(times: StageTimes, recipe: Recipe) -> Net:
    k = times.clusters(recipe["clusters"], times.data(recipe))
    return times.net(recipe["generalist"]).times(k)


def _cascade(times: StageTimes, recipe: Recipe) -> Net:
    first = times.net(recipe["first"])
    return first if recipe["fallback"] is None else first.beside(times.net(recipe["fallback"]))


def _ensemble(times: StageTimes, recipe: Recipe) -> Net:
    net = _student(times, recipe).times(recipe["k"]).densely()
    return Net((*net.names, "ensemble"), net.count)


NETS: dict[str, Callable[[StageTimes, Recipe], Net]] = {
    "train_teacher": lambda times, recipe: _teacher(times, recipe["teacher"]["arch"], recipe),
    "load_teacher": lambda times, recipe: _teacher(times, recipe["arch"], recipe),
    "distill_student": _student,
    "distill_fallback": _fallback,
    "distill_ensemble": _ensemble,
    "pretrain_router": _router,
    "train_jointly": _mixture,
    "train_specialists": _specialists,
    "gather_students": lambda times, recipe: times.net(recipe["ancestor"]),
    "integrate": lambda times, recipe: times.net(recipe["student"]),
    "choose_threshold": _cascade,
}
"""The networks of each stage's output, if it is a model."""


# the work of stages


def _training(
    times: StageTimes, recipe: Recipe, net: Net, section: str, share: float = 1.0
) -> Work:
    """Count the training of networks, as a section says, on a share of the images."""
    training, images = recipe[section], times.data(recipe)
    epochs, shown = training["epochs"], share * images.train
    steps, checks = math.ceil(shown / training["batch_size"]), math.ceil(images.val / BATCH)
    return Work(
        net=net,
        batches=epochs * (TRAINING * steps + checks),
        images=epochs * (TRAINING * shown + images.val),
        seconds=STAGE + EPOCH * epochs,
    )


def _passes(net: Net, images: float) -> Work:
    """Count the computing of networks on images, without training."""
    return Work(net=net, batches=math.ceil(images / BATCH), images=images)


def _prepare(times: StageTimes, key: str, recipe: Recipe) -> Work:
    images = times.data({"data": {"ref": key}})
    count = images.train + images.val + images.test
    pixels = Net((images.name,), lambda: Counts(layers=1, macs=math.prod(images.shape)))
    return Work(net=pixels, batches=count, images=count)


def _distill(times: StageTimes, key: str, recipe: Recipe) -> Work:
    work = _training(times, recipe, NETS["distill_student"](times, recipe), "distill")
    return replace(work, kind=(recipe["distill"]["loss"] == "moe_kd",))


def _joint(times: StageTimes, key: str, recipe: Recipe) -> Work:
    net, objective = _mixture(times, recipe), recipe["joint"]["objective"]
    net = net.densely() if objective in {"em", "noisy_topk"} else net
    return replace(_training(times, recipe, net, "joint"), kind=(objective,))


def _specializing(times: StageTimes, key: str, recipe: Recipe) -> Work:
    net, share = _specialists(times, recipe), recipe["specialists"]["share"]
    return _training(times, recipe, net, "specialists", share)


def _views(model: str) -> Rule:
    """Count the passes over some views of the training images of the model of that name."""

    def work(times: StageTimes, key: str, recipe: Recipe) -> Work:
        copies = recipe["views"] * (1 + recipe.get("mirror", False))
        return _passes(times.net(recipe[model]), copies * times.data(recipe).train)

    return work


def _evaluation(times: StageTimes, key: str, recipe: Recipe) -> Work:
    images = times.data(recipe)
    return _passes(times.net(recipe["model"]), images.test + images.val)


def _latency(times: StageTimes, key: str, recipe: Recipe) -> Work:
    """Take the time for which it is configured; its teacher alone may need more."""
    kind = (recipe["arch"]["teacher"], times.data(recipe).shape)
    return Work(kind, seconds=recipe["latency"]["seconds"])


def _gathering(times: StageTimes, key: str, recipe: Recipe) -> Work:
    work = _passes(times.net(recipe["ancestor"]), times.data(recipe).train)
    return replace(work, kind=(recipe["merge"]["method"],))


Rule = Callable[[StageTimes, str, Recipe], Work]

WORKS: dict[str, Rule] = {
    "prepare": _prepare,
    "measure_latency": _latency,
    "measure_exported_latency": _latency,
    "load_teacher": lambda times, key, recipe: Work((recipe["arch"],)),
    "train_teacher": lambda times, key, recipe: _training(
        times, recipe, NETS["train_teacher"](times, recipe), "teacher"
    ),
    "teacher_logits": _views("teacher"),
    "teacher_levels": _views("teacher"),
    "student_logits": _views("student"),
    "mixture_logits": _views("mixture"),
    "distill_student": _distill,
    "distill_fallback": lambda times, key, recipe: _training(
        times, recipe, _fallback(times, recipe), "distill"
    ),
    "distill_ensemble": lambda times, key, recipe: _training(
        times, recipe, _ensemble(times, recipe), "distill"
    ),
    "cluster_classes": lambda times, key, recipe: Work((recipe["k"] == "auto",)),
    "pretrain_router": lambda times, key, recipe: _training(
        times, recipe, _router(times, recipe), "routing"
    ),
    "train_jointly": _joint,
    "train_specialists": _specializing,
    "gather_students": _gathering,
    "integrate": lambda times, key, recipe: _training(
        times, recipe, times.net(recipe["student"]), "merge"
    ),
    "choose_threshold": lambda times, key, recipe: _passes(
        _cascade(times, recipe), times.data(recipe).val
    ),
    "evaluate": _evaluation,
}
"""How to count the work of each stage, from its key and its inputs."""
