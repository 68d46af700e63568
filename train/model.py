"""The model that a training starts from: its config, its frozen parts, and what initialises the rest.

Without `start` the settings describe it; warm_start.py continues a checkpoint. Does not know about data or steps.
"""

import re
from dataclasses import dataclass, replace

import torch

from blip2rt.errors import OptionError
from blip2rt.modeling.bert import BertSource
from blip2rt.modeling.blip2 import ITM_STD, Blip2, Blip2Config
from blip2rt.modeling.checkpoint import Checkpoint
from blip2rt.modeling.llm import LanguageModelSource, LlmConfig
from blip2rt.modeling.qformer import QFormerConfig
from blip2rt.modeling.sources import ExternalParts
from blip2rt.modeling.vision import VisionConfig, measured
from blip2rt.modeling.vit import CLIP_L, EVA_G

from .recipe import Given
from .settings import LlmSettings, QFormerSettings, TrainSettings, VisionSettings

VITS = {"vit:g": EVA_G, "vit:l": CLIP_L}
LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_layers")
PROMPT_FIELDS = ("caption_prompt", "ask_prompt", "no_repeat_words")
LLM_FIELDS = {  # fields of LlmSettings: those of LlmConfig
    "llm_source": "source",
    "llm_bits": "bits",
    "llm_block": "block",
    **{name: name for name in ("prepend_bos", *PROMPT_FIELDS, *LORA_FIELDS)},
}
_PARTS = {"vision": "vision_weights", "llm": "llm_source", "qformer_tokenizer": "qformer_init"}


@dataclass(frozen=True)
class StartingPoint:
    """The config of the model to train, and where its weights come from; every source is opened once."""

    config: Blip2Config
    bert: BertSource
    language_model: LanguageModelSource | None = None  # stage 2
    start: Checkpoint | None = None  # of the same stage
    stage1: Checkpoint | None = None  # of stage 1; with `start`, only the text branch comes from it

    @property
    def lacks_text_branch(self) -> bool:
        """Whether the Q-Former reads text and the checkpoint's does not."""
        return self.config.qformer.text_branch and self.start is not None and not self.start.config.qformer.text_branch

    def load_start(self, model: Blip2) -> None:
        """Copy the tensors of `start`; a text branch that it lacks comes from `stage1` or BERT."""
        assert self.start is not None
        fresh: tuple[str, ...] = ()
        if self.lacks_text_branch:
            fresh = _text_branch(model)
            if self.stage1:
                self.stage1.load_into(model, _NOT_IN_STAGE1)
            else:
                self.bert.initialize(model)
        self.start.load_into(model, fresh)
        if self.start.config.llm is not None and self.start.config.llm.lora_rank:
            self.start.load_adapters_into(model)

    def load_stage1(self, model: Blip2) -> None:
        """Copy the query branch of `stage1`."""
        assert self.stage1 is not None
        self.stage1.load_into(model, _NOT_IN_STAGE1)


_NOT_IN_STAGE1 = ("projection", "prefix_norm")


def open_checkpoint(source: str, given: Given) -> Checkpoint | None:
    """The checkpoint that a field names; parts that LAVIS' files lack are taken from the given fields."""
    parts = ExternalParts(**{part: given[name] for part, name in _PARTS.items() if name in given})
    return Checkpoint(source, parts) if source else None


def vision_config(vision: VisionSettings) -> VisionConfig:
    """The image encoder that the settings name. Raises OptionError if there is no such ViT."""
    (r, g, b), (r_std, g_std, b_std) = vision.vision_mean, vision.vision_std
    vit = VITS.get(vision.vision_source)
    if vit is None and vision.vision_source.startswith("vit:"):
        raise OptionError(f"vision_source is {vision.vision_source!r}: choose {' or '.join(VITS)}")
    if not (vision.vision_weights or vision.vision_source.startswith("hf:")):  # it would be random
        files = {"vit:g": "its file, eva_vit_g.pth", "vit:l": "its file, clip_vit_L.pth"}
        fix = files.get(vision.vision_source, "its file, or `pretrained` to download timm's")
        raise OptionError(f"vision_weights is missing for {vision.vision_source}: give {fix}, or another vision_source")
    config = VisionConfig(
        source=vision.vision_source if vit is None else "vit",
        weights=vision.vision_weights or None,
        height=vision.vision_size,
        width=vision.vision_size,
        mean=(r, g, b),
        std=(r_std, g_std, b_std),
        vit=vit,
    )
    return measured(config)


