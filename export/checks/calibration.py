"""Measure the ranges of activations that int8 needs, by running float32 graphs on real inputs in ONNX Runtime.

The graph is written once with additional outputs: minimum, maximum and mean magnitude of each channel of every tensor
that will be quantized. Nothing large is kept in memory, whatever the model's size.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from blip2rt.bundle import EMBED, ENCODER, LLM, PIXELS, ImageSpec
from blip2rt.errors import Blip2rtError
from blip2rt.image import to_pixels

from ..graphs import trace
from ..precision.activations import Range, Ranges
from ..trt.precision import quantizable
from .llm import LlmGraphs
from .sessions import session
from .verify import Arrays

_STATISTICS = {".lows": "ReduceMin", ".highs": "ReduceMax", ".means": "ReduceMean"}  # the last of magnitudes
BATCH = 3  # photographs of a calibration batch
_MAX_IMAGES, _MIN_IMAGES = 128, 8  # of a folder to calibrate on
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def list_photographs(folder: Path) -> list[Path]:
    """List up to 128 images of a folder, evenly spaced in the order of their names."""
    if not folder.is_dir():
        raise Blip2rtError(f"--calibration {folder} is not a folder: give one with a hundred or more photographs")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if len(files) < _MIN_IMAGES:
        raise Blip2rtError(f"--calibration {folder} has {len(files)} images: give {_MIN_IMAGES}, better a hundred")
    count = min(len(files), _MAX_IMAGES)
    return [files[i * len(files) // count] for i in range(count)]


def pixel_batches(files: Sequence[Path], image: ImageSpec) -> Iterator[dict[str, np.ndarray]]:
    """Read files as full batches of pixels (BATCH,3,h,w), in the same way as the runtime."""
    for end in range(BATCH, len(files) + 1, BATCH):
        yield {PIXELS: to_pixels(list(files[end - BATCH : end]), image)}


class Recorder:
    """A session of a graph that merges the ranges of all runs into `ranges`. It has a session's methods."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.session, self.names = session(path, packed=False), names
        self.ranges: dict[str, Range] = {}
        self._runs = 0
        self._statistics = [name + suffix for name in names for suffix in _STATISTICS]

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def get_outputs(self) -> Any:
        return [value for value in self.session.get_outputs() if not value.name.endswith(tuple(_STATISTICS))]

    def run(self, outputs: Sequence[str] | None, feeds: Any) -> list[Any]:
        names = list(outputs or [value.name for value in self.get_outputs()])
        results = self.session.run([*self._statistics, *names], feeds)
        count = len(self._statistics)
        columns = results[:count:3], results[1:count:3], results[2:count:3]
        for name, lows, highs, means in zip(self.names, *columns, strict=True):
            new = Range(lows, highs, means, float(means.mean()))
            self.ranges[name] = self.ranges[name].merge(new, self._runs) if self._runs else new
        self._runs += 1
        return results[count:]


@contextlib.contextmanager
def recorder(model: ir.Model, folder: Path, name: str) -> Iterator[Recorder]:
    """Open a Recorder of the float32 graph. Its temporary files are in `folder`."""
    path, data_name = folder / f".{name}.calibration.onnx", f".{name}.calibration.data"
    names = sorted({operand for _, operand in quantizable(model)})
    tensors = {key: value.const_value for key, value in model.graph.initializers.items()}
    try:
        with contextlib.closing(trace.DataFile(folder, data_name)) as data:
            trace.save(model, path, data)
        for key, tensor in tensors.items():  # the model itself must not depend on these files
            if key in model.graph.initializers:
                model.graph.initializers[key].const_value = tensor
        _add_statistics(path, names)
        yield Recorder(path, names)
    finally:
        path.unlink(missing_ok=True)
        (folder / data_name).unlink(missing_ok=True)


def _add_statistics(path: Path, names: Sequence[str]) -> None:
    proto = onnx.load(path, load_external_data=False)
    graph = proto.graph
    graph.initializer.append(helper.make_tensor(".first", onnx.TensorProto.INT64, [1], [0]))
    for name in names:
        rows, magnitudes = f"{name}.rows", f"{name}.magnitudes"
        graph.node.append(helper.make_node("Flatten", [name], [rows], axis=-1))
        graph.node.append(helper.make_node("Abs", [rows], [magnitudes]))
        for suffix, reduction in _STATISTICS.items():
            source = magnitudes if reduction == "ReduceMean" else rows
            graph.node.append(helper.make_node(reduction, [source, ".first"], [name + suffix], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(name + suffix, onnx.TensorProto.FLOAT, [None]))
    path.write_bytes(proto.SerializeToString())


def batch_ranges(model: ir.Model, folder: Path, name: str, batches: Iterable[Arrays]) -> Ranges:
    """Measure the ranges of a graph's operands over batches of its inputs."""
    with recorder(model, folder, name) as record:
        for inputs in batches:
            record.run(None, inputs)
    return record.ranges


def language_ranges(
    models: dict[str, ir.Model], folder: Path, rows: Sequence[np.ndarray], start: int | None
) -> dict[str, Ranges]:
    """Measure the ranges of a language model's graphs, over [prefix | prompt] rows (S_b,D) and greedy answers."""
    with contextlib.ExitStack() as stack:
        records = {name: stack.enter_context(recorder(model, folder, name)) for name, model in models.items()}
        encoder = Path(ENCODER) if ENCODER in models else None
        LlmGraphs(Path(LLM), Path(EMBED), encoder, start, lambda path: records[path.name]).run(rows)
    return {name: record.ranges for name, record in records.items()}
