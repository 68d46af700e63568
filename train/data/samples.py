"""Samples, data sets and unusable samples."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from blip2rt.errors import Blip2rtError


@dataclass(frozen=True)
class Sample:
    """One text of one image. prompt: the question it answers, empty for captions; weight: how often it was given."""

    image: int
    text: str
    prompt: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Dataset:
    """Image paths, and samples that refer to them by index."""

    paths: list[Path]
    samples: list[Sample]

    def by_image(self) -> list[list[Sample]]:
        """Return the samples of each image, in the order of `paths`."""
        groups: list[list[Sample]] = [[] for _ in self.paths]
        for sample in self.samples:
            groups[sample.image].append(sample)
        return groups

    def captions(self, place: str) -> Dataset:
        """Drop the answers but keep all images. Raise Blip2rtError, which names the place, if no caption is left."""
        alone = [sample for sample in self.samples if not sample.prompt]
        if not alone:
            raise Blip2rtError(f"{place} has no caption, and only captions are read: leave it out, or give another")
        return Dataset(self.paths, alone)

    def with_texts(self) -> Dataset:
        """Drop the images without a text."""
        return self.without([image for image, group in enumerate(self.by_image()) if not group])

    def without(self, images: Container[int]) -> Dataset:
        """Drop some images and renumber the others."""
        remaining = [image for image in range(len(self.paths)) if image not in images]
        number = {image: i for i, image in enumerate(remaining)}
        samples = [replace(each, image=number[each.image]) for each in self.samples if each.image in number]
        return Dataset([self.paths[image] for image in remaining], samples)


def count_answers(samples: list[Sample]) -> list[Sample]:
    """Merge repeated answers to a question into one sample, weighted by their number."""
    counts: dict[Sample, float] = {}
    for sample in samples:
        if sample.prompt:
            key = replace(sample, weight=1.0)
            counts[key] = counts.get(key, 0.0) + sample.weight
    if len(counts) == sum(bool(sample.prompt) for sample in samples):
        return samples
    captions = [sample for sample in samples if not sample.prompt]
    return captions + [replace(sample, weight=weight) for sample, weight in counts.items()]


def repeat_answers(samples: list[Sample]) -> list[Sample]:
    """Repeat each answer as often as it was given, for a list without weights."""
    return [replace(each, weight=1.0) for each in samples for _ in range(max(1, round(each.weight)))]


def first_answers(samples: list[Sample]) -> list[Sample]:
    """Return the captions, and each question's most frequent answer."""
    best: dict[str, Sample] = {}
    for sample in samples:
        if sample.prompt and sample.weight > best.get(sample.prompt, Sample(0, "", weight=0.0)).weight:
            best[sample.prompt] = sample
    return [sample for sample in samples if not sample.prompt or sample is best[sample.prompt]]


def draw_texts(samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
    """Return the texts of an image in random order, with one answer to each question, drawn by weight."""
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


def error_text(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def table_text(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return a table of (image, caption or answer, question or nothing)."""
    return "image\tcaption\tprompt\n" + "".join("\t".join(row) + "\n" for row in rows)


class TooManyBadSamples(Blip2rtError):
    """More samples are unusable than allowed."""


class BadSamples:
    """Counts and lists unusable samples; more than `limit` are an error."""

    def __init__(self, limit: int, file: Path | None = None, *, resume: bool = False) -> None:
        """file: lists them; resume: count those that it lists already."""
        self.limit, self.file = limit, file
        self.found: dict[str, str] = {}
        if resume and file is not None and file.is_file():
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            self.found = {name: reason for name, _, reason in (line.partition("\t") for line in lines)}

    def add(self, sample: str, reason: str) -> None:
        """Count a sample and list it. Raise TooManyBadSamples beyond the limit."""
        if sample in self.found:
            return
        self.found[sample] = reason
        if self.file is not None:
            with self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{' '.join(sample.split())}\t{' '.join(reason.split())}\n")
        if len(self.found) > self.limit:
            listed = f", listed in {self.file}" if self.file else ""
            last = f"{sample} ({reason})".encode("utf-8", "backslashreplace").decode()
            raise TooManyBadSamples(
                f"{len(self.found)} samples are unusable{listed}, the last {last}, and max_bad is "
                f"{self.limit}: fix them, or raise max_bad"
            )


@dataclass(frozen=True)
class Row:
    """One text of one image as read from a list, unchecked.

    place: its position in the list; other_names: of the image, if there is none of the first name.
    """

    place: str
    image: object
    text: object
    prompt: object = ""
    other_names: tuple[str, ...] = field(default=(), kw_only=True)


def text_fault(text: object, what: str = "caption") -> str | None:
    """Return what is wrong with a caption, an answer or a prompt, or None if it is usable.

    An answer may be a symbol, such as "$"; a caption of symbols only would be empty after cleaning.
    """
    if not isinstance(text, str):
        return f"its {what} is {str(text)[:40]!r} of type {type(text).__name__}, not text"
    if not text.strip():
        return f"its {what} is empty"
    try:
        text.encode()
    except UnicodeError:  # invalid UTF-8 (by surrogateescape), or JSON's lone surrogates
        return f"its {what} is not valid UTF-8"
    if what == "caption" and all(unicodedata.category(letter)[0] in "PZC" for letter in text):
        return f"its caption {text.strip()[:40]!r} has no word"
    return None


def dataset_of(path: Path, rows: Iterable[Row], images: Path, bad: BadSamples) -> Dataset:
    """Check the rows of a list. Unusable ones are counted in `bad` and left out.

    Raise Blip2rtError if nothing is left, or more is wrong than `bad` allows.
    """
    index: dict[str, int] = {}
    missing: set[str] = set()
    samples, count = [], 0
    for row in rows:
        count += 1
        fault = _row_fault(row) or _leaves(str(row.image), images)
        if fault is not None:
            bad.add(row.place, fault)
            continue
        name, text, prompt = str(row.image), str(row.text), str(row.prompt or "")
        if name in missing:
            continue
        if row.other_names and name not in index and not is_file(images / name):
            name = next((other for other in row.other_names if is_file(images / other)), name)
        if name not in index and not is_file(images / name):
            missing.add(name)
            bad.add(str(images / name), f"{path} lists it, but it does not exist")
            continue
        samples.append(Sample(index.setdefault(name, len(index)), text, prompt))
    if not samples:
        reason = f"of {count} rows none has both a caption and an image in {images}" if count else "it has no rows"
        raise Blip2rtError(f"data {str(path)!r} cannot be used: {reason}; give a list with some")
    return Dataset([images / name for name in index], count_answers(samples))


def _row_fault(row: Row) -> str | None:
    if not isinstance(row.image, str) or not row.image.strip():
        return f"its image is {str(row.image)[:40]!r}, not a file's name"
    if row.prompt not in ("", None):
        fault = text_fault(row.prompt, "prompt")
        return text_fault(row.text, "answer") if fault is None else fault
    return text_fault(row.text)


def _leaves(name: str, images: Path) -> str | None:
    """Return what is wrong with a relative name that leaves the folder of the images, if the user named one."""
    outside = images != Path() and os.path.normpath(name).split(os.sep)[0] == os.pardir
    return (
        f"its image {name[:40]!r} leads out of {images}: give its absolute path if you want that" if outside else None
    )


def is_file(path: Path) -> bool:
    """Whether the file exists; False for an impossible name."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, a null character
        return False
