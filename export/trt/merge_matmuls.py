"""Merge MatMuls of one operand into one MatMul and a Split, so that a step launches fewer products.

With int4 each product has a second one (see int4.py), so merging q, k and v leaves two products of six. Blocks lie
within an output channel, so merging changes no weight.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..graphs import fuse, trace

_MAX_PRODUCTS = 4  # q, k, v and a parallel feed-forward layer; an encoder's 48 products of one operand stay separate


def merge(model: ir.Model, products: Sequence[ir.Node]) -> list[ir.Node]:
    """Merge the products (MatMul with a constant matrix) that read the same value. Return all remaining products.

    Their biases are merged too if each product has one.
    """
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in products:
        assert node.inputs[0] is not None
        if not node.outputs[0].is_graph_output():
            groups.setdefault(node.inputs[0], []).append(node)
    remaining = [node for node in products if node.outputs[0].is_graph_output()]
    for source, group in groups.items():
        remaining += [_merge(model, source, group)] if 1 < len(group) <= _MAX_PRODUCTS else group
    trace.drop_unused(model)
    return remaining


def _merge(model: ir.Model, source: ir.Value, group: Sequence[ir.Node]) -> ir.Node:
    weights = [node.inputs[1] for node in group if node.inputs[1] is not None]
    sizes = [trace.constant(weight).shape.numpy()[1] for weight in weights]  # type: ignore[union-attr]
    shape = None if source.shape is None else ir.Shape([*source.shape[:-1], sum(sizes)])
    first = group[0]
    product = ir.node("MatMul", [source, fuse.concatenated(model, weights, 1)], name=f"{first.name}.joined")
    new = [product]
    biases = [each for each in map(_bias, group) if each is not None]
    if len(biases) == len(group):
        olds = [add for add, _ in biases]
        bias = fuse.concatenated(model, [vector for _, vector in biases], 0)
        new.append(ir.node("Add", [product.outputs[0], bias], name=f"{first.name}.joined.bias"))
    else:
        olds = list(group)
    for node in new:
        out = node.outputs[0]
        out.name, out.type, out.shape = node.name, ir.TensorType(ir.DataType.FLOAT), shape
    lengths = trace.add_initializer(model, f"{first.name}.joined.sizes", ir.tensor(np.array(sizes, np.int64)))
    name = f"{first.name}.joined.split"
    split = ir.node("Split", [new[-1].outputs[0], lengths], {"axis": -1}, num_outputs=len(group), name=name)
    for part, old in zip(split.outputs, olds, strict=True):
        before = old.outputs[0]
        part.name, part.type, part.shape = f"{before.name}.part", before.type, before.shape
        before.replace_all_uses_with(part)
    model.graph.insert_before(first, [*new, split])
    return product


def _bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """Return the only reader of a product and its constant vector, if it adds one."""
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].outputs[0].is_graph_output():
        return None
    bias = next((value for value in readers[0].inputs if value is not node.outputs[0]), None)
    tensor = trace.constant(bias)
    return (readers[0], bias) if bias is not None and tensor is not None and len(tensor.shape) == 1 else None
