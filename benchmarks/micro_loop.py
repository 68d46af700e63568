"""The generation loop on a model of almost nothing but a vocabulary, by pytest-benchmark: `make micro-loop`.

The graphs take next to no time, so what is left is choosing tokens; benchmarks/loop.py takes the graphs' share off.
Nothing asserts a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks import loop
from blip2rt._native import Generator, Runtime
from blip2rt.backends.ort import find_library

TOKENS, VOCABULARY, WIDTH = 32, 50272, 16
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 5},
    "beams_and_repetition_penalty": {"num_beams": 5, "repetition_penalty": 1.2},
    "no_repeat_ngram": {"no_repeat_ngram_size": 3},
    "top_k": {"do_sample": True, "top_k": 50, "seed": 0},
    "top_p": {"do_sample": True, "top_p": 0.9, "seed": 0},
}


@pytest.fixture(scope="module")
def generator() -> Iterator[Generator]:
    model = loop.opt(layers=1, hidden=WIDTH, heads=2, ffn=WIDTH, vocab=VOCABULARY)
    with contextlib.ExitStack() as stack:
        made, _ = stack.enter_context(loop.native(Runtime(str(find_library())), model, 1, bits=None))
        yield made


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_answer_of_32_tokens(benchmark: Any, generator: Generator, options: dict[str, Any]) -> None:
    prefix_embeds = np.random.default_rng().normal(size=(1, 32, WIDTH)).astype(np.float32)
    settings = {"num_beams": 1, "max_new_tokens": TOKENS, **options}
    [[(token_ids, _), *_]] = benchmark(generator.generate, prefix_embeds, [[]], settings)
    assert len(token_ids) == TOKENS
