"""Tiny language models of every family that is exported, as configs of transformers.

All tests take them from here: a graph of one size is traced once for all (tests/tiny/trace_cache.py).
Matrices are of whole blocks of 64 weights, as the int4 of both targets wants them.
"""

from __future__ import annotations

from typing import Any

import transformers

from . import training

WORDS = [*training.WORDS, "photo", "of", "Question", "Answer", "Short", "answer", ":", "?", "what", "colour"]
SPECIAL = ["<pad>", "</s>", "<s>", "<unk>"]
IMAGE = len(SPECIAL) + len(WORDS)  # the id of <image>, which processors add
VOCAB = IMAGE + 6
HIDDEN = 64

_SMALL = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB,
          "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 96}  # fmt: skip
_GATED = {"intermediate_size": 128, **_SMALL}
_CAPPED = {"query_pre_attn_scalar": 20, "sliding_window": 4, "head_dim": 16, "num_key_value_heads": 2}
_T5 = {
    "vocab_size": VOCAB, "d_model": HIDDEN, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "dropout_rate": 0.0,
    "decoder_start_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip

CONFIGS: dict[str, Any] = {
    "opt": lambda: transformers.OPTConfig(ffn_dim=128, word_embed_proj_dim=HIDDEN, dropout=0.0, **_SMALL),
    "wide": lambda: transformers.OPTConfig(  # more words than the graphs of the target trt choose among
        ffn_dim=128, word_embed_proj_dim=HIDDEN, dropout=0.0, **{**_SMALL, "vocab_size": 97}
    ),
    "llama": lambda: transformers.LlamaConfig(num_key_value_heads=2, **_GATED),
    "narrow": lambda: transformers.LlamaConfig(  # heads of 8: too narrow for the op to rotate
        num_key_value_heads=2, **{**_GATED, "num_attention_heads": 8}
    ),
    "qwen2": lambda: transformers.Qwen2Config(num_key_value_heads=1, tie_word_embeddings=True, **_GATED),
    "qwen3": lambda: transformers.Qwen3Config(num_key_value_heads=2, head_dim=24, **_GATED),
    "mistral": lambda: transformers.MistralConfig(num_key_value_heads=2, sliding_window=4, **_GATED),
    "gemma": lambda: transformers.GemmaConfig(num_key_value_heads=1, head_dim=16, **_GATED),
    "gemma2": lambda: transformers.Gemma2Config(  # soft caps of scores and logits, every second layer with a window
        attn_logit_softcapping=2.0, final_logit_softcapping=6.0, **_CAPPED, **_GATED
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(  # norms of queries and keys, two rotations
        layer_types=["sliding_attention", "full_attention"], **_CAPPED, **_GATED
    ),
    "t5": lambda: transformers.T5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **_T5),
    "tied": lambda: transformers.T5Config(
        feed_forward_proj="relu", tie_word_embeddings=True, num_decoder_layers=3, **_T5
    ),
}

MORE: dict[str, Any] = {  # which slow tests alone look at
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_GATED),  # its tensors are renamed
    "falcon": lambda: transformers.FalconConfig(hidden_dropout=0.0, attention_dropout=0.0, **_SMALL),
    "falcon_alibi": lambda: transformers.FalconConfig(
        hidden_dropout=0.0,
        attention_dropout=0.0,
        alibi=True,
        multi_query=False,
        parallel_attn=False,
        bias=True,
        **_SMALL,
    ),
    "gemma3_both_ways": lambda: transformers.Gemma3TextConfig(  # of the window each side has half
        layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention=True,
        **{**_CAPPED, "sliding_window": 10},
        **_GATED,
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, n_layer=2, n_head=4, bos_token_id=2, eos_token_id=1, pad_token_id=0
    ),
    "mt5": lambda: transformers.MT5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **_T5),
    "umt5": lambda: transformers.UMT5Config(feed_forward_proj="gated-gelu", tie_word_embeddings=False, **_T5),
}


def two_widths() -> Any:
    """opt-350m's kind: embeddings of another width than the layers. transformers' own BLIP-2 cannot run it."""
    return transformers.OPTConfig(
        ffn_dim=128, word_embed_proj_dim=32, do_layer_norm_before=False, dropout=0.0, **_SMALL
    )  # fmt: skip
