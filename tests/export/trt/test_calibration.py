"""int8 for TensorRT: ranges measured on photographs, SmoothQuant, and whole exports."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from blip2rt.bundle import read
from blip2rt_export import targets
from blip2rt_export.checks import calibration
from blip2rt_export.checks.sessions import session
from blip2rt_export.checks.verify import Verifier
from blip2rt_export.graphs import trace
from blip2rt_export.precision import smoothquant
from blip2rt_export.precision.activations import Range
from blip2rt_export.precision.quantizer import BlockFormat, Quantizer
from blip2rt_export.trt.precision import quantizable
from tests.export.commands_in_process import export
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2

pytestmark = pytest.mark.long(8, "calibration over batches of a traced graph")

SEED = seed_of(__name__)


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_int8_is_verified_on_other_photographs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bytes]] = {}  # graph -> pixels or features that it is calibrated or verified on
    ranges, compare = calibration.batch_ranges, Verifier.compare

    def record(key: str, inputs: Any) -> None:
        seen.setdefault(key, set()).update(row.tobytes() for row in next(iter(inputs.values())))

    def recorded_ranges(model: Any, folder: Path, part: str, batches: Any) -> Any:
        batches = list(batches)
        for batch in batches:
            record(f"{part} calibrated", batch)
        return ranges(model, folder, part, batches)

    def recorded_compare(verifier: Any, part: str, inputs: Any, want: Any) -> Any:
        record(part, inputs)
        return compare(verifier, part, inputs, want)

    monkeypatch.setattr(calibration, "batch_ranges", recorded_ranges)
    monkeypatch.setattr(Verifier, "compare", recorded_compare)
    images = tmp_path / "images"
    images.mkdir()
    for number, image in enumerate(tiny_blip2.photographs(9, np.random.default_rng(SEED))):
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(images / f"{number}.png")
    torch.manual_seed(SEED)
    checkpoint = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS[name]())
    more = ("--target", "trt", "--calibration", images)
    out = export(checkpoint, tmp_path / "bundle", *more, precision="vision=int8,qformer=int8,llm=int8")
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    for part in ("vision", "qformer"):
        calibrated = seen[f"{part} calibrated"]
        assert len(calibrated) == 6 and len(seen[part]) == 3 and not calibrated & seen[part], part
    checks = {check.component: check for check in read(out).manifest.verification}
    for part in ("vision", "qformer", "llm"):
        assert checks[part].precision == "int8-static" and 0.95 < checks[part].cosine < 1
    assert checks["all"].precision == "int8-static/int8-static/int8-static"


class Two(torch.nn.Module):
    """Two products of one operand, some of whose channels are 200 times as large as others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(48, 20), torch.nn.Linear(48, 33)
        self.gain = torch.ones(48)
        self.gain[[3, 17]] = 200.0

    def operand(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (48,)) * self.gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.first(self.operand(x)), self.second(self.operand(x))), -1)


def test_smoothing_moves_outliers_into_weights(tmp_path: Path) -> None:
    torch.manual_seed(SEED)
    x, module = np.random.default_rng(SEED).normal(size=(5, 7, 48)).astype(np.float32), Two()
    part = trace.GraphSpec("p", module, {"x": torch.from_numpy(x)}, ["y"], {"x": {0: "B", 1: "S"}})
    model = trace.trace(part, targets.TRT.opset)
    ranges = calibration.batch_ranges(model, tmp_path, "p", [{"x": x[:2]}, {"x": x[2:]}])
    [found] = ranges.values()
    seen = module.operand(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found.lows, seen.min((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(found.highs, seen.max((0, 1)), rtol=1e-4)
    means = np.abs(seen[:2]).mean((0, 1)) + np.abs(seen[2:]).mean((0, 1))
    np.testing.assert_allclose(found.means, means / 2, rtol=1e-4)

    def answer(model: trace.ir.Model) -> np.ndarray:
        return session(trace.ir.to_proto(model).SerializeToString(), fused=False).run(None, {"x": x})[0]

    want, smoothed = answer(model), model.clone()
    [better] = smoothquant.apply(smoothed, [node for node, _ in quantizable(smoothed)], ranges).values()
    assert (better.high - better.low) / better.mean < (found.high - found.low) / found.mean / 3
    np.testing.assert_allclose(answer(smoothed), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    errors = []
    for smooth in (True, False):
        int8 = model.clone()
        with pytest.MonkeyPatch.context() as patch:
            if not smooth:  # one scale for all channels
                patch.setattr(smoothquant, "_scales", lambda seen, nodes: np.ones(48, np.float32))
                patch.setattr(smoothquant, "MAX_RANGE", np.inf)
            targets.TRT.apply(int8, "int8-static", Quantizer(BlockFormat(32), ranges=ranges))
        assert sum(node.op_type == "QuantizeLinear" for node in int8.graph) == 1
        errors.append(np.abs(answer(int8) - want).mean())
    assert errors[0] < 0.5 * errors[1], errors


def test_products_with_outliers_stay_float16() -> None:
    """One value is a thousand times as large as the others, which a common grid would round to 0."""
    example = {"x": torch.zeros(2, 64)}
    model = trace.trace(trace.GraphSpec("p", torch.nn.Linear(64, 64), example, ["y"], {"x": {0: "B"}}))
    seen = Range(*np.array([[0.0], [3000.0], [1.0]]), 1.0)
    targets.TRT.apply(model, "int8-static", Quantizer(BlockFormat(32), ranges={"x": seen}))
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph}
