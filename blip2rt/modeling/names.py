"""What our parameters are called in the other formats of BLIP-2. Knows names only.

Every rule is (ours, Hugging Face's, LAVIS'), the first that matches counts; None where a format lacks the tensor.
"""

from __future__ import annotations

import re

_Q = "qformer.encoder.layer", "Qformer.bert.encoder.layer"

_RULES: list[tuple[str | None, ...]] = [
    (r"qformer\.query_tokens", "query_tokens", "query_tokens"),
    (r"qformer\.query_norm\.(\w+)", r"qformer.layernorm.\1|qformer.embeddings.layernorm.\1",
     r"Qformer.bert.embeddings.LayerNorm.\1"),
    (r"qformer\.(word|position)_embeddings\.weight",
     r"embeddings.\1_embeddings.weight|qformer.embeddings.\1_embeddings.weight",
     r"Qformer.bert.embeddings.\1_embeddings.weight"),
    *((rf"qformer\.layers\.(\d+)\.{ours}\.{part}\.(\w+)", rf"{_Q[0]}.\1.{theirs}.attention.{part}.\2",
       rf"{_Q[1]}.\1.{theirs}.self.{part}.\2")
      for ours, theirs in (("attention", "attention"), ("cross_attention", "crossattention"))
      for part in ("query", "key", "value")),
    *((rf"qformer\.layers\.(\d+)\.{ours}\.(\w+)", *(rf"{layer}.\1.{theirs}.\2" for layer in _Q))
      for ours, theirs in (
          ("attention.output", "attention.output.dense"), ("attention.norm", "attention.output.LayerNorm"),
          ("cross_attention.output", "crossattention.output.dense"),
          ("cross_attention.norm", "crossattention.output.LayerNorm"),
          ("query_ffn.inner", "intermediate_query.dense"), ("query_ffn.outer", "output_query.dense"),
          ("query_ffn.norm", "output_query.LayerNorm"), ("text_ffn.inner", "intermediate.dense"),
          ("text_ffn.outer", "output.dense"), ("text_ffn.norm", "output.LayerNorm"),
      )),
    (r"vision_norm\.(\w+)", r"vision_model.post_layernorm.\1", r"ln_vision.\1"),
    (r"vision_proj\.(\w+)", r"vision_projection.\1", r"vision_proj.\1"),
    (r"text_proj\.(\w+)", r"text_projection.\1", r"text_proj.\1"),
    (r"itm_head\.(\w+)", r"itm_head.\1", r"itm_head.\1"),
    (r"temperature", None, "temp"),
    (r"lm_head\.bias", None, "Qformer.cls.predictions.bias"),
    (r"lm_head\.transform\.(\w+)", None, r"Qformer.cls.predictions.transform.dense.\1"),
    (r"lm_head\.norm\.(\w+)", None, r"Qformer.cls.predictions.transform.LayerNorm.\1"),
    (r"projection\.(\w+)", r"language_projection.\1", r"opt_proj.\1|t5_proj.\1|llm_proj.\1"),
    (r"llm\.(.+)", r"language_model.\1", None),
]  # fmt: skip

# The encoder's own parameters: (ours, Hugging Face's, EVA-CLIP's, OpenAI CLIP's).
_VIT_RULES: list[tuple[str | None, ...]] = [
    (r"class_embedding", "embeddings.class_embedding", "cls_token", "class_embedding"),
    (r"position_embedding", "embeddings.position_embedding", "pos_embed", "positional_embedding"),
    (r"patch_embedding\.(\w+)", r"embeddings.patch_embedding.\1", r"patch_embed.proj.\1", r"conv1.\1"),
    (r"pre_norm\.(\w+)", None, None, r"ln_pre.\1"),
    *((rf"layers\.(\d+)\.{ours}(.+)", rf"encoder.layers.\1.{theirs}\2", rf"blocks.\1.{eva}\2",
       rf"transformer.resblocks.\1.{clip}\2")
      for ours, theirs, eva, clip in (
          (r"norm1\.", "layer_norm1.", "norm1.", "ln_1."), (r"norm2\.", "layer_norm2.", "norm2.", "ln_2."),
          (r"qkv\.", "self_attn.qkv.", "attn.qkv.", "attn.in_proj_"),
          (r"projection\.", "self_attn.projection.", "attn.proj.", "attn.out_proj."),
          (r"fc1\.", "mlp.fc1.", "mlp.fc1.", "mlp.c_fc."), (r"fc2\.", "mlp.fc2.", "mlp.fc2.", "mlp.c_proj."),
      )),
]  # fmt: skip


def hugging_face_name(ours: str) -> str | None:
    """E.g. "projection.bias" -> "language_projection.bias"; None where Hugging Face has no such tensor.

    Alternatives are separated by |: BLIP-2's, then InstructBLIP's.
    """
    if ours.startswith("vision.body."):
        inner = vit_name(ours[len("vision.body.") :], "hf")
        return None if inner is None else f"vision_model.{inner}"
    return _first(ours, [(rule[0], rule[1]) for rule in _RULES])


def lavis_name(ours: str) -> str | None:
    """E.g. "vision_norm.bias" -> "ln_vision.bias"; alternatives are separated by |. The encoder's are vit_name's."""
    return _first(ours, [(rule[0], rule[2]) for rule in _RULES])


def vit_name(ours: str, style: str) -> str | None:
    """The name of an encoder's parameter in `style`: ours, hf, eva or clip."""
    if style == "ours":
        return ours
    column = ("hf", "eva", "clip").index(style) + 1
    return _first(ours, [(rule[0], rule[column]) for rule in _VIT_RULES])


def _first(ours: str, rules: list[tuple[str | None, str | None]]) -> str | None:
    for pattern, replacement in rules:
        match = re.fullmatch(pattern or "", ours)
        if match:
            return None if replacement is None else match.expand(replacement)
    return None
