"""int4 and int8w: matrices and tables as blocks of integers, multiplied with float32 activations.

MatMul with a constant (K,N) becomes com.microsoft::MatMulNBits, Gather from a constant (V,K) becomes
com.microsoft::GatherBlockQuantized. Both read the codes of blip2rt.modeling.quantize, which training uses too. A tied
embedding and head have the same codes and scales, so the data file stores them once.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from blip2rt.modeling.quantize import QuantizedWeight

from ..graphs import trace
from .quantizer import DOMAIN, Quantizer, cast, matrices, matrix, replace_node

ACCURACY_INT8, ACCURACY_FP16 = 4, 2  # accuracy_level of MatMulNBits: what activations may be rounded to


def quantize_matmul(model: ir.Model, node: ir.Node, bits: int, quantizer: Quantizer) -> None:
    """MatMul with a constant (K,N) -> MatMulNBits"""
    activation, weight = node.inputs
    tensor, blocks, initializers = matrix(node), quantizer.blocks, model.graph.initializers
    assert tensor is not None and weight is not None and weight.name is not None
    codes, zeros = f"{weight.name}.codes", f"{weight.name}.zero_points"
    if codes not in initializers:
        quantized = quantizer.encode(weight.name, tensor, bits, transpose=True)
        quantizer.add(model, codes, quantized.codes.numpy())
        quantizer.add(model, zeros, quantized.zero_points.numpy())
        quantizer.add(model, f"{weight.name}.scales", quantized.scales.numpy())
    inputs = [activation, initializers[codes], _scales(model, node, weight.name), initializers[zeros]]
    # If int4 weights need 16-bit activations, our kernels use 16 bits and ONNX Runtime float32; else both use 8.
    level = ACCURACY_FP16 if bits == 4 and blocks.activations == 16 else ACCURACY_INT8
    rows, columns = tensor.shape.numpy()
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": blocks.size, "accuracy_level": level}
    replace_node(model, node, ir.node("MatMulNBits", inputs, attributes, domain=DOMAIN, name=node.name))


def quantize_gather(model: ir.Model, node: ir.Node, bits: int, quantizer: Quantizer) -> None:
    """Gather from a constant (V,K) -> GatherBlockQuantized"""
    table, indices = node.inputs
    tensor, initializers = matrix(node), model.graph.initializers
    assert tensor is not None and table is not None and table.name is not None
    if f"{table.name}.codes" not in initializers:
        rows, width = tensor.shape.numpy()
        quantized = quantizer.encode(table.name, tensor, bits)
        codes = quantized.codes.reshape(rows, -1)[:, : width * bits // 8].contiguous().numpy()
        zeros = _pack_zero_points(quantized)
        for suffix, packed, columns in (("codes", codes, width), ("zeros", zeros, quantized.scales.shape[1])):
            name = f"{table.name}.{suffix}"
            trace.add_initializer(model, name, quantizer.store(_unsigned(packed, bits, (rows, columns), name)))
        quantizer.add(model, f"{table.name}.scales", quantized.scales.numpy())
    codes_value, zeros_value = initializers[f"{table.name}.codes"], initializers[f"{table.name}.zeros"]
    inputs = [codes_value, indices, _scales(model, node, table.name), zeros_value]
    attributes = {"gather_axis": 0, "quantize_axis": 1, "block_size": quantizer.blocks.size}
    if bits != 4:
        attributes["bits"] = bits
    replace_node(model, node, ir.node("GatherBlockQuantized", inputs, attributes, domain=DOMAIN, name=node.name))


def _pack_zero_points(weight: QuantizedWeight) -> np.ndarray:
    """Pack zero points without gaps between rows, as GatherBlockQuantized expects.

    MatMulNBits starts each row at a whole byte, which differs if the number of blocks is odd.
    """
    packed = weight.zero_points.numpy()
    if weight.bits == 8:
        return packed
    blocks = weight.scales.shape[1]
    flat = np.stack((packed & 15, packed >> 4), -1).reshape(packed.shape[0], -1)[:, :blocks].reshape(-1)
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    return flat[0::2] | (flat[1::2] << 4)


def _unsigned(packed: np.ndarray, bits: int, shape: tuple[int, int], name: str) -> ir.TensorProtocol:
    """Wrap packed bytes as a tensor of uint4 or uint8."""
    if bits == 8:
        return ir.tensor(packed.reshape(shape), name=name)
    return ir.PackedTensor(packed.reshape(-1), ir.DataType.UINT4, shape=ir.Shape(shape), name=name)


def _scales(model: ir.Model, before: ir.Node, weight: str) -> ir.Value:
    """Return the stored float16 scales, cast to float32."""
    stored = model.graph.initializers[f"{weight}.scales"]
    for use in stored.uses():
        return use.node.outputs[0]
    return cast(model, before, stored)


def quantize_weights(
    model: ir.Model,
    bits: int,
    quantizer: Quantizer,
    quantize: Callable[[ir.Model, ir.Node, int, Quantizer], None] = quantize_matmul,
) -> int:
    """Quantize constant matrices of MatMul (by `quantize`) and Gather in place. Return how many nodes there were."""
    work = matrices(model, "MatMul", "Gather")
    for done, node in enumerate(work):
        (quantize if node.op_type == "MatMul" else quantize_gather)(model, node, bits, quantizer)
        quantizer.progress(done + 1, len(work))
    trace.drop_unused(model)
    model.graph.opset_imports[DOMAIN] = 1
    return len(work)
