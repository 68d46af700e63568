"""The batches of every step for this process: from tables with cached features, or decoded from `train_data`.

Knows data and steps, nothing about losses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.modeling.blip2 import Blip2
from blip2rt.modeling.sources import list_checkpoints
from blip2rt.modeling.vision import VisionConfig

from ..loop.parallel import this_process
from ..settings import BatchSettings, DataSettings
from .features import draw_views, open_features
from .readers import read_data
from .samples import BadSamples, Sample, draw_texts
from .sampling import Mixture, ShuffledOrder
from .shards import check_shards
from .streaming import ImageBatch, SampleReader, Source, entry_faults, load_batches, open_sources
from .transforms import train_transform

T = TypeVar("T")


def batch_features(model: Blip2, images: ImageBatch) -> torch.Tensor:
    """vision_features (b, N, C): cached ones, or those that the model's encoder computes."""
    if images.vision_features is not None:
        return images.vision_features
    assert images.pixels is not None
    return model.vision_features(images.pixels)


def split_micro_batches(accumulate: int, rows: list[T]) -> list[list[T]]:
    """Return this process's rows of a step, split into micro-batches."""
    own = list(this_process().take_share(rows))
    size = len(own) // accumulate
    return [own[i * size : (i + 1) * size] for i in range(accumulate)]


def small_data_note(sources: Sequence[Source], batch_size: int) -> str:
    """Warn if a batch has more rows than there are images; "" otherwise."""
    images = sum(sum(source.counts) for source in sources)
    if images >= batch_size:
        return ""
    return f"batch_size {batch_size} is more than the {images} images: an image repeats within a batch, lower it"


@dataclass(frozen=True)
class LoaderSettings:
    """What the batches depend on. texts: most texts per image; by_caption: read captions only, no answers."""

    data: DataSettings
    batch: BatchSettings
    vision: VisionConfig
    texts: int
    by_caption: bool


class TableLoader:
    """Batches from `train_table` or `train_tables` with cached features: rows are images, drawn by weight."""

    def __init__(self, settings: LoaderSettings, bad: BadSamples) -> None:
        self.settings, data, seed = settings, settings.data, settings.batch.seed
        entries, field = data.entries, "train_tables" if data.train_tables else "train_table"
        if data.train_tables and (faults := entry_faults(entries, field)):
            raise OptionError("; ".join(faults))
        read = [read_data(entry["path"], entry.get("images", ""), bad) for entry in entries]
        with this_process().main_first():
            opened = [open_features(each, settings.vision, data.features, bad, data.views) for each in read]
        self.sources = [source for _, source in opened]
        self.texts_of = [
            [[s for s in group if not (settings.by_caption and s.prompt)] for group in each.by_image()]
            for each, _ in opened
        ]
        this_process().require_same(f"samples of {field}", [sum(map(len, groups)) for groups in self.texts_of])
        self.images = [[i for i, group in enumerate(groups) if group] for groups in self.texts_of]
        for entry, images in zip(entries, self.images, strict=True):
            if not images:
                fix = "leave it out, or give another"
                raise Blip2rtError(f"{field}: {entry['path']} has no caption, and only captions are read: {fix}")
        weights = [float(e.get("weight", len(i))) for e, i in zip(entries, self.images, strict=True)]
        self.mixture = Mixture(weights, settings.batch.batch_size, seed)
        self.orders = [ShuffledOrder([len(images)], (seed, number)) for number, images in enumerate(self.images)]
        self.first_id = [0, *accumulate(map(len, self.texts_of))]  # image id of each table's first image

    @property
    def groups(self) -> list[list[Sample]]:
        """The texts of every image, by `image_ids`."""
        return [group for groups in self.texts_of for group in groups]

    def steps(self, start: int) -> Iterator[tuple[int, list[ImageBatch]]]:
        """Yield (step, micro-batches) without end, from step `start` on."""
        batch = self.settings.batch
        for step in count(start):
            rng = np.random.default_rng((batch.seed, step, 1))
            chosen = [(table, self.images[table][self.orders[table][at]]) for table, at in self.mixture.batch(step)]
            views = draw_views(self.settings.data.views, len(chosen), (batch.seed, step)).tolist()
            rows = [
                (table, image, view, draw_texts(self.texts_of[table][image], rng)[: self.settings.texts])
                for (table, image), view in zip(chosen, views, strict=True)
            ]  # of all processes
            yield step, [self._load(part) for part in split_micro_batches(batch.accumulate, rows)]

    def _load(self, rows: list[tuple[int, int, int, list[Sample]]]) -> ImageBatch:
        features = torch.cat([self.sources[table].get([image], [view]) for table, image, view, _ in rows])
        ids = torch.tensor([self.first_id[table] + image for table, image, _, _ in rows])
        return ImageBatch([row[3] for row in rows], ids, vision_features=features)


class StreamingLoader:
    """Batches from `train_data`, or from a `train_table` without a cache: images are decoded at every step."""

    def __init__(self, settings: LoaderSettings, bad: BadSamples, out: Path) -> None:
        self.settings, self.bad, data, seed = settings, bad, settings.data, settings.batch.seed
        with this_process().main_first():  # shards are indexed once
            sources, weights = open_sources(data.entries, Path(data.features), bad, settings.by_caption)
            if this_process().main:
                check_shards(sources, out, bool(list_checkpoints(out)))
        this_process().require_same("samples of train_data", [source.counts for source in sources])
        self.note = small_data_note(sources, settings.batch.batch_size)
        self.mixture = Mixture(weights, settings.batch.batch_size, seed)
        transform = train_transform(settings.vision, data.crop_area)
        self.reader = SampleReader(sources, seed, transform, settings.by_caption, settings.texts)

    def steps(self, start: int) -> Iterator[tuple[int, list[ImageBatch]]]:
        """Yield (step, micro-batches) without end, from step `start` on."""
        split = partial(split_micro_batches, self.settings.batch.accumulate)
        return load_batches(self.reader, self.mixture, start, split, self.settings.data.workers, self.bad)


def open_loader(settings: LoaderSettings, out: str) -> TableLoader | StreamingLoader:
    """Open the loader that the recipe's data fields ask for; `out`, the training's folder, lists unusable samples."""
    bad = open_bad_samples(out, settings.data.max_bad)
    if settings.data.encodes:
        return StreamingLoader(settings, bad, Path(out))
    return TableLoader(settings, bad)


def open_bad_samples(out: str | Path, limit: int) -> BadSamples:
    """Count unusable samples up to `limit`, listed in the training's folder; a resumed training counts on."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return BadSamples(limit, folder / "bad_samples.tsv", resume=bool(list_checkpoints(folder)))
