"""The share of greedy tokens that a language model's written graphs choose as PyTorch does.

Half of the share is about the graphs' own texts, half about random ones: greedy texts soon repeat themselves, and then
agree by themselves. Graphs of the target ort choose with the core's kernels, which will run them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blip2rt.backends.ort import open_runtime
from blip2rt.bundle import LlmSpec
from blip2rt.native import native

from .verify import STEPS, LlmGraphs

FORCED = slice(1, STEPS, 2)  # lengths of the random texts after which a token is compared


def random_text(vocab_size: int) -> np.ndarray:
    """tokens (STEPS), the same ones in every export"""
    return np.random.default_rng(0).integers(0, vocab_size, STEPS)


class CoreTokens:
    """Greedy tokens of written graphs of the target ort, by the core.

    prefixes (B,Q,D) float32 and as many prompts, token ids.
    """

    def __init__(self, graphs: LlmGraphs, spec: LlmSpec, prefixes: np.ndarray, prompts: Sequence[list[int]]) -> None:
        self._prefixes, self._prompts = prefixes, list(prompts)

        def opened(graph: Any) -> Any:
            return None if graph is None else native.Session(open_runtime(), str(graph))

        shape = (spec.layers, spec.kv_heads, spec.head_dim, spec.hidden_size, spec.vocab_size)
        encoder, start = opened(graphs.encoder), graphs.start or 0
        self._generator = native.Generator(opened(graphs.embed), opened(graphs.llm), *shape, encoder, start)

    def texts(self) -> np.ndarray:
        """tokens (B,STEPS) after each prompt"""
        return self._generate({"max_new_tokens": STEPS})

    def after(self, text: np.ndarray) -> np.ndarray:
        """text (STEPS) -> tokens (B,n), one after each prompt and the first tokens of the text, for FORCED lengths"""
        forced = [text[:length].tolist() for length in range(STEPS)[FORCED]]
        each = [self._generate({"max_new_tokens": 1, "forced_prefix": tokens}) for tokens in forced]
        return np.concatenate(each, 1)

    def _generate(self, options: dict[str, Any]) -> np.ndarray:
        options = {"num_beams": 1, "num_return_sequences": 1, "eos_token_ids": [], **options}
        return np.array([best[0] for best, *_ in self._generator.generate(self._prefixes, self._prompts, options)])


def agreement(chosen: np.ndarray, logits: np.ndarray, after: np.ndarray, logits_after: np.ndarray) -> float:
    """The share for tokens (B,STEPS) with PyTorch's logits (B,STEPS,V), and tokens (B,n) after random texts."""
    own, random = (tokens == each.argmax(-1) for tokens, each in ((chosen, logits), (after, logits_after[:, FORCED])))
    return float((own.mean() + random.mean()) / 2)
