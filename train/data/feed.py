"""Rows of every step for this process: from tables with cached features, or from `train_data` through loader.py.

Knows sources and steps, nothing about what a row's texts are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.checkpoints import list_checkpoints
from blip2rt.modeling.vision import VisionConfig

from ..loop.parallel import Parallel, here
from ..settings import BatchSettings, DataSettings
from .features import draw_views, open_features
from .loader import Images, Reader, Source, entry_faults, image_batches, open_sources
from .order import Mixture, Order
from .readers import read_data
from .samples import Bad, Sample, batches, draw_texts
from .shards import check_shards
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
    """The rows with their tensors on the device."""

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


def divide(parallel: Parallel, accumulate: int, rows: list[T]) -> list[list[T]]:
    """This process' rows of a step, by micro-batch."""
    own = list(parallel.share(rows))
    each = len(own) // accumulate
    return [own[i * each : (i + 1) * each] for i in range(accumulate)]


def repeats(sources: Sequence[Source], batch_size: int) -> str:
    """What is to be said where a batch has more rows than there are images; "" where it has not."""
    images = sum(sum(source.counts) for source in sources)
    if images >= batch_size:
        return ""
    return f"batch_size {batch_size} is more than the {images} images: one comes several times in a batch, lower it"


class TableFeed:
    """A `train_table` with cached features."""

    def __init__(
        self, data: DataSettings, batch: BatchSettings, vision: VisionConfig, bad: Bad, texts: int, by_caption: bool
    ) -> None:
        """by_caption: a row is a caption, and captions of similar length come together; otherwise it is an image with
        up to `texts` of its texts."""
        self.batch, self.views, self.texts, self.by_caption = batch, data.views, texts, by_caption
        read = read_data(data.train_table, data.images, bad)
        if by_caption:
            read = read.captions(data.train_table)
        with here().main_first():
            self.data, self.vision = open_features(read, vision, data.features, bad, data.views)
        here().same("samples of train_table", (len(self.data.paths), len(self.data.samples)))

    @property
    def groups(self) -> list[list[Sample]]:
        """The texts of every image, by `image_ids`."""
        return self.data.by_image()

    def rows(self, start: int) -> Iterator[tuple[int, list[Rows]]]:
        """Endless (step, micro-batches) from step `start` on."""
        seed, samples, groups = self.batch.seed, self.data.samples, self.data.by_image()
        count = len(samples) if self.by_caption else len(groups)
        lengths = np.array([len(sample.text.split()) for sample in samples]) if self.by_caption else None
        for step, chosen in batches(count, self.batch.batch_size, seed, start, lengths):
            if self.by_caption:
                drawn = [[samples[i]] for i in chosen]
            else:
                rng = np.random.default_rng((seed, step, 1))
                drawn = [draw_texts(groups[i], rng)[: self.texts] for i in chosen]
            views = draw_views(self.views, len(drawn), (seed, step))
            whole = [
                (group[0].image, view, group) for group, view in zip(drawn, views.tolist(), strict=True)
            ]  # of all processes: draws are the same in each
            yield step, [self._rows(part) for part in divide(here(), self.batch.accumulate, whole)]

    def _rows(self, part: list[tuple[int, int, list[Sample]]]) -> Rows:
        images = [row[0] for row in part]
        features = self.vision.get(images, [row[1] for row in part])
        return Rows([row[2] for row in part], torch.tensor(images), vision_features=features)


