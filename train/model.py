"""Where a training starts from: a checkpoint of any format, changed where recipe or command line say so.

Without `start` the settings describe the model; with it the checkpoint does, and a field that is given besides changes
it. Knows configs and tensors, nothing about data or steps.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from blip2rt.errors import OptionError
from blip2rt.modeling.blip2 import Blip2, Blip2Config
from blip2rt.modeling.checkpoints import (
    init_adapters,
    init_from,
    init_from_bert,
    init_from_stage1,
    read_bert_geometry,
    read_config,
)
from blip2rt.modeling.lavis import Parts
from blip2rt.modeling.llm import LlmConfig
from blip2rt.modeling.vision import VisionConfig, measured

from .settings import VITS, TrainSettings

_MODEL = ("learned_positions", "normalize_prefix", "query_offsets", "max_text_length", "question_prompt",
          "qformer_bits", "qformer_block")  # fmt: skip
_LLM = {"llm_source": "source", "llm_bits": "bits", "llm_block": "block", "prepend_bos": "prepend_bos",
        "caption_prompt": "caption_prompt", "ask_prompt": "ask_prompt"}  # fmt: skip
_LORA = {"lora_rank": "lora_rank", "lora_alpha": "lora_alpha", "lora_layers": "lora_layers"}
_GEOMETRY = ("hidden_size", "layers", "heads", "intermediate_size", "vocab_size", "max_positions")
_FIXED = {"queries": "queries", "query_gain": "query_gain"}  # of the Q-Former, and nothing changes them


def started_config(settings: Any, stage: int) -> Blip2Config:
    """The config of `start`, changed by the fields that are given. Raises Blip2rtError."""
    config = read_config(settings.start, _parts(settings))
    if config.stage != stage:
        other = f"train.stage{config.stage} goes on from it" + (", here it is given as stage1" if stage == 2 else "")
        raise OptionError(f"start {settings.start!r} is a checkpoint of stage {config.stage}; {other}")
    faults = [
        f"{ours} is {getattr(settings, ours)}; {settings.start!r} has {getattr(config.qformer, theirs)}"
        for ours, theirs in _FIXED.items()
        if ours in settings.given and getattr(settings, ours) != (getattr(config.qformer, theirs) or 0)
    ]
    if faults:
        raise OptionError("; ".join(faults))
    changes: dict[str, Any] = {name: getattr(settings, name) for name in _MODEL if name in settings.given}
    changes["vision"] = _vision(settings, config)
    changes["sources"] = _sources(*config.sources, *settings.sources)
    if "dropout" in settings.given:
        changes["qformer"] = replace(config.qformer, dropout=settings.dropout)
    if config.llm is not None:
        changes["llm"] = _llm(settings, config.llm)
    return replace(config, **changes)


def learning_vision(settings: TrainSettings, config: Blip2Config) -> Blip2Config:
    """Checkpoints of an encoder that learns hold it, and it says another thing at every step. Raises OptionError."""
    if config.vision_trained and settings.cache_features:
        source = settings.start or getattr(settings, "stage1", "")
        raise OptionError(
            f"the encoder of {source!r} was trained, and features are cached of frozen ones; give --no-cache_features"
        )
    return replace(config, vision_trained=config.vision_trained or settings.train_vision)


def _sources(*sources: dict[str, str]) -> tuple[dict[str, str], ...]:
    """Each once."""
    return tuple({tuple(sorted(source.items())): source for source in sources}.values())


def _parts(settings: TrainSettings) -> Parts:
    """What LAVIS' files leave out, of the fields that are given."""
    named = {"vision": "vision_weights", "llm": "llm_source", "qformer_tokenizer": "qformer_init"}
    return Parts(**{part: getattr(settings, name) for part, name in named.items() if name in settings.given})


