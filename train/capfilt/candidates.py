"""Candidate captions of images with their scores, a batch at a time. Images are decoded ahead of the graphs, once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blip2rt.native import native

from ..data.samples import BadSamples, Sample, error_text, text_fault
from ..data.transforms import read_image
from ..evaluation.predictions import Predictions
from ..evaluation.predictors import Predictor, Sampling
from .scorers import CaptionPool, PredictorScorer, Scorer

if TYPE_CHECKING:
    from .scorers import Rgb

T = TypeVar("T")
PAPER = Sampling(10, 0.9, 0)
Stored = dict[str, Any]  # of an image: its source, and its candidates as [text, score, origin], best first


@dataclass(frozen=True)
class Item:
    """An image of a data set. key: its name there; source: where it came from; texts: captions and answers."""

    key: str
    source: str
    image: Path | bytes
    texts: Sequence[Sample]


class CapFilt:
    """Collects candidate captions of images and scores them."""

    def __init__(
        self,
        captioner: Predictor | None,
        scorer: Scorer,
        pool: CaptionPool | None = None,
        sampling: Sampling = PAPER,
        retrieved: int = 0,
    ) -> None:
        """sampling: captions besides the captioner's best; retrieved: nearest captions of the pool."""
        self.captioner, self.scorer, self.pool = captioner, scorer, pool
        self.sampling, self.retrieved = sampling, retrieved
        self._shared = isinstance(scorer, PredictorScorer) and scorer.predictor is captioner  # one encoder for both

    def prepare(self, image: Path | bytes) -> tuple[Rgb | None, Rgb]:
        """Decode an image and resize it for the captioner and the scorer. Raise ValueError or OSError."""
        decoded = read_image(image)
        own = None if self.captioner is None else self.captioner.prepare(decoded)
        return own, self.scorer.prepare(decoded) if own is None or not self._shared else own

    def candidates(
        self, prepared: Sequence[tuple[Rgb | None, Rgb]], existing: Sequence[Sequence[str]], first_image: int = 0
    ) -> list[list[tuple[str, float, str]]]:
        """Return text, score and origin of each image's candidates, best first.

        existing: the captions that each image has. first_image: number of the first image in the random streams.
        """
        own, images = zip(*prepared, strict=True)
        written: Sequence[Sequence[str]] = [()] * len(prepared)
        features = None
        if self.captioner is not None:
            features = self.captioner.vision_features(own)
            written = self.captioner.caption_candidates(features, self.sampling, first_image)
        embeds = self.scorer.images(images, features if self._shared else None)
        found: list[dict[str, float]] = [
            {} if self.pool is None else self.pool.nearest(image, self.retrieved) for image in embeds
        ]
        origins = [distinct(*each) for each in zip(existing, written, found, strict=True)]
        rows = self._text_rows(text for texts in origins for text, origin in texts.items() if origin != "pool")
        ranked = []
        for image, texts, near in zip(embeds, origins, found, strict=True):
            scores = {t: near[t] if origin == "pool" else float((image @ rows[t]).max()) for t, origin in texts.items()}
            ranked.append([(t, round(scores[t], 5), texts[t]) for t in sorted(texts, key=lambda t: -scores[t])])
        return ranked

    def _text_rows(self, texts: Iterable[str]) -> dict[str, Any]:
        """Embed each text once; texts of similar length share a batch."""
        unique = sorted(dict.fromkeys(texts), key=len)
        return dict(zip(unique, self.scorer.texts(unique), strict=True)) if unique else {}


def distinct(given: Iterable[str], written: Iterable[str], retrieved: Iterable[str]) -> dict[str, str]:
    """Texts of an image -> their origins, without unusable and duplicate texts, whatever their spelling.

    The first spelling stays. written: the captioner's best caption, followed by sampled ones.
    """
    texts = [(text, "given") for text in given]
    texts += [(text, "sampled" if i else "best") for i, text in enumerate(written)]
    found: dict[str, tuple[str, str]] = {}
    for text, origin in [*texts, *((text, "pool") for text in retrieved)]:
        if text_fault(text) is None:
            found.setdefault(native.clean_caption(text), (text, origin))
    return dict(found.values())


def store_candidates(
    items: Iterable[Item], capfilt: CapFilt, done: Predictions, batch: int, bad: BadSamples, bar: Any
) -> None:
    """Add the candidates of all items to `done`, which has those of earlier runs; a killed run loses one batch.

    Batches are cut by position, so a resumed run samples the same captions. bar: a progress bar.
    """

    def chunks() -> Iterator[tuple[int, list[Item]]]:
        first, chunk = 0, list[Item]()
        for item in items:
            chunk.append(item)
            if len(chunk) == batch:
                yield first, chunk
                first, chunk = first + batch, []
        yield first, chunk

    def decode(first: int, chunk: list[Item]) -> tuple[int, int, list[tuple[Item, Any]], list[tuple[str, str]]]:
        good, faults = list[tuple[Item, Any]](), list[tuple[str, str]]()
        for item in chunk:
            if item.key not in done.found:
                try:
                    good.append((item, capfilt.prepare(item.image)))
                except (OSError, ValueError) as error:
                    faults.append((item.source, error_text(error)))
        return first, len(chunk), good, faults

    for first, count, good, faults in _one_ahead(decode, chunks()):
        for name, reason in faults:
            bad.add(name, reason)
        if good:
            existing = [[text.text for text in item.texts if not text.prompt] for item, _ in good]
            found = capfilt.candidates([prepared for _, prepared in good], existing, first)
            values = [{"source": item.source, "candidates": each} for (item, _), each in zip(good, found, strict=True)]
            done.add([item.key for item, _ in good], values)
        bar.update(count)


def _one_ahead(work: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Yield the results of `work` in order; a thread reads the next arguments and works on them meanwhile."""
    given = iter(arguments)

    def advance() -> list[T]:
        return [work(*each) for each in islice(given, 1)]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(advance)
        while found := ahead.result():
            ahead = pool.submit(advance)
            yield found[0]


def choose(found: Stored | None, texts: Sequence[Sample], keep: int) -> list[Sample]:
    """Return the best `keep` captions of an image and its answers; none without candidates."""
    if found is None:
        return []
    kept = [Sample(0, text) for text, _, _ in found["candidates"][:keep]]
    return kept + [text for text in texts if text.prompt]
