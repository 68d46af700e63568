"""Every text-generating architecture of transformers, tiny and random, equals transformers or is rejected.

`make parity` runs the same sweep, and writes docs/inside/parity.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from blip2rt.errors import Blip2rtError
from blip2rt_export import targets
from blip2rt_export.graphs import compatibility, masks
from blip2rt_export.language import trace_graphs
from tests import parity
from tests.seeds import seed_of
from tests.tiny import architectures
from tests.tiny.language_models import write

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


def longrope_gemma() -> Any:
    """Gemma 3 whose kinds of layers change their rotation at different lengths."""
    config = architectures.tiny_config("gemma3_text")
    factors = {"short_factor": [1.1] * 8, "long_factor": [4.0] * 8}
    limits = {"full_attention": 48, "sliding_attention": 8}
    config.rope_parameters = {
        kind: {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": limit, **factors}
        for kind, limit in limits.items()
    }
    return config


def test_smallest_limit_of_all_layers_counts() -> None:
    wrong = compatibility.unsupported_reason(longrope_gemma(), "ort", True, architectures.MAX_POSITIONS)
    assert wrong is not None and "give --max-positions 8" in wrong


def test_rotation_of_a_row_does_not_depend_on_longer_rows(tmp_path: Path) -> None:
    """As transformers alone, whatever the length of the others in its batch."""
    torch.manual_seed(SEED)
    model = transformers.AutoModelForCausalLM.from_config(longrope_gemma()).eval()
    graphs = write(trace_graphs(targets.ORT, model, 48), tmp_path, targets.ORT)
    rng = np.random.default_rng(SEED)
    rows = [rng.normal(size=(length, architectures.WIDTH)).astype(np.float32) for length in (3, 30)]
    tokens = np.zeros((2, 12), np.int64)
    together, alone = graphs.run(rows, tokens)[1][0], graphs.run(rows[:1], tokens[:1])[1][0]
    assert np.abs(together[:5] - alone[:5]).max() < 1e-4 * np.abs(alone).max()


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"is_causal": False}),
    "mistral with a window": ("mistral with a window", {"is_causal": False}),
    "bert": ("bert", {"is_decoder": False}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_masks_that_are_not_causal_are_rejected(name: str) -> None:
    """Also without a verification."""
    kind, changes = CONFIGS[name]
    config = architectures.tiny_config(kind)
    auto = transformers.AutoModelForCausalLM
    masks.require_causal_masks(auto.from_config(config))
    for field, value in changes.items():
        setattr(config, field, value)
    with pytest.raises(Blip2rtError, match="is not causal in layers 0, 1, or has other windows than its layers ask"):
        masks.require_causal_masks(auto.from_config(config))


@pytest.mark.parametrize(
    ("name", "word"), [("falcon with alibi", "biases"), ("gemma3_text in both directions", "see later ones")]
)
def test_settings_without_tensorrt_support_are_rejected_before_tracing(name: str, word: str) -> None:
    config = architectures.tiny_config(name)
    for verified in (True, False):
        assert compatibility.unsupported_reason(config, "ort", verified) is None
        wrong = compatibility.unsupported_reason(config, "trt", verified)
        assert wrong is not None and word in wrong and wrong.endswith(": leave out --target trt")


def test_other_bidirectional_models_are_rejected() -> None:
    for name in ("gemma", "gemma2"):
        if name in architectures.names():
            config = transformers.AutoConfig.for_model(name)
            config.use_bidirectional_attention = True
            assert "see later ones" in str(compatibility.unsupported_reason(config, "ort", True)), name


def test_tracing_failure_is_a_one_line_error() -> None:
    class Target:
        def llm_graphs(self, model: Any, positions: int) -> Any:
            raise RuntimeError("the first line\nand the second")

    with pytest.raises(Blip2rtError) as caught:
        list(trace_graphs(Target(), object(), 8))
    assert "cannot be traced" in str(caught.value) and "\n" not in str(caught.value)
