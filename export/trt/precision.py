"""Make a float32 graph strongly typed for TensorRT: the graph says which tensors are float16, int8 or float32.

The rule is that of autocast. What tensor cores compute (MatMul and Conv, with their bias) is float16. Operators that
only move or select values keep the type of their input. Everything else (softmax, norms, residual sums, rotation, the
choice of tokens) computes in float32. Inputs and outputs stay float32, except keys and values.

int8-static: in addition, the constant weights of those products are int8 with a scale for each output channel, behind a
DequantizeLinear; the other operand passes through QuantizeLinear and DequantizeLinear with one scale. All are symmetric
with zero point 0, as TensorRT requires. Products of two activations stay float16, and so do those whose operand has
outliers even after smoothing (see smoothquant.py).

int4: see int4.py. Such a graph is of opset 21, the first with 4-bit integers and blocks. Products of one operand, as q,
k and v, are merged first (merge_matmuls.py). A graph without products, as embed, is that of the target ort, since the
CPU runs it.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from blip2rt.bundle import PIXELS

from ..graphs import trace
from ..precision import smoothquant
from ..precision.activations import NO_RANGES, Ranges
from ..precision.apply import apply as apply_for_cpu
from ..precision.quantizer import INT8_MAX, Quantizer, channel_codes
from . import merge_matmuls
from .graph_editor import FLOAT, HALF, GraphEditor
from .int4 import Int4Products, is_matrix

_PRODUCTS = {"MatMul": 1, "Conv": 0}  # operator -> axis of the output channels in its weight
_MOVES = set(
    "Reshape Transpose Slice Concat Split Squeeze Unsqueeze Expand Tile Pad Gather GatherND Identity Flatten Relu Clip "
    "Neg MaxPool".split()
)
_CACHED = ("past_key_", "past_value_", "new_", "cross_")  # inputs and outputs in the type of the products
_FLOAT32_WEIGHT = ".wo."  # T5's second feed-forward matrix: sums exceed float16; transformers keeps it in float32 too
_MIN_HALF_TABLE = 100_000  # numbers of an embedding table that is worth storing as float16
_INT4_OPSET = 21  # differs from 19 only in types, for the operators of our graphs


def apply(model: ir.Model, precision: str, quantizer: Quantizer) -> None:
    """Bring the graph to `precision` in place: fp32, fp16, int4, or int8-static with the quantizer's ranges."""
    if precision == "fp32":
        return
    products = [node for node in model.graph if _is_product(node) and is_matrix(node)]
    if precision == "int4" and not products:  # only table lookups
        apply_for_cpu(model, precision, quantizer)
        return
    typing = _TypingPass(model, quantizer)
    if precision == "int8-static":
        typing.ranges = smoothquant.apply(model, [node for node, _ in quantizable(model)], quantizer.ranges)
        typing.quantized = {node for node, operand in quantizable(model) if operand in typing.ranges}
    elif precision == "int4":
        model.graph.opset_imports[""] = max(_INT4_OPSET, model.graph.opset_imports[""])
        wide = [node for node in products if _needs_float32(node)]
        typing.quantized = {*merge_matmuls.merge(model, [node for node in products if node not in wide]), *wide}
        typing.int4 = Int4Products(typing.editor)
    typing.run()
    trace.drop_unused(model)


