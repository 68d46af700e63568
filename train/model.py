"""The model that the settings describe, or a checkpoint of any format changed where they say so.

Without `start` the settings describe the model; with it the checkpoint does, and a field that is given besides changes
it. Knows configs and tensors, nothing about data or steps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.blip2 import ITM_STD, Blip2, Blip2Config
from blip2rt.modeling.checkpoints import (
    init_adapters,
    init_from,
    init_from_bert,
    init_from_stage1,
    read_bert_geometry,
    read_config,
)
from blip2rt.modeling.lavis import Parts, named_llm
from blip2rt.modeling.llm import LlmConfig, encoder_decoder, text_config
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig, encoder_shape, measured
from blip2rt.modeling.vit import CLIP_L, EVA_G

from .recipe import Given
from .settings import LlmSettings, QFormerSettings, VisionSettings

VITS = {"vit:g": EVA_G, "vit:l": CLIP_L}
_MODEL = ("learned_positions", "normalize_prefix", "query_offsets", "max_text_length", "question_prompt",
          "qformer_bits", "qformer_block")  # fmt: skip
_LLM = {"llm_source": "source", "llm_bits": "bits", "llm_block": "block", "prepend_bos": "prepend_bos",
        "caption_prompt": "caption_prompt", "ask_prompt": "ask_prompt"}  # fmt: skip
_LORA = ("lora_rank", "lora_alpha", "lora_layers")
_GEOMETRY = ("hidden_size", "layers", "heads", "intermediate_size", "vocab_size", "max_positions")
_FIXED = ("queries", "query_gain")  # of the Q-Former, and nothing changes them
_DROPOUTS = ("dropout", "query_dropout", "attention_dropout")


def vision_config(vision: VisionSettings) -> VisionConfig:
    """The image encoder that the settings name. Raise OptionError where there is no such ViT."""
    (r, g, b), (r_std, g_std, b_std) = vision.vision_mean, vision.vision_std
    vit = VITS.get(vision.vision_source)
    if vit is None and vision.vision_source.startswith("vit:"):
        raise OptionError(f"vision_source is {vision.vision_source!r}: choose {' or '.join(VITS)}")
    if vit is not None and not vision.vision_weights:
        raise OptionError(
            f"vision_weights is missing: give the file of {vision.vision_source} (eva_vit_g.pth, clip_vit_L.pth), or "
            "another vision_source"
        )
    config = VisionConfig(
        source=vision.vision_source if vit is None else "vit",
        weights=vision.vision_weights or None,
        height=vision.vision_size,
        width=vision.vision_size,
        mean=(r, g, b),
        std=(r_std, g_std, b_std),
        positions=vision.vision_positions,
        features=vision.vision_features,
        vit=vit,
    )
    if config.positions and config.features:
        return config
    positions, features, _ = encoder_shape(config)
    return replace(config, positions=config.positions or positions, features=config.features or features)


def qformer_config(qformer: QFormerSettings, vision_width: int, text_branch: bool) -> QFormerConfig:
    """The Q-Former that the settings and their BERT describe, for vision_features of a width."""
    return QFormerConfig(
        **read_bert_geometry(qformer.qformer_init),
        queries=qformer.queries,
        vision_width=vision_width,
        dropout=qformer.dropout,
        query_dropout=qformer.query_dropout,
        attention_dropout=qformer.attention_dropout,
        query_gain=qformer.query_gain or None,
        text_branch=text_branch,
    )


def llm_config(llm: LlmSettings) -> LlmConfig:
    """The LLM that the settings name."""
    return LlmConfig(
        source=llm.llm_source,
        bits=llm.llm_bits,
        block=llm.llm_block,
        prepend_bos=llm.prepend_bos,
        add_special_tokens=encoder_decoder(llm.llm_source),  # an encoder reads whole texts: T5's end in </s>
        end=llm.end,
        caption_prompt=llm.caption_prompt,
        ask_prompt=llm.ask_prompt,
        lora_rank=llm.lora_rank,
        lora_alpha=llm.lora_alpha,
        lora_layers=llm.lora_layers,
    )


def check_bos(tokenizer: Any, config: LlmConfig) -> None:
    """Raise Blip2rtError where the bos token is asked for and there is none."""
    if config.prepend_bos and tokenizer.bos_token_id is None:
        raise Blip2rtError(
            f"prepend_bos is on, and the tokenizer of {config.source!r} has no bos token: give --no-prepend-bos"
        )


def learning_vision(config: Blip2Config, train_vision: bool, cached: bool, source: str) -> Blip2Config:
    """The config, whose encoder is the checkpoint's own once it learns or has learned in `source`.

    Raise OptionError where features of such an encoder, which is another one in every checkpoint, would be cached.
    """
    if config.vision_trained and cached:
        raise OptionError(
            f"the encoder of {source!r} was trained, and features are cached of frozen ones: give --no-cache-features"
        )
    return replace(config, vision_trained=config.vision_trained or train_vision)


@torch.no_grad()
def start_fresh(model: Blip2, qformer: QFormerSettings) -> None:
    """Draw what BERT has not, behind init_from_bert: the queries, and [DEC]'s embedding."""
    model.qformer.query_tokens.mul_(qformer.query_std)
    if model.config.qformer.text_branch and qformer.dec_std:
        torch.nn.init.normal_(model.qformer.word_embeddings.weight[-1], std=qformer.dec_std)


