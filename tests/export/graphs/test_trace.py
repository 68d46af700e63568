"""What tracing a module keeps: its results, also where a constant is nearly neutral."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from blip2rt_export.graphs.trace import GraphSpec, trace


class _Norm(torch.nn.Module):
    """An RMSNorm without weights, and what else a tolerance might take for a multiplication by 1."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon, self.scale = epsilon, 1 + epsilon * 1000

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(variance + self.epsilon), x * self.scale, self.scale * x, x / self.scale


@pytest.mark.parametrize("epsilon", [1e-5, 2e-8, 1e-8, 1e-10, 1e-12])
def test_nearly_neutral_constants_stay(epsilon: float) -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    x[1] = 0  # as the padding of a batch is
    names = ["norm", "product", "swapped", "quotient"]
    model = trace(GraphSpec("norm", _Norm(epsilon), {"x": x}, names, {"x": {0: "B"}}))
    found = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(names, {"x": x.numpy()})
    for name, result, expected in zip(names, found, _Norm(epsilon)(x), strict=True):
        np.testing.assert_allclose(result, expected.numpy(), rtol=3e-7, err_msg=name)
