"""Graphs whose outputs are not what they declare: a fault of the bundle, in Python and C, with each runtime."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blip2rt
from blip2rt.errors import Blip2rtError, BundleError
from tests.c.library import CError, CModel
from tests.tiny.bundle import CALIBRATION, Tiny, calibrated, with_likelihood_weight, with_nodes

IMAGE = np.zeros((9, 9, 3), np.uint8)
CASES = {
    "text_embed of one row": ("text_embed", "text_embeds", "text_embeds = Slice(made, zero, one, zero)"),
    "text_embed of no row": ("text_embed", "text_embeds", "text_embeds = Slice(made, zero, zero, zero)"),
    "text_embed without width": ("text_embed", "text_embeds", "text_embeds = Slice(made, zero, zero, one)"),
    "text_embed narrowed": ("text_embed", "text_embeds", "text_embeds = Slice(made, zero, two, one)"),
    "text_embed as a scalar": ("text_embed", "text_embeds", "text_embeds = ReduceSum <keepdims = 0> (made)"),
    "itm of one column": ("itm", "itm_logits", "itm_logits = Slice(made, zero, one, one)"),
    "flat image_embed": ("image_embed", "image_embeds", "image_embeds = Reshape(made, last)"),
    "vision of no position": ("vision", "vision_features", "vision_features = Slice(made, zero, zero, one)"),
    "qformer of one query": ("qformer", "prefix_embeds", "prefix_embeds = Slice(made, zero, one, one)"),
    "embed of no token": ("embed", "token_embeds", "token_embeds = Slice(made, zero, zero, one)"),
    "llm of no row": ("llm", "logits", "logits = Slice(made, zero, zero, zero)"),
}


@pytest.fixture(params=CASES)
def case(request: Any, tiny: Tiny, tmp_path: Path) -> tuple[Path, str]:
    component, output, nodes = CASES[request.param]
    folder = calibrated(with_likelihood_weight(tiny, tmp_path / "altered", 0.4), CALIBRATION)
    return with_nodes(folder, component, output, nodes), component


def faults(calls: list[Callable[[], Any]], kind: type[Exception]) -> list[Exception]:
    """What the calls raise. All of them fail or return, with a line."""
    found = []
    for call in calls:
        try:
            call()
        except kind as error:
            assert str(error).isprintable()
            found.append(error)
    return found


@pytest.mark.parametrize("runtime", ["ort", "core"])
def test_python_raises_a_bundle_error(case: tuple[Path, str], runtime: str) -> None:
    folder, component = case
    model = blip2rt.load(folder, backend=runtime, threads=1)
    calls: list[Callable[[], Any]] = [
        lambda: model.caption([IMAGE, IMAGE]),
        lambda: model.ask(IMAGE, "what?"),
        lambda: model.chat(IMAGE).ask("what?"),
        lambda: model.match([IMAGE] * 3, ["a dog", "a cat", "a man"]),
        lambda: model.sees([IMAGE, IMAGE], ["a dog", "a cat"]),
        lambda: model.tag(IMAGE, ["dog", "cat", "man"]),
        lambda: model.embed_image([IMAGE, IMAGE]),
        lambda: model.embed_text(["a dog", "a cat"]),
    ]
    found = faults(calls, Blip2rtError)
    assert found and all(isinstance(each, BundleError) and f"{component}.onnx" in str(each) for each in found), found


@pytest.mark.parametrize("runtime", ["onnxruntime", "core"])
def test_c_reports_a_model_error(case: tuple[Path, str], runtime: str) -> None:
    folder, component = case
    model = CModel(folder, runtime=runtime, threads=1)
    calls: list[Callable[[], Any]] = [
        lambda: model.use(IMAGE),
        lambda: model.caption(num_captions=2),
        lambda: model.ask("what?"),
        lambda: model.chat_ask(model.chat(), "what?"),
        lambda: model.match("a dog"),
        lambda: model.sees("a dog"),
        lambda: model.tag(["dog", "cat", "man"]),
        lambda: model.choose("who?", ["a dog", "a cat"]),
        model.embed,
        lambda: model.embed("a dog"),
    ]
    if component == "vision":
        del calls[1:]  # without features, the other calls report wrong arguments
    found = faults(calls, CError)
    assert found and all(each.kind == "model" and f"{component}.onnx" in str(each) for each in found), found
    model.close()


def test_a_bundle_whose_embeddings_have_no_declared_width_is_rejected(tiny: Tiny, tmp_path: Path) -> None:
    import json

    folder = Path(shutil.copytree(tiny.path, tmp_path / "free"))
    manifest = json.loads((folder / "blip2rt.json").read_text())
    manifest["components"]["text_embed"]["outputs"][0]["shape"][1] = "E"
    manifest.pop("manifest_sha256", None)
    (folder / "blip2rt.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="axis 2 of image_embeds is 4, but text_embed writes text_embeds"):
        blip2rt.load(folder)
