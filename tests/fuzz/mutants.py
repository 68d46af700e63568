"""Random alterations of graphs."""

import random

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.engines.native.graphs import DEFAULT, VERSION, Model, value

SIZES = [0, 1, -1, 2, 3, 7, 31, 33, 64, 128, 1000, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, -(2**31), 2**63 - 1, -(2**63)]
ATTRIBUTES = ["softcap", "rotary_interleaved", "axis", "allowzero", "smooth_softmax", "x", "num_heads"]
if VERSION >= (1, 24):
    ATTRIBUTES.append("local_window_size")  # older releases had one more position in a window


def mutate(model: Model, rng: random.Random) -> None:
    """Make one change to the model's structure."""
    graph = model.graph
    node = rng.choice(graph.node)
    tensor = rng.choice(graph.initializer)

    def attribute() -> None:
        if node.attribute:
            changed = rng.choice(node.attribute)
            if changed.type == onnx.AttributeProto.INT:
                changed.i = rng.choice([changed.i + 1, changed.i - 1, changed.i * 2, changed.i // 2, rng.choice(SIZES)])
            elif changed.type == onnx.AttributeProto.FLOAT:
                changed.f = rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf"), changed.f / 2])
            elif changed.ints:
                changed.ints[rng.randrange(len(changed.ints))] = rng.choice([0, 1, 2, 3, -1, 9])
            if rng.random() < 0.15:
                changed.type = rng.randrange(0, 15)

    def add_attribute() -> None:
        node.attribute.append(helper.make_attribute(rng.choice(ATTRIBUTES), rng.choice([0, 1, 2, -1, -7, 0.5])))

    def dims() -> None:
        if rng.random() < 0.3 and len(tensor.dims) > 1:
            order = list(tensor.dims)
            rng.shuffle(order)
            tensor.dims[:] = order
        elif tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([*SIZES, tensor.dims[0] + 1, tensor.dims[0] // 2])

    def resize() -> None:
        array = numpy_helper.to_array(tensor)
        if array.ndim:
            axis = rng.randrange(array.ndim)
            size = max(0, array.shape[axis] + rng.choice([-1, 1, -array.shape[axis] // 2]))
            shape = [*array.shape[:axis], size, *array.shape[axis + 1 :]]
            tensor.CopyFrom(numpy_helper.from_array(np.resize(array, shape), tensor.name))

    def numbers() -> None:
        array = numpy_helper.to_array(tensor).copy()
        if array.size and array.dtype == np.int64:
            array.flat[rng.randrange(array.size)] = rng.choice(SIZES)
        elif array.size and array.dtype.kind == "f":
            array.flat[rng.randrange(array.size)] = rng.choice([0, np.nan, np.inf, 6e4])
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def dtype() -> None:
        if rng.random() < 0.5:
            tensor.data_type = rng.randrange(0, 24)
        else:
            array = numpy_helper.to_array(tensor)
            kind = rng.choice([np.float16, np.float32, np.float64, np.int8, np.uint8, np.int64])
            with np.errstate(all="ignore"):
                tensor.CopyFrom(numpy_helper.from_array(array.astype(kind), tensor.name))

    def wires() -> None:
        side = rng.choice([node.input, node.output])
        names = [name for one in graph.node for name in (*one.input, *one.output)] + [""]
        how = rng.randrange(4)
        if how == 0 and side:
            del side[rng.randrange(len(side))]
        elif how == 1:
            side.append(rng.choice(names))
        elif side:
            side[rng.randrange(len(side))] = rng.choice(names)

    def feed_constant() -> None:
        graph.input.append(value(tensor.name, list(tensor.dims), tensor.data_type))
        if rng.random() < 0.5:
            graph.initializer.remove(tensor)

    def rename() -> None:
        node.op_type = rng.choice([one.op_type for one in graph.node] + ["Attention", "MatMulInt4", "Identity"])
        node.domain = rng.choice(["", "com.microsoft", "blip2rt", "ai.onnx"])

    def ports() -> None:
        port = rng.choice([*graph.input, *graph.output])
        shape = port.type.tensor_type.shape.dim
        if rng.random() < 0.3:
            port.type.tensor_type.elem_type = rng.randrange(0, 17)
        elif shape:
            shape[rng.randrange(len(shape))].dim_value = rng.choice([0, 1, 2, 7, 2 * DEFAULT.width, 2**40])

    def move_outside() -> None:
        tensor.data_location = TensorProto.EXTERNAL
        location = rng.choice(["a.data", "../a", "/etc/passwd", "*/_ORT_MEM_ADDR_/*", ""])
        entries = {"location": location, "offset": str(rng.choice(SIZES)), "length": str(rng.choice(SIZES))}
        for key, text in entries.items():
            tensor.external_data.add(key=key, value=text)
        if rng.random() < 0.5:
            tensor.ClearField("raw_data")

    def opset() -> None:
        model.opset_import[rng.randrange(len(model.opset_import))].version = rng.choice([1, 10, 11, 13, 18, 21, 2**31])

    weighted = [attribute] * 5 + [dims] * 4 + [wires] * 4 + [resize] * 3 + [numbers, dtype, ports] * 2
    rare = [lambda: graph.node.add().CopyFrom(node), lambda: node.ClearField(rng.choice(["input", "output"]))]
    rng.choice([*weighted, *rare, add_attribute, feed_constant, rename, move_outside, opset])()


def damage(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes: tags, wire types, lengths."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(changed))
        how = rng.randrange(4)
        if how == 0:
            changed[at] = rng.randrange(256)
        elif how == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif how == 2:
            changed[at:at] = rng.choice([b"\x0b", b"\x0c", b"\x00", b"\xff" * 10, b"\x08\x01", b"\x0d\0\0\0\0"])
        else:
            del changed[at : at + rng.choice([1, 1, 8])]
    return bytes(changed)
