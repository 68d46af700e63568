"""Checkpoint -> `blip2rt-export --target trt` -> `blip2rt-build --check`: every graph builds without a GPU."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx: pip install 'blip2rt[trt-check]'")
transformers = pytest.importorskip("transformers")

import blip2rt
from blip2rt import build
from blip2rt.bundle import read
from blip2rt.errors import BackendError
from export import cli
from tests import tiny_blip2, tiny_parts


def text_config(name: str):
    if name != "t5":
        return tiny_blip2.TEXT_CONFIGS[name]()
    return transformers.T5Config(
        vocab_size=tiny_blip2.VOCAB, d_model=48, d_kv=16, d_ff=72, num_layers=2, num_decoder_layers=2, num_heads=4,
        decoder_start_token_id=0, bos_token_id=1, eos_token_id=1, pad_token_id=0, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["opt", "llama", "t5"])
def test_every_graph_builds(name: str, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    source = tiny_blip2.generative(tmp_path / "hf", text_config(name))
    tiny_parts.caption_table(tmp_path, images=12)
    arguments = ["--ckpt", str(source), "--out", str(tmp_path / "bundle"), "--target", "trt"]
    if precision == "int8":
        groups = ",".join(f"{group}=int8" for group in ("vision", "qformer", "llm"))
        arguments += ["--calib", str(tmp_path / "images"), "--precision", groups]
    assert cli.main(arguments) == 0
    manifest = read(tmp_path / "bundle").manifest
    stored = "int8-static" if precision == "int8" else "fp16"
    assert manifest.target == "trt" and manifest.components["llm"].precision == stored
    assert build.main([str(tmp_path / "bundle"), "--check", "--capacity", "64"]) == 0
    said = capsys.readouterr().err
    assert all(f"{component}: a plan" in said for component in manifest.components)
    with pytest.raises(BackendError, match="exported for trt"):
        blip2rt.load(tmp_path / "bundle").caption(tmp_path / "images" / "0.jpg")
