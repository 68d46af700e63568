"""`blip2rt-convert BUNDLE --to ours` recovers the checkpoints that a bundle was exported from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import blip2rt
from blip2rt.bundle import Calibration, Logistic, read
from blip2rt.matching.pool import read_pool
from blip2rt.modeling.blip2 import Blip2Config, TrainableModel
from blip2rt.modeling.checkpoint import Checkpoint, save_model
from blip2rt.modeling.quantize import round_weights
from blip2rt.modeling.vision import VisionEncoder
from blip2rt_export import bundle_extras
from tests.export.both_stages import Made
from tests.export.commands_in_process import FLOAT, convert, export
from tests.seeds import new_seed
from tests.tiny.bundle import calibrated, with_pool

pytestmark = pytest.mark.long(40, "bundle to checkpoint and back, whole")


@pytest.mark.parametrize(("bundle", "bits"), [("exact", {}), ("small", {1: 4, 2: 8})])
def test_bundle_converts_back_to_its_checkpoints(
    made: Made, bundle: str, bits: dict[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = with_extras(made.small, tmp_path / "extras") if bundle == "small" else made.exact
    ours = convert(source, tmp_path / "ours", "--to", "ours")
    folders = [ours / f"stage{stage}" for stage in (1, 2)]
    assert capsys.readouterr().out.split() == [str(folder) for folder in folders]
    for stage, source, folder in zip((1, 2), (made.stage1, made.stage2), folders, strict=True):
        assert Checkpoint(folder).config == Checkpoint(source).config
        wanted, got = (Checkpoint(path).load(vision=False, llm=False) for path in (source, folder))
        if bits:
            round_weights(wanted, bits[stage], 64)
            if bits[stage] == 8:  # other large constants are then fp16
                wanted.vision_positions.data = wanted.vision_positions.data.half().float()
        theirs, ours = wanted.state_dict(), got.state_dict()
        compared = [name for name in theirs if not name.startswith("lm_head.")]  # not in any graph
        for name in compared:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, msg=f"stage {stage}: {name}")
        assert len(compared) > 40
    # Exporting again gives the same bundle, except in 8 bits, whose scales are not reproduced.
    precision = FLOAT if bundle == "exact" else "vision=fp16,qformer=int8w"
    export(folders[1], tmp_path / "again", "--retrieval-checkpoint", folders[0], precision=precision)
    for data in ("retrieval.data", *(["qformer.data", "llm.data"] if bundle == "exact" else [])):
        assert (tmp_path / "again" / data).read_bytes() == (getattr(made, bundle) / data).read_bytes(), data
    if bundle == "small":
        assert_extras(folders, tmp_path / "again", made.stage2)


CALIBRATION = Calibration(phrase=Logistic(0.5, {"cosine": 2.0}), caption=Logistic(0.1, {"score": 1.0}))


def with_extras(bundle: Path, path: Path) -> Path:
    """A copy with a pool and calibrated probabilities."""
    shutil.copytree(bundle, path)
    return with_pool(calibrated(path, CALIBRATION), ["a dog runs", "a cat sits on the grass"])


def assert_extras(stages: list[Path], exported: Path, finetuned: Path) -> None:
    """An export has the extras again, except those that do not fit a finetuned language side or other graphs."""
    manifest = read(exported).manifest
    assert manifest.calibration == CALIBRATION and manifest.retrieval is not None
    assert manifest.retrieval.pool == "captions.pool"
    read_pool(exported / "captions.pool", blip2rt.load(exported, threads=1).pipeline)  # refuses another model's
    plan: Any = SimpleNamespace(stage1=Checkpoint(stages[0]), stage2=Checkpoint(finetuned))
    bare = replace(manifest, calibration=None, retrieval=replace(manifest.retrieval, pool=None))
    restored, [note] = bundle_extras.restore(plan, bare, exported)
    assert restored.calibration == replace(CALIBRATION, caption=None) and "blip2rt-train calibrate" in note
    other = {**bare.components, "vision": replace(bare.components["vision"], precision="fp32")}
    restored, [note] = bundle_extras.restore(plan, replace(bare, components=other), exported)
    assert restored.calibration is None and "vision is fp32, not fp16: give --precision" in note


@torch.no_grad()
def test_trained_encoder_is_recovered(made: Made, tmp_path: Path) -> None:
    """Its batch norms are folded into its convolutions, as in the graph."""
    config = Checkpoint(made.stage2).config
    trained = TrainableModel(Blip2Config(vision=config.vision, vision_trained=True))
    trained.vision = VisionEncoder(config.vision)
    for name, values in trained.vision.state_dict().items():
        if values.is_floating_point():
            values.mul_(1 + 0.1 * torch.rand_like(values))
            if name.endswith(("bias", "running_mean")):
                values.add_(0.1 * torch.randn_like(values))
    model = Checkpoint(made.stage2).load(vision=False, llm=False)
    model.config = replace(config, vision=replace(config.vision, weights=str(tmp_path / "was")))
    for name, each in (("was", trained), ("stage2", model)):
        (tmp_path / name).mkdir()
        save_model(each, tmp_path / name)
    precision = "vision=int8w,qformer=fp32,llm=fp32"
    export(tmp_path / "stage2", tmp_path / "b", precision=precision)
    shutil.rmtree(tmp_path / "was")
    ours = convert(tmp_path / "b", tmp_path / "ours", "--to", "ours")
    got = Checkpoint(ours / "stage2").load(llm=False)
    assert got.config.vision.weights == str(ours / "encoder")
    pixels = np.random.default_rng(new_seed()).normal(size=(2, 3, 64, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "b" / "vision.onnx")
    [wanted] = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(got.vision_features(torch.from_numpy(pixels)), wanted, atol=1e-3 * np.abs(wanted).max())
    exact = trained.vision(torch.from_numpy(pixels)).numpy()
    assert np.corrcoef(exact.ravel(), wanted.ravel())[0, 1] > 0.99
    export(ours / "stage2", tmp_path / "again", precision=precision)
    assert (tmp_path / "again" / "stage2.json").read_bytes() == (tmp_path / "b" / "stage2.json").read_bytes()


def test_unsuitable_bundles_are_rejected(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = tmp_path / "without"
    shutil.copytree(made.exact, without)
    manifest = json.loads((without / "blip2rt.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if not name.startswith("stage")}
    (without / "blip2rt.json").write_text(json.dumps(manifest))
    for source, to, said in (
        (without, "ours", "has no config of its checkpoint"),
        (made.exact, "hf", "give --to ours"),
        (made.stage2, "ours", "is not a bundle"),
        (made.exact, "theirs", "choose from hf, ours"),
    ):
        convert(source, tmp_path / "out", "--to", to, status=2)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
        assert not (tmp_path / "out").exists()
