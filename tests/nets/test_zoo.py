"""Teachers of torchvision and timm: built without a download, on resized images."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from moist.config import AugmentConfig, Config, TeacherConfig
from moist.config.overrides import parse
from moist.config.plugins import split_name
from moist.data.augment import normalize
from moist.data.sources import Source
from moist.env import Env
from moist.errors import ConfigError
from moist.measure.multiply_adds import count_flops
from moist.nets.build import module
from moist.nets.cnn import TEACHERS
from moist.nets.zoo import IMAGENET
from moist.stages.teacher import Start, WeightsFile, load_teacher, train_teacher
from moist.store.artifacts import Dataset, Split
from moist.systems.checks import check, given_weights

SQUEEZENET = "torchvision:squeezenet1_1"


def plain(classes: int) -> nn.Module:
    """Build torchvision's network itself, with the weights of a seed."""
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return squeezenet1_1(num_classes=classes).eval()


def stored(folder: Path, classes: int) -> Path:
    save_file(plain(classes).state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def dataset(channels: int = 3, n: int = 6) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 12, 16, channels), dtype=torch.uint8, generator=generator)
    split = Split(pixels, torch.arange(n) % 3)
    empty = Split(pixels[:0], split.labels_N[:0])
    mean, std = (0.1, 0.5, 0.9)[:channels], (0.3, 0.2, 0.1)[:channels]
    return Dataset("tiny", ("a", "b", "c"), mean, std, split, empty, split)


def configured(arch: str, **teacher: object) -> Config:
    words = [f"teacher.{key}={value}" for key, value in teacher.items()]
    return parse([f"teacher.arch={arch}", *words])


def source(classes: int = 3) -> Source:
    names = tuple(map(str, range(classes)))
    return Source("tiny", None, None, names, key="0", pixels=(12, 16), channels=3)


def env(folder: Path) -> Env:
    return Env(device=torch.device("cpu"), stage="teacher", checkpoints=folder / "checkpoints")


@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_weights_answer_as_on_their_own_pixels(tmp_path, channels) -> None:
    data = dataset(channels)
    arch = configured(SQUEEZENET).teacher.arch
    weights = WeightsFile(stored(tmp_path, classes=3))
    teacher = load_teacher(env(tmp_path), data=data, arch=arch, weights=weights)
    x_BCHW = normalize(data.test.images_NHWC, data.mean, data.std)
    pixels = data.test.images_NHWC.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    own = F.interpolate((pixels.expand(-1, 3, -1, -1) - mean) / std, (224, 224), mode="bilinear")
    with torch.inference_mode():
        torch.testing.assert_close(module(teacher).eval()(x_BCHW), plain(3)(own))


def test_a_head_for_other_classes_is_new_and_the_rest_is_trained_on(tmp_path) -> None:
    path = stored(tmp_path, classes=10)
    config = configured(SQUEEZENET, weights=path, epochs=1, lr=1e-9, batch_size=6)
    weights, said = given_weights(config, source())
    assert isinstance(weights, Start)
    assert said == (
        f"teacher.weights `{path}`: took all but the head `classifier.1.bias,"
        " classifier.1.weight`: of 10 classes, not 3; the teacher is trained from them for"
        " `teacher.epochs=1`"
    )
    teacher = train_teacher(
        env(tmp_path), data=dataset(), teacher=config.teacher, augment=AugmentConfig(shift=0),
        precision="float32", seed=0, start=weights,
    )  # fmt: skip
    given = plain(10).state_dict()
    assert teacher.state["classifier.1.weight"].shape == (3, 512, 1, 1)
    for name in given.keys() - {"classifier.1.weight", "classifier.1.bias"}:
        torch.testing.assert_close(teacher.state[name], given[name], rtol=0, atol=1e-6)


def test_a_file_of_another_network_does_not_fit(tmp_path) -> None:
    state = plain(3).state_dict()
    del state["features.0.bias"]
    save_file(state, tmp_path / "cut.safetensors")
    config = configured(SQUEEZENET, weights=tmp_path / "cut.safetensors")
    with pytest.raises(ConfigError, match=r"(?s)does not fit .*squeezenet1_1 .*`features.0.bias`"):
        check(config, source())


def test_of_a_network_of_moists_own_a_head_for_other_classes_does_not_fit(tmp_path) -> None:
    save_file(TEACHERS["resnet8"].build((3, 12, 16), 5).state_dict(), tmp_path / "own.safetensors")
    config = configured("resnet8", weights=tmp_path / "own.safetensors")
    with pytest.raises(ConfigError, match=r"`fc.bias`: the network has \(3,\), the file \(5,\)"):
        check(config, source())


@pytest.mark.parametrize(
    ("arch", "said"),
    [
        ("torchvision:squeezenet1_11", "unknown network .*did you mean `squeezenet1_1`"),
        ("torchvision:inception_v3", "unknown network of torchvision `inception_v3`"),
    ],
)
def test_a_network_that_there_is_not_is_answered_with_the_nearest(arch, said) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        check(configured(arch), source())


def test_a_networks_multiply_adds_are_those_at_its_own_size() -> None:
    wrapped = TEACHERS[SQUEEZENET].build((3, 12, 16), 3)
    counts = [count_flops(net, (3, 224, 224)) for net in (wrapped, plain(3))]
    assert count_flops(wrapped, (3, 12, 16))["conv"] == counts[0]["conv"] == counts[1]["conv"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t.c3_in1k", "vit_tiny_patch16_224"])
def test_a_network_of_timm_is_built_without_a_download(name, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    timm = pytest.importorskip("timm")
    config = configured(f"timm:{name}")
    assert split_name(config.teacher.arch)[1].startswith("timm ")
    check(config, source())
    net = TEACHERS[config.teacher.arch].build((3, 12, 16), 3)
    own = timm.create_model(name, num_classes=3)
    assert net.state_dict().keys() == own.state_dict().keys()
    seen: list[torch.Size] = []
    next(net.children()).register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    net.eval()(torch.zeros(2, 3, 12, 16))
    assert seen == [(2, *own.pretrained_cfg["input_size"])]


def test_a_teacher_config_is_read_with_its_networks_version() -> None:
    config = TeacherConfig(arch=SQUEEZENET)
    assert split_name(config.arch)[1].startswith("torchvision ")
    assert config.model_dump(mode="json")["arch"] == SQUEEZENET
