"""Trace each structure once for all processes of a test session, because tracing takes seconds.

A graph depends on the module's classes, settings and shapes, not on the values of its weights. A known graph is loaded
from a file and gets the weights of the current module.
"""

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor

from blip2rt.modeling import streaming
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt_export.graphs import qformer, trace

MAX_PARAMETERS = 5_000_000  # of a module whose graph is cached
UNUSED = ("model.llm", "model.vision.")  # submodules that the Q-Former's graphs do not use
_IRRELEVANT = ("generation_config", "name_or_path", "all_tied_weights_keys", "train")  # attributes of modules
_PLAIN = (int, float, str, bool, tuple, list, dict, type(None), torch.dtype)


@contextlib.contextmanager
def cached_traces(folder: Path) -> Iterator[None]:
    """Inside, export.graphs.trace.capture caches its graphs in `folder`."""
    original = trace.capture

    def cached_capture(spec: trace.GraphSpec, opset: int) -> ir.Model:
        if sum(parameter.numel() for parameter in spec.module.parameters()) > MAX_PARAMETERS:
            return original(spec, opset)
        file = folder / f"{structure(spec, opset)}.onnx"
        if not file.exists():
            model = original(spec, opset)
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_bytes(ir.to_proto(model).SerializeToString())
            partial.replace(file)
        model = ir.from_proto(onnx.load_model(file))
        _bind(model, spec.module)
        return model

    trace.capture = cached_capture
    try:
        with _cached_registry():
            yield
    finally:
        trace.capture = original


@contextlib.contextmanager
def _cached_registry() -> Iterator[None]:
    """Cache the operator registry, which PyTorch's exporter rebuilds for each graph: a fifth of a small one's time."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    original = vars(ONNXRegistry)["from_torchlib"]  # a class method
    cached = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    setattr(ONNXRegistry, "from_torchlib", cached)  # noqa: B010 - mypy rejects assignment to a method
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", original)  # noqa: B010


def _bind(model: ir.Model, module: torch.nn.Module) -> None:
    """Replace the graph's weights by the module's."""
    weights = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in weights:
        value = model.graph.initializers.get(f"module.{name}")
        if value is not None and not streaming.is_bound(tensor):
            value.const_value = TorchTensor(tensor.detach(), name=value.name)


def structure(spec: trace.GraphSpec, opset: int) -> str:
    """Hash everything that a graph depends on except weight values: classes, settings, shapes, inputs and outputs."""
    digest = hashlib.sha256(repr((spec.name, opset, list(spec.outputs), spec.axes)).encode())
    unused = UNUSED if isinstance(spec.module, qformer._Graph) else ()
    for name, module in spec.module.eval().named_modules():
        if name.startswith(unused):
            continue
        settings = {
            key: _setting(value)
            for key, value in vars(module).items()
            if not key.startswith("_") and key not in _IRRELEVANT
        }
        digest.update(repr((name, type(module).__module__, type(module).__qualname__, settings)).encode())
    named = [*spec.module.named_parameters(remove_duplicate=False), *spec.module.named_buffers(remove_duplicate=False)]
    tensors = [(name, tensor) for name, tensor in named if not name.startswith(unused)]
    ties = [next(i for i, (_, other) in enumerate(tensors) if other is tensor) for _, tensor in tensors]
    shapes = [(name, tuple(t.shape), t.dtype, streaming.is_bound(t)) for name, t in tensors]
    digest.update(repr((ties, shapes)).encode())
    for name, tensor in spec.example.items():
        digest.update(repr((name, _setting(tensor))).encode())
    return digest.hexdigest()


def _setting(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(data).hexdigest()}"
    if hasattr(value, "to_json_string"):  # a config of transformers
        return _without_paths(str(value.to_json_string(use_diff=False)))
    if isinstance(value, Blip2Config):
        value = replace(value, llm=None, sources=(), qformer_init=None)  # the language model has a graph of its own
    if isinstance(value, _PLAIN) or is_dataclass(value):
        return _without_paths(repr(value))
    return getattr(value, "__qualname__", type(value).__qualname__)


def _without_paths(text: str) -> str:
    """Replace paths of files, which do not affect a graph."""
    return re.sub(r"""(['"])/.*?\1""", "PATH", text)
