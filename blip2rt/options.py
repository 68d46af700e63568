"""Options of generation: the caller's over the bundle's defaults, checked together. Knows numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .errors import OptionError
from .manifest import Decoding

MAX_BEAMS = 100  # far beyond use; a typing error must not fill the memory


@dataclass(frozen=True)
class Options:
    """What the caller may set; None means the bundle's default. Meanings are Hugging Face `generate`'s."""

    num_captions: int = 1  # best texts returned for each image; up to num_beams, which grows with it if not given
    num_beams: int | None = None  # 1: greedy
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    length_penalty: float | None = None  # above 0 favours longer texts, below 0 shorter ones


def resolve(given: Options, defaults: Decoding, room: int) -> dict[str, Any]:
    """The native generator's options, without the stop ids.

    `room`: how many tokens fit after the image and the longest prompt. Raises OptionError that names every fault.
    """
    faults = _range_faults(given)
    if faults:
        raise OptionError("; ".join(faults))
    captions = given.num_captions
    beams = max(defaults.num_beams, captions) if given.num_beams is None else given.num_beams
    most, least = given.max_new_tokens, given.min_new_tokens
    if most is None:  # a default never stands in the way of what the caller asked for
        most = max(min(defaults.max_new_tokens, room), least or 1)
    if least is None:
        least = min(defaults.min_new_tokens, most)
    if captions > beams:
        faults.append(f"num_captions is {captions}, more than num_beams, {beams}: raise num_beams")
    if least > most:
        faults.append(f"min_new_tokens is {least}, more than max_new_tokens, {most}")
    if most > room:
        faults.append(f"max_new_tokens is {most}, but only {max(room, 0)} fit after the image and the prompt")
    if faults:
        raise OptionError("; ".join(faults))
    penalty = defaults.length_penalty if given.length_penalty is None else given.length_penalty
    return {
        "num_beams": int(beams),
        "num_return_sequences": int(captions),
        "max_new_tokens": int(most),
        "min_new_tokens": int(least),
        "length_penalty": float(penalty),
        "early_stopping": "false",
    }


def _range_faults(given: Options) -> list[str]:
    """Faults of each option by itself."""
    faults = [
        f"{name} is {value!r}: give a whole number from {low} {'up' if high is None else f'to {high}'}"
        for name, value, low, high in (
            ("num_captions", given.num_captions, 1, MAX_BEAMS),
            ("num_beams", given.num_beams, 1, MAX_BEAMS),
            ("max_new_tokens", given.max_new_tokens, 1, None),
            ("min_new_tokens", given.min_new_tokens, 0, None),
        )
        if value is not None and not is_whole(value, low, high)
    ]
    penalty = given.length_penalty
    if penalty is not None and not _is_finite(penalty):
        faults.append(f"length_penalty is {penalty!r}: give a finite number")
    return faults


def is_whole(value: Any, low: int, high: int | None) -> bool:
    """Whether `value` is a whole number (numpy's count, bool does not) from `low` to `high`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return False
    return bool(value >= low and (high is None or value <= high))


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not (hasattr(value, "__index__") or hasattr(value, "__float__")):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False
