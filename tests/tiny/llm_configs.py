"""Configurations of tiny language models of every family, for transformers.

All tests use these, so that a graph of one shape is traced once (tests/tiny/trace_cache.py). Matrices consist of whole
blocks of 64 weights, as int4 of both targets needs.
"""

from typing import Any

import transformers

from . import training

WORDS = [*training.WORDS, "photo", "of", "Question", "Answer", "Short", "answer", ":", "?", "what", "colour"]
SPECIAL = ["<pad>", "</s>", "<s>", "<unk>"]
IMAGE = len(SPECIAL) + len(WORDS)  # the id of <image>, which processors add
VOCAB = IMAGE + 6
HIDDEN = 64

_IDS = {"vocab_size": VOCAB, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
_SMALL = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96}
_SMALL |= _IDS
_GATED = {"intermediate_size": 128, **_SMALL}
_OPT = {"ffn_dim": 128, "word_embed_proj_dim": HIDDEN, "dropout": 0.0, **_SMALL}
_GEMMA = {"query_pre_attn_scalar": 20, "sliding_window": 4, "head_dim": 16, "num_key_value_heads": 2, **_GATED}
_GEMMA3 = {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]}
_BUCKETS = {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12}
_T5 = {**_IDS, **_BUCKETS, "d_model": HIDDEN, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": 0, "bos_token_id": 1}
_GATED_T5 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **_T5}

CONFIGS: dict[str, Any] = {
    "opt": lambda: transformers.OPTConfig(**_OPT),
    "wide": lambda: transformers.OPTConfig(**{**_OPT, "vocab_size": 97}),  # more tokens than TOP_K
    "llama": lambda: transformers.LlamaConfig(num_key_value_heads=2, **_GATED),
    "narrow": lambda: transformers.LlamaConfig(  # heads of 8: too narrow for the operator to rotate
        num_key_value_heads=2, **{**_GATED, "num_attention_heads": 8}
    ),
    "qwen2": lambda: transformers.Qwen2Config(num_key_value_heads=1, tie_word_embeddings=True, **_GATED),
    "qwen3": lambda: transformers.Qwen3Config(num_key_value_heads=2, head_dim=24, **_GATED),
    "mistral": lambda: transformers.MistralConfig(num_key_value_heads=2, sliding_window=4, **_GATED),
    "gemma": lambda: transformers.GemmaConfig(num_key_value_heads=1, head_dim=16, **_GATED),
    "gemma2": lambda: transformers.Gemma2Config(  # soft caps of scores and logits; every second layer has a window
        attn_logit_softcapping=2.0, final_logit_softcapping=6.0, **_GEMMA
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(**_GEMMA3),  # norms of queries and keys, two rotations
    "t5": lambda: transformers.T5Config(**_GATED_T5),
    "tied": lambda: transformers.T5Config(
        feed_forward_proj="relu", tie_word_embeddings=True, num_decoder_layers=3, **_T5
    ),
}

SLOW_CONFIGS: dict[str, Any] = {  # only for slow tests
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_GATED)  # its tensors are renamed
}
