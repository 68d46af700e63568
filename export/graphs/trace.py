"""PyTorch module -> ONNX graph in memory, and graphs -> files. Knows ONNX, nothing about what a graph computes.

A graph is an `onnx_ir.Model` whose initializers still alias PyTorch's memory, or are still on disk where the module's
are (blip2rt.modeling.streaming); nothing is copied before `save`, which streams the large tensors into a data file
that several graphs may share.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnxscript.optimizer import optimize_ir

from blip2rt.bundle import TensorInfo
from blip2rt.errors import Blip2rtError
from blip2rt.modeling import streaming

OPSET = 20  # the newest that every supported ONNX Runtime (1.23 and later) runs
IR_VERSION = 10
ALIGNMENT = 64  # a cache line; ONNX Runtime memory-maps from the page below by itself
INLINE_BYTES = 1024  # smaller tensors stay inside the graph file: shape inference and folding need them there


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow the exporter's chatter; its errors still arrive as exceptions."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextlib.contextmanager
def _unwrapped_errors() -> Iterator[None]:
    """Raise a Blip2rtError of a module as it was, not wrapped into the exporter's errors."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Blip2rtError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        raise


@dataclass(frozen=True)
class Part:
    """One graph to be: `module(*example.values())` gives `outputs`.

    `axes` names the free axes of each input, e.g. {"pixels": {0: "B"}}.
    """

    name: str
    module: torch.nn.Module
    example: Mapping[str, torch.Tensor]
    outputs: Sequence[str]
    axes: Mapping[str, Mapping[int, str]]

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return PyTorch's outputs. Inputs and outputs go by name, as in a session of ONNX Runtime."""
        with streaming.streamed(self.module):
            result = self.module(*(torch.from_numpy(inputs[name]) for name in self.example))
        tensors = result if isinstance(result, tuple) else (result,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}


def trace(part: Part, opset: int = OPSET) -> ir.Model:
    """Trace the part. Linear layers are normalised."""
    with _quiet(), _unwrapped_errors(), torch.no_grad():
        model = capture(part, opset)
        _stream(model, part.module)
        optimize_ir(model, should_fold=_foldable)
    model.ir_version = IR_VERSION
    normalise_linears(model)
    return model


def capture(part: Part, opset: int) -> ir.Model:
    """Record what the part computes, as PyTorch's exporter gives it. Initializer module.NAME is the module's NAME."""
    example, axes = part.example, part.axes
    dims = {name: torch.export.Dim(name, max=2**31 - 1) for free in axes.values() for name in free.values()}
    shapes = [{axis: dims[d] for axis, d in axes.get(name, {}).items()} for name in example]
    program = torch.onnx.export(
        _Positional(part.module).eval(),
        (list(example.values()),),
        input_names=list(example),
        output_names=list(part.outputs),
        dynamic_shapes=(shapes,),
        opset_version=opset,
        dynamo=True,
        verbose=False,
        optimize=False,
    )
    assert program is not None
    return program.model


