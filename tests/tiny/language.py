"""Tiny random language models of transformers, of every family, and their graphs in files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers

from export import targets
from export.checks.verify import LlmGraphs
from export.graphs import trace
from export.precision.rounding import Blocks, Rounding

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97,
         "max_position_embeddings": 64}  # fmt: skip
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(
        intermediate_size=96, num_key_value_heads=2, tie_word_embeddings=True, **SMALL
    ),
    "narrow": lambda: transformers.LlamaConfig(  # heads of 8: too narrow for the op to rotate
        **{**SMALL, "num_attention_heads": 8}, intermediate_size=96, num_key_value_heads=2
    ),
    "opt": lambda: transformers.OPTConfig(ffn_dim=96, word_embed_proj_dim=64, dropout=0.0, **SMALL),
    "qwen2": lambda: transformers.Qwen2Config(intermediate_size=96, num_key_value_heads=1, **SMALL),
    "mistral": lambda: transformers.MistralConfig(
        intermediate_size=96, num_key_value_heads=2, sliding_window=4, **SMALL
    ),
    "gemma": lambda: transformers.GemmaConfig(intermediate_size=96, num_key_value_heads=1, head_dim=16, **SMALL),
    "gemma2": lambda: transformers.Gemma2Config(  # soft caps of scores and logits, every second layer with a window
        intermediate_size=96,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=20,
        sliding_window=4,
        attn_logit_softcapping=0.5,
        final_logit_softcapping=3.0,
        **SMALL,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(  # norms of queries and keys, two rotations
        intermediate_size=96,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=20,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        **SMALL,
    ),
    "qwen3": lambda: transformers.Qwen3Config(intermediate_size=96, num_key_value_heads=2, head_dim=24, **SMALL),
}
T5_VOCAB, T5_WIDTH = 89, 48
T5_SMALL = {
    "vocab_size": T5_VOCAB, "d_model": T5_WIDTH, "d_kv": 16, "d_ff": 72, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 4, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip
T5_CONFIGS = {
    "flan": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "tied": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
}


def build(name: str, seed: int) -> Any:
    """A model whose biases and norms are no longer 0 and 1: nothing hides behind that."""
    torch.manual_seed(seed)
    if name in T5_CONFIGS:
        config = transformers.T5Config(**T5_SMALL, **T5_CONFIGS[name])
        model, spread = transformers.T5ForConditionalGeneration(config).eval(), 0.1
    else:
        # Not sdpa, which in transformers 4 leaves out Gemma 2's soft cap.
        made = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager")
        model, spread = made.eval(), 0.05
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * spread)
    return model


def write(
    traced, folder: Path, target: targets.Target, precision: str = "fp32", ranges=None, block: int = 32
) -> LlmGraphs:
    """The graphs of a language model, name and graph, as a bundle holds them."""
    folder.mkdir(exist_ok=True)
    with contextlib.closing(trace.DataFile(folder, "llm.data")) as data:
        for name, graph in traced:
            target.apply(graph, precision, Rounding(Blocks(block), data.keep), (ranges or {}).get(name, {}))
            trace.save(graph, folder / f"{name}.onnx", data)
    encoder = folder / "encoder.onnx"
    known = encoder.exists()
    start = 0 if known else None
    assert nothing_unread(folder), precision
    return LlmGraphs(folder / "llm.onnx", folder / "embed.onnx", encoder if known else None, start, target.open)


def nothing_unread(folder: Path) -> bool:
    """Whether the data file holds tensors of the graphs and no others."""
    pieces = set()
    for path in folder.glob("*.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if where:
                pieces.add((int(where["offset"]), int(where["length"])))
    aligned = sum(-(-length // 64) * 64 for _, length in pieces)
    return 0 <= aligned - (folder / "llm.data").stat().st_size < 64
