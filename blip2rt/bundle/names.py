"""Names that export and the runtime share: components and tensors. The core knows which belong together."""

FORMAT = "blip2rt-bundle"
FORMAT_VERSION = 1
MANIFEST = "blip2rt.json"

# Components. `vision` is required; each group is complete or absent; `encoder` is for encoder-decoders only.
VISION, QFORMER, EMBED, ENCODER, LLM = "vision", "qformer", "embed", "encoder", "llm"
IMAGE_EMBED, TEXT_EMBED, ITM = "image_embed", "text_embed", "itm"
GENERATIVE = (QFORMER, EMBED, LLM)
RETRIEVAL = (IMAGE_EMBED, TEXT_EMBED, ITM)
COMPONENTS = (VISION, *GENERATIVE, ENCODER, *RETRIEVAL)

# Tensors. Shapes: docs/inside/bundle.md.
PIXELS, VISION_FEATURES, PREFIX_EMBEDS = "pixels", "vision_features", "prefix_embeds"
TOKEN_IDS, TOKEN_EMBEDS, TEXT_MASK = "token_ids", "token_embeds", "text_mask"
INPUTS_EMBEDS, POSITION_IDS, LAST_INDEX = "inputs_embeds", "position_ids", "last_index"
SEQLENS_K, LOGITS = "seqlens_k", "logits"
ATTENTION_MASK, ENCODER_MASK = "attention_mask", "encoder_mask"
IMAGE_EMBEDS, TEXT_EMBEDS, ITM_LOGITS = "image_embeds", "text_embeds", "itm_logits"
PAST_KEY, PAST_VALUE = "past_key_{}", "past_value_{}"
CROSS_KEY, CROSS_VALUE = "cross_key_{}", "cross_value_{}"
PAST_MASK = "past_mask"
