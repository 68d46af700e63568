"""float32 graph -> a strongly typed graph for TensorRT: which tensors are float16, int8 or float32 is written in it.

One rule, that of autocast: what tensor cores do (MatMul and Conv, with the bias behind them) takes and gives float16;
what only moves or selects values keeps the type that it gets; all else (softmax, norms, residual sums, rotation, the
choice of tokens) computes in float32. Inputs and outputs stay float32, but for keys and values.

int8: besides, the constant weights of those products are int8 with a scale for each output channel behind a
DequantizeLinear. Their other operand passes a QuantizeLinear and a DequantizeLinear of one scale. All are symmetric
with zero point 0, which is what TensorRT takes. Products of two activations stay float16, and so do those whose operand
has outliers even when it is smoothed (see smoothquant.py).

int4: the weights alone are integers, the very ones of the target ort: blocks of rows of an output channel have a scale
and a zero point, w = s (q - z). TensorRT takes no zero point but 0, so a product is two: x @ s (q - 8), whose weights
are 4-bit, and the sums of x over each block @ s (8 - z), 1/block as large, in float16. TensorRT takes whole blocks
alone: both operands get zeros behind K where it is no multiple. Such a graph is of opset 21, the first that has 4-bit
integers and blocks. Products of one operand, as q, k and v, are joined first (see merge_matmuls.py). A graph that has
no product, as embed, gets a table of 4 bits (see embedding_table.py).

Knows graphs, nothing about models but one name (see _WIDE); ranges of activations come from export.checks.calibration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir

from blip2rt.bundle import PIXELS
from blip2rt.errors import Blip2rtError

from ..graphs import trace
from ..precision import smoothquant
from ..precision.activations import NO_RANGES, Ranges
from ..precision.quantizer import LEVELS, BlockFormat, Quantizer, block_codes, channel_codes, matrices
from . import embedding_table, merge_matmuls

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_PRODUCTS = {"MatMul": 1, "Conv": 0}  # op -> axis of the output channels in its weight
_MOVES = {"Reshape", "Transpose", "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Expand", "Tile", "Pad", "Gather",
          "GatherND", "Identity", "Flatten", "Relu", "Clip", "Neg", "MaxPool"}  # fmt: skip
_NATIVE = ("TensorScatter", "Attention")  # of a cache that the graph writes: in the type of keys and values
_CACHED = ("past_key_", "past_value_", "present_", "new_", "cross_")  # kept in the type of the products
_WIDE = ".wo."  # T5's second feed-forward matrix: its sums leave float16's range, and transformers keeps it wide too
_TABLE = 100_000  # numbers of a table of Gather that is worth storing as float16
_LARGEST = 65504.0  # of float16
_INT4_OPSET = 21  # differs from 19 in the types that operators take, in no operator that our graphs have


def apply(model: ir.Model, precision: str, quantizer: Quantizer, ranges: Ranges = NO_RANGES) -> None:
    """Bring the graph to `precision` in place: fp32, fp16, int4, or int8-static with the `ranges` of `operands`."""
    if precision == "fp32":
        return
    products = [node for node, _ in quantizable(model)]
    if precision == "int4" and not products:  # it only looks up
        for node in matrices(model, "Gather"):
            embedding_table.quantize(model, node, quantizer)
        trace.drop_unused(model)
        return
    if precision == "int8-static":
        ranges = smoothquant.apply(model, products, ranges)
        quantized = {node for node, operand in quantizable(model) if operand in ranges}
        typing = _Typing(model, quantizer, quantized, ranges)
    elif precision == "int4":
        model.graph.opset_imports[""] = max(_INT4_OPSET, model.graph.opset_imports[""])
        matmuls = [node for node in products if _is_matrix(node)]
        wide = [node for node in matmuls if _is_wide(node)]
        quantized = {*merge_matmuls.merge(model, [node for node in matmuls if node not in wide]), *wide}
        typing = _Typing(model, quantizer, quantized, blocks=quantizer.blocks)
    else:
        typing = _Typing(model, quantizer, set())
    typing.inputs()
    for node in list(model.graph):
        typing.visit(node)
    typing.outputs()
    trace.drop_unused(model)


def quantizable(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """Yield products with a constant weight, and the name of their other operand.

    Left out are the first, which reads pixels, and convolutions of one channel each: their few products do not even
    out what rounding does, and they wait for memory anyway.
    """
    for node in model.graph:
        if not _product(node) or trace.constant(node.inputs[1]) is None or _depthwise(node):
            continue
        operand = node.inputs[0]
        if operand is not None and operand.name not in (None, PIXELS):
            yield node, str(operand.name)


def _depthwise(node: ir.Node) -> bool:
    """Whether each output channel of a convolution reads one input channel."""
    weight = trace.constant(node.inputs[1])
    return node.op_type == "Conv" and weight is not None and weight.shape.numpy()[1] == 1


def operands(model: ir.Model) -> Iterable[str]:
    """Name the values that int8 needs the ranges of."""
    return (operand for _, operand in quantizable(model))


def _product(node: ir.Node) -> bool:
    """Whether tensor cores do it. The outer product of rotary positions is pointwise: float16 would lose them."""
    if node.op_type not in _PRODUCTS:
        return False
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return not (node.op_type == "MatMul" and shape is not None and len(shape) > 0 and shape[-1] == 1)


class _Typing:
    """One pass from inputs to outputs; every value has been typed before it is read."""

    def __init__(
        self, model: ir.Model, quantizer: Quantizer, quantized: set[ir.Node], ranges: Ranges = NO_RANGES,
        blocks: BlockFormat | None = None,
    ) -> None:  # fmt: skip
        self.model, self.quantizer, self.quantized = model, quantizer, quantized
        self.ranges, self.blocks = ranges, blocks  # of int8; of int4
        self.sums: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}  # of blocks of an operand
        self.filled: dict[ir.Value, ir.Value] = {}  # operands with zeros behind them, to whole blocks
        self.shifted: set[ir.Value] = set()  # products of int4, whole
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.grids: dict[ir.Value, ir.Value] = {}

    def inputs(self) -> None:
        for value in self.model.graph.inputs:
            if value.name is not None and value.name.startswith(_CACHED):
                value.type = ir.TensorType(_HALF)

    def outputs(self) -> None:
        graph = self.model.graph
        for index, value in enumerate(list(graph.outputs)):
            name = value.name
            assert name is not None
            wanted = _HALF if name.startswith(_CACHED) else _FLOAT
            if value.dtype in (_HALF, _FLOAT) and value.dtype != wanted:
                value.name = f"{name}.typed"
                graph.outputs[index] = cast = self._cast_node(value, wanted, None)
                cast.name = name

    def visit(self, node: ir.Node) -> None:
        if _product(node):
            dtype = _FLOAT if _is_wide(node) else _HALF
            source, weight = node.inputs[:2]
            if self.blocks is not None and node in self.quantized:
                assert source is not None and weight is not None
                source = self._fill(node, source, weight)
                node.replace_input_with(0, source)
                self._type(node, dtype)
                self._shift(node, source, weight, dtype)
            else:
                self._type(node, dtype)
        elif node.op_type in _NATIVE:
            self._type(node, _HALF)
        elif node.op_type in _MOVES:
            moved = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            self._type(node, _HALF if all(self._half(value) for value in moved) else _FLOAT)
            if node.op_type == "Split" and node.inputs[0] in self.shifted:
                self.shifted |= set(node.outputs)  # a bias behind it is the product's
        elif node.op_type == "Cast":
            return
        else:
            self._type(node, _HALF if self._bias(node) else _FLOAT)

    def _half(self, value: ir.Value | None) -> bool:
        """Whether a value is float16, or a large table that may become so."""
        tensor = trace.constant(value)
        half = value is not None and value.dtype == _HALF
        return half or (tensor is not None and tensor.dtype == _FLOAT and tensor.size >= _TABLE)

    def _bias(self, node: ir.Node) -> bool:
        """Whether the node adds a constant vector to a float16 product, which tensor cores do on the way."""
        if node.op_type != "Add":
            return False
        for value, other in (node.inputs, node.inputs[::-1]):
            tensor, producer = trace.constant(other), value.producer() if value is not None else None
            if (
                tensor is not None
                and len(tensor.shape) == 1
                and producer is not None
                and (_product(producer) or value in self.shifted)
            ):
                return value is not None and value.dtype == _HALF
        return False

    def _type(self, node: ir.Node, dtype: ir.DataType) -> None:
        """Give `node` operands of `dtype`, and its results that type."""
        quantized = node in self.quantized
        for index, value in enumerate(node.inputs):
            if value is None or not _is_float(value):
                continue
            if quantized and index == 1:
                new = self._quantized_weight(node, value, dtype)
            else:
                new = self._cast(node, value, dtype)
            if quantized and index == 0 and self.blocks is None:
                new = self._quantize(node, value, new, dtype)
            if new is not value:
                node.replace_input_with(index, new)
        for output in node.outputs:
            if output.dtype is None and _product(node):  # of a linear layer that was split on the way here
                output.type = ir.TensorType(dtype)
            assert output.dtype is not None, f"{node.name} has results of unknown type"
            if output.dtype == _FLOAT:
                output.type = ir.TensorType(dtype)  # a new one: clones of a graph share theirs

    def _cast(self, before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self.casts:
            tensor = trace.constant(value)
            self.casts[key] = self._cast_node(value, dtype, before) if tensor is None else self._halved(value, tensor)
        return self.casts[key]

    def _cast_node(self, value: ir.Value, dtype: ir.DataType, before: ir.Node | None) -> ir.Value:
        node = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}.to_{dtype.name.lower()}")
        return self._insert(node, before, dtype, value.shape)

    def _insert(self, node: ir.Node, before: ir.Node | None, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
        if before is None:
            self.model.graph.append(node)
        else:
            self.model.graph.insert_before(before, node)
        return _typed(node, dtype, shape)

    def _halved(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        array = np.asarray(tensor.numpy())
        if array.size and np.abs(array).max() > _LARGEST:
            raise Blip2rtError(f"{value.name} holds {np.abs(array).max():.3g}, and fp16 ends at {_LARGEST:.0f}: "
                               "export this part in fp32")  # fmt: skip
        return self._constant(f"{value.name}.half", array.astype(np.float16))

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        return self.quantizer.add(self.model, name, array)

    def _quantize(self, before: ir.Node, source: ir.Value, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """value -> QuantizeLinear -> DequantizeLinear, once for all who read it."""
        if source not in self.grids:
            name = str(source.name)
            largest = max(-self.ranges[name].low, self.ranges[name].high)
            step = np.array(largest / LEVELS if largest > 0 else 1, dtype.numpy())
            scale = self._constant(f"{name}.scale", np.maximum(step, np.finfo(step.dtype).tiny))
            zero = self._constant(f"{name}.zero", np.array(0, np.int8))
            node = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}.codes")
            codes = self._insert(node, before, ir.DataType.INT8, value.shape)
            grid = ir.node("DequantizeLinear", [codes, scale, zero], name=f"{name}.grid")
            self.grids[source] = self._insert(grid, before, dtype, value.shape)
        return self.grids[source]

    def _fill(self, before: ir.Node, source: ir.Value, weight: ir.Value) -> ir.Value:
        """(..., K) -> (..., K + zeros) of whole blocks, once for all products of the same operand."""
        assert self.blocks is not None and weight.shape is not None
        rows = weight.shape.numpy()[0]
        lacking = -rows % self.blocks.size
        if lacking == 0:
            return source
        if source not in self.filled:
            assert source.shape is not None and source.dtype is not None
            zeros = np.array([0] * (2 * len(source.shape) - 1) + [lacking], np.int64)
            name = f"{source.name}.filled"
            pad = ir.node("Pad", [source, self._constant(f"{name}.zeros", zeros)], name=name)
            shape = ir.Shape([*source.shape[:-1], rows + lacking])
            self.filled[source] = self._insert(pad, before, source.dtype, shape)
        return self.filled[source]

    def _quantized_weight(self, before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value not in self.grids:
            tensor = trace.constant(value)
            assert tensor is not None
            attributes: dict[str, int] = {"axis": _PRODUCTS[before.op_type]}
            shape = value.shape
            if self.blocks is None:
                codes, scales = channel_codes(np.asarray(tensor.numpy()), attributes["axis"], dtype.numpy())
            else:
                codes, scales, offsets = block_codes(str(value.name), tensor, self.blocks)
                codes, scales = codes.astype(ir.DataType.INT4.numpy()), scales.astype(dtype.numpy())
                attributes, shape = {"axis": 0, "block_size": self.blocks.size}, ir.Shape(codes.shape)
                self._constant(f"{value.name}.offsets", offsets.astype(dtype.numpy()))
            inputs = [self._constant(f"{value.name}.codes", codes), self._constant(f"{value.name}.scales", scales),
                      self._constant(f"{value.name}.zeros", np.zeros(scales.shape, codes.dtype))]  # fmt: skip
            node = ir.node("DequantizeLinear", inputs, attributes, name=f"{value.name}.grid")
            self.grids[value] = self._insert(node, before, dtype, shape)
        return self.grids[value]

    def _shift(self, node: ir.Node, source: ir.Value, weight: ir.Value, dtype: ir.DataType) -> None:
        """Add what the zero points of int4 weights are worth to the product `node` of `source`."""
        [product] = node.outputs
        readers, offsets = list(product.uses()), self.model.graph.initializers[f"{weight.name}.offsets"]
        second = ir.node("MatMul", [self._block_sums(node, source, dtype), offsets], name=f"{product.name}.shift")
        shift = _typed(second, dtype, product.shape)
        whole = ir.node("Add", [product, shift], name=f"{product.name}.shifted")
        shifted = _typed(whole, dtype, product.shape)
        self.model.graph.insert_after(node, [second, whole])
        self.shifted.add(shifted)
        for reader, index in readers:
            reader.replace_input_with(index, shifted)
        for index, output in enumerate(self.model.graph.outputs):
            if output is product:
                self.model.graph.outputs[index] = shifted
                product.name, shifted.name = f"{product.name}.product", product.name

    def _block_sums(self, before: ir.Node, source: ir.Value, dtype: ir.DataType) -> ir.Value:
        """(..., K) -> (..., K/block), summed in float32, once for all products of the same operand."""
        assert self.blocks is not None
        if (source, dtype) not in self.sums:
            size, name = self.blocks.size, source.name
            assert source.shape is not None
            shape = self._constant(f"{name}.blocks", np.array([0] * (len(source.shape) - 1) + [-1, size], np.int64))
            last = self._constant(f"{name}.last", np.array([-1], np.int64))
            wide = self._cast(before, source, _FLOAT)
            cut = self._insert(ir.node("Reshape", [wide, shape], name=f"{name}.cut"), before, _FLOAT, None)
            summed = ir.node("ReduceSum", [cut, last], {"keepdims": 0}, name=f"{name}.sums")
            self.sums[source, dtype] = self._cast(before, self._insert(summed, before, _FLOAT, None), dtype)
        return self.sums[source, dtype]


def _typed(node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    """Type the result of a new node, and name it as the node."""
    [out] = node.outputs
    out.name, out.type, out.shape = node.name, ir.TensorType(dtype), shape
    return out


def _is_wide(node: ir.Node) -> bool:
    return node.inputs[1] is not None and _WIDE in str(node.inputs[1].name)


def _is_matrix(node: ir.Node) -> bool:
    """Whether the node multiplies with a matrix (K,N)."""
    tensor = trace.constant(node.inputs[1])
    assert tensor is not None
    return node.op_type == "MatMul" and len(tensor.shape) == 2


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (_FLOAT, _HALF)
