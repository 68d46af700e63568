"""One generation on the device, from prompts to token ids.

The host launches decoding steps and checks, one step behind, whether all answers have ended; streaming waits for each
step. The core's SearchBatch holds the search state: the host creates it, the device advances it, the host reads it.
"""

import time
from collections import deque
from typing import Any

import numpy as np

from ...native import Prompts
from .decoder import Decoder, SearchMemory
from .done_flags import STEPS_AHEAD


class DeviceGeneration:
    """One generation of at most `sizes.images` images. It has the decoder to itself until it ends."""

    def __init__(
        self,
        decoder: Decoder,
        batch: Any,
        prefix: np.ndarray[Any, Any],
        prompts: Prompts,
        forced_prefix: list[int],
        vocabulary: Any,
    ) -> None:
        """prefix (B, Q, D); every answer begins with forced_prefix. The first step reads the prompts."""
        self._decoder, self._batch = decoder, batch
        self._prefix, self._prompts, self._vocabulary = prefix, prompts, vocabulary
        self._forced_prefix = forced_prefix
        self._max_new_tokens = batch.plan["max_new_tokens"]
        self._deadline = time.monotonic() + batch.plan["max_time"]
        self._search: Any = None
        self._launched = 0
        self._deadline_passed = False

    @property
    def done(self) -> bool:
        return bool(self._batch.done)

    def step(self) -> list[tuple[int, int, int]]:
        """Compute the next token of each answer. Return (image, draw, token id) for every token that is final."""
        self._decoder.lane.cuda.activate()
        self._launch()
        self._search.fetch()
        added: list[tuple[int, int, int]] = self._batch.added()
        return added

    def run(self) -> None:
        """Run to the end. The device runs STEPS_AHEAD steps ahead of the host's view."""
        answers, flags = len(self._batch.plan["images"]), self._decoder.done_flags
        self._decoder.lane.cuda.activate()
        pending: deque[int] = deque()
        while self._launched < self._max_new_tokens:
            self._launch()
            pending.append(flags.record(answers))
            if self._deadline_passed or (len(pending) > STEPS_AHEAD and flags.all_set(pending.popleft(), answers)):
                break
        self._search.fetch()

    def _launch(self) -> None:
        self._deadline_passed = time.monotonic() >= self._deadline
        if self._launched == 0:
            self._read()
        else:
            if self._deadline_passed:
                self._search.mark_last_step()
            self._decoder.step()
        self._launched += 1

    def _read(self) -> None:
        decoder, sizes = self._decoder, self._decoder.sizes
        lane = decoder.lane
        self._search = SearchMemory(lane, self._batch, sizes.vocab, self._vocabulary)
        images = np.array(self._search.images)
        sources = np.repeat(images, self._search.beams)
        lane.upload("sources", sources.astype(np.int32))
        if sizes.cross is None:
            embeds, lengths = self._prefix_and_prompts([prompt + self._forced_prefix for prompt in self._prompts])
        else:
            embeds, lengths = self._prefix_and_prompts(self._prompts)
            mask = (np.arange(embeds.shape[1]) < lengths[:, None]).astype(np.int64)
            decoder.encode(embeds, mask, sources)
            decoder_prompt = [sizes.start, *self._forced_prefix]
            embeds = decoder.embed([decoder_prompt] * len(self._prompts))
            lengths = np.full(len(self._prompts), len(decoder_prompt))
        decoder.read(embeds, lengths, sources)
        if self._deadline_passed:
            self._search.mark_last_step()
        decoder.begin(self._search, lengths[images], images)

    def _prefix_and_prompts(self, prompts: Prompts) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Embeddings of [prefix][prompt] for each image (B, S, D), and their lengths (B)."""
        embeds = np.concatenate([self._prefix, self._decoder.embed(prompts)], axis=1)
        return embeds, np.array([self._prefix.shape[1] + len(prompt) for prompt in prompts])
