"""Exported files: what writes them, what runs them, and new images classified by one."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from moist.errors import ConfigError, brief
from moist.nets.onnx_graph import check_installed, onnx_of, session
from moist.nets.torch_graph import program_of
from moist.serving import SUFFIXES
from moist.serving.predict import Answer, Model
from moist.store.artifacts import Dataset

EXPORT = "`moist export RUN -o FILE` writes one, as ONNX or for torch"


@dataclass(frozen=True)
class Loaded:
    """An exported file: what it says of the model, the shape (H, W, C) of its images, and a
    call that returns its outputs, by name, for uint8 images (B, H, W, C)."""

    properties: Mapping[str, str]
    shape: tuple[int, int, int]
    outputs: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


def in_onnxruntime(file: bytes) -> Loaded:
    """Load an ONNX file."""
    runs = session(file)
    names = [output.name for output in runs.get_outputs()]

    def outputs(images_BHWC: torch.Tensor) -> dict[str, torch.Tensor]:
        found = runs.run(names, {"images": images_BHWC.numpy()})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    _, height, width, channels = runs.get_inputs()[0].shape
    properties = checked(runs.get_modelmeta().custom_metadata_map)
    return Loaded(properties, (height, width, channels), outputs)


def in_torch(file: bytes) -> Loaded:
    """Load a `.pt2` file, which torch.export reads with pickle: its metadata is checked first."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        extra = {
            name.rpartition("/extra/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if "/extra/" in name
        }
    properties, program = checked(extra), torch.export.load(io.BytesIO(file))
    _, height, width, channels = program.example_inputs[0][0].shape
    module = program.module()

    def outputs(images_BHWC: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            found: dict[str, torch.Tensor] = module(images_BHWC)
        return found

    return Loaded(properties, (height, width, channels), outputs)


def checked(properties: Mapping[str, str]) -> Mapping[str, str]:
    """Return what a file says of its model. Raises ConfigError if moist did not write it."""
    if missing := {"moist", "classes", "crop", "config"} - properties.keys():
        raise ConfigError(
            f"it is not an export of moist's: its metadata lacks {', '.join(sorted(missing))}",
            EXPORT,
        )
    return properties


@dataclass(frozen=True)
class Format:
    """A format of exported files: what runs it, the packages that writing and loading need, and
    the functions that write a model, with what the file says of it, and load it."""

    runtime: str
    to_write: tuple[str, ...]
    to_load: tuple[str, ...]
    write: Callable[[nn.Module, Dataset, dict[str, str]], bytes]
    load: Callable[[bytes], Loaded]


FORMATS = {
    "onnx": Format(
        "onnxruntime", ("onnx", "onnxruntime"), ("onnxruntime",), onnx_of, in_onnxruntime
    ),
    "torch-export": Format("torch", (), (), program_of, in_torch),
}


class ExportedModel(Model):
    """A model that `moist export` wrote; `properties` is what the file says of it.

    Raises ConfigError for a file that can't be read or is another program's, and for an ONNX file
    without onnxruntime.
    """

    def __init__(self, path: Path) -> None:
        form = next(FORMATS[name] for name, end in SUFFIXES.items() if end == path.suffix)
        check_installed(*form.to_load)
        if not path.is_file():
            raise ConfigError(f"there is no file `{path}`", EXPORT)
        try:
            self.loaded = form.load(path.read_bytes())
        except ConfigError as error:
            raise ConfigError(f"can't use `{path}`: {error.args[0]}", EXPORT) from None
        except Exception as error:  # the runtime's own, of many types
            raise ConfigError(
                f"can't load `{path}` in {form.runtime}: {brief(error)}", EXPORT
            ) from None
        self.path, self.properties = path, self.loaded.properties
        height, width, channels = self.loaded.shape
        super().__init__(
            tuple(json.loads(self.properties["classes"])),
            (channels, height, width),
            json.loads(self.properties["crop"]),
        )
        self.routes_deferred = json.loads(self.properties["config"])["system"] == "specialists"

    def __repr__(self) -> str:
        return f"<model in {self.path}: {self.image_shape} to {len(self.classes)}>"

    def answer(self, images_BHWC: torch.Tensor) -> Answer:
        """Classify a batch of uint8 pixels."""
        values = self.loaded.outputs(images_BHWC)
        deferred_B = values.get("deferred")
        routed_B = torch.ones(len(images_BHWC), dtype=torch.bool)
        if self.routes_deferred and deferred_B is not None:
            routed_B = deferred_B
        return Answer(values["logits"], values.get("router_logits"), routed_B, deferred_B)
