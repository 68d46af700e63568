"""OpenVINO runs vision and qformer like ONNX Runtime: the graphs are plain ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")

from blip2rt_export.checks.sessions import session
from tests.export.commands_in_process import export
from tests.seeds import seed_of
from tests.tiny import blip2 as tiny_blip2

pytestmark = pytest.mark.slow

SEED = seed_of(__name__)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-dynamic", "int8w", "int4"])
def test_vision_and_qformer_run(precision: str, llama_checkpoint: Path, tmp_path: Path) -> None:
    chosen = {"vision": "fp32" if precision == "int4" else precision, "qformer": precision, "llm": "fp32"}
    export(llama_checkpoint, tmp_path / "bundle", "--no-verify", precision=",".join(map("=".join, chosen.items())))
    size = tiny_blip2.VISION["image_size"]
    given = {"pixels": np.random.default_rng(SEED).normal(size=(2, 3, size, size)).astype(np.float32)}
    for name in ("vision", "qformer"):
        graph = tmp_path / "bundle" / f"{name}.onnx"
        names = [value.name for value in session(graph, 1).get_outputs()]
        want = dict(zip(names, session(graph, 1).run(None, given), strict=True))
        config = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(graph), "CPU", config)
        got = compiled(given)
        for output in names:
            error = np.abs(got[output] - want[output]).max() / np.abs(want[output]).max()
            assert error < (1e-4 if precision in ("fp32", "fp16") else 0.1), f"{name}: {output}"
        given = {"vision_features": want["vision_features"]} if name == "vision" else {}
