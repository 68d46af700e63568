"""Rows of every step for this process: from one table with cached features, or from `train_data` through loader.py.

Knows sources and steps; what a row's texts are for is the stages' business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from blip2rt.errors import Blip2rtError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.vision import VisionConfig

from ..loop.parallel import Parallel
from ..settings import TrainSettings
from .features import FeatureSource, draw_views
from .loader import Images, Reader, image_batches, open_sources
from .order import Mixture
from .readers import read_data
from .samples import Bad, Dataset, Sample, batches, draw_texts
from .transforms import train_transform

T = TypeVar("T")


@dataclass(frozen=True)
class Rows:
    """A micro-batch of b images: either vision_features (b, N, C) or pixels (b, 3, h, w).

    groups: the texts drawn of each image; image_ids (b): equal for the same image.
    """

    groups: list[list[Sample]]
    image_ids: torch.Tensor
    vision_features: torch.Tensor | None = None
    pixels: torch.Tensor | None = None


def to_device(rows: Rows, device: torch.device) -> Rows:
    """The same with its tensors on the device."""

    def move(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.to(device, non_blocking=True)

    ids = rows.image_ids.to(device)
    return Rows(rows.groups, ids, vision_features=move(rows.vision_features), pixels=move(rows.pixels))


def seen_features(model: Blip2, rows: Rows) -> torch.Tensor:
    """vision_features (b, N, C) of the rows: cached ones, or the model's encoder's."""
    if rows.vision_features is not None:
        return rows.vision_features
    assert rows.pixels is not None
    return model.vision_features(rows.pixels)


def divide(parallel: Parallel, settings: TrainSettings, rows: list[T]) -> list[list[T]]:
    """This process' rows of a step, by micro-batch."""
    own = list(parallel.share(rows))
    each = len(own) // settings.accumulate
    return [own[i * each : (i + 1) * each] for i in range(settings.accumulate)]


class TableFeed:
    """`train_table` with cached features. by_caption: a row is a caption, and captions of similar length come together;
    otherwise it is an image with up to `texts` of its texts."""

    def __init__(
        self, settings: TrainSettings, parallel: Parallel, vision: VisionConfig, texts: int, by_caption: bool
    ) -> None:
        self.settings, self.parallel, self.texts, self.by_caption = settings, parallel, texts, by_caption
        self.data: Dataset = read_data(settings.train_table, settings.images, bad_samples(settings))
        with parallel.main_first():
            self.vision = FeatureSource(self.data.paths, vision, settings, settings.views)

    def rows(self, start: int) -> Iterator[tuple[int, list[Rows]]]:
        """Endless (step, micro-batches) from step `start` on."""
        settings, samples, groups = self.settings, self.data.samples, self.data.by_image()
        count = len(samples) if self.by_caption else len(groups)
        lengths = np.array([len(sample.text.split()) for sample in samples]) if self.by_caption else None
        for step, chosen in batches(count, settings.batch_size, settings.seed, start, lengths):
            if self.by_caption:
                drawn = [[samples[i]] for i in chosen]
            else:
                rng = np.random.default_rng((settings.seed, step, 1))
                drawn = [draw_texts(groups[i], rng)[: self.texts] for i in chosen]
            views = draw_views(settings.views, len(drawn), (settings.seed, step))
            whole = [
                (group[0].image, view, group) for group, view in zip(drawn, views.tolist(), strict=True)
            ]  # of all processes: draws are the same in each
            yield step, [self._rows(part) for part in divide(self.parallel, settings, whole)]

    def _rows(self, part: list[tuple[int, int, list[Sample]]]) -> Rows:
        images = [row[0] for row in part]
        features = self.vision.get(images, [row[1] for row in part])
        return Rows([row[2] for row in part], torch.tensor(images), vision_features=features)


class SourcesFeed:
    """`train_data`, or a `train_table` without a cache: a row is an image with up to `texts` of its texts."""

    def __init__(self, settings: TrainSettings, parallel: Parallel, vision: VisionConfig, texts: int) -> None:
        self.settings, self.parallel, self.texts = settings, parallel, texts
        self.bad = bad_samples(settings)
        with parallel.main_first():  # indices of shards are made once
            sources, weights = open_sources(data_entries(settings), Path(settings.features), self.bad)
        self.mixture = Mixture(weights, settings.batch_size, settings.seed)
        transform = train_transform(vision, settings.crop_area)
        self.reader = Reader(sources, settings.seed, transform)

    def rows(self, start: int) -> Iterator[tuple[int, list[Rows]]]:
        """Endless (step, micro-batches) from step `start` on."""

        def parts(rows: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
            return divide(self.parallel, self.settings, rows)

        for step, micros in image_batches(self.reader, self.mixture, start, parts, self.settings.workers, self.bad):
            yield step, [self._rows(images) for images in micros]

    def _rows(self, images: Images) -> Rows:
        return Rows([group[: self.texts] for group in images.groups], images.image_ids, pixels=images.pixels)


def encodes(settings: TrainSettings) -> bool:
    """Whether the encoder is asked at every step, and not once for a cache."""
    return bool(settings.train_data) or not settings.cache_features


def data_entries(settings: TrainSettings) -> tuple[dict[str, Any], ...]:
    """`train_data`, of which a `train_table` would be the only entry."""
    return settings.train_data or ({"path": settings.train_table, "images": settings.images},)


def open_feed(
    settings: TrainSettings, parallel: Parallel, vision: VisionConfig, texts: int, by_caption: bool
) -> TableFeed | SourcesFeed:
    """Where the recipe says its data are."""
    if settings.train_data and settings.train_table:
        raise Blip2rtError("train_table and train_data are both given; give a table as an entry of train_data")
    if encodes(settings):
        return SourcesFeed(settings, parallel, vision, texts)
    return TableFeed(settings, parallel, vision, texts, by_caption)


def bad_samples(settings: TrainSettings) -> Bad:
    """Counted against `max_bad`, listed in the training's folder."""
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    return Bad(settings.max_bad, out / "bad_samples.tsv")
