"""Images and texts -> matches and embeddings, from vision_features on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import bundle as contract
from .bundle.manifest import RetrievalSpec
from .errors import CapabilityError, OptionError
from .native import cached_property
from .pipeline import BATCH, Pipeline
from .results import Match, MatchWeights
from .text import QFormerTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .backends import Floats
    from .language import Language

_CACHE_SIZE = 4096  # texts whose likelihood without an image is cached


class Matcher:
    """The retrieval graphs of a bundle. Any thread may use it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.backend, self.bundle = pipeline, pipeline.backend, pipeline.bundle

    def match(self, vision_features: Floats, texts: Sequence[str]) -> list[Match]:
        """vision_features (B, N, C), B texts -> B matches, pairwise"""
        if not len(vision_features) and not texts:
            return []
        itm_logits = self.itm_logits(vision_features, texts)  # (B, 2)
        image_embeds = self.backend.image_embeds(vision_features)  # (B, Q, E)
        text_embeds = self.backend.text_embeds(*self.tokenizer.encode(texts))  # (B, E)
        cosine = np.einsum("bqe,be->bq", image_embeds, text_embeds).max(axis=1)  # (B,)
        probability = 1 / (1 + np.exp(itm_logits[:, 0].astype(np.float64) - itm_logits[:, 1]))
        likelihood = self.likelihoods(vision_features, texts) if self.weights.likelihood else None
        columns = [probability, cosine, self.scores(itm_logits, cosine, likelihood)]
        columns += [] if likelihood is None else [likelihood]
        return [Match(*map(float, row)) for row in zip(*columns, strict=True)]

    @property
    def weights(self) -> MatchWeights:
        """How Match.score weighs its parts."""
        self.pipeline.require(contract.RETRIEVAL, "match")
        return MatchWeights(self._spec.temperature, self._spec.itm_weight, self._spec.likelihood_weight)

    def scores(
        self, itm_logits: Floats, cosine: Floats, likelihood: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """itm_logits (B, 2), cosine (B), and likelihoods (B) if they have a weight -> Match.score (B)"""
        if likelihood is None and self.weights.likelihood:
            raise OptionError("likelihood is missing, and Match.score weighs it: pass what likelihoods returns")
        return self.weights.scores(itm_logits, cosine, likelihood)

    def likelihoods(self, vision_features: Floats, texts: Sequence[str]) -> NDArray[np.float64]:
        """vision_features (B, N, C), B texts -> Match.likelihood (B), pairwise, whatever its weight."""
        self.pipeline.require((*contract.RETRIEVAL, *contract.GENERATIVE), "tell how likely a text is")
        if self._spec.mean_prefix is None:
            raise CapabilityError(
                f"bundle {self.bundle.manifest.name!r} cannot tell how likely a text is: it lacks "
                "retrieval.mean_prefix; blip2rt-train calibrate adds it"
            )
        # Consecutive texts of one image share its prefix.
        same = [i > 0 and np.array_equal(vision_features[i - 1], vision_features[i]) for i in range(len(texts))]
        images = np.cumsum(np.logical_not(same)) - 1
        prefix_embeds = self.caption_prefix(vision_features[np.logical_not(same)])
        return self._likelihood.gains(prefix_embeds, images.tolist(), list(map(self.tokenizer.written, texts)))

    def caption_prefix(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> prefix_embeds (B, Q, D) of captions"""
        self.pipeline.require(contract.GENERATIVE, "make prefix_embeds")
        prompt = self.pipeline.language.caption_prompt(None).whole
        questions = self.pipeline.question_tokens([prompt] * len(vision_features))
        return self.backend.prefix_embeds(vision_features, questions)

    def itm_logits(self, vision_features: Floats, texts: Sequence[str]) -> Floats:
        """vision_features (B, N, C), B texts -> (B, 2), pairwise: the matching head's "no match" and "match"."""
        self.pipeline.require(contract.RETRIEVAL, "match")
        return self.backend.itm_logits(vision_features, *self.tokenizer.encode(texts))

    def image_embeds(self, vision_features: Floats) -> Floats:
        """vision_features (B, N, C) -> image_embeds (B, Q, E), rows of unit length"""
        self.pipeline.require((contract.IMAGE_EMBED,), "embed_features")
        return self.backend.image_embeds(vision_features)

    def embed(self, prepared: Sequence[NDArray[np.uint8]]) -> Floats:
        """RGB images of Pipeline.prepare, at most BATCH -> image_embeds (B, Q, E)"""
        return self.image_embeds(self.pipeline.vision_features(prepared))

    def text_embeds(self, texts: Sequence[str]) -> list[Floats]:
        """Texts -> (E,) of each, of unit length"""
        chunks = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return [row for chunk in chunks for row in self.backend.text_embeds(*self.tokenizer.encode(chunk))]

    @cached_property
    def tokenizer(self) -> QFormerTokenizer:
        """The Q-Former's tokenizer."""
        return QFormerTokenizer(self.bundle.file(self._spec.tokenizer), self._spec, self.pipeline.special_tokens)

    @cached_property
    def _likelihood(self) -> Likelihood:
        llm = self.bundle.manifest.llm
        assert llm is not None and self._spec.mean_prefix is not None
        mean = np.fromfile(self.bundle.file(self._spec.mean_prefix), "<f4").astype(np.float32)
        mean_prefix = mean.reshape(1, llm.prefix_length, llm.hidden_size)
        return Likelihood(self.pipeline.language, mean_prefix, self._spec.max_text_length)

    @property
    def _spec(self) -> RetrievalSpec:
        spec = self.bundle.manifest.retrieval
        assert spec is not None, "the reader checks that retrieval comes with its components"
        return spec


class Likelihood:
    """How much likelier the language model finds a text after an image than without one. Any thread may use it.

    That is log p(text | image) - log p(text). Without the second term short and common texts would win for every image
    (Lin et al. 2024, "Revisiting the Role of Language Priors in Vision-Language Models"). p(text) is computed after the
    mean prefix_embeds of photographs.
    """

    def __init__(self, language: Language, mean_prefix: Floats, max_tokens: int) -> None:
        """mean_prefix (1, Q, D) takes the place of no image. max_tokens: longer texts are truncated."""
        self._language = language
        self._mean_prefix = mean_prefix
        self._max_tokens = max_tokens
        self._cache: dict[bytes, float] = {}  # by the text's hash: texts may be long

    def gains(self, prefix_embeds: Floats, images: Sequence[int], texts: Sequence[str]) -> NDArray[np.float64]:
        """prefix_embeds (I, Q, D), B texts, the image of each -> log p(text | image) - log p(text) (B)"""
        names = {text: hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest() for text in texts}
        cached = {text: self._cache.get(name) for text, name in names.items()}
        new = [text for text, score in cached.items() if score is None]
        rows = [*images, *[len(prefix_embeds)] * len(new)]
        prefixes = np.concatenate([prefix_embeds, self._mean_prefix]) if new else prefix_embeds
        scores = self._language.likelihoods(prefixes, rows, [*texts, *new], self._max_tokens)
        found = dict(zip(new, scores[len(texts) :].tolist(), strict=True))
        self._store({names[text]: score for text, score in found.items()})
        return scores[: len(texts)] - np.array([found[text] if text in found else cached[text] for text in texts])

    def _store(self, found: dict[bytes, float]) -> None:
        if len(self._cache) + len(found) > _CACHE_SIZE:
            self._cache = {}
        self._cache.update(found)
