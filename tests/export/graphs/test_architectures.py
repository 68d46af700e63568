"""Every text-generating architecture of transformers, tiny and random, equals transformers or is rejected.

`make parity` runs the same sweep, and writes docs/inside/parity.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from blip2rt.errors import Blip2rtError
from blip2rt_export import targets
from blip2rt_export.checks import verify
from blip2rt_export.graphs import compatibility, masks
from blip2rt_export.language import trace_graphs
from tests import parity
from tests.export.commands_in_process import export
from tests.seeds import seed_of
from tests.tiny import architectures, onnx_validity
from tests.tiny import blip2 as tiny_blip2
from tests.tiny.language_models import build, write

pytestmark = pytest.mark.long(40, "each architecture's graphs, traced and run")

SEED = seed_of(__name__)
_QUICK = ("bart", "marian", "mamba", "hunyuan_v1_dense", "longt5", "pegasus", "whisper", "rwkv", "blenderbot")


@pytest.mark.slow
def test_every_architecture_is_equal_or_refused() -> None:
    found = parity.sweep(parity.cases(), SEED)
    assert not [name for name, (what, _) in found.items() if what in ("wrong", "failed")]
    supported = compatibility.COMPARED | architectures.VARIANTS.keys() - {"phi3 with longrope that changes"}
    assert all(what in ("equal", "tie") for name, (what, _) in found.items() if name in supported)


def test_unsupported_architectures_are_rejected_before_tracing() -> None:
    known = [name for name in _QUICK if name in architectures.names()]
    assert len(known) > 5
    for name in known:
        config = transformers.AutoConfig.for_model(name)
        for verified in (True, False):
            wrong = compatibility.unsupported_reason(config, "ort", verified)
            assert wrong is not None and f"type {name!r}" in wrong and "\n" not in wrong
    falcon = transformers.FalconConfig(alibi=True)
    assert "with ALiBi" in str(compatibility.unsupported_reason(falcon, "ort", True))


def test_untested_architectures_must_be_verified() -> None:
    unknown = transformers.AutoConfig.for_model("llama")
    unknown.model_type = "of_tomorrow"
    assert compatibility.unsupported_reason(unknown, "ort", True) is None
    assert "leave out --no-verify" in str(compatibility.unsupported_reason(unknown, "ort", False))
    for name in compatibility.COMPARED & set(architectures.names()):
        assert compatibility.unsupported_reason(transformers.AutoConfig.for_model(name), "ort", False) is None, name


def test_length_dependent_rotation_is_rejected_before_tracing() -> None:
    changing = architectures.tiny_config("phi3 with longrope that changes")
    for verified in (True, False):
        wrong = compatibility.unsupported_reason(changing, "ort", verified, architectures.MAX_POSITIONS)
        assert wrong is not None and "give --max-positions 32" in wrong and "\n" not in wrong
    assert compatibility.unsupported_reason(changing, "ort", True, 32) is None


WIDTHS = [(name, 16) for name in architectures.VARIANTS if " with heads of " in name]


@pytest.mark.parametrize(("name", "head_dim"), [("opt", 12), *WIDTHS])
def test_padded_heads_equal_transformers(name: str, head_dim: int) -> None:
    """The graphs pad heads whose width is no multiple of 8, and the core runs them."""
    kind, reason = architectures.check(name, SEED, head_dim=head_dim)
    assert kind in ("equal", "tie"), reason


def test_moshi_equals_its_uncached_forward_pass() -> None:
    """Which sees positions beyond the window that transformers' cache drops."""
    kind, reason = architectures.check("moshi with a window", SEED)
    assert kind in ("equal", "tie"), reason


@pytest.mark.parametrize(("name", "field"), [("mistral with a window", "is_causal"), ("bert", "is_decoder")])
def test_masks_that_are_not_causal_are_rejected(name: str, field: str) -> None:
    config = architectures.tiny_config(name)
    auto = transformers.AutoModelForCausalLM
    masks.require_causal_masks(auto.from_config(config))
    setattr(config, field, False)
    with pytest.raises(Blip2rtError, match="is not causal in layers 0, 1, or has other windows than its layers ask"):
        masks.require_causal_masks(auto.from_config(config))


@pytest.mark.parametrize(("name", "word"), [("bloom", "biases"), ("gemma3_text in both directions", "see later ones")])
def test_settings_without_tensorrt_support_are_rejected_before_tracing(name: str, word: str) -> None:
    config = architectures.tiny_config(name)
    for verified in (True, False):
        assert compatibility.unsupported_reason(config, "ort", verified) is None
        wrong = compatibility.unsupported_reason(config, "trt", verified)
        assert wrong is not None and word in wrong and wrong.endswith(": leave out --target trt")


def test_tracing_failure_is_a_one_line_error() -> None:
    class Target:
        def llm_graphs(self, model: Any, positions: int) -> Any:
            raise RuntimeError("the first line\nand the second")

    with pytest.raises(Blip2rtError) as caught:
        list(trace_graphs(Target(), object(), 8))
    assert "cannot be traced" in str(caught.value) and "\n" not in str(caught.value)


NAME = "gemma3_both_ways"
EXACT = 5e-6  # of the largest logit


def test_graphs_equal_transformers(tmp_path: Path) -> None:
    """Rows of different length, with hidden padding; windows narrower and wider than the rows."""
    model = build(NAME, SEED)
    assert model.config.sliding_window == 6
    graphs = write(trace_graphs(targets.ORT, model, 64), tmp_path, targets.ORT)
    for seed in range(3):
        rng = np.random.default_rng(SEED + seed)
        rows = [rng.normal(size=(length, model.config.hidden_size)).astype(np.float32) for length in (3, 14, 7, 1)]
        tokens, got = graphs.run(rows)
        want = verify.llm_logits(model, rows, tokens, None)
        assert np.abs(got - want).max() < EXACT * np.abs(want).max()
        model.config.use_bidirectional_attention = False
        other = verify.llm_logits(model, rows, tokens, None)
        model.config.use_bidirectional_attention = True
        assert np.abs(got - other).max() > 100 * EXACT * np.abs(want).max(), "causal masks give other logits"


def test_manifest_declares_bidirectional_prompts(tmp_path: Path) -> None:
    """tests/engines compare the texts of such graphs with generate."""
    checkpoint = tiny_blip2.generative(tmp_path / "hf", tiny_blip2.TEXT_CONFIGS[NAME]())
    bundle = export(checkpoint, tmp_path / "bundle")
    assert not onnx_validity.faults(bundle)
    assert json.loads((bundle / "blip2rt.json").read_text())["llm"]["bidirectional_prompt"] is True
