"""Continue a checkpoint of any format; the fields that recipe and command line give change its config."""

import os
import sys
from dataclasses import replace
from typing import Any

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.lavis import with_lavis_prompts
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.vision import VisionConfig, measured

from .model import LLM_FIELDS, LORA_FIELDS, PROMPT_FIELDS, VITS, StartingPoint, vision_config, with_template
from .recipe import Given
from .settings import VisionSettings

_MODEL = "learned_positions normalize_prefix max_text_length qformer_bits qformer_block"  # fields that change a config
_FIXED = ("queries", "query_gain")  # fields of a checkpoint's Q-Former that cannot be changed
_DROPOUTS = ("dropout", "query_dropout", "attention_dropout")
_SHARED = ("hidden_size", "layers", "heads", "intermediate_size")  # of the Q-Former's query and text branches


def from_checkpoint(start: Checkpoint, given: Given, stage: int) -> StartingPoint:
    """Continue a checkpoint, changed by the given fields. Raises OptionError."""
    config, source, language = start.config, start.source, start.language_model
    if config.stage != stage:
        other = f"use train.stage{config.stage}, which continues it"
        here = ", or give it as stage1" if stage == 2 else ""
        raise OptionError(f"start {source!r} is a checkpoint of stage {config.stage}: {other}{here}")
    faults = [
        f"{name} is {given[name]}, but {source!r} has {getattr(config.qformer, name)}: leave it out"
        for name in _FIXED
        if name in given and given[name] != (getattr(config.qformer, name) or 0)
    ]
    if faults:
        raise OptionError("; ".join(faults))
    if language is not None:
        language = _changed_llm(language, source, given)
    sources = {tuple(sorted(each.items())): each for each in (*config.sources, *given.get("sources", ()))}
    changes: dict[str, Any] = {name: given[name] for name in _MODEL.split() if name in given}
    changed = replace(
        config,
        vision=changed_vision(config, given),
        qformer=_with_dropout(config.qformer, given),
        llm=None if language is None else language.config,
        sources=tuple(sources.values()),
        **changes,
    )
    _note_assumption(start)
    return StartingPoint(changed, start.bert, language, start)


def stage1_config(stage1: Checkpoint, vision: VisionSettings, given: Given) -> Blip2Config:
    """The config of `stage1`, whose encoder and Q-Former stage 2 continues, changed by the given fields."""
    config, queries = stage1.config, stage1.config.qformer.queries
    encoder = config.vision
    if not config.vision_trained:
        encoder = vision_config(vision) if "vision_source" in given else changed_vision(config, given)
    if given.get("queries", queries) != queries:
        raise OptionError(f"queries is {given['queries']}, but {stage1.source!r} has {queries}: give that")
    _note_assumption(stage1)
    positions = given.get("learned_positions", config.learned_positions)
    return replace(config, vision=encoder, qformer=_with_dropout(config.qformer, given), learned_positions=positions)


def _note_assumption(checkpoint: Checkpoint) -> None:
    if checkpoint.assumption and os.environ.get("RANK", "0") == "0":  # of torchrun's processes, the first
        print(f"note: {checkpoint.assumption}", file=sys.stderr)


def _with_dropout(qformer: QFormerConfig, given: Given) -> QFormerConfig:
    """A checkpoint's Q-Former with the given dropout."""
    return replace(qformer, **{name: given[name] for name in _DROPOUTS if name in given})


def changed_vision(config: Blip2Config, given: Given) -> VisionConfig:
    """A checkpoint's encoder, changed by the given fields."""
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


def replaced_llm(language: LanguageModelSource, source: str) -> LanguageModelSource:
    """Another language model with the prompts and adapters of `language`; its own tokenizer and config decide the rest.

    Prompts are laid out as in Hugging Face's and LAVIS' checkpoints if `language` is from one, or else as in a fresh
    stage 2.
    """
    llm, other = language.config, LanguageModelSource(LlmConfig(source=source))
    if llm.end_ids or llm.empty_prompt_ids is not None:
        other = with_lavis_prompts(other, vicuna=llm.bos is not None and other.text_config.model_type == "llama")
    else:
        other = with_template(other.with_config(replace(other.config, prepend_bos=llm.prepend_bos)))
    changes: dict[str, Any] = {name: getattr(llm, name) for name in ("bits", "block", *PROMPT_FIELDS, *LORA_FIELDS)}
    if not llm.end_ids:
        changes |= {"end": llm.end, "end_ids": ()}
    return other.with_config(replace(other.config, **changes))


def _changed_llm(language: LanguageModelSource, checkpoint: str, given: Given) -> LanguageModelSource:
    """A checkpoint's language model, changed by the given fields. Raises OptionError."""
    changes: dict[str, Any] = {theirs: given[ours] for ours, theirs in LLM_FIELDS.items() if ours in given}
    lora = {name: changes.pop(name) for name in LORA_FIELDS if name in changes}
    if changes.get("source", language.config.source) != language.config.source:
        language = replaced_llm(language, changes["source"])
    if "end" in given:
        changes |= {"end": given["end"], "end_ids": ()}
    llm = language.config
    if llm.lora_rank and any(getattr(llm, name) != value for name, value in lora.items()):
        raise OptionError(
            f"{checkpoint!r} has adapters of lora_rank {llm.lora_rank}, lora_alpha {llm.lora_alpha:g}, "
            f"lora_layers {list(llm.lora_layers)}, which cannot be changed: leave these fields out"
        )
    return language.with_config(replace(llm, adapters=None, **changes, **({} if llm.lora_rank else lora)))


def with_text_branch(point: StartingPoint, given: Given) -> StartingPoint:
    """Let the Q-Former of stage 2 read text: by its own text branch, that of `stage1`, or BERT's.

    Raises OptionError if none fits.
    """
    config, qformer, stage1 = point.config, point.config.qformer, point.stage1
    if qformer.text_branch:
        return replace(point, config=replace(config, question_input=True))
    bert = stage1.bert if stage1 else BertSource(given.get("qformer_init", config.qformer_init))
    geometry = vars(stage1.config.qformer) if stage1 else _bert_geometry(bert)
    if any(geometry.get(name) != getattr(qformer, name) for name in _SHARED):
        assert point.start is not None
        raise OptionError(
            f"question_to_qformer: the Q-Former of {point.start.source!r} reads no text yet, and "
            f"{stage1.source if stage1 else bert.source!r} has no text branch of {qformer.layers} layers x "
            f"{qformer.hidden_size}: give the stage-1 checkpoint that it came from as stage1, or its BERT as "
            "qformer_init"
        )
    sizes = {name: geometry[name] for name in ("vocab_size", "max_positions")}
    config = replace(
        config,
        qformer=replace(qformer, text_branch=True, **sizes),
        qformer_init=bert.source,
        question_input=True,
        clean_captions=True,
        max_text_length=32,
    )
    return replace(point, config=config, bert=bert)


def _bert_geometry(bert: BertSource) -> dict[str, Any]:
    """BERT's geometry; nothing for another kind of model."""
    try:
        return bert.geometry
    except Blip2rtError as error:
        if not isinstance(error.__cause__, KeyError):
            raise
        return {}
