"""Hugging Face's BLIP-2 folders as our config: Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, and
InstructBlipForConditionalGeneration, whose queries read the prompt too.

Knows their JSON files, nothing about tensors. What a folder that `blip2rt-convert` wrote has beyond Hugging Face's
format lies beside it, in files that transformers ignores.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from blip2rt.errors import Blip2rtError

from .blip2 import Blip2Config
from .json_file import read_json
from .llm import LlmConfig, load_tokenizer, text_config
from .preprocessing import with_preprocessing
from .qformer import QFormerConfig
from .quantized import refuse_unread
from .vision import VisionConfig, resized
from .vit import ACTIVATIONS, VitConfig

MODEL_TYPE = "blip-2"
_INSTRUCT_TYPE = "instructblip"
MODEL_TYPES = (MODEL_TYPE, _INSTRUCT_TYPE)
OWN_CONFIG, OWN_WEIGHTS = "blip2rt_config.json", "blip2rt.safetensors"  # beside Hugging Face's files

_GENERATIVE, _RETRIEVAL = "Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval"
_INSTRUCT = "InstructBlipForConditionalGeneration"
_KINDS = {MODEL_TYPE: (_GENERATIVE, _RETRIEVAL), _INSTRUCT_TYPE: (_INSTRUCT,)}  # the first is a folder's without a name
_QFORMER_TOKENIZER = "qformer_tokenizer"  # a folder inside InstructBLIP's
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
_VISION = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
           "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
           "qkv_bias": True}  # fmt: skip
_QFORMER = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "hidden_act": "gelu", "max_position_embeddings": 512, "layer_norm_eps": 1e-12,
            "cross_attention_frequency": 2, "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1}  # fmt: skip


def is_hugging_face(folder: Path) -> bool:
    """Whether config.json of a folder is written in Hugging Face's format, of whatever architecture."""
    try:
        return "model_type" in read_json(folder / "config.json")
    except (OSError, ValueError, TypeError):
        return False


def read_config(folder: Path, tokenizer: str | None = None) -> Blip2Config:
    """Raises Blip2rtError: another architecture, and all values that we do not support, at once.

    tokenizer: of the language model, where the folder lacks it.
    """
    data = read_json(folder / "config.json")
    kinds = _KINDS.get(str(data.get("model_type")), ())
    kind = (data.get("architectures") or [*kinds[:1], None])[0]
    if kind not in kinds:
        raise Blip2rtError(
            f"{folder} holds {kind or 'a model'} of type {data.get('model_type')!r}; supported are {_GENERATIVE} and "
            f"{_RETRIEVAL} of type {MODEL_TYPE!r}, {_INSTRUCT}, LAVIS' .pth files, and checkpoints of blip2rt"
        )
    if (folder / OWN_CONFIG).is_file():
        own = Blip2Config.from_json(read_json(folder / OWN_CONFIG))
        return _at(own, folder)
    refuse_unread(folder)
    vision, qformer = (
        {**_VISION, **(data.get("vision_config") or {})},
        {**_QFORMER, **(data.get("qformer_config") or {})},
    )
    faults = _faults(vision, qformer)
    if faults:
        raise Blip2rtError(f"{folder / 'config.json'}: {'; '.join(faults)}")
    if kind == _INSTRUCT:
        return _instruct(data, vision, qformer, folder, tokenizer)
    retrieval = kind == _RETRIEVAL
    return Blip2Config(
        stage=1 if retrieval else 2,
        vision=_vision(vision, folder),
        qformer=_qformer(qformer, vision["hidden_size"], data.get("num_query_tokens", 32), retrieval),
        llm=None if retrieval else replace(_llm(folder, tokenizer), image_token_id=_image_token(data)),
        qformer_init=str(folder),
        embed_dim=data.get("image_text_hidden_size", 256),
        max_text_length=min(qformer["max_position_embeddings"], 512),
        vision_norm_eps=vision["layer_norm_eps"],
        learned_positions=False,
        normalize_prefix=False,
        sources=({"part": "all", "name": folder.resolve().name, "licence": "see its card", "origin": str(folder)},),
    )


def _instruct(
    data: dict[str, Any], vision: dict[str, Any], qformer: dict[str, Any], folder: Path, tokenizer: str | None
) -> Blip2Config:
    """InstructBLIP's: queries and language model read one text, by a tokenizer each; no text is an empty one."""
    llm = replace(_llm(folder, tokenizer), image_token_id=_image_token(data), empty_prompt_ids=None)
    return Blip2Config(
        stage=2,
        vision=_vision(vision, folder),
        qformer=_qformer(qformer, vision["hidden_size"], data.get("num_query_tokens", 32), True),
        llm=llm,
        qformer_init=str(folder.absolute() / _QFORMER_TOKENIZER),
        max_text_length=min(qformer["max_position_embeddings"], 512),
        vision_norm_eps=vision["layer_norm_eps"],
        learned_positions=False,
        normalize_prefix=False,
        question_input=True,
        question_prompt=llm.ask_prompt,
        sources=({"part": "all", "name": folder.resolve().name, "licence": "see its card", "origin": str(folder)},),
    )


