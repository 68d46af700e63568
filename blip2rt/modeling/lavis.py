"""LAVIS' checkpoints: one .pth with what was trained; the frozen encoder and language model are named beside it.

Stage 1, stage 2 and finetuned ones, with EVA-CLIP ViT-g/14 or CLIP ViT-L/14. The geometry is read from the tensors'
shapes. Knows names and shapes, nothing about forward passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from blip2rt.errors import Blip2rtError

from .blip2 import Blip2Config
from .hugging_face import hugging_face_llm
from .llm import LlmConfig, text_config
from .names import lavis_name
from .qformer import QFormerConfig
from .vision import VisionConfig, resized, vit_style
from .vit import VitConfig
from .weights import Reader, Weights

_BERT = "bert-base-uncased"
_EMBEDDINGS = "Qformer.bert.embeddings"
_VICUNA_BOS = "</s>"
_DROPOUT = 0.1  # of BERT, on both streams
_OPT_NEW_LINE = 50118  # "\n" in the vocabulary of OPT
_MODELS = {"opt_proj": "OPT", "t5_proj": "Flan-T5", "llm_proj": "Vicuna"}  # projection -> the language models behind it
_LAYERS = {1408: 39, 1024: 23}  # of ViT-g and ViT-L, by width
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


@dataclass(frozen=True)
class Parts:
    """What LAVIS' files leave out; what shapes do not tell; tokenizers that a checkpoint lacks."""

    vision: str | None = None  # file or BLIP-2 folder with the frozen image encoder
    llm: str | None = None  # folder or hub id of the frozen language model
    qformer_tokenizer: str | None = None  # folder or hub id; None: of LAVIS' files BERT's
    vision_layers: int | None = None  # None: all of a finetuned encoder; of a frozen one's file all but the last
    vision_heads: int = 16
    qformer_heads: int | None = None  # None: heads are 64 wide, as BERT's
    tokenizer: str | None = None  # folder or hub id, of any format's language model; of its Q-Former where it has none


NO_PARTS = Parts()


def is_lavis(weights: Weights) -> bool:
    return "query_tokens" in weights and any(name.startswith("Qformer.") for name in weights.shapes)


def read_config(file: Path, parts: Parts) -> Blip2Config:
    """Raises Blip2rtError: no LAVIS checkpoint of BLIP-2, and all parts that are missing, at once."""
    weights = Weights(file)
    if not is_lavis(weights):
        raise Blip2rtError(
            f"{file} is no BLIP-2 checkpoint of LAVIS: it lacks query_tokens or Qformer.*; a frozen part is given by "
            "--vision or --llm, a Hugging Face checkpoint by its folder"
        )
    projection = next((name for name in _MODELS if f"{name}.weight" in weights), None)
    stage = 1 if projection is None else 2
    reads = stage == 2 and f"{_EMBEDDINGS}.word_embeddings.weight" in weights  # the *_instruct models' queries
    faults = []
    encoder = _encoder(weights, parts)
    if encoder is None:
        faults.append("the frozen image encoder is not in it: give --vision FILE (eva_vit_g.pth, clip_vit_L.pth)")
    if projection is not None and parts.llm is None:
        faults.append(
            "the frozen language model is not in it: give --llm FOLDER with the "
            f"{_MODELS[projection]} that it was trained for"
        )
    if projection is not None and parts.llm is not None:
        faults += _llm_faults(parts.llm, projection)
    if stage == 1 and "vision_proj.weight" not in weights:
        known = ", ".join(_MODELS)
        faults.append(f"it has no head of stage 1 (vision_proj) and no projection of stage 2 ({known}): give another")
    if faults or encoder is None:
        raise Blip2rtError(f"{file}: {'; '.join(faults)}")
    vision = _vision(*encoder, weights, parts)
    llm = None if parts.llm is None or projection is None else named_llm(parts.llm, vicuna=projection == "llm_proj")
    return Blip2Config(
        stage=stage,
        vision=vision,
        qformer=_qformer(weights, vision.features, stage == 1 or reads, parts),
        llm=llm,
        qformer_init=parts.qformer_tokenizer or _BERT,
        embed_dim=weights.shapes["vision_proj.weight"][0] if stage == 1 else 256,
        max_text_length=128 if reads else 32,
        vision_norm_eps=1e-5,
        learned_positions=False,
        normalize_prefix=False,
        question_input=reads,
        question_prompt=llm.ask_prompt if reads and llm is not None else "{}",
        sources=({"part": "all", "name": file.name, "licence": "BSD-3-Clause", "origin": "LAVIS"},),
    )


def readers(weights: Weights, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Reader]:
    """Readers of the trained tensors. Raises Blip2rtError: all that is missing or of another shape."""
    special: dict[str, Reader] = {}
    if "temperature" in wanted and "temp" in weights:
        special["temperature"] = lambda: weights.read("temp").reshape(())
    return weights.readers(wanted, lavis_name, special)


