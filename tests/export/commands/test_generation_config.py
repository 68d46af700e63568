"""Generation settings of a checkpoint that a bundle ignores are reported."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import transformers

from blip2rt_export.checks.generation_config import generation_notes


def test_ignored_settings_are_reported(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(sequence_bias=[[[3, 4], -10.0]], guidance_scale=1.5)
    file = {"num_beams": 5, "repetition_penalty": 1.2, "suppress_tokens": [7], "top_k": 50}
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    options, others = generation_notes(SimpleNamespace(config=config, generation_config=None), str(tmp_path))
    assert all(text in options for text in ("num_beams 5", "repetition_penalty 1.2")) and "top_k" not in options
    for text in ("sequence_bias [[[3, 4], -10.0]]", "guidance_scale 1.5", "suppress_tokens [7]"):
        assert text in others


def test_default_settings_are_not_reported(tmp_path: Path) -> None:
    config = transformers.LlamaConfig()
    default = SimpleNamespace(config=config, generation_config=transformers.GenerationConfig.from_model_config(config))
    assert generation_notes(default, str(tmp_path)) == []
