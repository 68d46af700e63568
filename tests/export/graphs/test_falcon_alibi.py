"""Falcon's linear biases, which its own code rounds to bfloat16, against transformers."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from onnx import numpy_helper

from blip2rt_export import targets
from blip2rt_export.checks import verify
from blip2rt_export.graphs import alibi
from blip2rt_export.language import trace_graphs
from blip2rt_export.precision import storage
from tests.engines.native.reference import Case, export, undecided
from tests.seeds import seed_of
from tests.tiny.language_models import write

pytestmark = pytest.mark.long(60, "ALiBi's graphs, traced and run in each precision")

SEED = seed_of(__name__)
HEADS, WIDTH, VOCAB, ROOM = 6, 16, 83, 640  # for 6 heads slopes follow another series than for powers of two
FALCON = importlib.import_module(transformers.FalconForCausalLM.__module__)
BUILD = FALCON.build_alibi_tensor
EXACT = 1e-5  # of the largest logit; measured 1.9e-6 in 135 models; unrounded biases give 9e-3 or more
VARIANTS: dict[str, dict[str, Any]] = {
    "one head of keys": {"multi_query": True},
    "all heads": {"multi_query": False, "parallel_attn": False, "bias": True},
    "new heads": {"new_decoder_architecture": True, "num_kv_heads": 2},
}


def falcon(variant: str, seed: int, attention: str = "sdpa") -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": HEADS * WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 2, "vocab_size": VOCAB}
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    options = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 1024, **VARIANTS[variant]}
    config = transformers.FalconConfig(alibi=True, **sizes, **tokens, **options)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.15)
    model.generation_config = transformers.GenerationConfig()
    return model


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_rounded_biases_match_transformers(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 cannot represent all positions beyond 256."""
    for seed in (SEED, SEED + 1):
        model = falcon(variant, seed)
        graphs = write(trace_graphs(targets.ORT, model, ROOM), tmp_path / str(seed), targets.ORT)
        rng = np.random.default_rng(seed)
        rows = [rng.normal(size=(length, HEADS * WIDTH)).astype(np.float32) for length in (250, 601, 390)]
        tokens, got = graphs.run(rows)
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation(attention)
            want = verify.llm_logits(model, rows, tokens, None)
            assert np.abs(got - want).max() < EXACT * np.abs(want).max(), f"seed {seed}, {attention}"
        with monkeypatch.context() as patch:
            patch.setattr(FALCON, "build_alibi_tensor", unrounded)
            other = verify.llm_logits(model, rows, tokens, None)
        assert np.abs(got - other).max() > 100 * EXACT * np.abs(want).max(), "rounding must matter here"


def unrounded(attention_mask: Any, num_heads: int, dtype: Any) -> Any:
    """The same slopes times exact positions."""
    places = (attention_mask.cumsum(-1) - 1) * attention_mask
    slopes = BUILD(torch.ones(1, 2, dtype=torch.int64), num_heads, dtype)[:, 0, 1]  # of position 1, exact in bfloat16
    return (slopes[None, :, None] * places[:, None]).reshape(-1, 1, attention_mask.shape[1])


@pytest.mark.parametrize("precision", ["fp16", "int8w", "int4"])
def test_biases_are_never_quantized(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_MIN_INT8_SIZE", 100)  # weights of a tensor that is worth int8
    model = falcon("new heads", SEED)
    graphs = write(trace_graphs(targets.ORT, model, ROOM), tmp_path, targets.ORT, precision)
    known = [numpy_helper.to_array(tensor) for tensor in onnx.load(graphs.llm).graph.initializer]
    table = alibi.rounded_biases(model, ROOM)
    assert table is not None and any(np.array_equal(each, table.numpy()) for each in known)


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_padded_batch_matches_generate(variant: str, num_beams: int, tmp_path: Path) -> None:
    """After an image of 300 positions: transformers counts a row's positions without its padding."""
    model = falcon(variant, SEED + 2)
    model.get_output_embeddings().weight.data.mul_(3)  # clear preferences: few near ties
    rng = np.random.default_rng(SEED)
    prefix = rng.normal(size=(3, 300, HEADS * WIDTH)).astype(np.float32)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in (2, 0, 9)]
    case = Case(model, export(model, tmp_path), prefix, prompts, SEED)
    options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": 8, "eos_token_ids": []}
    table = model.get_input_embeddings()
    rows = [
        torch.cat((torch.from_numpy(prefix[i]), table(torch.tensor(ids, dtype=torch.int64))))
        for i, ids in enumerate(prompts)
    ]
    longest = max(map(len, rows))
    padded = torch.stack([torch.cat((torch.ones(longest - len(row), row.shape[1]), row)) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    decoding = {"do_sample": False, "num_beams": num_beams, "max_new_tokens": 8, "pad_token_id": 0}
    want = model.generate(inputs_embeds=padded, attention_mask=mask, **decoding)
    got = case.generator.generate(prefix, prompts, options)
    for image, row in enumerate(want.tolist()):
        assert got[image][0][0] == row or undecided(case, image, options, [row]), f"seed {SEED}, image {image}"
