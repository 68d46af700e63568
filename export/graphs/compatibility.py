"""Reject language models that are known not to export, before anything is traced.

`make parity` compares the graphs of the architectures in COMPARED with transformers. Any other architecture may work:
the comparison at the end of an export decides, and --no-verify is rejected.
"""

from typing import Any

from blip2rt.modeling.llm import attention_fault

from .rotary import rope_length_limit

ENCODER_DECODERS = ("t5", "mt5")
COMPARED = frozenset(
    """
    apertus apertus1p5_text arcee audioflamingo3 biogpt bitnet codegen cohere cohere2
    ctrl cwm ernie4_5 exaone exaone4 fuyu gemma gemma2 gemma3 gemma3_text
    glm glm4 glmasr got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neox gptj granite granite_speech granite_speech_plus
    helium hyperclovax internlm3 iquestcoder jais2 llama ministral ministral3 mistral modernbert-decoder moshi
    moss_transcribe_diarize mt5 musicflamingo nanochat olmo olmo2 olmo3 omniasr opt persimmon phi phi3 qwen2
    qwen2_audio qwen3 qwen3_asr seed_oss smollm3 stablelm starcoder2 t5 vaultgemma vibevoice_asr
    voxtral
    """.split()
)
_UNSUPPORTED = (  # (model types, why)
    (
        """
        bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 minimax
        nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv xlstm
        zamba zamba2
        """.split(),
        "which keeps a state besides keys and values: use a plain decoder",
    ),
    ("afmoe aria_text beam jetmoe".split(), "whose experts no graph expresses: use a model without experts"),
    (
        "bert bert-generation electra ernie roc_bert".split(),
        "which is trained to encode texts: use a model that writes them",
    ),
    ("axk1 axk2 bailing_hybrid big_bird".split(), "whose attention no graph expresses: use another model"),
    (  # traced without an error, but wrong: RoBERTa's positions, for example, start after those of the padding, and
        # Gemma 3n reads the ids of new tokens in each layer
        """
        camembert data2vec-text gemma3n gemma3n_text hunyuan_v1_dense hunyuan_v1_moe roberta roberta-prelayernorm
        xlm-roberta xlm-roberta-xl xmod
        """.split(),
        "whose graph would compute something else: use another model",
    ),
)


def unsupported_reason(config: Any, verified: bool, positions: int = 0) -> str | None:
    """Say why a language model of this config cannot be exported for `positions`; None if no reason is known."""
    kind = config.model_type
    stem = f"the language model is of type {kind!r}"
    if config.is_encoder_decoder and kind not in ENCODER_DECODERS:
        return f"{stem}: supported are {', '.join(ENCODER_DECODERS)}, and causal models"
    for kinds, why in _UNSUPPORTED:
        if kind in kinds:
            return f"{stem}, {why}"
    outputs, words = getattr(config, "output_vocab_size", None), getattr(config, "vocab_size", 0)
    if outputs and outputs < words:
        return f"{stem} and has logits for {outputs:,} of its {words:,} tokens: a bundle needs them for all"
    fault = attention_fault(config)
    if fault is not None:
        return f"{stem}, {fault}: use another model"
    limit = rope_length_limit(config)
    if limit is not None and min(positions, config.max_position_embeddings) > limit:
        return (
            f"the language model changes its rotary embedding beyond {limit} positions, but cached keys are rotated "
            f"only once: give --max-positions {limit}"
        )
    if kind not in COMPARED and not verified:
        return f"{stem}, which no test compares with transformers: leave out --no-verify"
    return None


def error_summary(error: BaseException) -> str:
    """Describe an error of tracing in one line, by its root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
