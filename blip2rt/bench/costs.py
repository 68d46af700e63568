"""The minimum cost of a graph: the bytes of weights that it reads and its multiply-adds.

Counts products with constant weights in the ONNX file, not those between activations (attention, a few per cent).
`limit` is the lower bound of the time on a machine with given rates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..bundle.onnx_protobuf import Graph, Node, Tensor, read

_TRANSPARENT = ("Cast", "Mul", "DequantizeLinear", "Transpose", "Identity")  # between a stored weight and its product
_GATHERS = ("Gather", "GatherBlockQuantized")  # read a few rows of their table
_INTEGER = ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulNBits", "ConvInteger", "QLinearConv", "QLinearMatMul")
_BITS4 = (21, 22)  # 4-bit types, which are multiplied as floats
Grid = tuple[int, int]  # height, width
_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulNBits")


@dataclass(frozen=True)
class Cost:
    weight_bytes: int = 0  # in memory; weights folded to float32 on load count as float32
    int8_macs: int = 0
    float_macs: int = 0

    def __add__(self, other: Cost) -> Cost:
        macs = self.int8_macs + other.int8_macs, self.float_macs + other.float_macs
        return Cost(self.weight_bytes + other.weight_bytes, *macs)


@dataclass(frozen=True)
class Rates:
    """The measured rates of a machine."""

    read_bytes: float  # a second
    int8_ops: float  # a second, two a multiply-add
    fp32_ops: float


def limit(cost: Cost, rates: Rates) -> tuple[float, str]:
    """Return (seconds, "memory" or "compute"): the longer of reading the weights and multiplying."""
    memory = cost.weight_bytes / rates.read_bytes
    compute = 2 * cost.int8_macs / rates.int8_ops + 2 * cost.float_macs / rates.fp32_ops
    return max(memory, compute), "memory" if memory >= compute else "compute"


def of_graph(
    path: Path, rows: dict[str, int], default_rows: int, batch: int = 1, grid: tuple[str, int, int] | None = None
) -> Cost:
    """Return the cost of one run of a graph.

    rows: positions of each input, all images together. default_rows: positions of values that depend on no input, such
    as queries. batch: rows after GatherND. grid: the image input with its height and width, for convolutions.
    """
    graph = read(path)
    return Cost(_weight_bytes(graph), *_products(graph, dict(rows), default_rows, batch, grid))


def _weight_bytes(graph: Graph) -> int:
    """The size of all initializers that are read completely, each counted once."""
    sizes: dict[str, int] = {}
    tables = {name for node in graph.nodes if node.op_type in _GATHERS for name in (node.inputs[0], *node.inputs[2:])}
    casts = {out for node in graph.nodes if node.op_type == "Cast" for out in node.outputs}
    for node in graph.nodes:
        if node.op_type in _GATHERS:
            continue
        if node.op_type == "Cast" and node.outputs[0] in tables and not _read_elsewhere(graph, node.outputs[0]):
            continue
        for name in node.inputs:
            tensor = graph.initializers.get(name)
            if tensor is not None:
                folded = any(out in casts for out in node.outputs)
                sizes[name] = 4 * tensor.elements if folded else tensor.nbytes
    return sum(sizes.values())


def _read_elsewhere(graph: Graph, name: str) -> bool:
    return any(name in node.inputs and node.op_type not in _GATHERS for node in graph.nodes)


def _products(
    graph: Graph, rows: dict[str, int], default_rows: int, batch: int, grid: tuple[str, int, int] | None
) -> tuple[int, int]:
    """Return multiply-adds in int8 and in float."""
    int8 = real = 0
    producers = {out: node for node in graph.nodes for out in node.outputs}
    grids = {} if grid is None else {grid[0]: grid[1:]}
    for node in graph.nodes:
        positions = _propagate(node, rows, batch)
        area = _next_grid(node, graph, producers, grids)
        found = _weight(graph, producers, node)
        if found is None:
            continue
        weight, integer = found
        if node.op_type.startswith(("Conv", "QLinearConv")):
            macs = weight.elements * (area[0] * area[1] if area else 0) * batch
        elif node.op_type == "MatMulNBits":
            macs = node.ints["K"][0] * node.ints["N"][0] * (positions or default_rows)
        else:
            macs = weight.elements * (positions or default_rows)
        if integer:
            int8 += macs
        else:
            real += macs
    return int8, real


def _propagate(node: Node, rows: dict[str, int], batch: int) -> int | None:
    """Return and record the positions of a node's outputs: those of its first input that has any, and for a product
    those of its left operand, known or not: queries that attend to an image keep their number."""
    inputs = node.inputs[:1] if node.op_type in _PRODUCTS else node.inputs
    positions = next((rows[name] for name in inputs if name in rows), None)
    if node.op_type in ("Shape", "Size"):
        positions = None
    elif node.op_type == "GatherND":
        positions = batch
    if positions is not None:
        rows.update(dict.fromkeys(node.outputs, positions))
    return positions


def _next_grid(node: Node, graph: Graph, producers: dict[str, Node], grids: dict[str, Grid]) -> Grid | None:
    """Return and record the height and width of a node's output while it is an image."""
    area = next((grids[name] for name in node.inputs if name in grids), None)
    if area is None or node.op_type in ("Shape", "Reshape", "Transpose"):
        return None
    if "Conv" in node.op_type:
        weight = _weight(graph, producers, node)
        if weight is None:
            return None
        kernel = weight[0].dims[2:]
        stride, dilation = (node.ints.get(key) or (1, 1) for key in ("strides", "dilations"))
        top, left, bottom, right = node.ints.get("pads") or (0, 0, 0, 0)
        padded = (area[0] + top + bottom, area[1] + left + right)
        extent = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
        height, width = ((padded[i] - extent[i]) // stride[i] + 1 for i in (0, 1))
        area = (height, width)
    grids.update(dict.fromkeys(node.outputs, area))
    return area


def _weight(graph: Graph, producers: dict[str, Node], node: Node) -> tuple[Tensor, bool] | None:
    """Return the constant operand of a node's product and whether it is integer, or None."""
    if node.op_type in _INTEGER:
        place = 3 if node.op_type.startswith("QLinear") else 1
        stored = (name for name, _ in _chain(producers, node.inputs[place]) if name in graph.initializers)
        return next(((graph.initializers[name], True) for name in stored), None)
    if node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    integer = False
    for name, op_type in _chain(producers, node.inputs[1]):
        integer = integer or op_type == "DequantizeLinear"
        if name in graph.initializers:
            return graph.initializers[name], integer and graph.initializers[name].dtype not in _BITS4
    return None


def _chain(producers: dict[str, Node], name: str) -> Iterator[tuple[str, str]]:
    """Yield a value and its sources back to a stored weight: (name, operator between)."""
    passed = ""
    while True:
        yield name, passed
        node = producers.get(name)
        if node is None or node.op_type not in _TRANSPARENT:
            return
        name, passed = node.inputs[0], node.op_type