@torch.no_grad()
def start_itm(head: torch.nn.Linear, std: float) -> None:
    """Let a fresh matching head have the standard deviation that is asked for; 0: as PyTorch draws a layer."""
    if std:
        head.weight.mul_(std / ITM_STD)
    else:
        head.reset_parameters()


def learning(model: Blip2, train_vision: bool) -> Blip2:
    """The model in training mode; its encoder learns too where train_vision says so."""
    if train_vision:
        assert model.vision is not None
        model.vision.unfreeze()
    return model.train()


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from. given: the fields that change it; stage1: a checkpoint with the text branch that it
    may lack."""

    checkpoint: str
    given: Given
    stage1: str = ""

    @property
    def parts(self) -> Parts:
        """What LAVIS' files leave out, of the fields that are given."""
        named = {"vision": "vision_weights", "llm": "llm_source", "qformer_tokenizer": "qformer_init"}
        return Parts(**{part: self.given[name] for part, name in named.items() if name in self.given})


def started_config(start: Start, stage: int) -> Blip2Config:
    """The config of the checkpoint, changed by the fields that are given. Raise OptionError."""
    given, checkpoint = start.given, start.checkpoint
    config = read_config(checkpoint, start.parts)
    if config.stage != stage:
        other = f"use train.stage{config.stage}, which goes on from it"
        here = ", or give it as stage1" if stage == 2 else ""
        raise OptionError(f"start {checkpoint!r} is a checkpoint of stage {config.stage}: {other}{here}")
    faults = [
        f"{name} is {given[name]}, and {checkpoint!r} has {getattr(config.qformer, name)}: leave it out"
        for name in _FIXED
        if name in given and given[name] != (getattr(config.qformer, name) or 0)
    ]
    if faults:
        raise OptionError("; ".join(faults))
    changes: dict[str, Any] = {name: given[name] for name in _MODEL if name in given}
    changes["vision"] = changed_vision(config, given)
    changes["sources"] = _once(*config.sources, *given.get("sources", ()))
    changes["qformer"] = with_dropout(config.qformer, given)
    if config.llm is not None:
        changes["llm"] = _changed_llm(config.llm, start)
    return replace(config, **changes)


def with_dropout(qformer: QFormerConfig, given: Given) -> QFormerConfig:
    """A checkpoint's Q-Former with the dropout that is given."""
    return replace(qformer, **{name: given[name] for name in _DROPOUTS if name in given})


def _once(*sources: dict[str, str]) -> tuple[dict[str, str], ...]:
    """The sources, each once."""
    return tuple({tuple(sorted(source.items())): source for source in sources}.values())


def changed_vision(config: Blip2Config, given: Given) -> VisionConfig:
    """The encoder of a checkpoint, changed by the fields that are given."""
    vision, changes = config.vision, dict[str, Any]()
    if "vision_source" in given:
        vit = VITS.get(given["vision_source"])
        changes |= {"source": "vit" if vit else given["vision_source"], "vit": vit}
    if "vision_weights" in given and not config.vision_trained:
        changes["weights"] = given["vision_weights"] or None
    if "vision_size" in given:
        changes |= {"height": given["vision_size"], "width": given["vision_size"]}
    changes |= {name: tuple(given[f"vision_{name}"]) for name in ("mean", "std") if f"vision_{name}" in given}
    changed = replace(vision, **changes)
    if (changed.source, changed.height, changed.width) == (vision.source, vision.height, vision.width):
        return changed
    return measured(changed)


