"""Classify new images with an exported file, in onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from moist.errors import ConfigError, brief
from moist.nets.onnx_graph import check_installed, session
from moist.serving.predict import Answer, Model

EXPORT = "`moist export RUN -o FILE.onnx` writes one"


class OnnxModel(Model):
    """A model that `moist export` wrote; `properties` is what the file says of it.

    Raises ConfigError for a file that can't be read or is another program's, and without
    onnxruntime.
    """

    def __init__(self, path: Path) -> None:
        check_installed("onnxruntime")
        if not path.is_file():
            raise ConfigError(f"there is no file `{path}`", EXPORT)
        try:
            self.runs = session(str(path))
        except Exception as error:  # onnxruntime's own, of many types
            raise ConfigError(
                f"can't load `{path}` in onnxruntime: {brief(error)}",
                EXPORT,
            ) from None
        self.path, self.properties = path, self.runs.get_modelmeta().custom_metadata_map
        if missing := {"moist", "classes", "crop", "config"} - self.properties.keys():
            raise ConfigError(
                f"`{path}` is not an export of moist's: its metadata lacks"
                f" {', '.join(sorted(missing))}",
                EXPORT,
            )
        _, height, width, channels = self.runs.get_inputs()[0].shape
        super().__init__(
            tuple(json.loads(self.properties["classes"])),
            (channels, height, width),
            json.loads(self.properties["crop"]),
        )
        self.outputs = [output.name for output in self.runs.get_outputs()]
        self.routes_deferred = json.loads(self.properties["config"])["system"] == "specialists"

    def __repr__(self) -> str:
        return f"<model in {self.path}: {self.image_shape} to {len(self.classes)}>"

    def answer(self, images_BHWC: torch.Tensor) -> Answer:
        """Classify a batch of uint8 pixels."""
        found = self.runs.run(self.outputs, {"images": images_BHWC.numpy()})
        values = dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))
        deferred_B = values.get("deferred")
        routed_B = torch.ones(len(images_BHWC), dtype=torch.bool)
        if self.routes_deferred and deferred_B is not None:
            routed_B = deferred_B
        return Answer(values["logits"], values.get("router_logits"), routed_B, deferred_B)
