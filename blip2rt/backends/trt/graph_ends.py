"""A graph's inputs and outputs, without the package onnx: read, or with some of their free axes fixed.

TensorRT's layer that writes a cache wants to know its length before all else. Edits the file's protobuf where it is
needed, and copies the rest. Knows field numbers (onnx.proto), no operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

MARK = b"TensorScatter"  # the operator that becomes that layer
_GRAPH, _ENDS = 7, (11, 12)  # ModelProto.graph; GraphProto.input, output
_TO_DIMENSIONS = (2, 1, 2, 1)  # ValueInfoProto.type, .tensor_type, .shape, .dim
_SIZE, _NAME = 1, 2  # Dimension.dim_value, dim_param
_VARINT, _BYTES = 0, 2  # wire types
_TYPE, _KIND, _SHAPE, _DIMENSION = 2, 1, 2, 1  # of ValueInfoProto; of its tensor's type
Edit = Callable[[bytes], bytes]


@dataclass(frozen=True)
class End:
    """An input or an output. Free axes have names."""

    name: str
    kind: int  # TensorProto.DataType
    shape: tuple[int | str, ...]


def read(model: bytes) -> tuple[list[End], list[End]]:
    """The inputs and outputs of a model."""
    [graph] = _values(model, _GRAPH)
    inputs, outputs = ([_end(each) for each in _values(graph, number)] for number in _ENDS)
    return inputs, outputs


def _end(data: bytes) -> End:
    [name] = _values(data, 1)
    [tensor] = (tensor for kind in _values(data, _TYPE) for tensor in _values(kind, 1))
    kinds = [_read(raw, 1)[0] for number, raw, value in _fields(tensor) if number == _KIND and value is None]
    shape: list[int | str] = []
    for dimension in (each for shape in _values(tensor, _SHAPE) for each in _values(shape, _DIMENSION)):
        for number, raw, value in _fields(dimension):
            if number in (_SIZE, _NAME):
                shape.append(_read(raw, 1)[0] if value is None else value.decode())
    return End(name.decode(), kinds[0], tuple(shape))


def _values(data: bytes, number: int) -> list[bytes]:
    """A field's values that have a length."""
    return [value for key, _, value in _fields(data) if key == number and value is not None]


def with_sizes(model: bytes, sizes: Mapping[str, int]) -> bytes:
    """Return the model whose inputs and outputs have these sizes in place of axes of these names."""

    def dimension(data: bytes) -> bytes:
        for number, _, value in _fields(data):
            if number == _NAME and isinstance(value, bytes) and value.decode() in sizes:
                return _key(_SIZE, _VARINT) + _varint(sizes[value.decode()])
        return data

    edit: Edit = dimension
    for number in reversed(_TO_DIMENSIONS):
        edit = _within((number,), edit)
    return _within((_GRAPH,), _within(_ENDS, edit))(model)


def _within(numbers: tuple[int, ...], edit: Edit) -> Edit:
    """Edit the messages in these fields of a message."""

    def edited(data: bytes) -> bytes:
        pieces = []
        for number, raw, value in _fields(data):
            if number in numbers and isinstance(value, bytes):
                new = edit(value)
                raw = _key(number, _BYTES) + _varint(len(new)) + new
            pieces.append(raw)
        return b"".join(pieces)

    return edited


def _fields(data: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """(number, the field as it stands, its bytes where it has a length)"""
    at = 0
    while at < len(data):
        start = at
        key, at = _read(data, at)
        kind, value = key & 7, None
        if kind == _BYTES:
            length, at = _read(data, at)
            value, at = data[at : at + length], at + length
        elif kind == _VARINT:
            _, at = _read(data, at)
        else:
            at += 8 if kind == 1 else 4
        yield key >> 3, data[start:at], value


def _read(data: bytes, at: int) -> tuple[int, int]:
    """A varint, and where it ends."""
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return number, at


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _varint(number: int) -> bytes:
    pieces = bytearray()
    while number > 127:
        pieces.append(number & 127 | 128)
        number >>= 7
    return bytes([*pieces, number])
