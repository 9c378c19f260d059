"""Joint training: what each objective is, and whom it moves."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig, JointConfig
from moist.data.augment import Batch
from moist.env import Env, Silent
from moist.errors import StageError
from moist.nets.build import module
from moist.nets.cnn import STUDENTS
from moist.nets.mixture import MoIST, duplicate
from moist.nets.routers import ROUTERS
from moist.stages.joint import OBJECTIVES, Soft, teacher_prior, train_jointly
from moist.store.artifacts import Clusters, Dataset, Logits, Mixture, Router, Spec, Split, Student

SHAPE = (1, 8, 8)
CLUSTERS = Clusters((0, 1, 0, 2, 1), {})
ENV = Env(device=torch.device("cpu"), stage="joint")
ALL = list(OBJECTIVES)
TAUGHT = ["hierarchical", "routed", "students_only", "switch"]
"""The objectives whose students may learn from the teacher, too."""
MASKED = [*((name, False) for name in ALL), ("hierarchical", True), ("em", True)]
"""Each objective, with and without masked students where both make sense."""


def student(batch_norm: bool = False) -> Student:
    options = {"hidden_width": 8, "channels": (4, 6), "batch_norm": batch_norm}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = STUDENTS["cnn"].build(SHAPE, 5, **options).state_dict()
    return Student(Spec("cnn", SHAPE, 5, options), state, ())


def router(name: str = "cnn") -> Router:
    each = {"cnn": {"hidden_width": 4, "dropout": 0.3}, "linear": {"widths": (6,), "dropout": 0}}
    options = each.get(name, {})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = ROUTERS[name].build(SHAPE, 3, **options).state_dict()
    return Router(Spec(name, SHAPE, 3, options), state, ())


def dataset(n: int = 20) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 100, (n, 8, 8, 1), dtype=torch.uint8, generator=generator)
    labels_N = torch.arange(n) % 5
    pixels[torch.arange(n), labels_N] += 150  # a bright row tells the class
    split = Split(pixels, labels_N)
    empty = Split(pixels[:0], split.labels_N[:0])
    return Dataset("tiny", tuple("abcde"), (0.5,), (0.3,), split, empty, split)


def taught(views: int = 2, n: int = 20) -> Logits:
    generator = torch.Generator().manual_seed(4)
    return Logits((torch.randn(views, n, 5, generator=generator) * 3).half())


def soft(temperature: float = 2.0) -> Soft:
    return Soft(taught().train_VNC, temperature)


def joint(objective: str, **values: object) -> JointConfig:
    masked = objective in {"hierarchical", "em"}
    options = {"objective": objective, "mask_students": masked, "epochs": 2, "batch_size": 8}
    return JointConfig.model_validate({**options, "lr": 0.01, **values})


def train(
    config: JointConfig,
    name: str = "cnn",
    env: Env = ENV,
    batch_norm: bool = False,
    gate: Router | None = None,
    seed: int = 0,
) -> Mixture:
    reads = OBJECTIVES[config.objective].taught(config)
    return train_jointly(
        env,
        data=dataset(),
        clusters=CLUSTERS,
        router=gate or router(name),
        student=student(batch_norm),
        joint=config,
        logits=taught() if reads else None,
        temperature=2.0 if reads else None,
        augment=AugmentConfig(shift=1),
        precision="float32",
        seed=seed,
    )


def network(config: JointConfig) -> MoIST:
    start = Mixture(
        router(),
        duplicate(student(), 3),
        CLUSTERS,
        config.mask_students,
        config.objective == "switch",
        (),
    )
    net = module(start)
    assert isinstance(net, MoIST)
    return net.eval()


def batch(labels: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(6)
    x_BCHW = torch.randn(len(labels), *SHAPE, generator=generator)
    return Batch(torch.arange(len(labels)), x_BCHW, torch.tensor(labels), view=1)


def value(config: JointConfig, net: MoIST, labels: list[int]) -> torch.Tensor:
    OBJECTIVES[config.objective].prepare(net)
    torch.manual_seed(0)  # the noise of noisy_topk
    return OBJECTIVES[config.objective].loss(net, batch(labels), config, soft())[0]


def touched(net: nn.Module) -> bool:
    """Whether the module got a gradient other than 0."""
    return any(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


# whom it moves


@settings(max_examples=6)
@given(st.sampled_from(["cnn", "linear", "transformer"]), st.booleans(), st.integers(0, 2**20))
def test_students_only_leaves_the_router_bit_identical_buffers_included(
    name: str, batch_norm: bool, seed: int
) -> None:
    before = router(name).state
    after = train(joint("students_only"), name, batch_norm=batch_norm, seed=seed)
    assert after.router.state.keys() == before.keys()
    assert name != "cnn" or any("running_mean" in part for part in before)
    assert all(torch.equal(after.router.state[part], before[part]) for part in before)
    fresh = student(batch_norm).state
    assert any(not torch.equal(e.state["fc2.bias"], fresh["fc2.bias"]) for e in after.students)


@pytest.mark.parametrize("objective", ["hierarchical", "em", "switch", "noisy_topk"])
def test_the_other_objectives_train_router_and_students(objective: str) -> None:
    after = train(joint(objective))
    before = router().state
    for name in ("fc1.weight", "fc2.weight", "trunk.0.weight", "trunk.1.running_mean"):
        assert not torch.equal(after.router.state[name], before[name]), name
    fresh = student().state["fc2.bias"]
    moved = [not torch.equal(expert.state["fc2.bias"], fresh) for expert in after.students]
    assert any(moved) if objective == "switch" else all(moved)


@given(st.sampled_from(MASKED), st.lists(st.integers(0, 4), min_size=2, max_size=8))
def test_every_objective_but_students_only_gives_its_router_a_gradient(
    chosen: tuple[str, bool], labels: list[int]
) -> None:
    objective, masked = chosen
    config = joint(objective, balance=0, mask_students=masked)
    net = network(config)
    value(config, net, labels).backward()
    assert touched(net.router) == (objective != "students_only")
    # masked students of clusters with one class have nothing to learn
    assert any(touched(expert) for expert in net.students) or (masked and set(labels) == {3})


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("labels", "cluster"), [([0, 2, 0], 0), ([1, 4], 1), ([3], 2)])
def test_under_hierarchical_only_the_labels_student_learns(
    labels: list[int], cluster: int, masked: bool
) -> None:
    config = joint("hierarchical", mask_students=masked)
    net = network(config)
    value(config, net, labels).backward()
    # a cluster of one class leaves a masked student nothing to learn
    alone = masked and cluster == 2
    assert [touched(e) for e in net.students] == [j == cluster and not alone for j in range(3)]


def test_under_all_that_route_the_routed_student_learns() -> None:
    for objective in ("switch", "students_only", "routed"):
        config = joint(objective)
        net = network(config)
        head = net.router.get_submodule("fc2")
        assert isinstance(head, nn.Linear)
        nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
        value(config, net, [0, 1, 2, 3, 4]).backward()
        assert [touched(expert) for expert in net.students] == [False, False, True]


def test_under_em_every_unmasked_student_learns() -> None:
    config = joint("em", mask_students=False)
    net = network(config)
    value(config, net, [0]).backward()
    assert [touched(expert) for expert in net.students] == [True, True, True]


# what it is


def test_hierarchical_is_the_likelihood_of_the_two_level_softmax() -> None:
    config = joint("hierarchical")
    net, labels = network(config), [0, 1, 2, 3, 4, 0]
    x_BCHW = batch(labels).images_BCHW
    with torch.no_grad():
        gate_BE = net.router(x_BCHW).softmax(1)
        expected = 0.0
        for row, label in enumerate(labels):
            j = CLUSTERS.of_class[label]
            own = [c for c, cluster in enumerate(CLUSTERS.of_class) if cluster == j]
            within = net.students[j](x_BCHW)[row, own].softmax(0)[own.index(label)]
            expected -= float((gate_BE[row, j] * within).log()) / len(labels)
        assert float(value(config, net, labels)) == pytest.approx(expected, rel=1e-5)


def test_masked_em_without_prior_is_hierarchical() -> None:
    config = joint("em", prior_weight=0)
    net, labels = network(config), [0, 1, 2, 3, 4]
    other = value(joint("hierarchical"), net, labels)
    torch.testing.assert_close(value(config, net, labels), other)


def test_unmasked_hierarchical_bounds_the_mixtures_surprise_from_above() -> None:
    config = joint("hierarchical", mask_students=False)
    net, labels = network(config), [0, 1, 2, 3, 4]
    with torch.no_grad():
        x_BCHW = batch(labels).images_BCHW
        gate_BE = net.route(x_BCHW).softmax(1)
        probs_BC = (gate_BE[:, :, None] * net.experts(x_BCHW).softmax(2)).sum(1)
        surprise = F.nll_loss(probs_BC.log(), torch.tensor(labels))
        assert value(config, net, labels) > surprise


def test_em_adds_the_divergence_from_the_teachers_prior() -> None:
    net, labels = network(joint("em")), [0, 1, 2, 3, 4]
    with torch.no_grad():
        added = value(joint("em", prior_weight=2.0), net, labels) - value(
            joint("em", prior_weight=0), net, labels
        )
        prior_BE = teacher_prior(net, batch(labels), soft())
        gate_BE = net.route(batch(labels).images_BCHW).softmax(1)
        expected = 2 * (prior_BE * (prior_BE / gate_BE).log()).sum(1).mean()
    torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)


def test_students_only_is_the_cross_entropy_of_the_picked_student() -> None:
    config = joint("students_only")
    net, labels = network(config), [0, 1, 2, 3, 4]
    expected = F.cross_entropy(net(batch(labels).images_BCHW), torch.tensor(labels))
    torch.testing.assert_close(value(config, net, labels), expected)


def test_routed_is_the_routers_loss_and_that_of_the_picked_student() -> None:
    net, labels = network(joint("routed")), [0, 1, 2, 3, 4]
    x_BCHW, y_B = batch(labels).images_BCHW, torch.tensor(labels)
    router = F.cross_entropy(
        net.route(x_BCHW), torch.tensor([CLUSTERS.of_class[c] for c in labels])
    )
    expected = router + F.cross_entropy(net(x_BCHW), y_B)
    torch.testing.assert_close(value(joint("routed"), net, labels), expected)


@pytest.mark.parametrize("objective", TAUGHT)
def test_students_learn_the_teachers_logits_at_their_weight(objective: str) -> None:
    net, labels = network(joint(objective, mask_students=False)), [0, 1, 2, 3, 4]
    at = {
        alpha: value(joint(objective, mask_students=False, alpha=alpha), net, labels).item()
        for alpha in (0, 0.25, 1)
    }
    assert at[0.25] == pytest.approx(0.75 * at[0] + 0.25 * at[1], rel=1e-5)
    x_BCHW, cluster_B = batch(labels).images_BCHW, net.cluster_C[torch.tensor(labels)]
    with torch.no_grad():
        chosen_B = net.route(x_BCHW).argmax(1) if objective != "hierarchical" else cluster_B
        student_BC = net.dispatch(x_BCHW, chosen_B)
        if objective == "switch":
            student_BC = net.routed(x_BCHW)[0]
        hard = F.cross_entropy(student_BC, torch.tensor(labels))
        teacher_BC = taught().train_VNC[1, :5].float()
        divergence = F.softmax(teacher_BC / 2, 1) * (
            F.log_softmax(teacher_BC / 2, 1) - F.log_softmax(student_BC / 2, 1)
        )
    assert at[1] - at[0] == pytest.approx(float(4 * divergence.sum(1).mean() - hard), rel=1e-4)


def test_masked_students_learn_the_teachers_probabilities_among_their_classes() -> None:
    net, labels = network(joint("hierarchical")), [0, 1, 2, 4]
    with torch.no_grad():
        plain, soft = (value(joint("hierarchical", alpha=alpha), net, labels) for alpha in (0, 1))
        x_BCHW = batch(labels).images_BCHW
        own_BC = net.dispatch(x_BCHW, net.cluster_C[labels])
        expected = -F.cross_entropy(own_BC, torch.tensor(labels))
        for row, label in enumerate(labels):
            j = CLUSTERS.of_class[label]
            own = [c for c, cluster in enumerate(CLUSTERS.of_class) if cluster == j]
            student = (net.students[j](x_BCHW)[row, own] / 2).log_softmax(0)
            teacher = (taught().train_VNC[1, row, own].float() / 2).log_softmax(0)
            expected += 4 * (teacher.exp() * (teacher - student)).sum() / len(labels)
    torch.testing.assert_close(soft - plain, expected, rtol=1e-4, atol=1e-6)


def test_joint_training_shows_the_views_that_the_teacher_saw() -> None:
    """Two views of the teacher: a third epoch without a step repeats the first one's loss."""
    still = {"epochs": 3, "lr": 1e-30, "batch_size": 20, "weight_decay": 0, "alpha": 0.5}
    losses = [row["loss"] for row in train(joint("routed", **still), "linear").history]
    assert losses[0] == pytest.approx(losses[2], rel=1e-6) != losses[1]


