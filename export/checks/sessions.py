"""Open graphs in ONNX Runtime, on the CPU, to verify and calibrate them."""

from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail


def session(graph: Path | bytes, threads: int = 0, packed: bool = True, fused: bool = True) -> ort.InferenceSession:
    """Open a graph, from a file or from memory.

    packed: copy matrices into the layout that products prefer; otherwise they stay in the mapped file.
    fused: fuse products between QuantizeLinear and DequantizeLinear into integer ones; otherwise run them as written.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")

    def create(precise: str) -> ort.InferenceSession:
        options.add_session_config_entry("session.x64quantprecision", precise)
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    # As in the core: without VNNI, sums of 8-bit products overflow unless ONNX Runtime is asked for precision. Releases
    # before 1.30 crash when asked; later ones raise an error if two products share their weights.
    if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 30):
        return create("0")
    try:
        return create("1")
    except Fail:
        return create("0")


def unfused_session(path: Path, threads: int = 0) -> ort.InferenceSession:
    """Open a graph made for TensorRT and compute exactly what its operators say.

    Fused, ONNX Runtime multiplies 4-bit weights in less than float16, and 1.32 computes int8 convolutions incorrectly.
    """
    return session(path, threads, fused=False)