def other_llm(llm: LlmConfig, source: str) -> LlmConfig:
    """The config for another LLM. Prompts and adapters stay; what its tokenizer and its config say is its own.

    A checkpoint of Hugging Face or LAVIS lays prompts out as they do, and one of ours as a fresh stage 2 does.
    """
    if llm.end_ids or llm.empty_prompt_ids is not None:
        own = named_llm(source, vicuna=llm.bos is not None and text_config(source).model_type == "llama")
    else:
        added = encoder_decoder(source)
        own = LlmConfig(source=source, prepend_bos=llm.prepend_bos, add_special_tokens=added)
    if not llm.end_ids:
        own = replace(own, end=llm.end, end_ids=())
    kept = ("bits", "block", "caption_prompt", "ask_prompt", "lora_rank", "lora_alpha", "lora_layers")
    return replace(own, **{name: getattr(llm, name) for name in kept})


def _changed_llm(llm: LlmConfig, start: Start) -> LlmConfig:
    given = start.given
    changes: dict[str, Any] = {theirs: given[ours] for ours, theirs in _LLM.items() if ours in given}
    if changes.get("source", llm.source) != llm.source:
        llm = other_llm(llm, changes["source"])
    if "end" in given:
        changes |= {"end": given["end"], "end_ids": ()}
    lora = {name: given[name] for name in _LORA if name in given}
    if llm.lora_rank and any(getattr(llm, name) != value for name, value in lora.items()):
        raise OptionError(
            f"{start.checkpoint!r} has adapters of lora_rank {llm.lora_rank}, lora_alpha {llm.lora_alpha:g}, "
            f"lora_layers {list(llm.lora_layers)}, and goes on with them: leave these fields out"
        )
    return replace(llm, adapters=None, **changes, **({} if llm.lora_rank else lora))


def with_text_branch(config: Blip2Config, start: Start) -> Blip2Config:
    """A stage-2 config whose Q-Former also reads text: by its own text branch, that of `stage1`, or BERT's.

    Raise OptionError where none fits.
    """
    qformer = config.qformer
    if qformer.text_branch:
        return replace(config, question_input=True)
    if start.stage1:
        other = read_config(start.stage1, start.parts)
        geometry = {name: getattr(other.qformer, name) for name in _GEOMETRY}
        init = other.qformer_init
    else:
        init = start.given.get("qformer_init", config.qformer_init)
        try:
            geometry = read_bert_geometry(init)
        except Blip2rtError as error:
            if not isinstance(error.__cause__, KeyError):  # a model of another kind
                raise
            geometry = dict.fromkeys(_GEOMETRY)
    shared = ("hidden_size", "layers", "heads", "intermediate_size")
    if any(geometry[name] != getattr(qformer, name) for name in shared):
        shape = f"{qformer.layers} layers x {qformer.hidden_size}"
        raise OptionError(
            f"question_to_qformer: the Q-Former of {start.checkpoint!r} reads no text yet, and "
            f"{start.stage1 or init!r} has no {shape} that do: give the stage-1 checkpoint that it came from as "
            "stage1, or its BERT as qformer_init"
        )
    sizes = {name: geometry[name] for name in ("vocab_size", "max_positions")}
    grown = replace(qformer, text_branch=True, **sizes)
    return replace(
        config, qformer=grown, qformer_init=init, question_input=True, clean_captions=True, max_text_length=32
    )


def lacks_text_branch(config: Blip2Config, start: Start) -> bool:
    """Whether the checkpoint has no text branch for a Q-Former that reads text."""
    return config.qformer.text_branch and not read_config(start.checkpoint, start.parts).qformer.text_branch


def start_from(model: Blip2, start: Start) -> None:
    """Load the checkpoint's tensors; what it has no text branch for comes from `stage1` or BERT."""
    before = read_config(start.checkpoint, start.parts)
    fresh: tuple[str, ...] = ()
    if lacks_text_branch(model.config, start):
        fresh = text_branch(model)
        if start.stage1:
            init_from_stage1(model, start.stage1, parts=start.parts)
        else:
            init_from_bert(model)
    if model.config.query_offsets and not before.query_offsets:
        fresh = (*fresh, "query_offsets")
    init_from(model, start.checkpoint, fresh, start.parts)
    if before.llm is not None and before.llm.lora_rank:
        init_adapters(model, start.checkpoint)


def text_branch(model: Blip2) -> tuple[str, ...]:
    """Names of what the Q-Former has for text alone."""
    ours = re.compile(r"qformer\.((word|position)_embeddings|text_norm|layers\.\d+\.text_ffn)\..+")
    return tuple(name for name, _ in model.named_parameters() if ours.fullmatch(name))
