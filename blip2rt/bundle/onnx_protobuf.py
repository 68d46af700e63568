"""ONNX files without the package `onnx`: enough protobuf to read a graph, fix its axes, and write a product.

Knows field numbers (onnx.proto), not what nodes compute.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOAT, INT8 = 1, 3  # TensorProto.DataType
_GRAPH, _PORTS = 7, (11, 12)  # ModelProto.graph; GraphProto.input, output
_DIMENSION_PATH = (2, 1, 2, 1)  # ValueInfoProto.type, .tensor_type, .shape, .dim
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 16: 16, 21: 4, 22: 4}  # of a data type


Edit = Callable[[memoryview], bytes]


@dataclass(frozen=True)
class Tensor:
    dims: tuple[int, ...]
    dtype: int

    @property
    def elements(self) -> int:
        count = 1
        for dim in self.dims:
            count *= dim
        return count

    @property
    def nbytes(self) -> int:
        return self.elements * BITS.get(self.dtype, 32) // 8


@dataclass(frozen=True)
class Node:
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ints: dict[str, tuple[int, ...]]  # integer attributes


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. Free axes have names."""

    name: str
    dtype: int
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    nodes: tuple[Node, ...]
    initializers: dict[str, Tensor]


def read(path: Path) -> Graph:
    """The nodes and initializer shapes of a graph; external data are not read."""
    [graph] = _fields(memoryview(path.read_bytes()))[_GRAPH]
    fields = _fields(graph)
    named = (_tensor(each) for each in fields.get(5, ()))
    return Graph(tuple(_node(each) for each in fields.get(1, ())), dict(named))


def ports(model: bytes) -> tuple[list[Port], list[Port]]:
    """The inputs and outputs of a model."""
    [graph] = _fields(memoryview(model))[_GRAPH]
    fields = _fields(graph)
    inputs, outputs = ([_port(each) for each in fields.get(number, ())] for number in _PORTS)
    return inputs, outputs


def with_sizes(model: bytes, sizes: Mapping[str, int]) -> bytes:
    """Replace named axes of the inputs and outputs by sizes."""

    def dimension(data: memoryview) -> bytes:
        name = next((name for name in map(_text, _fields(data).get(2, ())) if name in sizes), None)
        return bytes(data) if name is None else _message((1, sizes[name]))

    edit: Edit = dimension
    for number in reversed(_DIMENSION_PATH):
        edit = _within((number,), edit)
    return _within((_GRAPH,), _within(_PORTS, edit))(memoryview(model))


def _within(numbers: tuple[int, ...], edit: Edit) -> Edit:
    """Return an edit of the messages in these fields of a message."""

    def edited(data: memoryview) -> bytes:
        return b"".join(
            _message((number, edit(value))) if number in numbers and not isinstance(value, int) else raw
            for number, raw, value in _walk(data)
        )

    return edited


def _port(data: memoryview) -> Port:
    fields = _fields(data)
    tensor = _fields(_fields(fields[2][0])[1][0])
    dimensions = (_fields(each) for shape in tensor.get(2, ()) for each in _fields(shape).get(1, ()))
    sizes = [size for each in dimensions for size in (*each.get(1, ()), *map(_text, each.get(2, ())))]
    return Port(_text(fields[1][0]), tensor[1][0], tuple(sizes))


def _tensor(data: memoryview) -> tuple[str, Tensor]:
    fields = _fields(data)
    return _text(fields[8][0]), Tensor(_ints(fields.get(1, ())), fields[2][0])


def _node(data: memoryview) -> Node:
    fields = _fields(data)
    ints = {}
    for attribute in map(_fields, fields.get(5, ())):
        values = attribute.get(8) or attribute.get(3) or ()
        if values:
            ints[_text(attribute[1][0])] = _ints(values)
    inputs, outputs = (tuple(map(_text, fields.get(number, ()))) for number in (1, 2))
    return Node(_text(fields[4][0]), inputs, outputs, ints)


def _ints(values: Any) -> tuple[int, ...]:
    """A repeated integer, packed or not."""
    found: list[int] = []
    for value in values:
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            number, at = _varint(value, at)
            found.append(number)
    return tuple(found)


def _text(data: memoryview) -> str:
    return str(data, "utf-8")


def _fields(data: memoryview) -> dict[int, list[Any]]:
    """Field number -> its values: int, or bytes."""
    found: dict[int, list[Any]] = {}
    for number, _, value in _walk(data):
        found.setdefault(number, []).append(value)
    return found


def _walk(data: memoryview) -> Iterator[tuple[int, memoryview, Any]]:
    """Yield (number, raw field, value) of each field."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        kind = key & 7
        value: Any
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, data[start:at], value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def float_matmul(shape: tuple[int, int], weight: bytes) -> bytes:
    """A graph of one product: a (M, K) x a constant weight (K, N) -> y (M, N)."""
    node = _message((1, b"a"), (1, b"b"), (2, b"y"), (4, b"MatMul"))
    return _product([node], [_constant("b", FLOAT, shape, weight)])


def int8_matmul(shape: tuple[int, int], codes: bytes, scales: bytes) -> bytes:
    """A graph of one product as in int8-dynamic: a (M, K) x a constant weight (N, K) of int8, a scale per row -> y."""
    order = _message((1, b"perm"), (8, 1), (8, 0), (20, 7))
    transpose = _message((1, b"codes"), (2, b"b"), (4, b"Transpose"), (5, order))
    node = _message(
        (1, b"a"), (1, b"b"), (1, b"scales"), (2, b"y"), (4, b"DynamicQuantizeMatMul"), (7, b"com.microsoft")
    )
    constants = [_constant("codes", INT8, shape, codes), _constant("scales", FLOAT, shape[:1], scales)]
    return _product([transpose, node], constants)


def _product(nodes: list[bytes], constants: list[bytes]) -> bytes:
    fields = [*((1, node) for node in nodes), *((5, constant) for constant in constants)]
    graph = _message(*fields, (2, b"product"), (11, _value("a", FLOAT)), (12, _value("y", FLOAT)))
    opsets = ((8, _message((2, 13))), (8, _message((1, b"com.microsoft"), (2, 1))))
    return _message((1, 8), (7, graph), *opsets)


def _constant(name: str, dtype: int, shape: tuple[int, ...], data: bytes) -> bytes:
    return _message(*((1, dim) for dim in shape), (2, dtype), (8, name.encode()), (9, data))


def _value(name: str, dtype: int) -> bytes:
    dims = [(1, _message((2, axis.encode()))) for axis in (f"{name}0", f"{name}1")]
    tensor = _message((1, dtype), (2, _message(*dims)))
    return _message((1, name.encode()), (2, _message((1, tensor))))


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _encoded(number << 3) + _encoded(value)
        else:
            out += _encoded(number << 3 | 2) + _encoded(len(value)) + value
    return bytes(out)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + struct.pack("B", value)
