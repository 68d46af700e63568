"""Decoding options: the caller's, over the bundle's defaults, validated together. Knows numbers and strings only."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict

from .bundle.manifest import Decoding
from .errors import OptionError, is_whole

MAX_BEAMS = 100  # far beyond use: a typing error must not fill memory
SEEDS = 2**63
_MAX_TOKENS = 1 << 16  # of a text
_MAX_INT = 2**31 - 1  # the core's integers
_MIN_FLOAT, _MAX_FLOAT = 1e-37, 1e38  # float32
TOP_K = 50  # default of sampling, as in Hugging Face
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "seed")


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


_WHOLE = {"num_captions": (1, MAX_BEAMS), "num_beams": (1, MAX_BEAMS)}  # name -> lowest, highest
_WHOLE |= {"max_new_tokens": (1, _MAX_TOKENS), "min_new_tokens": (0, _MAX_TOKENS)}
_WHOLE |= {"no_repeat_ngram_size": (0, _MAX_INT), "top_k": (0, _MAX_INT), "seed": (0, SEEDS - 1)}
_POSITIVE = (f"a number above 0, from {_MIN_FLOAT:g} to {_MAX_FLOAT:g}", lambda x: _MIN_FLOAT <= x <= _MAX_FLOAT)
_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {  # name -> requirement, test
    "length_penalty": (f"a number from {-_MAX_FLOAT:g} to {_MAX_FLOAT:g}", lambda x: abs(x) <= _MAX_FLOAT),
    "repetition_penalty": _POSITIVE,
    "temperature": _POSITIVE,
    "top_p": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "min_p": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
    "max_time": ("a number of seconds above 0", lambda x: x > 0),
}


def merge(options: Options, given: Mapping[str, Any]) -> Options:
    """Override `options` by the keyword arguments that are not None.

    Raises OptionError for unknown ones, which also lists the faults of the others.
    """
    known = [field.name for field in fields(Options)]
    unknown = [name for name in given if name not in known]
    merged = replace(options, **{name: given[name] for name in known if given.get(name) is not None})
    if unknown:
        faults = [f"unknown option {', '.join(unknown)}: choose from {', '.join(known)}"]
        raise OptionError("; ".join([*faults, *_single_faults(merged).values()]))
    return merged


@dataclass(frozen=True)
class Room:
    """How many tokens fit after the prompt, with the words of the error if more are requested."""

    tokens: int
    behind: str  # what takes up positions, as in "the image (32), the prompt (7), of 1024 tokens in all"
    fix: str  # how to make room


def resolve(given: Options, defaults: Decoding, room: Room) -> dict[str, Any]:
    """The core's decoding options except those that need a tokenizer: stop ids, bad words, prefix, stop strings.

    Raises OptionError with every fault.
    """
    wrong = _single_faults(given)
    faults = list(wrong.values())
    given = replace(given, **{name: getattr(Options(), name) for name in wrong})  # to find the faults of the others
    captions, sampled = given.num_captions, bool(given.do_sample)
    beams = given.num_beams
    if beams is None:
        beams = 1 if sampled else max(defaults.num_beams, captions)
    most, least = given.max_new_tokens, given.min_new_tokens
    if most is None:  # a default yields to what the caller asked for
        most = max(min(defaults.max_new_tokens, room.tokens, _MAX_TOKENS), least or 1)
    if least is None:
        least = min(defaults.min_new_tokens, most)
    if captions > beams and not (sampled and beams == 1):
        fix = "raise or leave out num_beams" if sampled else "raise num_beams, or set do_sample"
        faults.append(f"num_captions is {captions}, more than num_beams, {beams}: {fix}")
    if least > most:
        faults.append(f"min_new_tokens is {least}, more than max_new_tokens, {most}")
    if room.tokens < 1:
        faults.append(f"no token fits behind {room.behind}: {room.fix}")
    elif most > room.tokens:
        option = "min_new_tokens" if given.max_new_tokens is None else "max_new_tokens"
        faults.append(f"{option} is {most}, but only {room.tokens} fit behind {room.behind}: {room.fix}, or lower it")
    if not sampled and "do_sample" not in wrong:
        idle = [name for name in _SAMPLING if getattr(given, name) is not None]
        faults += [f"{name} is {getattr(given, name)}, but sampling is off: set do_sample" for name in idle]
    if faults:
        raise OptionError("; ".join(faults))
    penalty = defaults.length_penalty if given.length_penalty is None else given.length_penalty
    settings: dict[str, Any] = {
        "num_beams": int(beams),
        "num_return_sequences": int(captions),
        "max_new_tokens": int(most),
        "min_new_tokens": int(least),
        "length_penalty": float(penalty),
        "early_stopping": str(given.early_stopping).lower(),
        "repetition_penalty": float(given.repetition_penalty),
        "no_repeat_ngram_size": int(given.no_repeat_ngram_size),
    }
    if given.max_time is not None:
        settings["max_time"] = float(given.max_time)
    if sampled:
        settings["do_sample"] = True
        settings["top_k"] = TOP_K if given.top_k is None else int(given.top_k)
        settings["seed"] = int.from_bytes(os.urandom(8), "little") % SEEDS if given.seed is None else int(given.seed)
        chosen = {name: getattr(given, name) for name in ("temperature", "top_p", "min_p")}
        settings |= {name: float(value) for name, value in chosen.items() if value is not None}
    return settings


def check_call(on_timeout: object, on_token: object, settings: Mapping[str, Any]) -> None:
    """Raise OptionError for an unknown `on_timeout`, and an `on_token` that cannot be called, or not with beams."""
    if on_timeout is not None and on_timeout != "raise":
        raise OptionError(f"on_timeout is {on_timeout!r}: give 'raise' or None")
    if on_token is not None and not callable(on_token):
        raise OptionError(f"on_token is {on_token!r}: give a function of image, draw and token_id")
    beams = settings.get("num_beams", 1)
    if on_token is not None and beams > 1:
        raise OptionError(f"on_token with num_beams {beams}: beams settle on tokens only at the end; give num_beams=1")


def strings(value: str | Sequence[str]) -> list[str]:
    """One string or several -> list."""
    return [value] if isinstance(value, str) else list(value)


def _single_faults(given: Options) -> dict[str, str]:
    """Name -> fault of each option that is invalid by itself."""
    faults = {}
    for name, (low, high) in _WHOLE.items():
        value = getattr(given, name)
        if value is not None and not is_whole(value, low, high):
            faults[name] = f"{name} is {value!r}: give a whole number from {low} to {high}"
    for name, (what, test) in _NUMBERS.items():
        value = getattr(given, name)
        if value is not None and not (_is_finite(value) and test(value)):
            faults[name] = f"{name} is {value!r}: give {what}"
    if not isinstance(given.do_sample, bool):
        faults["do_sample"] = f"do_sample is {given.do_sample!r}: give True or False"
    early = given.early_stopping
    if not isinstance(early, bool) and not (isinstance(early, str) and early == "never"):
        faults["early_stopping"] = f"early_stopping is {early!r}: give True, False or 'never'"
    if not isinstance(given.forced_prefix, str):
        faults["forced_prefix"] = f"forced_prefix is {given.forced_prefix!r}: give a str"
    for name in ("bad_words", "stop_strings"):
        value = getattr(given, name)
        whole = isinstance(value, str | list | tuple)
        if not whole or not all(map(_is_text, strings(value))):
            faults[name] = f"{name} is {value!r}: give a str or a list of str, none of them empty, of valid Unicode"
    return faults


def _is_text(value: Any) -> bool:
    """Whether `value` is a str of at least one character, without lone surrogates."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not (hasattr(value, "__index__") or hasattr(value, "__float__")):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
