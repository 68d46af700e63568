"""Quantization of a graph's weights: block-wise integers for matrices, fp16 for what has to stay a float.

MatMul with a constant (K,N) becomes com.microsoft::MatMulNBits, Gather from a constant (V,K) becomes
com.microsoft::GatherBlockQuantized; both read the codes of blip2rt.modeling.quantize, which training sees.
A tied embedding and head have the same codes and scales, so that the data file stores them once. Activations stay
float32, but for int8-dynamic: there MatMul becomes com.microsoft::DynamicQuantizeMatMul.

Every function takes `keep`, which puts a new tensor where it belongs (graphs.DataFile.keep), so that the weights of a
large model are never together in memory. Knows graphs, nothing about which model they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.quantize import QuantizedWeight, quantize_blockwise

from ..graphs import trace

DOMAIN = "com.microsoft"
BITS = {"int4": 4, "int8w": 8}
Keep = Callable[[ir.TensorProtocol], ir.TensorProtocol]
Progress = Callable[[int, int], None]
# (name, shape (N, K), reader of the (N, K) matrix, bits, block) -> its blocks
Encode = Callable[[str, tuple[int, int], Callable[[], torch.Tensor], int, int], QuantizedWeight]
INT8, HALF_PRECISION = 4, 2  # accuracy_level of MatMulNBits: what activations may be rounded to
_FP16_MAX = 65504.0
_MANY = 50_000  # weights of a tensor that is worth int8 where int8 is not for all


class Range(NamedTuple):
    """What was seen of a value, in each channel, which is its last axis: (K), or (1) for all."""

    lows: np.ndarray
    highs: np.ndarray
    means: np.ndarray  # of magnitudes, over all runs
    mean: float  # magnitude, in the run where it was least

    @property
    def low(self) -> float:
        return min(float(self.lows.min()), 0.0)

    @property
    def high(self) -> float:
        return max(float(self.highs.max()), 0.0)

    def joined(self, new: Range, runs: int) -> Range:
        """With what one run more, after `runs`, has seen."""
        means = self.means + (new.means - self.means) / (runs + 1)
        ends = np.minimum(self.lows, new.lows), np.maximum(self.highs, new.highs)
        return Range(*ends, means, min(self.mean, new.mean))

    def over(self, scales: np.ndarray) -> Range:
        """Of the value divided by `scales` (K)."""
        means = self.means / scales
        mean = self.mean * float(means.mean() / max(self.means.mean(), np.finfo(np.float32).tiny))
        return Range(self.lows / scales, self.highs / scales, means, mean)


Ranges = Mapping[str, Range]


def in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return tensor


def _silent(done: int, total: int) -> None:
    pass


def nearest(
    name: str, shape: tuple[int, int], read: Callable[[], torch.Tensor], bits: int, block: int
) -> QuantizedWeight:
    """The blocks nearest to a matrix's values."""
    return quantize_blockwise(read(), bits, block)


def apply(
    model: ir.Model, precision: str, block: int, keep: Keep = in_memory, progress: Progress = _silent,
    encode: Encode = nearest,
) -> None:  # fmt: skip
    """Bring the graph's weights to `precision`, in place: fp32, fp16, int4, int8w or int8-dynamic."""
    if precision == "fp32":
        return
    found = 1
    if precision == "int8-dynamic":
        found = quantize_dynamic(model, block, keep, progress, encode)
    elif precision in BITS:
        found = quantize_weights(model, BITS[precision], block, keep, progress, encode)
    if not found and precision != "int8w":
        raise Blip2rtError(
            f"an image encoder of convolutions alone cannot be {precision}; choose int8w, or int8 with --calib"
        )
    if precision in ("int8w", "int8-dynamic"):
        store_int8(model, keep)
    if precision != "int4":
        store_fp16(model, keep)


def quantize_weights(
    model: ir.Model, bits: int, block: int, keep: Keep = in_memory, progress: Progress = _silent,
    encode: Encode = nearest,
) -> int:  # fmt: skip
    """Quantize every constant matrix of MatMul and Gather nodes in place; returns how many."""
    work = matrices(model, "MatMul", "Gather")
    for done, node in enumerate(work):
        if node.op_type == "MatMul":
            quantize_matmul(model, node, bits, block, keep, encode)
        else:
            _quantize_gather(model, node, bits, block, keep, encode)
        progress(done + 1, len(work))
    trace.drop_unused(model)
    model.graph.opset_imports[DOMAIN] = 1
    return len(work)


def quantize_dynamic(
    model: ir.Model, block: int, keep: Keep = in_memory, progress: Progress = _silent, encode: Encode = nearest
) -> int:
    """int8 matrices with a scale for each column, activations quantized as they come; tables of Gather as int8w.

    Returns how many matrices there were.
    """
    work = matrices(model, "MatMul", "Gather")
    for done, node in enumerate(work):
        if node.op_type == "MatMul":
            _quantize_dynamic(model, node, keep)
        else:
            _quantize_gather(model, node, 8, block, keep, encode)
        progress(done + 1, len(work))
    trace.drop_unused(model)
    model.graph.opset_imports[DOMAIN] = 1
    return len(work)


