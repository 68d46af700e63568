"""What evaluation harnesses ask of a model: they send an image and a prompt, and expect a text.

A BLIP-2 bundle has its own templates. Of a prompt with a question, it gets the question without the harness'
instructions; any other prompt asks for a caption.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from ..errors import OptionError
from ..image import ImageLike
from ..loading import load
from ..model import Model
from ..options import Options

_LOADING = ("backend", "device", "threads")
_OPTIONS = tuple(field.name for field in fields(Options) if field.name != "num_captions")


def question_of(prompt: str) -> str | None:
    """The first line with a question mark, up to the mark; None if there is none."""
    found = re.search(r"[^\n]*\?", prompt)
    return None if found is None else found[0].strip()


class HarnessModel:
    """A bundle and decoding options that take precedence over those of a harness' tasks."""

    def __init__(self, bundle: str | None, given: dict[str, Any]) -> None:
        """given: keywords of blip2rt.load (backend, device, threads), and fields of Options. Raises OptionError."""
        unknown = given.keys() - {*_LOADING, *_OPTIONS}
        if unknown:
            raise OptionError(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join((*_LOADING, *_OPTIONS))}")
        self.options = {name: value for name, value in given.items() if name in _OPTIONS}
        self.model: Model = load(bundle, **{name: value for name, value in given.items() if name in _LOADING})

    def texts(self, requests: Sequence[tuple[ImageLike, str]], options: dict[str, Any] | None = None) -> list[str]:
        """Images and prompts -> a caption or an answer for each. options: of the task."""
        chosen, found = {**(options or {}), **self.options}, list[str]()
        asked = [(image, question_of(prompt)) for image, prompt in requests]
        for is_caption, group in groupby(asked, key=lambda each: each[1] is None):
            images, questions = map(list, zip(*group, strict=True))
            found += self.model.caption(images, **chosen) if is_caption else self.model.ask(images, questions, **chosen)
        return found
