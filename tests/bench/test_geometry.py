"""Bundles of random weights in real geometries, and the transformers peer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import blip2rt
from blip2rt._native import processor_kernels
from blip2rt.bench import collect, geometry
from blip2rt.bench.cli import main, picture
from blip2rt.bench.stages import Workload
from blip2rt.bundle import MANIFEST, read
from tests.engines.native import Session, runtime

pytestmark = pytest.mark.long(50, "a geometry becomes a bundle that captions")


def test_revision_invalidates_cached_bundles(tmp_path, monkeypatch):
    made = []

    def make(geometry, path, precision, target):
        path.mkdir()
        (path / MANIFEST).touch()
        made.append(path)

    monkeypatch.setattr(geometry, "_exporter", lambda geometry: SimpleNamespace(make=make))
    old = tmp_path / f"tiny-{blip2rt.__version__}-llm-int4"
    make("tiny", old, "", "ort")
    first = geometry.bundle("tiny", "llm=int4", tmp_path)
    assert geometry.bundle("tiny", "llm = int4", tmp_path) == first
    monkeypatch.setattr(geometry, "REVISION", geometry.REVISION + 1)
    assert made == [old, first] and geometry.bundle("tiny", "llm=int4", tmp_path) == made[2] != first


@pytest.fixture(scope="module")
def tiny_geometry(tmp_path_factory):
    """The bundle as the command creates it, and its cache."""
    pytest.importorskip("onnxscript")
    cache = tmp_path_factory.mktemp("cache")
    return geometry.bundle("tiny", "vision=int8-dynamic,qformer=int8-dynamic,llm=int4", cache), cache


def test_synthetic_bundle_is_complete_and_captions(tiny_geometry, photo):
    from blip2rt.bundle import verify

    path, cache = tiny_geometry
    manifest = verify(path).manifest
    precisions = {name: component.precision for name, component in manifest.components.items()}
    int8 = dict.fromkeys(("vision", "qformer", "attention"), "int8-dynamic")
    assert precisions == {**int8, "llm": "int4", "embed": "int4"}
    scored = blip2rt.load(path).caption(photo(), num_beams=1, min_new_tokens=5, max_new_tokens=5, scores=True)
    assert np.isfinite(scored.score)
    assert geometry.bundle("tiny", "vision=int8-dynamic,qformer=int8-dynamic,llm=int4", cache) == path, "it is cached"


def test_exported_graphs_use_every_kernel(tiny_geometry):
    path, _ = tiny_geometry
    found = {
        kernel
        for name in ("vision", "llm")
        for kernel in Session(runtime(), str(path / f"{name}.onnx"), 1, custom_int8=name == "vision").custom_kernels
    }
    assert found == set(processor_kernels())
    assert {kernel for kernel in found if kernel.startswith("int8 ")} <= set(
        blip2rt.load(path).pipeline.backend._session("qformer").custom_kernels
    )


def test_only_the_tied_table_is_shared(tiny_geometry):
    """Embedding table and head are stored once, as in a real export."""
    onnx = pytest.importorskip("onnx")
    path, _ = tiny_geometry
    places = {}
    for name in ("llm", "embed"):
        for tensor in onnx.load(path / f"{name}.onnx", load_external_data=False).graph.initializer:
            if tensor.name.endswith(".codes"):
                places[f"{name}:{tensor.name}"] = {e.key: e.value for e in tensor.external_data}["offset"]
    shared = [name for name in places if list(places.values()).count(places[name]) > 1]
    assert len(shared) == 2 and {name.partition(":")[0] for name in shared} == {"llm", "embed"}
    assert len(places) > 8


def test_random_blocks_have_the_scale_of_weights():
    torch = pytest.importorskip("torch")
    from blip2rt.modeling.quantize import dequantize_blockwise
    from blip2rt_export.synthetic import RandomBlocks

    for bits in (4, 8):
        values = dequantize_blockwise(RandomBlocks(None)("w", (64, 200), lambda: torch.empty(0), bits, 64))
        assert values.shape == (64, 200)
        assert values.std().item() == pytest.approx(0.02, rel=0.1) and abs(values.mean().item()) < 0.003


def test_transformers_peer_has_the_same_shapes(tiny_geometry, tmp_path):
    """Its random model has the shapes of ours."""
    pytest.importorskip("transformers")
    path, cache = tiny_geometry
    config = geometry.config("tiny", cache)
    work = Workload(str(path), str(picture(tmp_path / "p.jpg")), new_tokens=3, repeat=1)
    plan = collect.Plan(work, "tiny", (), str(config))
    got = collect._peer(plan, "hf-bf16")
    assert "error" not in got, got
    assert set(got["stages"]) == {"image", "vision", "qformer", "first token", "caption", "decode step"}
    import torch

    from blip2rt.bench.torch_peer import build, queries

    model, manifest = build(str(config), torch.float32), read(path).manifest
    with torch.no_grad():
        features = model.vision_model(
            pixel_values=torch.zeros(1, 3, manifest.image.height, manifest.image.width)
        ).last_hidden_state
        prefix = queries(model, features)
    ours = manifest.components
    assert tuple(features.shape[1:]) == tuple(ours["vision"].outputs[0].shape[1:])
    assert tuple(prefix.shape[1:]) == tuple(ours["qformer"].outputs[1].shape[1:])
    assert torch.isfinite(prefix).all()


def test_wrong_precision_is_one_line(capsys, tmp_path):
    pytest.importorskip("onnxscript")
    code = main(["--geometry", "tiny", "--cache", str(tmp_path), "--precision", "llm=int5"])
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    assert "llm=int5" in err.splitlines()[-1] and "Traceback" not in err
