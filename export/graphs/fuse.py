"""Fuse nodes that ONNX Runtime does not fuse itself when it loads a graph.

x * rsqrt(mean(x^2) + eps) * w         -> x / sqrt(mean(x^2) + eps) * w, for which ONNX Runtime has one kernel
Reshape and Transpose chains that cancel -> nothing
three MatMuls of one x for q, k and v   -> one MatMul and GroupQueryAttention's packed input

Graphs stay valid ONNX without custom operators. A pattern that does not match is left as it is, which only costs speed.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from . import trace


def fuse_decoder(model: ir.Model) -> None:
    """Apply every fusion that speeds up a decoder's step."""
    fuse_rms_norms(model)
    _rewrite(model, "Reshape", _collapse_layout)
    _rewrite(model, "GroupQueryAttention", _pack_qkv)


def fuse_rms_norms(model: ir.Model) -> None:
    """Rewrite every RMS norm over the last axis in the form that ONNX Runtime fuses."""
    _rewrite(model, "Mul", _fuse_rms_norm)


def _rewrite(model: ir.Model, op_type: str, rewrite: Callable[[ir.Model, ir.Node], object]) -> None:
    """Try to rewrite each node of a type."""
    for node in list(model.graph):
        if node.op_type == op_type and node.graph is not None:
            rewrite(model, node)
    trace.drop_unused(model)


def _fuse_rms_norm(model: ir.Model, scaled: ir.Node) -> None:
    """Rewrite one: `scaled` is Mul(w, Mul(x, Reciprocal(Sqrt(Add(ReduceMean(Pow(x, 2)), eps)))))"""
    for weight, normed in (scaled.inputs, scaled.inputs[::-1]):
        inner = _producer(normed, "Mul")
        if not _is_scale(weight) or inner is None:
            continue
        for x, inverse in (inner.inputs, inner.inputs[::-1]):
            root = _input(_producer(inverse, "Reciprocal"))
            if x is None or root is None or _epsilon(x, root) is None:
                continue
            node = ir.node("Div", [x, root], name=f"{scaled.name}_rms")
            ir.convenience.replace_nodes_and_values(model.graph, inner, [inner], [node], inner.outputs, node.outputs)
            _before_transpose(model, scaled, node)
            return


def _before_transpose(model: ir.Model, scaled: ir.Node, division: ir.Node) -> None:
    """Norm(Transpose(x)) -> Transpose(Norm(x)) if the last axis stays: ONNX Runtime would move it into the norm."""
    turned = _producer(division.inputs[0], "Transpose")
    perm = list(turned.attributes["perm"].as_ints()) if turned is not None and "perm" in turned.attributes else []
    if turned is None or not perm or perm[-1] != len(perm) - 1:
        return
    chain = [scaled, division]  # Mul, Div, Sqrt, Add, ReduceMean, Pow
    for index in (1, 0, 0, 0):
        source = chain[-1].inputs[index]
        producer = source.producer() if source is not None else None
        assert producer is not None, "the pattern has been matched"
        chain.append(producer)
    moved: dict[ir.Value | None, ir.Value | None] = {turned.outputs[0]: turned.inputs[0]}
    new = []
    for node in reversed(chain):
        inputs = [moved.get(value, value) for value in node.inputs]
        new.append(ir.node(node.op_type, inputs, dict(node.attributes), name=f"{node.name}_first"))
        out, before = new[-1].outputs[0], node.outputs[0]
        out.name, out.type = f"{before.name}_first", before.type
        if before.shape is not None:
            sizes = list(before.shape)
            out.shape = ir.Shape([sizes[perm.index(axis)] for axis in range(len(perm))])
        moved[before] = out
    last, out = new[-1].outputs[0], scaled.outputs[0]
    new.append(ir.node("Transpose", [last], {"perm": perm}, name=f"{scaled.name}_turned"))
    new[-1].outputs[0].shape, new[-1].outputs[0].type = out.shape, out.type
    ir.convenience.replace_nodes_and_values(model.graph, scaled, [scaled], new, [out], [new[-1].outputs[0]])


def _is_scale(weight: ir.Value | None) -> bool:
    """Whether a factor is a norm's weight (D)."""
    tensor = trace.constant(weight)
    return tensor is not None and len(tensor.shape) == 1 and tensor.size != 1


