"""Routers, students, teachers, losses and data sets of another package, in whole runs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import acme
import forked
import pytest
from acme import MODULE, PROJECT, installed
from recipes import EPOCH, env
from tiny import TINY

from moist.config.overrides import parse
from moist.errors import ConfigError
from moist.nets.build import module
from moist.pipeline import run, stages
from moist.store.artifacts import Router, Spec
from moist.store.plan import Plan
from moist.store.store import Store
from moist.systems.outputs import run_key

EACH = [
    "router=mlp", "student.arch=mlp", "teacher.arch=mlp", "distill.loss=logits",
    "data.name=stripes",
]  # fmt: skip
RECIPE = [word for word in EPOCH if not word.startswith("student.")]
READS = {
    "router=mlp": {"measure_latency", "pretrain_router"},
    "student.arch=mlp": {"measure_latency", "distill_student"},
    "teacher.arch=mlp": {"measure_latency", "train_teacher"},
    "distill.loss=logits": {"distill_student"},
    "data.name=stripes": {"prepare"},
}
"""The stages that read each choice; those after them have their keys."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """A folder of installed packages with the example's."""
    acme.install(tmp_path / "site")
    with installed(tmp_path / "site"):
        yield tmp_path / "site"


def planned(home: Path, *overrides: str) -> tuple[str, dict[str, str]]:
    """Return the key of a run, and its stages by key."""
    config, plan = parse([*RECIPE, *overrides]), Plan(home, env())
    key = run_key(config, stages(config, plan))
    return key, {call.key: call.stage for call in plan.calls}


def test_a_run_with_one_of_each_trains_counts_and_is_read_again(site, tmp_path) -> None:
    config = parse([*RECIPE, *EACH])
    store = Store(tmp_path, env())
    report = run(config, store)
    classes, hidden = 4, 32
    layers = 64 * hidden + hidden * classes
    router = 64 * hidden + hidden * 2
    assert report.baselines.student.mmacs * 1e6 == pytest.approx(layers)
    assert report.mmacs * 1e6 == pytest.approx(layers + router)
    again = Store(tmp_path, env())
    assert run(config, again).key == report.key
    assert all(call.reused for call in again.calls)


@pytest.mark.parametrize("override", EACH)
def test_another_version_changes_the_keys_of_what_reads_it_alone(site, tmp_path, override) -> None:
    before, old = planned(tmp_path, override)
    acme.install(site, version="1.1")
    acme.forget()
    after, new = planned(tmp_path, override)
    changed = {new[key] for key in new.keys() - old.keys()}
    kept = {new[key] for key in new.keys() & old.keys()}
    assert before != after
    assert READS[override] <= changed
    assert not READS[override] & kept
    if override != "data.name=stripes":
        assert "prepare" in kept


def test_an_installed_package_changes_no_key_of_moists_own(site, tmp_path) -> None:
    with_package = planned(tmp_path)
    (site / "acme.dist-info" / "entry_points.txt").unlink()
    acme.forget()
    assert planned(tmp_path) == with_package


