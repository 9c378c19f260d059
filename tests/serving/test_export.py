"""An exported file is the model: every system, at every batch size."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from moist.config import StudentConfig
from moist.data.augment import normalize
from moist.env import Env
from moist.errors import ConfigError, StageError
from moist.nets.build import Architecture, blank, module
from moist.nets.cascade import CascadeNet, threshold_for
from moist.nets.mixture import MoIST
from moist.serving import SUFFIXES, export, exported
from moist.serving.exported import FORMATS, Loaded
from moist.serving.predict import TorchModel
from moist.store.artifacts import Dataset, Split
from moist.store.runs import RunRecords
from moist.store.store import Store

SHAPE, CLASSES = (3, 8, 8), 6
SYSTEMS: dict[str, dict] = {
    "mixture": {"router": "cnn", "options": (("hidden_width", 8), ("dropout", 0.5))},
    "transformer": {"router": "transformer"},
    "masked": {"router": "linear", "masked": True},
    "gated": {"router": "linear", "gated": True},
    "shared": {"router": "shared"},
    "two experts": {"router": "shared", "masked": True, "top": 2},
    "cascade": {"router": "linear", "fallback": "resnet8"},
    "student": {"system": "student"},
    "student and teacher": {"system": "student", "fallback": "teacher", "teacher": "fastnet"},
    "specialists": {"system": "specialists", "fallback": "resnet8"},
    "ensemble": {"system": "ensemble", "views": "filtered"},
    "MoE-KD": {"system": "student", "latent": ("heads", 3)},
}


def data() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 8, 8, 3), generator=generator, dtype=torch.uint8)
    split = Split(images, torch.zeros(40, dtype=torch.int64))
    names = tuple("abcdef")
    return Dataset("noise", names, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), split, split, split)


def model(name: str) -> nn.Module:
    """An untrained model with random batch-norm statistics, whose students all answer."""
    given = {"system": "moist", "teacher": "resnet8", "latent": None, "hidden_width": 5}
    if SYSTEMS[name].get("router") in {"linear", "shared"}:
        widths = (8,)
        given["options"] = (("widths", widths), ("dropout", 0.5))
    student = StudentConfig(channels="4,6", batch_norm=True)
    arch = Architecture.model_validate({**given, "student": student, **SYSTEMS[name]})
    net = module(blank(arch, SHAPE, CLASSES, 3)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_((torch.rand(tensor.shape, generator=generator) - 0.5) * 0.2)
    x = normalize(data().val.images_NHWC, data().mean, data().std)
    spread_experts(net, x)
    with torch.inference_mode():
        if isinstance(net, CascadeNet):
            certainty_B = net.first_pass(x).certainty_B
            net.threshold = threshold_for(certainty_B, 0.5) - 1e-5  # no image's own: files round
    return net


def spread_experts(net: nn.Module, x: torch.Tensor) -> None:
    """Center the router's logits, so that each student has images."""
    mixture = net.first if isinstance(net, CascadeNet) else net
    if not isinstance(mixture, MoIST):
        return
    with torch.inference_mode():
        gate_BE = mixture.route(mixture.trunk(x))
    last = [layer for layer in mixture.router.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias.sub_(gate_BE.mean(0))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_graph_gives_the_logits_of_the_model_at_every_batch_size(name: str) -> None:
    net = model(name)
    written = export.onnx_of(net, data(), SAID)
    agrees(exported.in_onnxruntime(written), net, name)
    folded = SYSTEMS[name].get("teacher") != "fastnet"  # pooling is before its batch norm
    assert ("BatchNormalization" not in nodes(onnx.load_from_string(written).graph)) == folded


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two experts", "specialists", "student and teacher"])
def test_a_program_of_torch_gives_the_logits_of_the_model(name: str) -> None:
    net = model(name)
    written = exported.program_of(net, data(), SAID)
    loaded = exported.in_torch(written)
    assert loaded.properties == SAID
    agrees(loaded, net, name)
    assert all(weight.requires_grad for weight in net.parameters())


SAID = {"moist": "1", "classes": "x", "crop": "false", "config": "{}"}
ROUTED = {"moist", "specialists"}


def agrees(loaded: Loaded, net: nn.Module, name: str) -> None:
    images = data().val.images_NHWC
    with torch.inference_mode():
        x = normalize(images, data().mean, data().std)
        want = net(x)
        answer = net.answer(x) if isinstance(net, CascadeNet) else None
    for size in (1, 7, 40):
        got = export.classified(loaded, data().val, size)
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
    outputs = loaded.outputs(images)
    if answer is not None:
        got = outputs["deferred"]
        assert got.tolist() == answer.deferred_B.tolist() and 0 < got.sum() < 40
    assert ("router_logits" in outputs) == (SYSTEMS[name].get("system", "moist") in ROUTED)


def nodes(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


class Counting(nn.Module):
    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return x_BCHW.new_zeros(len(x_BCHW), CLASSES) + (len(x_BCHW) > 5)


def test_a_model_that_torch_cant_trace_is_one_error_without_its_whole_graph(capsys) -> None:
    net = model("cascade")
    net.fallback = Counting()
    with pytest.raises(RuntimeError, match="data-dependent"):
        exported.program_of(net, data(), SAID)
    assert capsys.readouterr() == ("", "")


def test_only_the_students_of_a_batchs_images_are_computed() -> None:
    """A student's bias is made NaN: only its own images notice."""
    net = model("mixture")
    x = normalize(data().val.images_NHWC, data().mean, data().std)
    with torch.inference_mode():
        expert_B = net.routed(x)[1].argmax(1)
    with torch.no_grad():
        net.students[0].fc2.bias.fill_(float("nan"))
    for form in FORMATS.values():
        loaded = form.load(form.write(net, data(), SAID))
        got = export.classified(loaded, data().val)
        assert torch.equal(got.isnan().all(1), expert_B == 0) and 0 < (expert_B == 0).sum() < 40


@pytest.mark.parametrize("name", ["mixture", "transformer", "two experts", "specialists"])
def test_every_part_of_an_int8_graph_is_quantized_on_the_images_that_reach_it(name: str) -> None:
    net = model(name)
    built = onnx.load_from_string(whole := export.onnx_of(net, data(), SAID, int8=True))
    kinds = {one.name: one.data_type for one in built.graph.initializer if len(one.dims) > 1}
    weights = {name for name in kinds if "weight" in name or "MatMul" in name}
    assert weights and {kinds[name] for name in weights} == {onnx.TensorProto.INT8}
    with torch.inference_mode():
        want = net(normalize(data().val.images_NHWC, data().mean, data().std))
    got = export.classified(exported.in_onnxruntime(whole), data().val)
    error_N = (got - want).abs().amax(1) / want.abs().amax(1)
    assert 0 < float(error_N.median()) < 0.1  # the median: a rounded router may choose anew


def test_int8_costs_little_accuracy_of_a_trained_run(trained) -> None:
    home = trained()
    run = RunRecords(home).find("last")
    store = Store(home, Env())
    whole, small = (export.export_model(store, run, int8=int8) for int8 in (False, True))
    assert len(small.data) < len(whole.data) and small.accuracy_torch == whole.accuracy
    assert abs(small.accuracy - whole.accuracy) < 0.05 and small.same_class > 0.9


def test_a_run_is_exported_with_what_a_reader_needs(trained) -> None:
    home = trained()
    run = RunRecords(home).find("last")
    found = export.export_model(Store(home, Env()), run)
    assert found.same_class == 1 and found.difference < 1e-4
    assert found.accuracy == found.accuracy_torch == run.report.val_accuracy
    tested = export.export_model(Store(home, Env()), run, "torch-export", split="test")
    assert tested.n == run.report.n_test and tested.same_class == 1
    assert tested.accuracy == tested.accuracy_recorded == run.report.accuracy
    written = exported.in_onnxruntime(found.data).properties
    assert exported.in_torch(tested.data).properties == written
    assert json.loads(written["classes"]) == list("0123456789") and written["run"] == run.key
    assert json.loads(written["figures"])["mflops"] == run.report.mflops


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU to compare with")
def test_a_model_on_a_gpu_gives_the_logits_of_its_export(trained) -> None:
    store = Store(trained(), Env(torch.device("cuda")))
    run = RunRecords(store.home).find("last")
    data, whole = store.load(run.artifacts["prepare"][0]), export.export_model(store, run)
    on_cpu = export.classified(exported.in_onnxruntime(whole.data), data.test)
    on_gpu = TorchModel(store, run).answer(data.test.images_NHWC).logits_BC.cpu()
    torch.testing.assert_close(on_gpu, on_cpu, atol=1e-2, rtol=1e-3)


def test_a_file_that_differs_is_refused_and_what_cant_be_written_names_the_other_format(
    trained, monkeypatch
) -> None:
    home, whole = trained(), FORMATS["onnx"]
    store, run = Store(home, Env()), RunRecords(home).find("last")

    def other(net: nn.Module, data: Dataset, *others: Any) -> bytes:
        return whole.write(net, replace(data, mean=tuple(np.add(data.mean, 0.5))), *others)

    monkeypatch.setitem(FORMATS, "onnx", replace(whole, write=other))
    with pytest.raises(StageError, match="differs from the model"):
        export.export_model(store, run)

    def fails(*_: Any) -> bytes:
        raise RuntimeError("no such operator")

    monkeypatch.setitem(FORMATS, "torch-export", replace(FORMATS["torch-export"], write=fails))
    with pytest.raises(StageError, match="RuntimeError: no such operator") as error:
        export.export_model(store, run, "torch-export")
    assert "`--format onnx`" in str(error.value.hint)
    with pytest.raises(ConfigError, match="`--int8` quantizes ONNX"):
        export.export_model(store, run, "torch-export", int8=True)


def test_every_format_has_files_of_its_own() -> None:
    assert FORMATS.keys() == SUFFIXES.keys() and len(set(SUFFIXES.values())) == len(FORMATS)