def test_switch_adds_the_balance_loss_at_its_weight() -> None:
    net, labels = network(joint("switch")), [0, 1, 2, 3, 4]
    with torch.no_grad():
        plain, once, twice = (
            value(joint("switch", balance=weight), net, labels) for weight in (0, 0.5, 1.0)
        )
        expected = F.cross_entropy(net(batch(labels).images_BCHW), torch.tensor(labels))
    torch.testing.assert_close(plain, expected)
    assert once > plain
    torch.testing.assert_close(twice - plain, 2 * (once - plain))


@pytest.mark.parametrize("top", [2, 3])
def test_noisy_topk_is_the_mixture_of_the_top_experts_probabilities(top: int) -> None:
    """At next to no noise, where its gates are those of the router."""
    config, labels = joint("noisy_topk", balance=0, top=top), [0, 1, 2, 3, 4]
    net = network(config)
    OBJECTIVES[config.objective].prepare(net)
    nn.init.constant_(net.deviation_E, -30.0)
    with torch.no_grad():
        found = OBJECTIVES["noisy_topk"].loss(net, batch(labels), config, None)
        expected = 0.0
        for row, label in enumerate(labels):
            gate_E = net.route(batch(labels).images_BCHW)[row]
            best = gate_E.topk(top).indices
            prob_E = gate_E[best].softmax(0)
            each_E = net.experts(batch(labels).images_BCHW)[row, best].softmax(1)[:, label]
            expected -= float((prob_E * each_E).sum().log()) / len(labels)
    assert float(found[0]) == pytest.approx(expected, rel=1e-4)


