"""One thing or several, as lists. Knows nothing about images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import ImageError, OptionError


def as_list(images: Any) -> tuple[list[Any], bool]:
    """One image or several -> a list, and whether it was one. An array of four axes is a batch."""
    if hasattr(images, "__array__") and len(getattr(images, "shape", ())) == 4:
        return list(images), False
    if isinstance(images, list | tuple | Iterator) and not is_file(images):
        return list(images), False
    return [images], True


def is_file(images: Any) -> bool:
    """Whether it is an open file: an iterator, but one image."""
    return hasattr(images, "read")


def one_by_one(images: Any) -> None:
    """Raise ImageError unless `images` is an iterable of images."""
    one = isinstance(images, str | bytes | os.PathLike) or is_file(images)
    if one or not isinstance(images, Iterable):
        raise ImageError(f"caption_each takes an iterable, not {type(images).__name__}: give a list, or call caption")


def texts_of(texts: Any, name: str) -> tuple[list[str], bool]:
    """One text or several -> a list, and whether it was one. Raises OptionError unless all are str."""
    many, one = as_list(texts)
    wrong = sorted({type(text).__name__ for text in many if not isinstance(text, str)})
    if wrong:
        raise OptionError(f"{name} contain {', '.join(wrong)}: give a str or a list of str")
    return many, one


def pairs(images: Any, texts: Any, name: str) -> tuple[list[Any], list[str], bool]:
    """Images and texts -> lists of equal length, and whether both were one. A single one is repeated for a list."""
    many_images, one_image = as_list(images)
    many_texts, one_text = texts_of(texts, name)
    if one_image and not one_text:
        many_images *= len(many_texts)
    if one_text and not one_image:
        many_texts *= len(many_images)
    if len(many_images) != len(many_texts):
        raise OptionError(f"{len(many_images)} images and {len(many_texts)} {name}: give equally many")
    return many_images, many_texts, one_image and one_text
