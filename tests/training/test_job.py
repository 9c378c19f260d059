"""The training loop: a killed run equals an unbroken one, and the schedules are as described."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig, TrainingConfig
from moist.data.augment import Batch
from moist.data.random import seeded
from moist.env import Env, autocast
from moist.errors import StageError
from moist.measure.accuracy import accuracy, classify
from moist.nets.routers import CNNRouter
from moist.store import checkpoint
from moist.store.artifacts import Dataset, Row, Split
from moist.training.descent import schedule_factor
from moist.training.job import Job, Loss

CPU = torch.device("cpu")
IMAGES, SIZE = 12, 4
STEPS = IMAGES // SIZE


def dataset(val: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        pixels = torch.randint(256, (n, 8, 8, 3), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.randint(3, (n,), generator=generator))

    train, held_out = split(IMAGES), split(val)
    return Dataset("tiny", ("a", "b", "c"), (0.5,) * 3, (0.3,) * 3, train, held_out, split(0))


def job(env: Env, val: int = 0, seed: int = 0) -> Job:
    return Job(env, dataset(val), augment=AugmentConfig(), precision="float32", seed=seed)


def network() -> nn.Module:
    """With all that a checkpoint must hold or that draws: batch norm, dropout, channels_last."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CNNRouter((3, 8, 8), 3, hidden_width=5, dropout=0.3)
    return net.to(memory_format=torch.channels_last)


