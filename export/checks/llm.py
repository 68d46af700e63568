"""Run a language model's written graphs, and PyTorch's model on the same rows.

Stepper runs an `llm` graph of the target ort step by step, TrtStepper one of trt. Graphs of the target
ort also choose tokens with the core's kernels, which will run them. Half of the share of greedy tokens that agree is
about the graphs' own texts, half about random ones: greedy texts soon repeat themselves, and then agree by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from blip2rt.backends.ort import open_runtime
from blip2rt.bundle import PAST_MASK, SEQLENS_K, LlmSpec
from blip2rt.modeling import streaming
from blip2rt.native import native

from ..trt.kv_cache import MASKED
from .sessions import session
from .verify import run

STEPS = 12  # tokens that the llm graph generates
FORCED = slice(1, STEPS, 2)  # lengths of the random texts after which a token is compared
_POISON = 1e3  # fills unused cache slots: a graph that reads them gives wrong logits


class Stepper:
    """A batch: call `prefill` once, then `step` as often as the capacity allows. Past and present share one buffer.

    encoded: what the decoder reads from its encoder in every step: cross_key_i, cross_value_i, encoder_mask.
    """

    def __init__(
        self, llm: ort.InferenceSession, batch: int, capacity: int, encoded: Mapping[str, np.ndarray] | None = None
    ) -> None:
        inputs = {value.name: value for value in llm.get_inputs()}
        _, heads, _, width = inputs["past_key_0"].shape
        self.session, self.encoded = llm, dict(encoded or {})
        self.layers = sum(name.startswith("past_key_") for name in inputs)
        self.lengths = np.zeros(batch, np.int64)
        self.cache = self._make_cache(inputs, (2 * self.layers, batch, heads, capacity, width))

    def prefill(self, inputs_embeds: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """inputs_embeds (B,S,D) padded on the right, lengths (B) -> logits (B,V) after each row's last position"""
        return self._run(inputs_embeds, lengths.astype(np.int64))

    def step(self, inputs_embeds: np.ndarray) -> np.ndarray:
        """inputs_embeds (B,1,D) -> logits (B,V)"""
        return self._run(inputs_embeds, np.ones_like(self.lengths))

    def _make_cache(self, inputs: Mapping[str, ort.NodeArg], shape: tuple[int, ...]) -> Any:
        return [ort.OrtValue.ortvalue_from_numpy(buffer) for buffer in np.full(shape, _POISON, np.float32)]

    def _run(self, inputs_embeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Read counts (B) new positions of each row."""
        inputs, outputs = native.component_tensors("llm", self.layers)
        positions = self.lengths[:, None] + np.arange(inputs_embeds.shape[1])
        self.lengths = self.lengths + counts
        feeds = (
            np.ascontiguousarray(inputs_embeds, np.float32),
            positions,
            counts - 1,
            (self.lengths - 1).astype(np.int32),
            np.array(self.lengths.max(), np.int32),
        )
        binding = self.session.io_binding()
        for name, array in (*zip(inputs, feeds, strict=False), *self.encoded.items()):
            binding.bind_cpu_input(name, array)
        for past, present, buffer in zip(inputs[5:], outputs[1:], self.cache, strict=True):
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()  # outputs come in the order of binding


class TrtStepper(Stepper):
    """The same for graphs of the target trt, before a plan is built."""

    def _make_cache(self, inputs: Mapping[str, ort.NodeArg], shape: tuple[int, ...]) -> Any:
        return np.full(shape, _POISON, np.float16 if "float16" in inputs["past_key_0"].type else np.float32)

    def _run(self, inputs_embeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
        inputs, outputs = native.component_tensors("llm", self.layers, target="trt")
        filled = np.arange(self.cache[0].shape[2]) < self.lengths[:, None]
        feeds = {
            "inputs_embeds": np.ascontiguousarray(inputs_embeds, np.float32),
            "position_ids": self.lengths[:, None] + np.arange(inputs_embeds.shape[1]),
            "last_index": counts - 1,
            PAST_MASK: np.where(filled, 0, MASKED).astype(np.float32),
            **dict(zip(inputs[4:], self.cache, strict=True)),
            **self.encoded,
        }
        logits, *fresh = self.session.run(list(outputs), feeds)
        for buffer, new in zip(self.cache, fresh, strict=True):
            for row, count in enumerate(counts):
                start = self.lengths[row]
                buffer[row, :, start : start + count] = new[row, :, :count]
        self.lengths = self.lengths + counts
        found: np.ndarray = logits
        return found


@dataclass(frozen=True)
class LlmGraphs:
    """The language model's graphs; only an encoder-decoder has `encoder` and `start`, its decoder's first token."""

    llm: Path
    embed: Path
    encoder: Path | None = None
    start: int | None = None
    open: Callable[[Path], Any] = session

    def run(self, rows: Sequence[np.ndarray], tokens: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """rows (S_b,D), continued greedily or by tokens (B,STEPS) -> tokens (B,STEPS), logits (B,STEPS,V)"""
        table, batch = self.open(self.embed), len(rows)
        padded, mask = _pad(rows)
        encoded, lengths = None, mask.sum(1)
        if self.encoder is not None:
            encoded = {
                **run(self.encoder, {"inputs_embeds": padded, "attention_mask": mask}, self.open),
                "encoder_mask": mask,
            }
            padded = table.run(None, {"token_ids": np.full((batch, 1), self.start, np.int64)})[0]
            lengths = np.ones(batch, np.int64)
        opened = self.open(self.llm)
        kind = Stepper if SEQLENS_K in {value.name for value in opened.get_inputs()} else TrtStepper
        stepper = kind(opened, batch, int(lengths.max()) + STEPS, encoded)
        logits, chosen = [stepper.prefill(padded, lengths).copy()], []
        for step in range(STEPS):
            chosen.append(logits[-1].argmax(-1) if tokens is None else tokens[:, step])
            if step + 1 < STEPS:
                ids = chosen[-1][:, None].astype(np.int64)
                logits.append(stepper.step(table.run(None, {"token_ids": ids})[0]).copy())
        return np.stack(chosen, 1), np.stack(logits, 1)


@torch.no_grad()
def llm_logits(language: Any, rows: Sequence[np.ndarray], tokens: np.ndarray, start: int | None) -> np.ndarray:
    """Return PyTorch's logits (B,STEPS,V) before each of `tokens` (B,STEPS), in one pass of a causal model.

    Rows are padded on the right, which a causal model does not see.
    """
    with streaming.streamed(language):
        if start is not None:
            padded, mask = _pad(rows)
            ids = np.concatenate((np.full((len(rows), 1), start), tokens[:, :-1]), 1)
            return language(
                inputs_embeds=torch.from_numpy(padded),
                attention_mask=torch.from_numpy(mask),
                decoder_input_ids=torch.from_numpy(ids),
                use_cache=False,
            ).logits.numpy()
        table = language.get_input_embeddings()(torch.from_numpy(tokens)).numpy()
        padded, _ = _pad([np.concatenate((row, table[b, :-1])) for b, row in enumerate(rows)])
        logits = language(inputs_embeds=torch.from_numpy(padded), use_cache=False).logits
    return np.stack([logits[b, len(row) - 1 :][:STEPS].numpy() for b, row in enumerate(rows)])


def _pad(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """rows (S_b,D) -> (B,S,D) with zeros on the right, mask (B,S) int64"""
    lengths = np.array([len(row) for row in rows])
    padded = np.zeros((len(rows), lengths.max(), rows[0].shape[1]), np.float32)
    for b, row in enumerate(rows):
        padded[b, : len(row)] = row
    return padded, (np.arange(padded.shape[1])[None] < lengths[:, None]).astype(np.int64)


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
