"""Which language models can be exported: what is known not to work is said before anything is traced.

COMPARED are the architectures whose graphs `make parity` compares with transformers. Every other one may work, and the
comparison of the export decides; without that comparison it is refused. Knows Hugging Face's configs, no weights.
"""

from __future__ import annotations

from typing import Any

from blip2rt.modeling.llm import sees_both_ways

from . import alibi, bidirectional
from .rotary import rope_length_limit

ENCODER_DECODERS = ("t5", "mt5", "umt5")
COMPARED = frozenset({
    "apertus", "apertus1p5_text", "arcee", "audioflamingo3", "bert", "bert-generation", "biogpt", "bitnet", "bloom",
    "codegen", "cohere", "cohere2", "ctrl", "cwm", "electra", "ernie", "ernie4_5", "exaone", "exaone4", "falcon",
    "fuyu", "gemma", "gemma2", "gemma3", "gemma3_text", "glm", "glm4", "glmasr", "got_ocr2", "gpt-sw3", "gpt2",
    "gpt_bigcode", "gpt_neox", "gptj", "granite", "granite_speech", "granite_speech_plus", "helium", "hyperclovax",
    "internlm3", "iquestcoder", "jais2", "llama", "ministral3", "mistral", "modernbert-decoder", "moshi",
    "moss_transcribe_diarize", "mpt", "mt5", "musicflamingo", "nanochat", "olmo", "olmo2", "olmo3", "omniasr", "opt",
    "persimmon", "phi", "phi3", "qwen2", "qwen2_audio", "qwen3", "qwen3_asr", "roc_bert", "seed_oss", "smollm3",
    "stablelm", "starcoder2", "t5", "umt5", "vaultgemma", "vibevoice_asr", "voxtral",
})  # fmt: skip
_BIASED = ("bloom", "mpt", "umt5")  # biases of attention, which graphs for TensorRT do not have
_STATES = (
    "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "lfm2_moe", "lfm3",
    "mamba", "mamba2", "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text",
    "qwen3_5_text", "qwen3_next", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2",
)  # fmt: skip  # they keep a state besides keys and values
_EXPERTS = ("afmoe", "aria_text", "beam", "jetmoe")  # layers that choose among others
_OWN = ("axk1", "axk2", "bailing_hybrid", "big_bird")  # an attention of their own, which no graph expresses
# Their graphs are traced, and compute something else: the Robertas' positions begin behind the padding's.
_WRONG = (
    "camembert", "data2vec-text", "hunyuan_v1_dense", "hunyuan_v1_moe", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def unsupported_reason(config: Any, target: str, verified: bool, positions: int = 0) -> str | None:
    """What is wrong with exporting a language model of this config for `positions`; None where nothing is known."""
    kind = config.model_type
    if config.is_encoder_decoder and kind not in ENCODER_DECODERS:
        known = ", ".join(ENCODER_DECODERS)
        return f"the language model is of type {kind!r}: supported are {known}, and causal models"
    if kind in _STATES:
        return (
            f"the language model is of type {kind!r}, which keeps a state besides keys and values: use a plain decoder"
        )
    if kind in _EXPERTS:
        return f"the language model is of type {kind!r}, whose experts no graph expresses: use a model without experts"
    if kind in _OWN:
        return f"the language model is of type {kind!r}, whose attention no graph expresses: use another model"
    if kind in _WRONG:
        return f"the language model is of type {kind!r}, whose graph would compute something else: use another model"
    if target == "trt" and (kind in _BIASED or alibi.has_rounded_biases(config)):
        return f"the language model is of type {kind!r}, whose biases are for the target ort: leave out --target trt"
    if sees_both_ways(config) and (kind not in bidirectional.FAMILIES or target == "trt"):
        mend = "leave out --target trt" if kind in bidirectional.FAMILIES else "use another model"
        sees = "whose positions see what comes after them (use_bidirectional_attention)"
        return f"the language model is of type {kind!r} {sees}: {mend}"
    limit = rope_length_limit(config)
    if limit is not None and min(positions, config.max_position_embeddings) > limit:
        return (
            f"the language model rotates otherwise beyond {limit} positions, and what is in its cache is rotated once: "
            f"give --max-positions {limit}"
        )
    if kind not in COMPARED and not verified:
        return (
            f"the language model is of type {kind!r}, which no test compares with transformers: leave out --no-verify"
        )
    return None


def error_summary(error: BaseException) -> str:
    """An error of tracing in one line: its cause says more than what reports it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
