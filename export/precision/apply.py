"""Bring a float32 graph to one of the precisions of the target ort.

fp32; fp16 (storage.py); int4 and int8w (weight_only.py); int8-dynamic (dynamic.py).
"""

import onnx_ir as ir

from blip2rt.errors import Blip2rtError

from . import dynamic
from .quantizer import BITS, Quantizer
from .storage import store_fp16, store_int8
from .weight_only import quantize_weights


def apply(model: ir.Model, precision: str, quantizer: Quantizer) -> None:
    """Bring the graph to `precision` in place."""
    if precision == "fp32":
        return
    quantized = 1
    if precision == "int8-dynamic":
        quantized = quantize_weights(model, 8, quantizer, dynamic.quantize_matmul)
    elif precision in BITS:
        quantized = quantize_weights(model, BITS[precision], quantizer)
    if not quantized and precision != "int8w":
        raise Blip2rtError(f"an image encoder of convolutions alone cannot be {precision}: choose int8w")
    if precision in ("int8w", "int8-dynamic"):
        store_int8(model, quantizer)
    if precision != "int4":
        store_fp16(model, quantizer)
