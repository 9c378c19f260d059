"""Teachers: trained, brought along in a file, and what they say of the training images."""

import argparse
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from moist.config import AugmentConfig, TeacherConfig
from moist.data.augment import Pass, batches, normalize
from moist.env import Env, Silent
from moist.errors import ConfigError
from moist.measure.accuracy import classify
from moist.nets.build import module
from moist.nets.cnn import TEACHERS
from moist.nets.fastnet import whiten
from moist.stages.logits import teacher_logits
from moist.stages.teacher import (
    WeightsFile,
    load_teacher,
    read_file,
    sample,
    spec_of,
    train_teacher,
)
from moist.store import checkpoint
from moist.store.artifacts import Dataset, NotFinite, Split, Teacher

ENV = Env(device=torch.device("cpu"), stage="teacher")
State = dict[str, torch.Tensor]


def dataset(n: int = 12, classes: int = 4) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 8, 8, 3), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.arange(n) % classes)
    empty = Split(pixels[:0], split.labels_N[:0])
    names = tuple(f"class {c}" for c in range(classes))
    return Dataset("tiny", names, (0.5, 0.5, 0.5), (0.3, 0.3, 0.3), split, empty, split)


def trained_state(classes: int = 4) -> State:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        net = TEACHERS["resnet8"].build((3, 8, 8), classes)
        net(torch.randn(4, 3, 8, 8))  # gives batch norm statistics worth keeping
    return dict(net.state_dict())


def stored(folder: Path, state: object, suffix: str = ".pth") -> Path:
    path = folder / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def loaded(path: Path, classes: int = 4, arch: str = "resnet8") -> Teacher:
    return load_teacher(ENV, data=dataset(classes=classes), arch=arch, weights=WeightsFile(path))


