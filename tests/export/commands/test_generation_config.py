"""Settings of generation that a checkpoint carries and a bundle does not take are named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

from export.checks.generation_config import generation_notes


def test_settings_that_are_not_taken_are_named(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(sequence_bias=[[[3, 4], -10.0]], guidance_scale=1.5)
    file = {"num_beams": 5, "repetition_penalty": 1.2, "suppress_tokens": [7], "top_k": 50}
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    given, lost = generation_notes(SimpleNamespace(config=config, generation_config=None), str(tmp_path))
    assert "num_beams 5" in given and "repetition_penalty 1.2" in given and "top_k" not in given
    assert "sequence_bias [[[3, 4], -10.0]]" in lost and "guidance_scale 1.5" in lost and "suppress_tokens [7]" in lost


def test_plain_checkpoints_have_no_notes(tmp_path: Path) -> None:
    config = transformers.LlamaConfig()
    plain = SimpleNamespace(config=config, generation_config=transformers.GenerationConfig.from_model_config(config))
    assert generation_notes(plain, str(tmp_path)) == []
