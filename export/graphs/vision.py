"""The image encoder as the graph `vision`: pixels (B,3,h,w) -> vision_features (B,N,C).

A float graph is the encoder itself, with batch norms folded into convolutions. In an int8 graph of convolutions,
weights have a scale for each output channel, and the ranges of activations are measured on photographs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.bundle import PIXELS, VISION_FEATURES, ImageSpec
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels

from . import trace

CALIBRATION = 128  # most photographs that ranges of activations are measured on
QUANTIZED = "Conv MatMul Gemm Add Clip Relu".split()  # without Clip, the wider range before it would be quantized
FLOAT_SHARE = 8  # the first eighth of the layers stays float: few weights, but most of the error
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_MIN_IMAGES = 8
_BATCH = 4
_MAX_GRAPH_BYTES = 2_000_000_000  # the calibrator needs the graph in one file, which protobuf limits to this


def is_convolutional(model: ir.Model) -> bool:
    """Whether the encoder has convolutions besides the first, which may be a patch embedding."""
    return sum(node.op_type == "Conv" for node in model.graph) > 1


def vision_graph(encoder: torch.nn.Module, image: ImageSpec) -> trace.GraphSpec:
    """The graph `vision`, before tracing."""
    example = {PIXELS: torch.zeros(2, 3, image.height, image.width)}
    return trace.GraphSpec("vision", encoder, example, [VISION_FEATURES], {PIXELS: {0: "B"}})


def photographs(folder: Path) -> list[Path]:
    """List up to CALIBRATION images of a folder, evenly spaced in the order of their names."""
    if not folder.is_dir():
        raise Blip2rtError(f"--calibration {folder} is not a folder: give one with a hundred or more photographs")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(files) < _MIN_IMAGES:
        raise Blip2rtError(f"--calibration {folder} holds {len(files)} images: give {_MIN_IMAGES}, better a hundred")
    count = min(len(files), CALIBRATION)
    return [files[i * len(files) // count] for i in range(count)]


def pixels(files: Sequence[Path], image: ImageSpec) -> np.ndarray:
    """Read files as pixels (n,3,h,w), in the same way as the runtime."""
    return to_pixels(list(files), image)


def pixel_batches(files: Sequence[Path], image: ImageSpec, size: int = 3) -> Iterator[dict[str, np.ndarray]]:
    """Read files as batches of pixels (size,3,h,w); the last batch may be smaller."""
    for start in range(0, len(files), size):
        yield {PIXELS: pixels(files[start : start + size], image)}


def held_out(photographs: Sequence[Path]) -> tuple[Sequence[Path], Sequence[Path]]:
    """Split photographs into those for calibration and three for verification. Their folder has been checked."""
    return photographs[:-3], photographs[-3:]


def quantize_int8(model: ir.Model, folder: Path, files: Sequence[Path], image: ImageSpec) -> ir.Model:
    """Quantize a float graph to int8. Temporary files in `folder` are removed."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > _MAX_GRAPH_BYTES:
        raise Blip2rtError(
            f"vision=int8-static: the encoder has {size / 1e9:.1f} GB in float32, and at most "
            f"{_MAX_GRAPH_BYTES / 1e9:.0f} GB can be calibrated; choose int8-dynamic"
        )
    source, target = folder / ".vision-float.onnx", folder / ".vision-int8.onnx"
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends pre-processing, which tracing has done
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
    """Feeds photographs to ONNX Runtime's calibrator: small batches, then None."""

    def __init__(self, files: Sequence[Path], image: ImageSpec) -> None:
        self.batches = pixel_batches(files, image, _BATCH)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)
