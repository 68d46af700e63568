"""Hugging Face's BLIP-2 folders as our config: Blip2ForConditionalGeneration, Blip2ForImageTextRetrieval, and
InstructBlipForConditionalGeneration, whose queries read the prompt too.

Reads JSON files, not tensors. `blip2rt-convert` stores what Hugging Face's format lacks in extra files, which
transformers ignores.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from blip2rt.errors import Blip2rtError, boundary

from .bert import GEOMETRY
from .blip2 import Blip2Config
from .llm import LanguageModelSource, LlmConfig
from .preprocessing import with_preprocessing
from .qformer import QFormerConfig
from .sources import read_json, refuse_quantized
from .vision import VisionConfig, resized
from .vit import ACTIVATIONS, CLIP_MEAN, CLIP_STD, VitConfig

MODEL_TYPE = "blip-2"
_INSTRUCT_TYPE = "instructblip"
OWN_CONFIG, OWN_WEIGHTS = "blip2rt_config.json", "blip2rt.safetensors"  # extra files of `blip2rt-convert`

_GENERATIVE, _RETRIEVAL = "Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval"
_INSTRUCT = "InstructBlipForConditionalGeneration"
_KINDS = {MODEL_TYPE: (_GENERATIVE, _RETRIEVAL), _INSTRUCT_TYPE: (_INSTRUCT,)}  # the first is a folder's without a name
_QFORMER_TOKENIZER = "qformer_tokenizer"  # a folder inside InstructBLIP's
VIT_FIELDS = {  # ours -> Hugging Face's
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "patch": "patch_size",
    "activation": "hidden_act",
    **{name: name for name in ("layer_norm_eps", "qkv_bias")},
}
QFORMER_FIELDS = GEOMETRY | {
    "cross_attention_frequency": "cross_attention_frequency",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}


def read_config(weights: Path, folder: Path, data: dict[str, Any], language: LanguageModelSource) -> Blip2Config:
    """Translate a folder's config.json, `data`; `language` is the language model in the folder.

    weights: the folder with the weights; it differs if it holds an adapter of peft for the other.
    Raises Blip2rtError: another architecture, or all unsupported values at once.
    """
    kinds = _KINDS.get(str(data.get("model_type")), ())
    kind = (data.get("architectures") or [*kinds[:1], None])[0]
    if kind not in kinds:
        raise Blip2rtError(
            f"{folder} holds {kind or 'a model'} of type {data.get('model_type')!r}; supported are {_GENERATIVE} and "
            f"{_RETRIEVAL} of type {MODEL_TYPE!r}, {_INSTRUCT}, LAVIS' .pth files, and checkpoints of blip2rt"
        )
    refuse_quantized(folder)
    from transformers import Blip2QFormerConfig, Blip2VisionConfig

    vision = Blip2VisionConfig().to_dict() | (data.get("vision_config") or {})
    qformer = Blip2QFormerConfig().to_dict() | (data.get("qformer_config") or {})
    faults = _faults(vision, qformer)
    if faults:
        raise Blip2rtError(f"{folder / 'config.json'}: {'; '.join(faults)}")
    instruct, retrieval = kind == _INSTRUCT, kind == _RETRIEVAL
    llm = None
    if not retrieval:
        llm = replace(prompt_layout(language), image_token_id=_image_token(data))
    if instruct and llm is not None:  # queries and language model read one text; no prompt is an empty text
        llm = replace(llm, empty_prompt_ids=None)
    config = Blip2Config(
        stage=1 if retrieval else 2,
        vision=_vision(vision, weights, folder),
        qformer=_qformer(qformer, vision["hidden_size"], data.get("num_query_tokens", 32), retrieval or instruct),
        llm=llm,
        qformer_init=str(folder.absolute() / _QFORMER_TOKENIZER if instruct else folder),
        embed_dim=256 if instruct else data.get("image_text_hidden_size", 256),
        max_text_length=min(qformer["max_position_embeddings"], 512),
        vision_norm_eps=vision["layer_norm_eps"],
        learned_positions=False,
        normalize_prefix=False,
        question_input=instruct,
        question_prompt=llm.ask_prompt if instruct and llm is not None else "{}",
        sources=({"part": "all", "name": weights.resolve().name, "licence": "see its card", "origin": str(weights)},),
    )
    return _with_own_fields(config, folder / OWN_CONFIG) if (folder / OWN_CONFIG).is_file() else config


def own_fields(config: Blip2Config, translated: Blip2Config) -> dict[str, Any]:
    """The fields of a config that Hugging Face's format cannot store; `translated` is what it does store."""
    ours, theirs = (_flat(each.to_json()) for each in (config, translated))
    return {
        name: value for name, value in ours.items() if value != theirs.get(name) and not _is_theirs(name, config.stage)
    }