def _vision(settings: TrainSettings, config: Blip2Config) -> VisionConfig:
    given, vision = settings.given, config.vision
    changes: dict[str, Any] = {}
    if "vision_source" in given:
        vit = VITS.get(settings.vision_source)
        changes |= {"source": "vit", "vit": vit} if vit else {"source": settings.vision_source, "vit": None}
    if "vision_weights" in given and not config.vision_trained:
        changes["weights"] = settings.vision_weights or None
    if "vision_size" in given:
        changes |= {"height": settings.vision_size, "width": settings.vision_size}
    changes |= {
        name: tuple(getattr(settings, f"vision_{name}")) for name in ("mean", "std") if f"vision_{name}" in given
    }
    changed = replace(vision, **changes)
    if (changed.source, changed.height, changed.width) == (vision.source, vision.height, vision.width):
        return changed
    return measured(changed)


def _llm(settings: Any, llm: LlmConfig) -> LlmConfig:
    given = settings.given
    changes: dict[str, Any] = {theirs: getattr(settings, ours) for ours, theirs in _LLM.items() if ours in given}
    if "end" in given:
        changes |= {"end": settings.end, "end_ids": ()}
    lora = {theirs: getattr(settings, ours) for ours, theirs in _LORA.items() if ours in given}
    if llm.lora_rank and any(getattr(llm, name) != value for name, value in lora.items()):
        raise OptionError(
            f"{settings.start!r} has adapters of lora_rank {llm.lora_rank}, lora_alpha {llm.lora_alpha:g}, lora_layers "
            f"{list(llm.lora_layers)}, and goes on with them; leave these fields out"
        )
    return replace(llm, adapters=None, **changes, **({} if llm.lora_rank else lora))


def with_text_branch(settings: Any, config: Blip2Config) -> Blip2Config:
    """A stage-2 config whose Q-Former also reads text: with the text branch of `start`, of `stage1`, or BERT's.

    Raises OptionError: there is none that fits.
    """
    qformer = config.qformer
    if qformer.text_branch:
        return replace(config, question_input=True)
    if settings.stage1:
        other = read_config(settings.stage1)
        geometry = {name: getattr(other.qformer, name) for name in _GEOMETRY}
        init = other.qformer_init
    else:
        init = settings.qformer_init if "qformer_init" in settings.given else config.qformer_init
        try:
            geometry = read_bert_geometry(init)
        except KeyError:
            geometry = dict.fromkeys(_GEOMETRY)
    shared = ("hidden_size", "layers", "heads", "intermediate_size")
    if any(geometry[name] != getattr(qformer, name) for name in shared):
        shape = f"{qformer.layers} layers x {qformer.hidden_size}"
        raise OptionError(
            f"question_to_qformer: the Q-Former of {settings.start!r} reads no text yet, and "
            f"{settings.stage1 or init!r} has no {shape} that do; give the stage-1 checkpoint that it came from as "
            "stage1, or its BERT as qformer_init"
        )
    sizes = {name: geometry[name] for name in ("vocab_size", "max_positions")}
    grown = replace(qformer, text_branch=True, **sizes)
    return replace(
        config, qformer=grown, qformer_init=init, question_input=True, clean_captions=True, max_text_length=32
    )


def lacks_text_branch(settings: Any, config: Blip2Config) -> bool:
    """Whether `start` has no text branch for a Q-Former that reads text."""
    return config.qformer.text_branch and not read_config(settings.start, _parts(settings)).qformer.text_branch


def start_from(model: Blip2, settings: Any) -> None:
    """The tensors of `start`; what it has no text branch for comes from `stage1` or BERT."""
    parts = _parts(settings)
    before = read_config(settings.start, parts)
    fresh: tuple[str, ...] = ()
    if lacks_text_branch(settings, model.config):
        fresh = text_branch(model)
        if settings.stage1:
            init_from_stage1(model, settings.stage1)
        else:
            init_from_bert(model)
    if model.config.query_offsets and not before.query_offsets:
        fresh = (*fresh, "query_offsets")
    init_from(model, settings.start, fresh, parts)
    if before.llm is not None and before.llm.lora_rank:
        init_adapters(model, settings.start)


def text_branch(model: Blip2) -> tuple[str, ...]:
    """Names of what the Q-Former has for text alone."""
    ours = re.compile(r"qformer\.((word|position)_embeddings|text_norm|layers\.\d+\.text_ffn)\..+")
    return tuple(name for name, _ in model.named_parameters() if ours.fullmatch(name))