def trained(
    folder: Path | None,
    training: TrainingConfig,
    stop_at: int | None = None,
    stage: str = "stage",
    seed: int = 0,
) -> tuple[nn.Module, tuple[Row, ...]]:
    """The network after `fit`; the loss is interrupted at step `stop_at`."""
    net = network()
    steps = iter(range(10**6))

    def loss(batch: Batch) -> torch.Tensor:
        if next(steps) == stop_at:
            raise KeyboardInterrupt
        return F.cross_entropy(net(batch.images_BCHW), batch.labels_B)

    env = Env(device=CPU, stage=stage, checkpoints=folder)
    return net, job(env, seed=seed).fit(net, loss, training)


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def without_speed(rows: tuple[Row, ...]) -> list[dict[str, float]]:
    """The rows without their speed."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


UPDATES = [
    TrainingConfig(epochs=4, batch_size=SIZE, lr=0.01, optimizer="adamw", schedule="one_cycle"),
    TrainingConfig(
        epochs=4,
        batch_size=SIZE,
        lr=0.1,
        optimizer="sgd",
        momentum=0.9,
        nesterov=True,
        schedule="cosine",
    ),
    TrainingConfig(
        epochs=4, batch_size=SIZE, lr=0.1, optimizer="sgd", momentum=0.0, schedule="constant"
    ),
    TrainingConfig(
        epochs=4,
        batch_size=SIZE,
        lr=0.1,
        optimizer="sgd",
        schedule="triangular",
        norm_lr=8,
        decay="weights",
        lookahead=2,
    ),
]


# resuming


@pytest.mark.parametrize("training", UPDATES)
@pytest.mark.parametrize("stop_at", [1, STEPS, 2 * STEPS + 1])
def test_a_killed_run_ends_as_an_unbroken_one_bit_for_bit(
    training: TrainingConfig, stop_at: int, tmp_path: Path
) -> None:
    unbroken, rows = trained(None, training)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, training, stop_at)
    resumed, later = trained(tmp_path, training)
    assert same(resumed, unbroken)
    assert without_speed(later) == without_speed(rows)
    assert len(later) == 4 and all("epoch" not in row for row in later)


def test_a_resumed_run_repeats_no_finished_epoch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, UPDATES[0], stop_at=2 * STEPS + 1)
    found = checkpoint.load(tmp_path, print)
    assert found is not None and found[0] == 2
    with pytest.raises(KeyboardInterrupt):  # two epochs are left
        trained(tmp_path, UPDATES[0], stop_at=2 * STEPS - 1)
    trained(tmp_path, UPDATES[0], stop_at=STEPS)  # and now one


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, rows = trained(tmp_path, UPDATES[0])
    again, same_rows = trained(tmp_path, UPDATES[0], stop_at=0)
    assert same(first, again)
    assert without_speed(same_rows) == without_speed(rows)


def test_another_stage_or_seed_trains_another_network() -> None:
    one, _ = trained(None, UPDATES[0])
    assert not same(one, trained(None, UPDATES[0], stage="other")[0])
    assert not same(one, trained(None, UPDATES[0], seed=1)[0])
    assert same(one, trained(None, UPDATES[0])[0])


# randomness


def test_fit_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(None, TrainingConfig(epochs=1, batch_size=SIZE))
    assert torch.equal(torch.rand(3), expected)


def test_the_global_random_numbers_leave_fit_alone() -> None:
    torch.manual_seed(1)
    one, _ = trained(None, TrainingConfig(epochs=1, batch_size=SIZE))
    torch.manual_seed(2)
    assert same(one, trained(None, TrainingConfig(epochs=1, batch_size=SIZE))[0])


def test_a_seeded_stream_depends_on_its_seed_and_name_only() -> None:
    def drawn(*parts: object) -> list[float]:
        with seeded(0, *parts):
            return torch.rand(2).tolist()

    assert drawn("a", 1) == drawn("a", 1)
    assert drawn("a", 1) != drawn("a", 2) != drawn("b", 1)


def test_every_step_of_every_epoch_draws_its_own_random_numbers() -> None:
    net = nn.Linear(1, 1)
    drawn: list[float] = []

    def loss(batch: Batch) -> torch.Tensor:
        drawn.append(torch.rand(1).item())
        return net.weight.sum()

    fitted(loss, net)
    assert len(set(drawn)) == len(drawn) == 2 * STEPS


# schedules


@pytest.mark.parametrize(
    ("schedule", "curve"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.85355, 0.5, 0.14645, 0]),
        ("one_cycle", [0.04, 1, 0.75, 0.25, 0]),
        ("triangular", [0.2, 0.97584, 0.67390, 0.37195, 0.07]),
    ],
)
def test_schedules_go_through_their_points(schedule: str, curve: list[float]) -> None:
    found = [schedule_factor(schedule, quarter / 4) for quarter in range(5)]
    assert found == pytest.approx(curve, abs=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "triangular"])
def test_schedules_have_no_jump(schedule: str) -> None:
    curve = [schedule_factor(schedule, step / 1000) for step in range(1001)]
    assert max(abs(a - b) for a, b in pairwise(curve)) < 0.005


def rates(training: TrainingConfig) -> list[float]:
    """The learning rate of each step: how far plain descent moves down a slope of one."""
    weight = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    places: list[float] = []

    def loss(batch: Batch) -> torch.Tensor:
        places.append(weight.weight.item())
        return weight.weight.sum()

    job(Env(device=CPU)).fit(weight, loss, training.model_copy(update={"batch_size": SIZE}))
    places.append(weight.weight.item())
    return [before - after for before, after in pairwise(places)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle"])
@pytest.mark.parametrize("horizon", [None, 10])
def test_each_step_moves_by_the_schedules_rate(schedule: str, horizon: int | None) -> None:
    found = rates(
        TrainingConfig.model_validate(
            {"epochs": 4, "horizon": horizon, "lr": 0.1, "optimizer": "sgd", "momentum": 0,
             "weight_decay": 0, "schedule": schedule}
        )
    )  # fmt: skip
    total = (horizon or 4) * STEPS
    expected = [0.1 * schedule_factor(schedule, step / total) for step in range(4 * STEPS)]
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_full_cosine_only_falls_and_a_truncated_one_hardly_moves() -> None:
    options = {"epochs": 4, "lr": 0.1, "optimizer": "sgd", "momentum": 0, "weight_decay": 0}
    full = rates(TrainingConfig.model_validate(options))
    assert full == sorted(full, reverse=True)
    assert full[0] == pytest.approx(0.1)
    assert full[-1] < 0.002
    truncated = rates(TrainingConfig.model_validate({**options, "horizon": 40}))
    assert truncated[-1] == pytest.approx(
        0.05 * (1 + math.cos(math.pi * (4 * STEPS - 1) / (40 * STEPS)))
    )
    assert 0.097 < truncated[-1] < 0.098


def test_rows_have_the_last_rate_of_their_epoch() -> None:
    _, rows = trained(None, TrainingConfig(epochs=2, batch_size=SIZE, lr=0.1, schedule="cosine"))
    expected = [0.1 * schedule_factor("cosine", (e * STEPS - 1) / (2 * STEPS)) for e in (1, 2)]
    assert [row["lr"] for row in rows] == pytest.approx(expected)


# rows and failures


def fitted(loss: Loss, net: nn.Module, folder: Path | None = None) -> tuple[Row, ...]:
    training = TrainingConfig(epochs=2, batch_size=SIZE, lr=0.125)
    env = Env(device=CPU, stage="route", checkpoints=folder)
    return job(env).fit(net, loss, training)


def test_a_row_holds_the_mean_loss_of_an_image_and_its_speed() -> None:
    net = nn.Linear(1, 1)

    def loss(batch: Batch) -> torch.Tensor:
        return batch.images_BCHW.mean() + 0 * net.weight.sum()

    rows = fitted(loss, net)
    for epoch, row in enumerate(rows):
        shown = job(Env(device=CPU)).batches(epoch, SIZE)
        expected = torch.cat([batch.images_BCHW for batch in shown]).mean()
        assert row["loss"] == pytest.approx(float(expected), abs=1e-6)
        assert row["images_per_second"] > 0


def test_a_row_has_the_accuracy_on_the_validation_split_if_there_is_one_to_measure_it_on() -> None:
    def rows(val: int, validate: bool = True) -> tuple[nn.Module, tuple[Row, ...]]:
        net, training = network(), TrainingConfig(epochs=2, batch_size=SIZE)
        work = job(Env(device=CPU), val)
        return net, work.fit(
            net, lambda b: F.cross_entropy(net(b.images_BCHW), b.labels_B), training,
            validate=validate,
        )  # fmt: skip

    net, found = rows(val=7)
    data = dataset(val=7)
    answers = classify(Env(device=CPU), net, data.val, data, precision="float32")
    assert found[-1]["val_accuracy"] == accuracy(answers.logits_NC, data.val.labels_N)
    for row in (*rows(val=0)[1], *rows(val=7, validate=False)[1]):
        assert "val_accuracy" not in row


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fails_with_the_learning_rate_and_stores_nothing(
    bad: float, tmp_path: Path
) -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(StageError) as caught:
        fitted(lambda batch: net.weight.sum() * bad, net, tmp_path)
    message, hint = str(caught.value).splitlines()
    assert message.startswith("`route` diverged: the loss is ")
    assert message.endswith(" in epoch 1")
    assert hint == "hint: lower the learning rate (it is 0.125)"
    assert checkpoint.load(tmp_path, print) is None


def test_a_trained_module_is_left_ready_to_evaluate_and_a_frozen_part_is_not_trained() -> None:
    net = nn.Sequential(nn.Linear(192, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    net[0].requires_grad_(False)
    before = [parameter.clone() for parameter in net.parameters()]
    fitted(lambda b: F.cross_entropy(net(b.images_BCHW.flatten(1)), b.labels_B), net)
    moved = [not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True)]
    assert moved == [False, False, True, True]
    assert not net.training


# passes and precision


def test_an_epoch_shows_a_new_view_each_time_or_a_few_in_turn() -> None:
    pixels = torch.arange(10 * 64).remainder(251).to(torch.uint8).view(10, 8, 8, 1)
    split = Split(pixels, torch.arange(10) % 2)
    data = Dataset("tiny", ("a", "b"), (0.5,), (0.3,), split, split, split)
    augment = AugmentConfig(flip=True, shift=2)

    def shown(epoch: int, views: int | None) -> tuple[list[int], torch.Tensor, int | None]:
        work = Job(Env(device=CPU), data, augment=augment, precision="float32", seed=0)
        found = list(work.batches(epoch, 4, views))
        index = torch.cat([batch.index_B for batch in found])
        images = torch.cat([batch.images_BCHW for batch in found])[index.argsort()]
        return index.tolist(), images, found[0].view

    assert shown(3, 2)[2] == 1
    assert torch.equal(shown(3, 2)[1], shown(1, 2)[1])
    assert shown(3, 2)[0] != shown(1, 2)[0]
    assert shown(3, None)[2] == 3
    assert not torch.equal(shown(3, None)[1], shown(1, None)[1])


def test_an_epoch_of_chosen_images_shows_those_of_its_view_along_the_whole_schedule() -> None:
    shown_VN = torch.stack([torch.arange(IMAGES) < 8, torch.arange(IMAGES) >= 2])
    net, seen = nn.Linear(1, 1), []

    def loss(batch: Batch) -> torch.Tensor:
        seen.append((batch.epoch, batch.index_B.tolist()))
        return 0 * net.weight.sum() + 1

    work = replace(job(Env(device=CPU)), shown_VN=shown_VN)
    rows = work.fit(net, loss, TrainingConfig(epochs=3, batch_size=2), views=2)
    for epoch in range(3):
        shown = [i for e, index in seen if e == epoch for i in index]
        assert sorted(shown) == shown_VN[epoch % 2].nonzero().squeeze(1).tolist()
    assert [row["loss"] for row in rows] == [1, 1, 1]
    last = [epoch + 1 - 2 / images for epoch, images in enumerate((8, 10, 8))]
    expected = [TrainingConfig().lr * schedule_factor("cosine", at / 3) for at in last]
    assert [row["lr"] for row in rows] == pytest.approx(expected)


def test_precision_decides_what_a_product_is_computed_in() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        with autocast(CPU, precision):
            assert (x @ x).dtype == dtype


# views


def test_the_answers_over_views_are_those_of_each_view_in_order_whatever_was_checkpointed(
    tmp_path: Path,
) -> None:
    net = network().eval()
    whole_VNC = job(Env(device=CPU)).over_views(net, 3)
    assert whole_VNC.shape == (3, IMAGES, 3) and whole_VNC.dtype == torch.float16
    for view in range(3):
        for batch in job(Env(device=CPU)).batches(view, SIZE):
            with torch.inference_mode():
                own_BC = net(batch.images_BCHW).half()
            torch.testing.assert_close(whole_VNC[view, batch.index_B], own_BC)
    levels = tuple(torch.split(whole_VNC[0], 1, 1))  # as the levels of a teacher were kept once
    for kept in (whole_VNC[0], levels):
        checkpoint.save(tmp_path, (kept,), 1)
        env = Env(device=CPU, checkpoints=tmp_path)
        assert torch.equal(job(env).over_views(net, 3), whole_VNC)