def refused(path: Path, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(path, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


# files that fit


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_weights_come_back_from_a_file_the_same(suffix: str, tmp_path: Path) -> None:
    state = trained_state()
    found = loaded(stored(tmp_path, state, suffix))
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    x_BCHW = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = TEACHERS["resnet8"].build((3, 8, 8), 4)
    net.load_state_dict(state)
    with torch.inference_mode():
        torch.testing.assert_close(module(found).eval()(x_BCHW), net.eval()(x_BCHW))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_become_float32(
    dtype: torch.dtype, suffix: str, tmp_path: Path
) -> None:
    state = trained_state()
    other = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    found = loaded(stored(tmp_path, other, suffix))
    for name, tensor in state.items():
        assert found.state[name].dtype == tensor.dtype
        assert torch.equal(found.state[name], other[name].to(tensor.dtype))


def test_a_file_may_leave_out_batch_norms_counters(tmp_path: Path) -> None:
    state = trained_state()
    short = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert len(short) < len(state)
    found = loaded(stored(tmp_path, short))
    assert found.state.keys() == state.keys()
    assert torch.equal(found.state["bn1.running_mean"], state["bn1.running_mean"])


def test_a_files_key_is_its_content_and_not_its_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    one = stored(tmp_path, trained_state(), ".safetensors")
    other = stored(tmp_path / "elsewhere", trained_state(), ".safetensors")
    third = stored(tmp_path / "elsewhere", {"a": torch.ones(1)}, ".safetensors.other")
    assert WeightsFile(one).key == WeightsFile(other).key != WeightsFile(third).key


# files that do not


def test_weights_that_change_after_they_were_digested_are_refused(tmp_path: Path) -> None:
    path = stored(tmp_path, trained_state())
    weights = WeightsFile(path)
    stored(tmp_path, {n: t + 1 for n, t in trained_state().items()})
    with pytest.raises(ConfigError, match="changed while it was read"):
        load_teacher(ENV, data=dataset(), arch="resnet8", weights=weights)


def test_a_wrong_number_of_classes_is_named_with_both_shapes(tmp_path: Path) -> None:
    said = refused(stored(tmp_path, trained_state(classes=4)), classes=3)
    assert "teacher.arch=resnet8 on 3 classes" in said
    assert "`fc.weight`: the network has (3, 64), the file (4, 64)" in said
    assert "`fc.bias`: the network has (3,), the file (4,)" in said
    assert "conv1" not in said


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = trained_state()
    del state["bn1.running_var"]
    said = refused(stored(tmp_path, state))
    assert "`bn1.running_var`: the network has (16,), the file no such tensor" in said
    assert said.count("the network has") == 1


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    said = refused(stored(tmp_path, {**trained_state(), "fc.extra": torch.ones(2)}))
    assert "`fc.extra`: the network has no such tensor, the file (2,)" in said
    assert said.count("the network has") == 1


def test_another_architecture_is_refused_in_a_few_lines(tmp_path: Path) -> None:
    said = refused(stored(tmp_path, trained_state()), arch="resnet18")
    assert said.count("the network has") == 5
    assert "and " in said and " more" in said


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02\xff", b"PK\x03\x04"])
def test_garbage_is_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert f"can't read teacher.weights `{path}`" in refused(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=60))
def test_no_garbage_escapes_as_another_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        read_file(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = stored(tmp_path, trained_state(), suffix)
    path.write_bytes(path.read_bytes()[:-200])
    assert "can't read teacher.weights" in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_missing_file_is_refused_and_has_no_key(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    assert "can't read teacher.weights" in refused(path)
    with pytest.raises(ConfigError, match="No such file"):
        _ = WeightsFile(path).key


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Writes:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.write_text, (trace, "ran"))

    for name, dump in {"torch.pth": torch.save, "plain.pth": pickle_to}.items():
        for bad in (Writes(), np.array([Writes()]), argparse.Namespace(best=Writes())):
            dump({"net": trained_state(), "acc": bad}, tmp_path / name)
            assert "can't read teacher.weights" in refused(tmp_path / name)
            assert not trace.exists()
    pickle.loads((tmp_path / "plain.pth").read_bytes())
    assert trace.exists()  # it would have run


def pickle_to(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize(
    "value", [[1, 2], {"epoch": 3}, {"state": {0: {"a": torch.ones(1)}}}, {0: torch.ones(1)}]
)
def test_what_is_no_state_dict_is_refused_with_the_way_to_make_one(
    value: object, tmp_path: Path
) -> None:
    said = refused(stored(tmp_path, value))
    assert "does not contain a state dict of tensors" in said
    assert "hint: save it with `net.state_dict()`" in said


def test_a_whole_network_in_a_file_is_refused(tmp_path: Path) -> None:
    said = refused(stored(tmp_path, TEACHERS["resnet8"].build((3, 8, 8), 4)))
    assert "can't read teacher.weights" in said


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warned(self, message: str) -> None:
        self.lines.append(message)


def heard(path: Path, arch: str = "resnet8") -> tuple[Teacher, list[str]]:
    progress = Heard()
    env = replace(ENV, progress=progress)
    found = load_teacher(env, data=dataset(), arch=arch, weights=WeightsFile(path))
    return found, progress.lines


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("key", "prefix"),
    [("net", ""), ("net", "module."), ("state_dict", "model."), ("", "module._orig_mod.")],
)
def test_the_only_state_dict_of_a_checkpoint_is_taken_and_this_is_said(
    key: str, prefix: str, tmp_path: Path
) -> None:
    state = trained_state()
    inner: Any = {prefix + name: tensor for name, tensor in state.items()}
    whole = {key: inner, "acc": 95.1, "epoch": 3, "optimizer": OPTIMIZER} if key else inner
    found, lines = heard(path := stored(tmp_path, whole))
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    said = [f"`{key}`"] * bool(key) + [f"names without the prefix `{prefix}`"] * bool(prefix)
    assert lines == [f"teacher.weights `{path}`: took {', '.join(said)}"]


@pytest.mark.parametrize(
    "beside",
    [
        *(np.float64(94.1), np.float32(0.9), np.float16(1), np.int64(3), np.bool_(True)),
        *(np.str_("cifar10"), np.array([[0.5, 0.7]]), np.random.RandomState(0).get_state()),
        argparse.Namespace(lr=0.1, out=Path("runs")),
    ],
)
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"])
def test_numbers_and_arguments_beside_a_state_dict_are_no_obstacle(
    core: bytes, beside: object, tmp_path: Path
) -> None:
    state, path = trained_state(), tmp_path / "w.pth"
    whole = {"net": state, "acc": beside, "epoch": 3}
    torch.save(whole, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", core))
    found, _ = heard(path)
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    torch.save(whole, path)
    assert heard(path)[0].state.keys() == state.keys()


def test_several_state_dicts_in_a_checkpoint_are_named(tmp_path: Path) -> None:
    said = refused(stored(tmp_path, {"model": trained_state(), "ema": trained_state()}))
    assert "contains several state dicts: `model`, `ema`\nhint: save one alone" in said


class Block(nn.Module):
    """A block of pytorch-cifar's ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class CifarResNet(nn.Module):
    """pytorch-cifar's ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        for n, (i, o) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)], 1):
            self.add_module(f"layer{n}", nn.Sequential(Block(i, o, 1 + (n > 1)), Block(o, o, 1)))
        self.linear = nn.Linear(512, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        for n in range(1, 5):
            x = self.get_submodule(f"layer{n}")(x)
        return self.linear(x.mean((2, 3)))


def test_pytorch_cifars_resnet18_gives_the_same_logits(tmp_path: Path) -> None:
    net = CifarResNet()
    x_BCHW = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net(x_BCHW)
    found, lines = heard(stored(tmp_path, {"net": net.state_dict(), "acc": 95.0}), "resnet18")
    assert lines[0].endswith("took `net`, with pytorch-cifar's names as torchvision's")
    with torch.inference_mode():
        torch.testing.assert_close(module(found).eval()(x_BCHW), net.eval()(x_BCHW))


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "")


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("w.pth", lambda p: p.write_bytes(b""), "it is empty"),
        ("w.pth", lambda p: p.write_text("version https://git-lfs.github.com"), "Git LFS pointer"),
        ("w.pth", lambda p: p.write_text("<!DOCTYPE html><html>"), "it is a web page"),
        ("w.pth", lambda p: p.write_bytes(b"\x1f\x8b\x08"), "it is a gzip archive"),
        ("w.pth", lambda p: zipped(p, "a.txt"), "it is a zip archive, not made by `torch.save`"),
        ("w.pth", lambda p: zipped(p, "w/data.pkl", "w/constants.pkl"), "a TorchScript archive"),
        ("w.pth", lambda p: save_file(trained_state(), p), "name it .safetensors"),
        ("w.safetensors", lambda p: torch.save(trained_state(), p), "name it .pth"),
        ("w.pth", lambda p: p.write_bytes(b"PK\x03\x04 and no end"), "it is damaged or cut off"),
        ("w.pth", lambda p: p.mkdir(), "Is a directory"),
        ("w.pth", lambda p: torch.save({"a": Fraction(1)}, p), "objects (`fractions.Fraction`)"),
        ("w.pth", lambda p: torch.save(nn.Linear(1, 1), p), "(`torch.nn.modules.linear.Linear`)"),
    ],
)
def test_a_file_of_another_form_is_named_in_a_sentence(
    name: str, write: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    write(path := tmp_path / name)
    found = refused(path)
    assert found.startswith(f"can't read teacher.weights `{path}`: ") and said in found
    assert "weights_only" not in found and "\x1b" not in found


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinity")])
def test_weights_that_are_not_finite_are_named(value: float, word: str, tmp_path: Path) -> None:
    state = trained_state()
    state["fc.bias"][1] = value
    assert f"has {word} in `fc.bias`\nhint: give another" in refused(stored(tmp_path, state))


# training, and the logits on the training images


def trained(seed: int = 0) -> Teacher:
    return train_teacher(
        ENV,
        data=dataset(),
        teacher=TeacherConfig(arch="resnet8", epochs=2, batch_size=6),
        augment=AugmentConfig(shift=1),
        precision="float32",
        seed=seed,
    )


def test_a_teacher_depends_on_its_seed_and_nothing_else() -> None:
    torch.manual_seed(1)
    one = trained()
    torch.manual_seed(2)
    again, other = trained(), trained(seed=1)
    assert all(torch.equal(one.state[name], again.state[name]) for name in one.state)
    assert not torch.equal(one.state["fc.weight"], other.state["fc.weight"])
    assert len(one.history) == 2


def fast(**options: object) -> Teacher:
    """A fast teacher after two epochs."""
    section = {"arch": "fastnet", "epochs": 2, "batch_size": 6, "optimizer": "sgd", **options}
    return train_teacher(
        ENV,
        data=dataset(),
        teacher=TeacherConfig.model_validate(section),
        augment=AugmentConfig(shift=1),
        precision="float32",
        seed=0,
    )


def test_a_whitening_stem_is_made_from_the_images_and_only_its_bias_is_trained() -> None:
    stem = TEACHERS["fastnet"].build((3, 8, 8), 4).stem
    whiten(stem, sample(dataset(), 12))
    frozen, late, longer = fast(stem_epochs=0), fast(stem_epochs=1), fast(stem_epochs=1, epochs=3)
    for found in (frozen, late):
        assert torch.equal(found.state["stem.weight"], stem.weight)
    assert not frozen.state["stem.bias"].any()
    assert late.state["stem.bias"].any()
    steady = {"schedule": "constant", "epochs": 1}
    assert torch.equal(
        fast(stem_epochs=1, schedule="constant").state["stem.bias"],
        fast(stem_epochs=1, **steady).state["stem.bias"],
    )
    assert not torch.equal(longer.state["fc.weight"], late.state["fc.weight"])


def test_the_sample_of_a_sorted_data_set_has_images_of_all_of_it() -> None:
    data, found = dataset(12), sample(dataset(12), 4)
    rows = normalize(data.train.images_NHWC, data.mean, data.std)[[0, 3, 7, 11]]
    assert torch.equal(found, rows)


def test_smoothed_labels_give_the_loss_of_smoothed_labels() -> None:
    still = {"lr": 1e-30, "weight_decay": 0, "schedule": "constant", "epochs": 1, "batch_size": 12}
    hard, soft = (fast(label_smoothing=s, **still).history[0]["loss"] for s in (0.0, 1.0))
    half = fast(label_smoothing=0.5, **still).history[0]["loss"]
    assert half == pytest.approx((hard + soft) / 2) and hard != pytest.approx(soft, rel=1e-3)


def labelled(
    views: int, env: Env = ENV, state: State | None = None, mirror: bool = False
) -> torch.Tensor:
    return teacher_logits(
        env,
        data=dataset(),
        teacher=Teacher(spec_of("resnet8", dataset()), state or trained_state(), ()),
        augment=AugmentConfig(flip=True, shift=2, cutout=2),
        views=views,
        precision="float32",
        seed=3,
        mirror=mirror,
    ).train_VNC


@pytest.mark.parametrize("mirror", [False, True])
def test_the_logits_of_a_view_are_the_teachers_on_the_images_that_a_student_sees(
    mirror: bool,
) -> None:
    found_VNC = labelled(views=2, mirror=mirror)
    assert found_VNC.shape == (2, 12, 4)
    net = TEACHERS["resnet8"].build((3, 8, 8), 4)
    net.load_state_dict(trained_state())
    data, augment = dataset(), AugmentConfig(flip=True, shift=2, cutout=2)
    for view in range(2):
        for batch in batches(
            data, Pass(view, order=9), augment=augment, seed=3, batch_size=5, device=ENV.device,
        ):  # fmt: skip
            with torch.inference_mode():
                expected = net.eval()(batch.images_BCHW)
                if mirror:
                    expected = (expected + net(batch.images_BCHW.flip(3))) / 2
            found = found_VNC[view, batch.index_B].float()
            torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(found_VNC[0], found_VNC[1], atol=1e-2)


@pytest.mark.parametrize(
    ("factor", "found"),
    [
        (1e8, "exceed float16: they reach [0-9.e+]+, and float16 ends at 65504"),
        (math.nan, "have NaN"),
    ],
)
def test_logits_that_float16_can_not_hold_are_named_as_such(factor: float, found: str) -> None:
    state = trained_state()
    state["fc.weight"] = state["fc.weight"] * factor
    with pytest.raises(NotFinite, match=f"the teacher logits {found}$"):
        labelled(2, replace(ENV, stage="teacher_logits"), state)


def test_a_model_whose_logits_are_not_finite_is_not_evaluated() -> None:
    state = trained_state()
    state["fc.weight"] = state["fc.weight"] * 1e38 * 1e3
    teacher, data = Teacher(spec_of("resnet8", dataset()), state, ()), dataset()
    with pytest.raises(NotFinite, match="the model's logits of 12 images have "):
        classify(ENV, module(teacher), data.train, data, precision="float32")


def test_logits_of_a_killed_stage_go_on_from_the_last_whole_view(tmp_path: Path) -> None:
    class Stops(Silent):
        """Progress of someone who interrupts after the first view."""

        def advanced(self, *told: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        labelled(3, Env(ENV.device, Stops(), "logits", tmp_path))
    found = checkpoint.load(tmp_path, print)
    assert found is not None and found[0] == 1
    assert torch.equal(labelled(3, ENV.at("logits", tmp_path)), labelled(3))
