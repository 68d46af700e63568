"""Check that files are valid ONNX for tools other than our runtime, and have only operators that `load` allows."""

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime

from blip2rt.native import native


def faults(folder: Path) -> list[str]:
    """Run onnx.checker, strict shape inference, a plain session and our checks on each graph of a folder; list what
    they reject."""
    found = []
    files = sorted(folder.glob("*.onnx"))
    assert files, folder
    for file in files:
        model = onnx.load(file, load_external_data=False)
        strictly = {"check_type": True, "strict_mode": True, "data_prop": True}
        for name, check, given, options in (
            ("checker", onnx.checker.check_model, str(file), {"full_check": True}),
            ("inference", onnx.shape_inference.infer_shapes, model, strictly),
            ("session", _open, file, {}),
            ("ours", native.check_graph, str(file), {}),
        ):
            try:
                check(given, **options)
            except Exception as error:  # each library has its own
                found.append(f"{file.name}: {name}: {' '.join(str(error).split())[:300]}")
    return found


def _open(file: Path, optimized: str = "") -> None:
    """Open a session without our operators."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = optimized
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def operators(file: Path) -> Counter[str]:
    """Count the operators of a graph after ONNX Runtime's optimization."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = f"{folder}/optimized.onnx"
        _open(file, optimized)
        model = onnx.load(optimized, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)
