"""ONNX files without the package `onnx`: enough protobuf to read the ports of a graph and fix their axes.

Knows field numbers (onnx.proto), not what nodes compute.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_GRAPH, _PORTS = 7, (11, 12)  # ModelProto.graph; GraphProto.input, output
_DIMENSION_PATH = (2, 1, 2, 1)  # ValueInfoProto.type, .tensor_type, .shape, .dim


Edit = Callable[[memoryview], bytes]


@dataclass(frozen=True)
class Port:
    """An input or output of a graph. Free axes have names."""

    name: str
    dtype: int
    shape: tuple[int | str, ...]


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
