"""Specialists: which images each trains on, on what loss, and that a killed stage goes on."""

from pathlib import Path

import pytest
import torch

from moist.config import AugmentConfig, DistillConfig, SpecialistsConfig
from moist.env import Env, Silent
from moist.measure.accuracy import accuracy, classify
from moist.nets.build import module
from moist.nets.cascade import threshold_for
from moist.nets.cnn import STUDENTS
from moist.stages.logits import student_logits
from moist.stages.specialists import train_specialists
from moist.store.artifacts import (
    Cascade,
    Clusters,
    Dataset,
    Logits,
    Mixture,
    Spec,
    Split,
    Student,
)
from moist.training.distillation import distillation
from moist.training.job import Job

SHAPE = (1, 8, 8)
CLUSTERS = Clusters((0, 1, 0, 2, 1), {})
ENV = Env(device=torch.device("cpu"), stage="specialists")
COMMON = {"augment": AugmentConfig(shift=1), "precision": "float32", "seed": 0}
DISTILL = DistillConfig()


def network(seed: int, width: int = 8) -> Student:
    options = {"hidden_width": width, "channels": (4, 6), "batch_norm": True}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = STUDENTS["cnn"].build(SHAPE, 5, **options).state_dict()
    return Student(Spec("cnn", SHAPE, 5, options), state, ())


STUDENT, GENERALIST = network(0), network(1, width=12)


def split(n: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 8, 8, 1), dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.arange(n) % 5)


DATA = Dataset("tiny", tuple("abcde"), (0.5,), (0.3,), split(20, 0), split(15, 1), split(5, 2))


def random_logits(seed: int) -> Logits:
    generator = torch.Generator().manual_seed(seed)
    return Logits((torch.randn(2, 20, 5, generator=generator) * 3).half())


TEACHER = random_logits(4)


def trained(
    deferring: Logits, *, env: Env = ENV, clusters: Clusters = CLUSTERS, **values: object
) -> Mixture:
    section = {"epochs": 2, "batch_size": 8, "lr": 0.01, "share": 0.4, **values}
    return train_specialists(
        env, data=DATA, student=STUDENT, deferring=deferring, generalist=GENERALIST,
        clusters=clusters, logits=TEACHER, specialists=SpecialistsConfig.model_validate(section),
        distill=DISTILL, temperature=2.0, **COMMON,
    )  # fmt: skip


def moved(one: Student) -> bool:
    return any(not torch.equal(one.state[name], t) for name, t in GENERALIST.state.items())


def test_a_specialist_trains_on_what_is_routed_to_it_and_another_stays_as_it_was() -> None:
    """Batch norm and all: every image is most probably of class 3, which is alone in cluster 2."""
    logits_VNC = random_logits(5).train_VNC
    logits_VNC[:, :, 3] += 50
    model = trained(Logits(logits_VNC))
    assert [moved(one) for one in model.students] == [False, False, True]
    assert (model.router, model.masked, model.clusters) == (None, False, CLUSTERS)


@pytest.mark.parametrize("clusters", [CLUSTERS, Clusters((0,) * 5, {})], ids=["k=3", "k=1"])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_loss_is_the_distillation_of_the_least_certain_images_by_their_specialists(
    share: float, clusters: Clusters
) -> None:
    """Seen in an epoch that moves nothing: all specialists are the generalist still."""
    deferring = random_logits(5)
    certainty_N = deferring.train_VNC[0].float().softmax(1).amax(1)
    count = round(20 * share)
    rows = certainty_N.argsort()[:count].sort().values
    job = Job(ENV, DATA, **COMMON)
    (every,) = job.batches(0, 20, 2)
    images = every.images_BCHW[every.index_B.argsort()][rows]
    prob_BC = deferring.train_VNC[0, rows].float().softmax(1)
    of_class = torch.tensor(clusters.of_class)
    sum_BE = torch.stack([prob_BC[:, of_class == j].sum(1) for j in range(clusters.k)], 1)
    net, own_BC = module(GENERALIST).train(), torch.empty(count, 5)
    for j in range(clusters.k):  # batch norm is over the images of one specialist
        here = sum_BE.argmax(1) == j
        own_BC[here] = net(images[here]) if here.any() else own_BC[here]
    expected = distillation(
        own_BC, TEACHER.train_VNC[0, rows].float(), DATA.train.labels_N[rows], DISTILL,
        temperature=2.0,
    )  # fmt: skip
    still = {"epochs": 1, "lr": 1e-30, "batch_size": 32, "weight_decay": 0}
    found = trained(deferring, clusters=clusters, share=share, **still).history[0]["loss"]
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_an_epochs_accuracy_is_that_of_the_cascade_which_defers_this_share() -> None:
    model = trained(random_logits(5), share=0.4)
    net = module(Cascade(STUDENT, model, 0.0))
    answers = classify(ENV, net, DATA.val, DATA, precision="float32")
    assert answers.certainty_N is not None
    logits_NC = answers.at_threshold(threshold_for(answers.certainty_N, 0.4))
    assert model.history[-1]["val_accuracy"] == accuracy(logits_NC, DATA.val.labels_N)


def test_a_students_logits_are_those_of_the_views_that_specialists_train_on() -> None:
    found = student_logits(ENV, data=DATA, student=STUDENT, views=2, **COMMON)
    net = module(STUDENT).eval()
    for view in range(2):
        for batch in Job(ENV, DATA, **COMMON).batches(view, 20, 2):
            with torch.inference_mode():
                own_BC = net(batch.images_BCHW)
            torch.testing.assert_close(
                found.train_VNC[view, batch.index_B].float(), own_BC, rtol=2e-3, atol=2e-3
            )


def test_a_killed_stage_goes_on_to_the_same_specialists(tmp_path: Path) -> None:
    class Stops(Silent):
        """Progress of someone who interrupts after the first epoch."""

        def advanced(self, *told: object) -> None:
            raise KeyboardInterrupt

    deferring = random_logits(5)
    with pytest.raises(KeyboardInterrupt):
        trained(deferring, env=Env(ENV.device, Stops(), "specialists", tmp_path))
    resumed = trained(deferring, env=ENV.at("specialists", tmp_path))
    unbroken = trained(deferring)
    for one, other in zip(resumed.students, unbroken.students, strict=True):
        assert all(torch.equal(one.state[name], other.state[name]) for name in other.state)
        assert moved(one)
