"""From sources on disk to batches of pixels and texts, read ahead by worker processes.

A source is a list of images (any format of readers.py) or shards; sampling.py chooses the rows of a step. An unreadable
sample is replaced by the next one of its source and reported.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from blip2rt.errors import Blip2rtError, OptionError
from blip2rt.object_storage import is_url

from ..loop.memory import keep_freed_memory
from ..loop.signals import ignore_parent_signals
from .readers import read_data
from .samples import BadSamples, Dataset, Sample, draw_texts, error_text
from .sampling import Mixture, ShuffledOrder
from .shards import Faults, Shards
from .transforms import Transform, read_image

_FIELDS = ("path", "images", "weight")
_MAX_TRIES = 64  # consecutive bad samples
Row = tuple[int, int]  # source, position


@dataclass(frozen=True)
class ImageBatch:
    """A micro-batch of b images: either vision_features (b, N, C) or pixels (b, 3, h, w).

    groups: the texts drawn for each image; image_ids (b): equal for the same image; bad: names and reasons of samples
    that were skipped.
    """

    groups: list[list[Sample]]
    image_ids: torch.Tensor
    vision_features: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    bad: Faults = field(default_factory=list)

    def to(self, device: torch.device) -> ImageBatch:
        """Copy the tensors to the device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> ImageBatch:
        return self._moved(torch.Tensor.pin_memory)

    def _moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> ImageBatch:
        named = {name: getattr(self, name) for name in ("image_ids", "vision_features", "pixels")}
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in named.items() if tensor is not None}
        return replace(self, **moved)


class ListSource:
    """A Dataset as a source: one sample per image, with all its texts."""

    def __init__(self, data: Dataset) -> None:
        self.paths, self.groups = data.paths, data.by_image()
        self.counts = [len(self.paths)]

    def name(self, number: int) -> str:
        return str(self.paths[number])

    def read(self, number: int, faults: Faults | None = None) -> tuple[bytes, list[Sample]]:
        """Return the image file and its texts, which were checked when the list was read."""
        return self.paths[number].read_bytes(), self.groups[number]


Source = ListSource | Shards


