"""Products of one operand -> one product, and a Split behind it: a step then has fewer products to launch.

Of int4 each product has a second one beside it (see precision.py), so that q, k and v joined are two instead of six.
Blocks lie within an output channel: what is joined has the weights that its parts have. Knows graphs, nothing about
models but one name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..graphs import fuse, trace

_MOST = 4  # products: q, k, v and a feed-forward layer beside them; an encoder's 48 of one operand stay as they are


def merge(model: ir.Model, products: Sequence[ir.Node]) -> list[ir.Node]:
    """Join the products (MatMul with a constant matrix) that read one value. Return all that there are now.

    Where each has a bias behind it, these are joined too.
    """
    groups: dict[ir.Value, list[ir.Node]] = {}
    for node in products:
        assert node.inputs[0] is not None
        if not node.outputs[0].is_graph_output():
            groups.setdefault(node.inputs[0], []).append(node)
    left = [node for node in products if node.outputs[0].is_graph_output()]
    for source, group in groups.items():
        left += [_joined(model, source, group)] if 1 < len(group) <= _MOST else group
    trace.drop_unused(model)
    return left


def _joined(model: ir.Model, source: ir.Value, group: Sequence[ir.Node]) -> ir.Node:
    weights = [node.inputs[1] for node in group if node.inputs[1] is not None]
    sizes = [trace.constant(weight).shape.numpy()[1] for weight in weights]  # type: ignore[union-attr]
    shape = None if source.shape is None else ir.Shape([*source.shape[:-1], sum(sizes)])
    first = group[0]
    product = ir.node("MatMul", [source, fuse.concatenated(model, weights, 1)], name=f"{first.name}.joined")
    new = [product]
    ends = [_biased(node) for node in group]
    if all(end is not None for end in ends):
        olds = [end[0] for end in ends if end is not None]
        bias = fuse.concatenated(model, [end[1] for end in ends if end is not None], 0)
        new.append(ir.node("Add", [product.outputs[0], bias], name=f"{first.name}.joined.bias"))
    else:
        olds = list(group)
    for node in new:
        out = node.outputs[0]
        out.name, out.type, out.shape = node.name, ir.TensorType(ir.DataType.FLOAT), shape
    lengths = trace.add_initializer(model, f"{first.name}.joined.sizes", ir.tensor(np.array(sizes, np.int64)))
    split = ir.node("Split", [new[-1].outputs[0], lengths], {"axis": -1}, num_outputs=len(group),
                    name=f"{first.name}.joined.split")  # fmt: skip
    for part, old in zip(split.outputs, olds, strict=True):
        before = old.outputs[0]
        part.name, part.type, part.shape = f"{before.name}.part", before.type, before.shape
        before.replace_all_uses_with(part)
    model.graph.insert_before(first, [*new, split])
    return product


def _biased(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The only reader of a product, where it adds a constant vector, and that vector."""
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or readers[0].op_type != "Add" or readers[0].outputs[0].is_graph_output():
        return None
    bias = next((value for value in readers[0].inputs if value is not node.outputs[0]), None)
    tensor = trace.constant(bias)
    return (readers[0], bias) if bias is not None and tensor is not None and len(tensor.shape) == 1 else None