def _epsilon(x: ir.Value, root: ir.Value) -> float | None:
    """Return epsilon if `root` is Sqrt(Add(ReduceMean(Pow(x, 2)), epsilon)) over the last axis."""
    add = _producer(_input(_producer(root, "Sqrt")), "Add")
    if add is None:
        return None
    epsilon = _scalar(add.inputs[1])
    mean = _producer(add.inputs[0], "ReduceMean")
    if epsilon is None or mean is None:
        return None
    axes = trace.constant(mean.inputs[1]) if len(mean.inputs) > 1 else None
    power = _producer(mean.inputs[0], "Pow")
    if axes is None or axes.numpy().tolist() != [-1] or power is None:
        return None
    return epsilon if power.inputs[0] is x and _scalar(power.inputs[1]) == 2 else None


def _collapse_layout(_: ir.Model, end: ir.Node) -> None:
    """Remove the chain of Reshape and cancelling Transposes before `end` whose start has the shape of its end."""
    if (start := _same_layout(end)) is not None:
        ir.convenience.replace_all_uses_with(end.outputs[0], start)


def _same_layout(end: ir.Node) -> ir.Value | None:
    """Find the earliest value with the same elements, order and shape as `end`'s output."""
    shape, value, best = end.outputs[0].shape, end.inputs[0], None
    while value is not None:
        if shape is not None and value.shape is not None and value.shape == shape:
            best = value
        node = value.producer()
        if node is not None and node.op_type == "Reshape":
            value = node.inputs[0]
        elif node is not None and node.op_type == "Transpose" and (inner := _producer(node.inputs[0], "Transpose")):
            outer_perm, inner_perm = (list(n.attributes["perm"].as_ints()) for n in (node, inner))
            if [inner_perm[axis] for axis in outer_perm] != list(range(len(outer_perm))):
                break
            value = inner.inputs[0]
        else:
            break
    return best


def _pack_qkv(model: ir.Model, attention: ir.Node) -> None:
    """Pack GroupQueryAttention's three inputs into one MatMul [+ Add] if all read the same value."""
    linears = [_linear(value) for value in attention.inputs[:3]]
    if any(linear is None for linear in linears):
        return
    xs, weights, biases = zip(*(linear for linear in linears if linear is not None), strict=True)
    if any(x is not xs[0] for x in xs) or len({bias is None for bias in biases}) > 1:
        return
    packed = ir.node("MatMul", [xs[0], concatenated(model, weights, 1)], name=f"{attention.name}_qkv")
    packed.outputs[0].name = f"{attention.name}_qkv"
    model.graph.insert_before(attention, packed)
    value = packed.outputs[0]
    if biases[0] is not None:
        add = ir.node("Add", [value, concatenated(model, biases, 0)], name=f"{attention.name}_qkv_bias")
        add.outputs[0].name = f"{attention.name}_qkv_biased"
        model.graph.insert_before(attention, add)
        value = add.outputs[0]
    for index, new in enumerate((value, None, None)):
        attention.replace_input_with(index, new)


def _linear(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value | None] | None:
    """Return (x, weight, bias) if `value` is MatMul(x, constant) or Add(MatMul(x, constant), constant)."""
    bias = None
    add = _producer(value, "Add")
    if add is not None:
        bias, value = add.inputs if trace.constant(add.inputs[0]) is not None else add.inputs[::-1]
    product = _producer(value, "MatMul")
    if product is None or trace.constant(product.inputs[1]) is None or (add is not None and bias is None):
        return None
    x, weight = product.inputs
    return (x, weight, bias) if x is not None and weight is not None else None


def concatenated(model: ir.Model, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    """Return an initializer that concatenates others lazily; one is shared by all callers with the same parts."""
    name = "+".join(str(part.name) for part in parts)
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    tensors = [part.const_value for part in parts if part.const_value is not None]
    assert len(tensors) == len(parts), "all parts are initializers"
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(tensor.shape.numpy()[axis] for tensor in tensors)

    def concatenate() -> np.ndarray:
        return np.concatenate([tensor.numpy() for tensor in tensors], axis)

    return trace.add_initializer(model, name, trace.lazy(concatenate, shape, tensors[0].dtype, name))


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _input(node: ir.Node | None) -> ir.Value | None:
    return node.inputs[0] if node is not None else None


def _scalar(value: ir.Value | None) -> float | None:
    tensor = trace.constant(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None
