"""Weights as blocks of integers: matrices and tables in 4 or 8 bits, multiplied with float32 activations.

MatMul with a constant (K,N) becomes com.microsoft::MatMulNBits, Gather from a constant (V,K) becomes
com.microsoft::GatherBlockQuantized; both read the codes of blip2rt.modeling.quantize, which training sees.
A tied embedding and head have the same codes and scales, so that the data file stores them once. Knows graphs, nothing
about models.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from blip2rt.modeling.quantize import QuantizedWeight

from ..graphs import trace
from .quantizer import DOMAIN, Quantizer, cast, matrices, matrix, replace_node

INT8, HALF_PRECISION = 4, 2  # accuracy_level of MatMulNBits: what activations may be rounded to


def quantize_weights(model: ir.Model, bits: int, quantizer: Quantizer) -> int:
    """Quantize every constant matrix of MatMul and Gather nodes in place. Return how many there were."""
    work = matrices(model, "MatMul", "Gather")
    for done, node in enumerate(work):
        if node.op_type == "MatMul":
            quantize_matmul(model, node, bits, quantizer)
        else:
            quantize_gather(model, node, bits, quantizer)
        quantizer.progress(done + 1, len(work))
    trace.drop_unused(model)
    model.graph.opset_imports[DOMAIN] = 1
    return len(work)


def quantize_tables(model: ir.Model, bits: int, quantizer: Quantizer) -> None:
    """Quantize every constant table of Gather nodes in place."""
    for node in matrices(model, "Gather"):
        quantize_gather(model, node, bits, quantizer)
    trace.drop_unused(model)
    model.graph.opset_imports[DOMAIN] = 1


def quantize_matmul(model: ir.Model, node: ir.Node, bits: int, quantizer: Quantizer) -> None:
    """MatMul with a constant (K,N) -> MatMulNBits."""
    activation, weight = node.inputs
    tensor, blocks = matrix(node), quantizer.blocks
    assert tensor is not None and weight is not None and weight.name is not None
    rows, columns = tensor.shape.numpy()
    codes_name = f"{weight.name}.codes"
    if codes_name not in model.graph.initializers:
        quantized = blocks.encode(weight.name, (columns, rows), lambda: _torch(tensor).T, bits, blocks.size)
        quantizer.add(model, codes_name, quantized.codes.numpy())
        quantizer.add(model, f"{weight.name}.zero_points", quantized.zero_points.numpy())
        quantizer.add(model, f"{weight.name}.scales", quantized.scales.numpy())
    initializers = model.graph.initializers
    inputs = [activation, initializers[codes_name], _scales(model, node, weight.name),
              initializers[f"{weight.name}.zero_points"]]  # fmt: skip
    # Where int4 weights meet 16 bits, our kernels take 16 and ONNX Runtime float32; both take 8 otherwise.
    level = HALF_PRECISION if bits == 4 and blocks.activations == 16 else INT8
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": blocks.size, "accuracy_level": level}
    replace_node(model, node, ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name))


def quantize_gather(model: ir.Model, node: ir.Node, bits: int, quantizer: Quantizer) -> None:
    """Gather from a constant (V,K) -> GatherBlockQuantized."""
    table, indices = node.inputs
    tensor, blocks = matrix(node), quantizer.blocks
    assert tensor is not None and table is not None and table.name is not None
    if f"{table.name}.codes" not in model.graph.initializers:
        rows, width = tensor.shape.numpy()
        quantized = blocks.encode(table.name, (rows, width), lambda: _torch(tensor), bits, blocks.size)
        codes = quantized.codes.reshape(rows, -1)[:, : width * bits // 8].contiguous().numpy()
        zeros = _zero_point_table(quantized)
        for suffix, packed, columns in (("codes", codes, width), ("zeros", zeros, quantized.scales.shape[1])):
            name = f"{table.name}.{suffix}"
            trace.add_initializer(model, name, quantizer.keep(_unsigned(packed, bits, (rows, columns), name)))
        quantizer.add(model, f"{table.name}.scales", quantized.scales.numpy())
    initializers = model.graph.initializers
    inputs = [initializers[f"{table.name}.codes"], indices, _scales(model, node, table.name),
              initializers[f"{table.name}.zeros"]]  # fmt: skip
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": blocks.size}
    if bits != 4:
        attributes["bits"] = bits
    replace_node(model, node, ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=node.name))


def _zero_point_table(weight: QuantizedWeight) -> np.ndarray:
    """Pack zero points without a gap between rows, as GatherBlockQuantized wants them.

    MatMulNBits starts each row at a whole byte, which differs where the number of blocks is odd.
    """
    packed = weight.zero_points.numpy()
    if weight.bits == 8:
        return packed
    blocks = weight.scales.shape[1]
    flat = np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)[:, :blocks].reshape(-1)
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return flat[0::2] | (flat[1::2] << 4)


def _unsigned(packed: np.ndarray, bits: int, shape: tuple[int, int], name: str) -> ir.TensorProtocol:
    """Make of packed bytes a tensor of uint4 (or uint8) of the given shape."""
    if bits == 8:
        return ir.tensor(packed.reshape(shape), name=name)
    return ir.PackedTensor(packed.reshape(-1), ir.DataType.UINT4, shape=ir.Shape(shape), name=name)


def _scales(model: ir.Model, before: ir.Node, weight: str) -> ir.Value:
    """Return float32 scales of the stored float16 ones."""
    stored = model.graph.initializers[f"{weight}.scales"]
    for use in stored.uses():
        return use.node.outputs[0]
    return cast(model, before, stored)


def _torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    return torch.from_numpy(np.asarray(tensor.numpy()))
