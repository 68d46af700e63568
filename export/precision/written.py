"""Which precision a graph has that was brought to one. A graph without anything to quantize stays what it was.

Knows graphs of both targets, nothing about models.
"""

from __future__ import annotations

import onnx_ir as ir

_MARKS = {"int8-static": ("QuantizeLinear",), "int8-dynamic": ("DynamicQuantizeMatMul",)}
_BLOCKS = ("MatMulNBits", "GatherBlockQuantized")
NIBBLES = ".nibbles"  # how the name of a table ends that has several codes of 4 bits in each number
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)


def written(model: ir.Model, chosen: str) -> str:
    """`chosen` where the graph has it, else the finest that it has of int8w, fp16 and fp32."""
    if chosen in _MARKS and any(node.op_type in _MARKS[chosen] for node in model.graph):
        return chosen
    bits = {_bits(node) for node in model.graph if node.op_type in _BLOCKS}
    types = {value.dtype for value in model.graph.initializers.values()}
    packed = any(name.endswith(NIBBLES) for name in model.graph.initializers)
    if chosen == "int4" and (4 in bits or ir.DataType.INT4 in types or packed):
        return chosen
    if chosen not in ("fp16", "fp32") and (8 in bits or any(kind in types for kind in _BYTES)):
        return "int8w"
    return "fp16" if chosen != "fp32" and ir.DataType.FLOAT16 in types else "fp32"


def _bits(node: ir.Node) -> int:
    return node.attributes["bits"].as_int() if "bits" in node.attributes else 4
