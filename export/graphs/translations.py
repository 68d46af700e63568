"""ONNX translations of PyTorch operators whose usual ones the core does not allow in untrusted graphs.

torch.gather becomes GatherElements and torch.slice_scatter ScatterND, whose computed indices can only be checked while
the graph runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxscript
import torch

op: Any = onnxscript.opset18  # its types know no Python numbers
_LAST = 2**63 - 1


def gather(data: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    """Gather from the rows of a matrix: data (R,N), index (R,I) -> (R,I). BERT looks up its token types this way."""
    if (len(data.shape), dim % 2) != (2, 1):
        raise NotImplementedError(f"torch.gather along axis {dim} of {len(data.shape)}")
    rows, columns = op.Shape(data, start=0, end=1), op.Shape(data, start=1, end=2)
    first = op.Mul(op.Range(op.Constant(value_int=0), op.Squeeze(rows), op.Constant(value_int=1)), columns)
    return op.Gather(op.Reshape(data, [-1]), op.Add(index, op.Unsqueeze(first, [1])), axis=0)


def slice_scatter(data: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """Replace data[start:end] along `dim` by `source`, as Gemma 3n adds to all but its first prediction."""
    if step != 1:
        raise NotImplementedError(f"torch.slice_scatter with step {step}")
    parts = [source]
    if start:
        parts.insert(0, op.Slice(data, [0], [start], [dim]))
    if end is not None and end != _LAST:
        parts.append(op.Slice(data, [end], [_LAST], [dim]))
    return op.Concat(*parts, axis=dim)


TABLE: dict[Callable[..., Any], Any] = {
    torch.ops.aten.gather.default: gather,
    torch.ops.aten.slice_scatter.default: slice_scatter,
}
