"""LAVIS' checkpoints: a .pth file with the trained parts; the frozen encoder and language model are named separately.

Stage 1, stage 2 and finetuned ones, with EVA-CLIP ViT-g/14 or CLIP ViT-L/14. The geometry follows from the tensors'
shapes. Does not know about forward passes.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from blip2rt.errors import Blip2rtError

from .blip2 import Blip2Config
from .hugging_face import prompt_layout
from .llm import LanguageModelSource, LlmConfig
from .names import lavis_name
from .qformer import QFormerConfig
from .sources import ExternalParts
from .vision import VisionConfig, resized
from .vit import CLIP_MEAN, CLIP_STD, find_style, read_geometry
from .weights import Reader, Weights

_BERT = "bert-base-uncased"
_EMBEDDINGS = "Qformer.bert.embeddings"
_VICUNA_BOS = "</s>"
_T5_END = 1  # </s>
_DROPOUT = 0.1  # of BERT, on both streams
_OPT_NEW_LINE = 50118  # "\n" in the vocabulary of OPT
_MODELS = {"opt_proj": "OPT", "t5_proj": "Flan-T5", "llm_proj": "Vicuna"}  # projection -> its language models


def read_config(weights: Weights, parts: ExternalParts) -> tuple[Blip2Config, LanguageModelSource | None]:
    """The config of an open file, and its language model. Raises Blip2rtError, which lists all missing parts."""
    file = weights.source
    if "query_tokens" not in weights or not any(name.startswith("Qformer.") for name in weights.shapes):
        raise Blip2rtError(
            f"{file} is not a BLIP-2 checkpoint of LAVIS: it lacks query_tokens or Qformer.*; give a frozen part as "
            "--vision or --llm, and a Hugging Face checkpoint by its folder"
        )
    projection = next((name for name in _MODELS if f"{name}.weight" in weights), None)
    stage = 1 if projection is None else 2
    question_input = stage == 2 and f"{_EMBEDDINGS}.word_embeddings.weight" in weights  # the *_instruct models
    faults = []
    encoder = _encoder(weights, parts)
    if encoder is None:
        faults.append("the frozen image encoder is not in it: give --vision FILE (eva_vit_g.pth, clip_vit_L.pth)")
    if projection is not None and parts.llm is None:
        faults.append(
            f"the frozen language model is not in it: give --llm FOLDER with the {_MODELS[projection]} that it was "
            "trained for"
        )
    language = None
    if projection is not None and parts.llm is not None:
        language = LanguageModelSource(LlmConfig(source=parts.llm, tokenizer=parts.tokenizer))
        faults += _llm_faults(language, projection)
    if stage == 1 and "vision_proj.weight" not in weights:
        known = ", ".join(_MODELS)
        faults.append(f"it has no head of stage 1 (vision_proj) and no projection of stage 2 ({known}): give another")
    if faults or encoder is None:
        raise Blip2rtError(f"{file}: {'; '.join(faults)}")
    vision = _vision(encoder, frozen=encoder is not weights, parts=parts)
    if language is not None:
        language = with_lavis_prompts(language, vicuna=projection == "llm_proj")
    config = Blip2Config(
        stage=stage,
        vision=vision,
        qformer=_qformer(weights, vision.features, stage == 1 or question_input, parts),
        llm=None if language is None else language.config,
        qformer_init=parts.qformer_tokenizer or _BERT,
        embed_dim=weights.shapes["vision_proj.weight"][0] if stage == 1 else 256,
        max_text_length=128 if question_input else 32,
        vision_norm_eps=1e-5,
        learned_positions=False,
        normalize_prefix=False,
        question_input=question_input,
        question_prompt=language.config.ask_prompt if question_input and language is not None else "{}",
        sources=({"part": "all", "name": file.name, "licence": "BSD-3-Clause", "origin": "LAVIS"},),
    )
    return config, language


def readers(weights: Weights, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Reader]:
    """Readers of the trained tensors. Raises Blip2rtError, which lists missing tensors and wrong shapes."""
    special: dict[str, Reader] = {}
    if "temperature" in wanted and "temp" in weights:
        special["temperature"] = lambda: weights.read("temp").reshape(())
    return weights.readers(wanted, lavis_name, special)


def _llm_faults(language: LanguageModelSource, projection: str) -> list[str]:
    """Faults of a language model that is named for a projection."""
    try:
        text = language.text_config
    except Blip2rtError as error:
        return [str(error)]
    kind = text.model_type
    fits = {"opt_proj": kind == "opt", "t5_proj": text.is_encoder_decoder, "llm_proj": kind == "llama"}
    if fits[projection]:
        return []
    return [
        f"the language model {language.config.source!r} is of type {kind!r}, but its {projection} is of "
        f"{_MODELS[projection]}: give --llm FOLDER with one of these"
    ]


def with_lavis_prompts(language: LanguageModelSource, vicuna: bool) -> LanguageModelSource:
    """The language model as LAVIS sets it up: OPT ends a caption with its line, T5's gates are exact GELUs and an empty
    prompt is </s>, and a prompt of Vicuna begins with the token that ends a text."""
    text = language.text_config
    opt = text.model_type == "opt" and text.vocab_size > _OPT_NEW_LINE
    llm = prompt_layout(language, _OPT_NEW_LINE if opt else None, _T5_END if language.encoder_decoder else None)
    if vicuna:
        llm = replace(llm, bos=_VICUNA_BOS, empty_prompt_ids=None)
    return language.with_config(replace(llm, overrides={"dense_act_fn": "gelu"} if language.encoder_decoder else {}))


def _encoder(weights: Weights, parts: ExternalParts) -> Weights | None:
    """The weights that contain the image encoder: the checkpoint, if it was finetuned, or else the frozen one's."""
    if find_style(weights) is not None:
        return weights
    frozen = None if parts.vision is None else Weights(parts.vision)
    return frozen if frozen is not None and find_style(frozen) is not None else None


def _vision(encoder: Weights, *, frozen: bool, parts: ExternalParts) -> VisionConfig:
    vit, size = read_geometry(encoder, heads=parts.vision_heads, layers=parts.vision_layers, frozen=frozen)
    weights = str(encoder.source)
    config = VisionConfig("vit", weights, mean=CLIP_MEAN, std=CLIP_STD, features=vit.width, vit=vit)
    return resized(config, size)


def _qformer(weights: Weights, vision_width: int, text_branch: bool, parts: ExternalParts) -> QFormerConfig:
    shapes, layer = weights.shapes, "Qformer.bert.encoder.layer."
    _, queries, width = shapes["query_tokens"]
    crossing = [int(m[1]) for name in shapes if (m := re.match(rf"{layer}(\d+)\.crossattention.self.key.weight", name))]
    layers = 1 + max((int(m[1]) for name in shapes if (m := re.match(rf"{layer}(\d+)\.", name))), default=-1)
    words, positions = (f"{_EMBEDDINGS}.{kind}_embeddings.weight" for kind in ("word", "position"))
    return QFormerConfig(
        hidden_size=width,
        layers=layers,
        heads=parts.qformer_heads or max(1, width // 64),
        intermediate_size=shapes[f"{layer}0.intermediate_query.dense.weight"][0],
        queries=queries,
        vision_width=vision_width,
        cross_attention_frequency=sorted(crossing)[1] if len(crossing) > 1 else max(1, layers),
        vocab_size=shapes[words][0] if text_branch else 30523,
        max_positions=shapes[positions][0] if text_branch else 512,
        query_gain=None,
        text_branch=text_branch,
        query_dropout=_DROPOUT,
        attention_dropout=_DROPOUT,
    )
