"""What callers hand over, one thing or several, as lists. Knows nothing about images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import OptionError


def as_list(images: Any) -> tuple[list[Any], bool]:
    """One image or several -> list, whether it was one."""
    if isinstance(images, list | tuple | Iterator) and not is_file(images):
        return list(images), False
    return [images], True


def is_file(images: Any) -> bool:
    """Whether it is an open file: an iterator, too, and one thing."""
    return hasattr(images, "read")


def texts_of(texts: Any, name: str) -> tuple[list[str], bool]:
    """One text or several -> list, whether it was one. Raises OptionError for what is no text."""
    many, one = as_list(texts)
    wrong = sorted({type(text).__name__ for text in many if not isinstance(text, str)})
    if wrong:
        raise OptionError(f"{name} hold {', '.join(wrong)}: give a str or a list of str")
    return many, one


def pairs(images: Any, texts: Any, name: str) -> tuple[list[Any], list[str], bool]:
    """Images and texts of equal number; a single one is repeated for a list of the other."""
    many_images, one_image = as_list(images)
    many_texts, one_text = texts_of(texts, name)
    if one_image and not one_text:
        many_images *= len(many_texts)
    if one_text and not one_image:
        many_texts *= len(many_images)
    if len(many_images) != len(many_texts):
        raise OptionError(
            f"{len(many_images)} images and {len(many_texts)} {name}: give as many of one as of the other"
        )
    return many_images, many_texts, one_image and one_text