NETWORK = "def mlp(image_shape, outputs): "
UNFIT = {
    "an import that fails": ("import nothing", "router=mlp", "ModuleNotFoundError: No module"),
    "a missing name": ("", "router=mlp", "AttributeError: .* no attribute 'mlp'"),
    "no function": ("mlp = 3", "teacher.arch=mlp", "expected `build.* or a `Network.* int"),
    "no module": (NETWORK + "return []", "student.arch=mlp", r"a torch.nn.Module, found list"),
    "an error": (NETWORK + "1 / 0", "teacher.arch=mlp", r"build.*10\) raised ZeroDivisionError"),
    "a wrong shape": (
        "from torch import nn\n" + NETWORK + "return nn.Flatten()",
        "router=mlp",
        r"logits \(2, 2\) of images \(2, 1, 8, 8\), found float32 \(2, 64\)",
    ),
    "lazy parameters": (
        "from torch import nn\n" + NETWORK + "return nn.LazyLinear(outputs)",
        "student.arch=mlp",
        "whose parameters have shapes, found lazy parameters",
    ),
    "a loss for each image": (
        "def logits(s, t, y, *, temperature): return (s - t).square().mean(1)",
        "distill.loss=logits",
        r"a scalar tensor with a gradient, found Tensor \(10,\)",
    ),
    "a loss without temperature": (
        "def logits(s, t, y): return (s - t).mean()",
        "distill.loss=logits",
        "TypeError: logits.* unexpected keyword argument 'temperature'",
    ),
    "no data entry": ("stripes = {}", "data.name=stripes", "expected a `DataEntry`, found dict"),
    "other pixels": (
        MODULE.replace("dtype=np.uint8", "dtype=np.int64"),
        "data.name=stripes",
        r"uint8 images \(N, 8, 8, 1\) in `train`, found images int64",
    ),
    "a class too many": (
        MODULE.replace("% 4", "% 5").replace("2 * labels_N", "labels_N"),
        "data.name=stripes",
        "labels from 0 to 3 in `train`, found .* from 0 to 4",
    ),
    "an operator of unknown cost": (
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def forward(self, x): return super().forward(x).sort(1).values\n"
        + NETWORK + "return Net(nn.Flatten(), nn.Linear(64, outputs))",
        "student.arch=mlp",
        r"can't count Net: unknown cost of \['sort'\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "override", "said"), UNFIT.values(), ids=UNFIT)
def test_an_unfit_package_is_named_with_what_was_expected(
    site, tmp_path, text, override, said
) -> None:
    acme.install(site, text)
    acme.forget()
    store = Store(tmp_path, env())
    with pytest.raises(ConfigError, match=f"(?s){said}") as error:
        run(parse([*RECIPE, override]), store)
    assert f"acme {PROJECT['version']}" in str(error.value)
    assert not {call.stage for call in store.calls} - {"prepare"}


def test_a_loss_of_two_levels_is_refused_for_a_network_that_names_none(site, tmp_path) -> None:
    config = parse([*RECIPE, "teacher.arch=mlp", "distill.loss=moe_kd"])
    with pytest.raises(ConfigError, match=r"needs the last layer and levels .*teacher.arch=mlp`"):
        stages(config, Plan(tmp_path, env()))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mlp (acme 0.9)", r"was of acme 0.9, and acme 1.0 is installed\nhint: .*acme==0.9"),
        ("gone (other 1.0)", r"no installed package adds `gone` of other 1.0 to moist.routers"),
    ],
)
def test_a_stored_network_is_built_by_its_own_version_alone(site, name, said) -> None:
    router = Router(Spec(name, (1, 8, 8), 2, {}), {}, ())
    with pytest.raises(ConfigError, match=said):
        module(router)


def test_files_below_a_root_are_part_of_the_key_of_a_packages_data(site, tmp_path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    keys = [planned(tmp_path, "data.name=stripes")[0]]
    for text in ("one", "two"):
        (root / "file.bin").write_text(text)
        keys.append(planned(tmp_path, "data.name=stripes", f"data.root={root}")[0])
    assert len({*keys}) == 3


@pytest.mark.slow
def test_a_sweep_over_a_packages_names_runs_in_workers_and_is_continued(tmp_path) -> None:
    site, home, file = tmp_path / "site", tmp_path / "home", tmp_path / "each.yaml"
    acme.install(site)
    constants = dict(word.split("=") for word in TINY[1:]) | {"data.name": "stripes"}
    fixed = "".join(f"  {key}: {{value: '{value}'}}\n" for key, value in constants.items())
    file.write_text(
        f"method: grid\ncommand: [moist, run, '{TINY[0]}', '${{args_no_hyphens}}']\n"
        f"parameters:\n{fixed}"
        "  teacher.arch: {values: [mlp]}\n  student.arch: {values: [mlp, cnn]}\n"
        "  distill.loss: {values: [logits]}\n  router: {values: [linear, mlp]}\n"
    )

    def moist(*words: object, code: int = 0) -> str:
        env = {**os.environ, "PYTHONPATH": str(site)}
        done = forked.moist(*words, "--home", home, cwd=tmp_path, env=env)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    moist("sweep", "optuna", file, "--trials", 3, "--workers", 2)
    moist("sweep", "optuna", file, "--trials", 4)
    best = json.loads(moist("best", "each", "--max", "mflops=0.01", "--json"))
    assert best["trial"]["params"]["student.arch"] == "mlp"
    acme.install(site, version="2.0")
    said = moist("sweep", "optuna", file, code=2)
    assert "was made from other" in said and "acme 1.0" in said and "acme 2.0" in said
