"""Names that export and the runtime share: components and tensors. Shapes: docs/bundle.md. Imports nothing."""

from __future__ import annotations

FORMAT = "blip2rt-bundle"
FORMAT_VERSION = 1
MANIFEST = "blip2rt.json"

# Components. `vision` is required; each group is complete or absent; `encoder` is for encoder-decoders only, and
# `attention` is optional.
VISION, QFORMER, EMBED, ENCODER, LLM, ATTENTION = "vision", "qformer", "embed", "encoder", "llm", "attention"
IMAGE_EMBED, TEXT_EMBED, ITM = "image_embed", "text_embed", "itm"
GENERATIVE = (QFORMER, EMBED, LLM)
RETRIEVAL = (IMAGE_EMBED, TEXT_EMBED, ITM)
COMPONENTS = (VISION, *GENERATIVE, ENCODER, ATTENTION, *RETRIEVAL)

# Tensors. Shapes: docs/bundle.md.
PIXELS, VISION_FEATURES, QUERY_OUTPUT, PREFIX_EMBEDS = "pixels", "vision_features", "query_output", "prefix_embeds"
TOKEN_IDS, TOKEN_EMBEDS, TEXT_MASK = "token_ids", "token_embeds", "text_mask"
INPUTS_EMBEDS, POSITION_IDS, LAST_INDEX = "inputs_embeds", "position_ids", "last_index"
SEQLENS_K, TOTAL_SEQUENCE_LENGTH, LOGITS = "seqlens_k", "total_sequence_length", "logits"
ATTENTION_MASK, ENCODER_MASK = "attention_mask", "encoder_mask"
ATTENTION_MAPS = "attention_maps"
IMAGE_EMBEDS, TEXT_EMBEDS, ITM_LOGITS = "image_embeds", "text_embeds", "itm_logits"
PAST_KEY, PAST_VALUE = "past_key_{}", "past_value_{}"
PRESENT_KEY, PRESENT_VALUE = "present_key_{}", "present_value_{}"
CROSS_KEY, CROSS_VALUE = "cross_key_{}", "cross_value_{}"
PAST_MASK, TOP_LOGITS, TOP_TOKENS, LOG_SUM_EXP = "past_mask", "top_logits", "top_tokens", "log_sum_exp"
NEW_KEY, NEW_VALUE = "new_key_{}", "new_value_{}"

TOP_K = 64  # most likely tokens that trt's llm graph returns (all, if the vocabulary is smaller)

# component -> (inputs, outputs); the llm's come from llm_tensors(), the encoder's from encoder_tensors().
TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    VISION: ((PIXELS,), (VISION_FEATURES,)),
    QFORMER: ((VISION_FEATURES,), (QUERY_OUTPUT, PREFIX_EMBEDS)),
    ATTENTION: ((VISION_FEATURES,), (ATTENTION_MAPS,)),
    EMBED: ((TOKEN_IDS,), (TOKEN_EMBEDS,)),
    IMAGE_EMBED: ((VISION_FEATURES,), (IMAGE_EMBEDS,)),
    TEXT_EMBED: ((TOKEN_IDS, TEXT_MASK), (TEXT_EMBEDS,)),
    ITM: ((VISION_FEATURES, TOKEN_IDS, TEXT_MASK), (ITM_LOGITS,)),
}


def llm_tensors(
    layers: int, encoder_decoder: bool = False, target: str = "ort", in_place: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the llm graph's inputs and outputs, each layer's key before its value.

    in_place: whether a graph of the target trt writes the cache itself.
    """
    cross = (*_each(layers, CROSS_KEY, CROSS_VALUE), ENCODER_MASK) if encoder_decoder else ()
    past = _each(layers, PAST_KEY, PAST_VALUE)
    first = (INPUTS_EMBEDS, POSITION_IDS, LAST_INDEX)
    if target == "trt":
        chosen = (LOGITS, TOP_LOGITS, TOP_TOKENS, LOG_SUM_EXP)
        if in_place:
            return (*first, *past, *cross), (*chosen, *_each(layers, PRESENT_KEY, PRESENT_VALUE))
        return (*first, PAST_MASK, *past, *cross), (*chosen, *_each(layers, NEW_KEY, NEW_VALUE))
    inputs = (*first, SEQLENS_K, TOTAL_SEQUENCE_LENGTH, *past, *cross)
    return inputs, (LOGITS, *_each(layers, PRESENT_KEY, PRESENT_VALUE))


def encoder_tensors(layers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the encoder graph's inputs and outputs, for a decoder of `layers` layers."""
    return (INPUTS_EMBEDS, ATTENTION_MASK), _each(layers, CROSS_KEY, CROSS_VALUE)


def _each(layers: int, *names: str) -> tuple[str, ...]:
    return tuple(name.format(i) for i in range(layers) for name in names)
