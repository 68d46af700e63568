"""Decoding options of callers. The core validates them, over the bundle's defaults."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from .errors import OptionError
from .native import native

if TYPE_CHECKING:
    from .native import CallerOptions, GenerationOptions


@dataclass(frozen=True)
class Options:
    """Decoding options; None means the bundle's default. Meanings are those of Hugging Face's `generate`.

    Repetition, n-grams, bad words and stop strings apply to image, prompt and answer together, as in Hugging Face; with
    an encoder-decoder, to the answer alone.

    num_captions: texts for each image: the best num_captions of num_beams, or independent samples
    num_beams: 1 is greedy; with do_sample, the beams' candidates are sampled
    max_new_tokens, min_new_tokens: length of the answer, in tokens; a chat model's text ends where it begins the next
        turn, even before min_new_tokens
    length_penalty: for beams: above 0 prefers longer texts, below 0 shorter ones
    early_stopping: for beams: True stops at num_beams texts, "never" when no better text is possible
    repetition_penalty: above 1 makes repeated tokens less likely
    no_repeat_ngram_size: n-grams of this size occur once; 0 is off
    bad_words: texts that are never generated, alone or after a space
    forced_prefix: the beginning of the answer
    stop_strings: the text ends with the token that completes one of them
    max_time: seconds for the images of a batch, encoder included, after which their texts end unfinished, with
        `truncated` set. Decoding an image, the encoder and each step of the language model run to their end
    do_sample: sample tokens
    temperature: for sampling: above 1 is more varied, below 1 less
    top_k: for sampling: from this many most likely tokens; None is 50, 0 is all
    top_p: for sampling: from the most likely tokens with this total probability
    min_p: for sampling: from tokens at least this likely, relative to the most likely
    seed: for sampling: the same seed gives the same texts; None is random
    """

    num_captions: int = 1
    num_beams: int | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: str | Sequence[str] = ()
    forced_prefix: str = ""
    stop_strings: str | Sequence[str] = ()
    max_time: float | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None


class TextOptions(TypedDict, total=False):
    """The fields of Options, besides num_captions, as keywords."""

    num_beams: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    length_penalty: float | None
    early_stopping: bool | str
    repetition_penalty: float
    no_repeat_ngram_size: int
    bad_words: str | Sequence[str]
    forced_prefix: str
    stop_strings: str | Sequence[str]
    max_time: float | None
    do_sample: bool
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None


class CallOptions(TypedDict, total=False):
    """Keywords of Model.caption, caption_each and ask that decide the type of the result."""

    num_captions: int
    on_timeout: str | None


class StreamOptions(TextOptions, total=False):
    """Keywords of Model.stream."""

    question: str | None
    raw: bool
    pool: str | os.PathLike[str] | Literal[False] | None


class AskOptions(TextOptions, total=False):
    """Keywords of Model.ask besides num_captions."""

    scores: bool
    on_token: Callable[[int, int, int], object] | None


class CaptionOptions(AskOptions, total=False):
    """Keywords of Model.caption besides num_captions."""

    prompt: str | None
    raw: bool
    pool: str | os.PathLike[str] | Literal[False] | None


def merge(options: Options, given: Mapping[str, Any], captions: bool = False) -> CallerOptions:
    """Override `options` by the keyword arguments that are not None. The core's table has names, limits and messages.

    captions: also take raw and pool.

    Raises OptionError for unknown ones, which also lists the faults of the others.
    """
    return native.CallerOptions(given, native.CallerOptions(vars(options)), captions)


def given_in(args: object) -> dict[str, Any]:
    """The fields of Options that a command line gave."""
    return {field.name: getattr(args, field.name) for field in fields(Options) if hasattr(args, field.name)}


def check_call(on_timeout: object, on_token: object, settings: GenerationOptions | None) -> None:
    """Raise OptionError for an unknown `on_timeout`, and an `on_token` that cannot be called, or not with beams."""
    if on_timeout is not None and on_timeout != "raise":
        raise OptionError(f"on_timeout is {on_timeout!r}: give 'raise' or None")
    if on_token is not None and not callable(on_token):
        raise OptionError(f"on_token is {on_token!r}: give a function of image, draw and token_id")
    beams = 1 if settings is None else settings.num_beams
    if on_token is not None and beams > 1:
        raise OptionError(f"on_token with num_beams {beams}: beams settle on tokens only at the end; give num_beams=1")
