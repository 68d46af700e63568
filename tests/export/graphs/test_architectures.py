"""Every text-generating architecture of transformers, tiny and random, equals transformers or is rejected.

`make parity` runs the same sweep, and writes docs/parity.md.
"""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from blip2rt.errors import Blip2rtError
from export.graphs import compatibility
from export.language import trace_graphs
from tests import parity
from tests.seeds import seed_of
from tests.tiny import architectures

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
    for name in ("gemma", "gemma2", "gemma3n_text"):
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
