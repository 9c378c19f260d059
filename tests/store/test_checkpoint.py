import dataclasses
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moist.errors import StoreError
from moist.results import report
from moist.store import artifacts, checkpoint

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8,
    torch.bool,
]  # fmt: skip
COST = report.Cost(flops=1e6 / 3, macs=0.1 + 0.2, params=7, bytes=28)


def same(a: object, b: object) -> bool:
    """Equal, bit by bit, and of the same types."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {str(dtype): (torch.rand(3, 5, generator=generator) * 9).to(dtype) for dtype in DTYPES}
    return {**drawn, "empty": torch.empty(0, 4), "scalar": torch.tensor(0.1)}


def network(cls: type, name: str) -> artifacts.Network:
    spec = artifacts.Spec(name, (3, 8, 8), 10, {"channels": (32, 64), "norm": False, "p": 0.1})
    return cls(spec, tensors(len(name)), ({"loss": 0.1 + 0.2, "lr": 1e-3 / 3}, {"loss": 0.25}))


def split(n: int) -> artifacts.Split:
    return artifacts.Split(torch.arange(n * 12).to(torch.uint8).view(n, 2, 2, 3), torch.arange(n))


CLUSTERS = artifacts.Clusters((0, 1, 0), {"2": 0.1 + 0.2})
STUDENT = network(artifacts.Student, "cnn")
EXAMPLES = [
    split(4),
    artifacts.Dataset("d", ("é", "b"), (0.1, 0.2), (0.3, 0.7), split(5), split(0), split(2)),
    STUDENT.spec,
    network(artifacts.Network, "n"),
    network(artifacts.Teacher, "resnet8"),
    STUDENT,
    network(artifacts.Router, "linear"),
    artifacts.Logits(torch.randn(2, 3, 4).half()),
    CLUSTERS,
    artifacts.Mixture(
        network(artifacts.Router, "cnn"), (STUDENT, STUDENT), CLUSTERS, True, False, ({"a": 1.0},)
    ),
    artifacts.Levels(
        torch.randn(2, 3, 5).half(), (2, 3), torch.rand(2, 4, 4), torch.rand(4, 3), torch.rand(4)
    ),
    artifacts.Ensemble((STUDENT, STUDENT), ("plain", "gray"), ({"a": 1.0},)),
    artifacts.Cascade(STUDENT, network(artifacts.Teacher, "resnet8"), 1 / 3),
    artifacts.Cascade(STUDENT, None, 2.0),
    report.Evaluation(
        accuracy=1 / 3, val_accuracy=None, loss=0.1, ece=1e-17, per_class={"a": 2 / 3}, n=3,
        n_val=0, cost=COST,
        routing=report.Routing(
            accuracy=0.5, per_cluster=(0.1, 0.7), cluster_accuracy=(0.3,), sent={"a": (1, 2)}
        ),
    ),
    report.Latencies(
        machine=report.Machine(device="cpu", threads=2, torch="2", system="x"),
        models={"teacher": {"batch_1": report.Timing(median=1 / 3, p95=0.7, n=10)}},
    ),
    {"accuracy": 1 / 3, "rows": ({"a": 1.0},)},
]  # fmt: skip


def test_the_examples_cover_every_artifact():
    assert {type(example).__name__ for example in EXAMPLES} >= artifacts.ARTIFACTS.keys()


@pytest.mark.parametrize("value", EXAMPLES, ids=lambda value: type(value).__name__)
def test_an_artifact_comes_back_bit_by_bit(tmp_path, value):
    checkpoint.write_artifact(tmp_path, value)
    assert same(checkpoint.read_artifact(tmp_path), value)


def test_tensors_that_share_memory_come_back_whole(tmp_path):
    rows = torch.arange(12.0).view(3, 4)
    value = {"all": rows, "again": rows, "columns": rows.T, "row": rows[1], "rest": rows[1:]}
    checkpoint.write_artifact(tmp_path, value)
    found = checkpoint.read_artifact(tmp_path)
    assert same(found, value)
    found["all"].mul_(2)
    assert torch.equal(found["again"], rows)
    assert same(checkpoint.read_artifact(tmp_path), value)


def test_an_object_from_another_moist_says_so(tmp_path):
    checkpoint.write_artifact(tmp_path, CLUSTERS)
    path = tmp_path / "artifact.json"
    path.write_text(path.read_text().replace("silhouette", "quality"))
    with pytest.raises(StoreError, match="moist cache clear"):
        checkpoint.read_artifact(tmp_path)


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a.b": ONE, "a": {"b": ONE}}, r"root\.a\.b: two tensors have this name"),
        ({"a.0": ONE, "a": (ONE,)}, r"root\.a\.0: two tensors have this name"),
        ({"x": {1: ONE}}, r"root\.x: the key 1 is not text"),
        ({None: 2}, "root: the key None is not text"),
        ({"x": {1, 2}}, r"root\.x: set is neither"),
    ],
)
def test_what_could_not_be_read_back_is_rejected(value, reason):
    with pytest.raises(TypeError, match=reason):
        artifacts.pack(value)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
STATES = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(st.characters(codec="utf-8"))
    | st.sampled_from(list(tensors(0).values())),
    lambda inner: st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(state=STATES, step=st.integers(0, 10**7))
@settings(max_examples=60, deadline=None)
def test_a_checkpoint_comes_back_bit_by_bit(tmp_path_factory, state, step):
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoint.save(folder, state, step)
    found = checkpoint.load(folder, print)
    assert found is not None and found[0] == step and same(found[1], state)


def test_the_newest_checkpoint_replaces_older_ones(tmp_path):
    folder = tmp_path / "new" / "folder"
    for step in (1, 2, 10):
        checkpoint.save(folder, {"x": torch.ones(step)}, step)
    (path,) = folder.iterdir()
    assert path.name.startswith("step-000010-")
    step, state = checkpoint.load(folder, print) or (0, None)
    assert step == 10 and len(state["x"]) == 10


def two(folder: Path) -> tuple[Path, Path]:
    """Two checkpoints side by side, as when killed between writing one and deleting the other."""
    checkpoint.save(folder, {"step": 9}, 9)
    (older,) = folder.iterdir()
    kept = older.read_bytes()
    checkpoint.save(folder, {"step": 10}, 10)
    (newer,) = folder.iterdir()
    older.write_bytes(kept)
    return older, newer


def test_a_damaged_checkpoint_is_deleted_and_an_older_whole_one_used(tmp_path):
    older, newer = two(tmp_path)
    assert checkpoint.load(tmp_path, print) == (10, {"step": 10})
    data = bytearray(newer.read_bytes())
    data[-3] ^= 1
    newer.write_bytes(data)
    warnings: list[str] = []
    assert checkpoint.load(tmp_path, warnings.append) == (9, {"step": 9})
    assert not newer.exists() and newer.name in warnings.pop() and not warnings
    os.truncate(older, 20)
    assert checkpoint.load(tmp_path, warnings.append) is None
    assert older.name in warnings.pop()


def test_unfinished_and_foreign_files_are_no_checkpoints(tmp_path):
    (tmp_path / "0123.tmp").write_bytes(b"half")
    (tmp_path / "step-000001-short.safetensors").write_bytes(b"half")
    assert checkpoint.load(tmp_path, print) is None
    checkpoint.save(tmp_path, (1.5,), 3)
    assert len(list(tmp_path.iterdir())) == 1
    assert checkpoint.load(tmp_path, print) == (3, (1.5,))


def test_without_a_folder_nothing_is_stored():
    checkpoint.save(None, {"x": 1}, 1)
    assert checkpoint.load(None, print) is None


def test_a_folder_that_was_never_made_holds_nothing(tmp_path):
    assert checkpoint.load(tmp_path / "nowhere", print) is None


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="can't write in"):
        checkpoint.save(tmp_path / "file", {"x": 1}, 1)