def _with_own_fields(config: Blip2Config, file: Path) -> Blip2Config:
    """A translated config with the fields of a converted folder's own file; others there may only repeat it.

    Raises Blip2rtError, which lists all contradictions.
    """
    with boundary(f"{file} is damaged"):
        data, theirs = config.to_json(), _flat(config.to_json())
        own = _flat(read_json(file))
        faults = []
        for name, value in own.items():
            if value == theirs.get(name) or name in _LOCATIONS or (name == "qformer_init" and config.stage == 1):
                continue
            if _is_theirs(name, config.stage) and not (name == "llm.end_ids" and value == []):  # [] means: see end
                faults.append(f"{name} is {str(value)[:60]}, but {str(theirs.get(name))[:60]} by the other files")
                continue
            group, _, inner = name.rpartition(".")
            (data[group] if group else data)[inner] = value
        if faults:
            raise Blip2rtError(f"{file}: {'; '.join(faults)}: delete such fields there, and edit config.json instead")
        return Blip2Config.from_json(data)


_GROUPS = ("vision", "qformer", "llm")  # of a config's fields
_LOCATIONS = {  # follow from the folder's place
    "vision_trained",
    "vision.weights",
    *(f"llm.{name}" for name in ("source", "tokenizer", "adapters", "lora_rank", "lora_alpha", "lora_layers")),
}
_THEIRS = {"stage", "embed_dim", "learned_positions", "llm.end_ids", *_GROUPS, *_LOCATIONS}
_OUR_QFORMER = ("qformer.query_gain", "qformer.query_dropout")


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """A config's fields by name, those of its groups as GROUP.FIELD; numbers and lists as in JSON."""
    flat: dict[str, Any] = {}
    for name, value in json.loads(json.dumps(data)).items():
        flat |= {f"{name}.{n}": v for n, v in value.items()} if name in _GROUPS and value else {name: value}
    return flat


def _is_theirs(name: str, stage: int) -> bool:
    """Whether Hugging Face's files store a field of a stage, or its value follows from the folder's place."""
    if name == "qformer_init":
        return stage == 1
    if name.startswith(("vision.", "qformer.")):
        return name not in _OUR_QFORMER
    return name in _THEIRS


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


def _vision(vision: dict[str, Any], weights: Path, folder: Path) -> VisionConfig:
    size, patch = (each[0] if isinstance(each, list) else each for each in (vision["image_size"], vision["patch_size"]))
    vit = VitConfig(**{ours: vision[theirs] for ours, theirs in VIT_FIELDS.items()} | {"patch": patch})
    config = VisionConfig("vit", str(weights), size, size, mean=CLIP_MEAN, std=CLIP_STD, features=vit.width, vit=vit)
    return with_preprocessing(resized(config, size), folder)


def _qformer(qformer: dict[str, Any], vision_width: int, queries: int, text_branch: bool) -> QFormerConfig:
    values = {ours: qformer[theirs] for ours, theirs in QFORMER_FIELDS.items()}
    values |= {"queries": queries, "vision_width": vision_width, "query_dropout": values["dropout"]}
    return QFormerConfig(**values, query_gain=None, text_branch=text_branch)


def _image_token(data: dict[str, Any]) -> int | None:
    token = data.get("image_token_index", data.get("image_token_id"))
    return token if isinstance(token, int) and not isinstance(token, bool) and token >= 0 else None


def prompt_layout(language: LanguageModelSource, eos: int | None = None, bos: int | None = None) -> LlmConfig:
    """The language model's config with prompts laid out as Blip2Processor and `generate` do: by the tokenizer's
    template; no prompt is bos alone. eos, bos: token ids that replace those of the model's config."""
    config, text = language.config, language.text_config
    ends = text.eos_token_id if eos is None else eos
    ends = tuple(ends) if isinstance(ends, list | tuple) else (ends,)
    if None in ends:
        ends = (language.tokenizer.eos_token_id,)
    if None in ends:
        raise Blip2rtError(
            f"{config.source}: neither text_config nor the tokenizer has an eos_token_id to end a caption with"
        )
    first = text.bos_token_id if bos is None else bos
    return replace(
        config,
        add_special_tokens=True,
        empty_prompt_ids=None if first is None else (int(first),),
        end_ids=tuple(int(each) for each in ends),
        ask_prompt="Question: {} Short answer:" if language.encoder_decoder else "Question: {} Answer:",
    )
