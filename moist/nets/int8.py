"""Static quantization of a part of an ONNX graph to 8-bit integers, by onnxruntime."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import onnx

QUANTIZED = {"Conv", "Gemm", "MatMul"}
BATCH = 64


def quantized(part: onnx.ModelProto, samples: Mapping[str, torch.Tensor]) -> onnx.ModelProto:
    """Quantize the weights (a scale a channel) and activations of a part.

    The ranges of activations are those on `samples`, its inputs on calibration images. A part
    without a convolution or matrix product is returned as it is.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    if not any(node.op_type in QUANTIZED for node in part.graph.node):
        return part

    class Samples(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            count = len(next(iter(samples.values())))
            self.batches = (
                {name: x[start : start + BATCH].numpy() for name, x in samples.items()}
                for start in range(0, count, BATCH)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.onnx"
        level = logging.getLogger().level
        logging.getLogger().setLevel(logging.ERROR)  # it asks for a preparation that is done here
        try:
            quantize_static(
                part,
                path,
                Samples(),
                per_channel=True,
                reduce_range=True,  # 7 bits: AVX2 adds products of 8 bits in too few bits
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.getLogger().setLevel(level)
        return onnx.load(path)
