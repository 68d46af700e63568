"""Trace PyTorch modules as ONNX graphs in memory, and write graphs to files.

A graph is an `onnx_ir.Model` whose initializers alias PyTorch's memory, or stay on disk if the module's weights do
(blip2rt.modeling.streaming). Nothing is copied before `save`, which streams large tensors into a data file that several
graphs may share.
"""

import contextlib
import functools
import hashlib
import io
import logging
import math
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

OPSET = 20  # the newest that every supported ONNX Runtime (1.23 and later) can run
IR_VERSION = 10
ALIGNMENT = 64  # a cache line; ONNX Runtime rounds down to a page itself when it maps the file
INLINE_BYTES = 1024  # smaller tensors stay in the graph file, where shape inference and constant folding need them


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log messages and warnings of PyTorch's exporter; its errors remain exceptions."""
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
    """Re-raise a module's Blip2rtError without the exporter's wrapping."""
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
class GraphSpec:
    """A graph before tracing: `module(*example.values())` returns the `outputs`.

    `axes` names the free axes of each input, for example {"pixels": {0: "B"}}.
    """

    name: str
    module: torch.nn.Module
    example: Mapping[str, torch.Tensor]
    outputs: Sequence[str]
    axes: Mapping[str, Mapping[int, str]]

    @torch.no_grad()
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the module in PyTorch. Inputs and outputs are keyed by name, as in an ONNX Runtime session."""
        with streaming.streamed(self.module):
            result = self.module(*(torch.from_numpy(inputs[name]) for name in self.example))
        tensors = result if isinstance(result, tuple) else (result,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}


def trace(spec: GraphSpec, opset: int = OPSET) -> ir.Model:
    """Trace a graph, optimize it and normalise its linear layers."""
    with _quiet(), _unwrapped_errors(), torch.no_grad():
        model = capture(spec, opset)
        _stream(model, spec.module)
        _keep_nearly_neutral(model)
        optimize_ir(model, should_fold=_foldable)
    model.ir_version = IR_VERSION
    normalise_linears(model)
    return model


def capture(spec: GraphSpec, opset: int) -> ir.Model:
    """Trace with PyTorch's exporter. Initializer module.NAME is the module's parameter or buffer NAME."""
    example, axes = spec.example, spec.axes
    dims = {name: torch.export.Dim(name, max=2**31 - 1) for free in axes.values() for name in free.values()}
    shapes = [{axis: dims[d] for axis, d in axes.get(name, {}).items()} for name in example]
    program = torch.onnx.export(
        _Positional(spec.module).eval(),
        (list(example.values()),),
        input_names=list(example),
        output_names=list(spec.outputs),
        dynamic_shapes=(shapes,),
        opset_version=opset,
        dynamo=True,
        verbose=False,
        optimize=False,
    )
    assert program is not None
    return program.model


def _stream(model: ir.Model, module: torch.nn.Module) -> None:
    """Read the initializers of streamed parameters lazily."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        value = model.graph.initializers.get(f"module.{name}")
        if value is not None and streaming.is_bound(parameter):
            value.const_value = lazy(functools.partial(_values, parameter), parameter.shape, ir.DataType.FLOAT, name)


def _keep_nearly_neutral(model: ir.Model) -> None:
    """Give scalars that are nearly 0 or 1 an axis: rules such as x + 0 = x match scalars within a tolerance.

    They would drop an RMSNorm's epsilon of 1e-8, without which a row of zeros becomes 0 * infinity.
    """
    for node in list(model.graph):
        if node.op_type not in ("Add", "Sub", "Mul", "Div"):
            continue
        for i, (value, other) in enumerate(zip(node.inputs, reversed(node.inputs), strict=True)):
            assert value is not None and other is not None
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or tensor.shape.rank() > 0 or not other.shape:
                continue
            number = float(tensor.numpy())
            if number not in (0, 1) and any(math.isclose(number, n, rel_tol=1e-4, abs_tol=1e-7) for n in (0, 1)):
                row = ir.tensor(tensor.numpy().reshape(1))
                node.replace_input_with(i, add_initializer(model, f"{node.name}.{i}", row))


def _foldable(node: ir.Node) -> bool | None:
    """False: do not fold this node, because its weights are not loaded; None: let the optimizer decide."""
    return False if any(isinstance(value.const_value, ir.LazyTensor) for value in node.inputs if value) else None


def _values(parameter: torch.Tensor) -> np.ndarray:
    return streaming.read(parameter).numpy()