def _llm_faults(source: str, projection: str) -> list[str]:
    """What is wrong with a language model that is named for a projection."""
    try:
        config = text_config(source)
    except Blip2rtError as error:
        return [str(error)]
    kind = config.model_type
    fits = {"opt_proj": kind == "opt", "t5_proj": config.is_encoder_decoder, "llm_proj": kind == "llama"}
    if fits[projection]:
        return []
    return [
        f"the language model {source!r} is of type {kind!r}, and its {projection} is of {_MODELS[projection]}: give "
        "--llm FOLDER with that"
    ]


def named_llm(source: str, vicuna: bool) -> LlmConfig:
    """The language model's config as LAVIS sets it up: OPT ends a caption with its line, T5's gates are exact GELUs,
    and a prompt of Vicuna begins with the token that ends a text."""
    config, overrides = text_config(source), {}
    if config.model_type == "opt" and config.vocab_size > _OPT_NEW_LINE:
        config.eos_token_id = _OPT_NEW_LINE
    if config.is_encoder_decoder:
        overrides["dense_act_fn"] = "gelu"
        config.bos_token_id = 1  # no prompt is an empty text, which T5's tokenizer ends with </s>
    llm = hugging_face_llm(source, config)
    if vicuna:
        llm = replace(llm, bos=_VICUNA_BOS, empty_prompt_ids=None)
    return replace(llm, overrides=overrides)


def _encoder(weights: Weights, parts: Parts) -> tuple[Weights, str, str] | None:
    """Where the image encoder's tensors are, and how they are called: the finetuned ones before the frozen."""
    places = [weights]
    if parts.vision is not None:
        places.append(Weights(parts.vision))
    for place in places:
        found = vit_style(place)
        if found is not None:
            return place, *found
    return None


def _vision(place: Weights, prefix: str, style: str, weights: Weights, parts: Parts) -> VisionConfig:
    shapes = place.shapes
    names = {
        "ours": ("patch_embedding", "position_embedding", "layers", "fc1"),
        "hf": ("embeddings.patch_embedding", "embeddings.position_embedding", "encoder.layers", "mlp.fc1"),
        "eva": ("patch_embed.proj", "pos_embed", "blocks", "mlp.fc1"),
        "clip": ("conv1", "positional_embedding", "transformer.resblocks", "mlp.c_fc"),
    }
    patches, positions, blocks, hidden = names[style]
    width, _, patch, _ = shapes[f"{prefix}{patches}.weight"]
    count = _count(shapes, rf"{re.escape(f'{prefix}{blocks}')}\.(\d+)\.")
    # The frozen encoders' own files may have one block more: BLIP-2 reads the features before the last.
    frozen = place is not weights and style in ("eva", "clip")
    layers = parts.vision_layers or (min(count, _LAYERS.get(width, count - 1)) if frozen else count)
    mlp = shapes[f"{prefix}{blocks}.0.{hidden}.weight"][0]
    side = round((shapes[f"{prefix}{positions}"][-2] - 1) ** 0.5)
    clip = style == "clip"
    vit = VitConfig(
        width=width, layers=layers, heads=parts.vision_heads, mlp_width=mlp, patch=patch,
        activation="quick_gelu" if clip else "gelu", layer_norm_eps=1e-5 if clip else 1e-6,
        patch_bias=f"{prefix}{patches}.bias" in place, pre_norm=clip,
    )  # fmt: skip
    config = VisionConfig(source="vit", weights=str(place.source), mean=_MEAN, std=_STD, features=width, vit=vit)
    return resized(config, side * patch)


def _qformer(weights: Weights, vision_width: int, text_branch: bool, parts: Parts) -> QFormerConfig:
    shapes, layer = weights.shapes, "Qformer.bert.encoder.layer."
    _, queries, width = shapes["query_tokens"]
    crossing = [int(m[1]) for name in shapes if (m := re.match(rf"{layer}(\d+)\.crossattention.self.key.weight", name))]
    words, positions = (f"{_EMBEDDINGS}.{kind}_embeddings.weight" for kind in ("word", "position"))
    return QFormerConfig(
        hidden_size=width,
        layers=_count(shapes, rf"{layer}(\d+)\."),
        heads=parts.qformer_heads or max(1, width // 64),
        intermediate_size=shapes[f"{layer}0.intermediate_query.dense.weight"][0],
        queries=queries,
        vision_width=vision_width,
        cross_attention_frequency=sorted(crossing)[1] if len(crossing) > 1 else 2,
        vocab_size=shapes[words][0] if text_branch else 30523,
        max_positions=shapes[positions][0] if text_branch else 512,
        query_gain=None,
        text_branch=text_branch,
        query_dropout=_DROPOUT,
        attention_dropout=_DROPOUT,
    )


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)
