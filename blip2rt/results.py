"""What a model returns: texts with their scores and timings, and matches of images and texts.

Knows numbers and strings only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from .errors import DeadlineError, ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from .native import GenerationOptions


class Timings(NamedTuple):
    """Milliseconds of each stage; images that are processed together share them equally."""

    image: float = 0.0  # reading, decoding and resizing
    encoder: float = 0.0  # image encoder and Q-Former
    text: float = 0.0  # language model


_NO_TIMINGS = Timings()


class Scored(str):
    """A generated text: a `str` with attributes.

    score: sum of the tokens' log-probabilities, stop token included, over length^length_penalty
    tokens: token ids of the answer, without the stop token
    truncated: whether max_new_tokens or max_time ended the text, not the model; always set, without `scores`
    timings: milliseconds of each stage
    confidence: calibrated probability that a caption is right; None unless it was asked for (`scores=True`)
    """

    score: float
    tokens: tuple[int, ...]
    truncated: bool
    timings: Timings
    confidence: float | None

    def __new__(
        cls,
        text: str,
        score: float = 0.0,
        tokens: Sequence[int] = (),
        truncated: bool = False,
        timings: Timings = _NO_TIMINGS,
        confidence: float | None = None,
    ) -> Self:
        scored = super().__new__(cls, text)
        scored.score, scored.tokens, scored.truncated, scored.timings = score, tuple(tokens), truncated, timings
        scored.confidence = confidence
        return scored

    @property
    def text(self) -> str:
        """The text as a plain `str`."""
        return str(self)


class ScoredPair(Scored):
    """What `scores=True` returns: a Scored that unpacks to (text, score), as in blip2rt 0.1."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.text, self.score))

    def __getitem__(self, index: Any) -> Any:
        return (self.text, self.score)[index]


class Tag(str):
    """A label that an image shows: a `str` with attributes.

    probability: calibrated probability that people name it
    parents: what it is a kind of, from the most general on
    """

    probability: float
    parents: tuple[str, ...]

    def __new__(cls, name: str, probability: float, parents: Sequence[str] = ()) -> Self:
        tag = super().__new__(cls, name)
        tag.probability, tag.parents = probability, tuple(parents)
        return tag


def shaped(
    texts: list[Scored] | ImageError | None, pairs: bool, settings: GenerationOptions, on_timeout: str | None
) -> Any:
    """The texts of an image as a call returns them: one or a list, as pairs or not; an error as it is.

    texts: None if max_time passed before the first word. on_timeout: "raise" a DeadlineError then, or return None.
    """
    if texts is None and on_timeout is not None:
        raise too_late(settings.max_time, ", or give on_timeout=None to get None")
    if texts is None or isinstance(texts, ImageError):
        return texts
    if pairs:
        details = ((each.score, each.tokens, each.truncated, each.timings, each.confidence) for each in texts)
        texts = [ScoredPair(each, *more) for each, more in zip(texts, details, strict=True)]
    return texts if settings.num_return_sequences > 1 else texts[0]


def too_late(max_time: float, otherwise: str = "") -> DeadlineError:
    """The error of a generation whose max_time passed before the first word. otherwise: another way out."""
    return DeadlineError(f"max_time is {max_time:g} seconds, which passed before the first word: allow more{otherwise}")


FinishReason = Literal["stop", "length", "time"]  # the model, max_new_tokens or max_time ended the text


def finish_reason(text: Scored, settings: GenerationOptions) -> FinishReason:
    """Why a text of a generation with these settings ended."""
    if not text.truncated:
        return "stop"
    return "length" if len(text.tokens) >= settings.max_new_tokens else "time"


class Stopwatch:
    """Time the stages of a generation, and count down its max_time."""

    def __init__(self, settings: GenerationOptions) -> None:
        self._settings = settings
        self._laps = [time.perf_counter()]

    def lap(self) -> None:
        """End a stage: image, encoder, text."""
        self._laps.append(time.perf_counter())

    @property
    def remaining(self) -> GenerationOptions:
        """The settings with what is left of max_time."""
        left = self._settings.max_time - (time.perf_counter() - self._laps[0])
        return self._settings.changed(max_time=max(0.0, left)) if left < math.inf else self._settings

    @property
    def expired(self) -> bool:
        """Whether max_time has passed."""
        return self.remaining.max_time == 0.0

    def timed(self, texts: Sequence[list[Scored]]) -> list[list[Scored] | None]:
        """The texts of all images with each image's share of the stages' times; None where max_time left one token."""
        timings = Timings(*(round(1000 * (end - start) / len(texts), 3) for start, end in pairwise(self._laps)))
        for text in (text for best in texts for text in best):
            text.timings = timings
        first = [len(best[0].tokens) < 2 and finish_reason(best[0], self._settings) == "time" for best in texts]
        return [None if ended else best for ended, best in zip(first, texts, strict=True)]


@dataclass(frozen=True)
class Match:
    """How well a text describes an image."""

    probability: float  # that the text is true of the image, 0 to 1: calibrated, or `itm` if the bundle is not
    cosine: float  # between the text's embedding and the nearest query's; -1 to 1
    score: float  # itm_weight * log(itm / (1 - itm)) + cosine / temperature + likelihood_weight * likelihood
    likelihood: float | None = None  # log p(text | image) - log p(text), by the language model; None: it has no weight
    itm: float = 0.0  # probability of "match", by the image-text matching head; 0 to 1


@dataclass(frozen=True)
class MatchWeights:
    """How Match.score weighs its parts."""

    temperature: float
    itm: float = 1.0
    likelihood: float = 0.0

    def scores(
        self, itm_logits: NDArray[Any], cosine: NDArray[Any], likelihood: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """itm_logits (..., 2), cosine (...), likelihood (...) if it has a weight -> Match.score (...) float64"""
        log_odds = itm_logits[..., 1].astype(float) - itm_logits[..., 0]
        scores: NDArray[Any] = self.itm * log_odds + cosine / self.temperature
        return scores if likelihood is None else scores + self.likelihood * likelihood
