"""List generation settings of a checkpoint that a bundle does not adopt. A bundle has its own defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip2rt.modeling.sources import read_json

FILE = "generation_config.json"
_OPTIONS = (  # callers of a bundle can set these
    "num_beams max_new_tokens min_new_tokens length_penalty early_stopping repetition_penalty no_repeat_ngram_size "
    "do_sample temperature top_k top_p min_p max_time stop_strings".split()
)
_UNAVAILABLE = (
    "sequence_bias guidance_scale bad_words_ids force_words_ids constraints suppress_tokens begin_suppress_tokens "
    "forced_bos_token_id forced_eos_token_id forced_decoder_ids exponential_decay_length_penalty "
    "encoder_repetition_penalty encoder_no_repeat_ngram_size diversity_penalty num_beam_groups penalty_alpha "
    "dola_layers typical_p epsilon_cutoff eta_cutoff watermarking_config remove_invalid_values renormalize_logits "
    "max_length min_length num_return_sequences prompt_lookup_num_tokens".split()
)
_NEUTRAL: dict[str, Any] = json.loads("""{
    "num_beams": 1, "length_penalty": 1.0, "early_stopping": false, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "do_sample": false, "temperature": 1.0, "top_k": 50, "top_p": 1.0,
    "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0, "diversity_penalty": 0.0,
    "num_beam_groups": 1, "guidance_scale": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
    "remove_invalid_values": false, "renormalize_logits": false, "min_length": 0, "num_return_sequences": 1,
    "max_length": 20, "suppress_tokens": [], "begin_suppress_tokens": []
}""")  # values without an effect


def generation_notes(language: Any, folder: str) -> list[str]:
    """Describe the settings of a language model and its folder that change its texts and that a bundle ignores."""
    settings: dict[str, Any] = {}
    for config in (getattr(language, "config", None), getattr(language, "generation_config", None)):
        settings |= _effective(getattr(config, "__dict__", {}))
    settings |= _effective(_read_file(folder))
    notes = []
    if options := {name: settings[name] for name in settings if name in _OPTIONS}:
        notes.append(
            f"the checkpoint generates with {_list(options)}; a bundle has its own defaults: pass them to calls"
        )
    if others := {name: settings[name] for name in settings if name in _UNAVAILABLE}:
        notes.append(f"the checkpoint generates with {_list(others)}, which a bundle does not support")
    return notes


def _effective(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: values[name]
        for name in (*_OPTIONS, *_UNAVAILABLE)
        if values.get(name) is not None and (name not in _NEUTRAL or values[name] != _NEUTRAL[name])
    }


def _list(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:60]}" for name, value in sorted(values.items()))


def _read_file(folder: str) -> dict[str, Any]:
    """Read a folder's generation_config.json; empty if it is missing or damaged."""
    file = Path(folder) / FILE
    try:
        values = read_json(file) if file.is_file() else {}
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
