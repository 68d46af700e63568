"""Tracing a module costs seconds: of the same module with the same weights, a process of tests does it once.

What is given back of a graph that is known is a copy, with the weights as they were when it was traced.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.modeling import streaming
from export.graphs import trace

LARGEST = 5_000_000  # parameters of a module that is worth keeping
_PLAIN = (int, float, str, bool, tuple, list, dict, type(None), torch.dtype)


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Inside, export.graphs.trace.trace remembers."""
    known: dict[str, ir.Model] = {}
    whole = trace.trace

    def remembering(part: trace.Part, opset: int = trace.OPSET) -> ir.Model:
        if sum(parameter.numel() for parameter in part.module.parameters()) > LARGEST:
            return whole(part, opset)
        key = content(part, opset)
        if key in known:
            return known[key].clone()
        model = whole(part, opset)
        known[key] = _frozen(model)
        return model

    trace.trace = remembering
    try:
        yield
    finally:
        trace.trace = whole


def content(part: trace.Part, opset: int) -> str:
    """A hash of all that a graph depends on: the module's classes, settings and weights, inputs and outputs."""
    digest = hashlib.sha256(repr((part.name, opset, list(part.outputs), part.axes)).encode())
    for name, module in part.module.named_modules():
        settings = {key: _setting(value) for key, value in vars(module).items() if not key.startswith("_")}
        digest.update(repr((name, type(module).__module__, type(module).__qualname__, settings)).encode())
    parameters = list(part.module.named_parameters(remove_duplicate=False))
    ties = [next(i for i, (_, other) in enumerate(parameters) if other is tensor) for _, tensor in parameters]
    digest.update(repr((ties, [name for name, parameter in parameters if streaming.is_bound(parameter)])).encode())
    for name, tensor in [*parameters, *part.module.named_buffers(), *part.example.items()]:
        values = streaming.read(tensor) if streaming.is_bound(tensor) else tensor
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(repr((name, tuple(values.shape), values.dtype)).encode() + data.tobytes())
    return digest.hexdigest()


def _setting(value: Any) -> str:
    if hasattr(value, "to_json_string"):  # a config of transformers
        return str(value.to_json_string(use_diff=False))
    if isinstance(value, _PLAIN) or is_dataclass(value):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _frozen(model: ir.Model) -> ir.Model:
    """A copy whose weights no longer are the module's."""
    copy = model.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        values = np.array(tensor.numpy())
        if isinstance(tensor, ir.LazyTensor):
            read: Callable[[], np.ndarray] = functools.partial(np.asarray, values)
            value.const_value = trace.lazy(read, values.shape, tensor.dtype, tensor.name or "")
        else:
            value.const_value = ir.tensor(values, dtype=tensor.dtype, name=tensor.name)
    return copy
