"""Whether files are valid ONNX, as others than ONNX Runtime see it."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime


def faults(folder: Path) -> list[str]:
    """What onnx.checker, strict shape inference and a plain session say of each graph of a folder."""
    found = []
    files = sorted(folder.glob("*.onnx"))
    assert files, folder
    for file in files:
        for name, check in (("checker", _checked), ("inference", _inferred), ("session", _opened)):
            try:
                check(file)
            except Exception as error:  # of three libraries, each with its own
                found.append(f"{file.name}: {name}: {' '.join(str(error).split())[:300]}")
    return found


def _checked(file: Path) -> None:
    onnx.checker.check_model(str(file), full_check=True)


def _inferred(file: Path) -> None:
    model = onnx.load(file, load_external_data=False)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _opened(file: Path) -> None:
    """Without operators of ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def operators(file: Path) -> Counter[str]:
    """How many of each operator ONNX Runtime makes of a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        model = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)