def test_noisy_topk_gives_its_noise_a_gradient_and_leaves_it_behind() -> None:
    config = joint("noisy_topk", balance=1)
    net = network(config)
    value(config, net, [0, 1, 2, 3, 4]).backward()
    assert net.deviation_E.grad is not None and net.deviation_E.grad.any()
    after = train(config)
    assert after.router.state.keys() == router().state.keys()
    assert module(after).state_dict().keys() == module(train(joint("em"))).state_dict().keys()


@pytest.mark.parametrize("objective", ["hierarchical", "routed", "em", "switch", "noisy_topk"])
def test_the_z_loss_is_the_squared_log_partition_of_the_routers_logits(objective: str) -> None:
    """Seen in an epoch that moves nothing, behind a router that says the same of every image."""
    said_E = torch.tensor([0.5, 1.0, -2.0])
    constant = {"fc2.weight": torch.zeros(3, 4), "fc2.bias": said_E}
    gate = Router(router().spec, router().state | constant, ())
    still = {"epochs": 1, "lr": 1e-30, "batch_size": 32, "weight_decay": 0}
    plain, more = (
        train(joint(objective, z_loss=weight, **still), gate=gate).history[0]["loss"]
        for weight in (0, 2)
    )
    assert more - plain == pytest.approx(2 * float(torch.logsumexp(said_E, 0)) ** 2, rel=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_teachers_prior_is_its_probability_of_a_clusters_classes(mixed: bool) -> None:
    net, labels = network(joint("em")), [0, 1, 2, 3, 4]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        found = teacher_prior(net, batch(labels), soft())
    probs_BC = (taught().train_VNC[1, :5].float() / 2.0).softmax(1)
    columns = [probs_BC[:, [c for c in range(5) if CLUSTERS.of_class[c] == j]] for j in range(3)]
    torch.testing.assert_close(found, torch.stack([part.sum(1) for part in columns], 1))
    torch.testing.assert_close(found.sum(1), torch.ones(5))


# the stage


@pytest.mark.parametrize("objective", ALL)
def test_every_objective_descends(objective: str) -> None:
    history = train(joint(objective, epochs=10)).history
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize("objective", ["hierarchical", "routed", "students_only"])
def test_an_oracle_lets_the_students_train(objective: str) -> None:
    after = train(joint(objective), "oracle")
    assert after.router.state == {}
    fresh = student().state["fc1.weight"]
    assert not torch.equal(after.students[0].state["fc1.weight"], fresh)
    net = module(after)
    with pytest.raises(StageError):
        net(batch([0]).images_BCHW)


@pytest.mark.parametrize("objective", ALL)
def test_a_killed_stage_goes_on_to_the_same_mixture(objective: str, tmp_path: Path) -> None:
    class Stops(Silent):
        """Progress of someone who interrupts after the first epoch."""

        def advanced(self, *told: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(joint(objective), env=Env(ENV.device, Stops(), "joint", tmp_path), batch_norm=True)
    resumed = train(joint(objective), env=ENV.at("joint", tmp_path), batch_norm=True)
    unbroken = train(joint(objective), batch_norm=True)
    for one, other in zip(
        (resumed.router, *resumed.students), (unbroken.router, *unbroken.students), strict=True
    ):
        assert all(torch.equal(one.state[name], other.state[name]) for name in other.state)


def test_a_mixture_remembers_how_it_answers() -> None:
    assert (train(joint("switch")).gated, train(joint("switch")).masked) == (True, False)
    assert (train(joint("em")).gated, train(joint("em")).masked) == (False, True)
