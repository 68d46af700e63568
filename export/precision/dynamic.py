"""int8-dynamic: activations are quantized at run time; MatMul becomes com.microsoft::DynamicQuantizeMatMul.

A matrix has a scale for each column. Embedding tables become int8w.
"""

import numpy as np
import onnx_ir as ir

from ..graphs import trace
from .quantizer import DOMAIN, Quantizer, channel_codes, matrix


def quantize_matmul(model: ir.Model, node: ir.Node, _: int, quantizer: Quantizer) -> None:
    """MatMul with a constant (K,N) [and Add] -> DynamicQuantizeMatMul"""
    activation, weight = node.inputs
    tensor = matrix(node)
    assert tensor is not None and weight is not None and weight.name is not None
    codes_name, scales_name = f"{weight.name}.codes", f"{weight.name}.scales"
    if codes_name not in model.graph.initializers:
        codes, scales = channel_codes(np.asarray(tensor.numpy()), 1)
        quantizer.add(model, codes_name, np.ascontiguousarray(codes.T))
        quantizer.add(model, scales_name, scales)
    initializers = model.graph.initializers
    inputs = [activation, _transpose(model, node, initializers[codes_name]), initializers[scales_name], None, None]
    out, old = node.outputs[0], [node]
    bias = _bias(out)
    if bias is not None:
        add, inputs[4] = bias
        out, old = add.outputs[0], [add, node]
    new = ir.node("DynamicQuantizeMatMul", inputs, domain=DOMAIN, name=node.name)
    ir.convenience.replace_nodes_and_values(model.graph, old[0], old, [new], [out], new.outputs)


def _transpose(model: ir.Model, before: ir.Node, stored: ir.Value) -> ir.Value:
    """Return codes (K,N) of the stored (N,K).

    Stored this way, what one output reads is contiguous, as our kernels need it. ONNX Runtime folds the Transpose when
    it loads the graph.
    """
    for use in stored.uses():
        return use.node.outputs[0]
    node = ir.node("Transpose", [stored], {"perm": [1, 0]}, name=f"{stored.name}.turn")
    node.outputs[0].name = f"{stored.name}.T"
    model.graph.insert_before(before, node)
    return node.outputs[0]


def _bias(product: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """Return the Add of a constant vector and that vector, if this Add is the only reader of the product."""
    uses = list(product.uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    tensor = trace.constant(other)
    return (add, other) if other is not None and tensor is not None and len(tensor.shape) == 1 else None
