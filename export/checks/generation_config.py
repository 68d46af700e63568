"""Settings of generation that a checkpoint carries and that a bundle does not take, in words.

A bundle has defaults of its own; callers choose theirs. Knows Hugging Face's configs, no weights and no graphs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip2rt.modeling.sources import fetch

FILE = "generation_config.json"
_OPTIONS = (
    "num_beams", "max_new_tokens", "min_new_tokens", "length_penalty", "early_stopping", "repetition_penalty",
    "no_repeat_ngram_size", "do_sample", "temperature", "top_k", "top_p", "min_p", "max_time", "stop_strings",
)  # fmt: skip  # whoever calls may give them
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1), "length_penalty": (None, 1.0), "early_stopping": (None, False),
    "repetition_penalty": (None, 1.0), "no_repeat_ngram_size": (None, 0), "do_sample": (None, False),
    "temperature": (None, 1.0), "top_k": (None, 50), "top_p": (None, 1.0), "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0), "diversity_penalty": (None, 0.0), "num_beam_groups": (None, 1),
    "guidance_scale": (None, 1, 1.0), "typical_p": (None, 1.0), "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "remove_invalid_values": (None, False), "renormalize_logits": (None, False), "min_length": (None, 0),
    "num_return_sequences": (None, 1), "max_length": (None, 20), "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
}  # fmt: skip  # values that change nothing
_OTHERS = (
    "sequence_bias", "guidance_scale", "bad_words_ids", "force_words_ids", "constraints", "suppress_tokens",
    "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids",
    "exponential_decay_length_penalty", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size",
    "diversity_penalty", "num_beam_groups", "penalty_alpha", "dola_layers", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "watermarking_config", "remove_invalid_values", "renormalize_logits", "max_length", "min_length",
    "num_return_sequences", "prompt_lookup_num_tokens",
)  # fmt: skip  # nobody can give them


def generation_notes(language: Any, source: str) -> list[str]:
    """What the settings of a language model and of its folder would change, and a bundle does not do."""
    found: dict[str, Any] = {}
    config = getattr(language, "config", None)
    carried = [getattr(config, "__dict__", {}), getattr(getattr(language, "generation_config", None), "__dict__", {})]
    for values in (*carried, _file(source)):
        found |= {
            name: values[name]
            for name in (*_OPTIONS, *_OTHERS)
            if name in values and values[name] is not None and values[name] not in _NEUTRAL.get(name, (None,))
        }
    given = {name: value for name, value in found.items() if name in _OPTIONS}
    lost = {name: value for name, value in found.items() if name not in _OPTIONS}
    notes = []
    if given:
        notes.append(
            f"the checkpoint generates with {_listed(given)}; a bundle has its own defaults: give them to calls"
        )
    if lost:
        notes.append(f"the checkpoint generates with {_listed(lost)}, which a bundle does not do")
    return notes


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:60]}" for name, value in sorted(values.items()))


def _file(source: str) -> dict[str, Any]:
    """generation_config.json of a folder; nothing where there is none."""
    file = Path(fetch(source)) / FILE
    try:
        values = json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
