"""Images and captions from tables of `image<TAB>caption` (a third column, when there, is the prompt in between).

Knows files, rows and the order of samples; nothing about models. Every draw depends on the seed and the step alone, so
that a resumed training sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blip2rt.errors import Blip2rtError


@dataclass(frozen=True)
class Sample:
    """One text of one image; `prompt` is empty for captions."""

    image: int
    text: str
    prompt: str = ""


@dataclass(frozen=True)
class Dataset:
    """Image paths, and texts that point into them."""

    paths: list[Path]
    samples: list[Sample]

    def by_image(self) -> list[list[Sample]]:
        """The samples of each image, in the order of `paths`."""
        groups: list[list[Sample]] = [[] for _ in self.paths]
        for sample in self.samples:
            groups[sample.image].append(sample)
        return groups


class Bad:
    """Samples that cannot be used: counted, listed, and an error beyond `limit`."""

    def __init__(self, limit: int, file: Path | None = None) -> None:
        self.limit, self.file = limit, file
        self.found: dict[str, str] = {}

    def add(self, sample: str, reason: str) -> None:
        """Raises Blip2rtError where this is one more than the limit."""
        if sample in self.found:
            return
        self.found[sample] = reason
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{sample}\t{reason}\n")
        if len(self.found) > self.limit:
            listed = f"; all are in {self.file}" if self.file else ""
            raise Blip2rtError(
                f"{len(self.found)} samples cannot be used, max_bad is {self.limit}; "
                f"the last: {sample}: {reason}{listed}"
            )


def read_table(table: str | Path, images: str | Path, bad: Bad | None = None) -> Dataset:
    """Read `image<TAB>caption[<TAB>prompt]` with a header line; image paths are relative to the folder `images`."""
    table, images = Path(table), Path(images)
    if not table.is_file():
        raise Blip2rtError(f"table {table} does not exist; give a .tsv file with the columns image, caption[, prompt]")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or rows[0][:2] != ["image", "caption"]:
        raise Blip2rtError(f"{table} must start with the header image<TAB>caption; it starts with {rows[:1]}")
    names = list(dict.fromkeys(row[0] for row in rows[1:] if row))
    missing = [name for name in names if not (images / name).is_file()]
    if len(missing) > (bad.limit if bad else 0):
        raise Blip2rtError(f"{len(missing)} of {len(names)} images of {table} are not in {images}: {missing[:3]}...")
    for name in missing:
        assert bad is not None
        bad.add(str(images / name), f"{table} names it, and it does not exist")
    names = [name for name in names if name not in set(missing)]
    index = {name: i for i, name in enumerate(names)}
    samples = [
        Sample(index[row[0]], row[1], row[2] if len(row) > 2 else "")
        for row in rows[1:]
        if len(row) > 1 and row[0] in index
    ]
    if not samples:
        raise Blip2rtError(f"{table} has no rows")
    return Dataset([images / name for name in names], samples)


def sample_images(count: int, most: int = 8) -> list[int]:
    """A few of `count` images, always the same ones, spread over all."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def batches(
    count: int, batch_size: int, seed: int, start: int = 0, lengths: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Endless (step, indices) from step `start` on: a fresh permutation of range(count) every epoch, whole batches.

    With `lengths` (count), samples of similar length are put together, so that little padding is computed.
    """
    if count < batch_size:
        raise Blip2rtError(f"batch_size {batch_size} is more than the {count} samples there are; lower it")
    per_epoch = count // batch_size
    step = start
    while True:
        epoch, first = divmod(step, per_epoch)
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(count)[: per_epoch * batch_size]
        if lengths is not None:
            order = _by_length(order, lengths, batch_size, rng)
        for offset in range(first, per_epoch):
            yield step, order[offset * batch_size : (offset + 1) * batch_size]
            step += 1


def _by_length(order: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Sort by length within windows of 32 batches, then shuffle the batches."""
    window = 32 * batch_size
    parts = [
        part[np.argsort(lengths[part], kind="stable")] for part in np.split(order, range(window, len(order), window))
    ]
    rows = np.concatenate(parts).reshape(-1, batch_size)
    return rows[rng.permutation(len(rows))].reshape(-1)
