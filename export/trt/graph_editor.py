"""Insert typed nodes, casts and constants into a graph for TensorRT."""

import numpy as np
import onnx_ir as ir

from blip2rt.errors import Blip2rtError

from ..graphs import trace
from ..precision.quantizer import Quantizer

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_FP16_MAX = 65504.0


class GraphEditor:
    """A graph that is being rewritten. Each cast exists once, whatever reads it."""

    def __init__(self, model: ir.Model, quantizer: Quantizer) -> None:
        self.model, self.quantizer = model, quantizer
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """Add a stored initializer."""
        return self.quantizer.add(self.model, name, array)

    def insert(self, node: ir.Node, before: ir.Node | None, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
        """Insert a node with one output, or append it; return the output, typed and named after the node."""
        if before is None:
            self.model.graph.append(node)
        else:
            self.model.graph.insert_before(before, node)
        return typed_output(node, dtype, shape)

    def cast(self, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
        """Return the value in `dtype`. A constant is converted, not cast."""
        if value.dtype == dtype:
            return value
        key = (value, dtype)
        if key not in self._casts:
            tensor = trace.constant(value)
            self._casts[key] = self.cast_node(value, dtype, before) if tensor is None else self._half(value, tensor)
        return self._casts[key]

    def cast_node(self, value: ir.Value, dtype: ir.DataType, before: ir.Node | None) -> ir.Value:
        """Insert or append a Cast."""
        node = ir.node("Cast", [value], {"to": dtype}, name=f"{value.name}.to_{dtype.name.lower()}")
        return self.insert(node, before, dtype, value.shape)

    def _half(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        array = np.asarray(tensor.numpy())
        if array.size and np.abs(array).max() > _FP16_MAX:
            raise Blip2rtError(
                f"{value.name} contains {np.abs(array).max():.3g}, more than fp16's {_FP16_MAX:.0f}: export this "
                "component in fp32"
            )
        return self.constant(f"{value.name}.half", array.astype(np.float16))


def typed_output(node: ir.Node, dtype: ir.DataType, shape: ir.Shape | None) -> ir.Value:
    """Type the only output of a new node and name it after the node."""
    [out] = node.outputs
    out.name, out.type, out.shape = node.name, ir.TensorType(dtype), shape
    return out
