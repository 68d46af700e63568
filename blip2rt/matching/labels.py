"""Lists of labels: the everyday ones that come with blip2rt, and a user's own. Knows text, no model."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import OptionError
from ..native import native

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVERYDAY = Path(__file__).with_name("everyday.txt")
_MAX_CHARACTERS = 200  # of a line


@dataclass(frozen=True)
class Label:
    """A name for what a picture shows. parents: from the most general on; synonyms: other words for it."""

    name: str
    parents: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()


@functools.cache
def everyday() -> tuple[Label, ...]:
    """The labels that come with blip2rt. recipes/labels/everyday.py made them from the nouns of captions."""
    return tuple(parse_tree(EVERYDAY.read_text(encoding="utf-8").splitlines()))


def parse_tree(lines: Iterable[str]) -> Iterator[Label]:
    """Parse lines such as "animal > bird: duck/duckling, goose": parents, then labels with their synonyms."""
    for line in lines:
        above, _, rest = line.partition(": ")
        for entry in rest.split(", "):
            name, *synonyms = entry.strip().split("/")
            yield Label(name, tuple(above.split(" > ")), tuple(synonyms))


def named_labels(captions: Sequence[str], labels: tuple[Label, ...]) -> NDArray[np.bool_]:
    """Captions of an image and L labels -> which of the labels they name, by any of their words or plurals (L)"""
    text = " ; ".join(f" {native().clean_caption(caption)} " for caption in captions)
    return np.array([any(form in text for form in forms) for forms in _forms(labels)])


@functools.lru_cache(maxsize=4)
def _forms(labels: tuple[Label, ...]) -> list[list[str]]:
    """The words of each label, with their plurals, between spaces."""
    named = ((label.name.lower(), *label.synonyms) for label in labels)
    return [[f" {form} " for word in words for form in {word, native().plural_of(word)}] for words in named]


def as_labels(labels: Sequence[str | Label]) -> tuple[Label, ...]:
    """Texts -> labels, each once. "animal|dog" is the label dog below animal. Raises OptionError with every fault."""
    if isinstance(labels, str):
        raise OptionError(f"labels is {labels!r}: give a list of texts, as in ['dog', 'cat']")
    found: dict[str, Label] = {}
    faults = []
    for label in labels:
        if isinstance(label, Label):
            found.setdefault(label.name, label)
            continue
        *parents, name = [part.strip() for part in label.split("|")] if isinstance(label, str) else [""]
        if not any(map(str.isalnum, name)) or len(name) > _MAX_CHARACTERS:
            faults.append(f"{str(label)[:50]!r} is no label: give a word or a phrase, as in 'dog' or 'animal|dog'")
        else:
            found.setdefault(name, Label(name, tuple(filter(None, parents))))
    if faults or not found:
        raise OptionError("; ".join(faults[:5]) if faults else "there are no labels: give one or more")
    return tuple(found.values())


def read_labels(path: str | os.PathLike[str]) -> tuple[Label, ...]:
    """Read a file with one label a line; empty lines and those that begin with # are skipped. Raises OptionError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise OptionError(
            f"cannot read {os.fspath(path)!r}: {error.strerror or error}; give a file of labels"
        ) from None
    except UnicodeDecodeError:
        raise OptionError(f"{os.fspath(path)!r} is not UTF-8: give a text file with one label a line") from None
    return as_labels([line for line in lines if line.strip() and not line.startswith("#")])
