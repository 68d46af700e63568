"""Tracing a module costs seconds: the processes of a session of tests trace each structure once.

What a graph computes depends on the module's classes, settings and shapes, not on the values of its weights. A graph
that is known is read back, and the weights of the module at hand are put in.
"""

from __future__ import annotations

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
from export.graphs import qformer, trace

LARGEST = 5_000_000  # parameters of a module that is worth keeping
UNREAD = ("model.llm", "model.vision.")  # what the Q-Former's graphs do not compute
_IDLE = ("generation_config", "name_or_path", "all_tied_weights_keys", "train")  # about no single step
_PLAIN = (int, float, str, bool, tuple, list, dict, type(None), torch.dtype)


@contextlib.contextmanager
def cached_traces(folder: Path) -> Iterator[None]:
    """Inside, export.graphs.trace.capture keeps in `folder` what it records."""
    whole = trace.capture

    def remembering(part: trace.Part, opset: int) -> ir.Model:
        if sum(parameter.numel() for parameter in part.module.parameters()) > LARGEST:
            return whole(part, opset)
        file = folder / f"{structure(part, opset)}.onnx"
        if not file.exists():
            model = whole(part, opset)
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_bytes(ir.to_proto(model).SerializeToString())
            partial.replace(file)
        model = ir.from_proto(onnx.load_model(file))
        _bind(model, part.module)
        return model

    trace.capture = remembering
    try:
        with _operators_listed_once():
            yield
    finally:
        trace.capture = whole


@contextlib.contextmanager
def _operators_listed_once() -> Iterator[None]:
    """PyTorch's exporter lists what it translates anew for each graph: a fifth of a small one's time."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    whole = vars(ONNXRegistry)["from_torchlib"]  # a class method
    known = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
    setattr(ONNXRegistry, "from_torchlib", known)  # noqa: B010 - mypy knows no assignment to a method
    try:
        yield
    finally:
        setattr(ONNXRegistry, "from_torchlib", whole)  # noqa: B010


def _bind(model: ir.Model, module: torch.nn.Module) -> None:
    """Give the initializers of weights the module's own."""
    weights = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in weights:
        value = model.graph.initializers.get(f"module.{name}")
        if value is not None and not streaming.is_bound(tensor):
            value.const_value = TorchTensor(tensor.detach(), name=value.name)


def structure(part: trace.Part, opset: int) -> str:
    """A hash of all that a graph depends on but its weights and tables: the module's classes, settings and shapes, the
    inputs and outputs."""
    digest = hashlib.sha256(repr((part.name, opset, list(part.outputs), part.axes)).encode())
    unread = UNREAD if isinstance(part.module, qformer._Graph) else ()
    for name, module in part.module.eval().named_modules():
        if name.startswith(unread):
            continue
        settings = {
            key: _setting(value) for key, value in vars(module).items() if not key.startswith("_") and key not in _IDLE
        }
        digest.update(repr((name, type(module).__module__, type(module).__qualname__, settings)).encode())
    named = [*part.module.named_parameters(remove_duplicate=False), *part.module.named_buffers(remove_duplicate=False)]
    tensors = [(name, tensor) for name, tensor in named if not name.startswith(unread)]
    ties = [next(i for i, (_, other) in enumerate(tensors) if other is tensor) for _, tensor in tensors]
    shapes = [(name, tuple(t.shape), t.dtype, streaming.is_bound(t)) for name, t in tensors]
    digest.update(repr((ties, shapes)).encode())
    for name, tensor in part.example.items():
        digest.update(repr((name, _setting(tensor))).encode())
    return digest.hexdigest()


def _setting(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return f"{tuple(value.shape)} {value.dtype} {hashlib.sha256(data).hexdigest()}"
    if hasattr(value, "to_json_string"):  # a config of transformers
        return _placeless(str(value.to_json_string(use_diff=False)))
    if isinstance(value, Blip2Config):
        value = replace(value, llm=None, sources=(), qformer_init=None)  # the language model has a graph of its own
    if isinstance(value, _PLAIN) or is_dataclass(value):
        return _placeless(repr(value))
    return getattr(value, "__qualname__", type(value).__qualname__)


def _placeless(text: str) -> str:
    """Settings without the paths of files, of which a graph knows nothing."""
    return re.sub(r"""(['"])/.*?\1""", "PATH", text)
