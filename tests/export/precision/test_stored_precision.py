"""The precision that a graph has, and products that share their weights."""

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from blip2rt_export.checks.sessions import session as open_session
from blip2rt_export.graphs import trace
from blip2rt_export.precision.apply import apply
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from blip2rt_export.precision.storage import stored_precision


def test_stored_precision_is_detected() -> None:
    def made(precision: str, width: int = 48) -> str:
        linear, x = torch.nn.Linear(width, width, bias=False), torch.zeros(2, width)
        model = trace.trace(trace.GraphSpec("p", linear, {"x": x}, ["y"], {"x": {0: "B"}}))
        apply(model, precision, Quantizer(BlockFormat(32)))
        return stored_precision(model, precision)

    for precision in ("fp32", "int4", "int8w", "int8-dynamic"):
        assert made(precision) == precision
    assert made("fp16", 4) == "fp32" and made("fp16", 300) == "fp16", "small weights stay as they are"


def test_products_with_shared_weights_can_be_opened() -> None:
    """ONNX Runtime cannot avoid overflowing sums there."""
    constants = {"codes": np.full((8, 4), 3, np.int8), "scales": np.full(4, 0.5, np.float32)}
    kind = {"domain": "com.microsoft"}
    nodes = [helper.make_node("DynamicQuantizeMatMul", ["x", "codes", "scales"], [name], **kind) for name in "ab"]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Add", ["a", "b"], ["y"])],
        "shared",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    [y] = open_session(model.SerializeToString()).run(None, {"x": np.ones((1, 8), np.float32)})
    np.testing.assert_allclose(y, 2 * 8 * 3 * 0.5, rtol=1e-5)
