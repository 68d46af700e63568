"""Images and captions from tables of `image<TAB>caption`, whose third column, if there is one, is a prompt.

Knows files, rows and the order of samples; nothing about models. Every draw depends on the seed and the step alone, so
that a resumed training sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from blip2rt.errors import Blip2rtError


@dataclass(frozen=True)
class Sample:
    """One text of one image. prompt: a question that it answers, empty for captions; weight: how often it was given as
    the answer."""

    image: int
    text: str
    prompt: str = ""
    weight: float = 1.0


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


def count_answers(samples: list[Sample]) -> list[Sample]:
    """The samples, each answer to a question once, with its number as weight."""
    counts: dict[Sample, float] = {}
    for sample in samples:
        if sample.prompt:
            key = replace(sample, weight=1.0)
            counts[key] = counts.get(key, 0.0) + sample.weight
    if len(counts) == sum(bool(sample.prompt) for sample in samples):
        return samples
    captions = [sample for sample in samples if not sample.prompt]
    return captions + [replace(sample, weight=weight) for sample, weight in counts.items()]


def first_answers(samples: list[Sample]) -> list[Sample]:
    """The captions, and each question's most frequent answer."""
    best: dict[str, Sample] = {}
    for sample in samples:
        if sample.prompt and sample.weight > best.get(sample.prompt, Sample(0, "", weight=0.0)).weight:
            best[sample.prompt] = sample
    return [sample for sample in samples if not sample.prompt or sample is best[sample.prompt]]


def draw_texts(samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
    """The texts of an image in random order, with one answer to each question, drawn by weight."""
    order = [samples[i] for i in rng.permutation(len(samples))]
    answers: dict[str, list[Sample]] = {}
    for sample in order:
        if sample.prompt:
            answers.setdefault(sample.prompt, []).append(sample)
    chosen: dict[str, Sample] = {}
    for question, given in answers.items():
        weights = np.array([sample.weight for sample in given])
        chosen[question] = given[0] if len(given) == 1 else given[rng.choice(len(given), p=weights / weights.sum())]
    return [sample for sample in order if not sample.prompt or sample is chosen[sample.prompt]]


class Bad:
    """Samples that cannot be used: counted, listed, and an error beyond `limit`."""

    def __init__(self, limit: int, file: Path | None = None) -> None:
        self.limit, self.file = limit, file
        self.found: dict[str, str] = {}

    def add(self, sample: str, reason: str) -> None:
        """Count a sample and list it. Raise Blip2rtError where it is one more than the limit."""
        if sample in self.found:
            return
        self.found[sample] = reason
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(f"{sample}\t{reason}\n")
        if len(self.found) > self.limit:
            listed = f", listed in {self.file}" if self.file else ""
            raise Blip2rtError(
                f"{len(self.found)} samples cannot be used{listed}, the last {sample} ({reason}), and max_bad is "
                f"{self.limit}: mend them, or raise max_bad"
            )


def read_table(table: str | Path, images: str | Path, bad: Bad | None = None) -> Dataset:
    """Read `image<TAB>caption[<TAB>prompt]` with a header line; image paths are relative to the folder `images`."""
    table, images = Path(table), Path(images)
    if not table.is_file():
        raise Blip2rtError(f"table {table} does not exist: give a .tsv file with the columns image, caption[, prompt]")
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
        raise Blip2rtError(f"{table} has no rows: give some")
    return Dataset([images / name for name in names], count_answers(samples))


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
        raise Blip2rtError(f"batch_size {batch_size} is more than the {count} samples there are: lower it")
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