def _quantize_dynamic(model: ir.Model, node: ir.Node, keep: Keep) -> None:
    activation, weight = node.inputs
    tensor = _matrix(node)
    assert tensor is not None and weight is not None and weight.name is not None
    codes_name, scales_name = f"{weight.name}.codes", f"{weight.name}.scales"
    if codes_name not in model.graph.initializers:
        array = np.asarray(tensor.numpy())
        largest = np.abs(array).max(axis=0)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        codes = np.rint(array / scales).astype(np.int8)
        _keep(model, keep, codes_name, np.ascontiguousarray(codes.T))
        _keep(model, keep, scales_name, scales)
    initializers = model.graph.initializers
    inputs = [activation, _columns(model, node, initializers[codes_name]), initializers[scales_name], None, None]
    out, old = node.outputs[0], [node]
    bias = _bias(out)
    if bias is not None:
        add, inputs[4] = bias
        out, old = add.outputs[0], [add, node]
    new = ir.node("DynamicQuantizeMatMul", inputs, domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(model.graph, old[0], old, [new], [out], new.outputs)


def _columns(model: ir.Model, before: ir.Node, stored: ir.Value) -> ir.Value:
    """(K,N) codes from the stored (N,K): what an output reads lies together, as our kernels want it. ONNX Runtime folds
    the Transpose when it loads the graph."""
    for use in stored.uses():
        return use.node.outputs[0]
    node = ir.node("Transpose", [stored], {"perm": [1, 0]}, name=f"{stored.name}.turn")
    node.outputs[0].name = f"{stored.name}.T"
    model.graph.insert_before(before, node)
    return node.outputs[0]


def _bias(product: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The Add of a constant vector, where that is all that becomes of a product."""
    uses = list(product.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    tensor = trace.constant(other)
    return (add, other) if other is not None and tensor is not None and len(tensor.shape) == 1 else None


def finer_activations(model: ir.Model) -> None:
    """Of every product with int4 weights: activations of half precision at least. Our kernels then take 16 bits, and
    ONNX Runtime float32, where both take 8."""
    for node in model.graph:
        if node.op_type == "MatMulNBits" and node.attributes["bits"].as_int() == 4:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", HALF_PRECISION)


def quantize_tables(model: ir.Model, bits: int, block: int, keep: Keep = in_memory, encode: Encode = nearest) -> None:
    """Quantize every constant table of Gather nodes in place."""
    for node in matrices(model, "Gather"):
        _quantize_gather(model, node, bits, block, keep, encode)
    trace.drop_unused(model)
    model.graph.opset_imports[DOMAIN] = 1


def matrices(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """The nodes of these kinds that read a constant matrix."""
    return [node for node in model.graph if node.op_type in op_types and _matrix(node) is not None]


def _keep(model: ir.Model, keep: Keep, name: str, array: np.ndarray) -> ir.Value:
    return trace.add_initializer(model, name, keep(ir.tensor(array, name=name)))


def _matrix(node: ir.Node) -> ir.TensorProtocol | None:
    """The constant float matrix of a MatMul (right-hand side) or of a Gather along its rows."""
    if node.op_type not in ("MatMul", "Gather") or node.domain not in ("", "ai.onnx"):
        return None
    tensor = trace.constant(node.inputs[1 if node.op_type == "MatMul" else 0])
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Gather" and ("axis" in node.attributes and node.attributes["axis"].as_int() != 0):
        return None
    # A packed row has to end at a whole byte, or the rows of a table would not start at one.
    return None if node.op_type == "Gather" and tensor.shape.numpy()[1] % 2 else tensor


def quantize_matmul(model: ir.Model, node: ir.Node, bits: int, block: int, keep: Keep, encode: Encode) -> None:
    activation, weight = node.inputs
    tensor = _matrix(node)
    assert tensor is not None and weight is not None and weight.name is not None
    rows, columns = tensor.shape.numpy()
    codes_name = f"{weight.name}.codes"
    if codes_name not in model.graph.initializers:
        quantized = encode(weight.name, (columns, rows), lambda: _torch(tensor).T, bits, block)
        _keep(model, keep, codes_name, quantized.codes.numpy())
        _keep(model, keep, f"{weight.name}.zero_points", quantized.zero_points.numpy())
        _keep(model, keep, f"{weight.name}.scales", quantized.scales.numpy())
    initializers = model.graph.initializers
    inputs = [activation, initializers[codes_name], _scales(model, node, weight.name),
              initializers[f"{weight.name}.zero_points"]]  # fmt: skip
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block, "accuracy_level": INT8}
    _swap(model, node, ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name))


def _quantize_gather(model: ir.Model, node: ir.Node, bits: int, block: int, keep: Keep, encode: Encode) -> None:
    table, indices = node.inputs
    tensor = _matrix(node)
    assert tensor is not None and table is not None and table.name is not None
    if f"{table.name}.codes" not in model.graph.initializers:
        rows, width = tensor.shape.numpy()
        quantized = encode(table.name, (rows, width), lambda: _torch(tensor), bits, block)
        codes = quantized.codes.reshape(rows, -1)[:, : width * bits // 8].contiguous().numpy()
        zeros = _zero_point_table(quantized)
        for suffix, packed, columns in (("codes", codes, width), ("zeros", zeros, quantized.scales.shape[1])):
            name = f"{table.name}.{suffix}"
            trace.add_initializer(model, name, keep(_unsigned(packed, bits, (rows, columns), name)))
        _keep(model, keep, f"{table.name}.scales", quantized.scales.numpy())
    initializers = model.graph.initializers
    inputs = [initializers[f"{table.name}.codes"], indices, _scales(model, node, table.name),
              initializers[f"{table.name}.zeros"]]  # fmt: skip
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block}
    if bits != 4:
        attributes["bits"] = bits
    _swap(model, node, ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=node.name))


def _zero_point_table(weight: QuantizedWeight) -> np.ndarray:
    """Zero points packed without a gap between rows, as GatherBlockQuantized wants them; MatMulNBits starts each row
    at a whole byte, which differs when the number of blocks is odd."""
    packed = weight.zero_points.numpy()
    if weight.bits == 8:
        return packed
    blocks = weight.scales.shape[1]
    flat = np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)[:, :blocks].reshape(-1)
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return flat[0::2] | (flat[1::2] << 4)


def _unsigned(packed: np.ndarray, bits: int, shape: tuple[int, int], name: str) -> ir.TensorProtocol:
    """Packed bytes as a tensor of uint4 (or uint8) of the given shape."""
    if bits == 8:
        return ir.tensor(packed.reshape(shape), name=name)
    return ir.PackedTensor(packed.reshape(-1), ir.DataType.UINT4, shape=ir.Shape(shape), name=name)


def _scales(model: ir.Model, before: ir.Node, weight: str) -> ir.Value:
    """float32 scales from the stored float16 ones; ONNX Runtime folds the Cast when it loads the graph."""
    stored = model.graph.initializers[f"{weight}.scales"]
    for use in stored.uses():
        return use.node.outputs[0]
    return _cast(model, before, stored)


def _cast(model: ir.Model, before: ir.Node, stored: ir.Value) -> ir.Value:
    node = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{stored.name}.cast")
    node.outputs[0].name = f"{stored.name}.float"
    model.graph.insert_before(before, node)
    return node.outputs[0]


def _swap(model: ir.Model, old: ir.Node, new: ir.Node) -> None:
    ir.convenience.replace_nodes_and_values(model.graph, old, [old], [new], old.outputs, new.outputs)


def store_fp16(model: ir.Model, keep: Keep = in_memory) -> None:
    """Store every large float32 weight as float16 with a Cast back; values beyond float16's range stay float32."""
    first = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not _is_weight(tensor) or tensor.nbytes <= trace.INLINE_BYTES:
            continue
        array = tensor.numpy()
        if np.abs(array).max() > _FP16_MAX:
            continue
        name = f"{value.name}.half"
        stored = _keep(model, keep, name, array.astype(np.float16))
        ir.convenience.replace_all_uses_with(value, _cast(model, first, stored))
    trace.drop_unused(model)


def store_int8(model: ir.Model, keep: Keep = in_memory) -> None:
    """Store large weights as int8 with a float scale for each row of their first axis.

    Cast and Mul bring them back; ONNX Runtime folds both when it loads the graph, and computes in float32. A
    convolutional encoder has most of its weights in few layers, and most of its sensitivity in the others.
    """
    first = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not _is_weight(tensor):
            continue
        array = tensor.numpy()
        if array.size <= _MANY:
            continue
        largest = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        codes_name, scales_name = f"{value.name}.codes", f"{value.name}.scales"
        codes = np.rint(array / scales).astype(np.int8)
        stored, scale = _keep(model, keep, codes_name, codes), _keep(model, keep, scales_name, scales)
        restore = ir.node("Mul", [_cast(model, first, stored), scale], name=f"{value.name}.restore")
        restore.outputs[0].name = f"{value.name}.restored"
        model.graph.insert_before(first, restore)
        ir.convenience.replace_all_uses_with(value, restore.outputs[0])
    trace.drop_unused(model)


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    """A float of two dimensions or more, that is no scale of one stored before."""
    stored = (tensor.name or "").endswith(".scales")
    return tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) >= 2 and not stored


def _torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    return torch.from_numpy(np.asarray(tensor.numpy()))