def lazy(read: Callable[[], np.ndarray], shape: Sequence[int], dtype: ir.DataType, name: str) -> ir.LazyTensor:
    """Make a tensor that is computed at each access and never cached."""
    return ir.LazyTensor(
        lambda: ir.tensor(read(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name, cache=False
    )


class _Positional(torch.nn.Module):
    """Takes its inputs as one list, so that graphs with any number of inputs are traced alike."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: list[torch.Tensor]) -> Any:
        return self.module(*inputs)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return an initializer's tensor; None for a computed value."""
    return value.const_value if value is not None and value.is_initializer() else None


def add_initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a constant to the graph."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def drop_unused(model: ir.Model) -> None:
    """Remove unused nodes and initializers. The graph's outputs stay."""
    outputs = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if all(out not in outputs and not out.uses() for out in node.outputs):
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del model.graph.initializers[name]


def normalise_linears(model: ir.Model) -> None:
    """Rewrite linear layers as MatMul(x, W (K, N)) [+ Add(bias)]: split Gemm, fold the Transpose of a constant."""
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
    ir.convenience.replace_all_uses_with(node.outputs[0], _transposed(model, node.inputs[0]))
    model.graph.remove(node, safe=True)


def _split_gemm(model: ir.Model, node: ir.Node) -> None:
    x, weight, bias = (*node.inputs, None)[:3]
    attributes = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
    attributes |= {name: attr.value for name, attr in node.attributes.items()}
    if constant(weight) is None or attributes["transA"] or attributes["alpha"] != 1.0 or attributes["beta"] != 1.0:
        return
    if attributes["transB"]:
        weight = _transposed(model, weight)
    out = node.outputs[0]
    product = ir.node("MatMul", [x, weight], name=f"{node.name}_matmul")
    new = [product]
    if bias is not None:
        product.outputs[0].name = f"{out.name}_product"
        new.append(ir.node("Add", [product.outputs[0], bias], name=f"{node.name}_bias"))
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], new, [out], [new[-1].outputs[0]])


def _transposed(model: ir.Model, value: ir.Value | None) -> ir.Value:
    """Return an initializer with the transpose of a constant: a view, shared by all callers."""
    assert value is not None and value.const_value is not None
    name = f"{value.name}.T"
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensor = value.const_value
    rows, columns = tensor.shape.numpy()
    return add_initializer(model, name, lazy(lambda: tensor.numpy().T, (columns, rows), tensor.dtype, name))


class DataFile:
    """An external data file that stores each distinct tensor once, aligned, for any number of graphs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.name = folder / name, name
        self._file = open(self.path, "wb")  # noqa: SIM115 - closed by close()
        self._offsets: dict[str, int] = {}

    def add(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Write a tensor unless the file already holds it. Return its location."""
        packed = tensor.dtype.bitwidth < 8
        data: Any = tensor.tobytes() if packed else np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data
        key = f"{len(data)}:{hashlib.sha256(data).hexdigest()}"
        if key not in self._offsets:
            offset = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
            self._file.seek(offset)
            self._file.write(data)
            self._offsets[key] = offset
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor(
            self.name, self._offsets[key], len(data), tensor.dtype, shape=shape, name=tensor.name or ""
        )

    def store_large(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """Write a large tensor now; return a small one unchanged."""
        return self.add(tensor) if tensor.nbytes > INLINE_BYTES else tensor

    def flush(self) -> None:
        """Make everything visible to other readers of the file."""
        self._file.flush()

    def close(self) -> None:
        """Close the file, and delete it if it is empty."""
        self._file.close()
        if not self._offsets:
            self.path.unlink(missing_ok=True)


def save(model: ir.Model, path: Path, data: DataFile | None) -> int:
    """Write the graph. Tensors larger than INLINE_BYTES go to `data`, or stay inline if it is None.

    Returns the bytes of the graph and all its tensors, including those that other graphs share.
    """
    drop_unused(model)
    external = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        if data is not None and tensor.nbytes > INLINE_BYTES:
            value.const_value = tensor if isinstance(tensor, ir.ExternalTensor) else data.add(tensor)
            external += tensor.nbytes
    if data is not None:
        data.flush()
    proto = ir.to_proto(model)
    _strip(proto)
    return path.write_bytes(proto.SerializeToString()) + external


def _strip(proto: onnx.ModelProto) -> None:
    """Drop stack traces and value infos: they are half of the file and name paths of the exporting machine."""
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
    """List a graph's inputs and outputs as the manifest does: name, dtype, and shape with named free axes."""
    return tuple(map(_tensor_info, model.graph.inputs)), tuple(map(_tensor_info, model.graph.outputs))


def _tensor_info(value: ir.Value) -> TensorInfo:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorInfo(value.name, np.dtype(value.dtype.numpy()).name, shape)
