"""Image encoder -> the graph `vision`: pixels (B,3,h,w) -> vision_features (B,N,C).

A float graph is the encoder as it is, batch norms folded into convolutions. In an int8 graph of convolutions, weights
have a scale for each output channel, and activations have the ranges that were seen on photographs. Knows encoders and
image files, nothing about what reads the features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.bundle import PIXELS, VISION_FEATURES, ImageSpec
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels

from . import trace

CALIBRATION = 128  # photographs that the ranges of activations are taken from
QUANTIZED = ["Conv", "MatMul", "Gemm", "Add", "Clip", "Relu"]  # a Clip left out would have Conv's wide range quantized
FLOAT_SHARE = 8  # the first eighth of the layers stays float: few weights, and most of the error comes from there
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_FEWEST = 8
_BATCH = 4
_LARGEST = 2_000_000_000  # bytes: a graph in one file, as the calibrator wants it, holds no more


def is_convolutional(model: ir.Model) -> bool:
    """Whether the encoder has convolutions besides the first, which cuts an image into patches."""
    return sum(node.op_type == "Conv" for node in model.graph) > 1


def vision_part(encoder: torch.nn.Module, image: ImageSpec) -> trace.Part:
    """The graph `vision`, not traced yet."""
    example = {PIXELS: torch.zeros(2, 3, image.height, image.width)}
    return trace.Part("vision", encoder, example, [VISION_FEATURES], {PIXELS: {0: "B"}})


def photographs(folder: Path) -> list[Path]:
    """List up to CALIBRATION images of a folder, spread over the order of their names."""
    if not folder.is_dir():
        raise Blip2rtError(f"--calibration {folder} is no folder: name one with a hundred or more photographs")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(files) < _FEWEST:
        raise Blip2rtError(f"--calibration {folder} holds {len(files)} images: give {_FEWEST}, better a hundred")
    count = min(len(files), CALIBRATION)
    return [files[i * len(files) // count] for i in range(count)]


def pixels(files: Sequence[Path], image: ImageSpec) -> np.ndarray:
    """Read files as pixels (n,3,h,w), as the runtime does."""
    return to_pixels(list(files), image)


def quantize_int8(model: ir.Model, folder: Path, files: Sequence[Path], image: ImageSpec) -> ir.Model:
    """Make an int8 graph of a float one. Passing files are written into `folder` and removed."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > _LARGEST:
        raise Blip2rtError(
            f"vision=int8-static: the encoder has {size / 1e9:.1f} GB in float32, and {_LARGEST / 1e9:.0f} at most can "
            "be calibrated; choose int8-dynamic"
        )
    source, target = folder / ".vision-float.onnx", folder / ".vision-int8.onnx"
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises to pre-process, which tracing has done
    try:
        trace.save(model, source, None)
        products = [node for node in model.graph if node.op_type in ("Conv", "MatMul")]
        layers = [node.name for node in products if trace.constant(node.inputs[1]) is not None]
        attention = [node.name for node in products if trace.constant(node.inputs[1]) is None]
        quantize_static(
            source,
            target,
            _Reader(files, image),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=[*layers[: len(layers) // FLOAT_SHARE], *attention],
            calibrate_method=CalibrationMethod.MinMax,
        )
        return ir.from_proto(ir.to_proto(ir.load(target)))
    finally:
        logging.disable(previous)
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)


class _Reader:
    """Reads photographs for ONNX Runtime's calibrator: small batches, then None."""

    def __init__(self, files: Sequence[Path], image: ImageSpec) -> None:
        self.files, self.image, self.at = files, image, 0

    def get_next(self) -> dict[str, Any] | None:
        batch = self.files[self.at : self.at + _BATCH]
        self.at += len(batch)
        return {PIXELS: pixels(batch, self.image)} if batch else None