def quantizable(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """Yield products with a constant weight, and the name of their other operand, whose range int8 needs.

    Excluded are the first product, which reads pixels, and depthwise convolutions: these have too few products to
    average out rounding errors, and are limited by memory anyway.
    """
    for node in model.graph:
        if not _is_product(node) or trace.constant(node.inputs[1]) is None or _is_depthwise(node):
            continue
        operand = node.inputs[0]
        if operand is not None and operand.name not in (None, PIXELS):
            yield node, str(operand.name)


class _TypingPass:
    """Types all values in one pass from inputs to outputs; each value is typed before it is read."""

    def __init__(self, model: ir.Model, quantizer: Quantizer) -> None:
        self.graph, self.editor = model.graph, GraphEditor(model, quantizer)
        self.quantized: set[ir.Node] = set()
        self.ranges: Ranges = NO_RANGES  # int8 only
        self.int4: Int4Products | None = None
        self.grids: dict[ir.Value, ir.Value] = {}  # value -> its DequantizeLinear

    def run(self) -> None:
        for value in self.graph.inputs:
            if value.name is not None and value.name.startswith(_CACHED):
                value.type = ir.TensorType(HALF)
        for node in list(self.graph):
            self._visit(node)
        for index, value in enumerate(list(self.graph.outputs)):
            name = value.name
            assert name is not None
            dtype = HALF if name.startswith(_CACHED) else FLOAT
            if value.dtype in (HALF, FLOAT) and value.dtype != dtype:
                value.name = f"{name}.typed"
                self.graph.outputs[index] = cast = self.editor.cast_node(value, dtype, None)
                cast.name = name

    def _visit(self, node: ir.Node) -> None:
        if _is_product(node):
            dtype = FLOAT if _needs_float32(node) else HALF
            source, weight = node.inputs[:2]
            if self.int4 is not None and node in self.quantized:
                assert source is not None and weight is not None
                source = self.int4.pad(node, source, weight)
                node.replace_input_with(0, source)
                self._set_type(node, dtype)
                self.int4.add_offsets(node, source, weight, dtype)
            else:
                self._set_type(node, dtype)
        elif node.op_type in _MOVES:
            moved = node.inputs if node.op_type == "Concat" else node.inputs[:1]
            self._set_type(node, HALF if all(_may_be_half(value) for value in moved) else FLOAT)
            if self.int4 is not None and node.op_type == "Split" and node.inputs[0] in self.int4.shifted:
                self.int4.shifted |= set(node.outputs)  # a bias added to a slice is the product's
        elif node.op_type != "Cast":
            self._set_type(node, HALF if self._is_bias(node) else FLOAT)

    def _is_bias(self, node: ir.Node) -> bool:
        """Whether the node adds a constant vector to a float16 product; tensor cores do this in passing."""
        if node.op_type != "Add":
            return False
        for value, other in (node.inputs, node.inputs[::-1]):
            tensor, producer = trace.constant(other), value.producer() if value is not None else None
            if tensor is None or len(tensor.shape) != 1 or producer is None:
                continue
            if _is_product(producer) or (self.int4 is not None and value in self.int4.shifted):
                return value is not None and value.dtype == HALF
        return False

    def _set_type(self, node: ir.Node, dtype: ir.DataType) -> None:
        """Give the float operands and results of `node` the type `dtype`, quantized where it is."""
        quantized = node in self.quantized
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (FLOAT, HALF):
                continue
            if quantized and index == 1:
                new = self._quantized_weight(node, value, dtype)
            else:
                new = self.editor.cast(value, dtype, node)
            if quantized and index == 0 and self.int4 is None:
                new = self._quantize(node, value, new, dtype)
            if new is not value:
                node.replace_input_with(index, new)
        for output in node.outputs:
            if output.dtype is None and _is_product(node):  # of a linear layer that has been split
                output.type = ir.TensorType(dtype)
            assert output.dtype is not None, f"{node.name} has results of unknown type"
            if output.dtype == FLOAT:
                output.type = ir.TensorType(dtype)  # a new object: clones of a graph share theirs

    def _quantize(self, before: ir.Node, source: ir.Value, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """value -> QuantizeLinear -> DequantizeLinear, shared by all readers"""
        if source not in self.grids:
            name, constant = str(source.name), self.editor.constant
            largest = max(-self.ranges[name].low, self.ranges[name].high)
            step = np.array(largest / INT8_MAX if largest > 0 else 1, dtype.numpy())
            scale = constant(f"{name}.scale", np.maximum(step, np.finfo(step.dtype).tiny))
            zero = constant(f"{name}.zero", np.array(0, np.int8))
            node = ir.node("QuantizeLinear", [value, scale, zero], name=f"{name}.codes")
            codes = self.editor.insert(node, before, ir.DataType.INT8, value.shape)
            grid = ir.node("DequantizeLinear", [codes, scale, zero], name=f"{name}.grid")
            self.grids[source] = self.editor.insert(grid, before, dtype, value.shape)
        return self.grids[source]

    def _quantized_weight(self, before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if value not in self.grids:
            tensor = trace.constant(value)
            assert tensor is not None
            attributes = {"axis": _PRODUCTS[before.op_type]}
            if self.int4 is None:
                codes, scales = channel_codes(np.asarray(tensor.numpy()), attributes["axis"], dtype.numpy())
            else:
                codes, scales = self.int4.weight(value, tensor, dtype)
                attributes = {"axis": 0, "block_size": self.int4.block}
            arrays = {"codes": codes, "scales": scales, "zeros": np.zeros(scales.shape, codes.dtype)}
            inputs = [self.editor.constant(f"{value.name}.{name}", array) for name, array in arrays.items()]
            node = ir.node("DequantizeLinear", inputs, attributes, name=f"{value.name}.grid")
            self.grids[value] = self.editor.insert(node, before, dtype, ir.Shape(codes.shape))
        return self.grids[value]


def _is_product(node: ir.Node) -> bool:
    """Whether tensor cores compute it. The outer product of rotary positions is pointwise and needs float32."""
    if node.op_type not in _PRODUCTS:
        return False
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return not (node.op_type == "MatMul" and shape is not None and len(shape) > 0 and shape[-1] == 1)


def _is_depthwise(node: ir.Node) -> bool:
    """Whether each output channel of a convolution reads one input channel."""
    weight = trace.constant(node.inputs[1])
    return node.op_type == "Conv" and weight is not None and weight.shape.numpy()[1] == 1


def _needs_float32(node: ir.Node) -> bool:
    return node.inputs[1] is not None and _FLOAT32_WEIGHT in str(node.inputs[1].name)


def _may_be_half(value: ir.Value | None) -> bool:
    """Whether a value is float16, or a table large enough to become so."""
    tensor = trace.constant(value)
    half = value is not None and value.dtype == HALF
    return half or (tensor is not None and tensor.dtype == FLOAT and tensor.size >= _MIN_HALF_TABLE)