def fresh_config(settings: TrainSettings, *, text_branch: bool) -> tuple[Blip2Config, BertSource]:
    """Image encoder and Q-Former as the settings describe them, and the BERT that initialises the latter."""
    qformer, vision = settings.qformer, vision_config(settings.vision)
    bert = BertSource(qformer.qformer_init)
    config = Blip2Config(
        vision=vision,
        qformer=QFormerConfig(
            **bert.geometry,
            queries=qformer.queries,
            vision_width=vision.features,
            dropout=qformer.dropout,
            query_dropout=qformer.query_dropout,
            attention_dropout=qformer.attention_dropout,
            query_gain=qformer.query_gain or None,
            text_branch=text_branch,
        ),
        qformer_init=bert.source,
        clean_captions=True,
        learned_positions=qformer.learned_positions,
        qformer_bits=qformer.qformer_bits,
        qformer_block=qformer.qformer_block,
        sources=settings.origin.sources,
    )
    return config, bert


def language_model(llm: LlmSettings) -> LanguageModelSource:
    """The language model that the settings name."""
    config = LlmConfig(**{theirs: getattr(llm, ours) for ours, theirs in LLM_FIELDS.items()}, end=llm.end)
    return with_template(LanguageModelSource(config))


def with_template(language: LanguageModelSource) -> LanguageModelSource:
    """An encoder reads whole texts, laid out by the tokenizer's template: T5's end in </s>."""
    return language.with_config(replace(language.config, add_special_tokens=language.encoder_decoder))


def with_trained_vision(config: Blip2Config, train_vision: bool, cached: bool, source: str) -> Blip2Config:
    """The config, with the encoder in the checkpoint if it is trained or was trained in `source`.

    Raises OptionError if features of such an encoder, which differs between checkpoints, are to be cached.
    """
    if config.vision_trained and cached:
        raise OptionError(
            f"the encoder of {source!r} was trained, but features are cached of frozen ones: give --no-cache-features"
        )
    return replace(config, vision_trained=config.vision_trained or train_vision)


@torch.no_grad()
def initialize_fresh(model: Blip2, qformer: QFormerSettings, itm_std: float | None = None) -> None:
    """Draw what BERT lacks, after BertSource.initialize: the queries, [DEC]'s embedding, and in stage 1 ITM's head,
    with the given standard deviation (0: as PyTorch draws a layer)."""
    model.qformer.query_tokens.mul_(qformer.query_std)
    if model.config.qformer.text_branch and qformer.dec_std:
        torch.nn.init.normal_(model.qformer.word_embeddings.weight[-1], std=qformer.dec_std)
    if itm_std:
        model.itm_head.weight.mul_(itm_std / ITM_STD)
    elif itm_std is not None:
        model.itm_head.reset_parameters()


def training_mode(model: Blip2, train_vision: bool) -> Blip2:
    """The model in training mode; train_vision: with gradients for the encoder."""
    if train_vision:
        assert model.vision is not None
        model.vision.unfreeze()
    return model.train()


def _text_branch(model: Blip2) -> tuple[str, ...]:
    """Names of the parameters that the Q-Former uses for text alone."""
    ours = re.compile(r"qformer\.((word|position)_embeddings|text_norm|layers\.\d+\.text_ffn)\..+")
    return tuple(name for name, _ in model.named_parameters() if ours.fullmatch(name))