def _stream(model: ir.Model, module: torch.nn.Module) -> None:
    """Give the initializers of bound parameters their readers."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        value = model.graph.initializers.get(f"module.{name}")
        if value is not None and streaming.is_bound(parameter):
            value.const_value = lazy(functools.partial(_values, parameter), parameter.shape, ir.DataType.FLOAT, name)


def _foldable(node: ir.Node) -> bool | None:
    """False: leave a node of unread weights alone; None: as the optimizer sees fit."""
    return False if any(isinstance(value.const_value, ir.LazyTensor) for value in node.inputs if value) else None


def _values(parameter: torch.Tensor) -> np.ndarray:
    return streaming.read(parameter).numpy()


def lazy(read: Callable[[], np.ndarray], shape: Sequence[int], dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """A tensor that is computed whenever it is wanted, and not kept."""
    return ir.LazyTensor(
        lambda: ir.tensor(read(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name, cache=False
    )


class _Positional(torch.nn.Module):
    """Takes one list, so that graphs with any number of inputs are traced alike."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: list[torch.Tensor]) -> Any:
        return self.module(*inputs)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind an initializer; None for anything computed."""
    return value.const_value if value is not None and value.is_initializer() else None


def add_initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a constant to the graph."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def drop_unused(model: ir.Model) -> None:
    """Remove nodes nobody reads and initializers nobody reads, keeping the graph's declared outputs."""
    kept = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if all(out not in kept and not out.uses() for out in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in kept:
            del model.graph.initializers[name]


def normalise_linears(model: ir.Model) -> None:
    """Bring linear layers to MatMul(x, W (K, N)) [+ Add(bias)]: split Gemm, fold the Transpose of a constant."""
    for node in list(model.graph):
        if node.op_type == "Transpose":
            _fold_transpose(model, node)
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _split_gemm(model, node)
    drop_unused(model)


def _fold_transpose(model: ir.Model, node: ir.Node) -> None:
    tensor = constant(node.inputs[0])
    if tensor is None or len(tensor.shape) != 2:
        return
    perm = node.attributes.get("perm")
    if perm is not None and list(perm.as_ints()) != [1, 0]:
        return
    _replace(model, node, transposed(model, node.inputs[0]))


def _split_gemm(model: ir.Model, node: ir.Node) -> None:
    x, weight, bias = (*node.inputs, None)[:3]
    attribute = {name: attr.value for name, attr in node.attributes.items()}
    plain = attribute.get("transA", 0) == 0 and attribute.get("alpha", 1.0) == 1.0 and attribute.get("beta", 1.0) == 1.0
    if constant(weight) is None or not plain:
        return
    if attribute.get("transB", 0):
        weight = transposed(model, weight)
    out = node.outputs[0]
    product = ir.node("MatMul", [x, weight], name=f"{node.name}_matmul")
    new = [product]
    if bias is not None:
        product.outputs[0].name = f"{out.name}_product"
        new.append(ir.node("Add", [product.outputs[0], bias], name=f"{node.name}_bias"))
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], new, [out], [new[-1].outputs[0]])


def transposed(model: ir.Model, value: ir.Value | None) -> ir.Value:
    """Return an initializer with the transpose of a constant. It is a view, made once."""
    assert value is not None and value.const_value is not None
    name = f"{value.name}.T"
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = value.const_value
    rows, columns = tensor.shape.numpy()
    return add_initializer(model, name, lazy(lambda: tensor.numpy().T, (columns, rows), tensor.dtype, name))


def _replace(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    model.graph.remove(node, safe=True)


class DataFile:
    """An external data file that stores each distinct tensor once, page-aligned, for any number of graphs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / name, name
        self._file = open(self.path, "wb")  # noqa: SIM115 - closed by close()
        self._known: dict[str, int] = {}
        self.written = False

    def add(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write a tensor, unless the file has it. Return where it lies."""
        packed = tensor.dtype.bitwidth < 8
        data: Any = tensor.tobytes() if packed else np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
        key = f"{len(data)}:{hashlib.sha256(data).hexdigest()}"
        if key not in self._known:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(offset)
            self._file.write(data)
            self._known[key] = offset
            self.written = True
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor(
            self.name, self._known[key], len(data), tensor.dtype, shape=shape, name=tensor.name or ""
        )

    def keep(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Write a large tensor now; a small one stays as it is."""
        return self.add(tensor) if tensor.nbytes > INLINE_BYTES else tensor

    def close(self) -> None:
        """Close, and leave no empty file behind."""
        self._file.close()
        if not self.written:
            self.path.unlink(missing_ok=True)


def save(model: ir.Model, path: Path, data: DataFile | None) -> int:
    """Write the graph; tensors of more than INLINE_BYTES go to `data` (or stay inside when it is None).

    Returns the bytes of the graph and of all its tensors, those that other graphs share included.
    """
    drop_unused(model)
    outside = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if data is not None and tensor.nbytes > INLINE_BYTES:
            value.const_value = tensor if isinstance(tensor, ir.ExternalTensor) else data.add(tensor)
            outside += tensor.nbytes
    proto = ir.to_proto(model)
    _strip(proto)
    return path.write_bytes(proto.SerializeToString()) + outside


def _strip(proto: onnx.ModelProto) -> None:
    """Drop stack traces and value infos: half of the file's size, and they name paths of the exporting machine."""
    proto.producer_name, proto.doc_string = "blip2rt", ""
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def signature(model: ir.Model) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """List a graph's inputs and outputs as the manifest does: name, dtype, shape with free axes by name."""
    return tuple(map(_described, model.graph.inputs)), tuple(map(_described, model.graph.outputs))


def _described(value: ir.Value) -> TensorInfo:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorInfo(value.name, np.dtype(value.dtype.numpy()).name, shape)