def _at(config: Blip2Config, folder: Path) -> Blip2Config:
    """The parts that a folder holds are found in it, wherever it has been moved."""
    llm = (
        None
        if config.llm is None
        else replace(config.llm, source=str(folder), tokenizer=None, lora_rank=0, adapters=None)
    )
    vision = replace(config.vision, weights=str(folder))
    return replace(
        config, vision=vision, vision_trained=False, llm=llm,
        qformer_init=str(folder) if config.stage == 1 else config.qformer_init,
    )  # fmt: skip


def _faults(vision: dict[str, Any], qformer: dict[str, Any]) -> list[str]:
    faults = []
    if vision["hidden_act"] not in ACTIVATIONS:
        faults.append(f"vision_config.hidden_act is {vision['hidden_act']!r}: supported are {', '.join(ACTIVATIONS)}")
    if qformer["hidden_act"] != "gelu":
        faults.append(f"qformer_config.hidden_act is {qformer['hidden_act']!r}: supported is gelu")
    if qformer.get("position_embedding_type", "absolute") != "absolute":
        faults.append("qformer_config.position_embedding_type has to be absolute")
    for name, part in (("vision_config", vision), ("qformer_config", qformer)):
        if part["hidden_size"] % part["num_attention_heads"]:
            faults.append(
                f"{name}.hidden_size is {part['hidden_size']}, no multiple of {part['num_attention_heads']} heads"
            )
    return faults


def _vision(vision: dict[str, Any], folder: Path) -> VisionConfig:
    size, patch = (each[0] if isinstance(each, list) else each for each in (vision["image_size"], vision["patch_size"]))
    vit = VitConfig(
        width=vision["hidden_size"], layers=vision["num_hidden_layers"], heads=vision["num_attention_heads"],
        mlp_width=vision["intermediate_size"], patch=patch, activation=vision["hidden_act"],
        layer_norm_eps=vision["layer_norm_eps"], qkv_bias=vision["qkv_bias"],
    )  # fmt: skip
    config = VisionConfig(
        source="vit", weights=str(folder), height=size, width=size, mean=_MEAN, std=_STD, features=vit.width, vit=vit
    )
    return with_preprocessing(resized(config, size), folder)


def _qformer(qformer: dict[str, Any], vision_width: int, queries: int, text_branch: bool) -> QFormerConfig:
    return QFormerConfig(
        hidden_size=qformer["hidden_size"], layers=qformer["num_hidden_layers"], heads=qformer["num_attention_heads"],
        intermediate_size=qformer["intermediate_size"], queries=queries, vision_width=vision_width,
        cross_attention_frequency=qformer["cross_attention_frequency"], vocab_size=qformer["vocab_size"],
        max_positions=qformer["max_position_embeddings"], layer_norm_eps=qformer["layer_norm_eps"],
        dropout=qformer["hidden_dropout_prob"], query_gain=None, text_branch=text_branch,
        query_dropout=qformer["hidden_dropout_prob"], attention_dropout=qformer["attention_probs_dropout_prob"],
    )  # fmt: skip


def _image_token(data: dict[str, Any]) -> int | None:
    token = data.get("image_token_index", data.get("image_token_id"))
    return token if isinstance(token, int) and not isinstance(token, bool) and token >= 0 else None


def _llm(folder: Path, tokenizer: str | None) -> LlmConfig:
    return hugging_face_llm(str(folder), text_config(str(folder)), tokenizer)


def hugging_face_llm(source: str, text: Any, tokenizer: str | None = None) -> LlmConfig:
    """Prompts as Blip2Processor and `generate` lay them out: the tokenizer's template; bos alone for no prompt."""
    eos = text.eos_token_id
    ends = tuple(eos) if isinstance(eos, list | tuple) else (eos,)
    if None in ends:
        ends = (load_tokenizer(tokenizer or source).eos_token_id,)
    if None in ends:
        raise Blip2rtError(f"{source}: neither text_config nor the tokenizer has an eos_token_id to end a caption with")
    return LlmConfig(
        source=source,
        tokenizer=tokenizer,
        add_special_tokens=True,
        empty_prompt_ids=None if text.bos_token_id is None else (int(text.bos_token_id),),
        end_ids=tuple(int(each) for each in ends),
        ask_prompt="Question: {} Short answer:" if text.is_encoder_decoder else "Question: {} Answer:",
    )