def entry_faults(entries: tuple[dict[str, Any], ...], field: str) -> list[str]:
    """Return what is wrong with the entries of a recipe's `field`; each has path, images and weight."""
    faults = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            faults.append(f"{field}, entry {number}: {entry!r} has no path: give a mapping that has one")
            continue
        for key in entry.keys() - set(_FIELDS):
            near = difflib.get_close_matches(str(key), _FIELDS, 1)
            faults.append(f"{field}, entry {number}: unknown {key!r}: choose {near[0] if near else ', '.join(_FIELDS)}")
        if not isinstance(entry.get("images", ""), str):
            faults.append(f"{field}, entry {number}: images is {entry['images']!r}: give a folder")
        weight = entry.get("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
            faults.append(f"{field}, entry {number}: weight is {weight!r}: give a number above 0")
    if 0 < sum("weight" in entry for entry in entries if isinstance(entry, dict)) < len(entries):
        faults.append(f"some entries of {field} have a weight: give one to every entry or to none")
    return faults


def open_sources(
    entries: tuple[dict[str, Any], ...], cache: Path, bad: BadSamples, by_caption: bool = False
) -> tuple[list[Source], list[float]]:
    """Open the entries of the recipe's `train_data`; return sources and weights.

    Without weights every sample is equally likely. by_caption: skip images without a caption. Raise OptionError, which
    names all faults of all entries.
    """
    faults = entry_faults(entries, "train_data")
    if faults:
        raise OptionError("; ".join(faults))
    sources: list[Source] = []
    wrong: list[Blip2rtError] = []
    for entry in entries:
        try:
            sources.append(_open(entry, cache, bad, by_caption))
        except Blip2rtError as error:
            wrong.append(error)
    if len(wrong) > 1:
        raise OptionError("; ".join(map(str, wrong)))
    if wrong:
        raise wrong[0]
    sizes = [float(sum(source.counts)) for source in sources]
    return sources, [float(entry.get("weight", size)) for entry, size in zip(entries, sizes, strict=True)]


def _open(entry: dict[str, Any], cache: Path, bad: BadSamples, by_caption: bool) -> Source:
    path = entry["path"]
    if path.endswith(".tar") or is_url(path) or (Path(path).is_dir() and any(Path(path).glob("*.tar"))):
        return Shards(path, cache, bad)
    data = read_data(path, entry.get("images", ""), bad)
    return ListSource(data.captions(path).with_texts() if by_caption else data)


class SampleReader(TorchDataset[ImageBatch | Blip2rtError]):
    """Reads rows of (source, position), with at most `texts` texts of each image in random order.

    by_caption: skip answers.
    """

    def __init__(
        self, sources: list[Source], seed: int, transform: Transform, by_caption: bool = False, texts: int | None = None
    ) -> None:
        self.sources, self.seed, self.transform = sources, seed, transform
        self.by_caption, self.texts = by_caption, texts
        self.orders = self._orders()

    def _orders(self) -> list[ShuffledOrder]:
        return [ShuffledOrder(source.counts, (self.seed, number)) for number, source in enumerate(self.sources)]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "orders"}  # their caches cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.orders = self._orders()

    def __getitem__(self, rows: list[Row]) -> ImageBatch | Blip2rtError:
        bad: Faults = []
        try:
            read = [self._sample(source, position, bad) for source, position in rows]
        except Blip2rtError as error:  # a worker would raise it with a traceback in the message
            return error
        pixels, groups, ids = zip(*read, strict=True)
        return ImageBatch(list(groups), torch.tensor(ids), pixels=torch.stack(pixels), bad=bad)

    def _sample(self, source: int, position: int, bad: Faults) -> tuple[torch.Tensor, list[Sample], int]:
        files = self.sources[source]
        number = self.orders[source][position]
        for _ in range(min(_MAX_TRIES, self.orders[source].total)):
            try:
                data, texts = files.read(number, bad)
                if self.by_caption and not (texts := [text for text in texts if not text.prompt]):
                    raise ValueError("it has no caption, and only captions are read")
                with torch.random.fork_rng(devices=[]):  # a row's random draws do not depend on who reads it
                    # torch.manual_seed seeds GPUs too, and formats a stack for it
                    torch.default_generator.manual_seed(hash((self.seed, source, position)) % 2**62)
                    pixels = self.transform(read_image(data))
                drawn = draw_texts(texts, np.random.default_rng((self.seed, source, position)))
                return pixels, drawn[: self.texts], (source << 40) + number
            except (OSError, ValueError) as error:
                bad.append((files.name(number), error_text(error)))
                number = (number + 1) % self.orders[source].total
        raise Blip2rtError(
            f"{_MAX_TRIES} samples in a row of source {source + 1} cannot be read, such as {bad[-1]}: fix it"
        )


def load_batches(
    reader: SampleReader,
    mixture: Mixture,
    start: int,
    split: Callable[[list[Row]], list[list[Row]]],
    workers: int,
    bad: BadSamples,
) -> Iterator[tuple[int, list[ImageBatch]]]:
    """Yield (step, micro-batches) without end, from step `start` on; `split` selects this process's rows of a step."""
    micros = len(split(mixture.batch(start)))

    def rows() -> Iterator[list[Row]]:
        step = start
        while True:
            yield from split(mixture.batch(step))
            step += 1

    loader = DataLoader(
        reader,
        sampler=rows(),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_init_worker,
    )
    batches, step = iter(loader), start
    while True:
        images = [next(batches) for _ in range(micros)]
        for micro in images:
            if isinstance(micro, Blip2rtError):
                raise micro
        for sample, reason in (fault for micro in images for fault in micro.bad):
            bad.add(sample, reason)
        yield step, images
        step += 1


def _init_worker(worker: int) -> None:
    ignore_parent_signals()
    torch.set_num_threads(1)
    keep_freed_memory()
