"""Weight-only quantization of a graph: block-wise integers for matrices, fp16 for what has to stay a float.

MatMul with a constant (K,N) becomes com.microsoft::MatMulNBits, Gather from a constant (V,K) becomes
com.microsoft::GatherBlockQuantized; both read the codes of blip2rt.modeling.quantize, which training sees.
A tied embedding and head have the same codes and scales, so that the data file stores them once. Knows graphs, nothing
about which model they belong to; activations stay float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.modeling.quantize import QuantizedWeight, quantize_blockwise

from . import graphs

DOMAIN = "com.microsoft"
BITS = {"int4": 4, "int8w": 8}
_FP16_MAX = 65504.0
_MANY = 50_000  # weights of a tensor that is worth int8 where int8 is not for all


def quantize_weights(model: ir.Model, bits: int, block: int, progress: Callable[[int, int], None] | None = None) -> int:
    """Quantize every constant matrix of MatMul and Gather nodes in place; returns how many."""
    work = [node for node in model.graph if _matrix(node) is not None]
    for done, node in enumerate(work):
        if node.op_type == "MatMul":
            _quantize_matmul(model, node, bits, block)
        else:
            _quantize_gather(model, node, bits, block)
        if progress is not None:
            progress(done + 1, len(work))
    graphs.drop_unused(model)
    model.graph.opset_imports[DOMAIN] = 1
    return len(work)


def _matrix(node: ir.Node) -> ir.TensorProtocol | None:
    """The constant float matrix of a MatMul (right-hand side) or of a Gather along its rows."""
    if node.op_type not in ("MatMul", "Gather") or node.domain not in ("", "ai.onnx"):
        return None
    tensor = graphs.constant(node.inputs[1 if node.op_type == "MatMul" else 0])
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Gather" and ("axis" in node.attributes and node.attributes["axis"].as_int() != 0):
        return None
    # A packed row has to end at a whole byte, or the rows of a table would not start at one.
    return None if node.op_type == "Gather" and tensor.shape.numpy()[1] % 2 else tensor


def _quantize_matmul(model: ir.Model, node: ir.Node, bits: int, block: int) -> None:
    activation, weight = node.inputs
    tensor = _matrix(node)
    assert tensor is not None and weight is not None and weight.name is not None
    codes_name = f"{weight.name}.codes"
    if codes_name not in model.graph.initializers:
        quantized = quantize_blockwise(_torch(tensor).T, bits, block)
        graphs.add_initializer(model, codes_name, ir.tensor(quantized.codes.numpy(), name=codes_name))
        zeros = f"{weight.name}.zero_points"
        graphs.add_initializer(model, zeros, ir.tensor(quantized.zero_points.numpy(), name=zeros))
        _add_scales(model, weight.name, quantized)
    initializers = model.graph.initializers
    inputs = [activation, initializers[codes_name], _scales(model, node, weight.name),
              initializers[f"{weight.name}.zero_points"]]  # fmt: skip
    rows, columns = tensor.shape.numpy()
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block, "accuracy_level": 4}
    _swap(model, node, ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name))


def _quantize_gather(model: ir.Model, node: ir.Node, bits: int, block: int) -> None:
    table, indices = node.inputs
    tensor = _matrix(node)
    assert tensor is not None and table is not None and table.name is not None
    if f"{table.name}.codes" not in model.graph.initializers:
        rows, width = tensor.shape.numpy()
        quantized = quantize_blockwise(_torch(tensor), bits, block)
        codes = quantized.codes.reshape(rows, -1)[:, : width * bits // 8].contiguous().numpy()
        zeros = _zero_point_table(quantized)
        for suffix, packed, columns in (("codes", codes, width), ("zeros", zeros, quantized.scales.shape[1])):
            name = f"{table.name}.{suffix}"
            graphs.add_initializer(model, name, _unsigned(packed, bits, (rows, columns), name))
        _add_scales(model, table.name, quantized)
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


def _add_scales(model: ir.Model, weight: str, quantized: QuantizedWeight) -> None:
    name = f"{weight}.scales"
    graphs.add_initializer(model, name, ir.tensor(quantized.scales.numpy(), name=name))


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


def store_fp16(model: ir.Model) -> None:
    """Store every large float32 initializer as float16 with a Cast back; values beyond float16's range stay float32."""
    first = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.nbytes <= graphs.INLINE_BYTES:
            continue
        array = tensor.numpy()
        if np.abs(array).max() > _FP16_MAX:
            continue
        name = f"{value.name}.half"
        stored = graphs.add_initializer(model, name, ir.tensor(array.astype(np.float16), name=name))
        ir.convenience.replace_all_uses_with(value, _cast(model, first, stored))
    graphs.drop_unused(model)


def store_int8(model: ir.Model) -> None:
    """Store large weights as int8 with a float scale for each row of their first axis, the others as float16.

    Cast and Mul bring them back; ONNX Runtime folds both when it loads the graph, and computes in float32. A
    convolutional encoder has most of its weights in few layers, and most of its sensitivity in the others.
    """
    first = next(iter(model.graph))
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        array = tensor.numpy()
        if array.size <= _MANY:
            continue
        largest = np.abs(array).max(axis=tuple(range(1, array.ndim)), keepdims=True)
        scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
        codes_name, scales_name = f"{value.name}.codes", f"{value.name}.scales"
        codes = np.rint(array / scales).astype(np.int8)
        stored = graphs.add_initializer(model, codes_name, ir.tensor(codes, name=codes_name))
        scale = graphs.add_initializer(model, scales_name, ir.tensor(scales, name=scales_name))
        restore = ir.node("Mul", [_cast(model, first, stored), scale], name=f"{value.name}.restore")
        restore.outputs[0].name = f"{value.name}.restored"
        model.graph.insert_before(first, restore)
        ir.convenience.replace_all_uses_with(value, restore.outputs[0])
    graphs.drop_unused(model)
    store_fp16(model)


def _torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    return torch.from_numpy(np.asarray(tensor.numpy()))
