"""What the graphs say about images and texts: embeddings, logits of the matching head, likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..bundle import GENERATIVE, IMAGE_EMBED, RETRIEVAL
from ..bundle.manifest import RetrievalSpec
from ..errors import CapabilityError
from ..language import Prompt, open_qformer_tokenizer
from ..native import cached_property, native
from ..pipeline import BATCH, Pipeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..backends import Floats
    from ..native import GainRun, Labels, QFormerTokenizer, Signals

    Numbers = NDArray[np.float64]

_ANSWERS = " yes", " no"
_LABEL_LISTS = 4  # whose embeddings are kept


class Evidence:
    """The retrieval graphs of a bundle, and its language model's opinion of texts. Any thread may use it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.backend, self.bundle = pipeline, pipeline.backend, pipeline.bundle
        self._label_embeds: dict[tuple[str, ...], Floats] = {}
        self._gain = native.ImageGain()

    def image_embeds(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> image_embeds (B, Q, E), rows of unit length"""
        self.pipeline.require((IMAGE_EMBED,), "embed_features")
        return self.backend.image_embeds(vision_features)

    def embed(self, prepared: Sequence[NDArray[np.uint8]]) -> Floats:
        """RGB images of Pipeline.prepare, at most BATCH -> image_embeds (B, Q, E)"""
        return self.image_embeds(self.pipeline.vision_features(prepared))

    def text_embeds(self, texts: Sequence[str]) -> list[Floats]:
        """Texts -> (E,) of each, of unit length"""
        chunks = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return [row for chunk in chunks for row in self.backend.text_embeds(*self.tokenizer.encode(chunk))]

    def label_embeds(self, labels: Labels) -> Floats:
        """L labels -> text_embeds (L, E). Those of the last lists are kept."""
        texts = tuple(labels.embedded)
        embeds = self._label_embeds.get(texts)
        if embeds is None:
            embeds = np.stack(self.text_embeds(texts))
            self._label_embeds = {**dict(list(self._label_embeds.items())[1 - _LABEL_LISTS :]), texts: embeds}
        return embeds

    def itm_logits(self, vision_features: Floats, texts: Sequence[str]) -> Floats:
        """vision_features (B, N, C), B texts -> (B, 2), pairwise: the matching head's "no match" and "match"."""
        self.pipeline.require(RETRIEVAL, "match")
        return self.backend.itm_logits(vision_features, *self.tokenizer.encode(texts))

    def likelihoods(self, vision_features: Floats, texts: Sequence[str]) -> Numbers:
        """vision_features (B, N, C), B texts -> Match.likelihood (B), pairwise, whatever its weight."""
        self._require_likelihood("tell how likely a text is")
        prefix_embeds, images = self._shared_prefixes(vision_features)
        prompt, token_ids = self.pipeline.language.caption_tokens(
            list(map(self.tokenizer.written, texts)), prefix_embeds.shape[1], self._spec.max_text_length
        )
        given, without = self._compared(prefix_embeds, self._gain.texts(len(prefix_embeds), images, prompt, token_ids))
        return given - without

    def yes_odds(self, vision_features: Floats, questions: Sequence[str]) -> tuple[Numbers, Numbers]:
        """vision_features (B, N, C), B questions -> log p(yes) - log p(no), with the image and without (B), pairwise.

        Raises CapabilityError without a language model or retrieval.mean_prefix.
        """
        self._require_likelihood("weigh yes against no")
        language = self.pipeline.language
        prefix_embeds, images = self._shared_prefixes(vision_features)
        asked = [language.encode(language.ask_prompt(question)) for question in questions]
        answers = [language.encode_more(Prompt(answer)) for answer in _ANSWERS]
        shares = not language.spec.encoder_decoder  # a prompt's words may begin a text instead
        return self._compared(prefix_embeds, self._gain.questions(len(prefix_embeds), images, asked, answers, shares))

    def _compared(self, prefix_embeds: Floats, run: GainRun) -> tuple[Numbers, Numbers]:
        """prefix_embeds (I, Q, D) -> values with the image and without (B)"""
        assert self.mean_prefix is not None
        prefixes = np.concatenate([prefix_embeds, self.mean_prefix])[run.prefixes]
        logs = self.backend.likelihoods(prefixes, run.prompts, run.images, run.texts)
        given, without = self._gain.finish(run, logs.tolist())
        return np.array(given), np.array(without)

    def answer_scores(self, prefix_embeds: Floats, questions: Sequence[str], answers: Sequence[str]) -> Numbers:
        """prefix_embeds (B, Q, D), B questions, A answers -> how likely each answer is (B, A)

        That is log p(answer | image, question), less a part of what it is behind the mean_prefix, if there is one.
        """
        count, prior = len(questions), self.mean_prefix
        if prior is not None:
            prefix_embeds, questions = np.concatenate([prefix_embeds, np.repeat(prior, count, 0)]), [*questions] * 2
        found = self.pipeline.language.answer_likelihoods(prefix_embeds, questions, answers)
        scores = native.answer_scores(found[:count].ravel().tolist(), found[count:].ravel().tolist())
        return np.array(scores).reshape(count, len(answers))

    def measure(self, signals: Signals, vision_features: Floats) -> Signals:
        """Run what signals of B texts need: vision_features (B, N, C)"""
        outputs: Mapping[str, Callable[[Floats, list[str]], object]] = {
            "image_embeds": lambda features, _: self.image_embeds(features),
            "text_embeds": lambda _, texts: self.text_embeds(texts),
            "itm_logits": self.itm_logits,
            "likelihoods": self.likelihoods,
            "yes_odds": lambda features, questions: np.stack(self.yes_odds(features, questions), -1),
        }
        for number, (output, pairs, texts) in enumerate(signals.runs):
            values = outputs[output](vision_features[pairs], texts)
            signals.add(number, np.asarray(values, np.float64).reshape(len(texts) or len(pairs), -1))
        return signals

    def _shared_prefixes(self, vision_features: Floats) -> tuple[Floats, list[int]]:
        """vision_features (B, N, C) -> prefix_embeds (I, Q, D), one for equal neighbours, and the row of each"""
        same = [i > 0 and np.array_equal(vision_features[i - 1], row) for i, row in enumerate(vision_features)]
        images: list[int] = (np.cumsum(np.logical_not(same)) - 1).tolist()
        return self.caption_prefix(vision_features[np.logical_not(same)]), images

    def caption_prefix(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> prefix_embeds (B, Q, D) of captions"""
        self.pipeline.require(GENERATIVE, "make prefix_embeds")
        prompt = self.pipeline.language.caption_prompt(None).whole
        questions = self.pipeline.question_tokens([prompt] * len(vision_features))
        return self.backend.prefix_embeds(vision_features, questions)

    def caption_tokens(self, caption: str) -> list[int]:
        """The tokens of a caption, as the language model would write it."""
        return self.pipeline.language.encode_more(Prompt(caption))

    @cached_property
    def tokenizer(self) -> QFormerTokenizer:
        """The Q-Former's tokenizer."""
        return open_qformer_tokenizer(self.bundle.file(self._spec.tokenizer), self._spec, self.pipeline.special_tokens)

    def _require_likelihood(self, action: str) -> None:
        self.pipeline.require((*RETRIEVAL, *GENERATIVE), action)
        if self._spec.mean_prefix is None:
            raise CapabilityError(
                f"bundle {self.bundle.manifest.name!r} cannot {action}: it lacks retrieval.mean_prefix; "
                "blip2rt-train calibrate adds it"
            )

    @cached_property
    def mean_prefix(self) -> Floats | None:
        """The mean prefix_embeds of photographs (1, Q, D), in place of no image; None if the bundle has none."""
        retrieval, llm = self.bundle.manifest.retrieval, self.bundle.manifest.llm
        if retrieval is None or retrieval.mean_prefix is None or llm is None:
            return None
        mean = np.fromfile(self.bundle.file(retrieval.mean_prefix), "<f4").astype(np.float32)
        return mean.reshape(1, llm.prefix_length, llm.hidden_size)

    @property
    def _spec(self) -> RetrievalSpec:
        spec = self.bundle.manifest.retrieval
        assert spec is not None, "the reader checks that retrieval comes with its components"
        return spec
