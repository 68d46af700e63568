"""blip2rt as a model of lmms-eval: `python -m lmms_eval --model blip2rt --tasks vqav2_val`.

--model_args takes pretrained (a bundle; the default is nano), backend, threads and decoding options, such as
`pretrained=my-bundle,num_beams=5`, which take precedence over the task's. Verified with lmms-eval 0.7.3.

A BLIP-2 bundle has its own templates. Of a prompt with a question, it gets the question without lmms-eval's
instructions; any other prompt asks for a caption.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from ..errors import OptionError
from ..image import ImageLike
from ..loading import load
from ..model import Model
from ..options import Options

manifest = ModelManifest("blip2rt", simple_class_path=f"{__name__}.Blip2rt")  # an entry point of the package
_BATCH = 8  # images in memory
_LOADING = ("backend", "threads")
_OPTIONS = tuple(field.name for field in fields(Options) if field.name != "num_captions")


class Blip2rt(lmms):
    """lmms-eval's interface."""

    def __init__(self, pretrained: str | None = None, batch_size: Any = None, device: Any = None, **given: Any) -> None:
        """batch_size, device: lmms-eval's, for PyTorch; not used. Raises OptionError."""
        super().__init__()
        given.pop("max_batch_size", None)
        if unknown := given.keys() - {*_LOADING, *_OPTIONS}:
            raise OptionError(f"unknown {', '.join(sorted(unknown))}: choose from {', '.join((*_LOADING, *_OPTIONS))}")
        self.options = {name: value for name, value in given.items() if name in _OPTIONS}
        self.model: Model = load(pretrained, **{name: value for name, value in given.items() if name in _LOADING})

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Requests of (prompt, options, ...) -> captions and answers, cut at the options' `until`."""
        texts = []
        for options, group in groupby(requests, key=lambda request: request.args[1]):
            for chunk in _chunks(list(group)):
                asked = [(self._image(request.args), request.args[0]) for request in chunk]
                for text in self._texts(asked, _options(options)):
                    texts.append(_cut(text, options.get("until", ())))
        return texts

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Requests of (prompt, text, ...) -> -(log p(text | image) - log p(text)), and False for "is greedy".

        lmms-eval takes the choice with the lowest loss. The prompt is not read: a text has to stand alone.
        """
        found = []
        for chunk in _chunks(requests):
            features = self.model.vision_features([self._image(request.args) for request in chunk])
            texts = [_text(request.args[1], self._document(request.args)) for request in chunk]
            found += [(-float(gain), False) for gain in self.model.likelihoods(features, texts)]
        return found

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("blip2rt evaluates one round only: choose another task")

    def _texts(self, requests: Sequence[tuple[ImageLike, str]], options: dict[str, Any]) -> list[str]:
        """Images and prompts -> a caption or an answer for each."""
        chosen, found = {**options, **self.options}, list[str]()
        asked = [(image, _question(prompt)) for image, prompt in requests]
        for is_caption, group in groupby(asked, key=lambda each: each[1] is None):
            images, questions = map(list, zip(*group, strict=True))
            found += self.model.caption(images, **chosen) if is_caption else self.model.ask(images, questions, **chosen)
        return found

    def _document(self, arguments: tuple[Any, ...]) -> Any:
        *_, number, task, split = arguments
        return self.task_dict[task][split][number]

    def _image(self, arguments: tuple[Any, ...]) -> Any:
        """The first image of a request, whose third argument finds the images of its document."""
        return arguments[2](self._document(arguments))[0]


def _question(prompt: str) -> str | None:
    """The first line with a question mark, up to the mark; None if there is none."""
    found = re.search(r"[^\n]*\?", prompt)
    return None if found is None else found[0].strip()


def _chunks(requests: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(requests), _BATCH):
        yield requests[start : start + _BATCH]


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """lmms-eval's options -> those of blip2rt.Options. A temperature of 0 is greedy or beam search."""
    chosen = {name: given[name] for name in ("max_new_tokens", "num_beams") if given.get(name)}
    if given.get("temperature") or given.get("do_sample"):
        chosen |= {"do_sample": True} | {name: given[name] for name in ("temperature", "top_p") if given.get(name)}
    return chosen


def _cut(text: str, until: str | Sequence[str]) -> str:
    for stop in [until] if isinstance(until, str) else until:
        text = text.partition(stop)[0] if stop else text
    return text


def _text(target: str | Callable[[Any], str], document: Any) -> str:
    return (target if isinstance(target, str) else target(document)).strip()
