"""A bundle as 0.1 wrote it keeps loading: without the fields and the files that came later."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import blip2rt
from blip2rt.bundle import MANIFEST, verify

# Written by 0.1's exporter: a tiny Llama in int4, with heads of 12 that its graph pads.
WRITTEN = Path(__file__).parents[2] / "corpus" / "bundle_0_1"
# The fields of the manifest in release 0.1.
TOP = "format format_version name created_by components image llm retrieval prompts decoding question sources".split()
TOP += ["verification", "files", "target"]
LLM = "layers kv_heads head_dim hidden_size vocab_size max_positions prefix_length bos_token_id prepend_bos".split()
LLM += "eos_token_ids pad_token_id tokenizer add_special_tokens empty_prompt_ids encoder_decoder".split()
LLM += ["decoder_start_token_id", "image_token_id", "clean_up_tokenization_spaces"]
RETRIEVAL = "tokenizer max_text_length pad_token_id temperature itm_weight clean_captions".split()
COMPONENTS = "vision qformer llm embed image_embed text_embed itm".split()


@pytest.fixture
def old_bundle(tiny: Any, tmp_path: Path) -> Path:
    shutil.copytree(tiny.path, tmp_path / "old")
    file = tmp_path / "old" / MANIFEST
    manifest = json.loads(file.read_text())
    old = {key: value for key, value in manifest.items() if key in TOP}
    old |= {"created_by": "blip2rt 0.1.0", "format_version": 1}
    old["llm"] = {key: value for key, value in manifest["llm"].items() if key in LLM}
    old["retrieval"] = {key: value for key, value in manifest["retrieval"].items() if key in RETRIEVAL}
    old["components"] = {key: value for key, value in manifest["components"].items() if key in COMPONENTS}
    file.write_text(json.dumps(old, indent=2))
    return tmp_path / "old"


def test_a_bundle_of_0_1_gives_the_same_answers(tiny: Any, old_bundle: Path, photo: Any) -> None:
    image = photo()
    with blip2rt.load(tiny.path) as new, blip2rt.load(old_bundle) as old:
        assert old.caption(image) == new.caption(image)
        assert old.ask(image, "what is it?") == new.ask(image, "what is it?")
        assert old.match(image, "a dog runs").cosine == new.match(image, "a dog runs").cosine
        assert (old.embed_image(image) == new.embed_image(image)).all()
        assert [str(piece) for piece in old.stream(image)] == [str(piece) for piece in new.stream(image)]


def test_a_bundle_that_0_1_wrote_captions(photo: Any) -> None:
    onnx = pytest.importorskip("onnx")
    kinds = {node.op_type for node in onnx.load(WRITTEN / "llm.onnx", load_external_data=False).graph.node}
    assert {"Pad", "GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MatMulNBits"} <= kinds
    verify(WRITTEN)
    with blip2rt.load(WRITTEN, threads=1) as model:
        assert model.caption(photo(), max_new_tokens=5)
        assert len(model.caption(photo(), num_beams=3, num_captions=3)) == 3
