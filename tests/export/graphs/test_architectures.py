"""Every text-generating architecture of transformers, tiny and random, equals transformers or is rejected.

`make parity` runs the same sweep, and writes docs/inside/parity.md.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from blip2rt.errors import Blip2rtError
from blip2rt_export.graphs import compatibility
from blip2rt_export.graphs.rotary import rope_length_limit
from blip2rt_export.language import trace_graphs
from tests import parity
from tests.seeds import seed_of
from tests.tiny import architectures

pytestmark = pytest.mark.long(40, "each architecture's graphs, traced and run")

SEED = seed_of(__name__)
_QUICK = (
    "bart",
    "bert",
    "bloom",
    "falcon",
    "marian",
    "mamba",
    "hunyuan_v1_dense",
    "longt5",
    "pegasus",
    "whisper",
    "rwkv",
    "blenderbot",
)


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
            wrong = compatibility.unsupported_reason(config, verified)
            assert wrong is not None and f"type {name!r}" in wrong and "\n" not in wrong


def test_fewer_logits_than_tokens_are_rejected() -> None:
    config = transformers.AutoConfig.for_model("llama", vocab_size=1000)
    for outputs, fits in ((None, True), (1000, True), (992, False)):
        config.output_vocab_size = outputs
        wrong = compatibility.unsupported_reason(config, True)
        assert (wrong is None) == fits and (fits or "logits for 992 of its 1,000 tokens" in wrong)


def test_untested_architectures_must_be_verified() -> None:
    unknown = transformers.AutoConfig.for_model("llama")
    unknown.model_type = "of_tomorrow"
    assert compatibility.unsupported_reason(unknown, True) is None
    assert "leave out --no-verify" in str(compatibility.unsupported_reason(unknown, False))
    for name in compatibility.COMPARED & set(architectures.names()):
        assert compatibility.unsupported_reason(transformers.AutoConfig.for_model(name), False) is None, name


def test_length_dependent_rotation_is_rejected_before_tracing() -> None:
    changing = architectures.tiny_config("phi3 with longrope that changes")
    for verified in (True, False):
        wrong = compatibility.unsupported_reason(changing, verified, architectures.MAX_POSITIONS)
        assert wrong is not None and "give --max-positions 32" in wrong and "\n" not in wrong
    assert compatibility.unsupported_reason(changing, True, 32) is None
    kinds = [{"rope_type": "longrope", "original_max_position_embeddings": limit} for limit in (64, 32, 96)]
    assert rope_length_limit(SimpleNamespace(rope_parameters=dict(zip("abc", kinds, strict=True)))) == 32


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


@pytest.mark.parametrize(("name", "field"), [("llama", "is_causal"), ("gemma3_text", "use_bidirectional_attention")])
def test_models_that_see_later_positions_are_rejected(name: str, field: str) -> None:
    config = architectures.tiny_config(name)
    assert compatibility.unsupported_reason(config, False) is None
    setattr(config, field, field != "is_causal")
    assert "positions see later ones: use another" in str(compatibility.unsupported_reason(config, True))


def test_tracing_failure_is_a_one_line_error() -> None:
    class Target:
        def llm_graphs(self, model: Any, positions: int) -> Any:
            raise RuntimeError("the first line\nand the second")

    with pytest.raises(Blip2rtError) as caught:
        list(trace_graphs(Target(), object(), 8))
    assert "cannot be traced" in str(caught.value) and "\n" not in str(caught.value)
