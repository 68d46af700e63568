"""int8-static for transformers and language models: close to PyTorch, one integer product for each matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image

import blip2rt
from blip2rt.cli.info import describe
from blip2rt_export.checks.calibration import batch_ranges
from blip2rt_export.checks.sessions import session as open_session
from blip2rt_export.graphs import trace
from blip2rt_export.graphs.vision import held_out
from blip2rt_export.precision import smoothquant, static
from blip2rt_export.precision.activations import Range
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer, matrices
from tests.export.commands_in_process import export
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2
from tests.tiny import onnx_validity

pytestmark = pytest.mark.long(8, "calibration over batches of a traced graph")

SEED = seed_of(__name__)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(tiny_blip2.photographs(9, np.random.default_rng(SEED))):
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(folder / f"{number}.png")
    return folder


def products(graph: Path, folder: Path) -> dict[str, int]:
    """Count the products with constants, by operator, after ONNX Runtime's optimization."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    proto = onnx.load(folder / "optimized.onnx", load_external_data=False).graph
    constants = {tensor.name for tensor in proto.initializer}
    found = [node.op_type for node in proto.node if len(node.input) > 1 and node.input[1] in constants]
    return {op_type: found.count(op_type) for op_type in ("MatMul", "MatMulIntegerToFloat")}


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_int8_static_covers_every_component(name: str, images: Path, tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS[name]())
    precision = "vision=int8-static,qformer=int8,llm=int8-static"
    out = export(checkpoint, tmp_path / "bundle", "--calibration", images, precision=precision)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert not onnx_validity.faults(out)
    model = blip2rt.load(out, threads=1)
    assert isinstance(model.caption(next(images.iterdir()), num_beams=1), str)
    checks = {check.component: check for check in model.bundle.manifest.verification}
    assert set(checks) == {*model.bundle.manifest.components, "all"} - {"encoder"}  # verified through the llm
    for component in ("vision", "qformer", "attention", "llm"):
        assert checks[component].precision == "int8-static" and 0.95 < checks[component].cosine < 1
    assert checks["all"].agreement is not None and checks["all"].precision == "int8-static/int8-static/int8-static"
    assert "int8-static/int8-static/int8-static" in describe(model.bundle)
    for component in model.bundle.manifest.components:
        found = products(out / f"{component}.onnx", tmp_path)
        assert found["MatMul"] == 0 and (found["MatMulIntegerToFloat"] > 3) == (component != "embed"), component


def traced(linear: torch.nn.Linear) -> trace.ir.Model:
    example = {"x": torch.zeros(2, linear.in_features)}
    return trace.trace(trace.GraphSpec("p", linear, example, ["y"], {"x": {0: "B"}}))


def test_photographs_are_held_out() -> None:
    files = [Path(str(i)) for i in range(9)]
    assert held_out(files) == (files[:6], files[6:])
    assert held_out([]) == ([], [])


def seen(low: float, high: float, mean: float) -> Range:
    """A range for every channel."""
    return Range(*np.array([[low], [high], [mean]]), mean)


def apply(seen: Range, width: int) -> tuple[list[str], ort.InferenceSession]:
    """Quantize a product with the unit matrix; return its operators and a session."""
    linear = torch.nn.Linear(width, width, bias=False)
    linear.weight.data.copy_(torch.eye(width))
    model = traced(linear)
    [name] = static.operands(model)
    static.apply(model, Quantizer(BlockFormat(32)), {name: seen})
    proto = trace.ir.to_proto(model).SerializeToString()
    return [node.op_type for node in model.graph], open_session(proto)


def test_values_within_the_range_are_rounded_to_half_a_step() -> None:
    """0 stays exact."""
    rng = np.random.default_rng(SEED)
    low, high = (float(end) for end in np.sort(rng.normal(size=2)) * 10.0 ** rng.integers(-3, 4))
    kinds, session = apply(seen(low, high, max(abs(low), abs(high)) / 2), 4)
    assert "QuantizeLinear" in kinds, "no outlier"
    x = rng.uniform(min(low, 0), max(high, 0), (64, 4)).astype(np.float32)
    x[0] = 0
    [got] = session.run(None, {session.get_inputs()[0].name: x})
    assert np.abs(got - x).max() <= 0.51 * (max(high, 0) - min(low, 0)) / 255 + 1e-6 * np.abs(x).max()
    assert (got[0] == 0).all()


def test_outliers_do_not_degrade_other_values() -> None:
    """One value is a thousand times as large as the others, which a common grid would round to 0."""
    x = np.random.default_rng(SEED).uniform(0.5, 1.5, (8, 64)).astype(np.float32)
    x[0, 0] = 3000
    kinds, session = apply(seen(0.0, 3000.0, float(x[1:].mean())), 64)
    assert "MatMulNBits" in kinds and "QuantizeLinear" not in kinds
    [got] = session.run(None, {session.get_inputs()[0].name: x})
    assert np.abs(got[1:] - x[1:]).max() < 0.02 and abs(got[0, 0] / 3000 - 1) < 0.02


def test_smoothing_moves_outliers_into_weights(tmp_path: Path) -> None:
    """Two products of one operand, some of whose channels are 200 times as large as others."""
    rng = np.random.default_rng(SEED)
    torch.manual_seed(SEED)

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(48, 20), torch.nn.Linear(48, 33)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.nn.functional.layer_norm(x, (48,)) * self.gain
            return torch.cat((self.first(x), self.second(x)), -1)

    module = Two()
    module.gain = torch.ones(48)
    module.gain[[3, 17]] = 200.0
    x = rng.normal(size=(5, 7, 48)).astype(np.float32)
    part = trace.GraphSpec("p", module, {"x": torch.from_numpy(x)}, ["y"], {"x": {0: "B", 1: "S"}})
    model = trace.trace(part)
    ranges = batch_ranges(model, tmp_path, "p", [{"x": x[:2]}, {"x": x[2:]}], static.operands)
    [found] = ranges.values()
    seen = torch.nn.functional.layer_norm(torch.from_numpy(x), (48,)).numpy() * module.gain.numpy()
    np.testing.assert_allclose(found.lows, seen.min((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(found.highs, seen.max((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(
        found.means, (np.abs(seen[:2]).mean((0, 1)) + np.abs(seen[2:]).mean((0, 1))) / 2, rtol=1e-4
    )

    def answer(model: trace.ir.Model) -> np.ndarray:
        proto = trace.ir.to_proto(model).SerializeToString()
        return open_session(proto).run(None, {"x": x})[0]

    want, smoothed = answer(model), model.clone()
    left = smoothquant.apply(smoothed, matrices(smoothed, "MatMul"), ranges)
    [better] = left.values()
    assert (better.high - better.low) / better.mean < (found.high - found.low) / found.mean / 3
    np.testing.assert_allclose(answer(smoothed), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    errors = []
    for strength in (smoothquant.STRENGTH, None):
        int8 = model.clone()
        with pytest.MonkeyPatch.context() as patch:
            if strength is None:  # one scale for all channels
                patch.setattr(smoothquant, "_scales", lambda seen, nodes: np.ones(48, np.float32))
                patch.setattr(smoothquant, "MAX_RANGE", np.inf)
            static.apply(int8, Quantizer(BlockFormat(32)), ranges)
        assert sum(node.op_type == "QuantizeLinear" for node in int8.graph) == 1
        errors.append(np.abs(answer(int8) - want).mean())
    assert errors[0] < 0.5 * errors[1], errors
