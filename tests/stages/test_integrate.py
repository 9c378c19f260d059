"""OneS: a mixture's students gathered into one, which is refined."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from moist.config import AugmentConfig, MergeConfig, StudentConfig
from moist.config.schema import choices
from moist.data.augment import Batch
from moist.env import Env, Silent
from moist.measure.accuracy import accuracy, classify
from moist.nets.build import fresh, module, student_spec
from moist.nets.entry import Shape
from moist.nets.merge import gather
from moist.nets.routers import ROUTERS
from moist.stages.gather import gather_students
from moist.stages.integrate import integrate, mean_log_prob
from moist.stages.logits import mixture_logits
from moist.store import checkpoint
from moist.store.artifacts import Clusters, Dataset, Logits, Mixture, Router, Spec, Split, Student
from moist.training.job import Job

SHAPE: Shape = (1, 8, 8)
CLUSTERS = Clusters((0, 1, 0, 2, 1), {})
ENV = Env(device=torch.device("cpu"), stage="integrate")
CONTROLS = ["random", "ancestor", "best_expert"]
TEACHERS = choices(MergeConfig, "teacher")


def student(seed: int = 0, batch_norm: bool = False) -> Student:
    options = StudentConfig(channels=(4, 6), batch_norm=batch_norm)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fresh(Student, student_spec(options, 8, SHAPE, 5))


def mixture(batch_norm: bool = False, masked: bool = False) -> Mixture:
    """Three students that have nothing in common."""
    options = {"hidden_width": 4, "dropout": 0.3}
    with torch.random.fork_rng():
        torch.manual_seed(9)
        state = ROUTERS["cnn"].build(SHAPE, 3, **options).state_dict()
    router = Router(Spec("cnn", SHAPE, 3, options), state, ())
    students = tuple(student(j + 1, batch_norm) for j in range(3))
    return Mixture(router, students, CLUSTERS, masked, False, ())


def split(n: int, seed: int = 0) -> Split:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 100, (n, 8, 8, 1), dtype=torch.uint8, generator=generator)
    labels_N = torch.arange(n) % 5
    pixels[torch.arange(n), labels_N] += 150  # a bright row tells the class
    return Split(pixels, labels_N)


def dataset(n: int = 20, val: int = 0) -> Dataset:
    empty = split(1)
    held = split(val, 3) if val else Split(empty.images_NHWC[:0], empty.labels_N[:0])
    return Dataset("tiny", tuple("abcde"), (0.5,), (0.3,), split(n), held, split(20))


def job(data: Dataset) -> Job:
    return Job(ENV, data, augment=AugmentConfig(shift=1), precision="float32", seed=0)


def taught(views: int = 2, n: int = 20) -> Logits:
    generator = torch.Generator().manual_seed(4)
    return Logits((torch.randn(views, n, 5, generator=generator) * 3).half())


def gathered(
    merge: MergeConfig, seed: int = 0, batch_norm: bool = False, data: Dataset | None = None
) -> Student:
    return gather_students(
        ENV, data=data or dataset(), mixture=mixture(batch_norm),
        ancestor=student(batch_norm=batch_norm), merge=merge, augment=AugmentConfig(shift=1),
        precision="float32", seed=seed,
    )  # fmt: skip


def same(one: Student, other: Student) -> bool:
    return one.spec == other.spec and all(
        torch.equal(one.state[name], other.state[name]) for name in other.state
    )


# gathering


@pytest.mark.parametrize("method", choices(MergeConfig, "method"))
def test_every_method_gives_one_student_of_the_same_build(method: str) -> None:
    found = gathered(MergeConfig(method=method), batch_norm=True)
    ancestor = student(batch_norm=True)
    assert found.spec == ancestor.spec and found.history == ()
    shapes = [{name: t.shape for name, t in one.state.items()} for one in (found, ancestor)]
    assert shapes[0] == shapes[1]
    with torch.inference_mode():
        assert module(found).eval()(torch.zeros(2, *SHAPE)).isfinite().all()


@pytest.mark.parametrize("method", ["average", "sum", "svd", "topk"])
def test_without_batch_norm_it_is_what_gathering_gives(method: str) -> None:
    merge = MergeConfig(method=method)
    states = [one.state for one in mixture().students]
    expected = gather(states, student().state, merge, CLUSTERS.of_class)
    assert same(gathered(merge), Student(student().spec, expected, ()))


def test_the_ancestor_is_the_ancestor_bit_by_bit() -> None:
    for batch_norm in (False, True):
        found = gathered(MergeConfig(method="ancestor"), batch_norm=batch_norm)
        assert same(found, student(batch_norm=batch_norm))


def test_random_weights_are_the_seeds() -> None:
    merge = MergeConfig(method="random")
    assert same(gathered(merge), gathered(merge))
    assert not same(gathered(merge), gathered(merge, seed=1))
    assert not same(gathered(merge), student())


def mixed(n: int, seed: int) -> Split:
    """Images with labels of no even distribution."""
    generator = torch.Generator().manual_seed(seed)
    return Split(split(n, seed).images_NHWC, torch.randint(5, (n,), generator=generator))


@pytest.mark.parametrize("val", [0, 35])
def test_the_best_expert_is_the_best_on_validation_images(val: int) -> None:
    """On training images, where there are no others."""
    found = set()
    for seed in range(6):
        data = replace(dataset(), train=mixed(20, seed), val=mixed(val, seed + 50))
        held = data.val if val else data.train
        scores = [
            accuracy(
                classify(ENV, module(one), held, data, precision="float32").logits_NC,
                held.labels_N,
            )
            for one in mixture().students
        ]
        best = gathered(MergeConfig(method="best_expert"), data=data)
        chosen = [same(best, one) for one in mixture().students].index(True)
        assert scores[chosen] == max(scores)
        found.add(chosen)
    assert len(found) > 1


def test_activations_decide_which_units_stay() -> None:
    one, other = (gathered(MergeConfig(method="topk", score=score)) for score in ("act", "delta"))
    assert not same(one, other)


def statistics(one: Student, batches: list[Batch]) -> dict[str, torch.Tensor]:
    """Mean and variance of what enters each batch norm in training, averaged over the batches."""
    net = module(one).train()
    norms = {n: part for n, part in net.named_modules() if isinstance(part, nn.BatchNorm2d)}
    seen: dict[str, list[torch.Tensor]] = {}
    for name, part in norms.items():

        def note(_net: nn.Module, given: tuple[torch.Tensor], name: str = name) -> None:
            x_DN = given[0].transpose(0, 1).flatten(1)
            seen.setdefault(f"{name}.running_mean", []).append(x_DN.mean(1))
            seen.setdefault(f"{name}.running_var", []).append(x_DN.var(1))

        part.register_forward_pre_hook(note)
    with torch.no_grad():
        for batch in batches:
            net(batch.images_BCHW)
    return {name: torch.stack(values).mean(0) for name, values in seen.items()}


@pytest.mark.parametrize("images", [20, 300])
@pytest.mark.parametrize("method", ["average", "topk"])
def test_batch_norms_statistics_are_those_of_a_training_pass(method: str, images: int) -> None:
    data = dataset(images)
    found = gathered(MergeConfig(method=method), batch_norm=True, data=data)
    batches = list(job(data).batches(0, 256))
    expected = statistics(found, batches)
    assert len(expected) == 4 and len(batches) == 1 + (images > 256)
    for name, value in expected.items():
        torch.testing.assert_close(found.state[name], value)
    norm = module(found).get_submodule("trunk.1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.momentum == 0.1


# refining


def mixture_views(temperature: float | None, masked: bool = False, env: Env = ENV) -> Logits:
    return mixture_logits(
        env, data=dataset(val=10), mixture=mixture(True, masked), temperature=temperature,
        augment=AugmentConfig(shift=1), views=2, precision="float32", seed=0,
    )  # fmt: skip


def refined(merge: MergeConfig, env: Env = ENV, masked: bool = False) -> Student:
    mixed, hard = mixture_views(2.0, masked), mixture_views(None, masked)
    who = {
        "mixture": (mixed,), "hard": (hard,), "teacher": (taught(),), "both": (mixed, taught()),
        "none": (),
    }  # fmt: skip
    return integrate(
        env, data=dataset(val=10), student=student(7, True), taught=who[merge.teacher], views=2,
        merge=merge, temperature=2.0, augment=AugmentConfig(shift=1), precision="float32", seed=0,
    )  # fmt: skip


class Stops(Silent):
    """Progress of someone who interrupts after the first epoch, or view."""

    def advanced(self, *told: object) -> None:
        raise KeyboardInterrupt


def merging(teacher: str, **values: object) -> MergeConfig:
    known = {"teacher": teacher, "epochs": 2, "batch_size": 8, "lr": 0.01}
    return MergeConfig.model_validate({**known, **values})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_whoever_refines_the_loss_descends(teacher: str, masked: bool) -> None:
    """Under a masked teacher some classes have no probability, and it stays finite."""
    history = refined(merging(teacher, epochs=10), masked=masked).history
    assert history[-1]["loss"] < history[0]["loss"]
    assert "val_accuracy" in history[0]


def test_the_refining_teacher_and_the_weight_of_the_soft_loss_make_a_difference() -> None:
    states = [refined(merging(teacher)).state["fc2.weight"] for teacher in TEACHERS]
    for i, one in enumerate(states):
        assert not any(torch.equal(one, other) for other in states[:i])
    half = refined(merging("teacher", alpha=0.35)).state["fc2.weight"]
    assert not torch.equal(half, refined(merging("teacher")).state["fc2.weight"])


def test_without_a_teacher_it_is_the_labels_that_refine_whatever_the_weight() -> None:
    plain = refined(merging("none"))
    assert same(plain, refined(merging("none", alpha=0.1)))
    for teacher in ("mixture", "teacher"):
        assert same(plain, refined(merging(teacher, alpha=0.0)))


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_killed_refinement_goes_on_to_the_same_student(teacher: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        refined(merging(teacher), Env(ENV.device, Stops(), "integrate", tmp_path))
    resumed = refined(merging(teacher), ENV.at("integrate", tmp_path))
    assert same(resumed, refined(merging(teacher)))
    assert len(resumed.history) == 2


@pytest.mark.parametrize("masked", [False, True])
def test_a_mixture_teaches_what_its_students_say_of_the_images_that_are_seen(masked: bool) -> None:
    data, model, t = dataset(val=10), mixture(True, masked), 2.0
    mixed_VNC, hard_VNC = mixture_views(t, masked).train_VNC, mixture_views(None, masked).train_VNC
    member_EC = torch.tensor(CLUSTERS.of_class)[None] == torch.arange(3)[:, None]
    for view in range(2):
        for batch in job(data).batches(view, 8, views=2):
            with torch.inference_mode():
                gate_BE = module(model.router).eval()(batch.images_BCHW).softmax(1)
                each = [module(one).eval()(batch.images_BCHW) for one in model.students]
                each_EBC = torch.stack(each)
                if masked:
                    each_EBC = each_EBC.masked_fill(~member_EC[:, None], -torch.inf)
                mean_BC = (gate_BE.T[:, :, None] * (each_EBC / t).softmax(2)).sum(0)
                routed_BC = module(model).eval()(batch.images_BCHW).softmax(1)
            mixed = (mixed_VNC[view, batch.index_B].float() / t).softmax(1)
            torch.testing.assert_close(mixed, mean_BC, rtol=5e-3, atol=1e-4)
            hard = hard_VNC[view, batch.index_B].float().softmax(1)
            torch.testing.assert_close(hard, routed_BC, rtol=5e-3, atol=1e-4)
    assert not torch.allclose(mixed_VNC[0], mixed_VNC[1], atol=1e-2)


def test_two_teachers_have_the_mean_of_their_probabilities() -> None:
    one, other = (taught().train_VNC[v].float() for v in range(2))
    mean = ((one / 3).softmax(1) + (other / 3).softmax(1)) / 2
    torch.testing.assert_close(mean_log_prob([one, other], 3.0).exp(), mean)
    torch.testing.assert_close(mean_log_prob([one], 3.0), (one / 3).log_softmax(1))


def test_a_mixtures_logits_of_a_killed_stage_go_on_from_the_last_whole_view(
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        mixture_views(2.0, env=Env(ENV.device, Stops(), "mixture_logits", tmp_path))
    found = checkpoint.load(tmp_path, print)
    assert found is not None and found[0] == 1
    resumed = mixture_views(2.0, env=ENV.at("mixture_logits", tmp_path))
    assert torch.equal(resumed.train_VNC, mixture_views(2.0).train_VNC)
