"""int4 for TensorRT: products whose weights are the same integers as in the target ort.

A block of rows of an output channel has a scale and a zero point, w = s (q - z). TensorRT requires the zero point 0, so
a product becomes two: x @ s (q - 8), whose weights are 4-bit, and the sums of x over each block @ s (8 - z), which is
1/block as large, in float16. TensorRT also requires whole blocks: both operands are zero-padded along K if needed.
TensorRT 10 reads 4-bit weights with an even N only: a column of zeros is added to an odd one, and its product dropped.
"""

import numpy as np
import onnx_ir as ir

from ..graphs import trace
from .graph_editor import FLOAT, GraphEditor, typed_output


class Int4Products:
    """Rewrites MatMuls of one graph."""

    def __init__(self, editor: GraphEditor) -> None:
        self.editor, self.block = editor, editor.quantizer.blocks.size
        self.shifted: set[ir.Value] = set()  # complete products, and their slices
        self._sums: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}  # of an operand's blocks
        self._padded: dict[ir.Value, ir.Value] = {}  # operands, padded to whole blocks

    def weight(self, value: ir.Value, tensor: ir.TensorProtocol, dtype: ir.DataType) -> list[np.ndarray]:
        """Return the 4-bit codes (K',N') and scales (K'/block,N') of a weight (K,N); store its offsets."""
        codes, scales, offsets = self.editor.quantizer.block_codes(str(value.name), tensor)
        if codes.shape[1] % 2:
            codes, scales, offsets = (np.pad(each, ((0, 0), (0, 1))) for each in (codes, scales, offsets))
        self.editor.constant(f"{value.name}.offsets", offsets.astype(dtype.numpy()))
        return [codes.astype(ir.DataType.INT4.numpy()), scales.astype(dtype.numpy())]

    def pad(self, before: ir.Node, source: ir.Value, weight: ir.Value) -> ir.Value:
        """(..., K) -> (..., K') of whole blocks, shared by all products of the operand"""
        assert weight.shape is not None
        rows = weight.shape.numpy()[0]
        missing = -rows % self.block
        if missing == 0:
            return source
        if source not in self._padded:
            assert source.shape is not None and source.dtype is not None
            widths = np.array([0] * (2 * len(source.shape) - 1) + [missing], np.int64)
            name = f"{source.name}.filled"
            node = ir.node("Pad", [source, self.editor.constant(f"{name}.zeros", widths)], name=name)
            shape = ir.Shape([*source.shape[:-1], rows + missing])
            self._padded[source] = self.editor.insert(node, before, source.dtype, shape)
        return self._padded[source]

    def add_offsets(self, node: ir.Node, source: ir.Value, weight: ir.Value, dtype: ir.DataType) -> None:
        """Add the contribution of the zero points to the product `node` of `source`."""
        [product] = node.outputs
        assert weight.shape is not None
        graph, columns, shape = self.editor.model.graph, weight.shape.numpy()[1], product.shape
        product.shape = None if shape is None else ir.Shape([*shape[:-1], columns + columns % 2])
        readers, offsets = list(product.uses()), graph.initializers[f"{weight.name}.offsets"]
        second = ir.node("MatMul", [self._block_sums(node, source, dtype), offsets], name=f"{product.name}.shift")
        shift = typed_output(second, dtype, product.shape)
        add = ir.node("Add", [product, shift], name=f"{product.name}.shifted")
        shifted = typed_output(add, dtype, product.shape)
        graph.insert_after(node, [second, add])
        if columns % 2:
            bounds = [self.editor.constant(f"{product.name}.columns.{i}", np.array([i])) for i in (0, columns, -1)]
            cut = ir.node("Slice", [shifted, *bounds], name=f"{product.name}.columns")
            graph.insert_after(add, cut)
            shifted = typed_output(cut, dtype, shape)
        self.shifted.add(shifted)
        for reader, index in readers:
            reader.replace_input_with(index, shifted)
        for index, output in enumerate(graph.outputs):
            if output is product:
                graph.outputs[index] = shifted
                product.name, shifted.name = f"{product.name}.product", product.name

    def _block_sums(self, before: ir.Node, source: ir.Value, dtype: ir.DataType) -> ir.Value:
        """(..., K) -> (..., K/block), summed in float32, shared by all products of the operand"""
        if (source, dtype) not in self._sums:
            name, editor = source.name, self.editor
            assert source.shape is not None
            sizes = np.array([0] * (len(source.shape) - 1) + [-1, self.block], np.int64)
            shape = editor.constant(f"{name}.blocks", sizes)
            last = editor.constant(f"{name}.last", np.array([-1], np.int64))
            wide = editor.cast(source, FLOAT, before)
            cut = editor.insert(ir.node("Reshape", [wide, shape], name=f"{name}.cut"), before, FLOAT, None)
            node = ir.node("ReduceSum", [cut, last], {"keepdims": 0}, name=f"{name}.sums")
            self._sums[source, dtype] = editor.cast(editor.insert(node, before, FLOAT, None), dtype, before)
        return self._sums[source, dtype]


def is_matrix(node: ir.Node) -> bool:
    """Whether the node multiplies by a constant matrix (K,N)."""
    tensor = trace.constant(node.inputs[1]) if node.op_type == "MatMul" else None
    return tensor is not None and len(tensor.shape) == 2