class TablesFeed:
    """`train_tables` with cached features: every row of a step is drawn from one of them, by weight."""

    def __init__(
        self, data: DataSettings, batch: BatchSettings, vision: VisionConfig, bad: Bad, texts: int, by_caption: bool
    ) -> None:
        """A row is an image with up to `texts` of its texts. by_caption: captions alone are texts."""
        self.batch, self.views, self.texts = batch, data.views, texts
        if faults := entry_faults(data.train_tables, "train_tables"):
            raise OptionError("; ".join(faults))
        read = [read_data(entry["path"], entry.get("images", ""), bad) for entry in data.train_tables]
        with here().main_first():
            opened = [open_features(each, vision, data.features, bad, data.views) for each in read]
        self.sources = [source for _, source in opened]
        self.texts_of = [
            [[s for s in group if not (by_caption and s.prompt)] for group in each.by_image()] for each, _ in opened
        ]
        here().same("samples of train_tables", [sum(map(len, groups)) for groups in self.texts_of])
        self.images = [[i for i, group in enumerate(groups) if group] for groups in self.texts_of]
        for entry, images in zip(data.train_tables, self.images, strict=True):
            if not images:
                raise Blip2rtError(
                    f"train_tables: {entry['path']} has no caption, and only captions are read: leave it out"
                )
        weights = [float(e.get("weight", len(i))) for e, i in zip(data.train_tables, self.images, strict=True)]
        self.mixture = Mixture(weights, batch.batch_size, batch.seed)
        self.orders = [Order([len(images)], (batch.seed, number)) for number, images in enumerate(self.images)]
        self.first = [0, *accumulate(map(len, self.texts_of))]  # image id of each table's first image

    @property
    def groups(self) -> list[list[Sample]]:
        """The texts of every image, by `image_ids`."""
        return [group for groups in self.texts_of for group in groups]

    def rows(self, start: int) -> Iterator[tuple[int, list[Rows]]]:
        """Endless (step, micro-batches) from step `start` on."""
        seed = self.batch.seed
        for step in count(start):
            rng = np.random.default_rng((seed, step, 1))
            chosen = [(table, self.images[table][self.orders[table][at]]) for table, at in self.mixture.batch(step)]
            views = draw_views(self.views, len(chosen), (seed, step)).tolist()
            whole = [
                (table, image, view, draw_texts(self.texts_of[table][image], rng)[: self.texts])
                for (table, image), view in zip(chosen, views, strict=True)
            ]  # of all processes: draws are the same in each
            yield step, [self._rows(part) for part in divide(here(), self.batch.accumulate, whole)]

    def _rows(self, part: list[tuple[int, int, int, list[Sample]]]) -> Rows:
        features = torch.cat([self.sources[table].get([image], [view]) for table, image, view, _ in part])
        ids = torch.tensor([self.first[table] + image for table, image, _, _ in part])
        return Rows([row[3] for row in part], ids, vision_features=features)


class SourcesFeed:
    """`train_data`, or a `train_table` without a cache: a row is an image with up to `texts` of its texts."""

    def __init__(
        self, data: DataSettings, batch: BatchSettings, vision: VisionConfig, bad: Bad, texts: int, by_caption: bool,
        out: Path,
    ) -> None:  # fmt: skip
        self.workers, self.accumulate, self.bad, self.texts = data.workers, batch.accumulate, bad, texts
        with here().main_first():  # indices of shards are made once
            sources, weights = open_sources(data.entries, Path(data.features), bad, by_caption)
            if here().main:
                check_shards(sources, out, bool(list_checkpoints(out)))
        here().same("samples of train_data", [source.counts for source in sources])
        self.few = repeats(sources, batch.batch_size)
        self.mixture = Mixture(weights, batch.batch_size, batch.seed)
        self.reader = Reader(sources, batch.seed, train_transform(vision, data.crop_area), by_caption)

    def rows(self, start: int) -> Iterator[tuple[int, list[Rows]]]:
        """Endless (step, micro-batches) from step `start` on."""

        def parts(rows: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
            return divide(here(), self.accumulate, rows)

        for step, micros in image_batches(self.reader, self.mixture, start, parts, self.workers, self.bad):
            yield step, [self._rows(images) for images in micros]

    def _rows(self, images: Images) -> Rows:
        return Rows([group[: self.texts] for group in images.groups], images.image_ids, pixels=images.pixels)


def open_feed(
    data: DataSettings, batch: BatchSettings, vision: VisionConfig, out: str, *, texts: int, by_caption: bool
) -> TableFeed | TablesFeed | SourcesFeed:
    """The feed of where the recipe says its data are; out: the training's folder, which lists unusable samples."""
    bad = bad_samples(out, data.max_bad)
    if data.encodes:
        return SourcesFeed(data, batch, vision, bad, texts, by_caption, Path(out))
    if data.train_tables:
        return TablesFeed(data, batch, vision, bad, texts, by_caption)
    return TableFeed(data, batch, vision, bad, texts, by_caption)


def bad_samples(out: str | Path, limit: int) -> Bad:
    """Counts unusable samples against `limit` and lists them in the training's folder."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return Bad(limit, folder / "bad_samples.tsv")
